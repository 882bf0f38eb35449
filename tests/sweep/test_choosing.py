"""Advice that its own trials contradict must be impossible: held over hundreds of sweeps with made-up judgements."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from sweeps import GRID, STATS

from trtcal.judging.accuracy import bootstrap
from trtcal.ranges.thresholds import method
from trtcal.sweep.choosing import choices, choose, means, measures_of
from trtcal.sweep.recommend import Recommendation, recommend
from trtcal.sweep.trials import Judgement, Sweep, Trial, sweep

PLAIN = sweep(STATS, GRID)
ONE = sweep(STATS, GRID[:5], ("entropy", "minmax", "mse"))
MEASURES = ("accuracy", "agreement", "noise")


def made_up(seed: int, samples: int = 40) -> Sweep:
    """A sweep whose methods, batch sizes and arrangements are good or bad by chance, by none to all of the measures."""
    rng = np.random.default_rng(seed)
    plain = PLAIN if seed % 4 == 0 else ONE
    which = rng.random(3) < 0.7
    whole_set = seed % 7 == 0  # a metric with one value for all samples
    hard, loud = rng.random(samples), rng.lognormal(0, rng.choice([0.3, 2.0]), samples)
    spread = rng.choice([0.0, 0.02, 0.2, 0.6], 2)
    quality: dict[object, float] = {}

    def part(key: object, by: float) -> float:
        return quality.setdefault(key, by * float(rng.normal()))

    known: dict[bytes, Judgement] = {}
    trials = []
    for trial in plain.trials:
        key = trial.amax.tobytes()
        if key not in known:
            a = trial.configuration
            good = part(trial.method, spread[0]) + part((trial.method, a.batch_size), spread[1] / 2)
            good += part((trial.method, a), spread[1])
            own = [good + part((trial.method, name), spread[0] / 2) for name in MEASURES]  # measures may contradict
            right = (hard < np.clip(0.8 + own[0] / 3, 0.05, 1)) ^ (rng.random(samples) < 0.02)
            accuracy = np.array([0.5 + own[0] / 9]) if whole_set else right.astype(float)
            agreement = (np.roll(hard, 7) < np.clip(0.95 + own[1] / 5, 0, 1)).astype(float)
            noise = 10 ** (-3 - 2 * own[2]) * loud * rng.lognormal(0, 0.1, samples) * (rng.random() > 0.03)
            sqnr = float(-10 * np.log10(np.maximum(noise.mean(), 1e-30)))
            parts = (accuracy, agreement) if which.any() else (None, None)
            known[key] = Judgement(
                parts[0] if which[0] else None, parts[1] if which[1] else None, sqnr, noise if which[2] else None
            )
        trials.append(replace(trial, judgement=known[key]))
    failed = rng.random(len(trials)) < (0.03 if seed % 5 == 0 else 0)
    trials = [
        replace(trial, judgement=None, error="no engine") if fails else trial
        for trial, fails in zip(trials, failed, strict=True)
    ]
    return replace(plain, trials=tuple(trials), metric="metric.py:map" if whole_set else "top1")


def judged_values(trial: Trial, name: str) -> np.ndarray | None:
    found = trial.judgement
    assert found is not None
    if name == "noise":
        if found.noise is not None:
            return -found.noise
        return None if found.sqnr_db is None else -(10 ** (-np.array([found.sqnr_db]) / 10))
    return None if getattr(found, name) is None else np.asarray(getattr(found, name))


def advised(result: Sweep, advice: Recommendation) -> list[Trial]:
    """Trials that the advised command repeats, as a reader finds them in trials.csv."""
    options = dict(zip(advice.options[::2], advice.options[1::2], strict=True))
    found = [trial for trial in result.trials if trial.method == options["--method"] and trial.judgement is not None]
    if "--batch-size" in options:
        found = [trial for trial in found if trial.configuration.batch_size == int(options["--batch-size"])]
        found = [trial for trial in found if trial.configuration.order == "given"]
    if method(options["--method"]).depends_on_batches:
        found = [trial for trial in found if trial.configuration.growth == options.get("--growth", "double")]
    return found


def groups_of(result: Sweep) -> dict[tuple[str, str, int], list[Trial]]:
    """Trials that a reader of trials.csv would set against the advice: usual orders of what a command can be told."""
    found: dict[tuple[str, str, int], list[Trial]] = {}
    for trial in result.trials:
        if trial.judgement is None or trial.configuration.order not in ("given", "shuffled"):
            continue
        moves = method(trial.method).depends_on_batches
        growth = trial.configuration.growth if moves else ""
        size = trial.configuration.batch_size if growth == "double" else 0
        found.setdefault((trial.method, growth, size), []).append(trial)
    return {key: some for key, some in found.items() if any(trial.configuration.order == "given" for trial in some)}


@pytest.mark.parametrize("block", range(3))
def test_no_advice_is_contradicted_by_its_own_trials(block: int) -> None:
    passed = dict.fromkeys(MEASURES, 0)
    for seed in range(100 * block, 100 * block + 100):
        result = made_up(seed)
        advice = recommend(result, STATS)
        taken = advised(result, advice)
        assert taken, (seed, advice.headline)
        others = groups_of(result)
        names = [name for name in MEASURES if judged_values(taken[0], name) is not None]

        @cache
        def mean(trial: Trial, name: str) -> float:
            values = judged_values(trial, name)
            assert values is not None
            return float(values.mean())

        def lesser(some: list[Trial], name: str) -> float:
            own = [mean(trial, name) for trial in some if trial.configuration.order == "given"]
            return min(own[0], float(np.mean([mean(trial, name) for trial in some])))

        # What another beats on all measures is never advised.
        for key, some in others.items():
            better = [lesser(some, name) - mean(taken[0], name) for name in names]
            assert not (min(better) >= 0 and max(better) > 1e-12 * abs(mean(taken[0], names[-1]))), (seed, key, better)

        # On the first measure that tells any two apart, nothing is significantly better: by another bootstrap than that
        # of the advice. What cannot be told apart on it, even nearly, is compared on the next one as well.
        for name in names:
            mine = judged_values(taken[0], name)
            rows = [judged_values(min(some, key=lambda t: mean(t, name)), name) for some in others.values()]
            assert mine is not None
            if mine.size == 1:
                break
            differences = [row - mine for row in rows if row is not None]
            for key, difference in zip(others, differences, strict=True):
                low, _ = bootstrap(difference, confidence=0.99, seed=7)
                assert low <= 1e-12, (seed, key, name, advice.headline)
            best = max(rows, key=lambda row: -np.inf if row is None else float(row.mean()))
            if any(bootstrap(best - row, confidence=0.8, seed=7)[0] > 0 for row in rows if row is not None):
                break
            passed[name] += 1
    assert passed["accuracy"] > 3, "ties on the first measure are among the sweeps"


def of_method(**values: Judgement) -> Sweep:
    """Trials of one method each, judged as given; `_` in a name stands for `:`, and arrangements change nothing."""
    names = {name.replace("_", ":"): found for name, found in values.items()}
    plain = sweep(STATS, GRID[:5], tuple(names))
    return replace(plain, trials=tuple(replace(trial, judgement=names[trial.method]) for trial in plain.trials))


def right(share: float, first: int = 0, samples: int = 100) -> np.ndarray:
    """So many samples are right, from one of them on."""
    return np.roll((np.arange(samples) < share * samples).astype(float), first)


def decibels(value: float, samples: int = 100) -> np.ndarray:
    """The noise of an SQNR, nearly the same in all samples."""
    shape = np.random.default_rng(5).uniform(0.9, 1.1, samples)
    return 10 ** (-value / 10) * shape / shape.mean()


def test_where_accuracy_and_agreement_tell_nothing_the_sqnr_decides_and_the_headline_says_so() -> None:
    def judged(trial: Trial) -> Judgement:
        sqnr = {"entropy": 26.0 + trial.configuration.batch_size, "minmax": 47.1, "mse": 52.7}[trial.method]
        return Judgement(np.ones(96), np.ones(96), sqnr, decibels(sqnr, 96))

    result = replace(ONE, trials=tuple(replace(trial, judgement=judged(trial)) for trial in ONE.trials))
    advice = recommend(result, STATS)
    assert advice.headline == (
        "No method loses accuracy or agreement with FP32 against another that 96 samples can show; by SQNR mse is "
        "nearest to FP32 (52.7 dB; entropy 27.0 dB). With entropy, take batches of 1; the order of the samples does "
        "not matter."
    )
    assert (advice.options, advice.method, advice.decided_by) == (("--method", "mse"), "mse", "SQNR")
    assert any("minmax 47.1 dB (-5.6 dB, -5.6 to -5.6 dB), entropy" in sentence for sentence in advice.evidence)


def test_agreement_decides_before_sqnr_and_what_lost_accuracy_is_out_whatever_else_it_has() -> None:
    result = of_method(
        minmax=Judgement(right(0.9), right(0.99), 30.0, decibels(30)),
        mse=Judgement(right(0.9), right(0.8), 40.0, decibels(40)),
        percentile_99=Judgement(right(0.5), right(1), 50.0, decibels(50)),
    )
    advice = recommend(result, STATS)
    assert (advice.method, advice.decided_by) == ("minmax", "agreement with FP32")
    assert advice.headline.startswith(
        "By accuracy percentile:99 loses; by agreement with FP32 of the others minmax is best (99.00%; mse 80.00%). "
    )
    assert advice.headline.endswith(
        "Without trials of entropy under TensorRT's growth rule the sweep cannot say what batches do to it."
    )


def test_what_is_beaten_on_all_measures_is_not_advised_for_being_uncertain() -> None:
    y, x, a = right(0.90), right(0.80), right(0.79, 40)  # x is worse than y on the same samples, a on others
    result = of_method(
        minmax=Judgement(y, None, 20.0, decibels(20)),
        mse=Judgement(x, None, 40.0, decibels(40)),
        percentile_99=Judgement(a, None, 39.0, decibels(39)),
    )
    found = choose(choices(result), measures_of(result))
    assert found is not None
    accuracy = found.values["accuracy"]
    assert accuracy.below[1, 0]
    assert not accuracy.below[2, 0]
    assert found.best.method == "minmax"


@pytest.mark.parametrize("lucky", ["given", "shuffled"])
def test_luck_of_one_arrangement_is_no_merit_and_its_bad_luck_counts(lucky: str) -> None:
    """What a command repeats is the given order; what a batch size is worth, all that come by chance."""

    def judged(trial: Trial) -> Judgement:
        if trial.method == "entropy" and trial.configuration.growth == "double":
            good = trial.configuration.batch_size == 24 and (trial.configuration.order == "given") == (lucky == "given")
            return Judgement(right(0.99 if good else 0.7))
        return Judgement(right(0.95 if trial.method == "mse" else 0.6))

    result = replace(PLAIN, trials=tuple(replace(trial, judgement=judged(trial)) for trial in PLAIN.trials))
    assert recommend(result, STATS).options == ("--method", "mse")


def test_a_value_for_all_samples_decides_where_it_differs_by_more_than_a_hundredth() -> None:
    by = {"minmax": (0.500, 30.0), "mse": (0.497, 40.0), "percentile_99": (0.40, 50.0)}
    result = of_method(**{name: Judgement(np.array([m]), None, q, decibels(q)) for name, (m, q) in by.items()})
    advice = recommend(replace(result, metric="metric.py:map"), STATS)
    assert advice.method == "mse"
    assert advice.headline.startswith(
        "By metric.py:map percentile:99 loses; by SQNR of the others mse is nearest to FP32 (40.0 dB; minmax 30.0 dB)."
    )


def test_a_tie_on_all_there_is_says_so_and_the_best_mean_is_taken() -> None:
    result = of_method(minmax=Judgement(right(0.8)), mse=Judgement(right(0.81, 40)))
    assert recommend(result, STATS).headline.startswith(
        "No method loses accuracy against another that 100 samples can show; by accuracy mse has the best mean "
        "(81.00%; minmax 80.00%). "
    )


def test_without_noise_per_sample_the_sqnr_alone_still_decides() -> None:
    result = of_method(minmax=Judgement(None, right(1), 30.0), mse=Judgement(None, right(1), 40.0))
    assert recommend(result, STATS).method == "mse"
    assert recommend(of_method(minmax=Judgement(sqnr_db=30.0), mse=Judgement(sqnr_db=np.inf)), STATS).method == "mse"


def test_nothing_unusable_is_ever_advised() -> None:
    whole = of_method(
        entropy=Judgement(right(0.9)), minmax=Judgement(right(0.8)), mse=Judgement(right(0.7), None, 60.0)
    )

    def without(*names: str) -> Recommendation:
        marked = [replace(t, unusable="x clips half") if t.method in names else t for t in whole.trials]
        return recommend(replace(whole, trials=tuple(marked)), STATS)

    assert without().method == "entropy"
    advice = without("entropy")
    assert advice.options == ("--method", "minmax")
    assert advice.headline == (
        "Do not take entropy: in no arrangement are its thresholds usable. Take minmax: +10.00% accuracy (+5.00% to "
        "+15.00%) against mse, whatever the batches."
    )
    assert without("entropy", "minmax").method == "mse"
    none = without("entropy", "minmax", "mse")
    assert none.headline.startswith("Do not take entropy")
    assert (none.batch_size, none.decided_by) == (None, None)
    assert without("mse").method == "entropy"


def test_trials_that_saw_fewer_samples_are_neither_advised_nor_compared() -> None:
    result = of_method(minmax=Judgement(right(0.8)), mse=Judgement(np.ones(10)))
    assert recommend(result, STATS).method == "minmax"


def test_what_the_race_dropped_is_told_by_the_measure_that_dropped_it() -> None:
    whole = of_method(
        minmax=Judgement(right(0.9), right(1), 30.0, decibels(30)),
        mse=Judgement(right(0.9), right(1), 40.0, decibels(40)),
        percentile_99=Judgement(right(0.5, 0, 16), right(1, 0, 16), 50.0, decibels(50, 16), 16),
    )

    def without(name: str, reason: str) -> Recommendation:
        trials = [replace(t, dropped=reason) if t.method == name else t for t in whole.trials]
        return recommend(replace(whole, trials=tuple(trials)), STATS)

    lost = "worse than mse by accuracy: -40.00% (-60.00% to -10.00%) on 16 samples"
    advice = without("percentile:99", lost)
    assert advice.headline.startswith(
        "By accuracy percentile:99 loses; none of the others loses agreement with FP32 against another that 100 "
        "samples can show; by SQNR mse is nearest to FP32 (40.0 dB; minmax 30.0 dB). "
    )
    assert f"The race dropped percentile:99, {lost}." in advice.evidence
    noisy = "worse than mse by SQNR: -10.0 dB (-11.0 to -9.0 dB) on 16 samples"
    assert without("percentile:99", noisy).headline.startswith("No method loses accuracy or agreement with FP32 ")


def test_intervals_are_those_of_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.random((2, 300))
    found = means([one[None], two[None]], 4000)
    np.testing.assert_allclose(
        np.quantile(found[0] - found[1], [0.025, 0.975]), bootstrap(one - two, resamples=4000, seed=3), atol=0.01
    )
    several = means([rng.random((5, 1)) * np.ones((5, 300))], 4000)
    assert 0.05 < several.std() < 0.25, "trials are resampled as well as samples"

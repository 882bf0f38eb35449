from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from sweeps import GRID, STATS, X, stats_of

from trtcal import demo
from trtcal.ranges.thresholds import method
from trtcal.sweep import judge
from trtcal.sweep.emulation import RULES
from trtcal.sweep.recommend import enough_samples, find_outliers, recommend
from trtcal.sweep.trials import Judgement, Sweep, Trial, configurations, sweep

PLAIN = sweep(STATS, GRID)
Grade = Callable[[Trial], float]


def judged(grade: Grade, samples: int = 400) -> Sweep:
    """A sweep whose trials get about ``grade`` of 400 samples right, always the same ones first."""
    trials = tuple(
        Trial(t.configuration, t.method, t.amax, Judgement((np.arange(samples) < grade(t) * samples).astype(float)))
        for t in PLAIN.trials
    )
    return replace(PLAIN, trials=trials)


def test_the_smallest_batch_size_that_cannot_be_told_from_the_best_is_recommended() -> None:
    advice = recommend(judged(lambda t: {1: 0.5, 4: 0.8, 24: 0.8}[t.configuration.batch_size]), STATS)
    assert advice.batch_size == 4
    assert advice.options == ("--method", "entropy", "--batch-size", "4")
    assert not advice.order_matters
    assert any("Batches of 4 give 80.00% accuracy; worse are batches of 1 (-30" in text for text in advice.evidence)


def test_where_nothing_differs_batches_of_one_do_and_order_does_not_matter() -> None:
    advice = recommend(judged(lambda t: 0.8), STATS)
    assert (advice.batch_size, advice.order_matters) == (1, False)
    assert advice.headline == "Calibrate entropy with batches of 1; the order of the samples does not matter."


def test_an_order_that_costs_accuracy_is_named() -> None:
    advice = recommend(judged(lambda t: 0.6 if t.configuration.order == "largest-last" else 0.8), STATS)
    assert advice.order_matters
    assert any("largest-last loses 20.00%" in sentence for sentence in advice.evidence)


def test_largest_first_that_repairs_small_batches_is_said() -> None:
    def grade(t: Trial) -> float:
        return 0.5 if t.configuration.batch_size == 1 and t.configuration.order != "largest-first" else 0.8

    advice = recommend(judged(grade), STATS)
    assert any("repairs batches of 1 (+30.00%" in sentence for sentence in advice.evidence)


def test_a_better_method_leads() -> None:
    advice = recommend(judged(lambda t: 0.9 if t.method == "mse" else 0.7), STATS)
    assert advice.headline.startswith("Take mse: +20.00%")
    assert advice.options == ("--method", "mse")
    advice = recommend(
        judged(
            lambda t: 0.9 if method(t.method).depends_on_batches and t.configuration.growth == "power-of-two" else 0.7
        ),
        STATS,
    )
    assert advice.headline.startswith("Take the batch-invariant histogram: +20.00%")
    assert advice.options == ("--method", "entropy", "--growth", "power-of-two")


def test_a_smaller_batch_than_the_best_is_enough_where_chance_may_have_decided() -> None:
    rng = np.random.default_rng(1)
    noise = {size: rng.random(40) < 0.8 - 0.001 * (size == 1) for size in (1, 4, 24)}

    def luck(t: Trial) -> Judgement:
        return Judgement(noise[t.configuration.batch_size].astype(float))

    best = max(noise, key=lambda size: noise[size].mean())
    assert best != 1
    advice = recommend(replace(PLAIN, trials=tuple(replace(t, judgement=luck(t)) for t in PLAIN.trials)), STATS)
    assert advice.batch_size == 1
    assert advice.headline.startswith(f"With entropy, batches of {best} did best, those of 1 may be as good; ")
    assert advice.options == ("--method", "entropy", "--batch-size", str(best))


@pytest.mark.parametrize("size", [1, 4])
def test_the_options_are_those_of_trtcal_calibrate(size: int, run: Callable[..., tuple[int, str, str]]) -> None:
    graded = [judged(lambda t: 0.9 if t.method == "percentile:99.9" else 0.7)]
    graded.append(judged(lambda t: 0.9 if RULES[t.configuration.growth].invariant else 0.7))
    graded.append(judged(lambda t: 0.9 if t.configuration.batch_size >= size else 0.7))
    for result in graded:
        options = recommend(result, STATS).options
        assert options
        code, _, err = run("calibrate", demo.model_path(), "--data", "gone.npy", *options, "-o", "m.cache")
        assert (code, "gone.npy: no such file" in err) == (2, True), (options, err)


def test_a_difference_within_the_noise_is_none() -> None:
    rng = np.random.default_rng(0)

    def noise(amax: Mapping[str, np.float32]) -> Judgement:
        return Judgement((rng.random(200) < 0.8).astype(float))

    advice = recommend(judge.judged(PLAIN, noise), STATS)
    assert not advice.order_matters


def test_without_accuracy_thresholds_decide() -> None:
    advice = recommend(sweep(STATS, GRID), STATS)
    assert any("half of them move by more than" in sentence for sentence in advice.evidence)
    assert advice.control_flat


def test_a_control_arm_that_is_not_flat_is_shouted() -> None:
    plain = sweep(STATS, GRID)
    broken = [Trial(t.configuration, t.method, t.amax * (1 + i), None) for i, t in enumerate(plain.trials)]
    advice = recommend(
        Sweep(plain.tensors, plain.samples, plain.measures, tuple(broken), plain.invariant, False), STATS
    )
    assert not advice.control_flat
    assert "NOT the same" in advice.evidence[0]


def test_without_entropy_there_is_nothing_to_choose() -> None:
    advice = recommend(sweep(STATS, GRID, ("minmax", "mse")), STATS)
    assert advice.batch_size is None
    assert "Without trials of entropy" in advice.headline


def test_a_lucky_arrangement_does_not_make_a_batch_size() -> None:
    """One shuffle of batches of 24 is much better, the others are as batches of 1: chance, not size."""

    def grade(t: Trial) -> float:
        return 0.95 if (t.configuration.batch_size, t.configuration.seed) == (24, 1) else 0.8

    advice = recommend(judged(grade), STATS)
    assert advice.batch_size == 1
    assert advice.order_matters  # that, however, is so
    assert any("cannot be told from none" in sentence for sentence in advice.evidence)


def test_a_metric_for_the_whole_set_has_no_intervals_and_agreement_decides() -> None:
    plain = sweep(STATS, GRID, metric="metric.py:mean")
    agreement = np.ones(50)
    trials = tuple(
        Trial(t.configuration, t.method, t.amax, Judgement(np.array([float(i)]), agreement))
        for i, t in enumerate(plain.trials)
    )
    advice = recommend(replace(plain, trials=trials), STATS)
    assert (advice.batch_size, advice.order_matters) == (1, False)


def test_a_metric_of_the_user_s_own_is_called_by_its_name_and_is_no_percentage() -> None:
    advice = recommend(
        replace(judged(lambda t: 0.9 if t.configuration.batch_size == 24 else 0.5), metric="metric.py:f1"), STATS
    )
    assert any("Batches of 24 give 0.9 metric.py:f1; worse are" in sentence for sentence in advice.evidence)


def test_one_failed_trial_leaves_the_judgement_to_the_others() -> None:
    whole = judged(lambda t: {1: 0.5, 4: 0.8, 24: 0.8}[t.configuration.batch_size])
    first, *others = whole.trials
    failed = Trial(first.configuration, first.method, first.amax, None, "RuntimeError: no")
    advice = recommend(replace(whole, trials=(failed, *others)), STATS)
    assert advice.batch_size == 4
    assert any(sentence.startswith(f"1 of {len(whole.trials)} trials failed") for sentence in advice.evidence)


@pytest.mark.parametrize("bad", ["mse", "entropy"])
def test_no_advice_names_what_is_unusable_however_well_it_did(bad: str) -> None:
    whole = judged(lambda t: 0.99 if t.method == bad else 0.7)
    marked = [replace(t, unusable="the threshold of x clips all") if t.method == bad else t for t in whole.trials]
    advice = recommend(replace(whole, trials=tuple(marked)), STATS)
    assert bad not in advice.options
    assert f"Take {bad}" not in advice.headline
    assert advice.options[0] == "--method"
    count = sum(t.method == bad for t in whole.trials)
    assert (
        f"{count} of {len(marked)} trials are unusable and left out of all advice, of {bad}: in the first of them the "
        f"threshold of x clips all."
    ) in advice.evidence


def test_a_batch_size_whose_thresholds_are_unusable_is_no_advice() -> None:
    whole = judged(lambda t: 0.9 if t.configuration.batch_size == 1 else 0.8)
    marked = [replace(t, unusable="no") if t.configuration.batch_size == 1 else t for t in whole.trials]
    assert recommend(whole, STATS).batch_size == 1
    assert recommend(replace(whole, trials=tuple(marked)), STATS).batch_size == 4


def test_what_was_not_run_is_not_claimed() -> None:
    advice = recommend(sweep(STATS, GRID, ("entropy",)), STATS)
    assert advice.control_flat is None
    assert "no MinMax control" in advice.evidence[0]
    grid, _ = configurations((1, 4), ("given",), 1, ("double",), 24)
    advice = recommend(sweep(STATS, grid), STATS)
    assert advice.order_matters is None
    assert "was not varied" in advice.headline
    assert recommend(sweep(STATS, GRID, partial="drop"), STATS).control_flat is None


def test_how_many_samples_are_enough_follows_from_the_drift() -> None:
    samples = [8, 16, 32, 64]
    drift = {
        "minmax": {"samples": samples, "change_median": [0.2, 0.008, 0.02, 0.0]},
        "mse": {"samples": samples, "change_median": [0.2, 0.005, 0.001, 0.0]},
    }
    assert enough_samples({"mse": drift["mse"]}) == (
        "Half of the thresholds stay within 1% of those of all 64 samples from 16 samples on (mse), at the latest "
        "from 16 on (mse)."
    )
    assert enough_samples(drift) == (
        "Of 64 samples all are needed before half of minmax's thresholds stay within 1%: take more."
    )
    assert enough_samples({}) is None


def test_a_sample_that_alone_sets_a_range_is_named() -> None:
    x = X.copy()
    x[5, 0] = 3 * np.abs(x).max()
    worst = find_outliers(stats_of(x))[0]
    assert (worst.sample, worst.tensors) == ("s5", 2)
    assert worst.factor == pytest.approx(3)
    assert find_outliers(stats_of(x[:1])) == ()

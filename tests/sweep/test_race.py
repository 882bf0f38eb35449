from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sweeps import GRID, STATS

from trtcal.passes.executor import one_by_one
from trtcal.sweep.choosing import choices, choose, measures_of
from trtcal.sweep.judge import LATE, Step
from trtcal.sweep.race import alike, raced
from trtcal.sweep.recommend import recommend
from trtcal.sweep.trials import Judgement, Sweep, Trial, sweep

PLAIN = sweep(STATS, GRID)
SAMPLES, FEW = 64, (16, 32, 64)
DISTINCT = {trial.amax.tobytes() for trial in PLAIN.trials}
LEADERS = set(alike(PLAIN).values())


class Judge:
    """A judge by made-up values: of the thresholds' bytes, each sample's noise, and whether it is right."""

    def __init__(self, sweep: Sweep, grade: Callable[[Trial], tuple[float, float]], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        hard, loud = rng.random(SAMPLES), rng.lognormal(0, 0.5, SAMPLES)
        self.whole: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        for trial in sweep.trials:
            if (key := trial.amax.tobytes()) not in self.whole:
                right, noise = grade(trial)
                own = rng.normal(0, 0.05, SAMPLES)
                self.whole[key] = (hard + own < right).astype(float), noise * loud * np.exp(own)
        self.asked: list[tuple[bytes, int, int]] = []

    def steps(self) -> Sequence[int]:
        return FEW

    def go_on(self, step: Step) -> tuple[Judgement, Any]:
        key = np.array(list(step.amax.values()), np.float32).tobytes()
        self.asked.append((key, step.so_far or 0, step.samples))
        right, noise = (values[: step.samples] for values in self.whole[key])
        return Judgement(right, None, float(-10 * np.log10(noise.mean())), noise, step.samples), step.samples

    def as_given(self, judgement: Judgement) -> Judgement:
        return judgement

    @property
    def cost(self) -> int:
        return sum(last - first for _, first, last in self.asked)


def equal(trial: Trial) -> tuple[float, float]:
    return 0.8, 0.01


def by_batch_size(trial: Trial) -> tuple[float, float]:
    if trial.method == "entropy" and trial.configuration.growth == "double":
        return {1: 0.2, 4: 0.8, 24: 0.8}[trial.configuration.batch_size], 0.01
    return 0.8, 0.01


def by_method(trial: Trial) -> tuple[float, float]:
    return (2.0, 0.001) if trial.method == "mse" else (2.0, 1.0)  # all are right


def judgements(sweep: Sweep) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for trial in sweep.trials:
        one = trial.judgement or Judgement()
        arrays = (None if of is None else of.tobytes() for of in (one.accuracy, one.agreement, one.noise))
        found.append((*arrays, one.sqnr_db, one.samples, trial.dropped, trial.judged_as, trial.error))
    return found


def test_where_nothing_differs_everything_is_judged_on_all_samples() -> None:
    judge = Judge(PLAIN, equal)
    result = raced(PLAIN, judge)
    assert all(trial.judgement and trial.judgement.samples == SAMPLES for trial in result.trials)
    assert not any(trial.dropped for trial in result.trials)
    assert judge.cost == SAMPLES * len(LEADERS)
    assert len(judge.asked) == len(FEW) * len(LEADERS)  # and each went on where it was


def test_batch_sizes_that_a_few_samples_show_to_be_worse_are_dropped_and_say_why() -> None:
    judge = Judge(PLAIN, by_batch_size)
    result = raced(PLAIN, judge)
    for trial in result.trials:
        assert trial.judgement is not None
        entropy = trial.method == "entropy" and trial.configuration.growth == "double"
        if entropy and trial.configuration.batch_size == 1 and trial.dropped:
            assert trial.judgement.samples == 16
            assert "worse than entropy in batches of" in trial.dropped
            assert "by accuracy: -" in trial.dropped
            assert "on 16 samples" in trial.dropped
        elif not entropy or trial.configuration.batch_size != 1:
            assert (trial.judgement.samples, trial.dropped) == (SAMPLES, None)
    assert any(trial.dropped for trial in result.trials)
    assert any("on 16: trials.csv says why those were dropped (--no-race" in note for note in result.notes)
    assert judge.cost < SAMPLES * len(LEADERS)


def test_the_order_is_said_to_matter_where_only_batch_sizes_that_were_dropped_show_it() -> None:
    def grade(trial: Trial) -> tuple[float, float]:
        if trial.method != "entropy" or trial.configuration.batch_size != 1:
            return 2.0, 0.01
        return (2.0, 0.01) if trial.configuration.order.startswith("largest") else (0.0, 0.01)

    ours = [trial for trial in PLAIN.trials[::6] if trial.configuration.growth == "double"]
    scaled = (t.amax * np.float32(2**number) for number, t in enumerate(ours))  # no two batch sizes share a set
    apart = replace(PLAIN, trials=tuple(replace(t, amax=amax) for t, amax in zip(ours, scaled, strict=True)))
    assert {trial.method for trial in apart.trials} == {"entropy"}
    short, full = (raced(apart, Judge(apart, grade), race=race) for race in (True, False))
    assert {t.configuration.batch_size for t in short.trials if t.dropped} == {1}
    for result in (short, full):
        advice = recommend(result, STATS)
        assert advice.order_matters
        (sentence,) = (text for text in advice.evidence if text.startswith("Order matters most with batches of 1: "))
        assert sentence.endswith(" on 16 samples.") == (result is short)


def test_methods_fall_to_any_other_and_batch_sizes_to_their_own_alone() -> None:
    result = raced(PLAIN, Judge(PLAIN, by_method))
    dropped = {(t.method, t.configuration.growth) for t in result.trials if t.dropped}
    assert ("percentile:99.9", "double") in dropped
    assert ("entropy", "power-of-two") in dropped  # knows no batches
    assert ("mse", "double") not in dropped
    assert ("entropy", "double") not in dropped
    (reason,) = {t.dropped for t in result.trials if t.method == "percentile:99.9"}
    assert reason is not None
    assert reason.startswith("worse than mse by SQNR: -")


def test_an_early_lead_by_sqnr_does_not_drop_what_is_ahead_by_accuracy() -> None:
    def torn(trial: Trial) -> tuple[float, float]:
        return (0.9, 1.0) if trial.method == "minmax" else (0.8, 0.001)

    result = raced(PLAIN, Judge(PLAIN, torn))
    assert not [trial for trial in result.trials if trial.method == "minmax" and trial.dropped]


@pytest.mark.parametrize("seed", range(6))
def test_the_race_ends_as_the_full_run_or_with_what_that_cannot_tell_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known: dict[object, tuple[float, float]] = {}

    def grade(trial: Trial) -> tuple[float, float]:
        size = trial.configuration.batch_size if trial.method == "entropy" else None
        key = trial.method, size
        if key not in known:
            known[key] = float(rng.uniform(0.5, 0.95)), float(10 ** rng.uniform(-4, 0))
        return known[key]

    full = raced(PLAIN, Judge(PLAIN, grade, seed), race=False)
    short = raced(PLAIN, judge := Judge(PLAIN, grade, seed))
    assert judge.cost < SAMPLES * len(LEADERS)
    best = choose(choices(short), measures_of(short))
    whole = choose(choices(full), measures_of(full))
    assert best is not None
    assert whole is not None
    ours = next(choice for choice in whole.choices if str(choice) == str(best.best))
    if str(best.best) != str(whole.best):
        assert ours in whole.left[-1]
    advice = recommend(short, STATS)
    assert advice.method == best.best.method
    for trial, other in zip(short.trials, full.trials, strict=True):
        assert trial.judgement is not None
        assert other.judgement is not None
        if not trial.dropped and not trial.judged_as:
            assert judgements(replace(short, trials=(trial,))) == judgements(replace(full, trials=(other,)))


def test_without_a_race_every_distinct_set_is_judged_on_all_samples_at_once() -> None:
    judge = Judge(PLAIN, by_batch_size)
    result = raced(PLAIN, judge, race=False)
    assert sorted(judge.asked) == sorted((key, 0, SAMPLES) for key in DISTINCT)
    assert not any(trial.dropped or trial.judged_as for trial in result.trials)


def scaled(factors: Sequence[float]) -> Sweep:
    """Trials of one method whose thresholds are these times the first one's."""
    first = PLAIN.trials[0]
    trials = (replace(first, amax=(first.amax * np.float32(factor)).astype(np.float32)) for factor in factors)
    return replace(PLAIN, trials=tuple(trials))


def test_thresholds_within_a_step_are_one_and_never_by_way_of_others() -> None:
    near = scaled([1, 1.005, 1.01, 1.0125, 0.995, 1.02])
    keys = [trial.amax.tobytes() for trial in near.trials]
    assert [keys.index(alike(near)[key]) for key in keys] == [0, 0, 2, 2, 0, 5]
    other = replace(near.trials[0], amax=near.trials[0].amax.copy())
    other.amax[0] *= np.float32(1.05)  # one tensor is enough
    both = replace(near, trials=(near.trials[0], other))
    assert len(set(alike(both).values())) == 2


def test_thresholds_of_zero_and_infinity_are_alike_where_they_are_equal() -> None:
    first = PLAIN.trials[0]
    rows = np.array([[0, np.inf, 1, 1], [0, np.inf, 1.001, 1], [0, 1, 1, 1], [1e-9, np.inf, 1, 1]], np.float32)
    made = replace(
        PLAIN, tensors=tuple("abcd"), trials=tuple(replace(first, amax=np.ascontiguousarray(row)) for row in rows)
    )
    assert [list(map(bytes, rows)).index(alike(made)[bytes(row)]) for row in rows] == [0, 0, 2, 3]


def test_what_is_judged_with_another_says_with_which() -> None:
    near = scaled([1, 1.002])
    result = raced(near, judge := Judge(near, equal))
    assert len({key for key, *_ in judge.asked}) == 1
    assert result.trials[0].judged_as is None
    assert result.trials[1].judged_as is not None
    assert result.trials[1].judged_as.startswith(f"{near.trials[0].method}, ")
    assert any("differs from another by less than 1/127" in note for note in result.notes)


def test_unusable_thresholds_go_no_further_and_drop_nobody() -> None:
    marked = replace(
        PLAIN, trials=tuple(replace(t, unusable="x: lost") if t.method == "mse" else t for t in PLAIN.trials)
    )
    result = raced(marked, Judge(marked, by_method))
    for trial in result.trials:
        if trial.method == "mse":
            assert trial.dropped == "unusable thresholds, which are never advised"
        else:
            assert trial.dropped is None


def test_what_fails_is_a_row_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Judge):
        def go_on(self, step: Step) -> tuple[Judgement, Any]:
            key = np.array(list(step.amax.values()), np.float32).tobytes()
            if key == bad and step.samples > 16:
                raise ValueError("no engine")
            return super().go_on(step)

    bad = PLAIN.trials[0].amax.tobytes()
    with caplog.at_level(logging.WARNING):
        result = raced(PLAIN, Failing(PLAIN, equal))
    for trial in result.trials:
        if alike(PLAIN)[trial.amax.tobytes()] == bad:
            assert (trial.error, trial.judgement) == ("ValueError: no engine", None)
        else:
            assert trial.judgement is not None
            assert trial.judgement.samples == SAMPLES
    assert caplog.text.count("no engine") == 1


def test_memory_that_runs_out_ends_the_race() -> None:
    class Full(Judge):
        def go_on(self, step: Step) -> tuple[Judgement, Any]:
            raise MemoryError

    with pytest.raises(MemoryError):
        raced(PLAIN, Full(PLAIN, equal))


def test_judgements_that_must_begin_anew_do_so_once() -> None:
    class Anew(Judge):
        def go_on(self, step: Step) -> tuple[Judgement, Any]:
            assert step.so_far is None
            return super().go_on(step)[0], None

    judge = Anew(PLAIN, equal)
    result = raced(PLAIN, judge)
    assert sorted(judge.asked) == sorted((key, 0, samples) for key in LEADERS for samples in (16, 64))
    assert all(trial.judgement and trial.judgement.samples == SAMPLES for trial in result.trials)


@pytest.mark.parametrize("grade", [equal, by_batch_size, by_method])
@pytest.mark.parametrize("left", [3, 20])
def test_an_interrupted_race_goes_on_to_the_same_end(grade: Callable[[Trial], tuple[float, float]], left: int) -> None:
    whole = raced(PLAIN, first := Judge(PLAIN, grade))
    noted: dict[bytes, list[Judgement]] = {}

    def note(amax: np.ndarray, judgement: Judgement) -> None:
        noted.setdefault(amax.tobytes(), []).append(judgement)
        if sum(map(len, noted.values())) > left:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raced(PLAIN, Judge(PLAIN, grade), note=note)
    resumed = raced(PLAIN, judge := Judge(PLAIN, grade), known=noted)
    assert judgements(resumed) == judgements(whole)
    assert len(judge.asked) < len(first.asked)
    again = {(key, one.samples) for key, judged in noted.items() for one in judged}
    assert not again & {(key, samples) for key, _, samples in judge.asked}  # none is made twice


@pytest.mark.parametrize("seconds", [4, 20])
def test_when_the_time_is_over_nothing_more_begins_and_what_there_is_is_told(seconds: int) -> None:
    now = 0

    class Slow(Judge):
        def go_on(self, step: Step) -> tuple[Judgement, Any]:
            nonlocal now
            now += 1
            return super().go_on(step)

    noted: dict[bytes, list[Judgement]] = {}
    result = raced(
        PLAIN,
        judge := Slow(PLAIN, equal),
        deadline=seconds,
        clock=lambda: now,
        note=lambda amax, one: noted.setdefault(amax.tobytes(), []).append(one),
    )
    assert len(judge.asked) == seconds
    late = [trial for trial in result.trials if trial.dropped == LATE]
    assert late
    assert any("The time given ended: of" in note and "--resume goes on" in note for note in result.notes)
    recommend(result, STATS)  # says what it can
    goes_on = raced(PLAIN, rest := Judge(PLAIN, equal), known=noted)
    assert judgements(goes_on) == judgements(raced(PLAIN, Judge(PLAIN, equal)))
    assert len(rest.asked) == len(FEW) * len(LEADERS) - seconds


def test_orders_that_come_by_chance_are_judged_first() -> None:
    judge = Judge(PLAIN, equal)
    raced(PLAIN, judge)
    keys = [key for key, _, samples in judge.asked if samples == 16]
    orders = {trial.amax.tobytes(): trial.configuration.order for trial in reversed(PLAIN.trials)}
    chosen = [orders[key] in ("largest-first", "largest-last") for key in keys]
    assert chosen == sorted(chosen)
    assert True in chosen


def test_sets_may_end_in_any_order() -> None:
    def backwards(function: Callable[[Step], Any], items: Sequence[Step]) -> Iterator[tuple[int, Any]]:
        yield from reversed(list(one_by_one(function, items)))

    assert judgements(raced(PLAIN, Judge(PLAIN, by_batch_size), spread=backwards)) == judgements(
        raced(PLAIN, Judge(PLAIN, by_batch_size))
    )


def test_judgements_on_all_samples_are_in_the_order_of_these_and_others_as_they_were_taken() -> None:
    class Backwards(Judge):
        def as_given(self, judgement: Judgement) -> Judgement:
            assert judgement.samples == SAMPLES
            assert judgement.accuracy is not None
            return replace(judgement, accuracy=judgement.accuracy[::-1])

    result, plain = (raced(PLAIN, kind(PLAIN, by_batch_size)) for kind in (Backwards, Judge))
    for ours, other in zip(result.trials, plain.trials, strict=True):
        assert ours.judgement is not None
        assert other.judgement is not None
        assert ours.judgement.accuracy is not None
        turned = ours.judgement.accuracy[:: 1 if ours.dropped else -1]
        np.testing.assert_array_equal(turned, other.judgement.accuracy)


def test_progress_ends_at_what_was_to_be_done_and_never_goes_back() -> None:
    told: list[tuple[int, int]] = []
    judge = Judge(PLAIN, by_batch_size)
    raced(PLAIN, judge, progress=lambda *numbers: told.append(numbers))
    done = [numbers[0] for numbers in told]
    assert done == sorted(done)
    assert done[-1] == judge.cost == told[-1][1]
    assert told[0][1] == SAMPLES * len(LEADERS)


def test_a_sweep_of_nothing_stays_so() -> None:
    assert raced(replace(PLAIN, trials=()), Judge(PLAIN, equal)).trials == ()


def test_a_choice_is_compared_with_those_left(monkeypatch: pytest.MonkeyPatch) -> None:
    views: list[Mapping[str, int]] = []
    from trtcal.sweep import race

    original = race.choices

    def watched(sweep: Sweep) -> Any:
        found = original(sweep)
        views.append({str(choice): choice.own.judgement.samples for choice in found})  # type: ignore[union-attr]
        return found

    monkeypatch.setattr(race, "choices", watched)
    raced(PLAIN, Judge(PLAIN, by_method))
    assert [set(view.values()) for view in views] == [{16}, {32}]
    assert views[1].keys() < views[0].keys()

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from sweeps import GRID, STATS

from trtcal.passes.executor import one_by_one
from trtcal.sweep.judge import LATE, Judge, judged
from trtcal.sweep.trials import Judgement, sweep

PLAIN = sweep(STATS, GRID)
DISTINCT = {trial.amax.tobytes() for trial in PLAIN.trials}

Ranges = Mapping[str, np.float32]


def by_sum(amax: Ranges) -> Judgement:
    return Judgement(sqnr_db=float(sum(amax.values())))


def test_each_distinct_set_of_ranges_is_judged_once_and_stands_in_every_trial_that_has_it() -> None:
    asked: list[bytes] = []

    def judge(amax: Ranges) -> Judgement:
        assert tuple(amax) == PLAIN.tensors
        asked.append(np.array(list(amax.values())).tobytes())
        return by_sum(amax)

    result = judged(PLAIN, judge)
    assert len(asked) == len(DISTINCT) < len(PLAIN.trials)
    assert set(asked) == DISTINCT
    for trial, plain in zip(result.trials, PLAIN.trials, strict=True):
        assert (trial.configuration, trial.method, trial.amax.tobytes()) == (
            plain.configuration,
            plain.method,
            plain.amax.tobytes(),
        )
        assert trial.judgement is not None
        assert trial.judgement.sqnr_db == float(sum(trial.amax))
        assert trial.error is None


def test_a_judgement_that_is_there_is_not_asked_for_and_each_new_one_is_noted() -> None:
    first = judged(PLAIN, by_sum)
    noted: dict[bytes, Judgement] = {}
    half = {t.amax.tobytes(): t.judgement for t in first.trials[: len(first.trials) // 3] if t.judgement}
    again = judged(PLAIN, by_sum, done=half, note=lambda amax, found: noted.update({amax.tobytes(): found}))
    assert noted
    assert noted.keys() == DISTINCT - half.keys()

    def never(amax: Ranges) -> Judgement:
        raise AssertionError("judged again")

    whole = judged(PLAIN, never, done=half | noted)
    for one in (again, whole):
        for mine, other in zip(one.trials, first.trials, strict=True):
            assert mine.judgement is not None
            assert other.judgement is not None
            assert mine.judgement.sqnr_db == other.judgement.sqnr_db


def test_a_judge_that_fails_makes_a_row_and_not_a_crash(caplog: pytest.LogCaptureFixture) -> None:
    noted: list[bytes] = []

    def judge(amax: Ranges) -> Judgement:
        if amax["x"] < 40:
            raise RuntimeError("no engine")
        return Judgement(sqnr_db=1.0)

    with caplog.at_level(logging.WARNING):
        result = judged(PLAIN, judge, note=lambda amax, found: noted.append(amax.tobytes()))
    failed = [trial for trial in result.trials if trial.error]
    assert 0 < len(failed) < len(result.trials)
    assert failed[0].error == "RuntimeError: no engine"
    assert failed[0].judgement is None
    assert f"{failed[0].method} in batches of {failed[0].configuration.batch_size}: no engine" in caplog.text
    assert not {trial.amax.tobytes() for trial in failed} & set(noted)  # a later run tries it again


def test_memory_that_runs_out_ends_the_sweep() -> None:
    def judge(amax: Ranges) -> Judgement:
        raise MemoryError

    with pytest.raises(MemoryError):
        judged(PLAIN, judge)


def test_sets_may_end_in_any_order_and_each_is_told() -> None:
    def backwards(judge: Judge, items: Sequence[Ranges]) -> Iterator[tuple[int, Judgement | Exception]]:
        yield from reversed(list(one_by_one(judge, items)))

    told: list[tuple[int, int]] = []
    done = {PLAIN.trials[0].amax.tobytes(): by_sum(dict(zip(PLAIN.tensors, PLAIN.trials[0].amax, strict=True)))}
    result = judged(PLAIN, by_sum, done=done, spread=backwards, progress=lambda *count: told.append(count))
    assert [trial.judgement.sqnr_db for trial in result.trials if trial.judgement] == [
        float(sum(trial.amax)) for trial in PLAIN.trials
    ]
    assert told == [(count, len(DISTINCT)) for count in range(2, len(DISTINCT) + 1)]


def test_a_sweep_of_nothing_stays_so() -> None:
    assert judged(sweep(STATS, GRID, ()), by_sum).trials == ()


@pytest.mark.parametrize("seconds", [0, 3])
def test_when_the_time_is_over_no_judgement_is_begun(seconds: int) -> None:
    asked: list[Ranges] = []

    def judge(amax: Ranges) -> Judgement:
        asked.append(amax)
        return by_sum(amax)

    result = judged(PLAIN, judge, deadline=seconds, clock=lambda: len(asked))
    assert len(asked) == seconds
    assert {trial.judgement is None for trial in result.trials if trial.dropped == LATE} == {True}
    assert len({trial.amax.tobytes() for trial in result.trials if trial.judgement}) == seconds
    assert f"The time given ended: {seconds} of {len(DISTINCT)} sets of ranges are judged; --resume goes on." in (
        result.notes
    )
    assert judged(PLAIN, by_sum, deadline=0, clock=lambda: -1).notes == PLAIN.notes

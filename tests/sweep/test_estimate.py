from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import conv_model, images, save

from trtcal.model.open import open_model
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.sweep.cpu_judge import CpuJudge
from trtcal.sweep.estimate import Cost, Work, in_words, probe, said, seconds, work
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.run import run_sweep


def batches(number: int = 24, size: int = 4) -> Batches:
    return Batches(ArraySource({"image": images(number)}), size)


@pytest.mark.parametrize(
    "plan",
    [
        SweepPlan(batch_sizes=(1, 4, 24), seeds=2),
        SweepPlan(batch_sizes=(4,), orders=("given",), methods=("minmax", "mse")),
        SweepPlan(batch_sizes=(1, 24), seeds=1, growths=("power-of-two",)),
        SweepPlan(batch_sizes=(1, 8, 64), orders=("given",), growths=("double", "square-max")),
    ],
)
def test_no_more_sets_are_found_than_were_announced(plan: SweepPlan, tmp_path: Path) -> None:
    run = run_sweep(save(conv_model(), tmp_path / "m.onnx"), batches(), tmp_path / "s", plan)
    distinct = {trial.amax.tobytes() for trial in run.sweep.trials}
    doing = work(plan, batches(), batches(8))
    assert len(distinct) <= doing.sets <= len(run.sweep.trials)
    assert doing[:2] == (1, 24)
    assert doing.judged == 8


def test_nothing_is_announced_that_is_not_done() -> None:
    assert work(SweepPlan(exact=True), batches(), None) == Work(2, 24, 0, 0)


def test_what_a_sample_costs_is_found_by_running_one() -> None:
    cost = probe(open_model(conv_model()), batches())
    assert cost.tensors == 5
    assert 0 < cost.load < 1
    assert 0 < cost.judge < 1
    assert 5 * 50e-6 < cost.collect < 1
    assert probe(open_model(conv_model()), batches(), judged=False).judge == 0


def test_an_estimate_grows_with_the_work_and_is_shared_by_workers() -> None:
    plan, cost = SweepPlan(), Cost(0.01, 0.1, 0.1, 50)
    doing = work(plan, batches(), batches())
    base = seconds(plan, batches(), doing, cost, 1)
    assert seconds(plan, batches(), doing._replace(sets=2 * doing.sets), cost, 1) > 1.5 * base
    assert seconds(plan, batches(), doing._replace(passes=2), cost, 1) > base
    assert 1 + (base - 1) / 4 == pytest.approx(seconds(plan, batches(), doing, cost, 4))
    whole = SweepPlan(race=False)
    assert seconds(whole, batches(), doing, cost, 1) > base
    assert seconds(plan, batches(), doing._replace(sets=0, judged=0), cost, 1) < base / 5


@pytest.mark.parametrize(
    ("doing", "about", "text"),
    [
        (Work(1, 64, 42, 64), 170, "about 3 minutes: 1 pass over 64 samples, at most 42 sets of ranges on 64"),
        (Work(2, 1, 0, 0), 0.2, "about 1 second: 2 passes over 1 sample"),
        (Work(1, 9, 1, 2), None, "1 pass over 9 samples, at most 1 set of ranges on 2"),
    ],
)
def test_an_estimate_is_a_line(doing: Work, about: float | None, text: str) -> None:
    assert said(doing, about) == text


@pytest.mark.parametrize(
    ("about", "text"),
    [
        (0.01, "1 second"),
        (12.4, "12 seconds"),
        (58, "60 seconds"),
        (89, "90 seconds"),
        (91, "2 minutes"),
        (1300, "20 minutes"),
        (3000, "50 minutes"),
        (5400, "2 hours"),
        (100000, "30 hours"),
    ],
)
def test_a_duration_is_rough(about: float, text: str) -> None:
    assert in_words(about) == text


def test_the_estimate_s_judge_is_the_sweep_s() -> None:
    judge = CpuJudge(conv_model(), batches())
    cost = probe(open_model(conv_model()), batches())
    assert np.isfinite(cost.judge)
    assert judge.steps()[-1] == work(SweepPlan(), batches(), batches()).judged

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import conv_model, images, make_model, save
from onnx import TensorProto, helper

from trtcal.calibration.calibrate import calibrate
from trtcal.calibration.file import calibrate_to_file
from trtcal.errors import ModelError, OutputError
from trtcal.model.open import open_model
from trtcal.passes import collect as collector
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.sweep import store
from trtcal.sweep.cpu_judge import CpuJudge
from trtcal.sweep.judge import LATE, Step
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.run import run_sweep
from trtcal.sweep.trials import ORDERS, Configuration, Judgement

SMALL = SweepPlan(batch_sizes=(1, 3, 12), seeds=2)
FEW = SweepPlan(batch_sizes=(3,), orders=("given",), methods=("minmax",))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(conv_model(), tmp_path / "m.onnx")


def batches(number: int = 12, size: int = 3) -> Batches:
    return Batches(ArraySource({"image": images(number)}, labels=np.arange(number) % 5), size)


def without_report(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".html"}


def test_a_sweep_leaves_its_files_and_they_say_what_it_returns(model: Path, tmp_path: Path) -> None:
    run = run_sweep(model, batches(), tmp_path / "s", SMALL)
    assert {"trials.csv", "trials.json", "stats.npz"} <= {p.name for p in run.folder.iterdir()}
    assert not (run.folder / "judgements.jsonl").exists()
    content = json.loads((run.folder / "trials.json").read_bytes())
    assert content["recommendation"]["headline"] == run.recommendation.headline
    assert content["drift"]["minmax"]["samples"] == [3, 6, 9, 12]
    assert content["drift"]["minmax"]["change_max"][-1] == 0
    assert ActivationStats.load(run.folder / "stats.npz").samples == run.sweep.samples


def test_the_table_of_trials_is_made_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = [], store.rows
    monkeypatch.setattr(store, "rows", lambda sweep: made.append(rows(sweep)) or made[-1])
    run = run_sweep(model, batches(), tmp_path / "s", SMALL)
    assert made == [run.rows]
    assert (run.folder / "trials.csv").read_bytes() == store.to_csv(run.rows)


@pytest.mark.parametrize("partial", ["pad", "wrap", "drop"])
def test_exact_trials_are_bit_equal_to_calibrating_each_by_itself(model: Path, tmp_path: Path, partial: str) -> None:
    def arranged(size: int, **order: Any) -> Batches:
        return Batches(ArraySource({"image": images(12)}), size, partial=partial, **order)  # type: ignore[arg-type]

    plan = SweepPlan(batch_sizes=(1, 5, 8), seeds=2, methods=("entropy", "minmax"), exact=True)
    run = run_sweep(model, arranged(3), tmp_path / "s", plan)
    stats = ActivationStats.load(run.folder / "stats.npz")
    for trial in run.sweep.trials:
        size, name, seed, growth = astuple(trial.configuration)
        order = ORDERS[name](stats, seed or 0).tolist()
        alone = calibrate(model, arranged(size, order=order), trial.method, growth=growth).cache
        for tensor, amax in zip(run.sweep.tensors, trial.amax, strict=True):
            assert amax / np.float32(127) == alone.scales[tensor], (trial.configuration, trial.method, tensor)


def test_an_interrupted_sweep_goes_on_and_ends_with_the_same_files(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "SNAPSHOT_SECONDS", 0)

    def judge(amax: Mapping[str, np.float32]) -> Judgement:
        return Judgement(np.arange(12) % 3 / 2, None, float(amax["image"]))

    whole = run_sweep(model, batches(), tmp_path / "whole", SMALL, judge=judge, judge_key="k")
    left = 5
    asked: list[int] = []

    def stopping(amax: Mapping[str, np.float32]) -> Judgement:
        if len(asked) == left:
            raise KeyboardInterrupt
        asked.append(1)
        return judge(amax)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(model, batches(), tmp_path / "s", SMALL, judge=stopping, judge_key="k")
    left = 10**6
    run_sweep(model, batches(), tmp_path / "s", SMALL, judge=stopping, judge_key="k", resume=True)
    distinct = {trial.amax.tobytes() for trial in whole.sweep.trials}
    assert len(asked) == len(distinct)
    assert without_report(tmp_path / "s") == without_report(tmp_path / "whole")


def test_a_sweep_with_other_settings_is_neither_resumed_nor_replaced_unasked(model: Path, tmp_path: Path) -> None:
    run_sweep(model, batches(), tmp_path / "s", SMALL, judge_key="a")
    before, other = without_report(tmp_path / "s"), replace(SMALL, batch_sizes=(1, 4))
    with pytest.raises(OutputError, match="holds a sweep already; resume it"):
        run_sweep(model, batches(), tmp_path / "s", SMALL, judge_key="a")
    with pytest.raises(OutputError, match=r"other settings \(judged by\)"):
        run_sweep(model, batches(), tmp_path / "s", SMALL, judge_key="b", resume=True)
    with pytest.raises(OutputError, match=r"other settings \(model and samples, batch sizes\)"):
        run_sweep(model, batches(8), tmp_path / "s", other, judge_key="a", resume=True)
    assert without_report(tmp_path / "s") == before
    run_sweep(model, batches(), tmp_path / "s", SMALL, judge_key="a", resume=True)
    assert without_report(tmp_path / "s") == before
    run_sweep(model, batches(8), tmp_path / "s", other, force=True)


def test_the_settings_that_are_left_make_the_plan_again(model: Path, tmp_path: Path) -> None:
    plan = replace(SMALL, methods=("minmax",), eval_data="https://user:cret@host/d.npz?sig=cret", exclude=("a,b",))
    run_sweep(model, batches(), tmp_path / "s", plan, judge_key="a")
    text = (tmp_path / "s" / "settings.json").read_text()
    assert "cret" not in text
    assert SweepPlan(**json.loads(text)["plan"]) == replace(plan, eval_data="https://host/d.npz")
    assert json.loads(text)["judged by"] == "a"
    assert json.loads(text)["model and samples"]["samples_used"] == 12


def test_settings_of_an_earlier_trtcal_are_replaced_by_force_alone(model: Path, tmp_path: Path) -> None:
    run_sweep(model, batches(), tmp_path / "s", SMALL)
    settings = json.loads((tmp_path / "s" / "settings.json").read_bytes())
    old = {"format": settings["format"], "model and samples": "61" * 32, "batch sizes": [1, 3, 12], "judged by": ""}
    (tmp_path / "s" / "settings.json").write_text(json.dumps(old))
    before = without_report(tmp_path / "s")
    with pytest.raises(OutputError, match=r"other settings \(model and samples, batch sizes, orders, .*\); replace it"):
        run_sweep(model, batches(), tmp_path / "s", SMALL, resume=True)
    assert without_report(tmp_path / "s") == before
    run_sweep(model, batches(), tmp_path / "s", SMALL, force=True)


@pytest.mark.parametrize("name", ["stats.npz", "report.html", "trials.csv"])
def test_a_folder_of_the_user_s_own_is_left_alone(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_bytes(b"mine")
    for options in ({}, {"resume": True}, {"force": True}):
        with pytest.raises(OutputError, match=f"holds {name}, which no sweep of trtcal left there"):
            run_sweep(model, batches(), tmp_path / "s", SMALL, **options)  # type: ignore[arg-type]
    assert (tmp_path / "s" / name).read_bytes() == b"mine"


def test_a_metric_that_is_nan_is_a_row_and_not_a_crash(model: Path, tmp_path: Path) -> None:
    data = batches()
    judge = CpuJudge(open_model(model), data, data.labels, lambda outputs, labels: float("nan"))
    run = run_sweep(model, data, tmp_path / "s", FEW, judge=judge)
    assert run.sweep.trials[0].error == "DataError: the metric is nan"
    assert (tmp_path / "s" / "trials.csv").exists()


def test_a_calibration_takes_up_the_statistics_of_a_sweep(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sweep(model, batches(), tmp_path / "s", SMALL)
    plain = calibrate_to_file(model, batches(), tmp_path / "plain.cache", "mse")
    before = (tmp_path / "s" / "stats.npz").read_bytes()
    monkeypatch.setattr("trtcal.passes.executor.Here.run_pass", None)  # the model is not run again
    made = calibrate_to_file(model, batches(), tmp_path / "m.cache", "mse", stats=tmp_path / "s" / "stats.npz")
    assert made.cache == plain.cache
    assert (tmp_path / "s" / "stats.npz").read_bytes() == before


def test_on_which_samples_it_is_judged_is_said(model: Path, tmp_path: Path) -> None:
    mine, others = batches(), batches(8)
    judge = CpuJudge(open_model(model), mine)
    same = run_sweep(model, mine, tmp_path / "a", FEW, judge=judge, judged_on=Batches(mine.source, 4, samples=5))
    assert same.sweep.notes[0].startswith("Judged on 5 of the samples that calibrate")
    other = run_sweep(model, mine, tmp_path / "b", FEW, judge=judge, judged_on=others)
    assert other.sweep.notes[0] == "Judged on 8 samples in memory."
    part = run_sweep(model, mine, tmp_path / "d", FEW, judge=judge, judged_on=Batches(others.source, 4, samples=5))
    assert part.sweep.notes[0] == "Judged on 5 of 8 samples in memory."
    plain = run_sweep(model, mine, tmp_path / "c", FEW, judged_on=others)
    assert not any("Judged" in note for note in plain.sweep.notes)


def test_a_folder_that_cannot_be_used_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="file: cannot be used as a folder"):
        run_sweep(model, batches(), tmp_path / "file", SMALL)


def test_wrong_settings_are_refused_before_the_pass(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown method 'kl'"):
        run_sweep(model, batches(), tmp_path / "s", SweepPlan(methods=("kl",)))
    with pytest.raises(ValueError, match="12 samples, fewer than"):
        run_sweep(model, batches(), tmp_path / "s", SweepPlan(batch_sizes=(16,)))
    assert not (tmp_path / "s").exists()


def test_the_given_order_of_another_arrangement_is_where_the_replay_is_checked(model: Path, tmp_path: Path) -> None:
    run = run_sweep(model, batches(size=4), tmp_path / "s", SMALL)
    assert run.sweep.off is not None
    assert run.sweep.off.max() < 0.2
    assert Configuration(3, "given", None) in run.sweep.measures


@pytest.mark.parametrize("names", [(), ("report.html",), ("stats.npz",)])
@pytest.mark.parametrize("content", [b'{"editor.tabSize": 4}', b'{"format": "another"}', b"[]", b"no JSON"])
def test_settings_of_something_else_are_neither_replaced_nor_believed(
    model: Path, tmp_path: Path, names: tuple[str, ...], content: bytes
) -> None:
    mine = dict.fromkeys(names, b"mine") | {"settings.json": content}
    (tmp_path / "s").mkdir()
    for name, data in mine.items():
        (tmp_path / "s" / name).write_bytes(data)
    for options in ({}, {"resume": True}, {"force": True}):
        with pytest.raises(OutputError, match=r"settings\.json: exists and is no record of a sweep's settings"):
            run_sweep(model, batches(), tmp_path / "s", SMALL, **options)  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == mine


def test_a_model_whose_tensors_have_no_ranges_is_named(tmp_path: Path) -> None:
    shape = [helper.make_node("Shape", ["ids"], ["y"])]
    mask = [helper.make_node("Equal", ["ids", "zero"], ["b"]), helper.make_node("Where", ["b", "inf", "zero.f"], ["y"])]
    values = {"zero": np.array(0, np.int64), "inf": np.array(-np.inf, np.float32), "zero.f": np.array(0, np.float32)}
    data = Batches(ArraySource({"ids": np.zeros((12, 4), np.int64)}), 3)
    for nodes, constants, number in ((shape, {}, 0), (mask, values, 1)):
        made = make_model(nodes, {"ids": ["N", 4]}, ["y"], constants, dtypes={"ids": TensorProto.INT64})
        path = save(made, tmp_path / "none.onnx")
        assert len(calibrate(path, data).stats.tensors) == number
        for exact in (False, True):
            with pytest.raises(ModelError, match=rf"none\.onnx: none of its {number} float tensors has a finite range"):
                run_sweep(path, data, tmp_path / "s", replace(SMALL, exact=exact), force=True)


def loud(number: int = 40) -> Batches:
    x = images(number) * np.random.default_rng(0).uniform(0.2, 3, (number, 1, 1, 1)).astype(np.float32)
    return Batches(ArraySource({"image": x}, labels=np.arange(number) % 5), 4)


RACED = SweepPlan(batch_sizes=(1, 20), orders=("given", "largest-last"), methods=("entropy", "mse", "percentile:50"))


def test_a_race_leaves_the_numbers_of_a_full_run_on_fewer_rows(model: Path, tmp_path: Path) -> None:
    short, full = (
        run_sweep(model, loud(), tmp_path / str(race), replace(RACED, race=race), judge=CpuJudge(model, loud()))
        for race in (True, False)
    )
    assert {row["judged_samples"] for row in full.rows} == {40}
    assert {row["judged_samples"] for row in short.rows} == {16, 40}
    for ours, other in zip(short.rows, full.rows, strict=True):
        if ours["dropped"] is None and ours["judged_as"] is None:
            assert ours == other
        else:
            assert ours["judged_samples"] < 40 or ours["judged_as"]
    assert short.recommendation.options == full.recommendation.options


def test_an_interrupted_race_ends_with_the_same_files(model: Path, tmp_path: Path) -> None:
    class Stopping(CpuJudge):
        left = 5

        def go_on(self, step: Step) -> tuple[Judgement, Any]:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().go_on(step)

    run_sweep(model, loud(), tmp_path / "whole", RACED, judge=CpuJudge(model, loud()), judge_key="k")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(model, loud(), tmp_path / "s", RACED, judge=Stopping(model, loud()), judge_key="k")
    run_sweep(model, loud(), tmp_path / "s", RACED, judge=CpuJudge(model, loud()), judge_key="k", resume=True)
    assert without_report(tmp_path / "s") == without_report(tmp_path / "whole")


def test_a_budget_leaves_what_resuming_needs(model: Path, tmp_path: Path) -> None:
    late = run_sweep(model, loud(), tmp_path / "s", RACED, judge=CpuJudge(model, loud()), judge_key="k", budget=1e-3)
    assert {row["dropped"] for row in late.rows} == {LATE}
    assert (tmp_path / "s" / "judgements.jsonl").exists()
    run_sweep(model, loud(), tmp_path / "s", RACED, judge=CpuJudge(model, loud()), judge_key="k", resume=True)
    run_sweep(model, loud(), tmp_path / "whole", RACED, judge=CpuJudge(model, loud()), judge_key="k")
    assert without_report(tmp_path / "s") == without_report(tmp_path / "whole")

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from bypassing import beside_int8, both_inputs
from models import conv_model, images, save

from trtcal.calibration.calibrate import calibrate
from trtcal.judging.accuracy import evaluate, simulate
from trtcal.judging.metrics import METRICS
from trtcal.model.open import open_model
from trtcal.model.runner import OrtRunner
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.sweep.cpu_judge import FIRST, CpuJudge, Step
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.run import run_sweep
from trtcal.sweep.trials import Judgement


def test_the_cpu_judge_sees_what_int8_costs(tmp_path: Path) -> None:
    model = save(conv_model(), tmp_path / "m.onnx")
    graph = open_model(model)
    data = Batches(ArraySource({"image": images(12)}, labels=np.arange(12) % 5), 3)
    judge = CpuJudge(graph, data, data.labels, METRICS["top1"])
    good = calibrate(model, data, "minmax")
    amax = {name: np.float32(scale * 127) for name, scale in good.cache.scales.items()}
    fine, poor = judge(amax), judge({name: value / 50 for name, value in amax.items()})
    assert fine.sqnr_db is not None
    assert poor.sqnr_db is not None
    assert fine.sqnr_db > 20 > poor.sqnr_db
    assert fine.agreement is not None
    assert fine.agreement.mean() > 0.9
    assert fine.accuracy is not None
    assert fine.accuracy.shape == (12,)


FEW = SweepPlan(batch_sizes=(4, 12), orders=("given",), methods=("entropy", "mse"), growths=("double",))


def ranges(model: Path, data: Batches) -> dict[str, np.float32]:
    cache = calibrate(model, data, "minmax").cache
    return {name: np.float32(scale * 127) for name, scale in cache.scales.items()}


def test_only_float_outputs_that_int8_reaches_are_judged(tmp_path: Path) -> None:
    model = save(beside_int8(), tmp_path / "m.onnx")
    data = Batches(both_inputs(50), 8)  # the last batch is padded
    judge = CpuJudge(model, data)
    amax = ranges(model, data)
    for factor in (1, 200):
        found = judge({name: np.float32(value / factor) for name, value in amax.items()})
        with judge.quantized({name: np.float32(value / factor / 127) for name, value in amax.items()}) as int8:
            x = np.concatenate([batch["x"][: batch.valid] for batch in data])
            ids = np.concatenate([batch["ids"][: batch.valid] for batch in data])
            quantized = int8({"ids": ids, "x": x})["y"].astype(np.float64)
        with OrtRunner(judge.ready.whole) as runner:
            exact = runner({"ids": ids, "x": x})["y"].astype(np.float64)
        noise, power = np.square(quantized - exact).sum(axis=1), np.square(exact).sum()
        assert found.sqnr_db == pytest.approx(10 * np.log10(power / noise.sum()))
        assert found.noise is not None
        np.testing.assert_allclose(found.noise, noise / (power / 50), rtol=1e-6)
        assert found.sqnr_db == pytest.approx(-10 * np.log10(found.noise.mean()))
        assert found.agreement is not None
        np.testing.assert_array_equal(found.agreement, exact.argmax(axis=1) == quantized.argmax(axis=1))
    assert found.agreement.mean() < 1


def test_where_no_float_output_depends_on_int8_the_metric_alone_judges(tmp_path: Path) -> None:
    whole = beside_int8()
    for name in ("neg", "y"):  # which leaves integers, of which INT8 makes one
        whole.graph.output.remove(next(value for value in whole.graph.output if value.name == name))
    model = save(whole, tmp_path / "m.onnx")
    data = Batches(both_inputs(12), 4)

    def is_best(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
        return np.asarray(outputs["best"][:, 0] == labels, np.float64)

    amax = ranges(model, data)
    plain = CpuJudge(model, data)(amax)
    assert (plain.accuracy, plain.agreement, plain.sqnr_db, plain.noise) == (None, None, None, None)
    scored = CpuJudge(model, data, data.labels, is_best)(amax)
    assert scored.accuracy is not None
    assert (scored.agreement, scored.sqnr_db) == (None, None)
    run = run_sweep(model, data, tmp_path / "s", FEW, judge=CpuJudge(model, data), judged_on=data)
    assert (
        "Nothing is compared with FP32: no floating-point output depends on a layer in INT8; the outputs are ids_out "
        "(integers), best (integers)."
    ) in run.sweep.notes
    assert not any(trial.error for trial in run.sweep.trials)
    assert run.recommendation.headline.startswith("Nothing could be compared with FP32, so thresholds alone are. ")


def test_a_sweep_says_which_outputs_are_compared_where_not_all_are(tmp_path: Path) -> None:
    model, data = save(beside_int8(), tmp_path / "m.onnx"), Batches(both_inputs(12), 4)
    run = run_sweep(model, data, tmp_path / "s", FEW, judge=CpuJudge(model, data), judged_on=data)
    said = "Compared with FP32: y; not ids_out (integers), neg (no layer in INT8 leads to it), best (integers)."
    assert said in run.sweep.notes
    whole, pictures = save(conv_model(), tmp_path / "c.onnx"), Batches(ArraySource({"image": images(4)}), 4)
    assert CpuJudge(whole, pictures).account(ranges(whole, pictures)) == ""


def values(judgement: Judgement) -> tuple[object, ...]:
    arrays = judgement.accuracy, judgement.agreement, judgement.noise
    return (*(array if array is None else array.tobytes() for array in arrays), judgement.sqnr_db, judgement.samples)


def judged_data(number: int = 50, size: int = 3) -> Batches:
    return Batches(ArraySource({"image": images(number)}, labels=np.arange(number) % 5), size)


def ranges_of(model: onnx.ModelProto, data: Batches) -> dict[str, np.float32]:
    return {name: np.float32(scale * 40) for name, scale in calibrate(model, data, "minmax").cache.scales.items()}


@pytest.mark.parametrize("workers", [1, 3])
def test_a_judgement_that_goes_on_is_the_one_made_at_once(workers: int) -> None:
    data, model = judged_data(), conv_model()
    amax = ranges_of(model, data)
    judge = CpuJudge(model, data, data.labels, METRICS["top1"], workers=workers)
    steps = judge.steps()
    assert steps == [18, 36, 50]
    assert steps[0] >= FIRST
    at_once, _ = judge.go_on(Step(amax, None, steps[-1]))
    so_far = None
    for step in steps:
        found, so_far = judge.go_on(Step(amax, so_far, step))
        assert found.samples == step
        for one, whole in zip((found.accuracy, found.agreement), (at_once.accuracy, at_once.agreement), strict=True):
            np.testing.assert_array_equal(one, whole[:step])  # type: ignore[index]
        np.testing.assert_allclose(found.noise, at_once.noise[:step], rtol=1e-12)  # type: ignore[index]
    assert values(found) == values(at_once)
    given = judge(amax)
    assert given.sqnr_db == at_once.sqnr_db
    for one, whole in zip((given.accuracy, given.noise), (at_once.accuracy, at_once.noise), strict=True):
        np.testing.assert_array_equal(one[judge._places], whole)  # type: ignore[index]
    expected = evaluate_simulated(model, data, amax)
    np.testing.assert_array_equal(given.accuracy, expected)


def evaluate_simulated(model: onnx.ModelProto, data: Batches, amax: Mapping[str, np.float32]) -> np.ndarray:
    assert data.labels is not None
    with simulate(model, {name: value / np.float32(127) for name, value in amax.items()}) as runner:
        return evaluate(runner, data, data.labels).scores["top1"].values


def test_few_samples_are_one_step() -> None:
    data = judged_data(12)
    assert CpuJudge(conv_model(), data).steps() == [12]
    assert CpuJudge(conv_model(), judged_data(16, 8)).steps() == [16]
    assert CpuJudge(conv_model(), judged_data(17, 8)).steps() == [16, 17]


def test_a_metric_of_the_whole_set_begins_anew_and_is_that_of_all() -> None:
    def share(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
        return float((next(iter(outputs.values())).reshape(len(labels), -1).argmax(axis=1) == labels).mean())

    data, model = judged_data(), conv_model()
    amax = ranges_of(model, data)
    judge = CpuJudge(model, data, data.labels, share)
    few, so_far = judge.go_on(Step(amax, None, 18))
    assert so_far is None
    assert few.samples == 18
    judgement = judge(amax)
    assert judgement.accuracy is not None
    assert judgement.accuracy.tolist() == [pytest.approx(evaluate_simulated(model, data, amax).mean())]


def test_pictures_are_read_once_for_all_sets() -> None:
    class Counted(ArraySource):
        loads = 0

        def load(self, index: int) -> dict[str, np.ndarray]:
            Counted.loads += 1
            return super().load(index)

    amax = ranges_of(conv_model(), judged_data(20))
    judge = CpuJudge(conv_model(), Batches(Counted({"image": images(20)}), 4))
    judge(amax)
    first = Counted.loads
    assert 20 <= first < 40  # a look at some of them, whether they fit the model, comes before
    for factor in (2, 3):
        judge({name: value * factor for name, value in amax.items()})
    assert Counted.loads == first

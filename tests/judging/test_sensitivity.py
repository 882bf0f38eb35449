from __future__ import annotations

import itertools
import json
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bypassing import beside_int8, both_inputs
from models import conv_model, images, make_model, save
from onnx import helper

from trtcal.calibration.calibrate import calibrate
from trtcal.errors import BackendError, DataError, ModelError
from trtcal.judging.accuracy import agreement, simulate
from trtcal.judging.metrics import Outputs, metric
from trtcal.judging.quantization_error import LayerDamage
from trtcal.judging.sensitivity import Sensitivity, section, sensitivity
from trtcal.model.file import save_model
from trtcal.model.runner import OrtRunner
from trtcal.passes.executor import Here
from trtcal.qdq.insert import insert_qdq
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource

node = helper.make_node
SAMPLES = images(6)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pooled_model() -> onnx.ModelProto:
    """image -> c1, r1 (Relu) -> p (MaxPool) -> c2, r2 -> c3 -> y; every layer has a name of its own."""
    nodes = [
        node("Conv", ["image", "w1"], ["c1"], "conv1", pads=[1] * 4),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("MaxPool", ["r1"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w2"], ["c2"], "conv2", pads=[1] * 4),
        node("Relu", ["c2"], ["r2"], "relu2"),
        node("Conv", ["r2", "w3"], ["y"], "conv3"),
    ]
    kernels = {"w1": weights(4, 3, 3, 3), "w2": weights(4, 4, 3, 3, seed=1), "w3": weights(2, 4, 1, 1, seed=2)}
    return make_model(nodes, {"image": ["N", 3, 8, 8]}, ["y"], kernels)


def ranges(model: onnx.ModelProto, **scales: float) -> dict[str, np.float32]:
    """max|x| over SAMPLES / 127 for every tensor, or the given scale."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    made = [name for n in model.graph.node for name in n.output]
    known = {value.name for value in model.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in known)
    with OrtRunner(copy) as runner:
        values = {"image": SAMPLES, **runner({"image": SAMPLES})}
    found = {name: np.float32(np.abs(array).max() / 127) for name, array in values.items()}
    return {**found, **{name: np.float32(scale) for name, scale in scales.items()}}


def batches(size: int = 4, array: np.ndarray = SAMPLES) -> Batches:
    return Batches(ArraySource({"image": array}), size)


def layer(result: Sensitivity, name: str) -> LayerDamage:
    return next(damage for damage in result.layers if damage.layer == name)


def noise(model: onnx.ModelProto, scales: Mapping[str, np.float32], exclude: Sequence[str]) -> float:
    """What a trial must measure: 1 / SQNR of the model's one output."""
    with OrtRunner(model) as fp32, simulate(model, scales, exclude=exclude) as int8:
        (output,) = agreement(fp32, int8, batches()).outputs.values()
    return 10 ** (-output.sqnr_db / 10)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(pooled_model(), tmp_path / "m.onnx")


@pytest.mark.parametrize("bad", ["image", "r2"])
def test_the_tensor_and_the_layer_with_a_bad_range_are_the_first(model: Path, bad: str) -> None:
    scales = ranges(pooled_model())
    result = sensitivity(model, {**scales, bad: scales[bad] * np.float32(30)}, batches())
    culprit = {"image": "conv1", "r2": "conv3"}[bad]
    assert result.tensors[0].tensor == bad
    assert result.layers[0].layer == culprit
    assert [step.layer.layer for step in result.curve] == [culprit]
    assert result.curve[0].recovered > 0.9
    assert result.ended == "90% of the loss is recovered"
    assert [damage.tensor for damage in result.tensors] == sorted(
        (damage.tensor for damage in result.tensors),
        key=lambda name: next(d.sqnr_db for d in result.tensors if d.tensor == name),
    )


def test_a_trial_is_what_simulate_makes_of_the_exclusions(model: Path) -> None:
    scales = ranges(pooled_model(), r1=0.3)
    result = sensitivity(model, scales, batches())
    assert result.int8.noise == pytest.approx(noise(pooled_model(), scales, []))
    for damage in result.layers:
        assert damage.without is not None
        assert damage.only is not None
        others = [p for other in result.layers for p in other.exclude if p not in damage.exclude]
        assert damage.without.noise == pytest.approx(noise(pooled_model(), scales, damage.exclude))
        assert damage.only.noise == pytest.approx(noise(pooled_model(), scales, others))
        assert result.recovered(damage.without) == pytest.approx(1 - damage.without.noise / result.int8.noise)


def test_a_pool_goes_along_with_the_layer_behind_it(model: Path) -> None:
    """Its input and output are rounded alike: leaving out one of them changes nothing."""
    scales = ranges(pooled_model())
    scales |= {name: scales["r1"] * np.float32(30) for name in ("r1", "p")}
    result = sensitivity(model, scales, batches())
    assert [damage.layer for damage in result.layers if damage.op_type == "MaxPool"] == []
    worst = result.layers[0]
    assert (worst.layer, worst.exclude, worst.tensorrt) == ("conv2", ("conv2", "pool"), ("pool", "conv2", "relu2"))
    assert worst.without is not None
    assert result.recovered(worst.without) > 0.9
    alone = noise(pooled_model(), scales, ["conv2"])
    assert alone == pytest.approx(result.int8.noise, rel=0.1)


def test_only_the_worst_by_estimate_are_measured(model: Path) -> None:
    scales = ranges(pooled_model())
    result = sensitivity(model, {**scales, "r2": scales["r2"] * np.float32(30)}, batches(), layers=1)
    assert [damage.layer for damage in result.layers if damage.without] == ["conv3"]
    estimates = [damage.estimate_db for damage in result.layers[1:]]
    assert estimates == sorted(estimates)
    assert min(estimates) > result.layers[0].estimate_db


def test_without_one_at_a_time_there_is_the_ranking_of_tensors_and_estimates(model: Path) -> None:
    result = sensitivity(model, ranges(pooled_model()), batches(), layers=0)
    assert len(result.tensors) == 4
    assert len(result.layers) == 3
    assert result.curve == ()
    assert result.ended == "no other layer was measured"
    assert section(result)["options"] == {}


def test_the_curve_goes_on_until_enough_is_recovered(model: Path) -> None:
    scales = ranges(pooled_model(), image=0.3, r2=0.3)
    result = sensitivity(model, scales, batches(), recover=1.0)
    assert len(result.curve) == 3
    shares = [step.recovered for step in result.curve]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert result.curve[-1].trial.sqnr_db == math.inf
    assert result.ended == "100% of the loss is recovered"


def test_equal_runs_give_equal_reports(model: Path) -> None:
    scales = ranges(pooled_model(), image=0.1)
    first, second = (section(sensitivity(model, scales, batches(), recover=1.0)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_batch_size_and_padding_change_nothing(model: Path, size: int) -> None:
    result = sensitivity(model, ranges(pooled_model()), batches(size))
    assert result.samples == 6
    expected = noise(pooled_model(), ranges(pooled_model()), [])
    assert result.int8.noise == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("allowed", [1.5, 3.5, 5.5])
def test_nothing_begins_after_the_time_is_over(model: Path, allowed: float) -> None:
    """The clock goes on by one second whenever it is read."""
    seconds = itertools.count()
    result = sensitivity(model, ranges(pooled_model()), batches(), seconds=allowed, clock=lambda: next(seconds))
    assert sum(damage.without is not None for damage in result.layers) == int(allowed / 2)
    assert result.int8.noise > 0
    assert next(seconds) <= allowed + 4


def test_a_run_cut_short_has_measured_the_same_as_a_whole_one(model: Path) -> None:
    scales = ranges(pooled_model(), r2=0.3)
    seconds = itertools.count()
    short = sensitivity(model, scales, batches(), seconds=3.5, clock=lambda: next(seconds))
    whole = sensitivity(model, scales, batches())
    measured = [damage for damage in short.layers if damage.without is not None]
    assert measured
    for damage in measured:
        assert damage == layer(whole, damage.layer)


class Elsewhere(Here):
    """Tasks end in any order, and each works on what a pickle brings it."""

    def spread(self, function: Any, items: Any) -> Any:
        there = pickle.loads(pickle.dumps(function))
        for number in np.random.default_rng(0).permutation(len(items)).tolist():
            yield number, next(super().spread(there, [items[number]]))[1]


def test_tasks_that_end_in_another_order_change_nothing(model: Path) -> None:
    scales = ranges(pooled_model(), r2=0.3)
    assert section(sensitivity(model, scales, batches(), executor=Elsewhere())) == section(
        sensitivity(model, scales, batches())
    )


def test_a_task_that_fails_is_the_error(model: Path) -> None:
    class Failing(Here):
        def spread(self, function: Any, items: Any) -> Any:
            yield 0, BackendError("the worker died")

    with pytest.raises(BackendError, match="the worker died"):
        sensitivity(model, ranges(pooled_model()), batches(), executor=Failing())


def test_what_is_under_way_elsewhere_ends_with_the_time(model: Path) -> None:
    class Counting(Here):
        closed = False

        def spread(self, function: Any, items: Any) -> Any:
            try:
                yield from super().spread(function, items)
            finally:
                self.closed = True

    executor, seconds = Counting(), itertools.count()
    sensitivity(model, ranges(pooled_model()), batches(), seconds=3.5, clock=lambda: next(seconds), executor=executor)
    assert executor.closed


def test_progress_counts_every_trial(model: Path) -> None:
    calls: list[tuple[int, int]] = []
    sensitivity(model, ranges(pooled_model()), batches(), progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == list(range(1, len(calls) + 1))
    assert all(done <= total for done, total in calls)


def test_outputs_that_int8_does_not_reach_and_integers_dilute_nothing() -> None:
    data = Batches(both_inputs(12), 4)
    scales = calibrate(beside_int8(), data, "minmax").cache.scales
    found = sensitivity(beside_int8(), scales, data)
    alone = beside_int8()
    for name in ("ids_out", "neg", "best"):
        alone.graph.output.remove(next(value for value in alone.graph.output if value.name == name))
    assert found.int8.noise == sensitivity(alone, scales, data).int8.noise > 0


LABELS = [0, 1, 0, 1, 1, 0]


def first_value(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
    return np.asarray(outputs["y"][:, 0, 0, 0], np.float64)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_metric_counts_whether_it_is_better_high_or_low(model: Path, sign: int) -> None:
    scales = ranges(pooled_model(), image=0.5)
    judged = ("m", lambda outputs, labels: sign * first_value(outputs, labels))
    result = sensitivity(model, scales, batches(), labels=LABELS, metric=judged)
    assert result.fp32 is not None
    assert result.int8.metric is not None
    assert result.recovered(result.int8) == 0
    for damage in result.layers:
        assert damage.without is not None
        assert damage.without.metric is not None
        share = (damage.without.metric - result.int8.metric) / (result.fp32 - result.int8.metric)
        assert result.recovered(damage.without) == pytest.approx(share)
    shares = [result.recovered(damage.without) for damage in result.layers if damage.without]
    assert shares == sorted(shares, reverse=True)


def test_a_metric_that_loses_nothing_leaves_the_ranking_to_noise(model: Path) -> None:
    scales = ranges(pooled_model(), image=0.1)
    constant = ("m", lambda outputs, labels: np.ones(len(labels)))
    by_metric = sensitivity(model, scales, batches(), labels=LABELS, metric=constant)
    by_noise = sensitivity(model, scales, batches())
    assert [damage.layer for damage in by_metric.layers] == [damage.layer for damage in by_noise.layers]
    assert [step.recovered for step in by_metric.curve] == [step.recovered for step in by_noise.curve]


def test_where_int8_loses_nothing_there_is_nothing_to_leave_out(tmp_path: Path) -> None:
    """Integers in -127..127 are exact with scale 1, and so are the weights."""
    kernel = np.full((1, 3, 1, 1), 127, np.float32)
    model = make_model([node("Conv", ["image", "w"], ["y"])], {"image": ["N", 3, 8, 8]}, ["y"], {"w": kernel})
    whole = np.random.default_rng(0).integers(-127, 128, size=(6, 3, 8, 8)).astype(np.float32)
    result = sensitivity(save(model, tmp_path / "m.onnx"), {"image": np.float32(1)}, batches(array=whole))
    assert result.int8.noise == 0
    assert result.curve == ()
    assert result.ended == "INT8 loses nothing here"
    report = json.loads(json.dumps(section(result), allow_nan=False))
    assert report["int8"] == {"sqnr_db": "inf", "metric": None, "recovered": None}
    assert report["tensors"][0]["sqnr_db"] == "inf"


def test_the_report_is_plain_and_spells_the_list_for_every_builder(model: Path) -> None:
    scales = ranges(pooled_model())
    scales |= {name: scales["r1"] * np.float32(30) for name in ("r1", "p")}
    report = json.loads(json.dumps(section(sensitivity(model, scales, batches())), allow_nan=False))
    assert report["options"] == {
        "trtcal": "--exclude conv2 --exclude pool",
        "trtexec": "--precisionConstraints=obey --layerPrecisions=pool:fp16,conv2:fp16,relu2:fp16",
        "trtexec_cannot_name": [],
        "polygraphy": "--precision-constraints obey --layer-precisions pool:float16 conv2:float16 relu2:float16",
    }
    assert [step["layer"] for step in report["curve"]] == ["conv2"]
    assert report["layers"][0]["exclude"] == ["conv2", "pool"]
    assert report["samples"] == 6


def test_what_is_excluded_already_is_no_candidate(model: Path) -> None:
    result = sensitivity(model, ranges(pooled_model()), batches(), exclude=["conv1"])
    assert {damage.layer for damage in result.layers} == {"conv2", "conv3"}
    assert result.int8.noise == pytest.approx(noise(pooled_model(), ranges(pooled_model()), ["conv1"]))


def test_weights_outside_and_a_batch_size_inside_the_file_do_not_matter(tmp_path: Path) -> None:
    scales = ranges(conv_model())
    path = tmp_path / "m.onnx"
    save_model(conv_model(batch=2), path, external=True)
    fixed = sensitivity(path, scales, batches())
    free = sensitivity(save(conv_model(), tmp_path / "n.onnx"), scales, batches())
    assert section(fixed) == section(free)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": -1}, "layers >= 0"),
        ({"seconds": 0}, "seconds > 0"),
        ({"recover": 0}, "0 < recover <= 1"),
        ({"recover": 1.1}, "0 < recover <= 1"),
        ({"placement": "some"}, "unknown placement 'some'"),
        ({"exclude": ["Softmax"]}, "no node has the name"),
        ({"metric": ("top1", metric("top1"))}, "metric 'top1' needs labels"),
    ],
)
def test_wrong_options_are_an_error(model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sensitivity(model, ranges(pooled_model()), batches(), **options)


def test_ranges_of_another_model_and_ranges_of_nothing_are_an_error(model: Path) -> None:
    with pytest.raises(ModelError, match=r"m\.onnx: nothing becomes INT8 with these ranges; image: it has no scale"):
        sensitivity(model, {"other": np.float32(1)}, batches())
    with pytest.raises(ModelError, match="its scale is 0"):
        sensitivity(model, dict.fromkeys(ranges(pooled_model()), np.float32(0)), batches())


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    scales = ranges(pooled_model())
    with pytest.raises(ModelError, match="already quantized"):
        sensitivity(save(insert_qdq(pooled_model(), scales).model, tmp_path / "q.onnx"), scales, batches())


def test_an_output_that_is_zero_in_fp32_alone_is_an_error(tmp_path: Path) -> None:
    """10 * -3 + 5 is negative; clipped at 1.27 it is not."""
    nodes = [node("Conv", ["image", "w", "b"], ["c"]), node("Relu", ["c"], ["y"])]
    constants = {"w": np.full((1, 3, 1, 1), -1, np.float32), "b": np.full(1, 5, np.float32)}
    path = save(make_model(nodes, {"image": ["N", 3, 8, 8]}, ["y"], constants), tmp_path / "m.onnx")
    tens = np.full((6, 3, 8, 8), 10, np.float32)
    with pytest.raises(DataError, match="every output of the FP32 model is zero"):
        sensitivity(path, {"image": np.float32(0.01)}, batches(array=tens))

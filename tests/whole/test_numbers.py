"""Numbers at the edges of what float32 and int64 hold, and data that says nothing, from the pass to the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, images, save
from onnx import numpy_helper

from trtcal.calibration.calibrate import calibrate
from trtcal.errors import NonFiniteError, StatsError
from trtcal.model.file import save_model
from trtcal.model.runner import OrtRunner
from trtcal.passes.collect import collect
from trtcal.qdq.insert import insert_qdq
from trtcal.ranges.both_grids import PairBuilder
from trtcal.ranges.growth import GROWTH
from trtcal.ranges.histogram import NUM_BINS, HistogramBuilder, abs_max
from trtcal.ranges.stats import ActivationStats, merge
from trtcal.ranges.thresholds import METHODS
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.sweep.emulation import RULES, replay
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.run import run_sweep

LARGEST = float(np.finfo(np.float32).max)


def x(*rows: list[float]) -> list[dict[str, np.ndarray]]:
    return [{"x": np.array([row], np.float32)} for row in rows]


# --- few elements, and many


def few(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    values = batch["x"]
    return {"none": values[:, :0], "one": values[:, :1], "scalar": values.max(), "some": values[:, : int(values[0, 1])]}


@pytest.mark.parametrize("growth", GROWTH)
def test_tensors_of_no_element_and_of_one_are_tensors(growth: str) -> None:
    stats = collect(few, x([3.0, 0.0], [-5.0, 2.0], [4.0, 0.0]), growth=growth)
    assert {name: tensor.histogram.total for name, tensor in stats.tensors.items()} == {
        "none": 0,
        "one": 3,
        "scalar": 3,
        "some": 2,
    }
    assert stats.tensors["one"].sample_amax.tolist() == [3, 5, 4]
    assert stats.tensors["some"].sample_amax.tolist() == [0, 5, 0]
    assert stats.tensors["none"].sample_peaks.tolist() == [0, 0, 0]
    assert ActivationStats.from_bytes(stats.to_bytes()) == stats
    assert merge([stats, stats]).tensors["scalar"].histogram.total == 6
    for name, tensor in stats.tensors.items():
        assert tensor.batch_grid is not None
        assert tensor.batch_grid.total == tensor.histogram.total
        for threshold in METHODS.values():
            assert (threshold(tensor.histogram) > 0) == (name != "none")
        for rule in RULES:
            assert replay(tensor, [2, 0, 1], 2, rule).histogram.total == tensor.histogram.total


def test_minus_zero_is_zero() -> None:
    stats = collect(lambda batch: {"y": batch["x"]}, x([-0.0, 0.0], [-0.0, -0.0]))
    assert stats.to_bytes() == collect(lambda batch: {"y": batch["x"]}, x([0.0, 0.0], [0.0, 0.0])).to_bytes()
    assert not np.signbit(stats.tensors["y"].amax)


@pytest.mark.slow(reason="counts more than 2**31 elements")
def test_a_tensor_of_more_elements_than_int32_numbers_is_counted() -> None:
    """8 GiB of zeros that the system never has to provide, since they are only read; but for five places."""
    number = 2**31 + 5
    values = np.zeros((1, number), np.float32)
    values[0, [0, 2**30, 2**31 - 1, 2**31, -1]] = [-3.0, 1.5, 3.0, -0.0, 3.0]
    tensor = collect(lambda batch: {"y": values}, x([0.0])).tensors["y"]
    assert tensor.sample_amax.tolist() == [3.0]
    assert tensor.sample_peaks.tolist() == [3]
    assert {int(i): int(tensor.histogram.counts[i]) for i in np.flatnonzero(tensor.histogram.counts)} == {
        0: number - 4,
        12288: 1,
        24576: 3,
    }
    assert tensor.batch_grid is not None
    assert {int(i): int(tensor.batch_grid.counts[i]) for i in np.flatnonzero(tensor.batch_grid.counts)} == {
        0: number - 4,
        1024: 1,
        2047: 3,
    }
    assert replay(tensor, [0], 1).histogram == tensor.batch_grid


@pytest.mark.slow(reason="counts more than 2**31 elements")
def test_a_constant_seen_more_often_than_int32_counts_is_counted() -> None:
    pair, part = PairBuilder("double"), np.full(1 << 24, 0.75, np.float32)
    for _ in range(130):
        assert pair.add(part, 0.75) == part.size
    assert pair.fine.counts.max() == pair.batch_grid.counts.max() == 130 * part.size > 2**31


# --- extremes


@pytest.mark.parametrize("growth", GROWTH)
def test_a_stream_from_the_least_float_to_the_largest_loses_nothing(growth: str) -> None:
    rows = [[0.0, 0.0], [2.0**-149, 0.0], [2.0**-126, -(2.0**-149)], [1.0, -1.0], [LARGEST, -LARGEST], [1.0, 0.0]]
    stats = collect(lambda batch: {"y": batch["x"]}, x(*rows), growth=growth)
    tensor = stats.tensors["y"]
    assert tensor.batch_grid is not None
    assert tensor.histogram.total == tensor.batch_grid.total == 12
    assert tensor.amax == tensor.batch_grid.amax == np.float32(LARGEST)
    assert tensor.histogram.counts[-1] == 2
    assert ActivationStats.from_bytes(stats.to_bytes()) == stats
    assert (
        tensor.histogram
        == merge([collect(lambda batch: {"y": batch["x"]}, x(row)) for row in reversed(rows)]).tensors["y"].histogram
    )


@pytest.mark.parametrize("value", [2.0**-149, 2.0**-126, 0.7, 1.0, LARGEST / 2, LARGEST])
@pytest.mark.parametrize("growth", GROWTH)
def test_a_constant_has_one_bin_and_every_method_finds_it(value: float, growth: str) -> None:
    values = np.full(1000, -value, np.float32)
    builder = HistogramBuilder(NUM_BINS, GROWTH[growth].grow)
    builder.add(values, abs_max(values))
    hist = builder.build()
    assert np.flatnonzero(hist.counts).size == 1
    assert METHODS["minmax"](hist) == METHODS["percentile"](hist) == np.float32(value)
    assert np.float32(value) / 2 <= METHODS["mse"](hist) <= np.float32(value)
    if value < LARGEST:
        found = float(METHODS["entropy"](hist))
        assert found >= value or value < 1e-44  # which has no half
        # On TensorRT's grid the range is the constant itself. Of windows that clip nothing the largest wins, as with
        # TensorRT, so on another grid it is all of that.
        assert abs(found - float(hist.limit)) <= max(1.5 * hist.bin_width, 2.0**-148)
        assert not GROWTH[growth].tensorrt or hist.limit == np.float32(value)


@pytest.mark.parametrize("spoiled", [[np.nan, 1.0], [np.nan, -np.inf], [np.inf, -np.inf], [-np.nan, np.inf]])
@pytest.mark.parametrize("size", [1, 3])
def test_a_nan_or_an_inf_is_found_in_any_sample_even_after_a_mask(spoiled: list[float], size: int) -> None:
    rows = np.array([[1.0, 2.0], [-np.inf, 2.0], [3.0, 4.0], spoiled, [5.0, 6.0]], np.float32)
    batches = [{"x": np.arange(5, dtype=np.float32)[i : i + size]} for i in range(0, 5, size)]
    found = "inf" if np.inf in spoiled else "nan"  # a nan alone might still be replaced in the graph
    with pytest.raises(NonFiniteError, match=f"^sample 3: tensor 'y' holds {found}"):
        collect(lambda batch: {"y": rows[int(batch["x"][0])][None]}, batches)


@pytest.mark.parametrize("value", [np.nan, -1.0, -np.inf])
def test_maxima_that_no_pass_leaves_are_refused_when_they_are_read(value: float) -> None:
    stats = collect(lambda batch: {"y": batch["x"]}, x([1.0], [2.0]))
    tensor = replace(stats.tensors["y"], sample_amax=np.array([1.0, value], np.float32))
    with pytest.raises(StatsError, match=r"impossible values|maxima are nan"):
        ActivationStats.from_bytes(replace(stats, tensors={"y": tensor}).to_bytes())


# --- data and models that say nothing


def with_weights(change: Callable[[str, np.ndarray], np.ndarray]) -> onnx.ModelProto:
    model = conv_model()
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = change(tensor.name, numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


def zero_model() -> onnx.ModelProto:
    return with_weights(lambda name, values: values * 0)


def constant_model() -> onnx.ModelProto:
    """Every tensor holds one value: conv 3, sum 3 + 0.5."""
    return with_weights(lambda name, values: values * 0 + {"b": 3.0, "offset": 0.5}.get(name, 0.0))


def source(pictures: np.ndarray) -> Batches:
    return Batches(ArraySource({"image": pictures}, labels=np.arange(len(pictures)) % 5), 2)


ZEROS, SAME = np.zeros((4, 3, 8, 8), np.float32), np.full((4, 3, 8, 8), 0.7, np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_zeros_has_the_scale_zero_everywhere_and_nothing_to_quantize(method: str, tmp_path: Path) -> None:
    cache = calibrate(save(zero_model(), tmp_path / "m.onnx"), source(-ZEROS), method).cache
    assert len(cache.scales) == 9
    assert cache.format().count(b": 0\n") == 9
    made = insert_qdq(zero_model(), cache.scales)
    assert "QuantizeLinear" not in {node.op_type for node in made.model.graph.node}


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_constants_has_the_ranges_of_its_constants_and_loses_nothing(method: str, tmp_path: Path) -> None:
    cache = calibrate(save(constant_model(), tmp_path / "m.onnx"), source(SAME), method).cache
    expected = {"image": 0.7, "conv": 3.0, "relu": 3.0, "pool": 3.0, "sum": 3.5, "flat": 3.5}
    if method == "mse":  # 3 is as well met by any threshold that has it on one of its levels
        assert all(expected[name] / 2 <= cache.amax(name) <= np.float32(expected[name]) for name in expected)
    else:
        middle = np.float32(1 + (0.5 / NUM_BINS if METHODS[method].depends_on_batches else 0))
        assert {name: cache.amax(name) for name in expected} == pytest.approx(
            {name: np.float32(value) * middle for name, value in expected.items()}, rel=2.0**-23
        )
    made = insert_qdq(constant_model(), cache.scales).model
    save_model(made, tmp_path / "q.onnx")
    with OrtRunner(tmp_path / "q.onnx") as runner:
        assert not runner({"image": SAME[:1]})["logits"].any()


@pytest.mark.parametrize("model", [zero_model, constant_model, conv_model])
@pytest.mark.parametrize("pictures", [ZEROS, SAME, images(4) * np.float32(1e-42)], ids=["zeros", "same", "denormal"])
def test_a_sweep_over_nothing_ends_with_numbers(
    model: Callable[[], onnx.ModelProto], pictures: np.ndarray, tmp_path: Path
) -> None:
    plan = SweepPlan(batch_sizes=(1, 4), seeds=1)
    run = run_sweep(save(model(), tmp_path / "m.onnx"), source(pictures), tmp_path / "s", plan)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in trials.json")

    content = json.loads((run.folder / "trials.json").read_bytes(), parse_constant=refuse)
    assert content["recommendation"]["headline"]
    for trial in run.sweep.trials:
        assert np.isfinite(trial.amax).all()

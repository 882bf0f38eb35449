"""Engines that are run: their answers, their accuracy by batch size and order, their latency by precision."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nets
import numpy as np
import pytest
from builds import CAREFUL, build, calibrated, calibrating
from device import needs, small, without_gpu, without_tensorrt
from fakecuda.models import SHAPE, onnx_model
from parity import KINDS

from calibrators.memory import available
from trtcal.cache.cache import CalibrationCache
from trtcal.errors import BackendError, ModelError
from trtcal.judging.accuracy import simulate
from trtcal.model.open import open_model
from trtcal.model.runner import OrtRunner

pytestmark = [pytest.mark.gpu, pytest.mark.seconds(6), needs(without_tensorrt(), without_gpu())]

Record = Callable[[str, object], None]

DYNAMIC = {"image": [(size, *SHAPE) for size in (2, 4, 4)]}
JUDGED = 200 if small() else 1000  # images
CALIBRATED = 64 if small() else 512
BATCH = 100
NEAR = 0.03  # of top-1 between an engine and its simulation, which differ by chance from one kernel to another
LABELLED = [name for name in nets.names() if name not in nets.MADE]


@pytest.fixture
def fixed(tmp_path: Path) -> Path:
    path = tmp_path / "fixed.onnx"
    path.write_bytes(onnx_model(3))
    return path


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("memory", [name for name in available() if name != "host"])
def test_a_batch_of_any_size_is_what_onnx_runtime_answers(model: Path, fixed: Path, memory: str) -> None:
    from calibrators import Engine, build_engine

    plans = {
        "dynamic": build_engine(model, precision="fp32", shapes=DYNAMIC).plan,
        "static": build_engine(fixed, precision="fp32").plan,
    }
    with OrtRunner(model) as reference:
        for plan in plans.values():
            with Engine(plan, memory=memory) as engine:
                assert [str(spec) for spec in engine.inputs] == ["image: float32 (N, 3, 8, 8)"]
                assert engine.outputs == ("y",)
                for size in (1, 2, 3, 4, 5, 10):
                    expected = reference({"image": images(size)})["y"]
                    # TF32 keeps 10 bits of the factors' mantissas.
                    np.testing.assert_allclose(engine({"image": images(size)})["y"], expected, rtol=5e-3, atol=5e-2)


def test_a_shape_that_no_profile_takes_is_told_what_would(model: Path) -> None:
    from calibrators import Engine, build_engine

    with Engine(build_engine(model, precision="fp32", shapes=DYNAMIC).plan) as engine:
        with pytest.raises(ModelError, match=r"the engine takes \(2, 3, 8, 8\) to \(4, 3, 8, 8\)"):
            engine({"image": images(2)[:, :, :4]})
        assert engine({"image": images(2)})["y"].shape == (2, 2)


def test_what_is_no_engine_is_refused_in_tensorrts_words(model: Path, tmp_path: Path) -> None:
    from calibrators import Engine, build_engine

    plan = build_engine(model, precision="fp32", shapes=DYNAMIC).plan
    for name, data in {"text": b"no engine", "cut": plan[: len(plan) // 2]}.items():
        (tmp_path / f"{name}.engine").write_bytes(data)
        with pytest.raises(BackendError, match=f"{name}.engine: TensorRT .* does not take this engine: "):
            Engine(tmp_path / f"{name}.engine")


@pytest.mark.beyond_doubles("know no shape that depends on data")
def test_outputs_whose_size_the_data_decide_are_answered_whole(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto
    from onnx import helper as oh

    from calibrators import Engine, build_engine

    graph = oh.make_graph(
        [oh.make_node("NonZero", ["x"], ["y"])],
        "g",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5])],
        [oh.make_tensor_value_info("y", TensorProto.INT64, [2, "n"])],
    )
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), tmp_path / "n.onnx")
    with Engine(build_engine(tmp_path / "n.onnx", precision="fp32").plan) as engine:
        for x in (np.eye(2, 5, dtype=np.float32), np.ones((2, 5), np.float32), np.zeros((2, 5), np.float32)):
            np.testing.assert_array_equal(engine({"x": x})["y"], np.stack(np.nonzero(x)))


def test_layers_and_latency_are_told(model: Path) -> None:
    from calibrators import Engine, MinMaxCalibrator, build_engine

    built = build_engine(model, calibrator=MinMaxCalibrator([{"image": images(4)}] * 2))
    with Engine(built.plan) as engine:
        counts = engine.layers()
        assert counts is not None
        assert sum(counts.values()) > 0
        found = engine.latency({"image": images(3)}, runs=20)
        assert 0 < found.p50_ms <= found.p90_ms <= found.p99_ms
        assert (found.batch_size, found.runs) == (3, 20)
        assert engine.latency(runs=20).batch_size == 4


def test_torch_on_the_gpu_lives_on(model: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch without CUDA")
    from calibrators import Engine, build_engine

    before = torch.ones(4, device="cuda")
    with Engine(build_engine(model, precision="fp32", shapes=DYNAMIC).plan) as engine:
        engine({"image": images(4)})
        assert (before + 1).sum().item() == 8
    assert (before + 1).sum().item() == 8


def test_engines_are_evaluated_and_swept(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    from trtcal.demo import calibration_images, labelled_images, model_path

    shutil.copy(model_path(), tmp_path / "m.onnx")
    x, y = labelled_images()
    count = 40 if small() else 200
    np.savez(tmp_path / "l.npz", image=x[:count], labels=y[:count])
    np.save(tmp_path / "c.npy", calibration_images()[: 12 if small() else 64])
    assert run("calibrate", "m.onnx", "--data", "c.npy", "--method", "minmax", "-o", "c.cache")[0] == 0
    shape = ("--minShapes", "image:1x1x28x28", "--optShapes", "image:8x1x28x28", "--maxShapes", "image:8x1x28x28")
    build = ("build", "-o", "m.onnx", *shape, "--no-latency")
    assert run(*build, "-e", "int8.engine", "--int8", "--calib_cache", "c.cache")[0] == 0
    assert run(*build, "-e", "fp16.engine", "--precision", "fp16")[0] == 0
    code, out, err = run("evaluate", "int8.engine", "--against", "fp16.engine", "--data", "l.npz", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["agreement"]["logits"]["sqnr_db"] > 5
    assert found["scores"]["top1"]["value"] > 0.8
    assert found["latency"].keys() == {"int8.engine", "fp16.engine"}
    few = ("--batch-sizes", "4", "--orders", "given", "--growths", "double", "--methods", "entropy,minmax")
    code, _, err = run("sweep", "m.onnx", "--data", "c.npy", "--eval-data", "l.npz", "--engine", "-o", "s", *few)
    assert code == 0, err
    trials = json.loads((tmp_path / "s" / "trials.json").read_text())["trials"]
    assert [trial["error"] for trial in trials] == [None, None]
    assert all(trial["accuracy"] > 0.7 for trial in trials)


def labelled(model: nets.Model) -> tuple[list[nets.Batch], np.ndarray]:
    if model.load_labelled is None:
        pytest.skip(f"{model.name} has no labelled data")
    inputs, labels = model.load_labelled()
    batches = [
        {name: np.ascontiguousarray(array[begin : begin + BATCH]) for name, array in inputs.items()}
        for begin in range(0, min(JUDGED, len(labels)) // BATCH * BATCH, BATCH)
    ]
    return batches, labels[: len(batches) * BATCH]


def top1(runner: Callable[[nets.Batch], dict[str, np.ndarray]], batches: list[nets.Batch], labels: np.ndarray) -> float:
    answers = [next(iter(runner(batch).values())) for batch in batches]
    found = np.concatenate([answer.reshape(len(answer), -1).argmax(axis=1) for answer in answers])
    return float((found == labels).mean())


def int8(model: nets.Model, ranges: CalibrationCache, batch: nets.Batch, *, fp16: bool = False) -> bytes:
    from calibrators import CachedCalibrator

    with CachedCalibrator(ranges) as calibrator:
        return calibrating(model.data, calibrator, batch, level=CAREFUL, fp16=fp16).plan


@cache
def float_top1(name: str) -> float:
    from calibrators import Engine

    model = nets.model(name)
    batches, labels = labelled(model)
    shapes = {name: array.shape for name, array in batches[0].items()}
    with Engine(build(model.data, profiles=[shapes], level=CAREFUL).plan) as engine:
        return top1(engine, batches, labels)


RUNS = [("minmax", 16, "given"), ("entropy", 16, "given")]
RUNS += [("entropy", size, order) for size in (64, 4, 1) for order in ("given", "largest last")]
_seen: dict[tuple[str, bytes], tuple[float, float]] = {}


@pytest.mark.seconds(10)
@pytest.mark.parametrize(("kind", "size", "order"), RUNS[: 2 if small() else None])
@pytest.mark.parametrize("name", LABELLED)
def test_int8_engines_are_as_accurate_as_we_simulate_them(
    name: str, kind: str, size: int, order: str, record_property: Record
) -> None:
    from calibrators import Engine

    model = nets.model(name)
    batches, labels = labelled(model)
    record_property("top-1 in FP32", float_top1(name))
    data = model.batches(model.orders(CALIBRATED)[order], size)
    ranges = calibrated(model.data, data, KINDS[kind].algorithm)
    if (name, ranges.format()) not in _seen:  # often two orders give the same ranges
        with simulate(open_model(model.path).whole, ranges.scales, optimization="extended") as runner:
            expected = top1(runner, batches, labels)
        with Engine(int8(model, ranges, batches[0])) as engine:
            _seen[name, ranges.format()] = top1(engine, batches, labels), expected
    got, expected = _seen[name, ranges.format()]
    record_property("top-1 in INT8", got)
    record_property("top-1 as simulated", expected)
    assert abs(got - expected) <= NEAR


@pytest.mark.seconds(20)
@pytest.mark.parametrize("precision", ["FP32 with TF32", "FP16", "INT8", "INT8 beside FP16"])
def test_a_network_of_a_resnet_18s_size_answers_in(precision: str, record_property: Record) -> None:
    from calibrators import Engine

    model, fp16 = nets.large(small=small()), "FP16" in precision
    (batch,) = model.batches(range(16), 16)
    if "INT8" in precision:
        plan = int8(model, calibrated(model.data, [batch], "MinMaxCalibration"), batch, fp16=fp16)
    else:
        shapes = {name: array.shape for name, array in batch.items()}
        plan = build(model.data, profiles=[shapes], level=CAREFUL, fp16=fp16, tf32=True).plan
    with Engine(plan) as engine:
        record_property("layers by precision", engine.layers())
        for size in (16, 1):
            found = engine.latency({name: array[:size] for name, array in batch.items()}, warmup=20, runs=100)
            record_property(f"milliseconds, batch {size}", {key: round(value, 4) for key, value in vars(found).items()})
            assert 0 < found.p50_ms <= found.p99_ms

"""Engines on a real TensorRT 8.5 to 10.16 and a GPU; skipped elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from device import needs, without_gpu, without_tensorrt
from fakecuda.models import SHAPE, onnx_model

from calibrators.memory import available
from trtcal.errors import BackendError, ModelError
from trtcal.model.runner import OrtRunner

DYNAMIC = {"image": [(size, *SHAPE) for size in (2, 4, 4)]}


pytestmark = [pytest.mark.gpu, needs(without_tensorrt(), without_gpu())]


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
    np.savez(tmp_path / "l.npz", image=x[:200], labels=y[:200])
    np.save(tmp_path / "c.npy", calibration_images()[:64])
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
    small = ("--batch-sizes", "4", "--orders", "given", "--growths", "double", "--methods", "entropy,minmax")
    code, _, err = run("sweep", "m.onnx", "--data", "c.npy", "--eval-data", "l.npz", "--engine", "-o", "s", *small)
    assert code == 0, err
    trials = json.loads((tmp_path / "s" / "trials.json").read_text())["trials"]
    assert [trial["error"] for trial in trials] == [None, None]
    assert all(trial["accuracy"] > 0.7 for trial in trials)

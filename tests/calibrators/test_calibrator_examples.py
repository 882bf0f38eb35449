from __future__ import annotations

from pathlib import Path
from typing import Any

import fakecuda
import numpy as np
import pytest
from fakecuda.models import onnx_model
from PIL import Image

pytestmark = pytest.mark.slow(reason="a process per example")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(onnx_model())
    (tmp_path / "images").mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:02}.png")
    return tmp_path


def example(folder: Path, name: str, *arguments: str, **settings: Any) -> Any:
    return fakecuda.start(str(EXAMPLES / name), *arguments, cwd=folder, full_name=True, **settings)


def spoil_the_third_batch(folder: Path) -> None:
    picture = folder / "images" / "17.png"
    picture.write_bytes(picture.read_bytes()[:60])


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
@pytest.mark.parametrize("order", ["size", "cache"])
def test_plain_tensorrt_builds_and_reuses_its_cache(folder: Path, trt: str, order: str) -> None:
    arguments = "plain_tensorrt.py", "model.onnx", "images", "m.engine"
    done = example(folder, *arguments, trt=trt, TRTFAKE_ORDER=order)
    assert done.returncode == 0, done.stderr
    assert "calibrated on 20 pictures" in done.stdout
    assert "calibrated on 3 batches of 8, 20 samples" in done.stderr
    assert (folder / "m.engine").read_bytes().startswith(b"TRTFAKE-PLAN")
    again = example(folder, *arguments, trt=trt, TRTFAKE_ORDER=order)
    assert "used; same model, data and settings" in again.stderr


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_plain_tensorrt_with_a_broken_picture_in_batch_3_exits_non_zero_and_writes_no_engine(
    folder: Path, trt: str
) -> None:
    spoil_the_third_batch(folder)
    done = example(folder, "plain_tensorrt.py", "model.onnx", "images", "m.engine", trt=trt)
    assert done.returncode == 1
    assert "calibration, batch 3" in done.stderr
    assert "17.png" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["images", "model.onnx"]


@pytest.mark.parametrize("bad", [False, True])
def test_polygraphy_builds_or_fails_with_the_batch(folder: Path, bad: bool) -> None:
    data = np.random.default_rng(0).normal(size=(14, 3, 8, 8)).astype(np.float32)
    if bad:
        data[10, 0, 0, 0] = np.inf
    np.savez(folder / "x.npz", image=data)
    done = example(folder, "polygraphy_build.py", "model.onnx", "x.npz", "m.engine")
    if bad:
        assert done.returncode == 1
        assert "NonFiniteError: calibration, batch 3: input 'image': row 2 holds inf" in done.stderr
        assert not (folder / "m.engine").exists()
        assert not (folder / "m.engine.cache").exists()
    else:
        assert done.returncode == 0, done.stderr
        assert "m.engine: calibrated on 12 samples" in done.stdout


def test_a_torch_dataloader_builds(folder: Path) -> None:
    pytest.importorskip("torch")
    done = example(folder, "torch_dataloader.py", "model.onnx", "m.engine")
    assert done.returncode == 0, done.stderr
    assert "calibrated with batches of 16" in done.stdout
    assert "calibrated on 4 batches of 16, 64 samples" in done.stderr


def test_deepstream_gets_a_cache_and_a_configuration(folder: Path) -> None:
    (folder / "for nvinfer").mkdir()
    done = example(folder, "deepstream.py", "model.onnx", "images", "for nvinfer/config.txt")
    assert done.returncode == 0, done.stderr
    assert "TensorRT takes the ranges; 0 tensors stay without one" in done.stdout
    config = (folder / "for nvinfer" / "config.txt").read_text().splitlines()
    assert {"onnx-file=../model.onnx", "int8-calib-file=config.cache", "model-color-format=0"} <= set(config)
    assert (folder / "for nvinfer" / "config.cache").read_text().startswith("TRT-8601-EntropyCalibration2\n")


def test_deepstream_needs_no_tensorrt(folder: Path) -> None:
    script = str(EXAMPLES / "deepstream.py")
    done = fakecuda.start(script, "model.onnx", "images", "config.txt", cwd=folder, trt=None)
    assert done.returncode == 0, done.stderr
    assert "not tried in a build here: TensorRT is not installed" in done.stdout
    assert (folder / "config.cache").exists()


def test_deepstream_notices_ranges_that_tensorrt_does_not_take(folder: Path) -> None:
    done = example(folder, "deepstream.py", "model.onnx", "images", "config.txt", TRTFAKE_REFUSE="1")
    assert done.returncode == 1
    assert "TensorRT did not take" in done.stderr
    assert not (folder / "config.cache").exists()

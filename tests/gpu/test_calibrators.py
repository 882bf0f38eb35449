"""Our calibrators under a real builder: what they feed, what they guard, and what TensorRT makes of it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from builds import build, calibrating
from device import needs, without_gpu, without_tensorrt
from fakecuda.models import SHAPE

from calibrators.memory import available
from trtcal.cache.cache import CalibrationCache
from trtcal.errors import DataError, NonFiniteError, TrtcalError

pytestmark = [pytest.mark.gpu, pytest.mark.seconds(6), needs(without_tensorrt(), without_gpu())]


def batches(count: int = 4, size: int = 4) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"image": random.normal(size=(size, *SHAPE)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("memory", [name for name in available() if name != "host"])
@pytest.mark.parametrize("kind", ["EntropyCalibrator", "MinMaxCalibrator", "LegacyCalibrator"])
def test_tensorrt_calibrates_on_every_batch(model: Path, tmp_path: Path, memory: str, kind: str) -> None:
    import calibrators

    calibrator = getattr(calibrators, kind)(batches(), cache=tmp_path / "m.cache", memory=memory)
    built = calibrators.build_engine(model, tmp_path / "m.engine", calibrator=calibrator)
    assert calibrator.feed.consumed == 4
    assert built.batch_size == 4
    assert "image" in CalibrationCache.load(tmp_path / "m.cache").scales


WIDTH = 256


def ones_layer(count: int, rows: int = 4) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"x": random.normal(size=(rows, 1, 1, WIDTH)).astype(np.float32)} for _ in range(count)]


def failing() -> Iterator[dict[str, np.ndarray]]:
    yield from ones_layer(2)
    raise OSError("planned")


def spoilt() -> list[dict[str, np.ndarray]]:
    batches = ones_layer(3)
    batches[2]["x"].flat[5] = np.nan
    return batches


# What is fed to a network of 4 rows -> the batches, and what that is to raise.
FEEDS: dict[str, tuple[Callable[[], Iterable[dict[str, np.ndarray]]], type[TrtcalError] | None]] = {
    "all is well": (lambda: ones_layer(3), None),
    "the loader raises in batch 3": (failing, DataError),
    "batches of 2": (lambda: ones_layer(3, rows=2), DataError),
    "batches of 8": (lambda: ones_layer(3, rows=8), DataError),
    "a last, shorter batch": (lambda: [*ones_layer(2), *ones_layer(1, rows=2)], DataError),
    "a nan in batch 3": (spoilt, NonFiniteError),
    "no batches": (lambda: [], DataError),
}


@pytest.mark.seconds(2)
@pytest.mark.parametrize("kind", ["EntropyCalibrator", "MinMaxCalibrator"])
@pytest.mark.parametrize("what", FEEDS)
def test_a_feed_that_fails_is_an_error_and_leaves_no_cache(what: str, kind: str, tmp_path: Path) -> None:
    import calibrators

    feed, error = FEEDS[what]
    calibrator = getattr(calibrators, kind)(feed(), cache=tmp_path / "c.cache", policy="write")
    with contextlib.nullcontext() if error is None else pytest.raises(error), calibrator:
        build(nets.one_layer(4, WIDTH), calibrator, expect=True)
    assert (tmp_path / "c.cache").exists() == (error is None)


def test_a_failing_feed_leaves_neither_cache_nor_engine(model: Path, tmp_path: Path) -> None:
    from calibrators import EntropyCalibrator, build_engine

    def data() -> Any:
        yield from batches(2)
        raise OSError("disk gone")

    with pytest.raises(DataError, match="batch 3: OSError: disk gone"):
        build_engine(model, tmp_path / "m.engine", calibrator=EntropyCalibrator(data(), cache=tmp_path / "m.cache"))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_torch_on_the_gpu_feeds_and_lives_on() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch without CUDA")
    from calibrators import EntropyCalibrator

    held, scales = torch.arange(1 << 20, device="cuda", dtype=torch.float32), []
    host = ones_layer(4)
    for data in (host, [{"x": torch.from_numpy(batch["x"]).cuda()} for batch in host]):
        with EntropyCalibrator(data) as calibrator:
            calibrating(nets.one_layer(4, WIDTH), calibrator, host[0])
        scales.append(calibrator.written.scales["x"])
        held = held + 1  # its own kernels, between the builds
    assert scales[0] == scales[1]
    assert bool((held == torch.arange(1 << 20, device="cuda") + 2).all())


def test_the_script_builds(model: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "build_engine.py"
    np.save(tmp_path / "x.npy", np.concatenate([batch["image"] for batch in batches()]))
    flags = "--precision int8 --calib_input x.npy --calib_cache c.cache --calib_batch_size 4 --engine m.engine"
    command = [sys.executable, str(script), "--onnx", "m.onnx", *flags.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "latency: median" in done.stdout

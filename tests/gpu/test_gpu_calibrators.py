"""The promises that a fake cannot show, on a real TensorRT 8.5 to 10.16 and a GPU; skipped elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device import needs, without_gpu, without_tensorrt
from fakecuda.models import SHAPE

from calibrators.memory import available
from trtcal.cache.cache import CalibrationCache
from trtcal.calibration.calibrate import calibrate
from trtcal.errors import DataError

pytestmark = [pytest.mark.gpu, needs(without_tensorrt(), without_gpu())]


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


def test_minmax_finds_the_largest_value_of_all_batches(model: Path) -> None:
    from calibrators import MinMaxCalibrator, build_engine

    data = batches()
    built = build_engine(model, calibrator=MinMaxCalibrator(data))
    assert built.ranges is not None
    largest = np.float32(max(np.abs(batch["image"]).max() for batch in data))
    assert built.ranges.scales["image"] == largest / np.float32(127)


def test_the_cpu_pass_agrees_with_tensorrts_entropy(model: Path) -> None:
    from calibrators import EntropyCalibrator, build_engine

    built = build_engine(model, calibrator=EntropyCalibrator(batches()))
    assert built.ranges is not None
    ours = calibrate(model, batches(), "entropy").cache
    assert built.ranges.scales["image"] == ours.scales["image"]
    for name in set(built.ranges.scales) & set(ours.scales):
        assert built.ranges.scales[name] == pytest.approx(ours.scales[name], rel=5e-3)


def test_ranges_of_our_own_are_taken(model: Path) -> None:
    from calibrators import PercentileCalibrator, build_engine

    calibrator = PercentileCalibrator(batches(), model=model, percentile=99)
    assert build_engine(model, calibrator=calibrator).plan


def test_a_failing_feed_leaves_neither_cache_nor_engine(model: Path, tmp_path: Path) -> None:
    from calibrators import EntropyCalibrator, build_engine

    def data() -> Any:
        yield from batches(2)
        raise OSError("disk gone")

    with pytest.raises(DataError, match="batch 3: OSError: disk gone"):
        build_engine(model, tmp_path / "m.engine", calibrator=EntropyCalibrator(data(), cache=tmp_path / "m.cache"))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_torch_on_the_gpu_feeds_and_lives_on(model: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch without CUDA")
    from calibrators import MinMaxCalibrator, build_engine

    before = torch.ones(4, device="cuda")
    data = [{"image": torch.from_numpy(batch["image"]).cuda()} for batch in batches()]
    host, device = (build_engine(model, calibrator=MinMaxCalibrator(feed)) for feed in (batches(), data))
    assert host.ranges == device.ranges
    assert (before + 1).sum().item() == 8


def test_the_script_builds(model: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "build_engine.py"
    np.save(tmp_path / "x.npy", np.concatenate([batch["image"] for batch in batches()]))
    flags = "--precision int8 --calib_input x.npy --calib_cache c.cache --calib_batch_size 4 --engine m.engine"
    command = [sys.executable, str(script), "--onnx", "m.onnx", *flags.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "latency: median" in done.stdout

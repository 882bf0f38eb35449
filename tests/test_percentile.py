from __future__ import annotations

from pathlib import Path

import fakecuda
import numpy as np
import pytest

COLLECT = """
from types import SimpleNamespace
from trtcal.cache import CalibrationCache
asked = []
def collect(model, batches, method):
    asked.append([str(model), len(list(batches)), method])
    return SimpleNamespace(cache=CalibrationCache.from_amax({"image": np.float32(2.5), "y": np.float32(1)}))
"""


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_ranges_are_collected_before_the_build_and_handed_over(tmp_path: Path, trt: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        COLLECT
        + """
with PercentileCalibrator("model.onnx", batches(3), percentile=99.9, collect=collect, policy="off") as calibrator:
    before = list(asked)
    plan, log = build(calibrator)
bases = {}
for base in ("EntropyCalibration2", "MinMaxCalibration", "EntropyCalibration", "LegacyCalibration"):
    with PercentileCalibrator("model.onnx", batches(3), base=base, collect=collect) as other:
        bases[base] = bool(build(other)[0]) and other.ranges.algorithm
scales = {name: float(scale) for name, scale in calibrator.ranges.scales.items()}
dla = isinstance(calibrator, PercentileCalibrator) and isinstance(calibrator, trt.IInt8EntropyCalibrator2)
report(before=before, asked=asked[-1], log=log, scales=scales, dla=dla, bases=bases, live=live())
""",
        trt=trt,
    )
    assert found["before"] == [["model.onnx", 3, "percentile:99.9"]]
    assert found["asked"] == ["model.onnx", 3, "percentile:99.99"]
    assert found["log"] == ["INFO: trtfake: using calibration cache, no batches"]
    assert found["scales"] == {
        "image": float(np.float32(2.5) / np.float32(127)),
        "y": float(np.float32(1) / np.float32(127)),
    }
    assert found["dla"] is True
    assert found["bases"] == {base: base for base in found["bases"]}
    assert found["live"] == {}


def test_a_build_never_becomes_another_method(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        COLLECT
        + """
def script():
    with PercentileCalibrator("model.onnx", batches(3), collect=collect) as calibrator:
        build(calibrator)
report(failed=failure(script))
""",
        TRTFAKE_REFUSE="1",
    )
    assert found["failed"]["type"] == "BackendError"
    assert "did not take the 2 ranges" in found["failed"]["message"]


def test_an_error_while_ranges_are_collected_is_raised_at_once(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        def collect(model, batches, method):
            for batch in batches: pass
        data = failing(3, OSError("gone"), after=1)
        report(failed=failure(lambda: PercentileCalibrator("m.onnx", data, collect=collect)),
               wrong=failure(lambda: PercentileCalibrator("m.onnx", [], percentile=0)),
               base=failure(lambda: PercentileCalibrator("m.onnx", [], base="Entropy3")))
        """,
    )
    assert found["failed"]["type"] == "OSError"
    assert "percentile must be in (0, 100], got 0" in found["wrong"]["message"]
    assert "base must be one of" in found["base"]["message"]


def test_without_a_function_of_ones_own_the_projects_pass_is_made_and_its_cache_reused(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        Path("model.onnx").write_bytes(onnx_model())
        data = [{"image": np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)}]
        options = dict(cache="p.cache", data_key="normal-0", percentile=90)
        with PercentileCalibrator("model.onnx", data, **options) as calibrator:
            build(calibrator)
        first = calibrator.ranges
        def never(*_): raise AssertionError("the cache on disk was not reused")
        with PercentileCalibrator("model.onnx", data, collect=never, **options) as calibrator:
            build(calibrator)
        report(names=list(first.scales), same=first == calibrator.ranges, amax=float(first.amax("image")))
        """,
    )
    assert {"image", "conv", "relu", "y"} <= set(found["names"])
    assert found["same"]
    assert found["amax"] == pytest.approx(1.645, abs=0.1)  # 90% of |x| of a normal distribution

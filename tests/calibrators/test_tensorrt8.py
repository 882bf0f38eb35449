"""The calibrators on the real TensorRT 8.6.0: its builder does not start without a GPU, its calls are made by hand."""

from __future__ import annotations

from pathlib import Path

import fakecuda

START = """
import numpy as np, os
import tensorrt as trt
from pathlib import Path
from calibrators import CachedCalibrator, EntropyCalibrator, LegacyCalibrator, MinMaxCalibrator, PercentileCalibrator
from fakecuda.caldriver import Driver
from fakecuda.report import failure, report
def batches(count, dtype=np.float32):
    return [{"x": np.full((4, 3), k + 1, dtype)} for k in range(count)]
def text(kind): return f"TRT-8600-{kind.algorithm}\\nx: 3c010a14\\n".encode()
"""


def test_every_class_is_driven_through_its_trampolines_in_either_order(tmp_path: Path) -> None:
    found = fakecuda.run_on_tensorrt8(
        START
        + """
results = {}
for kind in (EntropyCalibrator, MinMaxCalibrator, LegacyCalibrator):
    for size_first in (True, False):
        calibrator = kind(batches(3), cache="m.cache", policy="write")
        calls = Driver(trt, calibrator).calibrate(["x"], text(kind), size_first=size_first)
        calibrator.raise_if_failed()
        written = Path("m.cache").read_bytes() == text(kind)
        results[f"{kind.__name__} {size_first}"] = [Driver(trt, calibrator).get_algorithm(), sorted(calls), written]
report(version=trt.__version__, **results)
""",
        tmp_path,
    )
    assert found.pop("version") == "8.6.0"
    calls = sorted(["get_batch_size 4", "read_calibration_cache miss", "get_batch 3", "write_calibration_cache"])
    numbers = {"EntropyCalibrator": 2, "MinMaxCalibrator": 3, "LegacyCalibrator": 0}
    assert found == {f"{n} {first}": [k, calls, True] for n, k in numbers.items() for first in (True, False)}


def test_a_failing_feed_is_kept_and_no_cache_written(tmp_path: Path) -> None:
    found = fakecuda.run_on_tensorrt8(
        START
        + """
results = {}
for error in (OSError("disk gone"), KeyboardInterrupt()):
    def data():
        yield from batches(2)
        raise error
    calibrator = EntropyCalibrator(data(), cache="m.cache")
    calls = Driver(trt, calibrator).calibrate(["x"], text(EntropyCalibrator))
    results[type(error).__name__] = [failure(calibrator.raise_if_failed), calls]
report(files=os.listdir("."), **results)
""",
        tmp_path,
    )
    assert found.pop("files") == []
    assert found["OSError"][0]["message"] == "calibration, batch 3: OSError: disk gone"
    assert found["KeyboardInterrupt"][0]["type"] == "KeyboardInterrupt"
    for _, calls in found.values():
        assert "write_calibration_cache" in calls  # TensorRT would have written one


def test_a_cache_from_tensorrt_10_is_handed_over_under_its_own_header(tmp_path: Path) -> None:
    found = fakecuda.run_on_tensorrt8(
        START
        + """
calibrator = CachedCalibrator(b"TRT-100300-MinMaxCalibration\\nx: 3c010a14\\n")
driver = Driver(trt, calibrator)
report(cache=driver.read_calibration_cache(), algorithm=driver.get_algorithm(), batch=driver.get_batch(["x"]),
       refused=failure(calibrator.raise_if_failed))
""",
        tmp_path,
    )
    assert found["cache"] == "TRT-8600-MinMaxCalibration\nx: 3c010a14\n"
    assert found["algorithm"] == 3
    assert found["batch"] == [False, [0]]
    assert "TensorRT did not take the 1 ranges" in found["refused"]["message"]


def test_int64_is_fed_as_int32_which_is_what_tensorrt_8_reads(tmp_path: Path) -> None:
    found = fakecuda.run_on_tensorrt8(
        START
        + """
calibrator = EntropyCalibrator(batches(1, np.int64))
driver = Driver(trt, calibrator)
assert driver.read_calibration_cache() is None
more, pointers = driver.get_batch(["x"])
import ctypes
report(more=more, read=list(np.frombuffer(ctypes.string_at(pointers[0], 48), np.int32).tolist()))
""",
        tmp_path,
    )
    assert found == {"more": True, "read": [1] * 12}

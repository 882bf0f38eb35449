from __future__ import annotations

from pathlib import Path

import fakecuda
import numpy as np
import pytest

from trtcal.cache.cache import CalibrationCache


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_either_order_of_the_calls_gives_the_same_cache(tmp_path: Path, trt: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        results = {}
        for order in ("size", "cache"):
            os.environ["TRTFAKE_ORDER"] = order
            with EntropyCalibrator(batches(3), cache=f"{order}.cache") as calibrator:
                plan, log = build(calibrator)
            results[order] = [bool(plan), log[-1], calibrator.written.header]
        report(live=live(), dla=issubclass(EntropyCalibrator, trt.IInt8EntropyCalibrator2), **results)
        """,
        trt=trt,
    )
    assert found.pop("live") == {}
    assert found.pop("dla") is True
    done = [True, "INFO: trtfake: calibrated with 3 batches of 4", "TRT-101601-EntropyCalibration2"]
    assert found == {"size": done, "cache": done}
    one, other = (CalibrationCache.load(tmp_path / f"{order}.cache") for order in ("size", "cache"))
    assert one == other
    assert one.scales == {"image": np.float32(3) / np.float32(127)}

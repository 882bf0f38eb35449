from __future__ import annotations

from pathlib import Path

import fakecuda
import numpy as np
import pytest

from trtcal.cache.cache import CalibrationCache


def scale(amax: float) -> np.float32:
    return np.float32(amax) / np.float32(127)


@pytest.mark.parametrize("memory", ["cuda", "pycuda"])
def test_batches_have_arrived_when_tensorrt_reads_them(tmp_path: Path, memory: str) -> None:
    """Copies are put off until they are waited for; TensorRT's scale is the largest value of all batches."""
    found = fakecuda.drive(
        tmp_path,
        """
        with MinMaxCalibrator(batches(5), cache="model.cache") as calibrator:
            build(calibrator)
        report(live=live(), batches=calibrator.feed.consumed, samples=calibrator.feed.samples)
        """,
        memory=memory,
        FAKECUDA_LAZY="1",
    )
    assert found == {"live": {}, "batches": 5, "samples": 20}
    assert CalibrationCache.load(tmp_path / "model.cache").scales == {"image": scale(5)}


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_inputs_are_fed_in_the_order_of_the_names(tmp_path: Path, trt: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        names = ("b", "a", "c")
        data = [dict(reversed(list(batch.items()))) for batch in batches(2, names=names)]
        results = {}
        for order in ("size", "cache"):
            os.environ["TRTFAKE_ORDER"] = order
            with MinMaxCalibrator(data, cache="model.cache") as calibrator:
                build(calibrator, inputs=names)
            results[order] = calibrator.written.header
        report(live=live(), **results)
        """,
        trt=trt,
    )
    header = "TRT-101601-MinMaxCalibration"
    assert found == {"live": {}, "size": header, "cache": header}
    scales = CalibrationCache.load(tmp_path / "model.cache").scales
    assert scales == {"b": scale(2), "a": scale(20), "c": scale(200)}

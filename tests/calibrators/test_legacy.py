from __future__ import annotations

from pathlib import Path

import fakecuda
import pytest


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_it_answers_for_its_quantile_and_cutoff(tmp_path: Path, trt: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        with LegacyCalibrator(batches(2), quantile=0.999, cutoff=0.5, cache="l.cache") as calibrator:
            build(calibrator)
        default = LegacyCalibrator(batches(1))
        report(own=[calibrator.get_quantile(), calibrator.get_regression_cutoff()],
               default=[default.get_quantile(), default.get_regression_cutoff()],
               histogram=[calibrator.read_histogram_cache(10), calibrator.write_histogram_cache(b"", 0)],
               header=calibrator.written.header,
               base=isinstance(calibrator, trt.IInt8LegacyCalibrator))
        """,
        trt=trt,
    )
    assert found["own"] == [0.999, 0.5]
    assert found["default"] == [0.9999, 1.0]
    assert found["histogram"] == [None, None]
    assert found["header"] == "TRT-101601-LegacyCalibration"
    assert found["base"] is True


def test_a_quantile_or_cutoff_that_is_none_is_refused(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        report(quantile=[failure(lambda: LegacyCalibrator([], quantile=q))["message"] for q in (0, 1.5)],
               cutoff=[failure(lambda: LegacyCalibrator([], cutoff=c))["message"] for c in (-0.1, 2)])
        """,
    )
    assert found["quantile"] == [f"quantile must be in (0, 1], got {q}" for q in (0, 1.5)]
    assert found["cutoff"] == [f"cutoff must be in [0, 1], got {c}" for c in (-0.1, 2)]


def test_another_quantile_is_another_origin(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        Path("m.onnx").write_bytes(onnx_model())
        consumed = []
        for quantile in (0.9, 0.9, 0.99):
            options = dict(cache="l.cache", model="m.onnx", data_key="x", quantile=quantile)
            with LegacyCalibrator(batches(2), **options) as calibrator:
                build(calibrator)
            consumed.append(calibrator.feed.consumed)
        report(consumed=consumed)
        """,
    )
    assert found == {"consumed": [2, 0, 2]}

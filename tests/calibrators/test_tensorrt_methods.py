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

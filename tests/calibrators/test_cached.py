from __future__ import annotations

from pathlib import Path

import fakecuda
import pytest

CACHE = b"TRT-8601-EntropyCalibration2\nimage: 3c010a14\ny: 3c010a14\n"
VERSIONS = pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)


@VERSIONS
def test_a_cache_from_tensorrt_8_serves_tensorrt_10(tmp_path: Path, trt: str) -> None:
    (tmp_path / "old.cache").write_bytes(CACHE)
    found = fakecuda.drive(
        tmp_path,
        """
        from trtcal.cache.cache import CalibrationCache
        data = Path("old.cache").read_bytes()
        results = []
        for cache in ("old.cache", data, CalibrationCache.parse(data)):
            with CachedCalibrator(cache) as calibrator:
                plan, log = build(calibrator)
            ranges = calibrator.ranges
            results.append([bool(plan), log, ranges.header, ranges.scales == CalibrationCache.parse(data).scales])
        report(results=results, old=Path("old.cache").read_bytes(), live=live())
        """,
        trt=trt,
    )
    number = {"10.0.1": "100001", "10.3.0": "100300", "10.16.1.11": "101601"}[trt]
    hit = [True, ["INFO: trtfake: using calibration cache, no batches"], f"TRT-{number}-EntropyCalibration2", True]
    assert found == {"results": [hit] * 3, "old": CACHE.decode(), "live": {}}


def test_each_algorithm_gets_the_class_that_hands_it_over(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        results = {}
        for algorithm in ("EntropyCalibration2", "MinMaxCalibration", "EntropyCalibration", "LegacyCalibration", "Odd"):
            with CachedCalibrator(f"TRT-8601-{algorithm}\\nimage: 3c010a14\\n".encode()) as calibrator:
                plan, log = build(calibrator)
            results[algorithm] = [calibrator.ranges.algorithm, bool(plan), isinstance(calibrator, CachedCalibrator)]
        minmax = b"TRT-8601-MinMaxCalibration\\nimage: 3c010a14\\n"
        with CachedCalibrator(minmax, algorithm="EntropyCalibration2") as calibrator:
            build(calibrator)
        results["chosen"] = [isinstance(calibrator, trt.IInt8EntropyCalibrator2), calibrator.ranges.algorithm]
        report(unknown=failure(lambda: CachedCalibrator(b"1\\n", algorithm="Entropy3")), **results)
        """,
    )
    assert found.pop("chosen") == [True, "EntropyCalibration2"]
    assert "algorithm must be one of EntropyCalibration2, MinMax" in found.pop("unknown")["message"]
    assert found.pop("Odd") == ["EntropyCalibration2", True, True]
    assert found == {name: [name, True, True] for name in found}
    assert len(found) == 4


def test_a_cache_that_is_handed_back_is_not_written_again(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        with MinMaxCalibrator(batches(2), cache="model.cache") as calibrator:
            build(calibrator)
        before = os.stat("model.cache").st_mtime_ns, Path("model.cache").read_bytes()
        os.environ["TRTFAKE_WRITE_ON_HIT"] = "1"
        consumed = []
        for order in ("size", "cache"):
            os.environ["TRTFAKE_ORDER"] = order
            with MinMaxCalibrator(batches(2), cache="model.cache", policy="read") as calibrator:
                build(calibrator)
            consumed.append(calibrator.feed.consumed)
            with CachedCalibrator("model.cache") as cached:
                build(cached)
        after = os.stat("model.cache").st_mtime_ns, Path("model.cache").read_bytes()
        report(consumed=consumed, same=before == after)
        """,
    )
    assert found == {"consumed": [0, 0], "same": True}


@VERSIONS
def test_ranges_that_tensorrt_does_not_take_fail_the_build_with_the_reason(tmp_path: Path, trt: str) -> None:
    (tmp_path / "old.cache").write_bytes(CACHE)
    found = fakecuda.drive(
        tmp_path,
        """
        def cached():
            with CachedCalibrator("old.cache") as calibrator: build(calibrator)
        def read():
            with EntropyCalibrator(batches(3), cache="old.cache", policy="read") as calibrator: build(calibrator)
        report(cached=failure(cached), read=failure(read), old=Path("old.cache").read_bytes())
        """,
        trt=trt,
        TRTFAKE_REFUSE="1",
    )
    assert found["cached"]["type"] == found["read"]["type"] == "BackendError"
    assert "TensorRT did not take the 2 ranges it was given" in found["cached"]["message"]
    assert "TensorRT did not take the ranges of old.cache" in found["read"]["message"]
    assert found["old"] == CACHE.decode()


@pytest.mark.parametrize("scale", ["7fc00000", "ff800000", "7f800000", "bc010a14"])
def test_scales_that_are_none_are_refused_when_the_calibrator_is_made(tmp_path: Path, scale: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        cache = f"TRT-100300-EntropyCalibration2\\nimage: 3c010a14\\nbad: {sys.argv[1]}\\n".encode()
        report(failed=failure(lambda: CachedCalibrator(cache)))
        """,
        scale,
    )
    assert found["failed"]["type"] in ("CacheError", "CacheFormatError")
    assert "bad" in found["failed"]["message"]


def test_a_file_that_is_no_cache_is_refused_when_the_calibrator_is_made(tmp_path: Path) -> None:
    (tmp_path / "x.cache").write_bytes(b"not a cache\n")
    found = fakecuda.drive(
        tmp_path,
        """
        report(found=[failure(lambda: CachedCalibrator(c))["type"] for c in ("x.cache", "absent.cache", b"\\n")])
        """,
    )
    assert found == {"found": ["CacheFormatError", "CacheError", "CacheFormatError"]}

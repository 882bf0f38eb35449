from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from calibrators.store import CacheStore, retargeted
from trtcal.cache.cache import CalibrationCache
from trtcal.cache.provenance import Provenance, read_sidecar, sidecar_path
from trtcal.errors import CacheError, CacheFormatError, OutputError

DATA = b"TRT-100300-EntropyCalibration2\nx: 3c010a14\n"


def provenance(**changes: Any) -> Provenance:
    values: dict[str, Any] = {
        "model": "m.onnx", "model_sha256": "1", "data": "cats", "data_key": "2", "samples_used": 8,
        "samples_available": 8, "preprocess": {}, "method": "tensorrt:EntropyCalibration2", "growth": "tensorrt",
        "batch_size": 4, "order": "", "seed": None, "partial": "", "shapes": {},
        "header": "TRT-100300-EntropyCalibration2", "versions": {},
    }  # fmt: skip
    return Provenance(**{**values, **changes})


def store(path: Path | None, policy: str = "auto", **changes: Any) -> CacheStore:
    return CacheStore(
        path,
        policy,
        algorithm="EntropyCalibration2",
        trt_version="10.3.0",
        origin=lambda: provenance(**changes),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.cache"


def test_what_was_written_is_read_again_by_a_run_of_the_same_origin(path: Path) -> None:
    written = store(path).write(DATA)
    assert path.read_bytes() == DATA
    assert sidecar_path(path).exists()
    assert store(path).read() == written == CalibrationCache.parse(DATA)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_sha256": "other"}, "model: content differs"),
        ({"data_key": "other"}, "data: samples differ"),
        ({"batch_size": 8}, "batch size: 4 -> 8"),
        ({"method": "percentile:99"}, "method: tensorrt:EntropyCalibration2 -> percentile:99"),
        ({"header": "TRT-8601-EntropyCalibration2"}, "header: TRT-100300"),
        ({"preprocess": {"scale": 1}}, "preprocess scale: none -> 1"),
    ],
)
def test_auto_says_what_differs(
    path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], why: str
) -> None:
    store(path).write(DATA)
    assert store(path, **changes).read() is None
    assert f"{path}: not used, calibrating anew: {why}" in caplog.text


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ({"model_sha256": ""}, "model= was not given"),
        ({"data_key": ""}, "data_key= was not given"),
        ({"model_sha256": "", "data_key": ""}, "model= was not given and data_key= was not given"),
    ],
)
def test_auto_does_not_take_what_it_cannot_verify(
    path: Path, caplog: pytest.LogCaptureFixture, missing: dict[str, Any], why: str
) -> None:
    store(path, **missing).write(DATA)
    assert store(path, **missing).read() is None
    assert f"cannot be verified, because {why} (policy 'read' takes it anyway)" in caplog.text


@pytest.mark.parametrize("policy", ["auto", "write"])
@pytest.mark.parametrize("content", [b"half a cach", b"{}", b"ftrt plan"])
def test_a_file_that_is_no_cache_is_never_replaced(path: Path, policy: str, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(OutputError, match="exists and is no calibration cache"):
        store(path, policy)
    assert path.read_bytes() == content


@pytest.mark.parametrize("policy", ["auto", "write"])
def test_a_file_that_is_no_sidecar_is_never_replaced(path: Path, policy: str) -> None:
    sidecar_path(path).write_text('{"mine": 1}')
    with pytest.raises(OutputError, match="exists and is no account of where a cache comes from"):
        store(path, policy)
    store(path, "off")


def test_a_cache_that_somebody_else_made_is_replaced_by_force_only(path: Path) -> None:
    path.write_bytes(DATA)
    with pytest.raises(OutputError, match="nothing beside it says what it was made from"):
        store(path)
    store(path, "write").write(DATA.replace(b"3c01", b"3d01"))
    assert path.read_bytes() != DATA


def test_a_folder_that_is_missing_is_told_before_the_work(path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .* does not exist"):
        store(path.parent / "nowhere" / "model.cache")
    with pytest.raises(OutputError, match="it is a folder"):
        store(path.parent)


def test_a_cache_is_not_written_over_what_it_is_made_from(path: Path) -> None:
    path.write_bytes(DATA)
    store(path, "write").write(DATA)
    for read in (path, sidecar_path(path)):
        with pytest.raises(OutputError, match="an input of this command"):
            CacheStore(path, "write", algorithm="EntropyCalibration2", trt_version="10.3.0",
                       origin=provenance, inputs=[None, read])  # fmt: skip


def test_the_sidecar_tells_what_was_fed(path: Path) -> None:
    store(path).write(DATA, batch_size=3, samples=7)
    kept = read_sidecar(path)
    assert kept is not None
    assert (kept[0].batch_size, kept[0].samples_used) == (3, 7)


@pytest.mark.parametrize("scale", ["7fc00000", "7f800000", "ff800000", "bc010a14"])
def test_ranges_that_are_no_ranges_are_not_handed_over(path: Path, scale: str) -> None:
    path.write_bytes(DATA + f"bad: {scale}\n".encode())
    with pytest.raises(CacheError, match="bad"):
        store(path, "read").read()


def test_a_scale_of_0_is_handed_over_with_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(DATA + b"dead: 0\n")
    assert store(path, "read").read() is not None
    assert "1 tensors have a scale of 0: dead" in caplog.text


def test_auto_does_not_take_a_cache_that_was_edited(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(path).write(DATA)
    path.write_bytes(DATA.replace(b"3c01", b"3d01"))
    assert store(path).read() is None
    assert "origin unknown" in caplog.text


def test_auto_without_a_file_calibrates(path: Path) -> None:
    assert store(path).read() is None
    assert store(None).read() is None


def test_read_takes_a_cache_from_anywhere_under_a_header_that_this_tensorrt_takes(path: Path) -> None:
    path.write_bytes(DATA.replace(b"100300", b"8601"))
    found = store(path, "read").read()
    assert found is not None
    assert found.format() == DATA


def test_read_refuses_a_file_that_is_not_there_when_it_is_made(path: Path) -> None:
    with pytest.raises(CacheError, match="no such cache; policy 'read'"):
        store(path, "read")


def test_read_refuses_another_algorithm_and_a_broken_file(path: Path) -> None:
    path.write_bytes(DATA.replace(b"EntropyCalibration2", b"MinMaxCalibration"))
    with pytest.raises(CacheError, match=r"this calibrator is EntropyCalibration2; use.*CachedCalibrator"):
        store(path, "read").read()
    path.write_bytes(b"x")
    with pytest.raises(CacheFormatError):
        store(path, "read").read()


def test_write_does_not_look_at_what_is_there(path: Path) -> None:
    store(path).write(DATA)
    assert store(path, "write").read() is None


def test_off_neither_reads_nor_writes(path: Path) -> None:
    off = store(path, "off")
    off.write(DATA)
    assert not path.exists()
    store(path).write(DATA)
    assert off.read() is None


def test_wrong_arguments_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="policy must be one of auto, read, write, off"):
        store(path, "always")
    for policy in ("read", "write"):
        with pytest.raises(ValueError, match="needs a cache file"):
            store(None, policy)


def test_spoilt_scales_are_warned_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(path).write(b"TRT-100300-EntropyCalibration2\na: 0\nb: 7f800000\nc: 3c010a14\nd: 7fc00000\n")
    assert "3 tensors have a scale of 0, inf or nan: a, b, d" in caplog.text


def test_what_tensorrt_wrote_must_be_a_cache(path: Path) -> None:
    with pytest.raises(CacheFormatError, match="the cache that TensorRT wrote"):
        store(path).write(b"garbage without a header")
    assert not path.exists()


def test_a_cache_that_cannot_be_written_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(path).write(DATA)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match=r"model\.cache"):
        store(path, batch_size=8).write(DATA.replace(b"3c01", b"3d01"))
    monkeypatch.undo()
    assert store(path).read() == CalibrationCache.parse(DATA)
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.cache", "model.cache.json"]


def test_the_origin_is_asked_for_once(path: Path) -> None:
    calls = []

    def origin() -> Provenance:
        calls.append(1)
        return provenance()

    once = CacheStore(path, "auto", algorithm="EntropyCalibration2", trt_version="10.3.0", origin=origin)
    once.read()
    once.write(DATA)
    assert calls == [1]


def test_a_header_is_rewritten_only_where_it_differs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="calibrators")
    cache = CalibrationCache.parse(DATA)
    assert retargeted(cache, "10.3.0", "EntropyCalibration2") is cache
    assert caplog.text == ""
    assert retargeted(cache, "8.6.1", "MinMaxCalibration").format() == b"TRT-8601-MinMaxCalibration\nx: 3c010a14\n"
    assert "rewritten" in caplog.text

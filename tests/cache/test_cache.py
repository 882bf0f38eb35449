from __future__ import annotations

import copy
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtcal.cache.cache import ALGORITHMS, CalibrationCache, dotted_version, version_number
from trtcal.errors import CacheError, CacheFormatError, OutputError, TrtcalError

HEADER = b"TRT-8601-EntropyCalibration2\n"


def bits(scale: np.float32) -> int:
    return int(scale.view(np.uint32))


def from_bits(value: int) -> np.float32:
    return cast(np.float32, np.array([value], np.uint32).view(np.float32)[0])


def only_note(data: bytes) -> str:
    (note,) = CalibrationCache.parse(data).tolerated
    return note


# Names as TensorRT can meet them: any text without a line end, not empty.
tensor_names = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1, max_size=20
) | st.sampled_from(["a: b", "scope::conv:0", "123", "(Unnamed Layer* 4) [Convolution]_output", ": ff", "ü/漢字"])
float32_bits = st.integers(0, 2**32 - 1)
headers = st.builds("TRT-{}-{}".format, st.integers(4000, 120000), st.sampled_from(ALGORITHMS)) | st.sampled_from(
    ["1", "TRT-8XXX-EntropyCalibration2", "TRT-8601-Entropy-Calibration"]
)


# --- the canonical form -------------------------------------------------------------------------------


@given(headers, st.dictionaries(tensor_names, float32_bits, max_size=8))
def test_a_canonical_file_comes_back_byte_for_byte(header: str, entries: dict[str, int]) -> None:
    lines = [header, *(f"{name}: {value:x}" for name, value in entries.items())]
    data = "".join(f"{line}\n" for line in lines).encode()
    cache = CalibrationCache.parse(data)
    assert cache.format() == data
    assert list(cache.scales) == list(entries)
    assert [bits(scale) for scale in cache.scales.values()] == list(entries.values())


@given(headers, st.dictionaries(tensor_names, float32_bits, max_size=8))
def test_what_is_written_reads_back_equal_and_nothing_is_tolerated_but_an_odd_header(
    header: str, entries: dict[str, int]
) -> None:
    start = CalibrationCache.parse(f"{header}\n".encode())
    cache = CalibrationCache(start.version, start.algorithm, {k: from_bits(v) for k, v in entries.items()})
    again = CalibrationCache.parse(cache.format())
    assert again == cache
    assert (again.version, again.algorithm) == (cache.version, cache.algorithm)
    assert again.tolerated == start.tolerated


def test_a_file_is_exactly_these_bytes() -> None:
    cache = CalibrationCache(
        "8601",
        "EntropyCalibration2",
        {"data": np.float32(1 / 127), "z": np.float32(0), "i": np.float32("inf")},
    )
    assert cache.format() == b"TRT-8601-EntropyCalibration2\ndata: 3c010204\nz: 0\ni: 7f800000\n"


@pytest.mark.parametrize(
    ("text", "scale"),
    [("3c010204", 1 / 127), ("0", 0.0), ("7f800000", np.inf), ("1", 2.0**-149), ("80000000", -0.0)],
)
def test_a_value_is_the_big_endian_reading_of_the_scale(text: str, scale: float) -> None:
    cache = CalibrationCache.parse(HEADER + f"x: {text}\n".encode())
    assert cache.scales["x"].tobytes() == struct.pack("=f", scale)
    assert cache.tolerated == ()


@pytest.mark.parametrize("payload", [0x7FC00000, 0x7F800001, 0xFFC12345, 0x7FBFFFFF])
def test_the_payload_of_a_nan_is_kept(payload: int) -> None:
    data = HEADER + f"x: {payload:x}\n".encode()
    assert pickle.loads(pickle.dumps(CalibrationCache.parse(data))).format() == data


@pytest.mark.parametrize(
    "name",
    [
        "a: b",
        "a:",
        ":",
        "scope::conv:0",
        "with space",
        " lead",
        "[3, 4]",
        "123",
        "ü/漢字",
        "a\u2028b",
        "a\x0cb",
    ],
)
def test_an_entry_is_split_at_its_last_colon_and_its_name_kept_as_it_is(name: str) -> None:
    cache = CalibrationCache.parse(HEADER + f"{name}: 3c010204\n".encode())
    assert list(cache.scales) == [name]
    assert cache.tolerated == ()


def test_a_header_alone_is_a_cache_without_tensors() -> None:
    assert CalibrationCache.parse(HEADER).scales == {}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_like_object_is_read_as_tensorrt_hands_over_a_memoryview(
    kind: type[bytes | bytearray | memoryview],
) -> None:
    assert list(CalibrationCache.parse(kind(HEADER + b"x: 0\n")).scales) == ["x"]


# --- what is tolerated is reported --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (b"\xef\xbb\xbf" + HEADER + b"x: 3c010204\n", "byte order mark (line 1)"),
        (HEADER + b"x: 3c010204\r\n", "line ends with CR LF (line 2)"),
        (HEADER + b"x: 3c010204", "no line end after the last line (line 2)"),
        (HEADER + b"\nx: 3c010204\n", "blank line (line 2)"),
        (b" \t\n" + HEADER + b"x: 3c010204\n", "blank line (line 1)"),
        (HEADER + b"x: 3C010204\n", "value in upper case, with 0x or with leading zeros (line 2)"),
        (HEADER + b"x: 0x3c010204\n", "value in upper case, with 0x or with leading zeros (line 2)"),
        (HEADER + b"x: 000003c010204\n", "value in upper case, with 0x or with leading zeros (line 2)"),
        (HEADER + b"x:3c010204\n", "not exactly one space before the value and none after it (line 2)"),
        (HEADER + b"x:  3c010204\t\n", "not exactly one space before the value and none after it (line 2)"),
        (HEADER + b"x: 1\nx: 3c010204\n", "tensor 'x' again, its last value counts (line 3)"),
        (HEADER.replace(b"2\n", b"2 \n") + b"x: 3c010204\n", "spaces around the header (line 1)"),
    ],
)
def test_a_deviation_is_read_reported_and_gone_when_written(data: bytes, note: str) -> None:
    assert only_note(data) == note
    assert CalibrationCache.parse(data).format() == HEADER + b"x: 3c010204\n"


@pytest.mark.parametrize(
    ("header", "version", "algorithm", "note"),
    [
        ("1", "1", "", "header '1' without a calibrator, as TensorRT 3 and 4 wrote it (line 1)"),
        (
            "TRT-8XXX-EntropyCalibration2",
            "8XXX",
            "EntropyCalibration2",
            "version '8XXX' in the header is not a number (line 1)",
        ),
        (
            "TRT-7000-My-Own",
            "7000",
            "My-Own",
            "calibrator 'My-Own' in the header is not one of TensorRT's (line 1)",
        ),
    ],
)
def test_an_odd_header_is_kept_and_reported(header: str, version: str, algorithm: str, note: str) -> None:
    data = f"{header}\nx: 0\n".encode()
    cache = CalibrationCache.parse(data)
    assert (cache.version, cache.algorithm, cache.header) == (version, algorithm, header)
    assert only_note(data) == note
    assert cache.format() == data


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("version", ["7000", "8601", "100300"])
def test_a_usual_header_gives_version_and_algorithm(version: str, algorithm: str) -> None:
    cache = CalibrationCache.parse(f"TRT-{version}-{algorithm}\n".encode())
    assert (cache.version, cache.algorithm, cache.tolerated) == (version, algorithm, ())


def test_a_deviation_of_every_line_is_reported_once() -> None:
    data = b"TRT-8601-MinMaxCalibration\r\na: 0\r\nb: 0\r\n"
    assert CalibrationCache.parse(data).tolerated == ("line ends with CR LF (line 1 and 2 more)",)


def test_a_repeated_tensor_keeps_its_first_place_and_its_last_value() -> None:
    cache = CalibrationCache.parse(HEADER + b"x: 1\ny: 2\nx: 3\n")
    assert cache.format() == HEADER + b"x: 3\ny: 2\n"


def test_a_cache_that_was_tolerated_equals_the_clean_one() -> None:
    assert CalibrationCache.parse(HEADER + b"x: 00") == CalibrationCache.parse(HEADER + b"x: 0\n")


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "no colon at all",
        "x: ",
        "x:",
        ": 3c010204",
        "x: 3c01020g",
        "x: 13c010204",
        "x: 0x",
        "x: -1",
        "x: +1",
        "x: 3c_01",
        "x: 3c01 0204",
        "x: 0.0078",
        "x: \u0661",
        "x: 3c010204 # note",
        "x\ry: 3c010204",
    ],
)
def test_a_line_that_is_no_entry_is_named_with_file_and_number(line: str) -> None:
    with pytest.raises(CacheFormatError) as caught:
        CalibrationCache.parse(HEADER + f"ok: 0\n{line}\n".encode(), name="model.cache")
    assert str(caught.value) == f"model.cache:3: expected '<tensor>: <hex>', got {line!r}"


@pytest.mark.parametrize(
    "line",
    [
        "data: 3c010204",
        "TRT-8601",
        "TRT--EntropyCalibration2",
        "TRT-8601-",
        "trt-8601-EntropyCalibration2",
        "{",
        "-1",
    ],
)
def test_a_first_line_that_is_no_header_is_named(line: str) -> None:
    with pytest.raises(CacheFormatError) as caught:
        CalibrationCache.parse(f"\n{line}\n".encode(), name="model.cache")
    expected = "expected a header such as 'TRT-8601-EntropyCalibration2'"
    assert str(caught.value) == f"model.cache:2: {expected}, got {line!r}"


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n\n"])
def test_an_empty_file_is_refused(data: bytes) -> None:
    with pytest.raises(CacheFormatError, match=r"^model\.cache: expected a calibration cache, got an empty file$"):
        CalibrationCache.parse(data, name="model.cache")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"ptrt\x8f\x00\x00\x00", 1),
        ("TRT-8601-EntropyCalibration2\n".encode("utf-16"), 1),
        (HEADER + b"x: 0\n\xff: 0\n", 3),
    ],
    ids=["an engine", "UTF-16", "Latin-1"],
)
def test_bytes_that_are_not_text_are_refused(data: bytes, line: int) -> None:
    with pytest.raises(CacheFormatError, match=rf"^model\.cache:{line}: .*not UTF-8"):
        CalibrationCache.parse(data, name="model.cache")


def test_bytes_without_a_file_are_called_bytes() -> None:
    with pytest.raises(CacheFormatError, match=r"^<bytes>:1: "):
        CalibrationCache.parse(b"x\n")


def test_a_very_long_bad_line_is_shortened_in_the_message() -> None:
    for length, whole in ((119, True), (120, True), (121, False), (100_000, False)):
        with pytest.raises(CacheFormatError) as caught:
            CalibrationCache.parse(HEADER + b"x" * length)
        shown = str(caught.value).partition(", got ")[2]
        assert (shown == repr("x" * length)) == whole
        assert len(shown) == len("''") + min(length, 120)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(HEADER.__add__))
def test_any_bytes_give_a_cache_that_survives_writing_or_one_of_our_errors(data: bytes) -> None:
    try:
        cache = CalibrationCache.parse(data)
    except TrtcalError:
        return
    assert CalibrationCache.parse(cache.format()) == cache


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "^a tensor without a name"),
        ("a\nb", "holds a line end"),
        ("a\rb", "holds a line end"),
        ("\ud800", "^tensor name .* cannot be written as UTF-8"),
    ],
)
def test_a_name_that_cannot_be_written_is_refused(name: str, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        CalibrationCache("8601", "EntropyCalibration2", {name: np.float32(1)})


@pytest.mark.parametrize(
    ("version", "algorithm"),
    [
        ("", "EntropyCalibration2"),
        ("8-6", "X"),
        ("8601", "A\nb: 0"),
        ("8XXX", ""),
        ("8601", "A "),
        ("8601", "\udc80"),
    ],
)
def test_a_header_that_cannot_be_written_is_refused(version: str, algorithm: str) -> None:
    with pytest.raises(CacheError, match=r"^(expected a )?header"):
        CalibrationCache(version, algorithm, {})


# --- values -------------------------------------------------------------------------------------------


def test_a_cache_cannot_be_changed() -> None:
    scales = {"x": np.float32(1)}
    cache = CalibrationCache("8601", "EntropyCalibration2", scales)
    with pytest.raises(TypeError):
        cast(dict[str, np.float32], cache.scales)["x"] = np.float32(2)
    with pytest.raises(AttributeError):
        cache.version = "1"  # type: ignore[misc]
    scales["x"] = np.float32(3)
    assert cache.scales["x"] == 1


def test_scales_are_float32_whatever_they_were_given_as() -> None:
    cache = CalibrationCache("8601", "EntropyCalibration2", cast(Mapping[str, np.float32], {"x": 0.1}))
    assert type(cache.scales["x"]) is np.float32


def test_caches_are_equal_when_they_write_the_same_file() -> None:
    a, b = (CalibrationCache.parse(HEADER + b"x: 7fc00001\ny: 0\n") for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    assert len({a, b, CalibrationCache.parse(HEADER)}) == 2
    assert hash(a) != hash(CalibrationCache.parse(HEADER))
    assert a != CalibrationCache.parse(HEADER + b"y: 0\nx: 7fc00001\n")
    assert a != CalibrationCache.parse(HEADER + b"x: 7fc00002\ny: 0\n")
    assert a != a.format()


def test_a_cache_is_copied_and_pickled_whole() -> None:
    cache = CalibrationCache.parse(HEADER + b"x: 00")
    for twin in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)):
        assert twin == cache
        assert twin.tolerated == cache.tolerated


@given(st.dictionaries(tensor_names, st.floats(0, width=32, allow_infinity=False)))
def test_an_amax_becomes_a_scale_by_one_float32_division(amax: dict[str, float]) -> None:
    cache = CalibrationCache.from_amax({name: np.float32(value) for name, value in amax.items()})
    expected = {name: bits(np.float32(value) / np.float32(127)) for name, value in amax.items()}
    assert {name: bits(scale) for name, scale in cache.scales.items()} == expected
    assert list(cache.scales) == list(amax)


@pytest.mark.parametrize(
    ("amax", "text"), [(1.0, b"3c010204"), (1 + 0.5 / 2048, b"3c010a14"), (0.0, b"0"), (-0.0, b"0")]
)
def test_amax_gives_the_bits_that_tensorrt_writes(amax: float, text: bytes) -> None:
    cache = CalibrationCache.from_amax({"x": np.float32(amax)})
    assert cache.format() == HEADER + b"x: " + text + b"\n"


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_amax_comes_back_to_one_rounding(amax: float) -> None:
    cache = CalibrationCache.from_amax({"x": np.float32(amax)})
    assert cache.amax("x").dtype == np.float32
    np.testing.assert_allclose(cache.amax("x"), amax, rtol=2.0**-23)


@pytest.mark.parametrize("value", [0x7F800000, 0x7FC00000, 0x7F800001, 0x7F7FFFFF])
def test_amax_of_a_scale_without_a_finite_one_is_not_finite(value: int) -> None:
    cache = CalibrationCache.parse(HEADER + f"x: {value:x}\n".encode())
    assert not np.isfinite(cache.amax("x"))


def test_amax_of_an_unknown_tensor_names_the_nearest() -> None:
    cache = CalibrationCache.from_amax({"conv1_output": np.float32(1), "data": np.float32(1)})
    with pytest.raises(CacheError, match=r"no scale for tensor 'conv_output' among its 2; .* 'conv1_output'"):
        cache.amax("conv_output")
    with pytest.raises(CacheError, match=r"among its 2$"):
        cache.amax("zzz")


def test_a_cache_maps_tensors_to_scales() -> None:
    cache = CalibrationCache.from_amax({"b": np.float32(127), "a": np.float32(254)})
    assert (len(cache), list(cache), dict(cache)) == (2, ["b", "a"], {"b": 1, "a": 2})
    assert cache["a"] == cache.get("a") == 2
    assert ("a" in cache, "c" in cache, cache.get("c")) == (True, False, None)
    with pytest.raises(KeyError) as missing:
        cache["c"]
    assert isinstance(missing.value, CacheError)
    assert str(missing.value).startswith("the cache has no scale for tensor 'c' among its 2")


def test_a_large_cache_fits_a_screen() -> None:
    cache = CalibrationCache.from_amax({f"tensor {number}": np.float32(1) for number in range(1000)})
    assert repr(cache).startswith(
        "CalibrationCache(version='8601', algorithm='EntropyCalibration2', scales={'tensor 0'"
    )
    assert "... 998 more}" in repr(cache)
    assert len(repr(cache)) < 200


@pytest.mark.parametrize("amax", [-1.0, float("nan"), float("inf"), 1e39])
def test_an_amax_that_no_tensor_can_have_is_refused_by_name(amax: float) -> None:
    values = cast(Mapping[str, np.float32], {"fine": 1.0, "bad": amax})
    with pytest.raises(ValueError, match="tensor 'bad' must be finite and not negative, got "):
        CalibrationCache.from_amax(values)


def test_the_header_is_that_of_the_tensorrt_and_calibrator_asked_for() -> None:
    cache = CalibrationCache.from_amax({}, trt_version="10.3.0", algorithm="MinMaxCalibration")
    assert cache.format() == b"TRT-100300-MinMaxCalibration\n"
    with pytest.raises(ValueError, match=r"EntropyCalibration2, .*got 'entropy'"):
        CalibrationCache.from_amax({}, algorithm="entropy")


def test_tensorrt_11_reads_no_cache_and_the_error_says_what_it_reads() -> None:
    assert CalibrationCache.from_amax({}, trt_version="10.99.99").version == "109999"
    for version in ("11.0", "11.0.0", "12.1"):
        with pytest.raises(ValueError, match=rf"TensorRT {version} .*Q/DQ"):
            CalibrationCache.from_amax({}, trt_version=version)


# --- versions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "number"),
    [
        ("7.0.0", "7000"),
        ("8.0", "8000"),
        ("8.6.1", "8601"),
        ("8.5.1.7", "8501"),
        ("10.3", "100300"),
        ("10.3.0", "100300"),
        ("10.0.1", "100001"),
        ("10.14.1", "101401"),
    ],
)
def test_a_tensorrt_version_has_this_number(version: str, number: str) -> None:
    assert version_number(version) == number


@given(st.integers(1, 30), st.integers(0, 99), st.integers(0, 99))
def test_a_number_gives_its_version_back(major: int, minor: int, patch: int) -> None:
    version = f"{major}.{minor % 10 if major < 10 else minor}.{patch}"
    assert dotted_version(version_number(version)) == version


@pytest.mark.parametrize("version", ["", "8", "8.6.x", "v8.6.1", "8.6.1.2.3", "8.10.0", "10.100.0", "8.6.100", "0.1.0"])
def test_what_is_no_tensorrt_version_is_refused(version: str) -> None:
    with pytest.raises(ValueError, match="TensorRT version"):
        version_number(version)


@pytest.mark.parametrize("number", ["", "1", "999", "8XXX", "10300", "010300", "-8601"])
def test_what_is_no_version_number_is_refused(number: str) -> None:
    with pytest.raises(ValueError, match="such as 8601 or 100300"):
        dotted_version(number)


# --- files --------------------------------------------------------------------------------------------


def test_a_saved_cache_loads_equal(tmp_path: Path) -> None:
    cache = CalibrationCache.parse(HEADER + b"x: 3c010204\n")
    cache.save(tmp_path / "model.cache")
    assert (tmp_path / "model.cache").read_bytes() == cache.format()
    assert CalibrationCache.load(str(tmp_path / "model.cache")) == cache


def test_a_bad_file_is_named_with_its_path_and_line(tmp_path: Path) -> None:
    path = tmp_path / "model.cache"
    path.write_bytes(HEADER + b"x 0\n")
    with pytest.raises(CacheFormatError) as caught:
        CalibrationCache.load(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"missing\.cache: cannot be read: No such file"):
        CalibrationCache.load(tmp_path / "missing.cache")
    with pytest.raises(CacheError, match="cannot be read: "):
        CalibrationCache.load(tmp_path)


def test_saving_where_nothing_can_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        CalibrationCache.parse(HEADER).save(tmp_path / "missing" / "model.cache")

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from models import conv_model, images, save
from onnxruntime.quantization import CalibrationMethod, calibrate, write_calibration_table
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.CalTableFlatBuffers.TrtTable import TrtTable

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.formats import FORMATS, detect, flatbuffer, load, output_format
from trtcal.cache.formats.qdq_model import save_float_model
from trtcal.errors import CacheError, CacheFormatError, ModelError, OutputError
from trtcal.model.runner import OrtRunner
from trtcal.qdq.insert import insert_qdq

WRITABLE = [name for name, row in FORMATS.items() if row.format is not None]
AMAX = [name for name in WRITABLE if name not in ("tensorrt", "nvdla")]  # those that hold amax, as decimal text
JSON = ["ort-json", "tao", "ppq", "mqbench", "dipoorlet", "nvdla"]
onnxruntime_can = pytest.mark.skipif(
    not hasattr(calibrate, "load_tensors_data"),
    reason="this ONNX Runtime cannot write what its own calibrators give, or not read it",
)
every_writable = pytest.mark.parametrize("format", WRITABLE)

names = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1, max_size=20) | st.sampled_from(
    ["a: b", "scope::conv:0", "123", "(Unnamed Layer* 4) [Convolution]_output", " a ", "1.5", "ü/漢字", "x: 1", "{"]
)
finite = st.integers(0, 0x7F7FFFFF) | st.sampled_from([0, 0x3C010204, 0x3C010A14, 1, 0x7F7FFFFF, 0x00800000])


def as_scales(bits: dict[str, int]) -> dict[str, np.float32]:
    values = np.array(list(bits.values()), np.uint32).view(np.float32)
    return dict(zip(bits, values, strict=True))


def cache_of(bits: dict[str, int]) -> CalibrationCache:
    return CalibrationCache("8601", "EntropyCalibration2", as_scales(bits))


def of_amax(amax: dict[str, float]) -> CalibrationCache:
    return CalibrationCache.from_amax({name: np.float32(value) for name, value in amax.items()})


def written(cache: CalibrationCache, format: str) -> bytes:
    write = FORMATS[format].format
    assert write is not None
    return write(cache)


def parsed(data: bytes, format: str) -> CalibrationCache:
    return FORMATS[format].parse(data, "file")


def qdq_model() -> onnx.ModelProto:
    model = conv_model()
    tensors = ["image", "conv", "relu", "pool", "sum", "flat", "logits"]
    return insert_qdq(model, {name: np.float32(0.01 * (i + 1)) for i, name in enumerate(tensors)}).model


# --- round trips --------------------------------------------------------------------------------------


@every_writable
@given(bits=st.dictionaries(names, finite, min_size=1, max_size=6))
def test_every_format_gives_every_scale_back_bit_for_bit(format: str, bits: dict[str, int]) -> None:
    cache = cache_of(bits)
    again = parsed(written(cache, format), format)
    assert again == cache  # the bytes of a TensorRT cache: names, order, bits of the scales, header
    assert not again.tolerated


@pytest.mark.parametrize("format", ["ort-flatbuffers", "ort-text", "int8api", "tensorrt"])
def test_inf_and_nan_come_back_where_numbers_are_text(format: str) -> None:
    again = parsed(written(cache_of({"a": 0x7F800000, "b": 0x7FC00001}), format), format)
    assert np.isinf(again.scales["a"])
    assert np.isnan(again.scales["b"])


@pytest.mark.parametrize("format", JSON)
@pytest.mark.parametrize("bits", [0x7F800000, 0x7FC00000])
def test_inf_and_nan_are_refused_by_name_where_json_has_none(format: str, bits: int) -> None:
    with pytest.raises(CacheError, match=r"tensor 'bad' has the scale (inf|nan), which JSON cannot hold"):
        written(cache_of({"fine": 0, "bad": bits}), format)


@pytest.mark.parametrize("format", [name for name in WRITABLE if name != "tensorrt"])
def test_a_negative_scale_is_refused_by_name(format: str) -> None:
    with pytest.raises(CacheError, match=r"tensor 'bad' has the scale -1\.0"):
        written(cache_of({"bad": 0xBF800000}), format)


@pytest.mark.parametrize("format", [name for name in AMAX if name not in JSON])
@given(amax=st.floats(0, 2.0**100, width=32))
def test_an_amax_is_written_so_that_float32_readers_lose_no_more_than_one_unit(format: str, amax: float) -> None:
    cache = of_amax({"x": amax})
    text = flatbuffer.parse(written(cache, format))[0][1] if format == "ort-flatbuffers" else ""
    text = text or written(cache, format).decode().split()[-1]
    assert np.float32(text) / np.float32(127) == pytest.approx(cache.scales["x"], rel=2.0**-23, abs=1e-45)


@pytest.mark.parametrize(("amax", "text"), [(1.0, "1.0"), (2.5, "2.5"), (0.0, "0.0"), (6.0, "6.0"), (100.0, "100.0")])
def test_an_amax_is_written_with_few_digits(amax: float, text: str) -> None:
    assert written(of_amax({"x": amax}), "int8api") == f"x: {text}\n".encode()


# --- the text of each format, byte for byte -----------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "tree"),
    [
        ("tao", {"tensor_scales": {"a: b": 1.0, "c": 2.5}}),
        ("ppq", {"act_quant_info": {"a: b": 1.0, "c": 2.5}}),
        ("mqbench", {"tensorrt": {"blob_range": {"a: b": 1.0, "c": 2.5}}}),
        ("dipoorlet", {"blob_range": {"a: b": 1.0, "c": 2.5}}),
        (
            "nvdla",
            {
                "a: b": {"scale": 0.007874016, "min": 0, "max": 0, "offset": 0},
                "c": {"scale": 0.01968504, "min": 0, "max": 0, "offset": 0},
            },
        ),
    ],
)
def test_json_formats_hold_what_their_readers_look_for(format: str, tree: dict[str, object]) -> None:
    cache = of_amax({"a: b": 1.0, "c": 2.5})
    assert json.loads(written(cache, format)) == tree
    assert parsed(json.dumps(tree).encode(), format) == cache


def test_text_formats_hold_a_tensor_per_line() -> None:
    cache = of_amax({"a: b": 1.0, "c": 2.5})
    assert written(cache, "int8api") == b"a: b: 1.0\nc: 2.5\n"
    assert written(cache, "ort-text") == b"a: b 1.0\nc 2.5\n"


def test_a_name_that_begins_with_a_byte_order_mark_keeps_it() -> None:
    cache = parsed(b"\n\xef\xbb\xbfc: 1\n", "int8api")
    assert list(cache.scales) == ["\ufeffc"]
    assert parsed(written(cache, "int8api"), "int8api").scales == cache.scales


def test_nvdla_ranges_count_where_there_is_no_scale() -> None:
    tree = {
        "a": {"min": -2, "max": 1.0, "offset": 0},
        "b": {"min": 0, "max": 0.5},
        "c": {"scale": 0, "min": -9, "max": 9},
    }
    assert parsed(json.dumps(tree).encode(), "nvdla") == of_amax({"a": 2, "b": 0.5, "c": 0})


def test_numbers_of_tao_become_the_scales_that_tao_s_own_exporter_writes() -> None:
    # calibration_cache_from_dict: pack("f", value / 127.0) as hex
    cache = parsed(b'{"tensor_scales": {"x": 2.008338451385498, "y": 151.0368686}}', "tao")
    assert cache.format() == b"TRT-8601-EntropyCalibration2\nx: 3c818bb5\ny: 3f9839e4\n"


# --- ONNX Runtime -------------------------------------------------------------------------------------


def tensors_data(ranges: dict[str, tuple[float, float]], method: CalibrationMethod) -> TensorsData:
    return TensorsData(
        method,
        {
            name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
            for name, (low, high) in ranges.items()
        },
    )


@onnxruntime_can
def test_the_three_files_that_onnxruntime_writes_are_read(tmp_path: Path) -> None:
    ranges = {"x:0": (-1.0, 2.25), "b c": (0.0, 0.1), "a": (0.0, 6.0)}
    write_calibration_table(tensors_data(ranges, CalibrationMethod.Entropy), str(tmp_path))
    expected = of_amax({"x:0": 2.25, "b c": 0.1, "a": 6.0})
    cache, format = load(tmp_path / "calibration.json")
    assert (cache, format) == (expected, "ort-json")
    for file, expected_format in (("calibration.flatbuffers", "ort-flatbuffers"), ("calibration.cache", "ort-text")):
        cache, format = load(tmp_path / file)
        assert format == expected_format
        assert dict(cache.scales) == dict(expected.scales)
        assert any("calibration.json" in note for note in cache.tolerated)


@onnxruntime_can
def test_onnxruntime_s_json_keeps_the_end_that_its_other_files_lose(tmp_path: Path) -> None:
    write_calibration_table(tensors_data({"x": (-5.0, 1.0)}, CalibrationMethod.MinMax), str(tmp_path))
    cache, _ = load(tmp_path / "calibration.json")
    assert cache.amax("x") == 5
    assert cache.algorithm == "MinMaxCalibration"
    cache, _ = load(tmp_path / "calibration.flatbuffers")
    assert cache.amax("x") == 1
    assert cache.tolerated


@onnxruntime_can
def test_a_negative_range_of_onnxruntime_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write_calibration_table(tensors_data({"x": (-5.0, -1.0)}, CalibrationMethod.MinMax), str(tmp_path))
    for file in ("calibration.flatbuffers", "calibration.cache"):
        with pytest.raises(CacheFormatError, match=r"negative number.*calibration\.json"):
            load(tmp_path / file)


@onnxruntime_can
@pytest.mark.parametrize("framed", [True, False])
def test_every_layout_of_onnxruntime_s_json_is_read(tmp_path: Path, framed: bool) -> None:
    data = tensors_data({"x": (-5.0, 1.0)}, CalibrationMethod.Percentile)
    write_calibration_table(data if framed else data.data, str(tmp_path))
    old = tmp_path / "old.json"
    old.write_text('{"x": [-5.0, 1.0]}')
    for file in (tmp_path / "calibration.json", old):
        assert load(file) == (of_amax({"x": 5}), "ort-json")


@onnxruntime_can
def test_onnxruntime_reads_what_we_write(tmp_path: Path) -> None:
    cache = CalibrationCache.parse(b"TRT-8601-MinMaxCalibration\nx: y: 3c010204\nz: 0\n")
    table = TrtTable.GetRootAs(written(cache, "ort-flatbuffers"))
    pairs = [(table.Dict(i).Key(), table.Dict(i).Value()) for i in range(table.DictLength())]
    assert pairs == [(b"x: y", b"1.0"), (b"z", b"0.0")]

    (tmp_path / "calibration.json").write_bytes(written(cache, "ort-json"))
    data = calibrate.load_tensors_data(tmp_path / "calibration.json")
    assert data.calibration_method is CalibrationMethod.MinMax
    assert data["x: y"].range_value == (-1, 1)
    write_calibration_table(data, str(tmp_path))  # round through ONNX Runtime itself
    assert load(tmp_path / "calibration.flatbuffers")[0].scales == cache.scales
    assert load(tmp_path / "calibration.json")[0] == cache


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=5))
def test_a_flatbuffer_gives_its_pairs_back_and_onnxruntime_reads_the_same(pairs: list[tuple[str, str]]) -> None:
    def encodable(text: str) -> bool:
        return not any("\ud800" <= c <= "\udfff" for c in text)

    pairs = [pair for pair in pairs if all(map(encodable, pair))]
    data = flatbuffer.format(pairs)
    assert flatbuffer.parse(data) == pairs
    table = TrtTable.GetRootAs(data)
    entries = [table.Dict(i) for i in range(table.DictLength())]
    assert [(entry.Key().decode(), entry.Value().decode()) for entry in entries] == pairs


# --- Q/DQ models --------------------------------------------------------------------------------------


def test_a_qdq_model_gives_the_scales_of_its_activations(tmp_path: Path) -> None:
    path = save(qdq_model(), tmp_path / "m.onnx")
    cache, format = load(path)
    assert format == "qdq"
    assert dict(cache.scales) == {"image": np.float32(0.01), "flat": np.float32(0.06)}


def test_the_float_model_comes_out_of_a_qdq_model(tmp_path: Path) -> None:
    path = save(qdq_model(), tmp_path / "m.onnx")
    assert save_float_model(path, tmp_path / "f.onnx") == (tmp_path / "f.onnx",)
    model = onnx.load(tmp_path / "f.onnx")
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in conv_model().graph.node]
    x = images(2)
    with OrtRunner(model) as after, OrtRunner(conv_model()) as before:
        np.testing.assert_array_equal(after({"image": x})["logits"], before({"image": x})["logits"])


def test_the_float_model_keeps_weights_beside_it_there(tmp_path: Path) -> None:
    onnx.save(qdq_model(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="weights")
    files = save_float_model(tmp_path / "m.onnx", tmp_path / "f.onnx")
    assert [file.name for file in files] == ["f.onnx", "f.onnx.data"]
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in conv_model().graph.initializer}
    for tensor in onnx.load(tmp_path / "f.onnx").graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), weights[tensor.name])


def test_scales_that_lie_outside_the_model_are_read_from_there(tmp_path: Path) -> None:
    onnx.save(qdq_model(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="weights")
    assert dict(load(tmp_path / "m.onnx")[0].scales) == {"image": np.float32(0.01), "flat": np.float32(0.06)}
    (tmp_path / "weights").rename(tmp_path / "gone")
    with pytest.raises(CacheFormatError, match=r"m\.onnx: weights '.*_scale': the file where they lie cannot be read"):
        load(tmp_path / "m.onnx")
    (tmp_path / "below").mkdir()
    path = (tmp_path / "m.onnx").rename(tmp_path / "below" / "m.onnx")
    (tmp_path / "below" / "weights").symlink_to(tmp_path / "gone")
    with pytest.raises(CacheFormatError, match=r"m\.onnx: its external data file 'weights' links to .*gone, outside"):
        load(path)


def test_the_float_model_never_replaces_the_one_it_comes_from(tmp_path: Path) -> None:
    path = save(qdq_model(), tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="is an input of this command"):
        save_float_model(path, path)


def test_a_float_model_is_no_source_of_ranges(tmp_path: Path) -> None:
    path = save(conv_model(), tmp_path / "m.onnx")
    with pytest.raises(CacheFormatError, match=r"m\.onnx: the model has no QuantizeLinear"):
        load(path)
    with pytest.raises(ModelError, match="cannot be read"):
        save_float_model(tmp_path / "gone.onnx", tmp_path / "f.onnx")


# --- telling formats apart ----------------------------------------------------------------------------


@every_writable
@given(bits=st.dictionaries(st.text("ab/:_ .1漢", min_size=1).map("x{}x".format), finite, min_size=1, max_size=4))
def test_what_we_write_is_recognised_from_its_content(format: str, bits: dict[str, int]) -> None:
    assert detect(written(cache_of(bits), format)) == format


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (b"1\nx: 3c010204\n", "tensorrt"),
        (b"\xef\xbb\xbfTRT-8601-EntropyCalibration2\r\n", "tensorrt"),
        (b"\xef\xbb\xbf\r\nx: 1.5\r\n", "int8api"),
        (b"x:0: 1\n", "int8api"),
        (b"x:0 1\n", "ort-text"),
        (b"data_0 2.008338\n", "ort-text"),
        (b'\xef\xbb\xbf {"tensor_scales": {}}', "tao"),
        (b'{"x": {"min": 0, "max": 1}}', "nvdla"),
    ],
)
def test_files_of_other_tools_are_recognised(data: bytes, format: str) -> None:
    assert detect(data) == format


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.onnx", "qdq"),
        ("A.FLATBUFFERS", "ort-flatbuffers"),
        ("calib.table", "tensorrt"),
        ("cal.bin", "tensorrt"),
        ("r.txt", "int8api"),
    ],
)
def test_the_name_decides_where_the_content_does_not(name: str, format: str) -> None:
    assert detect(b"?", name) == format


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not recognised as any of tensorrt, "),
        (b"hello", "not recognised"),
        (b"{}", "not recognised"),
        (b"[1]", "not recognised"),
        (b'{"a":\n 1,}', "some:2: expected JSON"),
        (b"\xff\xfe", "not recognised"),
    ],
)
def test_what_is_no_format_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CacheFormatError, match=message):
        detect(data, "some")


@pytest.mark.parametrize(
    ("path", "format", "expected"),
    [
        ("x.cache", None, "tensorrt"),
        ("x.json", "tao", "tao"),
        ("calibration.flatbuffers", None, "ort-flatbuffers"),
        ("x.txt", "ort-text", "ort-text"),
    ],
)
def test_the_format_to_write_is_the_one_named_or_that_of_the_file_name(
    path: str, format: str | None, expected: str
) -> None:
    assert output_format(path, format) == expected


@pytest.mark.parametrize(
    ("path", "format", "message"),
    [
        ("x.json", None, r"its name does not say in which format; name one \(--to\) of tensorrt, "),
        ("x.onnx", None, "trtcal qdq"),
        ("x.cache", "qdq", "trtcal qdq"),
        ("x.cache", "trt", "unknown format 'trt'"),
    ],
)
def test_a_format_that_cannot_be_written_is_refused(path: str, format: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        output_format(path, format)


# --- bad files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=b"\x00\xff\xfe noise")
@example(data=b"{" * 100_000)
@example(data=b'{"tensor_scales": {"x": true}}')
def test_any_bytes_are_a_cache_or_a_format_error_that_names_the_file(format: str, data: bytes) -> None:
    try:
        cache = FORMATS[format].parse(data, "noise.bin")
    except CacheFormatError as error:
        assert str(error).startswith("noise.bin")  # noqa: PT017
    else:
        assert isinstance(cache, CalibrationCache)


SEEDS: list[Callable[[], bytes]] = [
    *((lambda format=format: written(of_amax({"a: b": 1, "ü": 0, "3": 6.5}), format)) for format in WRITABLE),
    lambda: qdq_model().SerializeToString(),
]


@given(st.data())
def test_damaged_files_are_a_cache_or_a_format_error(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SEEDS))())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    for row in FORMATS.values():
        try:
            row.parse(bytes(content), "damaged")
        except CacheFormatError as error:
            assert str(error).startswith("damaged")  # noqa: PT017


@pytest.mark.parametrize(
    ("format", "data", "message"),
    [
        ("int8api", b"a: 1\nb: x\n", "f:2: expected a number, got 'x'"),
        ("int8api", b"a: 1_0\n", "expected a number"),
        ("int8api", b"a 1\n", "expected '<tensor>: <amax>', got 'a 1'"),
        ("int8api", b": 1\n", "expected '<tensor>: <amax>'"),
        ("int8api", b"a: -1\n", "f:1: expected the largest .* negative"),
        ("int8api", b"a: 1e300\n", "f:1: expected a number that float32 holds"),
        ("int8api", b"", "empty file"),
        ("ort-text", b"a\n", "expected '<tensor> <amax>'"),
        ("ort-text", b"\xff 1\n", "f:1: .*not UTF-8"),
        ("tao", b'{"tensor_scales": {"x": "1"}}', "tensor 'x': expected a number, got '1'"),
        ("tao", b'{"tensor_scales": {"x": true}}', "expected a number, got 'True'"),
        ("tao", b'{"tensor_scales": {"x": 1' + b"0" * 400 + b"}}", "number that float32 holds"),
        ("tao", b'{"tensor_scales": {"x": 1, "x": 2}}', "a key that comes twice"),
        ("tao", b'{"tensor_scales": {"": 1}}', "a tensor without a name"),
        ("tao", b'{"tensor_scales": {"a\\nb": 1}}', "holds a line end"),
        ("tao", b'{"tensor_scales": {"\\ud800": 1}}', "cannot be written as UTF-8"),
        ("tao", b'{"blob_range": {}}', "object of ranges under 'tensor_scales'"),
        ("mqbench", b'{"tensorrt": {}}', "'tensorrt' -> 'blob_range'"),
        ("nvdla", b'{"x": {"scale": 1, "offset": 3}}', "expected the offset 0"),
        ("nvdla", b'{"x": {"min": 1}}', "a scale, or min and max"),
        ("nvdla", b'{"x": {"scale": -1}}', "negative"),
        ("nvdla", b"[]", "an entry for each tensor"),
        ("ort-json", b'{"x": [1]}', "tensor 'x': expected the lowest and the highest"),
        ("ort-json", b'{"x": {"lowest": [1, 2], "highest": [1, 2]}}', "has 2 ranges"),
        ("ort-json", b'{"x": {"avg": 1, "std": 1}}', "expected a number, got 'None'"),
        ("ort-json", b'{"CLS": "TensorsData"}', "a range for each tensor"),
        ("ort-flatbuffers", b"\x10\x00\x00\x00", "calibration table of ONNX Runtime"),
        ("qdq", b"TRT-", "is not an ONNX model"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(format: str, data: bytes, message: str) -> None:
    with pytest.raises(CacheFormatError, match=f"^f.*{message}|^{message}"):
        FORMATS[format].parse(data, "f")


def test_a_name_with_a_null_byte_or_colon_survives_every_format() -> None:
    cache = of_amax({"a\0b": 1, "x::y:0": 2, "trailing ": 3})
    for format in WRITABLE:
        assert parsed(written(cache, format), format) == cache


def test_repeated_tensors_are_noted_and_the_last_counts() -> None:
    for format, data in (
        ("int8api", b"a: 1\na: 2\n"),
        ("ort-text", b"a 1\na 2\n"),
        ("ort-flatbuffers", flatbuffer.format([("a", "1"), ("a", "2")])),
    ):
        cache = parsed(data, format)
        assert cache.amax("a") == 2
        assert any("'a' again, its last value counts" in note for note in cache.tolerated)


def test_load_names_a_file_that_cannot_be_read_and_a_format_that_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"gone\.cache: cannot be read"):
        load(tmp_path / "gone.cache")
    with pytest.raises(ValueError, match="unknown format 'x'; choose one of tensorrt, qdq"):
        load(tmp_path / "gone.cache", "x")

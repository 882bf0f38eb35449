"""Files made to hurt: to fill the memory, to reach out of their folder, to run something."""

from __future__ import annotations

import ast
import os
import re
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, load_whole_model, make_model
from onnx import helper
from PIL import Image

from trtcal.cache.formats import FORMATS, detect, flatbuffer
from trtcal.errors import CacheFormatError, DataError, ModelError
from trtcal.files.terminal import cell
from trtcal.model.read import load_model
from trtcal.qdq.insert import insert_qdq
from trtcal.qdq.weights import weight_clipping_cost
from trtcal.samples import arrays
from trtcal.samples.arrays import ArrayFolder
from trtcal.samples.batches import Batches
from trtcal.samples.images import ImageFolder
from trtcal.samples.labels import class_numbers, read_labels
from trtcal.samples.preprocess import Preprocess
from trtcal.samples.streams import LoaderScript
from trtcal.spec import InputSpec

ROOT = Path(__file__).parents[2]
X = InputSpec("x", np.dtype("f4"), (3, None))


def npy_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zip_bomb(path: Path, members: dict[str, tuple[bytes, int]]) -> None:
    """An archive whose members are a beginning and then so many zeros, a thousandth of them on the disk."""
    block = 1 << 24
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = squeezer.compress(bytes(block)) + squeezer.flush(zlib.Z_FULL_FLUSH)  # may be repeated as it is
    directory = b""
    with open(path, "wb") as file:
        for name, (head, size) in members.items():
            assert size % block == 0
            squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
            content = (
                squeezer.compress(head) + squeezer.flush(zlib.Z_FULL_FLUSH) + zeros * (size // block) + b"\x03\x00"
            )
            checksum = 0 if size else zlib.crc32(head)  # of the zeros it would come too late anyway
            sizes = (checksum, len(content), len(head) + size, len(name), 0)
            directory += struct.pack(
                "<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 8, 0, 0, *sizes, 0, 0, 0, 0, file.tell()
            )
            directory += name.encode()
            file.write(struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 8, 0, 0, *sizes) + name.encode() + content)
        start = file.tell()
        file.write(directory)
        file.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, len(members), len(members), len(directory), start, 0))


GIB = 1 << 30


@pytest.fixture
def bombs(tmp_path: Path) -> Path:
    """Folder with archives of 12 GiB each, in some megabytes."""
    size, names = 3 * GIB, ("header", "sample_amax", "sample_peaks", "histogram_counts")
    zip_bomb(tmp_path / "stats.npz", {f"{name}.npy": (npy_header((size // 4,)), size) for name in names})
    zip_bomb(tmp_path / "x.npz", {f"{name}.npy": (npy_header((size // 12, 3), "<f4"), size) for name in "xyzw"})
    rows = 3 * GIB
    labels = (npy_header((rows,), "|u1"), rows)
    zip_bomb(tmp_path / "labels.npz", {"x.npy": (npy_header((rows, 3, 0)), 0), "labels.npy": labels})
    Image.new("L", (1, 60_000)).save(tmp_path / "line.png")
    (tmp_path / "rows.npy").write_bytes(npy_header((10**12, 3, 0)))
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_a_small_file_does_not_fill_the_memory(bombs: Path) -> None:
    """Each is refused, and for what it is, by a process that may take one GiB more than it has."""
    script = f"""
    import resource, sys
    import numpy as np
    from trtcal.samples.arrays import ArrayFolder
    from trtcal.errors import TrtcalError
    from trtcal.samples.images import ImageFolder
    from trtcal.samples.preprocess import preset
    from trtcal.spec import InputSpec
    from trtcal.ranges.stats import ActivationStats

    folder = {str(bombs)!r}
    specs = [InputSpec(name, np.dtype("f4"), (3,)) for name in "xyzw"]
    wide = [InputSpec("x", np.dtype("f4"), (3, None))]
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + {GIB}, -1))
    for what in (
        lambda: ActivationStats.load(f"{{folder}}/stats.npz"),
        lambda: ArrayFolder(f"{{folder}}/x.npz", inputs=specs),
        lambda: ArrayFolder(f"{{folder}}/labels.npz", inputs=wide),
        lambda: ArrayFolder(f"{{folder}}/rows.npy", inputs=wide),
        lambda: ImageFolder(folder, preset("imagenet", size=(224, 224)), input_name="x").load(0),
    ):
        try:
            print("taken", what())
        except TrtcalError as error:
            print(type(error).__name__, error)
    """
    assert max(path.stat().st_size for path in bombs.iterdir()) < 20 << 20
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    statistics, samples, labels, rows, line = done.stdout.splitlines()
    assert statistics.startswith("StatsError")
    assert "its arrays take 12 GiB once unpacked, and at most 8 GiB are read" in statistics
    assert "x.npz: arrays in .npz are held in memory, and with these they pass 4 GiB; save them as .npy" in samples
    assert f"labels.npz: with its samples there are {3 * GIB}; take at most {arrays.MAX_SAMPLES}" in labels
    assert f"rows.npy: with its samples there are {10**12}" in rows
    assert "line.png: the image is 1x60000 (width x height) and would become 256x15360000" in line


def test_a_large_file_of_data_is_not_taken_for_a_bomb(tmp_path: Path) -> None:
    rows = 5 * GIB // 12
    with open(tmp_path / "x.npy", "wb") as file:
        file.write(npy_header((rows, 3)))
        file.truncate(file.tell() + rows * 12)  # of zeros that take no place on the disk
    spec = InputSpec("x", np.dtype("f4"), (3,))
    with open(tmp_path / "x.npy", "rb") as file:
        assert file.seek(0, os.SEEK_END) > 5 * GIB
    monkey = pytest.MonkeyPatch()
    monkey.setattr(arrays, "MAX_SAMPLES", rows)
    source = ArrayFolder(tmp_path / "x.npy", inputs=[spec])
    assert source.load(rows - 1)["x"].tolist() == [0, 0, 0]
    monkey.undo()
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros((1 << 22, 3), np.float32), labels=np.zeros(1 << 22, int))
    source = ArrayFolder(tmp_path / "zeros.npz", inputs=[spec])
    assert (len(source), source.label(7), source.name(7)) == (1 << 22, 0, "zeros.npz[0000007]")


def test_a_model_whose_input_is_larger_than_any_picture_makes_none(tmp_path: Path) -> None:
    Image.new("RGB", (2, 3)).save(tmp_path / "a.png")
    for resize in ("stretch", "letterbox"):
        folder = ImageFolder(tmp_path, Preprocess((40_000, 40_000), resize=resize), input_name="x")
        with pytest.raises(DataError, match=r"a\.png: .* would become \d+x40000, more than Pillow's limit"):
            folder.load(0)
    wide = Preprocess((1, 10**9), resize="letterbox")
    with pytest.raises(DataError, match="would become"):
        wide(Image.new("RGB", (1, 1)))


# --- text that takes forever, and offsets that read a file a million times


@pytest.mark.parametrize(
    "line", ["x: " + "1" * 10**5 + "z", ": " * 10**5, "x" + " " * 10**5 + "z", "x " + "1." * 10**5, "0" * 10**5 + "g"]
)
def test_a_long_line_is_read_once(line: str) -> None:
    data = line.encode()
    with pytest.raises(CacheFormatError):
        detect(data)
    for name in ("tensorrt", "int8api", "ort-text"):
        with pytest.raises(CacheFormatError):
            FORMATS[name].parse(b"TRT-8601-EntropyCalibration2\n" * (name == "tensorrt") + data, "f")


def test_strings_of_a_flatbuffer_that_lie_over_each_other_are_refused() -> None:
    pairs = [("x" * 1000, "1")] * 2
    data = bytearray(flatbuffer.format(pairs))
    assert flatbuffer.parse(bytes(data)) == pairs
    bomb = bytearray(flatbuffer.format([(f"{i}", "1") for i in range(2000)]))
    first = 20 + 4
    (table,) = struct.unpack_from("<I", bomb, first)
    key = first + table + 4
    struct.pack_into("<I", bomb, key + struct.unpack_from("<I", bomb, key)[0], len(bomb) // 2)  # the first string grows
    for i in range(2000):  # and everyone is the first
        struct.pack_into("<I", bomb, first + 4 * i, table - 4 * i if table > 4 * i else 0)
    with pytest.raises(CacheFormatError, match="expected a calibration table of ONNX Runtime"):
        flatbuffer.parse(bytes(bomb))


@pytest.mark.parametrize("digits", [5000, 19])
def test_a_number_of_many_digits_is_no_row_and_no_class(tmp_path: Path, digits: int) -> None:
    (tmp_path / "l.csv").write_text("9" * digits + ",1\n")
    with pytest.raises(DataError, match=r"l\.csv:1: there is no sample '999"):
        read_labels(tmp_path / "l.csv", ["x.npy[0]"])
    (tmp_path / "l.csv").write_text(f"0,{'9' * digits}\n")
    labels = read_labels(tmp_path / "l.csv", ["x.npy[0]"])
    assert class_numbers(tmp_path / "l.csv", labels) == {"x.npy[0]": 0}  # a name, if an odd one


# --- files that lie elsewhere


@pytest.fixture
def outside(tmp_path: Path) -> Callable[..., Path]:
    """Location of the weights in the file, and how to make that -> the model's path."""
    (tmp_path / "secret").write_bytes(bytes(1 << 12))
    (tmp_path / "model").mkdir()

    def made(location: str = "w.bin", **fields: str) -> Path:
        model = conv_model()
        for tensor in model.graph.initializer:
            if tensor.name == "w":
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in {
                    "location": location,
                    "offset": "0",
                    "length": str(len(tensor.raw_data)),
                    **fields,
                }.items():
                    tensor.external_data.add(key=key, value=value)
                tensor.ClearField("raw_data")
        onnx.save(model, tmp_path / "model" / "m.onnx")
        return tmp_path / "model" / "m.onnx"

    return made


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "sub/../../secret", "", ".", "n" * 300, "a\0b", "missing"]
)
def test_weights_are_read_from_the_model_s_folder_only(outside: Callable[..., Path], location: str) -> None:
    for load in (load_model, load_whole_model):
        with pytest.raises(ModelError, match=r"leaves the model's folder|is missing in"):
            load(outside(location))


def test_a_link_to_weights_elsewhere_is_refused(outside: Callable[..., Path], tmp_path: Path) -> None:
    path = outside()
    (path.parent / "w.bin").symlink_to(tmp_path / "secret")
    for load in (load_model, load_whole_model):
        with pytest.raises(ModelError, match=r"m\.onnx: .*'w\.bin' links to .*secret, outside the model's folder"):
            load(path)
    (path.parent / "w.bin").unlink()
    (path.parent / "w.bin").symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="missing"):
        load_model(path)


def test_a_model_hub_s_cache_of_links_is_read(outside: Callable[..., Path], tmp_path: Path) -> None:
    """There model and weights are links to files that lie side by side."""
    path = outside()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    path.rename(tmp_path / "blobs" / "1")
    (tmp_path / "secret").rename(tmp_path / "blobs" / "2")
    (tmp_path / "snapshot" / "m.onnx").symlink_to("../blobs/1")
    (tmp_path / "snapshot" / "w.bin").symlink_to("../blobs/2")
    assert load_model(tmp_path / "snapshot" / "m.onnx").graph.node


@pytest.mark.parametrize(
    "place", [{"offset": "-1"}, {"length": "9" * 5000}, {"offset": "x"}, {"length": str(2**62)}, {"offset": "1e3"}]
)
def test_a_place_in_the_weights_that_cannot_be_is_refused(outside: Callable[..., Path], place: dict[str, str]) -> None:
    path = outside(**place)
    (path.parent / "w.bin").write_bytes(bytes(1 << 12))
    with pytest.raises(ModelError, match=r"m\.onnx: weights 'w' (lie at|end at byte)"):
        load_whole_model(path)


@pytest.mark.parametrize("key", ["com\x1bpression", "location", "offset"])
def test_a_place_that_is_described_twice_or_otherwise_is_refused(outside: Callable[..., Path], key: str) -> None:
    """Of two locations a check might see the first, and a reader the second."""
    path = outside()
    (path.parent / "w.bin").write_bytes(bytes(1 << 12))
    model = onnx.load(path, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    tensor.external_data.add(key=key, value="../secret")
    onnx.save(model, path)
    for load in (load_model, load_whole_model):
        with pytest.raises(ModelError, match=f"'w': its external data is described by {re.escape(repr(key))}"):
            load(path)


def outside_tensor() -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    return tensor


@pytest.mark.parametrize("where", ["attribute", "list", "body", "function", "sparse", "sparse initializer"])
def test_weights_are_looked_for_wherever_a_model_can_hold_them(tmp_path: Path, where: str) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    model = make_model([node], {"x": ["N", 3]}, ["y"])
    sparse = onnx.SparseTensorProto(values=outside_tensor(), indices=helper.make_tensor("i", 7, [1], [0]), dims=[1])
    constant = {
        "attribute": helper.make_attribute("value", outside_tensor()),
        "list": onnx.AttributeProto(name="ts", type=onnx.AttributeProto.TENSORS, tensors=[outside_tensor()]),
        "sparse": onnx.AttributeProto(name="s", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse),
        "body": helper.make_attribute("value", outside_tensor()),
        "function": helper.make_attribute("value", outside_tensor()),
    }.get(where)
    inner = helper.make_node("Constant", [], ["c"])
    if constant is not None:
        inner.attribute.append(constant)
    if where == "body":
        body = helper.make_graph([inner], "b", [], [onnx.ValueInfoProto(name="c")])
        model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=body, else_branch=body))
    elif where == "function":
        model.functions.append(helper.make_function("d", "F", [], ["c"], [inner], [helper.make_opsetid("", 13)]))
    elif where == "sparse initializer":
        model.graph.sparse_initializer.append(sparse)
    else:
        model.graph.node.append(inner)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"tensor 't': external data location '\.\./secret' leaves the model's"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "sub/../../a.png", "./../a.png"])
def test_a_label_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "l.csv").write_text(f"{name},1\n")
    with pytest.raises(DataError, match=r"l\.csv:1: .* leads out of the folder"):
        read_labels(tmp_path / "l.csv", ["a.png"])


# --- models that are none


def test_an_onnx_model_is_read_as_one_whatever_its_name_ends_in(tmp_path: Path) -> None:
    onnx.save(conv_model(), tmp_path / "m.onnx")
    for suffix in (".json", ".onnxtxt", ".textproto"):  # by which ONNX chooses other readers
        (tmp_path / f"m{suffix}").write_bytes((tmp_path / "m.onnx").read_bytes())
        assert load_model(tmp_path / f"m{suffix}").graph.node
        (tmp_path / f"m{suffix}").write_text("{}")
        with pytest.raises(ModelError, match="is not an ONNX"):
            load_model(tmp_path / f"m{suffix}")


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    data = conv_model().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data.replace(b"logits", b"log\xff\xfes"))
    with pytest.raises(ModelError, match=r"m\.onnx: b'log.*is no UTF-8"):
        load_model(tmp_path / "m.onnx")


def test_a_node_without_what_it_works_on_is_refused(tmp_path: Path) -> None:
    for inputs, outputs in (([], ["y"]), (["x"], []), ([], [])):
        model = make_model([helper.make_node("Identity", inputs, outputs, "id")], {"x": ["N", 3]}, ["y"])
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(ModelError, match=r"m\.onnx: node 'id' has \d inputs and \d outputs, .*at least 1 and 1"):
            load_model(tmp_path / "m.onnx")


def test_a_constant_of_no_shape_is_refused(tmp_path: Path) -> None:
    model = conv_model()
    model.graph.initializer[0].dims[0] = -(2**31)  # NumPy would take it for a size to be found out
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx: constant 'w' has the shape \[-2147483648, 3, 3, 3\]"):
        load_model(tmp_path / "m.onnx")


def test_of_two_opsets_for_one_domain_the_first_counts(tmp_path: Path) -> None:
    model = make_model([helper.make_node("Gemm", ["x"], ["y"], "g")], {"x": ["N", 3]}, ["y"])
    model.opset_import.add(version=0)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="node 'g' has 1 inputs"):
        load_model(tmp_path / "m.onnx")


def test_a_q_dq_model_of_names_that_are_no_text_is_refused() -> None:
    data = insert_qdq(conv_model(), {"image": np.float32(1)}).model.SerializeToString()
    assert "image" in FORMATS["qdq"].parse(data, "f").scales
    with pytest.raises(CacheFormatError, match=r"^f: b'.*is no UTF-8"):
        FORMATS["qdq"].parse(data.replace(b"image", b"im\xff\xfee"), "f")


def test_weights_without_an_axis_of_channels_stay_in_float() -> None:
    model = make_model([helper.make_node("Gemm", ["x", "w"], ["y"])], {"x": ["N", 3]}, ["y"], {"w": np.ones(3, "f4")})
    result = insert_qdq(model, {"x": np.float32(1)})
    assert not result.layers
    assert "no axis 1 of output channels" in dict(result.skipped)["w"]
    assert weight_clipping_cost(model) == ()


def test_a_model_whose_types_onnx_cannot_tell_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv_model()
    del model.opset_import[:]
    with pytest.raises(ModelError, match="model: names no opset"):
        insert_qdq(model, {"image": np.float32(1)})

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("of ONNX's C++")

    model = conv_model()
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", refuse)
    with pytest.raises(ModelError, match="ONNX cannot tell the types of the model's tensors: of ONNX's C\\+\\+"):
        insert_qdq(model, {"image": np.float32(1)})


def test_a_domain_that_is_not_imported_hides_no_types() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Odd", ["y"], ["z"], domain="unknown")]
    for opset in (13, 11):
        model = make_model(nodes, {"x": ["N", 3]}, ["z"], opset=opset)
        found = insert_qdq(model, {"x": np.float32(1)}, placement="all")
        assert found.layers == ("y",)
        assert [node.op_type for node in found.model.graph.node][-2:] == ["Relu", "Odd"]


# --- loaders: the user's code, whose answers are data


@pytest.mark.parametrize(
    "body",
    [
        "raise StopIteration",
        "raise SystemExit(0)",
        "return 1",
        "return iter([object()])",
        "yield {'x': [[1, 2], [3]]}",
        "yield {1: 2}",
        "yield type('M', (dict,), {'keys': lambda self: 1 / 0, '__iter__': lambda self: 1 / 0})(x=1)",
        "yield {'x': type('A', (), {'__array__': lambda *a, **k: 1 / 0})()}",
        "yield b'x' * 9",
        "yield float('nan')",
        "yield {'x': 10 ** 400}",
        "yield from ()",
        "return dict",
    ],
)
def test_whatever_a_loader_gives_is_a_sample_or_an_error_that_names_it(tmp_path: Path, body: str) -> None:
    (tmp_path / "loader.py").write_text(f"import sys\nsys.path.clear()\ndef load_data():\n    {body}\n")
    path = list(sys.path)
    try:
        with pytest.raises(DataError, match=r"loader\.py"):
            list(Batches(LoaderScript(tmp_path / "loader.py", inputs=[X]), 1))
    finally:
        sys.path[:] = path


# --- spreadsheets


def test_whoever_writes_csv_makes_formulas_harmless() -> None:
    for file in [*(ROOT / "trtcal").rglob("*.py"), *(ROOT / "calibrators").rglob("*.py")]:
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        assert not calls & {"csv.writer", "csv.DictWriter"} or "cell" in calls, file.name
    assert [cell(text) for text in ("=1+1", "+1", "-1", "@x", "\t=1", "\r=1")] == [
        *("'=1+1", "'+1", "'-1", "'@x", "'\t=1", "'\r=1"),
    ]
    assert [cell(value) for value in ("", "a=1", "1", -1.5, None, True)] == ["", "a=1", "1", -1.5, None, True]

"""One harness per reader: bytes of a file in, and the promise that they are a value or a ``TrtcalError``, nothing else.

``tests/whole/test_any_bytes.py`` draws the bytes from Hypothesis, ``run.py`` from atheris.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import onnx
from fuzz import mutations
from models import conv_model, load_whole_model, make_model
from PIL import Image
from qdq_models import PAIRS, f32, paired

from trtcal.cache import provenance
from trtcal.cache.cache import CalibrationCache
from trtcal.cache.formats import FORMATS, detect
from trtcal.calibration import file as cachefile
from trtcal.cli import calibrate
from trtcal.errors import CacheError, TrtcalError
from trtcal.judging import sensitivity
from trtcal.model.batch_axis import batch_size, set_batch_size
from trtcal.model.file import save_model
from trtcal.model.open import open_model
from trtcal.qdq.extract import extract_scales, strip_qdq
from trtcal.qdq.insert import insert_qdq
from trtcal.qdq.weights import weight_clipping_cost
from trtcal.ranges import stats
from trtcal.ranges.histogram import Histogram
from trtcal.ranges.thresholds import minmax, percentile, spelt
from trtcal.samples.arrays import ArrayFolder
from trtcal.samples.batches import Batches
from trtcal.samples.labels import class_numbers, read_labels
from trtcal.samples.preprocess import Preprocess, decode, is_image, preset
from trtcal.samples.streams import IterableSource
from trtcal.spec import InputSpec
from trtcal.sweep import drift, report
from trtcal.sweep import run as sweeprun
from trtcal.sweep import store as sweepfile
from trtcal.sweep.plan import SweepPlan


class Harness(NamedTuple):
    """A reader under test."""

    check: Callable[[bytes], None]
    """Content of a file -> nothing; raises where the reader breaks its promise."""
    seeds: Callable[[], list[bytes]]
    """Contents of valid files, to begin with."""
    mutate: mutations.Mutation = mutations.damaged
    """How a valid file becomes one that is not, and still gets past the reader's first look."""


@cache
def folder() -> Path:
    """A folder for this process, in memory where the system has such."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="trtcal-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def written(name: str, data: bytes) -> Path:
    """Content -> its file."""
    path = folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


refused = partial(contextlib.suppress, TrtcalError)


# --- ranges

CACHE = CalibrationCache.parse(
    b"TRT-8601-EntropyCalibration2\nimage: 3c010a14\nscope::conv: 0: 3d8f5c29\n(Unnamed Layer* 3) [Constant]_output: "
    b"3b000000\nzero: 0\n\xc3\xa9: 3f800000\n"
)


def check_format(name: str, data: bytes) -> None:
    """A format reads what it writes: parse(format(parse(x))) is parse(x)."""
    row = FORMATS[name]
    with refused():
        found = row.parse(data, "file")
        if row.format is None:
            return
        with contextlib.suppress(CacheError):  # a format need not hold every scale
            again = row.parse(row.format(found), "file")
            nan = [tensor for tensor, scale in found.scales.items() if np.isnan(scale)]  # may lose its payload
            assert name != "tensorrt" or again == found
            assert list(again.scales) == list(found.scales)
            assert all(again.scales[key] == found.scales[key] for key in found.scales if key not in nan)


def check_detect(data: bytes) -> None:
    """A file of unknown format is of one, or refused."""
    with refused():
        assert detect(data) in FORMATS


def seeds_of_format(name: str) -> list[bytes]:
    """The same ranges in each format, and what is peculiar to one."""
    if name == "qdq":
        made = insert_qdq(conv_model(), dict.fromkeys(("image", "relu", "flat"), np.float32(0.5)))
        return [made.model.SerializeToString()]
    write = FORMATS[name].format
    assert write is not None
    return [write(CACHE), *_PECULIAR.get(name, [])]


_PECULIAR = {
    "tensorrt": [b"\xef\xbb\xbfTRT-8XXX-MinMaxCalibration\r\na: 0X3C01\r\n\r\nb:7f800000\r\na: 1", b"1\nx: 7fc00000\n"],
    "ort-json": [
        b'{"x": [-1.5, 2]}',
        b'{"x": {"lowest": {"data": [[0]]}, "highest": {"data": 1.5}, "CLS": "TensorData"}}',
    ],
    "nvdla": [b'{"x": {"min": -1, "max": 2.5, "offset": 0}, "y": {"scale": 0.5}}'],
    "int8api": [b"a: b: 1.5e-3 \t\r\nc: inf\nd: nan\n"],
    "ort-text": [b"a b 1.5\r\nc -inf\n"],
}


def every_seed_of_ranges() -> list[bytes]:
    """One file of each format."""
    return [seed for name in FORMATS for seed in seeds_of_format(name)]


# --- models


def check_model(data: bytes) -> None:
    """What calibration reads of a model; all of it is Python but the inlining of functions."""
    path = written("model.onnx", data)
    written("weights.bin", bytes(range(256)) * 8)
    with refused():
        model = open_model(path)
        graph = model.calibrated
        assert len(set(graph.order)) <= len(graph.order)
        assert all(file.resolve().is_relative_to(folder().resolve()) for file in model.files)
        for size in (None, 4):
            assert batch_size(set_batch_size(model.proto, size, folder())) == size


def check_qdq(data: bytes) -> None:
    """Into Q/DQ and back, weights beside the model included."""
    path = written("model.onnx", data)
    written("weights.bin", bytes(range(256)) * 8)
    with refused():
        model, external = load_whole_model(path)
        names = [name for node in model.graph.node for name in (*node.input, *node.output)]
        for work in (
            lambda: insert_qdq(model, dict.fromkeys(names, np.float32(0.5))),
            lambda: insert_qdq(model, dict.fromkeys(names, np.float32(0.5)), placement="all"),
            lambda: weight_clipping_cost(model),
            lambda: extract_scales(model),
            lambda: strip_qdq(model),
            lambda: save_model(model, folder() / "written.onnx", external=external),
        ):
            with refused():
                work()


def models() -> list[bytes]:
    """Plain; a fixed batch; weights outside; a function, an If, constants and an empty name; pairs in all spellings."""
    helper = onnx.helper
    outside = conv_model()
    for tensor, name in zip(outside.graph.initializer, ("weights.bin", "weights.bin", "link.bin"), strict=False):
        onnx.external_data_helper.set_external_data(tensor, name, 0, len(tensor.raw_data))
        tensor.ClearField("raw_data")
    odd = conv_model()
    body = helper.make_graph([helper.make_node("Relu", ["sum"], ["r"])], "b", [], [onnx.ValueInfoProto(name="r")])
    condition = helper.make_node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True)))
    odd.graph.node.append(condition)
    odd.graph.node.append(helper.make_node("If", ["yes"], ["either"], then_branch=body, else_branch=body))
    odd.graph.node.append(helper.make_node("Twice", ["either"], ["twice"], domain="local"))
    odd.graph.node.append(helper.make_node("Clip", ["twice", "", "three"], ["clipped"]))
    odd.graph.node.append(helper.make_node("Constant", [], ["three"], value_float=3.0))
    twice = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 13)]
    )
    odd.functions.append(twice)
    odd.opset_import.append(helper.make_opsetid("local", 1))
    odd.graph.output.append(onnx.ValueInfoProto(name="clipped"))
    every = [conv_model(), conv_model(4), outside, odd, *map(paired, PAIRS), fake_quantized(), old_model()]
    return [*(model.SerializeToString() for model in every), *seeds_of_format("qdq")]


def old_model() -> onnx.ModelProto:
    """Of opset 9, with ops that are written otherwise since."""
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Clip", ["c"], ["r"], min=0.0, max=6.0),
        node("Upsample", ["r", "scales"], ["u"], mode="linear"),
        node("Pad", ["u"], ["p"], pads=[0, 0, 1, 0, 0, 0, 0, 1]),
        node("Slice", ["p"], ["s"], starts=[0], ends=[3], axes=[2]),
        node("Softmax", ["s"], ["y"], axis=2),
    ]
    constants = {"w": np.ones((2, 3, 1, 1), np.float32), "scales": f32([1, 1, 2, 2])}
    return make_model(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants, opset=9)


def fake_quantized() -> onnx.ModelProto:
    """Rounded in plain operators."""
    steps = {"d": ("Div", "x", "s"), "r": ("Round", "d"), "c": ("Clip", "r", "low", "high"), "y": ("Mul", "c", "s")}
    nodes = [onnx.helper.make_node(op, names, [output]) for output, (op, *names) in steps.items()]
    return make_model(nodes, {"x": [1, 2]}, ["y"], {"s": f32(0.5), "low": f32(-128), "high": f32(127)})


# --- samples

INPUT = InputSpec("x", np.dtype(np.float32), (3, None, None))
PREPROCESS = (
    preset("imagenet", size=(8, 8)),
    Preprocess((8, 8), resize="letterbox", color="L"),
    Preprocess((8, 8), resize="none"),
)


def check_image(data: bytes) -> None:
    """A picture under a name that says so, and under one that does not."""
    assert isinstance(is_image(written("picture", data)), bool)
    # Two kilobytes can hold as many pixels as Pillow admits, 89 million, which would take seconds each time.
    with refused(), patch.object(Image, "MAX_IMAGE_PIXELS", 1 << 20):
        image = decode(written("picture.png", data))
        assert image.mode in ("RGB", "L", "F")
        for preprocess in PREPROCESS:
            with refused():
                assert preprocess(image).shape == preprocess.shape


def pictures() -> list[bytes]:
    """A small picture in many formats and modes."""
    found = []
    for mode, format in (
        *(("RGB", "PNG"), ("P", "GIF"), ("LA", "PNG"), ("I;16", "TIFF"), ("F", "TIFF"), ("1", "TIFF"), ("RGB", "JPEG")),
        *(("L", "BMP"), ("RGB", "WEBP"), ("RGB", "PPM"), ("RGBA", "TGA"), ("P", "PCX"), ("RGBA", "ICO"), ("L", "SGI")),
    ):
        buffer = io.BytesIO()
        pixels = np.arange(12 * 9, dtype=np.uint8).reshape(9, 12)
        image = Image.fromarray(pixels)
        image = Image.fromarray(pixels.astype(np.float32)) if mode == "F" else image
        image = Image.fromarray(pixels.astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
        image.save(buffer, format)
        found.append(buffer.getvalue())
    return found


def check_arrays(name: str, data: bytes) -> None:
    """An array file alone, and in a folder where it may be one sample."""
    path = written(f"{name}/a.{name}", data)
    for place in (path, path.parent):
        with refused():
            source = ArrayFolder(place, inputs=[INPUT])
            for index in range(min(len(source), 3)):
                assert source.name(index)
                assert source.label(index) is None or isinstance(source.label(index), int)
                with refused():
                    (array,) = source.load(index).values()
                    assert array.dtype == np.float32


def arrays() -> list[bytes]:
    """A block, a single sample, an empty block, whole numbers, big-endian ones, objects."""
    x = np.linspace(-1, 1, 2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
    every = [x, x[0], x[:0], x.astype(np.uint8), np.asfortranarray(x.astype(">f8"))]
    return [mutations.npy(array) for array in every]


def archives() -> list[bytes]:
    """The same in archives, with labels."""
    found = []
    for content in arrays():
        array = np.load(io.BytesIO(content))
        buffer = io.BytesIO()
        np.savez(buffer, x=array, labels=np.arange(len(array)) if array.ndim == 4 else np.array(3))
        found.append(buffer.getvalue())
    return found


SAMPLES = tuple(f"x.npy[{row:02}]" for row in range(12))


def check_labels(data: bytes) -> None:
    """A CSV file for rows of an array."""
    path = written("labels.csv", data)
    with refused():
        labels = read_labels(path, SAMPLES)
        assert set(labels) <= set(SAMPLES)
        assert all(number >= 0 for number in class_numbers(path, labels).values())


def check_feeds(data: bytes) -> None:
    """The bytes choose what a loader gives: right and wrong types, shapes, raising and endless generators."""
    with refused():
        batches = Batches(IterableSource(_Loader(data), inputs=[INPUT]), 2)
        for batch in islice(batches, 3):
            assert batch["x"].dtype == np.float32
            assert np.isfinite(batch["x"]).all()
            assert len(batch.samples) == 2


class _Loader:
    """A re-iterable of feeds that bytes describe."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        source = iter(self._data[:200])
        while True:
            try:
                yield _feed(source, 0)
            except StopIteration:
                return


class _Hostile:
    """An object whose every question raises."""

    def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
        raise RuntimeError("no array")

    def __len__(self) -> int:
        raise OverflowError("no length")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class _HostileMapping(dict[str, Any]):
    def keys(self) -> Any:
        raise RuntimeError("no keys")

    def __iter__(self) -> Any:
        raise RuntimeError("no items")


def _feed(source: Iterator[int], depth: int) -> Any:
    """The next object that the bytes describe; StopIteration where they end."""
    kind = next(source) % 16
    if kind < 4 and depth < 4:
        made = (_feed(source, depth + 1) for _ in range(next(source) % 4))
        return {0: list, 1: tuple, 2: lambda items: dict(zip(("x", "labels", "y"), items, strict=False))}.get(
            kind, list
        )(iter(list(_until_the_end(made))))
    if kind < 9:
        dtype = ("f4", "f8", "u1", "i8", "?", "O", "U3", "c8", "M8[s]", "f2")[next(source) % 10]
        shape = [(0, 1, 2, 3, 4)[next(source) % 5] for _ in range(next(source) % 6)]
        array = np.ones(shape, "i8").astype(dtype)
        if array.size and array.dtype.kind == "f":
            array.flat[0] = (0, np.nan, np.inf, -1e30, 1)[next(source) % 5]
        return {"x": array} if depth == 0 and kind == 4 else array
    return (
        *(None, 1.5, "text", b"bytes", _Hostile(), _HostileMapping(x=1), {1: 2}, {"x": np.ma.masked_all((1, 3, 2, 2))}),
        *({"x": range(3)}, object, 10**400, float("nan"), {"x": [[1, 2], [3]]}, np.float32(1), {}, []),
    )[next(source) % 16]


def _until_the_end(items: Iterator[Any]) -> Iterator[Any]:
    with contextlib.suppress(RuntimeError):  # what a generator makes of StopIteration
        yield from items


# --- what a run leaves behind


def check_stats(data: bytes) -> None:
    """A file of statistics; equal statistics come back from what is written."""
    with refused():
        found = stats.ActivationStats.from_bytes(data)
        assert stats.ActivationStats.from_bytes(found.to_bytes()) == found
        for tensor in found.tensors.values():
            assert minmax(tensor.histogram) >= 0
            assert percentile(tensor.histogram) >= 0


def statistics() -> list[bytes]:
    """Of no tensor and of two, with and without a stream."""
    fine, batch_grid = (Histogram(np.eye(1, bins, dtype=np.int64)[0], 2.0, np.float32(1.5)) for bins in (32768, 2048))
    amax, peaks = np.array([1.5, 0.25], np.float32), np.array([1, 2])
    tensors = {"x": stats.TensorStats(amax, peaks, fine, batch_grid), "y": stats.TensorStats(amax, peaks, fine, None)}
    return [
        stats.ActivationStats(("a", "b"), tensors, batches=1).to_bytes(),
        stats.ActivationStats(("a",), {}).to_bytes(key="k"),
    ]


def check_sidecar(data: bytes) -> None:
    """Origin of a cache."""
    cache = written("model.cache", CACHE.format())
    written("model.cache.json", data)
    assert provenance.check(cache, ORIGIN).ok in (True, False)
    kept = provenance.read_sidecar(cache)
    if kept is not None:  # and then a run that finds the cache up to date says what was found
        assert calibrate._summary(cachefile.CacheFile(cache, CACHE, kept[0], True, (), **cachefile._found(kept[1])))
        provenance.save_with_sidecar(CACHE.format(), kept[0], cache, kept[1])
        assert provenance.read_sidecar(cache) == kept


ORIGIN = provenance.Provenance(
    model="m.onnx",
    model_sha256="0" * 64,
    data="pictures",
    data_key="1" * 64,
    samples_used=8,
    samples_available=9,
    preprocess={"size": [8, 8], "scale": 0.5},
    method="entropy",
    growth="double",
    batch_size=8,
    order="given",
    seed=None,
    partial="pad",
    shapes={"x": [3, 8, 8]},
    header="TRT-8601-EntropyCalibration2",
    versions={"trtcal": "0.1.0"},
)


def sidecars() -> list[bytes]:
    """An origin, in a sidecar."""
    cache = folder() / "seed.cache"
    half = {"sqnr_db": 30.5, "low": 29.0, "high": "inf", "agreement": 0.75}
    findings = {
        "unusable": {"x": "zero"},
        "hidden": 1,
        "unusable_thresholds": {"y": "clips 30.0% of its values"},
        "usable_methods": ["minmax"],
        "closing": {"samples": 16, "sqnr_db": 30.5, "agreement": 0.75},
        "chosen": {
            "by": "k",
            "method": "mse",
            "held_out": True,
            "samples": {"chosen_by": 8, "reported": 8},
            "methods": {"mse": {"chosen_by": half, "reported": half}, "entropy": {"left_out": "unusable"}},
        },
    }
    provenance.save_with_sidecar(CACHE.format(), ORIGIN, cache, findings)
    return [provenance.sidecar_path(cache).read_bytes()]


def check_report(name: str, data: bytes) -> None:
    """A page from a sweep, where one of its two files is damaged."""
    place = folder() / f"sweep-{name}"
    for file, content in (("trials.json", trials()[0]), ("sensitivity.json", sensitivities()[0])):
        written(f"{place.name}/{file}", data if file == name else content)
    with refused():
        page = report.write(place).read_bytes()
        assert b"</html>" in page


def trials() -> list[bytes]:
    """A sweep over one tensor."""
    return [json.dumps(_TRIALS).encode()]


def sensitivities() -> list[bytes]:
    """What ``trtcal sensitivity -o`` writes."""
    return [json.dumps(_SENSITIVITY).encode()]


def check_journal(data: bytes) -> None:
    """Judgements of an interrupted sweep: those that are read can be written again."""
    for amax, judged in sweepfile.read_journal(data).items():
        if len(amax) % 4 == 0:  # others are of no ranges, and never looked up
            line = sweepfile.judgement_line(np.frombuffer(amax, np.float32), judged)
            assert list(sweepfile.read_journal(line)) == [amax]


def journals() -> list[bytes]:
    """Two judgements."""
    amax = np.array([1.5, 2.5], np.float32)
    one = sweepfile.Judgement(np.array([1.0, 0.0]), None, 3.5)
    two = sweepfile.Judgement(None, np.array([0.5]), None)
    return [sweepfile.judgement_line(amax, one) + sweepfile.judgement_line(amax * 2, two)]


def check_snapshots(data: bytes) -> None:
    """Thresholds that an interrupted sweep kept: whatever is taken can be drawn."""
    with refused():
        drift.Looks(written("drift.json", data), "k").drift(2)


def snapshots() -> list[bytes]:
    """Thresholds after 2 and after 4 samples."""
    taken = {samples: {name: [samples, 0.5] for name in spelt()} for samples in (2, 4)}
    return [json.dumps({"key": "k", "snapshots": taken}).encode()]


def check_settings(data: bytes) -> None:
    """The settings of a sweep that is to go on."""
    place = folder() / "sweep"
    written("sweep/settings.json", data)
    written("sweep/trials.json", b"{}")
    with refused():
        sweeprun._take(place, SweepPlan(), {"x": 1}, True, False)


_PER_TENSOR: dict[str, Any] = {
    "first_amax": [1.0], "limit": [1.0], "doublings": [0], "last_growth": [0], "m": [2048], "amax": [1.0],
    "change": [0.0], "clipped": [0.0], "sqnr_db": [40.0], "js": [0.0], "fell_back": [False],
}  # fmt: skip
_TRIALS: dict[str, Any] = {
    "format": sweepfile.FORMAT,
    "model": "m",
    "data": "d",
    "provenance": {"trtcal": "0"},
    "tensors": ["x"],
    "samples": ["a", "b"],
    "exact": False,
    "partial": "pad",
    "metric": "top1",
    "off": [0.0],
    "histograms": [{"limit": 1.0, "amax": 1.0, "counts": [1, 2]}],
    "sample_amax": [[1.0, 0.5]],
    "invariant": {"minmax": [1.0]},
    "arrangements": [{"batch_size": 1, "order": "given", "seed": None, "growth": "double", **_PER_TENSOR}],
    "trials": [{"arrangement": 0, "method": "minmax", "accuracy": 0.5, "error": None}],
    "drift": {"minmax": {"samples": [2], "change_median": [0.0], "change_max": [0.0]}},
    "thumbnails": {"a": "data:image/png;base64,AAAA"},
    "recommendation": {"headline": "h", "evidence": ["e"], "control_flat": True},
    "notes": ["n"],
}
_TRIAL: dict[str, Any] = {"sqnr_db": 12.0, "metric": None, "recovered": 0.5}
_SENSITIVITY: dict[str, Any] = {
    "format": sensitivity.FORMAT,
    "samples": 2,
    "metric": None,
    "fp32": None,
    "int8": _TRIAL,
    "tensors": [{"tensor": "x", "amax": 1.0, "sqnr_db": "inf", "layers": ["l"]}],
    "layers": [{"layer": "l", "op_type": "Conv", "estimate_db": 10.0, "only": _TRIAL, "without": None}],
    "curve": [{"layer": "l", **_TRIAL}],
    "ended": "e",
    "options": {"trtcal": "t", "trtexec": "t", "polygraphy": "p"},
}

_as_json = mutations.damaged_json
HARNESSES: dict[str, Harness] = {
    **{
        name: Harness(
            partial(check_format, name),
            partial(seeds_of_format, name),
            mutations.damaged_model
            if name == "qdq"
            else _as_json
            if name in ("ort-json", "tao", "ppq", "mqbench", "dipoorlet", "nvdla")
            else mutations.damaged,
        )
        for name in FORMATS
    },
    "any-ranges": Harness(check_detect, every_seed_of_ranges),
    "model": Harness(check_model, models, mutations.damaged_model),
    "model-qdq": Harness(check_qdq, models, mutations.damaged_model),
    "image": Harness(check_image, pictures),
    "npy": Harness(partial(check_arrays, "npy"), arrays, mutations.damaged_npy),
    "npz": Harness(partial(check_arrays, "npz"), archives, mutations.damaged_npz),
    "labels": Harness(check_labels, lambda: [b"sample,label\nx.npy[00],cat\n1,dog\n", b"0,3\r\n01,4\r\n"]),
    "feeds": Harness(check_feeds, lambda: [bytes([4, 0, 4, 1, 3, 2, 2, 4] * 4), bytes(range(64))]),
    "stats": Harness(check_stats, statistics, mutations.damaged_npz),
    "sidecar": Harness(check_sidecar, sidecars, _as_json),
    "trials": Harness(partial(check_report, "trials.json"), trials, _as_json),
    "sensitivity": Harness(partial(check_report, "sensitivity.json"), sensitivities, _as_json),
    "journal": Harness(check_journal, journals, _as_json),
    "snapshots": Harness(check_snapshots, snapshots, _as_json),
    "settings": Harness(check_settings, lambda: [json.dumps({"format": sweeprun.FORMAT, "x": 1}).encode()], _as_json),
}
"""Name on the command line of ``run.py`` -> harness; a reader of files that is not here is not fuzzed."""

"""Models of all the kinds that people have, with samples: tiny ones made here, and real ones from wheels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from models import conv_model, images, make_model
from onnx import ModelProto, TensorProto, helper, numpy_helper
from qdq_models import small_network
from sequences import batch_first, lstm

from trtcal import demo

SAMPLES = 6
node = helper.make_node


@dataclass(frozen=True)
class Specimen:
    """A model, samples for it, ``{input: (samples, ...)}``, and the axis of each input that counts them.

    ``layers`` are measured one at a time.
    """

    model: ModelProto
    data: Mapping[str, np.ndarray]
    axes: Mapping[str, int]
    layers: int = 16


class Net:
    """Grows a graph node by node; names of tensors are counted, weights are random and keep the size of values."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._rng = np.random.default_rng(seed)

    def __call__(self, op: str, *inputs: str, outputs: int | str = 1, **attributes: Any) -> str:
        """A node -> its output, or the first of several, ``name.0``, ``name.1``."""
        name = outputs if isinstance(outputs, str) else f"{op.lower()}_{len(self.nodes)}"
        made = [name] if isinstance(outputs, str) or outputs == 1 else [f"{name}.{n}" for n in range(outputs)]
        self.nodes.append(node(op, list(inputs), made, f"/{op}_{len(self.nodes)}", **attributes))
        return made[0]

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def weights(self, *shape: int, fan_in: int | None = None) -> str:
        return self.constant(self._rng.normal(size=shape) / np.sqrt(fan_in or shape[0]))

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, *, group: int = 1, **attributes: Any) -> str:
        fan_in = inputs // group * kernel * kernel
        weights = self.weights(outputs, inputs // group, kernel, kernel, fan_in=fan_in)
        bias = self.constant(self._rng.normal(size=outputs) * 0.1)
        pads = [kernel // 2] * 4
        return self("Conv", x, weights, bias, kernel_shape=[kernel] * 2, pads=pads, group=group, **attributes)

    def normalized(self, x: str, channels: int) -> str:
        spread = [self.constant(self._rng.uniform(0.5, 1.5, channels)) for _ in range(2)]
        shift = [self.constant(self._rng.normal(size=channels) * 0.2) for _ in range(2)]
        return self("BatchNormalization", x, spread[0], shift[0], shift[1], spread[1])

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        product = self("MatMul", x, self.weights(inputs, outputs))
        return self("Add", product, self.constant(self._rng.normal(size=outputs) * 0.1))

    def model(self, inputs: Mapping[str, Sequence[int | str]], outputs: Sequence[str], **how: Any) -> ModelProto:
        return make_model(self.nodes, {n: list(s) for n, s in inputs.items()}, list(outputs), self.constants, **how)


def mobilenet() -> ModelProto:
    """Depthwise convolutions, squeeze and excitation, HardSwish, as in MobileNet v3."""
    net = Net(1)
    x = net("HardSwish", net.normalized(net.conv("image", 3, 8, strides=[2, 2]), 8))
    for stride in (1, 2):
        wide = net("HardSwish", net.normalized(net.conv(x, 8, 16, 1), 16))
        wide = net("HardSwish", net.normalized(net.conv(wide, 16, 16, 3, group=16, strides=[stride] * 2), 16))
        squeezed = net("Relu", net.conv(net("GlobalAveragePool", wide), 16, 4, 1))
        wide = net("Mul", wide, net("HardSigmoid", net.conv(squeezed, 4, 16, 1)))
        narrow = net.normalized(net.conv(wide, 16, 8, 1), 8)
        x = net("Add", x, narrow) if stride == 1 else narrow
    flat = net("Flatten", net("GlobalAveragePool", x))
    net("Gemm", flat, net.weights(8, 5), outputs="logits")
    return net.model({"image": ["N", 3, 12, 12]}, ["logits"], opset=14)


def transformer() -> ModelProto:
    """Token ids and a mask -> embedding, two heads of attention, layer normalization spelt out, GELU -> logits."""
    net, width, steps = Net(2), 8, 6
    x = net("Gather", net.weights(20, width, fan_in=1), "ids", axis=0)
    heads = net.constant([0, 0, 2, width // 2], np.int64)

    def split(values: str, perm: Sequence[int]) -> str:
        return net("Transpose", net("Reshape", values, heads), perm=list(perm))

    def normalized(values: str) -> str:
        centred = net("Sub", values, net("ReduceMean", values, axes=[2], keepdims=1))
        variance = net("ReduceMean", net("Pow", centred, net.constant(2)), axes=[2], keepdims=1)
        deviation = net("Sqrt", net("Add", variance, net.constant(1e-5)))
        scaled = net("Mul", net("Div", centred, deviation), net.constant(np.linspace(0.5, 1.5, width)))
        return net("Add", scaled, net.constant(np.linspace(-0.1, 0.1, width)))

    query = split(net.linear(x, width, width), (0, 2, 1, 3))
    key = split(net.linear(x, width, width), (0, 2, 3, 1))
    value = split(net.linear(x, width, width), (0, 2, 1, 3))
    masked = net("Mul", net("Sub", net.constant(1), net("Cast", "mask", to=TensorProto.FLOAT)), net.constant(-1e4))
    masked = net("Unsqueeze", masked, net.constant([1, 2], np.int64))
    scores = net("Add", net("Div", net("MatMul", query, key), net.constant(2)), masked)
    mixed = net("Transpose", net("MatMul", net("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
    mixed = net("Reshape", mixed, net.constant([0, 0, width], np.int64))
    x = normalized(net("Add", x, net.linear(mixed, width, width)))
    inner = net.linear(x, width, 16)
    gelu = net("Mul", inner, net("Add", net("Erf", net("Div", inner, net.constant(np.sqrt(2)))), net.constant(1)))
    x = normalized(net("Add", x, net.linear(net("Mul", gelu, net.constant(0.5)), 16, width)))
    first = net("Gather", x, net.constant(0, np.int64), axis=1)
    net("Gemm", first, net.weights(width, 4), outputs="logits")
    integers = dict.fromkeys(("ids", "mask"), TensorProto.INT64)
    return net.model({"ids": ["N", steps], "mask": ["N", steps]}, ["logits"], dtypes=integers)


def detector() -> ModelProto:
    """A YOLO's neck and head: SiLU, Split, Concat, nearest Resize, MaxPools in a row, boxes from grids and strides."""
    net = Net(3)

    def silu(x: str) -> str:
        return net("Mul", x, net("Sigmoid", x))

    stem = silu(net.conv("images", 3, 8, strides=[2, 2]))
    halves = net("Split", stem, net.constant([4, 4], np.int64), outputs=2, axis=1)
    other = halves.replace(".0", ".1")
    inner = net("Add", other, silu(net.conv(other, 4, 4)))
    wide = silu(net.conv(net("Concat", halves, other, inner, axis=1), 12, 8, 1))
    deep = silu(net.conv(wide, 8, 8, strides=[2, 2]))
    pools = [deep]
    for _ in range(2):
        pools.append(net("MaxPool", pools[-1], kernel_shape=[3, 3], pads=[1] * 4))
    deep = silu(net.conv(net("Concat", *pools, axis=1), 24, 8, 1))
    up = net("Resize", deep, "", net.constant([1, 1, 2, 2]), mode="nearest", nearest_mode="floor",
             coordinate_transformation_mode="asymmetric")  # fmt: skip
    near = silu(net.conv(net("Concat", up, wide, axis=1), 16, 8))
    flat = [
        net("Reshape", net.conv(x, 8, 7, 1), net.constant([0, 7, size], np.int64))
        for x, size in ((near, 64), (deep, 16))
    ]
    boxes = net("Concat", *flat, axis=2)
    parts = net("Split", boxes, net.constant([4, 3], np.int64), outputs=2, axis=1)
    strides = net.constant(np.repeat([2.0, 4.0], [64, 16]).reshape(1, 1, 80))
    box = net("Mul", net("Add", parts, net.constant(np.linspace(0, 8, 80).reshape(1, 1, 80))), strides)
    net("Concat", box, net("Sigmoid", parts.replace(".0", ".1")), axis=1, outputs="output0")
    return net.model({"images": ["N", 3, 16, 16]}, ["output0"])


def unet() -> ModelProto:
    """Opset 9: down by pools, up by Upsample and by ConvTranspose, skips by Concat, Clip and Pad with attributes."""
    net = Net(4)
    first = net("Relu", net.normalized(net.conv("image", 3, 4), 4))
    second = net("Relu", net.conv(net("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2]), 4, 8))
    deep = net(
        "Clip", net.conv(net("AveragePool", second, kernel_shape=[2, 2], strides=[2, 2]), 8, 8), min=0.0, max=6.0
    )
    up = net("Upsample", deep, net.constant([1, 1, 2, 2]), mode="linear")
    x = net("LeakyRelu", net.conv(net("Concat", up, second, axis=1), 16, 8), alpha=0.1)
    wide = net("ConvTranspose", x, net.weights(8, 4, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
    nearest = net("Upsample", net.conv(x, 8, 4, 1), net.constant([1, 1, 2, 2]), mode="nearest")
    x = net("Concat", net("Add", wide, nearest), first, axis=1)
    padded = net("Pad", x, pads=[0, 0, 1, 1, 0, 0, 1, 1])
    mask = net("Sigmoid", net.conv(padded, 8, 2, 1))
    net("Slice", mask, axes=[2, 3], starts=[1, 1], ends=[9, 9], outputs="mask")
    return net.model({"image": ["N", 3, 8, 8]}, ["mask"], opset=9)


def branching() -> ModelProto:
    """An If whose branches hold layers, and read tensors and weights around them."""
    net = Net(5)
    x = net("Relu", net.conv("image", 3, 4))
    shared = net.weights(4, 4, 1, 1, fan_in=4)
    channels = net("Gather", net("Shape", x), net.constant(1, np.int64), axis=0)
    condition = net("Greater", channels, net.constant(2, np.int64))

    def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
        output = onnx.ValueInfoProto(name=nodes[-1].output[0])
        output.type.tensor_type.elem_type = TensorProto.FLOAT
        weight = numpy_helper.from_array(np.full((4, 4, 1, 1), 0.25, np.float32), "own")
        return helper.make_graph(list(nodes), "branch", [], [output], [weight])

    then = branch(node("Conv", [x, shared], ["inner"], "a"), node("Relu", ["inner"], ["chosen"], "b"))
    other = branch(node("Conv", [x, "own"], ["elsewhere"], "c"))
    y = net("If", condition, then_branch=then, else_branch=other)
    y = net("Relu", net.conv(net("Add", net("Conv", x, shared), y), 4, 4))
    net("Gemm", net("Flatten", net("GlobalAveragePool", y)), net.weights(4, 3), outputs="logits")
    return net.model({"image": ["N", 3, 6, 6]}, ["logits"])


def recurrent() -> ModelProto:
    """Two LSTMs one after the other, both directions in the first, and layers that read them."""
    net = Net(6)

    def layer(x: str, inputs: int, ways: int) -> str:
        weights = net.weights(ways, 16, inputs, fan_in=inputs), net.weights(ways, 16, 4, fan_in=4)
        direction = "bidirectional" if ways == 2 else "forward"
        return net("LSTM", x, *weights, outputs=2, hidden_size=4, direction=direction)

    steps = net("Transpose", "x", perm=[1, 0, 2])
    both = net("Transpose", layer(steps, 3, 2), perm=[0, 2, 1, 3])
    merged = net("Reshape", both, net.constant([0, 0, 8], np.int64))
    last = layer(merged, 8, 1).replace(".0", ".1")
    last = net("Squeeze", last, net.constant([0], np.int64))
    net("Gemm", net("Tanh", last), net.weights(4, 3), outputs="y")
    return net.model({"x": ["N", 5, 3]}, ["y"])


def _pictures(model: ModelProto, name: str, size: int, *, channels: int = 3, layers: int = 16) -> Specimen:
    data = np.random.default_rng(7).normal(size=(SAMPLES, channels, size, size)).astype(np.float32)
    data *= np.linspace(0.5, 2, SAMPLES, dtype=np.float32).reshape(-1, 1, 1, 1)
    return Specimen(model, {name: data}, {name: 0}, layers)


def _steps(model: ModelProto, shape: Sequence[int], axis: int) -> Specimen:
    return Specimen(
        model, {"x": np.random.default_rng(8).normal(size=(SAMPLES, *shape)).astype(np.float32)}, {"x": axis}
    )


def _sentences() -> Specimen:
    rng = np.random.default_rng(9)
    ids = rng.integers(0, 20, (SAMPLES, 6))
    mask = (np.arange(6) < rng.integers(3, 7, (SAMPLES, 1))).astype(np.int64)
    return Specimen(transformer(), {"ids": ids, "mask": mask}, {"ids": 0, "mask": 0})


def _demo() -> Specimen:
    return Specimen(onnx.load(demo.model_path()), {"image": demo.calibration_images()[:SAMPLES]}, {"image": 0}, 4)


def _ppocr(part: str, height: int, width: int) -> Specimen:
    spec = find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel rapidocr is not installed: pip install --no-deps rapidocr")
    found = sorted(Path(spec.submodule_search_locations[0]).rglob(f"*{part}*.onnx"))
    if not found:
        pytest.skip(f"this rapidocr brings no model for {part}")
    model = onnx.load(found[0])
    (name,) = (value.name for value in model.graph.input)
    shades = np.random.default_rng(10).normal(size=(SAMPLES // 2, 3, height // 8, width // 8)).astype(np.float32)
    data = np.repeat(np.repeat(shades, 8, axis=2), 8, axis=3)
    return Specimen(model, {name: data}, {name: 0}, 1)


TINY: dict[str, Callable[[], Specimen]] = {
    "convolutions": lambda: Specimen(conv_model(), {"image": images(SAMPLES)}, {"image": 0}),
    "residual block": lambda: Specimen(small_network(), {"x": images(SAMPLES, size=6)}, {"x": 0}),
    "time-major LSTM": lambda: _steps(lstm(10, "batch"), (10, 4), 1),
    "transformer": _sentences,
}
REAL: dict[str, Callable[[], Specimen]] = {
    "demo": _demo,
    "PP-OCR detector": lambda: _ppocr("_det_", 64, 64),
    "PP-OCR classifier": lambda: _ppocr("_cls_", 48, 192),
    "PP-OCR recogniser": lambda: _ppocr("_rec_", 48, 96),
}
LARGER: dict[str, Callable[[], Specimen]] = {
    "ResNet": lambda: _pictures(onnx.load_model_from_string(nets.residual((4, 8), 2, 16)), "x", 16),
    "branches": lambda: _pictures(onnx.load_model_from_string(nets.branches()), "x", 16, channels=8),
    "MobileNet": lambda: _pictures(mobilenet(), "image", 12),
    "LSTM": lambda: _steps(recurrent(), (5, 3), 0),
    "batch-first LSTM": lambda: _steps(batch_first(), (10, 4), 0),
    "YOLO": lambda: _pictures(detector(), "images", 16),
    "UNet": lambda: _pictures(unet(), "image", 8),
    "If": lambda: _pictures(branching(), "image", 6),
}


@cache
def specimen(name: str) -> Specimen:
    """One of `TINY`, `LARGER` and `REAL`."""
    return {**TINY, **LARGER, **REAL}[name]()

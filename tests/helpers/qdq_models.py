"""Small models for tests of Q/DQ, and what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from models import make_model
from onnx import TensorProto, helper, numpy_helper

from trtcal.model.runner import OrtRunner


def f32(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def i8(values: Any) -> np.ndarray:
    return np.array(values, np.int8)


node = helper.make_node


def typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the types of outputs and tensors between filled in, as exporters leave a model."""
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def run(model: onnx.ModelProto, **feed: np.ndarray) -> dict[str, np.ndarray]:
    with OrtRunner(model) as runner:
        return runner(feed)


def ranges(model: onnx.ModelProto, **others: float) -> dict[str, np.float32]:
    """A scale of its own for each tensor that the nodes make or read."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names = dict.fromkeys(name for n in model.graph.node for name in (*n.input, *n.output) if name)
    return {n: np.float32(others.get(n, 0.01 + i / 1000)) for i, n in enumerate(names) if n not in constants}


def small_network(opset: int = 13) -> onnx.ModelProto:
    """Convolution, residual block with a Concat beside it, pooling, Gemm; some weights shared or behind nodes."""
    rng = np.random.default_rng(3)
    constant = numpy_helper.from_array(rng.normal(size=(4, 4, 1, 1)).astype(np.float32))
    axes: dict[str, Any] = {"axes": [2, 3]} if opset < 13 else {}
    return typed(
        make_model(
            [
                node("Conv", ["x", "w1"], ["c1"], name="first", pads=[1] * 4),
                node("Relu", ["c1"], ["r1"], name="relu1"),
                node("Identity", ["w2"], ["w2 alias"], name="alias"),
                node("Conv", ["r1", "w2 alias"], ["c2"], name="second", pads=[1] * 4),
                node("Constant", [], ["k"], name="constant", value=constant),
                node("Conv", ["c2", "k"], ["c3"], name="third"),
                node("Add", ["c3", "r1"], ["s"], name="sum"),
                node("Conv", ["s", "w2"], ["c4"], name="fourth", pads=[1] * 4),
                node("Concat", ["s", "c4"], ["cat"], name="concat", axis=1),
                node("Conv", ["cat", "w5"], ["c5"], name="fifth"),
                node("GlobalAveragePool", ["c5"], ["g"], name="pool"),
                node("Squeeze", ["g"] if opset < 13 else ["g", "axes"], ["f"], name="squeeze", **axes),
                node("Gemm", ["f", "gw", "gb"], ["y"], name="gemm", transB=1),
                node("Softmax", ["y"], ["p"], name="softmax", axis=1),
            ],
            {"x": ["N", 3, 6, 6]},
            ["p", "s"],
            {
                "w1": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
                "w2": rng.normal(size=(4, 4, 3, 3)).astype(np.float32),
                "w5": rng.normal(size=(4, 8, 1, 1)).astype(np.float32),
                "gw": rng.normal(size=(5, 4)).astype(np.float32),
                "gb": np.zeros(5, np.float32),
                **({} if opset < 13 else {"axes": np.array([2, 3], np.int64)}),
            },
            opset=opset,
        )
    )


def body_model() -> onnx.ModelProto:
    branch = helper.make_graph(
        [node("Conv", ["c", "w"], ["inner"])],
        "b",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Conv", ["c", "w"], ["d"]),
        node("If", ["yes"], ["i"], name="switch", then_branch=branch, else_branch=branch),
        node("Add", ["i", "d"], ["y"]),
    ]
    model = make_model(
        nodes, {"x": [1, 1, 2, 2]}, ["y"], {"w": np.ones((1, 1, 1, 1), np.float32), "yes": np.array(True)}
    )
    return typed(model)


STEP = f32(2**-3)
WEIGHTS = np.random.default_rng(4).integers(-300, 301, (4, 3, 1, 1)).astype(np.float32) / 64
STEPS = f32([2**-5, 2**-4, 2**-6, 2**-5])  # of the channels of the weights

# Nodes that make xd of x and wd of w, with their constants, beyond those that every model here has.
PAIRS: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], int]] = {
    "zero points": (
        [
            node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0),
            node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        ],
        {"wz": np.zeros(4, np.int8)},
        13,
    ),
    "the type in an attribute": (
        [
            node("QuantizeLinear", ["x", "s"], ["xq"], output_dtype=TensorProto.INT8),
            node("DequantizeLinear", ["xq", "s"], ["xd"]),
            node("QuantizeLinear", ["w", "ws"], ["wq"], axis=0, output_dtype=TensorProto.INT8),
            node("DequantizeLinear", ["wq", "ws"], ["wd"], axis=-4),
        ],
        {},
        21,
    ),
    "both": (
        [
            node("QuantizeLinear", ["x", "s", "z"], ["xq"], output_dtype=TensorProto.INT8),
            node("DequantizeLinear", ["xq", "s"], ["xd"]),
            node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=-4, output_dtype=TensorProto.INT8),
            node("DequantizeLinear", ["wq", "ws"], ["wd"], axis=0),
        ],
        {"wz": np.zeros(4, np.int8)},
        21,
    ),
    "a Clip between": (
        [
            node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            node("Clip", ["xq", "low", "high"], ["xc"]),
            node("DequantizeLinear", ["xc", "s", "z"], ["xd"]),
            node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0),
            node("Clip", ["wq", "low", "high"], ["wc"]),
            node("DequantizeLinear", ["wc", "ws", "wz"], ["wd"], axis=0),
        ],
        {"wz": np.zeros(4, np.int8), "low": i8(-128), "high": i8(127)},
        13,
    ),
    "computed weights": (
        [
            node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            node("Transpose", ["turned"], ["w"], perm=[1, 0, 2, 3]),
            node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0),
            node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        ],
        {"wz": np.zeros(4, np.int8), "turned": np.ascontiguousarray(WEIGHTS.transpose(1, 0, 2, 3))},
        13,
    ),
    "a Transpose of integers between": (
        [
            node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            node("QuantizeLinear", ["turned", "ws", "wz"], ["tq"], axis=1),
            node("Transpose", ["tq"], ["wq"], perm=[1, 0, 2, 3]),
            node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        ],
        {"wz": np.zeros(4, np.int8), "turned": np.ascontiguousarray(WEIGHTS.transpose(1, 0, 2, 3))},
        13,
    ),
    "a computed scale": (
        [
            node("Mul", ["half s", "two"], ["s2"]),
            node("Cast", ["float z"], ["z2"], to=TensorProto.INT8),
            node("QuantizeLinear", ["x", "s2", "z2"], ["xq"]),
            node("DequantizeLinear", ["xq", "s2", "z2"], ["xd"]),
            node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0),
            node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        ],
        {"wz": np.zeros(4, np.int8), "half s": f32(STEP / 2), "two": f32(2), "float z": f32(0)},
        13,
    ),
}


def paired(spelling: str) -> onnx.ModelProto:
    nodes, constants, opset = PAIRS[spelling]
    shared = {"s": STEP, "z": i8(0), "w": WEIGHTS, "ws": STEPS}
    made = {name for n in nodes for name in n.output}
    constants = {name: value for name, value in (shared | constants).items() if name not in made}
    read = {name for n in nodes for name in n.input}
    return make_model(
        [*nodes, node("Conv", ["xd", "wd"], ["y"])],
        {"x": [1, 3, 2, 4]},
        ["y"],
        {name: value for name, value in constants.items() if name in read},
        opset=opset,
    )

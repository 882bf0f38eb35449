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

"""Models whose samples do not lie on the first axis of every input, and data for them."""

from __future__ import annotations

import numpy as np
import onnx
from models import make_model
from onnx import TensorProto, helper

node = helper.make_node
Sizes = list[int | str]

STEPS, FEATURES, POINTS = 10, 4, 32


def _weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def lstm(*sizes: int | str, direction: str = "forward") -> onnx.ModelProto:
    """x (steps, batch, 4), by its two first sizes -> LSTM -> logits (steps, batch, 3)."""
    ways = 2 if direction == "bidirectional" else 1
    model = make_model(
        [
            node("LSTM", ["x", "w", "r"], ["all"], hidden_size=6, direction=direction),
            node("ReduceSum", ["all", "ways"], ["seen"], keepdims=0),
            node("MatMul", ["seen", "o"], ["y"]),
        ],
        {"x": [*sizes, FEATURES]},
        ["y"],
        {"w": _weights(ways, 24, 4), "r": _weights(ways, 24, 6), "ways": np.array([1]), "o": _weights(6, 3)},
    )
    return with_output(model, [*sizes, 3])


def batch_first(size: int | str = "batch") -> onnx.ModelProto:
    """The same with a Transpose on both sides: x (batch, steps, 4) -> (batch, steps, 3)."""
    model = lstm(STEPS, size)
    model.graph.node[0].input[0], model.graph.node[2].output[0] = "x_t", "y_t"
    model.graph.node.insert(0, node("Transpose", ["x"], ["x_t"], perm=[1, 0, 2]))
    model.graph.node.append(node("Transpose", ["y_t"], ["y"], perm=[1, 0, 2]))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, STEPS, FEATURES])
    model.graph.input[0].CopyFrom(value)
    return with_output(model, [size, STEPS, 3])


def with_output(model: onnx.ModelProto, sizes: Sizes) -> onnx.ModelProto:
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.FLOAT, sizes))
    return model


def steps(number: int = 12, seed: int = 1) -> np.ndarray:
    """(number, steps, 4): samples first, as data have them."""
    return (np.random.default_rng(seed).normal(size=(number, STEPS, FEATURES)) * 2).astype(np.float32)


def cloud(points: int | str, outputs: Sizes) -> onnx.ModelProto:
    """x (points, 3) -> features, their maximum over all points, and both -> y, for each point or for all."""
    nodes = [
        node("MatMul", ["x", "w"], ["f"]),
        node("Relu", ["f"], ["r"]),
        node("ReduceMax", ["r"], ["g"], axes=[0], keepdims=1),
        node("Add", ["r", "g"], ["s"]) if outputs[0] == points else node("Identity", ["g"], ["s"]),
        node("MatMul", ["s", "v"], ["y"]),
    ]
    model = make_model(nodes, {"x": [points, 3]}, ["y"], {"w": _weights(3, 16), "v": _weights(16, 5)})
    return with_output(model, outputs)


def clouds(number: int = 6, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, POINTS, 3)).astype(np.float32)


def detector(batch: int | str = "batch") -> onnx.ModelProto:
    """A voice detector in small: x (batch, 4), state (2, batch, 4) and the sampling rate -> y (batch, 4)."""
    model = make_model(
        [
            node("Gather", ["state", "zero"], ["h"], axis=0),
            node("Gather", ["state", "one"], ["c"], axis=0),
            node("Cast", ["sr"], ["rate"], to=TensorProto.FLOAT),
            node("Div", ["rate", "usual"], ["gain"]),
            node("Mul", ["x", "gain"], ["m"]),
            node("Add", ["m", "h"], ["a"]),
            node("Mul", ["a", "c"], ["g"]),
            node("MatMul", ["g", "w"], ["y"]),
        ],
        {"x": [batch, 4], "state": [2, batch, 4], "sr": []},
        ["y"],
        {"zero": np.array(0), "one": np.array(1), "usual": np.array(16000, np.float32), "w": _weights(4, 4)},
        dtypes={"sr": TensorProto.INT64},
    )
    return with_output(model, [batch, 4])


def heard(number: int = 16, seed: int = 3) -> dict[str, np.ndarray]:
    """Signals and states, samples first; the two halves of a state are of different size."""
    rng = np.random.default_rng(seed)
    state = np.stack([rng.normal(5, 0.1, (number, 4)), rng.normal(-1, 0.1, (number, 4))], axis=1)
    return {"x": rng.normal(size=(number, 4)).astype(np.float32), "state": state.astype(np.float32)}


def mean_over(batch: int | str) -> onnx.ModelProto:
    """x (batch, 4) minus its mean over the batch: a sample is nothing by itself."""
    model = make_model(
        [
            node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            node("Sub", ["x", "mean"], ["centred"]),
            node("MatMul", ["centred", "w"], ["y"]),
        ],
        {"x": [batch, 4]},
        ["y"],
        {"w": _weights(4, 3)},
    )
    return with_output(model, [batch, 3])

"""Layers whose weights lie on the INT8 grid, and every way to compute them: which of them gave an output?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from trtcal.model.runner import OrtRunner

STEP = np.float32(1 / 64)  # of the input


class Layer(NamedTuple):
    """An operator with constant weights: the axes of its output and input channels, and how it is quantized."""

    op: str
    x: tuple[int, ...]
    weights: tuple[int, ...]
    outputs: int
    inputs: int
    believed: str | None
    """None where nobody knows; then any way of quantizing will do, and is recorded."""


LAYERS = {
    "Conv": Layer("Conv", (2, 8, 9, 9), (16, 8, 3, 3), 0, 1, "per output channel"),
    "Gemm": Layer("Gemm", (4, 64), (64, 32), 1, 0, None),
    "3-D MatMul": Layer("MatMul", (2, 5, 64), (64, 32), 1, 0, None),
    "ConvTranspose": Layer("ConvTranspose", (2, 8, 9, 9), (8, 16, 3, 3), 1, 0, "per input channel"),
}


def weights_on_the_grid(layer: Layer) -> np.ndarray:
    """float32 weights: in each channel whole multiples of its own step, the largest of them 127.

    The channels are those of the way that is believed, or the output's; their steps are 1 to 16 times the smallest.
    """
    axis = layer.inputs if layer.believed == "per input channel" else layer.outputs
    whole = np.moveaxis(np.random.default_rng(0).integers(-100, 101, layer.weights), axis, 0)
    whole.reshape(len(whole), -1)[:, 0] = 127
    steps = 2.0 ** -(8 + np.arange(len(whole)) % 5)
    scaled = whole * steps.reshape(-1, *[1] * (whole.ndim - 1))
    return np.ascontiguousarray(np.moveaxis(scaled, 0, axis), np.float32)


def model_of(layer: Layer, weights: np.ndarray) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(layer.op, ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, layer.x)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())


def quantized(values: np.ndarray, scales: np.ndarray | np.float32) -> np.ndarray:
    return (np.clip(np.rint(values / scales), -127, 127) * scales).astype(np.float32)


def quantizations(layer: Layer, weights: np.ndarray, top: int = 127) -> dict[str, np.ndarray]:
    """Every way to quantize the weights -> what they are then."""
    axes = {"per output channel": layer.outputs, "per input channel": layer.inputs, "per tensor": None}
    found = {}
    for name, axis in axes.items():
        others = None if axis is None else tuple(other for other in range(weights.ndim) if other != axis)
        found[name] = quantized(weights, np.abs(weights).max(axis=others, keepdims=True) / np.float32(top))
    return found


def answers(layer: Layer, x: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every way to compute the layer -> its output; sums of integers are exact in float32 here."""
    ways = {"not in INT8": (x, weights)}
    ways |= {name: (quantized(x, STEP), values) for name, values in quantizations(layer, weights).items()}
    ways |= {
        f"{name}, 128 steps": (quantized(x, STEP), values)
        for name, values in quantizations(layer, weights, 128).items()
    }
    found = {}
    for name, (fed, values) in ways.items():
        with OrtRunner(model_of(layer, values)) as runner:
            found[name] = runner({"x": fed})["y"]
    return found


def output_step(ways: Mapping[str, np.ndarray]) -> np.float32:
    """A step for the output's own INT8 grid: the smallest power of two that holds all of it."""
    return np.float32(2.0 ** np.ceil(np.log2(max(np.abs(answer).max() for answer in ways.values()) / 127)))


def explained_by(got: np.ndarray, ways: Mapping[str, np.ndarray]) -> list[str]:
    """The ways that give this output, in float32 or rounded to the output's own INT8 grid once more."""
    found, step = [], output_step(ways)
    for name, answer in ways.items():
        if np.abs(got - answer).max() <= 1e-5 * np.abs(answer).max():
            found.append(name)
            continue
        off = np.abs(got - quantized(answer, step)) / step
        if (off < 1e-3).mean() > 0.98 and off.max() < 1 + 1e-3:  # a sum close to the middle may go either way
            found.append(f"{name}, output in INT8")
    return found


def check(layer: Layer, found: list[str]) -> None:
    """AssertionError unless the layer was computed in INT8 in one way, which is the believed one if there is such."""
    way = found[0].split(",")[0] if len(found) == 1 else None
    assert way is not None, f"{found or 'no way of quantizing'} would give this output"
    assert way != "not in INT8", f"TensorRT did not compute this {layer.op} in INT8"
    assert layer.believed in (None, way), f"the weights are quantized {found[0]}, and not {layer.believed}"
    assert "128 steps" not in found[0], f"the largest weight is 128 steps: {found[0]}"


def data_of(layer: Layer) -> np.ndarray:
    """An input that lies off its grid, by up to a third of a step, and uses all of it."""
    rng = np.random.default_rng(1)
    whole = rng.integers(-126, 127, layer.x)
    whole.flat[0] = 127
    return ((whole + rng.uniform(-0.3, 0.3, layer.x) * (whole != 127)) * STEP).astype(np.float32)

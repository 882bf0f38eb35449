"""A model with outputs that say nothing about INT8 beside one that does, and data for it."""

from __future__ import annotations

import numpy as np
import onnx
from models import make_model
from onnx import TensorProto, helper

from trtcal.samples.sources import ArraySource


def beside_int8() -> onnx.ModelProto:
    """A copy of integers, floats that no INT8 layer makes, and at last what INT8 layers make: y of (N, 3)."""
    node = helper.make_node
    rng = np.random.default_rng(3)
    nodes = [
        node("Identity", ["ids"], ["ids_out"]),
        node("Neg", ["x"], ["neg"]),
        node("MatMul", ["x", "w"], ["m"]),
        node("Relu", ["m"], ["r"]),
        node("MatMul", ["r", "w2"], ["y"]),
        node("ArgMax", ["y"], ["best"], axis=1),
    ]
    constants = {
        "w": rng.normal(size=(4, 6)).astype(np.float32),
        "w2": rng.normal(size=(6, 3)).astype(np.float32),
    }
    inputs: dict[str, list[int | str]] = {"ids": ["N", 4], "x": ["N", 4]}
    outputs = ["ids_out", "neg", "best", "y"]
    return make_model(nodes, inputs, outputs, constants, dtypes={"ids": TensorProto.INT64})


def both_inputs(number: int) -> ArraySource:
    rng = np.random.default_rng(4)
    arrays = {"ids": rng.integers(0, 9, (number, 4)), "x": rng.normal(size=(number, 4)).astype(np.float32)}
    return ArraySource(arrays, labels=np.arange(number) % 3)

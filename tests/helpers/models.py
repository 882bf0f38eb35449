"""Small ONNX models and data for tests, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trtcal.model.open import open_model


def make_model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: list[str],
    initializers: dict[str, np.ndarray] | None = None,
    *,
    dtypes: dict[str, int] | None = None,
    opset: int = 13,
) -> onnx.ModelProto:
    """Nodes -> model; inputs are float32 unless ``dtypes`` says otherwise."""
    dtypes = dtypes or {}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, dtypes.get(n, TensorProto.FLOAT), shape) for n, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (initializers or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return with_typed_outputs(model)


def with_typed_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, with the types and ranks of its outputs as exporters give them; not where ONNX cannot tell."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:  # of ops from elsewhere
        return model
    outputs = {value.name: value.type.tensor_type for value in inferred.graph.output}
    for value in model.graph.output:
        found = outputs[value.name]
        if found.elem_type and found.HasField("shape"):
            value.type.tensor_type.elem_type = found.elem_type
            value.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in found.shape.dim)
            if not found.shape.dim:
                value.type.tensor_type.shape.SetInParent()
    return model


def conv_model(batch: int | str = "N", size: int = 8) -> onnx.ModelProto:
    """image (N, 3, 8, 8) -> conv, ReLU, max pool, add of a constant, flatten, gemm -> logits (N, 5)."""
    rng = np.random.default_rng(0)
    node = helper.make_node
    pooled = 4 * (size // 2) ** 2
    return make_model(
        [
            node("Conv", ["image", "w", "b"], ["conv"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Relu", ["conv"], ["relu"]),
            node("MaxPool", ["relu"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Add", ["pool", "offset"], ["sum"]),
            node("Reshape", ["sum", "shape"], ["flat"]),
            node("Gemm", ["flat", "gw"], ["logits"], transB=1),
        ],
        {"image": [batch, 3, size, size]},
        ["logits"],
        {
            "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
            "b": np.zeros(4, np.float32),
            "offset": np.array([-1.0, 0.5, 0.25, 1.0], np.float32).reshape(1, 4, 1, 1),
            "shape": np.array([batch if isinstance(batch, int) else -1, pooled], np.int64),
            "gw": rng.normal(size=(5, pooled)).astype(np.float32),
        },
    )


def load_whole_model(path: Path) -> tuple[onnx.ModelProto, bool]:
    """File -> model with all its weights in memory, and whether they lay in files beside it."""
    model = open_model(path)
    return model.whole, model.has_external_data


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Model -> file."""
    onnx.save(model, path)
    return path


def images(number: int, size: int = 8, seed: int = 1) -> NDArray[np.float32]:
    """(number, 3, size, size) float32, heavy-tailed and growing from sample to sample."""
    rng = np.random.default_rng(seed)
    scale = np.linspace(0.5, 3, number).reshape(-1, 1, 1, 1)
    return (rng.laplace(size=(number, 3, size, size)) * scale).astype(np.float32)


def batched(array: np.ndarray, size: int, name: str = "image") -> list[dict[str, np.ndarray]]:
    """Array -> batches of at most ``size``."""
    return [{name: array[i : i + size]} for i in range(0, len(array), size)]

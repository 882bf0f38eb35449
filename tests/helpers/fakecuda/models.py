"""The ONNX model that the calibrator tests build."""

from __future__ import annotations

import numpy as np

SHAPE = (3, 8, 8)


def onnx_model(
    batch: int | str = "N", *, inputs: tuple[str, ...] = ("image",), dtype: int = 1, shape: tuple[int, ...] = SHAPE
) -> bytes:
    """ONNX bytes: a Conv, a Relu, a Flatten and a Gemm; further inputs are added to the first."""
    from onnx import helper as oh

    nodes, last = [], inputs[0]
    for name in inputs[1:]:
        nodes.append(oh.make_node("Add", [last, name], [f"{last}_{name}"]))
        last = f"{last}_{name}"
    nodes += [
        oh.make_node("Conv", [last, "w"], ["conv"], name="conv"),
        oh.make_node("Relu", ["conv"], ["relu"], name="relu"),
        oh.make_node("Flatten", ["relu"], ["flat"], name="flatten"),
        oh.make_node("Gemm", ["flat", "fc"], ["y"], name="gemm"),
    ]
    flat = 4 * int(np.prod(shape[1:]))
    weights = [
        oh.make_tensor("w", 1, [4, shape[0], 1, 1], [0.5] * 4 * shape[0]),
        oh.make_tensor("fc", 1, [flat, 2], [0.1] * flat * 2),
    ]
    values = [oh.make_tensor_value_info(name, dtype, [batch, *shape]) for name in inputs]
    graph = oh.make_graph(nodes, "g", values, [oh.make_tensor_value_info("y", 1, [batch, 2])], weights)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())

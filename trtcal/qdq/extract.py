"""Out of a Q/DQ model, of trtcal or of another tool: its scales, and the float model underneath."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.nodes import bodies, copied, is_quantized, op_name
from trtcal.model.topology import MOVES_VALUES, Graph, int_attribute, reads
from trtcal.qdq.placement import label

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
from trtcal.qdq.insert import PAIR, replaced


def extract_scales(model: ModelProto) -> dict[str, np.float32]:
    """Q/DQ model, of trtcal or of another tool -> scale of each quantized activation, in graph order.

    Names are those of :func:`strip_qdq`'s model. A tensor that is quantized several times gives its largest
    scale. ModelError where no activation is quantized, or one not to int8 with a single scale and zero point
    0: a calibration cache has no place for it.
    """
    graph = Graph(model)
    sources = _float_sources(graph)
    scales: dict[str, np.float32] = {}
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or node.input[0] in graph.constants:
            continue
        scale, zero_point = _scale_and_zero_point(graph, node)
        if scale.size != 1 or zero_point.dtype != np.int8 or zero_point.any():
            raise ModelError(
                f"{label(node)}: {node.input[0]!r} is quantized to {zero_point.dtype} with {scale.size} "
                f"scale(s) and zero point {zero_point.ravel()[0]}; a cache holds ranges for int8 with one "
                f"scale per tensor and zero point 0"
            )
        name = sources.get(node.input[0], node.input[0])
        scales[name] = max(scales.get(name, np.float32(0)), np.float32(scale.item()))
    if not scales:
        raise ModelError("the model has no QuantizeLinear on an activation, so no ranges to take out")
    return scales


def strip_qdq(model: ModelProto) -> ModelProto:
    """Q/DQ model, of trtcal or of another tool -> a copy without the pairs; the opset stays as it is.

    Float weights come back as they were; int8 weights and int32 biases are dequantized. ModelError where
    int8 values are computed with (QLinearConv and the like): no float model underlies those.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = Graph(copied(model))
    sources = _float_sources(graph)
    nodes: list[NodeProto] = []
    dequantized = []
    loose: set[str] = set()  # what the pairs read, and perhaps nobody else
    for node in graph.nodes:
        output = node.output[0]
        if node.op_type not in PAIR:
            _rename_inputs(node, sources)
            nodes.append(node)
            continue
        loose.update(node.input)
        if output not in sources:
            dequantized.append(numpy_helper.from_array(_dequantized(graph, node), output))
        elif output in graph.outputs:
            nodes.append(helper.make_node("Identity", [sources[output]], [output]))
    loose -= graph.outputs.union(*map(reads, nodes))
    proto = graph.model.graph
    replaced(proto.node, [node for node in nodes if not loose.intersection(node.output)])
    replaced(proto.initializer, [value for value in proto.initializer if value.name not in loose] + dequantized)
    eight_bits = (TensorProto.INT8, TensorProto.UINT8)
    replaced(proto.value_info, [v for v in proto.value_info if v.type.tensor_type.elem_type not in eight_bits])
    return graph.model


def _float_sources(graph: Graph) -> dict[str, str]:
    """Output of each Q or DQ -> the float tensor it stands for; the DQ of an int8 constant has none."""
    sources: dict[str, str] = {}
    quantized: set[str] = set()
    for node in graph.nodes:
        read = [name for name in node.input if name in quantized]
        if node.op_type == "QuantizeLinear":
            sources[node.output[0]] = sources.get(node.input[0], node.input[0])
            quantized.add(node.output[0])
        elif node.op_type == "DequantizeLinear":
            if node.input[0] in quantized:
                sources[node.output[0]] = sources.get(node.input[0], node.input[0])
            elif node.input[0] not in graph.constants:
                raise ModelError(f"{label(node)}: dequantizes {node.input[0]!r}, which no QuantizeLinear made")
        elif op_name(node) in MOVES_VALUES and read:
            quantized.add(node.output[0])
        elif read or is_quantized(node):
            raise ModelError(
                f"{label(node)}: computes with quantized values; only a model of QuantizeLinear and "
                f"DequantizeLinear pairs around float layers has a float model underneath"
            )
    return sources


def _scale_and_zero_point(graph: Graph, node: NodeProto) -> tuple[np.ndarray, np.ndarray]:
    """The parameters of a Q or DQ node, as constants; without a zero point it is 0 of type uint8."""
    for name in node.input[1:]:
        if name and name not in graph.constants:
            raise ModelError(f"{label(node)}: its scale or zero point {name!r} is computed, not constant")
    given = len(node.input) > 2 and node.input[2]
    return graph.array(node.input[1]), graph.array(node.input[2]) if given else np.zeros((), np.uint8)


def _dequantized(graph: Graph, node: NodeProto) -> np.ndarray:
    """What a DequantizeLinear makes of the constant it reads."""
    if int_attribute(node, "block_size", 0):
        raise ModelError(f"{label(node)}: scales per block are not supported; expected per tensor or channel")
    values = graph.array(node.input[0])
    scale, zero_point = _scale_and_zero_point(graph, node)
    if scale.ndim:
        axis = int_attribute(node, "axis", 1) % values.ndim
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        scale = scale.reshape(shape)
        zero_point = zero_point.reshape(shape) if zero_point.ndim else zero_point
    # int32 holds the difference of any two 8-bit numbers; int32 biases have no zero point to subtract.
    difference = values if not zero_point.any() else values.astype(np.int32) - zero_point.astype(np.int32)
    dequantized: np.ndarray = difference.astype(scale.dtype) * scale
    return dequantized


def _rename_inputs(node: NodeProto, sources: Mapping[str, str]) -> None:
    for position, name in enumerate(node.input):
        node.input[position] = sources.get(name, name)
    for body in bodies(node):
        for inner in body.node:
            _rename_inputs(inner, sources)
        for value in body.output:
            value.name = sources.get(value.name, value.name)

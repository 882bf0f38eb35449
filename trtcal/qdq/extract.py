"""Out of a Q/DQ model, of trtcal or of another tool: its scales, and the float model underneath."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.folding import fixed_values
from trtcal.model.nodes import bodies, copied, reads, replaced
from trtcal.model.open import Source, open_model
from trtcal.model.topology import Graph
from trtcal.qdq.reading import Levels, Reading, read_quantized

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def extract_scales(model: Source) -> dict[str, np.float32]:
    """Q/DQ model, of trtcal or of another tool -> scale of each quantized activation, in graph order.

    Names are those of :func:`strip_qdq`'s model. A tensor that is quantized several times gives its largest
    scale. ModelError where no activation is quantized, or one not to int8 with a single scale and zero point 0: a
    calibration cache has no place for it; and as :func:`trtcal.qdq.reading.read_quantized`.
    """
    model = open_model(model)
    scales: dict[str, np.float32] = {}
    for name, levels in read_quantized(Graph(model.proto), model.folder).activations:
        _refuse_unlike_int8(name, levels)
        scales[name] = max(scales.get(name, np.float32(0)), np.float32(levels.scale.item()))
    if not scales:
        raise ModelError("the model has no QuantizeLinear on an activation, so no ranges to take out")
    return scales


def strip_qdq(model: Source) -> ModelProto:
    """Q/DQ model, of trtcal or of another tool -> a copy without the pairs; the opset stays as it is.

    Float weights come back as they were; int8 weights and int32 biases are dequantized. Inputs and outputs that were
    integers are floats under the same names. ModelError where integers are computed with (QLinearConv and the like) or
    a pair does more than round: no float model underlies those.
    """
    from onnx import numpy_helper

    graph = Graph(copied(open_model(model).whole))
    reading = read_quantized(graph)
    constants = fixed_values(graph, reading.constants)
    for node in graph.nodes:
        _rename_inputs(node, reading.sources)
    kept, loose = _without(graph, reading)
    proto = graph.model.graph
    replaced(proto.node, kept)
    left = {tensor.name for tensor in proto.initializer if tensor.name in loose}
    replaced(proto.input, [value for value in proto.input if value.name not in left])
    held = [tensor for tensor in proto.initializer if tensor.name not in loose]
    replaced(proto.initializer, held + [numpy_helper.from_array(array, name) for name, array in constants.items()])
    for value in (*proto.input, *proto.output):
        if value.name in reading.integers:
            value.type.tensor_type.elem_type = reading.integers[value.name].floats
    known = {name for node in kept for name in node.output} | constants.keys() | {t.name for t in held}
    replaced(proto.value_info, [v for v in proto.value_info if v.name in known - reading.integers.keys()])
    del proto.quantization_annotation[:]
    return graph.model


def _refuse_unlike_int8(name: str, levels: Levels) -> None:
    """ModelError for an activation that a calibration cache has no place for."""
    type = levels.type
    if type == "int8" and (levels.low > -127 or levels.high < 127):
        type = f"int8, of which {levels.low:.0f} to {levels.high:.0f} are used,"
    if type != "int8" or levels.scale.size != 1 or levels.zero_point.any():
        raise ModelError(
            f"{levels.by}: {name!r} is quantized to {type} with {levels.scale.size} scale(s) and zero point "
            f"{levels.zero_point.ravel()[0]:.0f}; a cache holds ranges for int8 with one scale per tensor and zero "
            f"point 0"
        )


def _without(graph: Graph, reading: Reading) -> tuple[list[NodeProto], set[str]]:
    """Nodes of the float model, and what only the pairs read, be it constants or what was computed from constants."""
    from onnx import helper

    kept: list[NodeProto] = []
    needed = set(graph.outputs)
    loose: set[str] = set()
    for index in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[index]
        if index not in reading.removed:
            if loose.isdisjoint(node.output) or not needed.isdisjoint(node.output):
                needed.update(reads(node))
                kept.append(node)
            else:
                loose.update(reads(node))
            continue
        loose.update(reads(node))
        for name in node.output:
            if name in reading.casts:
                source, type = reading.casts[name]
                kept.append(helper.make_node("Cast", [source], [name], to=type))
                needed.add(source)
            elif name in graph.outputs and name in reading.sources:
                kept.append(helper.make_node("Identity", [reading.sources[name]], [name]))
                needed.add(reading.sources[name])
    return kept[::-1], loose - needed


def _rename_inputs(node: NodeProto, sources: Mapping[str, str]) -> None:
    for position, name in enumerate(node.input):
        node.input[position] = sources.get(name, name)
    for body in bodies(node):
        for inner in body.node:
            _rename_inputs(inner, sources)
        for value in body.output:
            value.name = sources.get(value.name, value.name)

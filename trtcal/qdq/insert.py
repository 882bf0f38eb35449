"""Ranges into a model as QuantizeLinear/DequantizeLinear pairs, and back out of it.

The output needs no calibrator: TensorRT 10 and 11 read the precision from the graph. Activations get one
scale each, weights one per output channel; zero points are 0 and values int8, as TensorRT wants them.

Weights stay float32 initializers behind a pair of their own. TensorRT also takes int8 initializers behind a
DequantizeLinear, but only float32 ones suit every release from 8.0 on ("Quantized Weights" in NVIDIA's
guide), ONNX Runtime computes the same from either, and the float model can be had back bit for bit. The file
is as large as before; the engine is not.

Every tensor of the original keeps its name. ``x`` is written as before, and layers that read it as int8 read
``x_dequantized`` instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.graph import STANDARD, bodies, copied, is_quantized, name_domain_alike, op_name, subgraphs
from trtcal.model.topology import MOVES_VALUES, WEIGHTED, Graph, int_attribute, reads
from trtcal.qdq.placement import PLACEMENTS, Weight, invalid_scale, label, layer_name, place
from trtcal.qdq.weights import WeightScales, weight_scales

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

MIN_OPSET = 13  # the first whose QuantizeLinear has an axis, which scales per channel need
MIN_IR_VERSION = 7  # of ONNX 1.8, which brought opset 13
PAIR = ("QuantizeLinear", "DequantizeLinear")  # of any domain, as `is_quantized` takes them
CONSTANT = "a constant, which is computed as it is"
"""Why a range that was given is not used where nothing is amiss: TensorRT's caches have one for every constant."""


@dataclass(frozen=True, eq=False)
class QdqResult:
    """A model with Q/DQ pairs, and an account of what is int8 in it.

    ``quantized`` has the scale of every int8 activation, in the order of the graph; it differs from the
    given one where Concat or a layer that only moves values makes tensors share a scale. ``weights`` and
    ``layers`` name what else is int8. ``skipped`` holds (tensor, reason) for every other tensor that a scale
    was given for in vain or that an INT8 layer would have needed one of.
    """

    model: ModelProto
    quantized: Mapping[str, np.float32]
    weights: tuple[str, ...]
    layers: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def insert_qdq(
    model: ModelProto,
    scales: Mapping[str, np.float32],
    *,
    placement: str = "tensorrt",
    exclude: Iterable[str] = (),
    weights: WeightScales = weight_scales,
) -> QdqResult:
    """Float model and scales (amax / 127) -> a copy with Q/DQ pairs, of opset 13 or newer.

    ``placement`` is one of ``trtcal.qdq.placement.PLACEMENTS``. ``exclude`` names layers that stay in float: a
    node's name, op type or output, or a glob of such. Scales that cannot be used are skipped and reported.
    Bodies of If, Loop and Scan and the model's own functions are left as they are, and reported. Equal
    arguments give equal bytes.

    ModelError if the model is quantized already, has weights in files that were not loaded, cannot be raised
    to opset 13, or has none of the tensors; ValueError for an unknown placement or an ``exclude`` that fits
    no node.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"unknown placement {placement!r}; choose one of {', '.join(PLACEMENTS)}")
    _refuse_quantized(model)
    graph = Graph(raised(model))
    unknown = [name for name in scales if name not in graph.tensors]
    if scales and len(unknown) == len(scales):
        raise ModelError(
            f"none of the {len(scales)} ranges is for a tensor of this model: the first is for "
            f"{unknown[0]!r}, while the model has {', '.join(map(repr, sorted(graph.tensors)[:3]))}, ...; "
            f"take the cache of this very model"
        )
    plan = place(graph, scales, PLACEMENTS[placement], exclude)
    pairs = _Pairs(graph)
    nodes: list[NodeProto] = []
    for index, node in enumerate(graph.nodes):
        for position, read in plan.reads.get(index, {}).items():
            if read not in pairs.outputs:
                if isinstance(read, Weight):
                    nodes += pairs.make(read, weights(graph.array(read.name), read.axis))
                else:
                    nodes += pairs.make(read, np.asarray(plan.scales[read]))
            node.input[position] = pairs.outputs[read]
        nodes.append(node)
    _replace(graph.model.graph.node, nodes)
    skipped = plan.skipped | {name: _why_unknown(graph, name) for name in unknown} | dict(_out_of_reach(graph))
    return QdqResult(
        graph.model,
        plan.scales,
        tuple(dict.fromkeys(read.name for read in pairs.outputs if isinstance(read, Weight))),
        tuple(layer_name(graph.nodes[index]) for index in sorted(plan.reads)),
        tuple(skipped.items()),
    )


def check_int8(layers: Collection[Any], skipped: Iterable[tuple[str, str]], name: str) -> None:
    """What is INT8 of a model, and why tensors are not -> nothing; ModelError, naming the model, where all is float."""
    if not layers:
        reasons = [f"{tensor}: {why}" for tensor, why in skipped] or ["no layer of it can be INT8"]
        raise ModelError(f"{name}: nothing becomes INT8 with these ranges; {reasons[0]}")


def int8_candidates(model: ModelProto, *, placement: str = "tensorrt", exclude: Iterable[str] = ()) -> int:
    """Float model -> how many layers :func:`insert_qdq` would make INT8 if every tensor had a range."""
    graph = Graph(raised(model))
    return len(place(graph, dict.fromkeys(graph.tensors, np.float32(1)), PLACEMENTS[placement], exclude).reads)


def check_exclude(model: ModelProto, exclude: Iterable[str]) -> None:
    """Model and what :func:`insert_qdq` is to leave in float -> nothing; its ValueError, with the closest names."""
    exclude = tuple(exclude)
    if exclude:
        place(Graph(raised(model)), {}, {}, exclude)


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
    _replace(proto.node, [node for node in nodes if not loose.intersection(node.output)])
    _replace(proto.initializer, [value for value in proto.initializer if value.name not in loose] + dequantized)
    eight_bits = (TensorProto.INT8, TensorProto.UINT8)
    _replace(proto.value_info, [v for v in proto.value_info if v.type.tensor_type.elem_type not in eight_bits])
    return graph.model


class _Pairs:
    """Makes Q/DQ pairs under names the model does not have; ``outputs`` says what to read of each."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = set(graph.tensors) | {node.name for node in graph.nodes}
        self.outputs: dict[str | Weight, str] = {}
        self.zero_points: dict[tuple[int, ...], str] = {}

    def make(self, read: str | Weight, scale: np.ndarray) -> list[NodeProto]:
        """A tensor and its float32 scale, or scales per channel -> the two nodes."""
        from onnx import helper

        name, axis = read if isinstance(read, Weight) else (read, None)
        channels = () if axis is None else (self.graph.constants[name].tensor.dims[axis],)
        if scale.dtype != np.float32 or scale.shape != channels or any(map(invalid_scale, scale.ravel())):
            raise ValueError(f"{name!r}: expected positive float32 scales of shape {channels}, got {scale!r}")
        if channels not in self.zero_points:
            zeros = np.zeros(channels, np.int8)
            self.zero_points[channels] = self._constant("_".join(map(str, ("zero_point", *channels))), zeros)
        shared = [self._constant(f"{name}_scale", scale), self.zero_points[channels]]
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        quantized, dequantized = self._new(f"{name}_quantized"), self._new(f"{name}_dequantized")
        self.outputs[read] = dequantized
        return [
            helper.make_node(op_type, [source, *shared], [output], self._new(f"{name}_{op_type}"), **attributes)
            for op_type, source, output in zip(PAIR, (name, quantized), (quantized, dequantized), strict=True)
        ]

    def _constant(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        name = self._new(name)
        self.graph.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _new(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name


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


def _refuse_quantized(model: ModelProto) -> None:
    for body in (model.graph, *subgraphs(model.graph)):
        for node in body.node:
            if is_quantized(node):
                raise ModelError(
                    f"{label(node)}: the model is quantized already; give the float model, or take the pairs "
                    f"out with strip_qdq"
                )


def raised(model: ModelProto) -> ModelProto:
    """Model -> a copy with the opset and IR version that Q/DQ pairs per channel need; ModelError if there is no way."""
    from onnx import version_converter

    opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD), MIN_OPSET)
    model = copied(model)
    name_domain_alike(model)
    # Raised first: the converter takes models of IR 3 to list their weights among their inputs.
    model.ir_version = max(model.ir_version, MIN_IR_VERSION)
    if opset >= MIN_OPSET:
        return model
    try:
        return version_converter.convert_version(model, MIN_OPSET)
    except Exception as error:  # whatever its C++ raises, IndexError from ONNX 1.16 among it
        raise ModelError(
            f"the model has opset {opset} and cannot be raised to {MIN_OPSET}, the least that Q/DQ needs "
            f"({error}); export it again with a newer opset"
        ) from error


def _why_unknown(graph: Graph, name: str) -> str:
    """Why a model has no tensor of this name; TensorRT calls a constant after its initializer."""
    if name.removesuffix("_output") in graph.constants:
        return CONSTANT
    return "no tensor of this model"


def _out_of_reach(graph: Graph) -> Iterator[tuple[str, str]]:
    """Outputs of weighted layers inside bodies and functions, and why they stay in float."""
    functions = {(function.domain, function.name) for function in graph.model.functions}
    for node in graph.nodes:
        if (node.domain, node.op_type) in functions:
            yield node.output[0], "made by a function of the model, which stays in float (inline it before)"
        for body in bodies(node):
            for inner in (body, *subgraphs(body)):
                for layer in inner.node:
                    if op_name(layer) in WEIGHTED:
                        yield layer.output[0], f"inside {label(node)}, which stays in float"


def _rename_inputs(node: NodeProto, sources: Mapping[str, str]) -> None:
    for position, name in enumerate(node.input):
        node.input[position] = sources.get(name, name)
    for body in bodies(node):
        for inner in body.node:
            _rename_inputs(inner, sources)
        for value in body.output:
            value.name = sources.get(value.name, value.name)


def _replace(field: Any, items: Iterable[Any]) -> None:
    """Set a repeated field of a protobuf message, from items that may come out of it."""
    items = list(items)
    del field[:]
    field.extend(items)

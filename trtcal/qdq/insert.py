"""Ranges into a model as QuantizeLinear/DequantizeLinear pairs.

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

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trtcal.errors import ModelError
from trtcal.files.brief import brief, few
from trtcal.model.constants import lifted
from trtcal.model.folding import fixed_values
from trtcal.model.nodes import (
    Names,
    all_bodies,
    bodies,
    constants_of,
    is_quantized,
    label,
    op_name,
    replaced,
    subgraphs,
)
from trtcal.model.open import Model, Source, open_model
from trtcal.model.opset import IR_VERSION, rewritten
from trtcal.model.topology import WEIGHTED, Graph, fixed_in
from trtcal.qdq.fake_quant import ROUNDS, fake_quants
from trtcal.qdq.placement import PLACEMENTS, Plan, Weight, all_valid, layer_name, place
from trtcal.qdq.reading import PAIR
from trtcal.qdq.weights import WeightScales, weight_scales

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

MIN_OPSET = 13  # the first whose QuantizeLinear has an axis, which scales per channel need
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

    __repr__ = brief


def insert_qdq(
    model: Source,
    scales: Mapping[str, np.float32],
    *,
    placement: str = "tensorrt",
    exclude: Iterable[str] = (),
    weights: WeightScales = weight_scales,
    samples: Iterable[Mapping[str, np.ndarray]] | None = None,
) -> QdqResult:
    """Float model and scales (amax / 127) -> a copy with Q/DQ pairs, of opset 13 or newer.

    ``placement`` is one of ``trtcal.qdq.placement.PLACEMENTS``. ``exclude`` names layers that stay in float: a
    node's name, op type or output, or a glob of such. Scales that cannot be used are skipped and reported.
    Bodies of If, Loop and Scan are left as they are, and reported. Weights that are computed from constants become
    constants. An older opset is raised, which must change no output on ``samples`` (``{input: array}``; default: random
    ones): see :func:`trtcal.model.opset.raise_opset`. Equal arguments give equal bytes.

    ModelError if the model is quantized already, has weights in files that were not loaded, cannot be raised
    to opset 13, or has none of the tensors; ValueError for an unknown placement or an ``exclude`` that fits
    no node.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"unknown placement {placement!r}; choose one of {', '.join(PLACEMENTS)}")
    model = open_model(model)
    refuse_quantized(model)
    graph = quantizable(model, samples)
    unknown = unknown_tensors(graph, scales)
    plan = place(graph, scales, PLACEMENTS[placement], exclude)
    pairs = Pairs(graph)

    def made(read: str | Weight) -> tuple[str, list[NodeProto]]:
        if isinstance(read, Weight):
            return pairs.make(read, weights(graph.array(read.name), read.axis))
        return pairs.make(read, np.asarray(plan.scales[read]))

    outputs = read_instead(graph, plan, made)
    held = (constant.tensor.name for constant in constants_of(model.proto.graph).values())
    constants = fixed_in(model.proto.graph).union(held)
    reasons = {name: _why_float(model, name, why) for name, why in plan.skipped.items()}
    skipped = reasons | {name: _why_unknown(constants, name) for name in unknown} | dict(out_of_reach(graph))
    return QdqResult(
        graph.model,
        plan.scales,
        tuple(dict.fromkeys(read.name for read in outputs if isinstance(read, Weight))),
        tuple(layer_name(graph.nodes[index]) for index in sorted(plan.reads)),
        tuple(skipped.items()),
    )


def refuse_quantized(model: Model) -> None:
    """Float model -> nothing; ModelError where it is quantized already, by Q/DQ pairs or in plain operators."""
    _refuse_quantized(model.proto)
    _refuse_fake_quantized(model)


def unknown_tensors(graph: Graph, scales: Collection[str]) -> list[str]:
    """Names that scales are for -> those that are no tensors of the graph; ModelError where none of them is one."""
    unknown = [name for name in scales if name not in graph.tensors]
    if scales and len(unknown) == len(scales):
        raise ModelError(
            f"none of the {len(scales)} ranges is for a tensor of this model: the first is for "
            f"{unknown[0]!r}, while the model has {few([repr(name) for name in sorted(graph.tensors)])}; "
            f"take the cache of this very model"
        )
    return unknown


def read_instead(
    graph: Graph, plan: Plan, make: Callable[[str | Weight], tuple[str, list[NodeProto]]]
) -> dict[str | Weight, str]:
    """Let the layers of a plan read something else of each tensor and weight -> its name, of each.

    ``make`` is asked once for each: what to read, and the nodes that make it, which come before the first reader.
    """
    outputs: dict[str | Weight, str] = {}
    nodes: list[NodeProto] = []
    for index, node in enumerate(graph.nodes):
        for position, read in plan.reads.get(index, {}).items():
            if read not in outputs:
                outputs[read], before = make(read)
                nodes += before
            node.input[position] = outputs[read]
        nodes.append(node)
    replaced(graph.model.graph.node, nodes)
    return outputs


def check_int8(layers: Collection[Any], skipped: Iterable[tuple[str, str]], name: str) -> None:
    """What is INT8 of a model, and why tensors are not -> nothing; ModelError, naming the model, where all is float."""
    if not layers:
        reasons = [f"{tensor}: {why}" for tensor, why in skipped] or ["no layer of it can be INT8"]
        raise ModelError(f"{name}: nothing becomes INT8 with these ranges; {reasons[0]}")


def quantizable(model: Model, samples: Iterable[Mapping[str, np.ndarray]] | None = None) -> Graph:
    """Float model -> a copy that pairs can go into, indexed: weights are there and constant, the opset has scales per
    channel. What raising the opset changes is looked for on ``samples``, or on random ones.
    """
    return structure(model.with_opset(MIN_OPSET, samples))


def structure(model: Model) -> Graph:
    """As :func:`quantizable`, for those who ask what there is and not what it computes."""
    proto, _ = rewritten(lifted(model.whole, model.libraries), MIN_OPSET)
    proto.ir_version = max(proto.ir_version, IR_VERSION)
    return Graph(proto, model.originals)


def int8_candidates(model: Source, *, placement: str = "tensorrt", exclude: Iterable[str] = ()) -> int:
    """Float model -> how many layers :func:`insert_qdq` would make INT8 if every tensor had a range."""
    graph = structure(open_model(model))
    return len(place(graph, dict.fromkeys(graph.tensors, np.float32(1)), PLACEMENTS[placement], exclude).reads)


def check_exclude(model: Source, exclude: Iterable[str]) -> None:
    """Model and what :func:`insert_qdq` is to leave in float -> nothing; its ValueError, with the closest names."""
    exclude = tuple(exclude)
    if exclude:
        place(structure(open_model(model)), {}, {}, exclude)


def fitting(model: Source, exclude: Iterable[str]) -> tuple[str, ...]:
    """What of ``exclude`` fits a node of the model, where the rest fits what it was part of."""
    graph, found = structure(open_model(model)), []
    for pattern in exclude:
        with suppress(ValueError):
            place(graph, {}, {}, [pattern])
            found.append(pattern)
    return tuple(found)


class Pairs:
    """Makes Q/DQ pairs under names the model does not have; with ``fed``, their scales are inputs of the model."""

    def __init__(self, graph: Graph, *, fed: bool = False) -> None:
        self.graph, self.fed = graph, fed
        self.scales: dict[str, str] = {}  # tensor -> what its scale is called
        self._names = Names(graph.model)
        self._zero_points: dict[tuple[int, ...], str] = {}

    def make(self, read: str | Weight, scale: np.ndarray) -> tuple[str, list[NodeProto]]:
        """A tensor and its float32 scale, or scales per channel -> what to read of it, and the two nodes."""
        from onnx import helper

        name, axis = read if isinstance(read, Weight) else (read, None)
        channels = () if axis is None else (self.graph.constants[name].tensor.dims[axis],)
        if scale.dtype != np.float32 or scale.shape != channels or not all_valid(scale):
            raise ValueError(f"{name!r}: expected positive float32 scales of shape {channels}, got {scale!r}")
        if channels not in self._zero_points:
            zeros = np.zeros(channels, np.int8)
            self._zero_points[channels] = self.constant("_".join(map(str, ("zero_point", *channels))), zeros)
        self.scales[name] = self.constant(f"{name}_scale", scale, fed=self.fed)
        shared = [self.scales[name], self._zero_points[channels]]
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        quantized, dequantized = self._new(f"{name}_quantized"), self._new(f"{name}_dequantized")
        nodes = [
            helper.make_node(op_type, [source, *shared], [output], self._new(f"{name}_{op_type}"), **attributes)
            for op_type, source, output in zip(PAIR, (name, quantized), (quantized, dequantized), strict=True)
        ]
        return dequantized, nodes

    def constant(self, name: str, value: np.ndarray, *, fed: bool = False) -> str:
        """An initializer of this name, or one much like it; ``fed``: another value may be fed in its place."""
        from onnx import helper, numpy_helper

        name, graph = self._new(name), self.graph.model.graph
        tensor = numpy_helper.from_array(value, name)
        graph.initializer.append(tensor)
        if fed:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, value.shape))
        return name

    def _new(self, name: str) -> str:
        while name in self._names:
            name += "_"
        return self._names.new(name)


def _refuse_quantized(model: ModelProto) -> None:
    for body in all_bodies(model):
        for node in body.node:
            if is_quantized(node):
                raise ModelError(
                    f"{label(node)}: the model is quantized already; give the float model, or take the pairs "
                    f"out with strip_qdq"
                )


def _refuse_fake_quantized(model: Model) -> None:
    """What is rounded to int8 in plain operators would be rounded twice."""
    if not any(op_name(node) in ROUNDS for node in model.proto.graph.node):
        return
    graph = Graph(model.proto)
    for fake in fake_quants(graph, lambda name: fixed_values(graph, [name], model.folder)[name]):
        if fake.is_int8 and fake.source not in graph.fixed:
            raise ModelError(
                f"{label(graph.nodes[fake.nodes[-1]])}: the model is quantized already, {fake.source!r} in plain "
                f"operators; give the float model, or take the rounding out with strip_qdq"
            )


def _why_unknown(constants: Container[str], name: str) -> str:
    """Why no range of this name is used; TensorRT calls a constant after its weights."""
    if name in constants or name.removesuffix("_output") in constants:
        return CONSTANT
    return "no tensor of this model"


def _why_float(model: Model, name: str, why: str) -> str:
    """Why a tensor is not INT8; where it has no scale since ONNX Runtime cannot compute it, that is said."""
    return why.replace("it has no scale", f"it {model.unknown.why(name)}") if name in model.unknown.tensors else why


def out_of_reach(graph: Graph) -> Iterator[tuple[str, str]]:
    """Outputs of weighted layers inside bodies and functions, and why they stay in float."""
    functions = {(function.domain, function.name) for function in graph.model.functions}
    for node in graph.nodes:
        if (node.domain, node.op_type) in functions:
            yield node.output[0], "made by a function of the model for another opset, which stays in float"
        why = "which stays in float"
        if op_name(node) == "If":
            why += "; if one branch is always taken, put its nodes in the place of the If"
        for body in bodies(node):
            for inner in (body, *subgraphs(body)):
                for layer in inner.node:
                    if op_name(layer) in WEIGHTED:
                        yield layer.output[0], f"inside {label(node)}, {why}"

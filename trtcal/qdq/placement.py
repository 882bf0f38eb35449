"""Which tensors of a model become INT8: placement rules as tables.

A placement maps an op type to a rule, and a rule names the inputs that a layer of that type reads as int8.
``"tensorrt"`` is what TensorRT 10 and 11 want of a Q/DQ model; ``"all"`` is how TensorRT 8 to 10 run a model
with a calibration cache: every calibrated tensor that an INT8-capable layer reads. A new rule is one
function and one line in a table.

Three things hold for both. A layer becomes INT8 as a whole or not at all: where one of its inputs has no
usable scale, all of them stay in float and the reason is reported. What TensorRT fuses into a layer's kernel
(BatchNormalization, activations, the sum of a residual block) is computed before the rounding, so nothing is
quantized in between, and it stays in float with its layer. And a tensor has one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from glob import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.nodes import label, op_name
from trtcal.model.topology import Graph, int_attribute

if TYPE_CHECKING:
    from onnx import NodeProto

Rule = Callable[[Graph, int], list[int]]
"""(graph, index of the node) -> positions of the inputs that an INT8 layer of this kind reads as int8."""

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


class Weight(NamedTuple):
    """A constant to quantize along ``axis``; with one scale for all of it where that is None."""

    name: str
    axis: int | None


def first_input(graph: Graph, index: int) -> list[int]:
    """The data, of a layer that has one data input."""
    return [0]


def both_factors(graph: Graph, index: int) -> list[int]:
    """Data and weights, or the two activations of a MatMul; never the bias."""
    return [0, 1]


def residual_input(graph: Graph, index: int) -> list[int]:
    """The input of a sum that a convolution does not make itself, if its kernel does the sum."""
    if op_name(graph.nodes[graph.root[index]]) not in CONVOLUTIONS:
        return []
    return unfused_inputs(graph, index)


def unfused_inputs(graph: Graph, index: int) -> list[int]:
    """Every activation that reaches the node from outside its kernel."""
    return [position for position in graph.activations(index) if not graph.is_fused(index, position)]


def every_input(graph: Graph, index: int) -> list[int]:
    """All inputs, if none of them is constant."""
    positions = graph.activations(index)
    return positions if len(positions) == len(graph.nodes[index].input) else []


# Source: "Explicit Quantization" in NVIDIA's TensorRT documentation, Q/DQ placement recommendations.
TENSORRT: dict[str, Rule] = {
    "Conv": both_factors,
    "ConvTranspose": both_factors,
    "Gemm": both_factors,
    "MatMul": both_factors,
    "Add": residual_input,
    "AveragePool": first_input,
    "GlobalAveragePool": first_input,
}

# What else has INT8 kernels according to the layer and precision table of TensorRT 8's support matrix, less
# what TensorRT keeps in float in practice (Softmax, normalization and its parts, linear Resize).
IMPLICIT: dict[str, Rule] = TENSORRT | {
    "Add": unfused_inputs,
    "Mul": unfused_inputs,
    "BatchNormalization": unfused_inputs,
    "Relu": unfused_inputs,
    "LeakyRelu": unfused_inputs,
    "Clip": unfused_inputs,
    "Sigmoid": unfused_inputs,
    "Tanh": unfused_inputs,
    "MaxPool": first_input,
    "Concat": every_input,
}

PLACEMENTS: dict[str, dict[str, Rule]] = {"tensorrt": TENSORRT, "all": IMPLICIT}


def gemm_axis(node: NodeProto, rank: int) -> int:
    """Axis of the rows where Gemm transposes its weights, else of the columns."""
    return 0 if int_attribute(node, "transB", 0) else 1


def conv_transpose_axis(node: NodeProto, rank: int) -> int | None:
    """Axis 1; None with groups, where axis 1 counts the channels of *one* group and names no channel."""
    return 1 if int_attribute(node, "group", 1) == 1 else None


def matmul_axis(node: NodeProto, rank: int) -> int | None:
    """The last axis; None for a vector, which has no axis but the one that is summed over."""
    return rank - 1 if rank > 1 else None


# Op type -> the weights' axis of output channels. Weights are the second input; a constant as the first
# input of Gemm or MatMul gets one scale, since TensorRT has no per-channel scales there.
WEIGHT_AXIS: dict[str, Callable[[NodeProto, int], int | None]] = {
    "Conv": lambda node, rank: 0,
    "ConvTranspose": conv_transpose_axis,
    "Gemm": gemm_axis,
    "MatMul": matmul_axis,
}


@dataclass(frozen=True)
class Plan:
    """What to quantize.

    ``reads`` says, per node index and input position, what is read as int8: an activation or a weight.
    ``scales`` has the scale of each such activation, in topological order of first use; ``skipped`` says
    why other tensors stay in float.
    """

    reads: dict[int, dict[int, str | Weight]]
    scales: dict[str, np.float32]
    skipped: dict[str, str]


def place(graph: Graph, scales: Mapping[str, np.float32], table: Mapping[str, Rule], exclude: Iterable[str]) -> Plan:
    """Apply a table's rules to a graph; ValueError for a pattern in ``exclude`` that fits no node."""
    excluded = _matching(graph, exclude)
    reads: dict[int, dict[int, str | Weight]] = {}
    skipped: dict[str, str] = {}
    for index, node in enumerate(graph.nodes):
        root = graph.root.get(index, index)
        if op_name(node) not in table or index in excluded or (root != index and root not in reads):
            continue
        if index not in graph.live:
            continue  # nobody needs what it computes
        found, problems = _inputs(graph, scales, index, table[op_name(node)](graph, index))
        activations = [read for read in found.values() if isinstance(read, str) and read not in graph.fixed]
        kinds = {graph.dtype(name).kind for name in activations}
        if not kinds or kinds & set("biu"):
            continue  # nothing to quantize, constants that nobody folded, or integers and masks
        if problems:
            skipped |= {name: f"{why}; {label(node)} stays in float" for name, why in problems.items()}
        else:
            reads[index] = found
    _extend_to_concats(graph, reads, excluded)
    order = [read for index in sorted(reads) for read in reads[index].values() if isinstance(read, str)]
    unified = _unify(graph, reads, scales)
    return Plan(reads, {name: unified[name] for name in order}, skipped)


def weights_of(graph: Graph) -> dict[Weight, str]:
    """Every weight of the main graph -> the first layer that reads it, in the order of the graph."""
    found: dict[Weight, str] = {}
    for index, node in enumerate(graph.nodes):
        if op_name(node) in WEIGHT_AXIS:
            for position in both_factors(graph, index):
                if node.input[position] in graph.constants:
                    found.setdefault(_weight(graph, index, position), layer_name(node))
    return found


def layer_name(node: NodeProto) -> str:
    """A node's name, or that of its first output if it has none."""
    return node.name or node.output[0]


def exclusion(graph: Graph, index: int) -> str:
    """A node's index -> what to give ``exclude`` so that it fits this node and no other."""
    node = graph.nodes[index]
    for name in map(str, filter(None, (node.name, *node.output))):
        for pattern in (name, escape(name)):
            if _matching(graph, [pattern]) == {index}:
                return pattern
    raise ModelError(f"{label(node)}: no name fits this node alone; give every node a name of its own")


def invalid_scale(scale: float | np.float32) -> str | None:
    """Why a scale cannot be used; None if it can. TensorRT takes positive, finite, normal float32 numbers."""
    value = float(scale)
    if value == 0:
        return "its scale is 0: the tensor was all zeros during calibration"
    if not np.isfinite(value):
        return f"its scale is {value}: calibration met an inf or nan"
    if not float(np.finfo(np.float32).tiny) <= value <= float(np.finfo(np.float32).max):
        return f"its scale is {value}, which is no positive normal float32"
    return None


def all_valid(scales: np.ndarray) -> bool:
    """Can each of these float32 scales be used?"""
    return bool((np.isfinite(scales) & (scales >= np.finfo(np.float32).tiny)).all())


def _inputs(
    graph: Graph, scales: Mapping[str, np.float32], index: int, positions: Iterable[int]
) -> tuple[dict[int, str | Weight], dict[str, str]]:
    """What a layer would read as int8, and which tensors stand against it and why."""
    node = graph.nodes[index]
    found: dict[int, str | Weight] = {}
    problems: dict[str, str] = {}
    for position in positions:
        name = node.input[position]
        if name in graph.constants:
            found[position] = weight = _weight(graph, index, position)
            problem = _weight_problem(graph, weight)
        else:
            found[position] = name
            problem = _activation_problem(graph, scales, name)
            if name in graph.fixed or (position == 1 and op_name(node) in CONVOLUTIONS):
                problem = "weights that are computed rather than constant (fold constants before)"
        if problem:
            problems[name] = problem
    return found, problems


def _weight(graph: Graph, index: int, position: int) -> Weight:
    node = graph.nodes[index]
    name, tensor = graph.constants[node.input[position]]
    return Weight(name, WEIGHT_AXIS[op_name(node)](node, len(tensor.dims)) if position == 1 else None)


def _weight_problem(graph: Graph, weight: Weight) -> str | None:
    array = graph.array(weight.name)
    if weight.axis is not None and weight.axis >= array.ndim:
        return f"weights of shape {array.shape}, which have no axis {weight.axis} of output channels"
    if array.dtype != np.float32:
        return f"weights of type {array.dtype}, where float32 is needed"
    return None if np.isfinite(array).all() else "weights that hold inf or nan"


def _activation_problem(graph: Graph, scales: Mapping[str, np.float32], name: str) -> str | None:
    if graph.dtype(name) != np.float32:
        return f"it is {graph.dtype(name)}, where float32 is needed"
    scale = _own_scale(graph, scales, name)
    return "it has no scale" if scale is None else invalid_scale(scale)


def _own_scale(graph: Graph, scales: Mapping[str, np.float32], name: str) -> np.float32 | None:
    """The scale given for a tensor, or for the one whose values it holds in another order."""
    source: str | None = name
    while source is not None:
        if source in scales:
            return np.float32(scales[source])
        source = graph.moved_from(source)
    return None


def _extend_to_concats(graph: Graph, reads: dict[int, dict[int, str | Weight]], excluded: set[int]) -> None:
    """Let a Concat read int8 if only int8 is read of it: then INT8 layers can write into its output."""

    def is_int8_only(name: str) -> bool:
        waiting = [name]  # and behind it what only moves its values
        while waiting:
            name = waiting.pop()
            readers = graph.live_readers(name)
            if name in graph.outputs or not readers:
                return False
            for reader in readers:
                if graph.moved_from(graph.nodes[reader].output[0]) == name:
                    waiting.append(graph.nodes[reader].output[0])
                elif any(reads.get(reader, {}).get(where) != name for where in _positions(graph, reader, name)):
                    return False
        return True

    for index in reversed(range(len(graph.nodes))):
        node = graph.nodes[index]
        if op_name(node) != "Concat" or index in excluded or not is_int8_only(node.output[0]):
            continue
        positions = every_input(graph, index)
        if positions and graph.dtype(node.output[0]) == np.float32:
            reads[index] = {position: node.input[position] for position in positions}


def _unify(
    graph: Graph, reads: Mapping[int, Mapping[int, str | Weight]], scales: Mapping[str, np.float32]
) -> dict[str, np.float32]:
    """One scale per tensor: INT8 inputs of a Concat take its output's, moved values that of their source.

    Where Concats share inputs, all of them take the largest scale among their outputs.
    """
    quantized = [read for found in reads.values() for read in found.values() if isinstance(read, str)]
    joined = [graph.nodes[index].output[0] for index in reads if op_name(graph.nodes[index]) == "Concat"]
    parent = {name: name for name in quantized + joined}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for name in quantized:
        source = graph.moved_from(name)
        while source is not None and source not in parent:
            source = graph.moved_from(source)
        if source is not None:
            parent[find(name)] = find(source)
    for index in reads:
        node = graph.nodes[index]
        # A Concat that reads int8 in implicit mode may be read by float layers alone: no scale to share.
        if op_name(node) == "Concat" and find(node.output[0]) in {find(name) for name in quantized}:
            for name in node.input:
                parent[find(name)] = find(node.output[0])

    groups: dict[str, list[str]] = {}
    for name in sorted(parent, key=lambda name: graph.producer.get(name, -1)):
        groups.setdefault(find(name), []).append(name)
    unified: dict[str, np.float32] = {}
    for members in groups.values():
        usable = {}
        for name in members:
            scale = _own_scale(graph, scales, name)
            if scale is not None and not invalid_scale(scale):
                usable[name] = scale
        outputs = [name for name in members if name in joined]
        candidates = [usable[name] for name in outputs if name in usable] or list(usable.values())
        if candidates:
            unified |= dict.fromkeys(members, max(candidates) if outputs else candidates[0])
    return unified


def _matching(graph: Graph, patterns: Iterable[str]) -> set[int]:
    """Indices of the nodes that a pattern names by name, op type or output, literally or as a glob."""
    matched: set[int] = set()
    for pattern in patterns:
        hits = {
            index
            for index, node in enumerate(graph.nodes)
            if any(pattern == name or fnmatchcase(name, pattern) for name in (*_called(graph, node), *node.output))
        }
        if not hits:
            names = {name for node in graph.nodes for name in _called(graph, node)}
            close = get_close_matches(pattern, names, n=3)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise ValueError(f"exclude: no node has the name, op type or output {pattern!r}{hint}")
        matched |= hits
    return matched


def _called(graph: Graph, node: NodeProto) -> tuple[str, ...]:
    """What people call a node: its name, the one that the file gives to several nodes, and its op type."""
    return node.name, graph.originals.nodes.get(node.name, node.name), node.op_type


def _positions(graph: Graph, index: int, name: str) -> list[int]:
    """Where a node reads a tensor; -1 if only a body inside it does."""
    return [position for position, other in enumerate(graph.nodes[index].input) if other == name] or [-1]

"""Operators that ONNX Runtime does not know, such as plugins of TensorRT, and what of a model is there without them.

Whatever does not depend on them can be run and calibrated. ONNX Runtime itself is asked, operator by operator: it has
kernels for operators that ONNX has not, and ones that a custom-op library brings; of some, as EfficientNMS_TRT, it
knows the name alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trtcal.errors import ModelError
from trtcal.model.nodes import (
    QUANTIZED_OPS,
    STANDARD,
    all_bodies,
    bodies,
    copied,
    copied_node,
    domain_of,
    label,
    reads,
    replaced,
)
from trtcal.model.runner import OrtRunner
from trtcal.model.topology import inferred

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto

SHOWN = 3  # names in a message
NEWEST = 2**31 - 1  # opset of a model that names none for ONNX's own ops

# What ONNX Runtime says of an op that it has no schema for, none of this version, or no kernel on a CPU.
_REFUSALS = (
    re.compile(r"Fatal error: (?P<domain>.*?):(?P<op>\w+)\(-?\d+\) is not a registered function/op"),
    re.compile(r"No Op registered for (?P<op>\w+) with domain_version of"),
    re.compile(r"Could not find an implementation for (?P<op>\w+)\(\d+\) node"),
    re.compile(r'In Node, \(".*?", (?P<op>\w+), "(?P<domain>.*?)", -?\d+\).*No opset import for domain'),
)
_OTHER_TYPES = re.compile(r"Type Error|Type parameter|of input parameter")  # a guess of ours, where nothing is known

_PLUGIN = re.compile(r"trt|tensorrt|plugin|nvidia", re.IGNORECASE)
# Plugins of TensorRT's own that their names do not give away.
_PLUGINS = frozenset(
    {"CropAndResize", "CropAndResizeDynamic", "DMHA", "ModulatedDeformConv2d", "Proposal", "ProposalDynamic"}
)


class Op(NamedTuple):
    """An operator by its domain, "" for ONNX's own."""

    domain: str
    name: str

    def __str__(self) -> str:
        return f"{self.domain}::{self.name}" if self.domain else self.name

    @property
    def is_plugin(self) -> bool:
        """Does its name say that it is a plugin of TensorRT?"""
        return bool(_PLUGIN.search(self.domain) or _PLUGIN.search(self.name)) or self.name in _PLUGINS


@dataclass(frozen=True)
class Unknown:
    """What ONNX Runtime does not know of a model.

    ``ops``: operators, and what else there is to say of each. ``tensors``: those that depend on them, in the order of
    the graph, each with the first operator it depends on; ``uncalibrated`` are those of them that may hold floats, and
    ``missing`` those that are outputs of the model. ``ends`` are what can be compared: the model's other outputs, or
    where there are none what the operators read, with types and shapes as far as they are known. ``reaches``: can any
    floats be computed from the model's inputs? ``fault``: what is wrong with the model itself, an operator of a newer
    opset than its own, or in other letters than ONNX's.
    """

    ops: Mapping[Op, str] = field(default_factory=dict)
    tensors: Mapping[str, Op] = field(default_factory=dict)
    uncalibrated: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    ends: tuple[ValueInfoProto, ...] = ()
    reaches: bool = True
    fault: str = ""

    def __bool__(self) -> bool:
        return bool(self.ops)

    def __str__(self) -> str:
        """The operators, with what there is to say of them."""
        return ", ".join(f"{op} ({said})" if said else str(op) for op, said in self.ops.items())

    @property
    def advice(self) -> str:
        """What to do about operators that are no plugins."""
        if all(op.is_plugin for op in self.ops):
            return ""
        return "; --ort-library FILE registers a library that has custom operators for ONNX Runtime"

    def why(self, name: str) -> str:
        """A tensor that cannot be computed -> why it has no range."""
        return f"depends on {self.tensors[name]}, an operator that ONNX Runtime does not know"


NOTHING = Unknown()
"""Of a model that ONNX Runtime knows all operators of."""


def unknown_in(model: ModelProto, libraries: Sequence[Path] = ()) -> Unknown:
    """Prepared model, and libraries of custom operators -> what ONNX Runtime does not know of it."""
    candidates = _candidates(model)
    if not candidates:
        return NOTHING
    lost = _lost(model, candidates).tensors
    # ONNX 1.16 dereferences the type of what a pair of opset 21 reads, also where there is none.
    nodes = [
        node for node in model.graph.node if node.op_type not in QUANTIZED_OPS or lost.keys().isdisjoint(node.input)
    ]
    types = inferred(model, nodes)
    found = {op: _refused(node, model, types, libraries) for op, node in candidates.items()}
    ops = {op: _said(op, model, refusal) for op, refusal in found.items() if refusal}
    faults = filter(None, (_fault(op, candidates[op], model) for op in ops))
    return replace(_without(model, ops, types), fault=next(faults, "")) if ops else NOTHING


def reached(model: ModelProto, ops: Collection[Op], outputs: Iterable[ValueInfoProto]) -> ModelProto:
    """Model -> a copy without these operators and all that depends on them, with these outputs."""
    lost = _lost(model, ops)
    part = copied(model)
    replaced(part.graph.node, [node for node in part.graph.node if _op_of(node, lost.ops, lost.tensors) is None])
    replaced(part.graph.output, outputs)
    return part


def unknown_op(error: ModelError) -> Op | None:
    """The op that ONNX Runtime does not know, as it says itself; None where something else is wrong."""
    for pattern in _REFUSALS:
        found = pattern.search(str(error))
        if found is not None:
            domain = found.groupdict().get("domain", "")
            return Op("" if domain in STANDARD else domain, found["op"])
    return None


def some(names: Sequence[str]) -> str:
    """The first few names; how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {more} more" if more > 0 else "")


def _candidates(model: ModelProto) -> dict[Op, NodeProto]:
    """Operators that ONNX's own of this opset are not, and the first node of each."""
    functions = {(function.domain, function.name) for function in model.functions}
    opset = _opset(model)
    known: dict[Op, bool] = {}
    found: dict[Op, NodeProto] = {}
    for body in all_bodies(model):
        for node in body.node:
            op = Op(domain_of(node), node.op_type)
            if op not in known:
                known[op] = (node.domain, node.op_type) in functions or (not op.domain and _is_of(op.name, opset))
                if not known[op]:
                    found[op] = node
    return found


def _opset(model: ModelProto) -> int:
    version = next((entry.version for entry in model.opset_import if entry.domain in STANDARD), NEWEST)
    return min(max(int(version), 1), NEWEST)


def _is_of(name: str, opset: int) -> bool:
    """Does ONNX have the op in this opset?"""
    from onnx import defs

    try:
        defs.get_schema(name, opset, "")
    except defs.SchemaError:
        return False
    return True


def _refused(
    node: NodeProto, model: ModelProto, types: Mapping[str, TypeProto.Tensor], libraries: Sequence[Path]
) -> str | None:
    """What ONNX Runtime says against a node, alone in a model; None where it knows the operator."""
    try:
        OrtRunner(_alone(node, model, types), threads=1, libraries=libraries).close()
    except ModelError as error:
        if unknown_op(error) is not None:
            return str(error)
        # Of ONNX's domain, ONNX Runtime has names that it has no kernels for; a node that does not fit such a name is
        # no reason to refuse the model, since nobody could run it there anyway.
        if not domain_of(node) and not _OTHER_TYPES.search(str(error)):
            return str(error)
    return None


def _alone(node: NodeProto, model: ModelProto, types: Mapping[str, TypeProto.Tensor]) -> ModelProto:
    """A model of one node, without graphs inside it; what it reads is float where nothing else is known."""
    import onnx

    copy = copied_node(node)
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    replaced(copy.attribute, [item for item in copy.attribute if item.type not in kinds and not item.ref_attr_name])
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = "operator"
    part.graph.node.append(copy)
    for name in dict.fromkeys(filter(None, copy.input)):
        value = part.graph.input.add(name=name)
        value.type.tensor_type.elem_type = types[name].elem_type if name in types else onnx.TensorProto.FLOAT
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(filter(None, copy.output)))
    return part


def _said(op: Op, model: ModelProto, refusal: str) -> str:
    """An unknown operator, and what ONNX Runtime says -> what else there is to say of it."""
    said = []
    if op.is_plugin:
        said.append("by its name a plugin of TensorRT")
    elif not op.domain:
        close = get_close_matches(op.name, list(_since()), n=1, cutoff=0.8)
        said += [f"ONNX has no such operator; is {close[0]} meant?"] if close else []
    if "No opset import for domain" in refusal:
        said.append(f"the file does not import its domain {op.domain}")
    elif "Could not find an implementation" in refusal and not op.is_plugin:
        said.append("has no kernel for a CPU")
    return ", ".join(said)


def _fault(op: Op, node: NodeProto, model: ModelProto) -> str:
    """What is wrong with a node whose operator is unknown, but one of ONNX; nothing where it is none."""
    since = {} if op.domain else _since()
    if op.name in since:
        return (
            f"{label(node)}: {op.name} is an operator of ONNX from opset {since[op.name]} on, and the model says opset "
            f"{_opset(model)}; export it again with opset {since[op.name]} or newer"
        )
    alike = next((name for name in since if _letters(name) == _letters(op.name)), None)
    return (
        "" if alike is None else f"{label(node)}: ONNX has no operator {op.name}, but {alike}; export the model again"
    )


def _since() -> dict[str, int]:
    """ONNX's own operators, and the first opset that has each."""
    from onnx import defs

    since: dict[str, int] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain in STANDARD:
            since[schema.name] = min(schema.since_version, since.get(schema.name, NEWEST))
    return since


def _letters(name: str) -> str:
    return name.replace("_", "").lower()


class _Lost(NamedTuple):
    """Operators, functions that have one of them inside among them, and the tensors that depend on each."""

    ops: Mapping[Op, Op]
    tensors: Mapping[str, Op]


def _lost(model: ModelProto, ops: Collection[Op]) -> _Lost:
    """Sorted model and operators -> what depends on them."""
    found = {op: op for op in ops}
    size = 0
    while len(found) > size:  # functions may call each other
        size = len(found)
        for function in model.functions:
            inside = next(filter(None, (_op_of(node, found, {}) for node in function.node)), None)
            if inside is not None:
                found[Op(domain_of(function), function.name)] = inside
    tensors: dict[str, Op] = {}
    for node in model.graph.node:
        op = _op_of(node, found, tensors)
        if op is not None:
            tensors.update(dict.fromkeys(filter(None, node.output), op))
    return _Lost(found, tensors)


def _op_of(node: NodeProto, ops: Mapping[Op, Op], lost: Mapping[str, Op]) -> Op | None:
    """The operator of those that a node is, has inside or depends on; None where it can be computed."""
    inside = next(filter(None, (ops.get(op) for op in _ops_in(node))), None)
    return inside or next((lost[name] for name in reads(node) if name in lost), None)


def _ops_in(node: NodeProto) -> Iterator[Op]:
    yield Op(domain_of(node), node.op_type)
    for body in bodies(node):
        for inner in body.node:
            yield from _ops_in(inner)


def _without(model: ModelProto, ops: Mapping[Op, str], types: Mapping[str, TypeProto.Tensor]) -> Unknown:
    lost = _lost(model, ops)
    live = {value.name for value in model.graph.input}  # what depends on the model's inputs
    made: set[str] = set()
    direct: dict[str, None] = {}  # what the operators themselves read
    next_to: dict[str, None] = {}
    for node in model.graph.node:
        if _op_of(node, lost.ops, lost.tensors) is None:
            if not live.isdisjoint(reads(node)):
                made.update(filter(None, node.output))
                live.update(filter(None, node.output))
            continue
        read = [name for name in reads(node) if name not in lost.tensors]
        next_to |= dict.fromkeys(read)
        if _op_of(node, lost.ops, {}) is not None:
            direct |= dict.fromkeys(read)
    outputs = [value.name for value in model.graph.output]
    ends = [name for name in outputs if name in made]
    for candidates in (direct, next_to):
        ends = ends or [name for name in candidates if name in made and _may_be_float(name, types)]
    return Unknown(
        ops,
        dict(lost.tensors),
        tuple(name for name in lost.tensors if _may_be_float(name, types)),
        tuple(name for name in outputs if name in lost.tensors),
        tuple(_value(name, model.graph, types) for name in ends),
        any(_may_be_float(name, types) for name in made),
    )


def _may_be_float(name: str, types: Mapping[str, TypeProto.Tensor]) -> bool:
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    return name not in types or types[name].elem_type in floats


def _value(name: str, graph: GraphProto, types: Mapping[str, TypeProto.Tensor]) -> ValueInfoProto:
    """A tensor with its type and shape, as far as they are known."""
    from onnx import ValueInfoProto

    found: ValueInfoProto | None = next((value for value in graph.output if value.name == name), None)
    if found is None:
        found = ValueInfoProto(name=name)
        if name in types:
            found.type.tensor_type.CopyFrom(types[name])
    return found

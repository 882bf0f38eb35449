"""The same model written otherwise: transformations after which trtcal must say what it said before.

Each takes a `Spelling` and a source of random numbers and gives another one, or None where the model has nothing of the
kind. They go together in any order, but for those in `LAST`, which come after the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trtcal.model.nodes import replaced
from trtcal.model.open import open_model
from trtcal.model.topology import POINTWISE, WEIGHTED

node = helper.make_node


@dataclass(frozen=True)
class Spelling:
    """A model, and what its tensors are in the plain one: None for those that the plain one does not have.

    ``axes``: the axis of each input of the plain model that counts samples. ``threshold``: bytes from which on
    constants belong into a file beside the model's; None where they stay inside. ``applied``: the transformations that
    it took.
    """

    model: ModelProto
    names: Mapping[str, str | None]
    axes: Mapping[str, int]
    threshold: int | None = None
    applied: tuple[str, ...] = ()

    def changed(self, model: ModelProto, names: Mapping[str, str | None] | None = None) -> Spelling:
        """The model changed, and tensors in it that are new or called otherwise -> those that they were before."""
        new = {name: None if old is None else self.names.get(old, old) for name, old in (names or {}).items()}
        return replace(self, model=model, names={**self.names, **new})


Transformation = Callable[[Spelling, Random], "Spelling | None"]


def plain(model: ModelProto, axes: Mapping[str, int]) -> Spelling:
    """Model, and the axis of each input that counts samples -> the model as it is."""
    return Spelling(model, {name: name for name in _tensors(model.graph)}, axes)


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g


def _reads(node: NodeProto) -> list[str]:
    """What a node reads, those names included that bodies in it read from around them."""
    found = dict.fromkeys(filter(None, node.input))
    for body in _bodies(node):
        own = {value.name for value in (*body.input, *body.initializer)}
        own.update(name for inner in body.node for name in inner.output)
        inside = [name for inner in body.node for name in _reads(inner)] + [value.name for value in body.output]
        found.update(dict.fromkeys(name for name in inside if name not in own))
    return list(found)


def _tensors(graph: GraphProto) -> list[str]:
    """All names of tensors in a graph and in the bodies inside it."""
    found = [value.name for value in (*graph.input, *graph.initializer)]
    for each in graph.node:
        found += filter(None, each.output)
        for body in _bodies(each):
            found += _tensors(body)
    return list(dict.fromkeys(found))


def _new(model: ModelProto, name: str) -> str:
    """A name that nothing in the model has; inside functions either."""
    taken = {*_tensors(model.graph), *(name for f in model.functions for n in f.node for name in n.output)}
    number = 0
    while f"{name}{number}" in taken:
        number += 1
    return f"{name}{number}"


def _rename(graph: GraphProto, new: Mapping[str, str]) -> None:
    """Give tensors other names, in the bodies inside nodes as well."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = new.get(value.name, value.name)
    for each in graph.node:
        _rename_node(each, new)


def _rename_node(node: NodeProto, new: Mapping[str, str]) -> None:
    for names in (node.input, node.output):
        names[:] = [new.get(name, name) for name in names]
    for body in _bodies(node):
        _rename(body, new)


def _sorted(nodes: Sequence[NodeProto], rng: Random | None = None) -> list[NodeProto]:
    """Nodes in an order in which each comes after what it reads: the given one as far as possible, or any."""
    made = {name for each in nodes for name in each.output if name}
    waiting, done, order = list(nodes), set[str](), []
    while waiting:
        ready = [each for each in waiting if all(name in done for name in _reads(each) if name in made)]
        each = rng.choice(ready) if rng else ready[0]
        waiting.remove(each)
        done.update(each.output)
        order.append(each)
    return order


def _sizes(model: ModelProto) -> dict[str, list[int | None] | None]:
    """Every float tensor of the graph -> its shape as far as ONNX can tell, None where not even the rank is known."""
    found: dict[str, list[int | None] | None] = {}
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type == TensorProto.FLOAT:
            known = tensor.HasField("shape")
            found[value.name] = (
                [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim] if known else None
            )
    return found


# --- the order of nodes ---


def _orders(nodes: Sequence[NodeProto]) -> list[list[int]]:
    """Nodes of which the file's order decides something -> those groups of them, by index, that must keep it.

    Of two layers that are summed up, TensorRT lets the later one compute the sum. So all that TensorRT fuses, from the
    inputs of a pointwise node of several inputs back to the layers that they come from, is such a group.
    """
    producer = {name: index for index, each in enumerate(nodes) for name in each.output if name}

    def fused(name: str) -> set[int]:
        index = producer.get(name)
        if index is None or nodes[index].op_type not in WEIGHTED | POINTWISE:
            return set()
        above = [] if nodes[index].op_type in WEIGHTED else [fused(each) for each in nodes[index].input]
        return {index}.union(*above)

    joins = [[fused(name) for name in each.input] for each in nodes if each.op_type in POINTWISE]
    return [sorted(set().union(*found)) for found in joins if sum(map(bool, found)) > 1]


def reordered(spelling: Spelling, rng: Random) -> Spelling:
    """Nodes in another order in which a runtime can compute them."""
    model = _copy(spelling.model)
    replaced(model.graph.node, _any_order(_sorted(model.graph.node), rng))
    return spelling.changed(model)


def _any_order(nodes: Sequence[NodeProto], rng: Random) -> list[NodeProto]:
    producer = {name: index for index, each in enumerate(nodes) for name in each.output if name}
    before = [{producer[name] for name in _reads(each) if name in producer} for each in nodes]
    for group in _orders(nodes):
        for one, other in pairwise(group):
            before[other].add(one)
    waiting, done, order = set(range(len(nodes))), set[int](), []
    while waiting:
        index = rng.choice(sorted(each for each in waiting if before[each] <= done))
        waiting.remove(index)
        done.add(index)
        order.append(nodes[index])
    return order


def shuffled(spelling: Spelling, rng: Random) -> Spelling:
    """Nodes in any order, before those that make what they read as well; also inside bodies.

    Those whose order decides something stay behind what they read, the others go anywhere before.
    """
    model = _copy(spelling.model)
    for graph in _graphs(model.graph):
        nodes = _any_order(_sorted(graph.node), rng)
        held = {index for group in _orders(nodes) for index in group}
        order = [(float(index), index) for index in range(len(nodes))]
        for index in range(len(nodes)):
            if not held:
                order[index] = rng.random(), index
            elif index not in held:
                order[index] = rng.uniform(-1, index), index
        replaced(graph.node, [nodes[index] for _, index in sorted(order)])
    return spelling.changed(model)


# --- names ---


def renamed(spelling: Spelling, rng: Random) -> Spelling:
    """Every tensor and node gets another name: numbers, paths, texts with colons and blanks, and those that trtcal
    would make up itself.
    """
    model = _copy(spelling.model)
    names = _tensors(model.graph)
    styles: list[Callable[[int], str]] = [
        str,
        lambda n: f"/model.{n}/Conv_output_0",
        lambda n: f"a b:{n}: 3f800000",
        lambda n: f"[{n}]*?",
        lambda n: f"ü{n}'\"",
    ]
    numbers = rng.sample(range(10 * len(names)), len(names))
    new = {name: rng.choice(styles)(number) for name, number in zip(names, numbers, strict=True)}
    made_up = ("{}_quantized", "{}_dequantized", "{}_scale", "{}_QuantizeLinear", "{}__1", "{}_0")
    if len(names) > 4:  # of which some are called as what trtcal makes of others
        for name, text in zip(rng.sample(names, 3), rng.sample(made_up, 3), strict=True):
            wanted = text.format(new[rng.choice(names)])
            new[name] = new[name] if wanted in new.values() else wanted
        new[rng.choice(names)] = "zero_point"
    _rename(model.graph, new)
    for graph in _graphs(model.graph):
        for each in graph.node:
            each.name = f"{rng.choice(['n', '/n/', 'n n:'])}{rng.randrange(10**9)}" if rng.random() < 0.9 else ""
    changed = spelling.changed(model, {here: name for name, here in new.items()})
    kept = {name: changed.names[name] for name in changed.names if name in set(new.values())}
    kept |= {name: there for name, there in spelling.names.items() if name not in new and name not in kept}
    return replace(changed, names=kept)


def named_alike(spelling: Spelling, rng: Random) -> Spelling:
    """Several nodes, or all of them, have one name, or none."""
    model = _copy(spelling.model)
    names = rng.choice((["layer"], ["Conv", "layer_0", "layer"], [""]))
    for graph in _graphs(model.graph):
        for each in graph.node:
            each.name = rng.choice(names)
    return spelling.changed(model)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for each in graph.node:
        for body in _bodies(each):
            yield from _graphs(body)


# --- constants ---


def constants_as_nodes(spelling: Spelling, rng: Random) -> Spelling | None:
    """Initializers become Constant nodes, some of whose tensors have a name of their own or none."""
    model = _copy(spelling.model)
    graph = model.graph
    inputs = {value.name for value in graph.input}
    moved = [tensor for tensor in graph.initializer if tensor.name not in inputs]
    if not moved:
        return None
    nodes = []
    for tensor in moved:
        name = tensor.name
        array = numpy_helper.to_array(tensor)
        value: dict[str, object] = {"value": numpy_helper.from_array(array, rng.choice((name, "")))}
        if _opset(model) >= 12 and array.dtype in (np.float32, np.int64) and array.ndim < 2 and rng.random() < 0.7:
            kind = "float" if array.dtype == np.float32 else "int"
            value = {f"value_{kind}s": array.tolist()} if array.ndim else {f"value_{kind}": array.item()}
            value = value if array.size else {"value": numpy_helper.from_array(array)}
        nodes.append(node("Constant", [], [name], **value))
    replaced(graph.initializer, [tensor for tensor in graph.initializer if tensor not in moved])
    replaced(graph.node, [*nodes, *graph.node])
    return spelling.changed(model)


def constants_as_initializers(spelling: Spelling, rng: Random) -> Spelling | None:
    """Constant nodes become initializers."""
    model = _copy(spelling.model)
    graph = model.graph
    held = [each for each in graph.node if each.op_type == "Constant"]
    if not held:
        return None
    for each in held:
        (attribute,) = each.attribute
        value = helper.get_attribute_value(attribute)
        kind = np.float32 if attribute.name in ("value_float", "value_floats") else np.int64
        array = numpy_helper.to_array(value) if attribute.name == "value" else np.array(value, kind)
        graph.initializer.append(numpy_helper.from_array(array, each.output[0]))
    replaced(graph.node, [each for each in graph.node if each.op_type != "Constant"])
    return spelling.changed(model)


def constants_as_inputs(spelling: Spelling, rng: Random) -> Spelling | None:
    """Initializers are listed among the inputs, as up to IR version 3."""
    model = _copy(spelling.model)
    graph = model.graph
    known = {value.name for value in graph.input}
    values = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.name not in known
    ]
    if not values:
        return None
    at = rng.choice((0, len(graph.input)))
    inputs = list(graph.input)
    replaced(graph.input, [*inputs[:at], *values, *inputs[at:]])
    return spelling.changed(model)


def constants_in_typed_fields(spelling: Spelling, rng: Random) -> Spelling:
    """Values of constants as lists of numbers rather than bytes."""
    model = _copy(spelling.model)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).reshape(-1)
        field = {np.dtype(np.float32): tensor.float_data, np.dtype(np.int64): tensor.int64_data}.get(values.dtype)
        if field is not None:
            tensor.ClearField("raw_data")
            field[:] = values.tolist()
    return spelling.changed(model)


# --- what a file says beside its nodes ---


def shapes_inferred(spelling: Spelling, rng: Random) -> Spelling:
    """Types and shapes of all tensors between, as far as ONNX can tell them."""
    return spelling.changed(onnx.shape_inference.infer_shapes(_copy(spelling.model), data_prop=True))


def shapes_forgotten(spelling: Spelling, rng: Random) -> Spelling:
    """No types and shapes between."""
    model = _copy(spelling.model)
    for graph in _graphs(model.graph):
        del graph.value_info[:]
    return spelling.changed(model)


def domain_spelt_out(spelling: Spelling, rng: Random) -> Spelling:
    """The domain of ONNX's own ops by its other name, in some nodes or all of them."""
    model = _copy(spelling.model)
    for graph in _graphs(model.graph):
        for each in graph.node:
            if not each.domain and rng.random() < 0.7:
                each.domain = "ai.onnx"
    for entry in model.opset_import:
        entry.domain = entry.domain or "ai.onnx"
    return spelling.changed(model)


# --- functions ---


def in_a_function(spelling: Spelling, rng: Random) -> Spelling | None:
    """A block of nodes becomes a function of the model's own, whose tensors have names of their own."""
    model = _copy(spelling.model)
    nodes = _sorted(model.graph.node)
    if len(nodes) < 3:
        return None
    begin = rng.randrange(len(nodes) - 2)
    end = min(len(nodes), begin + rng.randint(2, max(2, len(nodes) // 2)))
    block, after = nodes[begin:end], [*nodes[:begin], *nodes[end:]]
    made = list(dict.fromkeys(name for each in block for name in each.output if name))
    wanted = {name for each in after for name in _reads(each)} | {value.name for value in model.graph.output}
    outputs = [name for name in made if name in wanted]
    inputs = list(dict.fromkeys(name for each in block for name in _reads(each) if name not in made))
    if not outputs:
        return None
    number = len(model.functions)
    inside = {name: f"in a function {number}.{n}" for n, name in enumerate([*inputs, *made])}
    body = [NodeProto() for _ in block]
    for copy, each in zip(body, block, strict=True):
        copy.CopyFrom(each)
        _rename_node(copy, inside)
    formal = ([inside[name] for name in inputs], [inside[name] for name in outputs])
    function = helper.make_function("own", f"Block{number}", *formal, body, model.opset_import)
    model.functions.append(function)
    if not any(entry.domain == "own" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("own", 1))
    call = node(f"Block{number}", inputs, outputs, f"block {number}", domain="own")
    replaced(model.graph.node, [*nodes[:begin], call, *nodes[end:]])
    names = {inside[name]: name for name in made if name not in outputs}
    for each in body:
        for graph in (inner for one in _bodies(each) for inner in _graphs(one)):
            names |= {name: None for name in _tensors(graph) if name not in names}
    return spelling.changed(model, names)


# --- nodes that compute nothing ---


def identity_inserted(spelling: Spelling, rng: Random) -> Spelling | None:
    """An Identity behind a tensor, for all that read it, or before an output of the model.

    Not behind the weights of a recurrent layer: ONNX Runtime 1.32 computes with weights that are no constants by
    another kernel, which adds up in another order.
    """
    model = _copy(spelling.model)
    graph = model.graph
    shapes = _sizes(model)
    read = dict.fromkeys(name for each in graph.node for name in _reads(each))
    known = shapes.keys() | {tensor.name for tensor in graph.initializer}
    known -= {name for each in graph.node if each.op_type in ("LSTM", "GRU", "RNN") for name in each.input[1:]}
    found = [name for name in read if name in known]
    outputs = [v.name for v in graph.output if v.name in shapes and any(v.name in n.output for n in graph.node)]
    if not found:
        return None
    new = _new(model, "identity ")
    if outputs and rng.random() < 0.2:
        name = rng.choice(outputs)
        for each in graph.node:
            _rename_node(each, {name: new})
        graph.node.append(node("Identity", [new], [name], rng.choice(("", f"/{new}"))))
    else:
        name = rng.choice(found)
        for each in graph.node:
            made = list(each.output)
            _rename_node(each, {name: new})
            replaced_outputs(each, made)
        graph.node.insert(0, node("Identity", [name], [new], rng.choice(("", f"/{new}"))))
        replaced(graph.node, _sorted(graph.node))
    return spelling.changed(model, {new: name})


def replaced_outputs(node: NodeProto, outputs: Iterable[str]) -> None:
    node.output[:] = list(outputs)


def dead_nodes(spelling: Spelling, rng: Random) -> Spelling | None:
    """Nodes that read some tensors, and whose own answers nobody reads."""
    model = _copy(spelling.model)
    graph = model.graph
    shapes = {name: sizes for name, sizes in _sizes(model).items() if sizes}
    made = {name for each in graph.node for name in each.output if each.op_type not in ("Constant", "Identity")}
    made |= {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    found = [name for name in shapes if name in made]
    if not found:
        return None
    names: dict[str, str | None] = {}
    for name in rng.sample(found, min(len(found), 3)):
        new = _new(model, "dead ")
        width = (shapes[name] or [None])[-1]
        op = rng.choice(("Relu", "Transpose", "Concat", "Chain", "MatMul" if width else "Sigmoid"))
        if op == "MatMul" and width:
            weights = _new(model, "dead weights ")
            graph.initializer.append(numpy_helper.from_array(np.ones((width, 2), np.float32), weights))
            graph.node.append(node("MatMul", [name, weights], [new]))
            names[weights] = None
        elif op == "Concat":
            graph.node.append(node("Concat", [name, name], [new], axis=len(shapes[name] or ()) - 1))
        elif op == "Chain":
            inner = f"{new} inner"
            graph.node.extend([node("Sigmoid", [name], [inner]), node("Relu", [inner], [new])])
            names[inner] = None
        else:
            graph.node.append(node(op, [name], [new]))
        names[new] = None
    return spelling.changed(model, names)


# --- batch size ---


BAKED = "batch size 3 in Reshapes"


def batch_size(size: int | str | None, *, baked: bool = False) -> Transformation:
    """Samples are counted by an axis of this size, or of this name, or by one that is open.

    ``baked``: the size stands in the shapes of Reshapes as well, as exporters leave it.
    """

    def transformation(spelling: Spelling, rng: Random) -> Spelling | None:
        if BAKED in spelling.applied:
            return None  # it runs with no other
        model = _copy(spelling.model)
        graph = model.graph
        given = {spelling.names[value.name]: value for value in graph.input}
        names = set()
        for name, axis in spelling.axes.items():
            dim = given[name].type.tensor_type.shape.dim[axis]
            if dim.dim_param:
                names.add(dim.dim_param)
            _set(dim, size)
        if not spelling.axes:
            return None
        del graph.value_info[:]
        for value in graph.output:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in names:
                    _set(dim, size)
        if baked and not _bake(model, size):
            return None
        return spelling.changed(model)

    return transformation


def _set(dim: onnx.TensorShapeProto.Dimension, size: int | str | None) -> None:
    dim.Clear()
    if isinstance(size, int):
        dim.dim_value = size
    elif size is not None:
        dim.dim_param = size


def _bake(model: ModelProto, size: int | str | None) -> bool:
    """Put the batch size where it is the first size that a Reshape gives and its shape has -1 or 0 -> was there one?"""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = _sizes(model)
    changed = False
    for each in model.graph.node:
        if each.op_type == "Reshape" and each.input[1] in constants and (shapes.get(each.output[0]) or [0])[0] == size:
            shape = numpy_helper.to_array(constants[each.input[1]]).copy()
            if shape[0] in (-1, 0):
                changed = True
                shape[0] = size
                constants[each.input[1]].CopyFrom(numpy_helper.from_array(shape, each.input[1]))
    return changed


# --- opsets ---


def _opset(model: ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def _with_opset(model: ModelProto, opset: int) -> ModelProto:
    others = [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx")]
    replaced(model.opset_import, [helper.make_opsetid("", opset), *others])
    return model


def declared(opset: int) -> Transformation:
    """A newer opset, which takes the same nodes."""

    def transformation(spelling: Spelling, rng: Random) -> Spelling | None:
        nodes = [each for graph in _graphs(spelling.model.graph) for each in graph.node]
        if _opset(spelling.model) >= opset or not all(_fits(each, opset) for each in nodes):
            return None
        return spelling.changed(_with_opset(_copy(spelling.model), opset))

    return transformation


def _fits(each: NodeProto, opset: int) -> bool:
    """Does an opset take a node as it is, and ONNX Runtime compute it in the same order of additions?"""
    if each.op_type == "AveragePool" and opset >= 19:
        return False  # another kernel, seen with 1.32
    schema = onnx.defs.get_schema(each.op_type, opset)
    known = all(attribute.name in schema.attributes for attribute in each.attribute)
    return known and not schema.deprecated and schema.min_input <= len(each.input) <= schema.max_input


def lowered(opset: int) -> Transformation:
    """An older opset, in which some ops are written otherwise; None where one of them was not there yet."""

    def transformation(spelling: Spelling, rng: Random) -> Spelling | None:
        before = _opset(spelling.model)
        if before <= opset:
            return None
        model = _copy(spelling.model)
        writer = _Older(model)
        for version in range(before - 1, opset - 1, -1):
            for each in model.graph.node:
                if not writer.write(each, version):
                    return None
        return spelling.changed(_with_opset(model, opset))

    return transformation


# (op, opset before which it was written otherwise) -> inputs that were attributes.
_ATTRIBUTES: dict[tuple[str, int], tuple[str, ...]] = {
    ("Squeeze", 13): ("axes",),
    ("Unsqueeze", 13): ("axes",),
    ("ReduceSum", 13): ("axes",),
    ("Split", 13): ("split",),
    ("Clip", 11): ("min", "max"),
    ("Pad", 11): ("pads", "value"),
    ("Slice", 10): ("starts", "ends", "axes", "steps"),
}


def _is_usual(attribute: AttributeProto) -> bool:
    """Attributes of pools whose defaults the definition says in words alone."""
    return attribute.name == "dilations" and set(attribute.ints) == {1}


class _Older:
    """Writes nodes as an older opset has them."""

    def __init__(self, model: ModelProto) -> None:
        self.model, self.shapes = model, _sizes(model)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def write(self, each: NodeProto, opset: int) -> bool:
        """A node of the opset after this one, changed itself -> can it be written?"""
        if each.domain or any(True for _ in _bodies(each)):
            return False
        try:
            schema = onnx.defs.get_schema(each.op_type, opset)
        except onnx.defs.SchemaError:
            return each.op_type == "Resize" and opset == 9 and self._upsample(each)
        if len(each.input) < schema.min_input and each.op_type != "Resize":
            return False
        newer = onnx.defs.get_schema(each.op_type, opset + 1)
        for attribute in [each for each in each.attribute if each.name not in schema.attributes]:
            known = newer.attributes.get(attribute.name)
            default = None if known is None else known.default_value.SerializeToString()
            if attribute.SerializeToString() != default and not _is_usual(attribute):
                return False
            each.attribute.remove(attribute)
        if opset == 12 and each.op_type in ("Softmax", "LogSoftmax"):
            return self._softmax(each)
        if opset == 12 and each.op_type == "Resize" and not (len(each.input) > 1 and each.input[1]):
            return self._region(each)
        if opset == 11 and each.op_type == "Constant":
            return all(attribute.name == "value" for attribute in each.attribute)
        if opset == 10 and each.op_type == "Resize":
            return self._resize(each)
        if opset == 10 and not self._without_negative_axes(each):
            return False
        names = _ATTRIBUTES.get((each.op_type, opset + 1), ())
        return not names or self._as_attributes(each, names)

    def _as_attributes(self, each: NodeProto, names: tuple[str, ...]) -> bool:
        for name, source in zip(names, each.input[1:], strict=False):
            if not source:
                continue
            if source not in self.constants:
                return False
            value = self.constants[source]
            if name == "steps":
                if (value != 1).any():
                    return False
                continue
            each.attribute.append(helper.make_attribute(name, value.tolist()))
        del each.input[1:]
        return True

    def _softmax(self, each: NodeProto) -> bool:
        shape = self.shapes.get(each.input[0])
        if not shape:
            return False
        axis = next((a.i for a in each.attribute if a.name == "axis"), -1) % len(shape)
        if any(size != 1 for size in shape[axis + 1 :]):
            return False
        del each.attribute[:]
        each.attribute.append(helper.make_attribute("axis", axis))
        return True

    def _region(self, each: NodeProto) -> bool:
        """Before opset 13, nobody could leave out the region that only one way to sample reads."""
        name = _new(self.model, "region ")
        self.model.graph.initializer.append(numpy_helper.from_array(np.zeros(0, np.float32), name))
        each.input[1] = name
        if not each.input[2]:
            name = _new(self.model, "no scales ")
            self.model.graph.initializer.append(numpy_helper.from_array(np.zeros(0, np.float32), name))
            each.input[2] = name
        return True

    def _resize(self, each: NodeProto) -> bool:
        """Opset 10 samples in one way, asymmetric, and its nearest is below where an axis grows."""
        how = {a.name: helper.get_attribute_value(a) for a in each.attribute}
        scales = self.constants.get(each.input[2])
        mode = how.get("mode", b"nearest")
        asymmetric = how.get("coordinate_transformation_mode", b"half_pixel") == b"asymmetric"
        below = mode == b"linear" or how.get("nearest_mode", b"round_prefer_floor") == b"floor"
        if scales is None or not scales.size or (scales < 1).any() or not asymmetric or not below:
            return False
        each.input[:] = [each.input[0], each.input[2]]
        del each.attribute[:]
        each.attribute.append(helper.make_attribute("mode", mode))
        return True

    def _upsample(self, each: NodeProto) -> bool:
        each.op_type = "Upsample"
        return True

    def _without_negative_axes(self, each: NodeProto) -> bool:
        for attribute in each.attribute:
            if attribute.name in ("axis", "axes"):
                shape = self.shapes.get(each.input[0] if each.op_type != "Unsqueeze" else each.output[0])
                negative = attribute.i < 0 or any(axis < 0 for axis in attribute.ints)
                if negative and shape is None:
                    return False
                if negative and shape is not None and attribute.type == AttributeProto.INT:
                    attribute.i %= len(shape)
                elif negative and shape is not None:
                    attribute.ints[:] = [axis % len(shape) for axis in attribute.ints]
        return True


def raised(spelling: Spelling, rng: Random) -> Spelling | None:
    """As trtcal raises it to opset 13; what it puts beside, the plain model does not have."""
    if _opset(spelling.model) >= 13 or spelling.model.functions:
        return None
    model = open_model(spelling.model).with_opset(13).proto
    known = set(spelling.names)
    return spelling.changed(_copy(model), {name: None for name in _tensors(model.graph) if name not in known})


# --- files ---


def beside(threshold: int) -> Transformation:
    """Constants of so many bytes lie in a file beside the model's."""

    def transformation(spelling: Spelling, rng: Random) -> Spelling:
        return replace(spelling, threshold=threshold)

    return transformation


TRANSFORMATIONS: dict[str, Transformation] = {
    "nodes shuffled": shuffled,
    "nodes in another order": reordered,
    "every name replaced": renamed,
    "nodes named alike": named_alike,
    "constants as nodes": constants_as_nodes,
    "constants as initializers": constants_as_initializers,
    "constants among the inputs": constants_as_inputs,
    "constants in typed fields": constants_in_typed_fields,
    "shapes inferred": shapes_inferred,
    "shapes forgotten": shapes_forgotten,
    "an Identity inserted": identity_inserted,
    "dead nodes": dead_nodes,
    "opset 11": lowered(11),
    "opset 9": lowered(9),
    "opset 17": declared(17),
    "opset 21": declared(21),
    "opset raised by trtcal": raised,
    "batch size 1": batch_size(1),
    "batch size 3": batch_size(3),
    BAKED: batch_size(3, baked=True),
    "batch size open": batch_size(None),
    "batch size named": batch_size("batch"),
}
LAST: dict[str, Transformation] = {
    "domain spelt out": domain_spelt_out,
    "a block in a function": in_a_function,
    "constants beside the model": beside(1024),
    "all constants beside the model": beside(0),
}


@contextmanager
def applied(spelling: Spelling, chosen: Iterable[str], rng: Random) -> Iterator[tuple[ModelProto | Path, Spelling]]:
    """Names of transformations, one applied after the other -> the model, or its file, and the spelling.

    One that the model has nothing for is left out.
    """
    for name in chosen:
        made = {**TRANSFORMATIONS, **LAST}[name](spelling, rng)
        if made is not None:
            spelling = replace(made, applied=(*made.applied, name))
    if spelling.threshold is None:
        yield spelling.model, spelling
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        outside = {"location": "weights.bin", "size_threshold": spelling.threshold}
        onnx.save(_copy(spelling.model), path, save_as_external_data=True, **outside)
        yield path, spelling

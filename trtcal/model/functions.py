"""A model's own functions, put in the place of each call: their tensors are then tensors of the graph.

Names inside get the number of the call, as in ``onnx.inliner``: ``c`` becomes ``c__1``, ``c__2`` and so on. ONNX's own
inliner is not used: in 1.23 it drops the default values of a function's attributes and the domains that only a function
imports, and leaves a function that was written for another opset in its place without a word.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from trtcal.errors import ModelError
from trtcal.model.names import Originals
from trtcal.model.nodes import Names, bodies, copied, copied_node, domain_of, replaced, subgraphs

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

MOST_NODES = 1_000_000
"""Functions that call each other twice can stand for more nodes than memory holds."""
DEEPEST = 30
"""Graphs inside each other; protobuf reads no more than 33."""


class Key(NamedTuple):
    """What a node calls a function by."""

    domain: str
    name: str
    overload: str

    def __str__(self) -> str:
        return f"{self.domain}::{self.name}"


def inline(model: ModelProto) -> Originals:
    """Put the model's functions in the place of their calls, in the model itself -> what they call nodes and tensors.

    A function that was written for another opset, where one of its ops is another one, stays a function. Raises
    ModelError for functions that call themselves, calls that do not fit, and more than a million nodes.
    """
    functions = {_key(function): function for function in model.functions}
    _refuse_too_many(model, functions)
    versions = {domain_of(entry): entry.version for entry in reversed(model.opset_import)}
    placed = {}
    for key, function in functions.items():
        if _fits(function, versions, functions):
            placed[key] = function
            for entry in function.opset_import:
                if domain_of(entry) not in versions:
                    versions[domain_of(entry)] = entry.version
                    model.opset_import.append(entry)
    inliner = _Inliner(placed, Names(model))
    inliner.put_into(model.graph, 0)
    left = set(_called(model.graph, functions))
    waiting = list(left)
    while waiting:  # what stays may call others
        more = set(_called(functions[waiting.pop()], functions)) - left
        left |= more
        waiting += more
    stay = [function for key, function in functions.items() if key in left]
    del model.functions[:]
    model.functions.extend(stay)
    return Originals(inliner.nodes, inliner.tensors)


def inlined(model: ModelProto) -> ModelProto:
    """As :func:`inline`, of a copy."""
    model = copied(model)
    inline(model)
    return model


class _Inliner:
    def __init__(self, functions: Mapping[Key, FunctionProto], names: Names) -> None:
        self.functions, self.names, self.calls = functions, names, 0
        self.nodes: dict[str, str] = {}
        self.tensors: dict[str, str] = {}

    def put_into(self, graph: GraphProto, depth: int) -> None:
        """Calls in a graph, and in the graphs inside its nodes -> what they call."""
        if depth > DEEPEST:
            raise ModelError(f"its functions put more than {DEEPEST} graphs inside each other")
        nodes, waiting = [], deque(graph.node)
        while waiting:
            node = waiting.popleft()
            function = self.functions.get(_key(node))
            if function is not None:
                waiting.extendleft(reversed(self.called(node, function)))
                continue
            for body in bodies(node):
                self.put_into(body, depth + 1)
            nodes.append(node)
        if len(nodes) != len(graph.node) or any(a is not b for a, b in zip(nodes, graph.node, strict=True)):
            replaced(graph.node, nodes)

    def called(self, call: NodeProto, function: FunctionProto) -> list[NodeProto]:
        """A call and its function -> the nodes that stand for it."""
        from onnx import helper

        if len(call.input) > len(function.input) or len(call.output) > len(function.output):
            raise ModelError(
                f"node {call.name!r} calls {_key(call)} with {len(call.input)} inputs and {len(call.output)} outputs; "
                f"the function has {len(function.input)} and {len(function.output)}"
            )
        self.calls += 1
        suffix = f"__{self.calls}"
        scope = dict.fromkeys(function.input, "") | dict(zip(function.input, call.input, strict=False))
        made = {name for node in function.node for name in node.output}
        passed = []
        for number, name in enumerate(function.output):
            wanted = call.output[number] if number < len(call.output) else ""
            if wanted and name in made and name not in scope:
                scope[name] = wanted
            elif wanted:  # an input as it is, or an output once more
                passed.append((name, wanted))
        given = {attribute.name: attribute for attribute in (*function.attribute_proto, *call.attribute)}
        nodes = [copied_node(node) for node in function.node]
        self.rename(nodes, scope, suffix, given)
        return nodes + [
            helper.make_node("Identity", [self.looked_up(name, scope, suffix)], [wanted]) for name, wanted in passed
        ]

    def rename(
        self, nodes: Sequence[NodeProto], scope: dict[str, str], suffix: str, given: Mapping[str, AttributeProto]
    ) -> None:
        """Give copied nodes the names in ``scope``, new ones where it has none, and the attributes of the call."""
        for node in nodes:
            for name in filter(None, node.output):
                self.looked_up(name, scope, suffix)
        for node in nodes:
            if node.name:
                name = node.name
                node.name = self.names.new(f"{name}{suffix}")
                self.nodes[node.name] = self.nodes.get(name, name)
            for names in (node.input, node.output):
                for position, name in enumerate(names):
                    names[position] = self.looked_up(name, scope, suffix)
            attributes = [_given(attribute, given) for attribute in node.attribute]
            del node.attribute[:]
            node.attribute.extend(attribute for attribute in attributes if attribute is not None)
            for body in bodies(node):
                self.rename_body(body, dict(scope), suffix, given)

    def rename_body(
        self, body: GraphProto, scope: dict[str, str], suffix: str, given: Mapping[str, AttributeProto]
    ) -> None:
        """As :meth:`rename`, of a graph inside a node, where names of its own hide those around it."""
        own = (*body.input, *body.initializer, *(sparse.values for sparse in body.sparse_initializer))
        for name in dict.fromkeys((*(value.name for value in own), *(n for node in body.node for n in node.output))):
            if name:
                scope[name] = self.new_tensor(name, suffix)
        for value in (*own, *body.output, *body.value_info):
            value.name = self.looked_up(value.name, scope, suffix)
        self.rename(body.node, scope, suffix, given)

    def looked_up(self, name: str, scope: dict[str, str], suffix: str) -> str:
        """A name that nothing defines gets one of its own too, lest it mean something outside of the function."""
        if name and name not in scope:
            scope[name] = self.new_tensor(name, suffix)
        return scope[name] if name else ""

    def new_tensor(self, name: str, suffix: str) -> str:
        """A name of its own for a tensor of a function, which is remembered."""
        new = self.names.new(f"{name}{suffix}")
        self.tensors[new] = name
        return new


def _key(named: NodeProto | FunctionProto) -> Key:
    name = str(getattr(named, "op_type", None) or named.name)  # of a node, or of a function itself
    return Key(domain_of(named), name, str(getattr(named, "overload", "")))


def _given(attribute: AttributeProto, given: Mapping[str, AttributeProto]) -> AttributeProto | None:
    """An attribute of a function's node -> what the call says in its place; None where it says nothing."""
    if not attribute.ref_attr_name:
        return attribute
    if attribute.ref_attr_name not in given:
        return None
    found = type(attribute)()
    found.CopyFrom(given[attribute.ref_attr_name])
    found.name = attribute.name
    return found


def _fits(function: FunctionProto, versions: Mapping[str, int], functions: Container[Key]) -> bool:
    """Do the function's ops mean the same under the model's opsets?"""
    own = {domain_of(entry): entry.version for entry in reversed(function.opset_import)}
    for node in _nodes(function):
        domain = domain_of(node)
        there = versions.get(domain)
        here = own.get(domain, there)
        if _key(node) in functions or here == there or there is None or here is None:
            continue
        if _form(node.op_type, here, domain) != _form(node.op_type, there, domain):
            return False
    return True


def _form(op_type: str, version: int, domain: str) -> Any:
    """What tells an op of one opset from that of another: attributes and their defaults, inputs and outputs.

    Most new versions of an op only take more types. Where one computes something else, as Softmax from opset 13 on, its
    form is another one as well. An op of somebody's own is another one in each version.
    """
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, min(max(version, 1), 2**31 - 1), domain)
    except onnx.defs.SchemaError:
        return version
    attributes = {
        name: (attribute.type, attribute.required, attribute.default_value.SerializeToString())
        for name, attribute in schema.attributes.items()
    }
    return (
        schema.deprecated,
        attributes,
        [[(each.option, each.min_arity) for each in side] for side in (schema.inputs, schema.outputs)],
    )


def _nodes(body: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """The nodes of a body, and those of the graphs inside them."""
    for each in (body, *subgraphs(body)):
        yield from each.node


def _called(body: GraphProto | FunctionProto, functions: Container[Key]) -> Iterator[Key]:
    """The functions that nodes in a body call."""
    return (key for key in map(_key, _nodes(body)) if key in functions)


def _refuse_too_many(model: ModelProto, functions: Mapping[Key, FunctionProto]) -> None:
    """ModelError for functions that call themselves, or stand for more nodes than :data:`MOST_NODES`."""
    sizes: dict[Key, int] = {}
    begun: set[Key] = set()

    def size(body: GraphProto | FunctionProto) -> int:
        return sum(sizes.get(_key(node), 1) for node in _nodes(body))

    waiting = list(functions)
    while waiting:
        key = waiting[-1]
        needed = {other for other in _called(functions[key], functions) if other not in sizes}
        if not needed:
            sizes[key] = size(functions[key])
            begun.discard(waiting.pop())
            continue
        begun.add(key)
        if needed & begun:
            raise ModelError(f"its function {key} calls itself, perhaps through others; the file is damaged")
        waiting += needed
    if size(model.graph) > MOST_NODES:
        raise ModelError(f"its functions stand for {size(model.graph)} nodes; at most {MOST_NODES} can be handled")

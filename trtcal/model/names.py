"""Names that mean one thing: a tensor is written once, hides none around it, and no two nodes are called the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from trtcal.errors import ModelError
from trtcal.model.nodes import Names, all_graphs, bodies, defined_in, label

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


class Originals(NamedTuple):
    """New name -> the name in the file, of nodes and tensors in functions, and of others that had to get one."""

    nodes: Mapping[str, str]
    tensors: Mapping[str, str]


NO_ORIGINALS = Originals({}, {})
"""Of a model in which nothing had to be called otherwise."""


def refuse_ambiguous(model: ModelProto) -> None:
    """ModelError where two nodes of a graph write one tensor, or a node writes an input or a constant."""
    for graph in all_graphs(model):
        given = {value.name for value in (*graph.input, *graph.initializer)}
        writers: dict[str, NodeProto] = {}
        for node in graph.node:
            for name in filter(None, node.output):
                if name in given or name in writers:
                    other = f"by {label(writers[name])}" if name in writers else "is an input or a constant"
                    raise ModelError(f"tensor {name!r} is written by {label(node)}, and {other}; the file is damaged")
                writers[name] = node


def are_unique(model: ModelProto) -> bool:
    """Is there nothing for :func:`make_unique` to do?"""
    named = [node.name for graph in all_graphs(model) for node in graph.node if node.name]
    return len(named) == len(set(named)) and not any(hidden for _, hidden in _hiding(model.graph, []))


def make_unique(model: ModelProto, before: Originals = NO_ORIGINALS) -> Originals:
    """Sorted model, changed itself -> ``before`` and what else had to get another name.

    That are nodes of one name, and tensors in bodies that hide one around them.
    The first node keeps its name, those of the graph itself before those in bodies; so does the outermost tensor.
    """
    names = Names(model)
    tensors = dict(before.tensors)
    for body, hidden in _hiding(model.graph, []):
        if hidden:
            new = {name: names.new(name) for name in hidden}
            _rename(body, new)
            tensors |= {renamed: tensors.get(name, name) for name, renamed in new.items()}
    nodes = dict(before.nodes)
    seen: set[str] = set()
    for graph in all_graphs(model):
        for node in graph.node:
            if node.name in seen:
                name = node.name
                node.name = names.new(name)
                nodes[node.name] = nodes.get(name, name)
            elif node.name:
                seen.add(node.name)
    return Originals(nodes, tensors)


def _hiding(graph: GraphProto, around: list[set[str]]) -> Iterator[tuple[GraphProto, list[str]]]:
    """Each graph inside a graph, outer ones first, and the names in it that are also around it."""
    there = {value.name for value in (*graph.input, *graph.initializer)}
    for node in graph.node:
        outside = [*around, there]
        for body in bodies(node):
            own = dict.fromkeys(filter(None, defined_in(body)))
            yield body, [name for name in own if any(name in names for names in outside)]
            yield from _hiding(body, outside)
        there.update(node.output)


def _rename(graph: GraphProto, new: Mapping[str, str]) -> None:
    """Give tensors other names where a graph defines and reads them, and where graphs inside its nodes read them."""
    sparse = [each.values for each in graph.sparse_initializer]
    for value in (*graph.input, *graph.initializer, *sparse, *graph.output, *graph.value_info):
        if value.name in new:
            value.name = new[value.name]
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = new.get(name, name)
        for body in bodies(node):
            own = set(defined_in(body))
            _rename(body, {name: renamed for name, renamed in new.items() if name not in own})

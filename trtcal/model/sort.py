"""Nodes in an order in which each comes after those that write what it reads."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from trtcal.errors import ModelError
from trtcal.model.nodes import all_graphs, reads, replaced

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


def is_sorted(model: ModelProto) -> bool:
    """Does every node of the graph, and of the graphs inside nodes, come after those that write what it reads?"""
    for graph in all_graphs(model):
        later = {name for node in graph.node for name in node.output}
        for node in graph.node:
            if not later.isdisjoint(reads(node)):
                return False
            later.difference_update(node.output)
    return True


def sort(model: ModelProto) -> None:
    """Put the nodes of the graph, and of the graphs inside nodes, in order, in the model itself.

    Of nodes that do not depend on each other, the one that came first stays first. ModelError names a node on a cycle.
    """
    for graph in all_graphs(model):
        order = _order(graph)
        if order != list(range(len(order))):
            replaced(graph.node, [graph.node[index] for index in order])


def _order(graph: GraphProto) -> list[int]:
    """Kahn's algorithm: at each step the first of the nodes whose inputs are all there."""
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [{producer[name] for name in reads(node) if name in producer} for node in graph.node]
    readers: list[list[int]] = [[] for _ in needs]
    for index, needed in enumerate(needs):
        for other in needed:
            readers[other].append(index)
    missing = list(map(len, needs))
    ready = [index for index, number in enumerate(missing) if not number]  # ascending, so a heap already
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(needs):
        _refuse_cycle(graph, needs, set(range(len(needs))) - set(order))
    return order


def _refuse_cycle(graph: GraphProto, needs: list[set[int]], left: set[int]) -> None:
    """Each node that is left needs another that is left: going back from one to the next comes to a cycle."""
    index, seen = min(left), set()
    while index not in seen:
        seen.add(index)
        index = min(needs[index] & left)
    node = graph.node[index]
    source = graph.node[min(needs[index] & left)]
    raise ModelError(
        f"{_name(node)} is on a cycle: it reads what {_name(source)} writes, which depends on it; the file is "
        f"damaged, export it again"
    )


def _name(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or ', '.join(node.output)!r}"

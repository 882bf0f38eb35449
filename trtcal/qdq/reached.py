"""Which outputs of a model INT8 reaches: what it cannot change says nothing about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from trtcal.model.nodes import is_quantized, op_name
from trtcal.model.open import Source, open_model
from trtcal.model.topology import Graph
from trtcal.qdq.insert import structure
from trtcal.qdq.placement import PLACEMENTS, place

SHAPE_ALONE = frozenset({"Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike"})
"""Their answer depends on the shape of what they read, which INT8 does not change, and not on its values."""


def int8_outputs(
    model: Source, scales: Mapping[str, np.float32], *, placement: str = "all", exclude: Iterable[str] = ()
) -> tuple[str, ...]:
    """Float model and scales -> its outputs that depend on a layer which :func:`insert_qdq` makes INT8 with these."""
    graph = structure(open_model(model))
    return _behind(graph, place(graph, scales, PLACEMENTS[placement], exclude).reads)


def outputs_behind_int8(model: Source) -> tuple[str, ...]:
    """Model that is quantized already -> its outputs that depend on a value which it rounds; none of a float model."""
    graph = Graph(open_model(model).proto)
    return _behind(graph, (index for index, node in enumerate(graph.nodes) if is_quantized(node)))


def _behind(graph: Graph, nodes: Iterable[int]) -> tuple[str, ...]:
    """Outputs that depend on what these nodes compute, in the order of the model."""
    waiting = list(nodes)
    seen = set(waiting)
    reached: set[str] = set()
    while waiting:
        for name in graph.nodes[waiting.pop()].output:
            reached.add(name)
            readers = {i for i in graph.readers.get(name, ()) if op_name(graph.nodes[i]) not in SHAPE_ALONE} - seen
            seen |= readers
            waiting += readers
    return tuple(value.name for value in graph.model.graph.output if value.name in reached)

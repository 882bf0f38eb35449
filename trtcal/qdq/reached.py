"""Which outputs of a model INT8 reaches: what it cannot change says nothing about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from trtcal.model.nodes import bodies, is_quantized, op_name, reads, subgraphs
from trtcal.model.open import Source, open_model
from trtcal.qdq.insert import structure
from trtcal.qdq.placement import PLACEMENTS, place

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

SHAPE_ALONE = frozenset({"Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike"})
"""Their answer depends on the shape of what they read, which INT8 does not change, and not on its values."""


def int8_outputs(
    model: Source, scales: Mapping[str, np.float32], *, placement: str = "all", exclude: Iterable[str] = ()
) -> tuple[str, ...]:
    """Float model and scales -> its outputs that depend on a layer which :func:`insert_qdq` makes INT8 with these."""
    graph = structure(open_model(model))
    return _behind(graph.model.graph, place(graph, scales, PLACEMENTS[placement], exclude).reads)


def outputs_behind_int8(model: Source) -> tuple[str, ...]:
    """Model that is quantized already -> its outputs that depend on a value which it rounds; none of a float model."""
    graph = open_model(model).proto.graph
    return _behind(graph, (index for index, node in enumerate(graph.node) if _rounds(node)))


def _rounds(node: NodeProto) -> bool:
    """Is a node quantized, or one inside it?"""
    inside = (inner for body in bodies(node) for part in (body, *subgraphs(body)) for inner in part.node)
    return is_quantized(node) or any(map(is_quantized, inside))


def _behind(graph: GraphProto, rounding: Iterable[int]) -> tuple[str, ...]:
    """Sorted graph and its nodes that round -> outputs that depend on what these compute, in the order of the model."""
    rounding, reached = set(rounding), set[str]()
    for index, node in enumerate(graph.node if rounding else ()):
        if index in rounding or (op_name(node) not in SHAPE_ALONE and not reached.isdisjoint(reads(node))):
            reached.update(node.output)
    return tuple(value.name for value in graph.output if value.name in reached)

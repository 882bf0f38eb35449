"""Weights that a model computes from constants become constants, so that they can be quantized."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.folding import fixed_values
from trtcal.model.nodes import Names, constants_of, copied, op_name, reads, replaced
from trtcal.model.topology import WEIGHTED, Graph, fixed_in

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

FACTORS = 2  # a weighted layer multiplies its first two inputs; the third is a bias, which stays in float


def lifted(model: ModelProto, libraries: Sequence[Path] = ()) -> ModelProto:
    """Model with its weights in memory -> a copy in which computed weights are constants under their own names.

    They may be what a Cast, a Transpose or a whole weight standardization makes; the nodes that made them go, unless
    others read what they make. The model itself where there is nothing to do. A weight that ONNX Runtime cannot
    compute, and the log says why, or that is an output of the model stays as it is. ``libraries`` hold
    custom operators.
    """
    from onnx import numpy_helper

    layers = [node for node in model.graph.node if op_name(node) in WEIGHTED]
    names = {name for node in layers for name in node.input[:FACTORS]} & fixed_in(model.graph)
    names -= constants_of(model.graph).keys() | {value.name for value in model.graph.output}
    values = _values(model, sorted(names), libraries) if names else {}
    if not values:
        return model
    model = copied(model)
    _take_out(model, values.keys())
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return model


def _values(model: ModelProto, names: Sequence[str], libraries: Sequence[Path]) -> dict[str, np.ndarray]:
    graph = Graph(model)
    try:
        return fixed_values(graph, names, libraries=libraries)
    except ModelError as error:
        if len(names) == 1:
            logger.info("%s; layers that have it as weights stay in float", error)
            return {}
    return {name: value for each in names for name, value in _values(model, [each], libraries).items()}


def _take_out(model: ModelProto, names: Collection[str]) -> None:
    """Nodes no longer write these tensors, and those that are not needed any more are gone."""
    graph = model.graph
    new = Names(model)
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output}
    cone: set[int] = set()
    waiting = list(names)
    while waiting:
        index = producer.get(waiting.pop())
        if index is not None and index not in cone:
            cone.add(index)
            waiting += reads(graph.node[index])
    needed = Counter(name for node in graph.node for name in reads(node))
    needed.update(value.name for value in graph.output)
    gone: set[int] = set()
    for index in sorted(cone, reverse=True):
        node = graph.node[index]
        if any(needed[name] for name in node.output if name not in names):
            for position, name in enumerate(node.output):
                if name in names:
                    node.output[position] = new.new(name)
        else:
            gone.add(index)
            needed.subtract(reads(node))
    read = {name for index in gone for name in reads(graph.node[index])}
    replaced(graph.node, [node for index, node in enumerate(graph.node) if index not in gone])
    replaced(graph.initializer, [held for held in graph.initializer if held.name not in read or needed[held.name]])

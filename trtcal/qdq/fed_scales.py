"""One Q/DQ model for many sets of ranges: the scales of its activations are inputs.

Weights are rounded to int8 once, when the model is made, and stand in it as the float32 numbers that their pair would
give. Both they and the scales are initializers that are inputs as well: a runtime must not take them for constants,
which it would pack and compute with in another order than with what a DequantizeLinear gives. So the numbers are those
of :func:`trtcal.qdq.insert.insert_qdq`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trtcal.model.nodes import reads
from trtcal.model.open import Source, open_model
from trtcal.qdq.insert import Pairs, check_int8, quantizable, read_instead, refuse_quantized, unknown_tensors
from trtcal.qdq.placement import PLACEMENTS, Plan, Weight, layer_name, place
from trtcal.qdq.weights import weight_scales

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Layers = tuple[tuple[int, tuple[tuple[int, "str | Weight"], ...]], ...]
"""Which layers are INT8, and what each reads as int8: what a model with fed scales is made for."""


class Fed(NamedTuple):
    """A Q/DQ model, and tensor -> the input that takes its scale, float32 of shape ()."""

    model: ModelProto
    inputs: Mapping[str, str]


class FedScales:
    """A float model, to be had with Q/DQ pairs whose scales are fed.

    ``placement`` and ``exclude`` are those of :func:`trtcal.qdq.insert.insert_qdq`. ModelError and ValueError as there.
    """

    def __init__(self, model: Source, *, placement: str = "all", exclude: Iterable[str] = ()) -> None:
        self._model = open_model(model)
        refuse_quantized(self._model)
        self._table, self._exclude = PLACEMENTS[placement], tuple(exclude)
        self._graph = quantizable(self._model)

    def plan(self, scales: Mapping[str, np.float32]) -> Plan:
        """Scales -> what becomes INT8 with them, and with which; ModelError where nothing does, as in `int8_of`."""
        unknown_tensors(self._graph, scales)
        plan = place(self._graph, scales, self._table, self._exclude)
        if not self._exclude:  # with it, all that is left may be what was asked for
            layers = [layer_name(self._graph.nodes[index]) for index in plan.reads]
            check_int8(layers, plan.skipped.items(), self._model.name)
        return plan

    def model(self, plan: Plan) -> Fed:
        """A plan -> the model for it, and for every plan of the same :func:`layers`."""
        graph = quantizable(self._model)
        pairs = Pairs(graph, fed=True)

        def made(read: str | Weight) -> tuple[str, list[NodeProto]]:
            if isinstance(read, Weight):
                return pairs.constant(
                    f"{read.name}_dequantized", rounded(graph.array(read.name), read.axis), fed=True
                ), []
            return pairs.make(read, np.asarray(plan.scales[read]))

        read_instead(graph, plan, made)
        _drop_unread(graph.model)
        return Fed(graph.model, pairs.scales)


def layers(plan: Plan) -> Layers:
    """A plan -> what of it the graph of a model shows: all but the numbers."""
    return tuple((index, tuple(found.items())) for index, found in plan.reads.items())


def rounded(array: np.ndarray, axis: int | None) -> np.ndarray:
    """Weights, float32 -> what Q/DQ pairs with their scales (`weight_scales`) make of them, to the last bit."""
    scales = weight_scales(array, axis)
    if axis is not None:
        scales = scales.reshape([-1 if at == axis else 1 for at in range(array.ndim)])
    levels = np.clip(np.rint(array / scales), -128, 127).astype(np.int8)  # by way of int8, which has no -0.0
    return np.asarray(levels.astype(np.float32) * scales)


def _drop_unread(model: ModelProto) -> None:
    """Take out the float weights that nobody reads any more: they would be held a second time."""
    graph = model.graph
    read = {name for node in graph.node for name in reads(node)}
    read |= {value.name for value in (*graph.output, *graph.input)}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)

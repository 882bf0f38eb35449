"""What rounding to INT8 does to single tensors, and to what the layers read; which layers are INT8 as one.

Of these, the trials of ``trtcal.judging.sensitivity`` choose their candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtcal.model.nodes import op_name
from trtcal.model.open import FloatRunner, Model
from trtcal.model.topology import MOVES_VALUES, Graph
from trtcal.qdq.layer_names import tensorrt_name
from trtcal.qdq.placement import Plan, Weight, exclusion, layer_name
from trtcal.qdq.weights import decibels, weight_scales, weight_sqnr_db

if TYPE_CHECKING:
    from onnx import NodeProto

LARGEST_SCALE = np.finfo(np.float32).max / 128


@dataclass(frozen=True)
class Trial:
    """What a model with some layers in INT8 lost against FP32.

    ``noise`` is the power of the difference over the power of the output, mean over the outputs; ``metric`` is
    None where none is measured.
    """

    noise: float
    metric: float | None

    @property
    def sqnr_db(self) -> float:
        """The noise, as SQNR in dB; inf without any."""
        return decibels(1.0, self.noise)


@dataclass(frozen=True)
class TensorDamage:
    """One INT8 activation: its range, the SQNR of its own rounding and clipping, and the layers that read it."""

    tensor: str
    amax: float
    sqnr_db: float
    layers: tuple[str, ...]


@dataclass(frozen=True)
class LayerDamage:
    """One INT8 layer: what TensorRT computes in one kernel, and layers before it that only move what it reads.

    ``estimate_db`` is the SQNR of what it reads, activations and weights together. ``only`` is the trial with
    nothing but this layer in INT8, ``without`` the one with everything else; None where the budget ended.
    ``exclude`` names what trtcal shall leave out, ``tensorrt`` each of its nodes for TensorRT; ``numbered`` are nodes
    that share their name with others or stand in a function, which TensorRT numbers by itself.
    """

    layer: str
    op_type: str
    tensors: tuple[str, ...]
    weights: tuple[str, ...]
    estimate_db: float
    exclude: tuple[str, ...]
    tensorrt: tuple[str, ...]
    numbered: tuple[str, ...] = ()
    only: Trial | None = None
    without: Trial | None = None


def rounding_sqnr(model: Model, plan: Plan, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Model, plan, batches -> SQNR in dB of each INT8 activation's own rounding, in one FP32 pass of single samples."""
    powers = {name: np.zeros(2) for name in plan.scales}
    with FloatRunner(model, only=plan.scales) as runner:
        for batch in batches:
            rows = getattr(batch, "valid", len(next(iter(batch.values()))))
            for row in range(rows):
                for name, values in runner({key: array[row : row + 1] for key, array in batch.items()}).items():
                    powers[name] += _signal_and_noise(values, plan.scales[name])
    return {name: decibels(signal, noise) for name, (signal, noise) in powers.items()}


def tensor_damage(graph: Graph, plan: Plan, sqnr_db: Mapping[str, float]) -> tuple[TensorDamage, ...]:
    """SQNR by tensor -> every INT8 activation, the worst first."""
    readers: dict[str, list[str]] = {}
    for index in sorted(plan.reads):
        for read in plan.reads[index].values():
            if isinstance(read, str):
                readers.setdefault(read, []).append(layer_name(graph.nodes[index]))
    found = [
        TensorDamage(name, _amax(scale), sqnr_db[name], tuple(dict.fromkeys(readers[name])))
        for name, scale in plan.scales.items()
    ]
    return tuple(sorted(found, key=lambda damage: damage.sqnr_db))


def layer_damage(graph: Graph, plan: Plan, sqnr_db: Mapping[str, float]) -> tuple[LayerDamage, ...]:
    """SQNR by tensor -> every INT8 layer with the estimate, the worst first."""
    found = _estimated(graph, plan, _layers(graph, plan), sqnr_db)
    return tuple(sorted(found, key=lambda damage: damage.estimate_db))


def noise_ratio(sqnr_db: float) -> float:
    """SQNR in dB -> noise over signal; 0 where there is no noise, and where there is no signal to lose."""
    return 0.0 if math.isinf(sqnr_db) else 10 ** (-sqnr_db / 10)


def _amax(scale: np.float32) -> float:
    """Scale -> the float32 that maps to 127, the largest one where that is past it by a rounding."""
    return float(np.float32(min(float(scale) * 127, float(np.finfo(np.float32).max))))


def _signal_and_noise(values: np.ndarray, scale: np.float32) -> tuple[float, float]:
    values = np.asarray(values, np.float32)
    rounded = np.clip(np.rint(values / scale), -128, 127)
    # 128 of the largest scales are more than a float32.
    rounded = rounded * scale if scale < LARGEST_SCALE else rounded.astype(np.float64) * float(scale)
    return (
        float(np.square(values, dtype=np.float64).sum()),
        float(np.square(values - rounded, dtype=np.float64).sum()),
    )


@dataclass(frozen=True)
class _Layer:
    """Nodes that are INT8 together: the first of the kernel, those in it that read int8, movers before it, all."""

    root: int
    reading: tuple[int, ...]
    movers: tuple[int, ...]
    nodes: tuple[int, ...]


def _layers(graph: Graph, plan: Plan) -> list[_Layer]:
    """The units that can be left out of INT8 with an effect.

    What only moves values (MaxPool, Concat) has its inputs and its output rounded alike, so the one without the
    other changes nothing: such a layer goes along with those that read it, and is a unit only if none does.
    """
    kernels: dict[int, list[int]] = {}
    for index in sorted(plan.reads):
        kernels.setdefault(graph.root.get(index, index), []).append(index)
    movers = {root: _movers(graph, plan, reading) for root, reading in kernels.items()}
    with_readers = {index for root, found in movers.items() if not _moves(graph, root) for index in found}
    members: dict[int, list[int]] = {}
    for index in range(len(graph.nodes)):
        members.setdefault(graph.root.get(index, index), []).append(index)
    return [
        _Layer(root, tuple(reading), movers[root], tuple(sorted({*members[root], *movers[root]})))
        for root, reading in kernels.items()
        if root not in with_readers
    ]


def _movers(graph: Graph, plan: Plan, reading: Iterable[int]) -> tuple[int, ...]:
    """INT8 layers between the layers that read and those that make their values."""
    found: dict[int, None] = {}
    waiting = [name for index in reading for name in plan.reads[index].values() if isinstance(name, str)]
    while waiting:
        index = graph.producer.get(waiting.pop())
        if index is None or index in found or not _moves(graph, index):
            continue
        if index in plan.reads:
            found[index] = None
        waiting += [graph.nodes[index].input[position] for position in graph.activations(index)]
    return tuple(sorted(found))


def _moves(graph: Graph, index: int) -> bool:
    return op_name(graph.nodes[index]) in MOVES_VALUES | {"Concat"}


def _estimated(
    graph: Graph, plan: Plan, layers: Iterable[_Layer], sqnr_db: Mapping[str, float]
) -> Iterable[LayerDamage]:
    for layer in layers:
        reads = list(dict.fromkeys(read for index in layer.reading for read in plan.reads[index].values()))
        tensors = [read for read in reads if isinstance(read, str)]
        weights = [read for read in reads if isinstance(read, Weight)]
        noise = sum(noise_ratio(sqnr_db[name]) for name in tensors)
        for weight in weights:
            array = graph.array(weight.name)
            noise += noise_ratio(weight_sqnr_db(array, weight_scales(array, weight.axis), weight.axis))
        root, nodes = graph.nodes[layer.root], [graph.nodes[index] for index in layer.nodes]
        yield LayerDamage(
            layer=layer_name(root),
            op_type=root.op_type,
            tensors=tuple(tensors),
            weights=tuple(weight.name for weight in weights),
            estimate_db=decibels(1.0, noise),
            exclude=tuple(exclusion(graph, index) for index in (layer.root, *layer.movers)),
            tensorrt=tuple(tensorrt_name(node) for node in nodes if not _numbered(graph, node)),
            numbered=tuple(layer_name(node) for node in nodes if _numbered(graph, node)),
        )


def _numbered(graph: Graph, node: NodeProto) -> bool:
    """Does TensorRT make up the name of the node's layer?"""
    return node.name in graph.originals.nodes if node.name else node.output[0] in graph.originals.tensors

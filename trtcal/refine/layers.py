"""Which weights of a model can be refined, and what a layer multiplies them with.

The weights of a layer are seen as rows, one per output channel: (groups, channels of a group, k), where k counts the
weights that make one output value. What they are multiplied with is seen as columns, (groups, positions, k). A layer
then computes ``columns @ rows.T``, and what rounding does to its output depends on the columns' second moments alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.nodes import label, op_name, reads
from trtcal.model.topology import Graph, int_attribute
from trtcal.qdq.placement import WEIGHT_AXIS, layer_name

if TYPE_CHECKING:
    from onnx import NodeProto

Rows = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads refinable weights: its node, and the tensor that is multiplied with them."""

    index: int
    name: str
    op_type: str
    source: str
    output: str
    columns: Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
    """One sample's source, (1, ...), the most positions to take, where to draw them from -> (groups, positions, k)."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Constant weights, all layers that read them, and their two views."""

    name: str
    readers: tuple[Reader, ...]
    groups: int
    k: int
    to_rows: Rows
    """The tensor -> (groups, channels of a group, k)."""
    from_rows: Rows
    """The other way round."""

    @property
    def layer(self) -> str:
        """The layer that reads them first."""
        return self.readers[0].name


def refinable(graph: Graph, *, transposed: bool = False) -> tuple[list[Weights], dict[str, str]]:
    """Graph -> the weights that can be refined, in its order, and the layers that are left alone, with the reason.

    ``transposed``: ConvTranspose as well, whose kernels a Q/DQ model quantizes per output channel, while TensorRT does
    it per input channel where a calibration cache decides (NVIDIA/TensorRT#2380).
    """
    found: dict[str, list[Weights]] = {}
    left: dict[str, str] = {}
    for index, node in enumerate(graph.nodes):
        if op_name(node) not in WEIGHT_AXIS:
            continue
        weight = graph.constants[node.input[1]].name if node.input[1] in graph.constants else None
        reason = _why_not(graph, node, transposed)
        if weight is None or reason:
            left[layer_name(node)] = reason or "its weights are computed, or it multiplies two activations"
            continue
        found.setdefault(weight, []).append(_weights(graph, index, weight))
    refined = []
    for name, views in found.items():
        reason = _why_not_shared(graph, views)
        if reason:
            left |= {view.layer: reason for view in views}
            continue
        first = views[0]
        readers = tuple(reader for view in views for reader in view.readers)
        refined.append(Weights(name, readers, first.groups, first.k, first.to_rows, first.from_rows))
    return refined, left


def _why_not(graph: Graph, node: NodeProto, transposed: bool) -> str | None:
    """Why a layer with weights is left alone; None where nothing stands against it."""
    if node.input[1] not in graph.constants:
        return None
    array = graph.array(node.input[1])
    if array.dtype != np.float32 or not np.isfinite(array).all():
        return f"its weights are {array.dtype}" if array.dtype != np.float32 else "its weights hold inf or nan"
    if not array.size or not array.any():
        return "its weights are zeros"
    if node.input[0] in graph.fixed:
        return "it is computed from constants alone"
    if op_name(node) == "ConvTranspose":
        if not transposed:
            return "TensorRT quantizes the kernels of ConvTranspose per input channel where a cache decides"
        if int_attribute(node, "group", 1) != 1:
            return "its groups share one scale"
    if op_name(node) == "MatMul" and array.ndim != 2:
        return f"its weights have {array.ndim} axes"
    return None


def _why_not_shared(graph: Graph, views: list[Weights]) -> str | None:
    """Why weights that several nodes read are left alone; None where all of them read rows of the same form."""
    name = views[0].name
    known = {reader.index for view in views for reader in view.readers}
    aliases = {alias for alias, constant in graph.constants.items() if constant.name == name}
    for index, node in enumerate(graph.nodes):
        if index not in known and op_name(node) != "Identity" and aliases.intersection(reads(node)):
            return f"{label(node)} reads its weights as well"
    if name in graph.outputs:
        return "its weights are an output of the model"
    probe = np.arange(graph.array(name).size, dtype=np.float32).reshape(graph.array(name).shape)
    rows = [view.to_rows(probe) for view in views]
    if any(other.shape != rows[0].shape or not np.array_equal(other, rows[0]) for other in rows[1:]):
        return "layers of different form share its weights"
    return None


def _weights(graph: Graph, index: int, name: str) -> Weights:
    node = graph.nodes[index]
    shape = graph.array(name).shape
    op_type = op_name(node)
    if op_type in ("Conv", "ConvTranspose"):
        groups, to_rows, from_rows = _kernel_views(node, shape)
        columns = _conv_columns(node, shape)
    else:
        groups = 1
        flip = op_type == "MatMul" or not int_attribute(node, "transB", 0)
        to_rows, from_rows = _matrix_views(flip)
        columns = _matrix_columns(op_type == "Gemm" and bool(int_attribute(node, "transA", 0)))
    k = int(to_rows(np.zeros(shape, np.float32)).shape[-1])
    reader = Reader(index, layer_name(node), node.op_type, node.input[0], node.output[0], columns)
    return Weights(name, (reader,), groups, k, to_rows, from_rows)


def _kernel_views(node: NodeProto, shape: tuple[int, ...]) -> tuple[int, Rows, Rows]:
    if op_name(node) == "ConvTranspose":
        # The same sums as a convolution of the spread-out input with the mirrored kernel, inputs and outputs exchanged.
        mirror = (slice(None), slice(None), *[slice(None, None, -1)] * (len(shape) - 2))

        def to_rows(array: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(np.swapaxes(array, 0, 1)[mirror]).reshape(1, shape[1], -1)

        def from_rows(rows: np.ndarray) -> np.ndarray:
            kernels = rows.reshape(shape[1], shape[0], *shape[2:])[mirror]
            return np.ascontiguousarray(np.swapaxes(kernels, 0, 1))

        return 1, to_rows, from_rows
    groups = int_attribute(node, "group", 1)
    if shape[0] % groups:
        raise ModelError(f"{label(node)}: {shape[0]} output channels cannot be shared among {groups} groups")
    return (
        groups,
        lambda array: array.reshape(groups, shape[0] // groups, -1),
        lambda rows: rows.reshape(shape),
    )


def _matrix_views(flip: bool) -> tuple[Rows, Rows]:
    if flip:
        return lambda array: np.ascontiguousarray(array.T)[None], lambda rows: np.ascontiguousarray(rows[0].T)
    return lambda array: array[None], lambda rows: rows[0]


def _matrix_columns(transposed: bool) -> Callable[[np.ndarray, int, np.random.Generator], np.ndarray]:
    def columns(x: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
        rows = x.T if transposed else x.reshape(-1, x.shape[-1])
        picked: np.ndarray = rows[_picked(len(rows), most, rng)][None]
        return picked

    return columns


def _conv_columns(
    node: NodeProto, shape: tuple[int, ...]
) -> Callable[[np.ndarray, int, np.random.Generator], np.ndarray]:
    axes = len(shape) - 2
    strides = _ints(node, "strides", [1] * axes)
    dilations = _ints(node, "dilations", [1] * axes)
    kernel = list(shape[2:])
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    transposed = op_name(node) == "ConvTranspose"
    groups = int_attribute(node, "group", 1)

    def columns(x: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
        if transposed:
            begin = _ints(node, "pads", [0] * 2 * axes)
            spread = np.zeros(
                (*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))), x.dtype
            )
            every: tuple[Any, ...] = (..., *(slice(None, None, step) for step in strides))
            spread[every] = x
            extra = _ints(node, "output_padding", [0] * axes)
            pads = [(reach[i] - 1 - begin[i], reach[i] - 1 - begin[axes + i] + extra[i]) for i in range(axes)]
            x, steps = _padded(spread, pads), [1] * axes
        else:
            x, steps = _padded(x, _pads(node, x.shape[2:], reach, strides)), strides
        windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + axes)))
        stepped: tuple[Any, ...] = (..., *(slice(None, None, step) for step in (*steps, *dilations)))
        windows = windows[stepped]
        places = windows.shape[2 : 2 + axes]
        chosen = np.unravel_index(_picked(int(np.prod(places)), most, rng), places)
        places_first = np.moveaxis(windows, range(2, 2 + axes), range(axes))
        taken = np.moveaxis(places_first[chosen], 0, 2)  # (1, channels, positions, *kernel)
        count, channels, positions = taken.shape[:3]
        by_group = taken.reshape(count, groups, channels // groups, positions, -1).transpose(1, 0, 3, 2, 4)
        return np.asarray(by_group.reshape(groups, count * positions, -1))

    return columns


def _picked(there: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of so many positions at most, in order."""
    return np.arange(there) if there <= most else np.sort(rng.choice(there, most, replace=False))


def _padded(x: np.ndarray, pads: Iterable[tuple[int, int]]) -> np.ndarray:
    """Spatial axes padded with zeros; cut where a pad is negative, as ConvTranspose can have it."""
    pads = list(pads)
    if not any(map(any, pads)):
        return x
    x = np.pad(x, [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in pads)])
    cut = tuple(slice(max(-a, 0), x.shape[2 + i] - max(-b, 0)) for i, (a, b) in enumerate(pads))
    return x[(slice(None), slice(None), *cut)]


def _pads(node: NodeProto, sizes: tuple[int, ...], reach: list[int], strides: list[int]) -> list[tuple[int, int]]:
    """What a convolution puts around each spatial axis of an input of these sizes."""
    axes = len(sizes)
    auto = next((a.s.decode() for a in node.attribute if a.name == "auto_pad"), "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        made = []
        for size, span, step in zip(sizes, reach, strides, strict=True):
            whole = max((-(-size // step) - 1) * step + span - size, 0)
            less, more = whole // 2, whole - whole // 2
            made.append((less, more) if auto == "SAME_UPPER" else (more, less))
        return made
    given = [0] * 2 * axes if auto == "VALID" else _ints(node, "pads", [0] * 2 * axes)
    return list(zip(given[:axes], given[axes:], strict=True))


def _ints(node: NodeProto, name: str, default: list[int]) -> list[int]:
    found: list[Any] = [list(attribute.ints) for attribute in node.attribute if attribute.name == name]
    return found[0] if found and found[0] else default

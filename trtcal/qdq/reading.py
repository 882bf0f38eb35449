"""A Q/DQ model read: which tensors it quantizes, how, and which float tensor stands behind each that it makes.

A tensor is quantized by QuantizeLinear and DequantizeLinear, of ONNX's own domain or ONNX Runtime's, by the same with
an int8 Clip between them (brevitas' QCDQ), or by fake quantization in plain operators (:mod:`trtcal.qdq.fake_quant`).
An input of the model may be integers already, with a DequantizeLinear alone, and an output may be left as integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.folding import fixed_values
from trtcal.model.nodes import bodies, is_quantized, label, op_name, reads
from trtcal.model.topology import MOVES_VALUES, Graph, int_attribute
from trtcal.qdq.fake_quant import FakeQuant, fake_quants

if TYPE_CHECKING:
    from onnx import NodeProto

PAIR = ("QuantizeLinear", "DequantizeLinear")  # of any domain, as `is_quantized` takes them
SAME_SCALE = 1e-6  # relative; tools that compute the scale of a Q and of its DQ apart round them apart
_SAME_AXES = frozenset({"Identity", "Dropout", "MaxPool"})  # of those that move values


@dataclass(frozen=True, eq=False)
class Levels:
    """The numbers that a tensor is rounded to: ``low``..``high`` of a type, minus the zero point, times the scale.

    ``by`` says which node does it, ``type`` is the name of ONNX's type; ``axis`` is that of several scales, None with
    one; ``floats`` is ONNX's number of the type that they stand for.
    """

    by: str
    type: str
    scale: np.ndarray
    zero_point: np.ndarray
    low: float
    high: float
    axis: int | None
    block: int
    floats: int


@dataclass(eq=False)
class Reading:
    """What stands behind the pairs of a model.

    ``sources`` maps each tensor that is no more to the float tensor it stands for; ``activations`` are what is
    quantized but for constants, as (name in the float model, levels); ``removed`` are indices of nodes; ``constants``
    are outputs of DequantizeLinear that depend on no input; ``casts`` maps such outputs as are of another type than
    what was quantized to (source, ONNX's number of the type); ``integers`` are tensors that hold integers so far.
    """

    sources: dict[str, str] = field(default_factory=dict)
    activations: list[tuple[str, Levels]] = field(default_factory=list)
    removed: set[int] = field(default_factory=set)
    constants: list[str] = field(default_factory=list)
    casts: dict[str, tuple[str, int]] = field(default_factory=dict)
    integers: dict[str, Levels] = field(default_factory=dict)


def read_quantized(graph: Graph, folder: str | Path | None = None) -> Reading:
    """Graph of a Q/DQ model, and where its weights lie if they do in files -> :class:`Reading`.

    ModelError where a Q and its DQ are not of one scale and zero point, a scale is not positive, a parameter is not
    constant, or integers are computed with: no float model underlies those.
    """
    return _Reader(graph, folder).read()


class _Reader:
    def __init__(self, graph: Graph, folder: str | Path | None) -> None:
        self.graph, self.folder = graph, folder
        self.found = Reading()
        self._values: dict[str, np.ndarray] = {}

    def read(self) -> Reading:
        spelt = {fake.nodes[-1]: fake for fake in fake_quants(self.graph, self._value)}
        inside = {index for fake in spelt.values() for index in fake.nodes}
        self._integer_inputs()
        for index, node in enumerate(self.graph.nodes):
            self._refuse_inside(node)
            if index in spelt:
                self._fake_quant(spelt[index])
            elif index not in inside:
                self._node(index, node)
        return self.found

    def _node(self, index: int, node: NodeProto) -> None:
        found = self.found
        read = [name for name in reads(node) if name in found.integers]
        first = read == list(node.input[:1])
        if node.op_type == "QuantizeLinear" and not read:
            self._quantize(index, node)
        elif node.op_type == "DequantizeLinear" and first:
            self._dequantize(index, node)
        elif node.op_type == "DequantizeLinear" and not read:
            if node.input[0] not in self.graph.fixed:
                raise ModelError(f"{label(node)}: dequantizes {node.input[0]!r}, which no QuantizeLinear made")
            found.constants.append(node.output[0])
            found.removed.add(index)
        elif op_name(node) == "Clip" and first:
            self._clip(index, node)
        elif op_name(node) in MOVES_VALUES and first:
            found.integers[node.output[0]] = self._moved(node, found.integers[node.input[0]])
        elif read or is_quantized(node):
            raise ModelError(
                f"{label(node)}: computes with quantized values; only a model of QuantizeLinear and "
                f"DequantizeLinear pairs around float layers has a float model underneath"
            )

    def _quantize(self, index: int, node: NodeProto) -> None:
        levels = self._levels(node, self._type_of(node))
        _refuse_not_positive(levels, node.input[0])
        self._stand_for(node)
        self.found.integers[node.output[0]] = levels
        self.found.removed.add(index)
        if node.input[0] not in self.graph.fixed:
            self.found.activations.append((self.found.sources[node.output[0]], levels))

    def _dequantize(self, index: int, node: NodeProto) -> None:
        quantized = self.found.integers[node.input[0]]
        levels = self._levels(node, quantized.type)
        self._refuse_other(node, quantized, levels)
        self.found.removed.add(index)
        if levels.floats == quantized.floats:
            self._stand_for(node)
        else:
            name = str(node.input[0])
            self.found.casts[node.output[0]] = self.found.sources.get(name, name), levels.floats

    def _clip(self, index: int, node: NodeProto) -> None:
        levels = self._clipped(node, self.found.integers[node.input[0]])
        self._stand_for(node)
        self.found.integers[node.output[0]] = levels
        self.found.removed.add(index)
        source = self.found.sources[node.output[0]]
        if source not in self.graph.fixed:
            self.found.activations.append((source, levels))

    def _fake_quant(self, fake: FakeQuant) -> None:
        last = self.graph.nodes[fake.nodes[-1]]
        axis = None if fake.scale.size == 1 else -1  # which does not matter: nobody dequantizes it
        kind, zero = f"numbers from {fake.low} to {fake.high}", np.zeros(())
        floats = self._floats(fake.output)
        levels = Levels(label(last), kind, fake.scale, zero, fake.low, fake.high, axis, 0, floats)
        _refuse_not_positive(levels, fake.source)
        if fake.is_int8:
            levels = replace(levels, type="int8")
        source = self.found.sources.get(fake.source, fake.source)
        self.found.sources[fake.output] = source
        self.found.removed.update(fake.nodes)
        if fake.source not in self.graph.fixed:
            self.found.activations.append((source, levels))

    def _integer_inputs(self) -> None:
        """Inputs of the model that a DequantizeLinear reads, before any QuantizeLinear: floats in the float model."""
        given = [value.name for value in self.graph.model.graph.input if value.name not in self.graph.fixed]
        origin = {name: name for name in given}
        for node in self.graph.nodes:
            first = origin.get(node.input[0]) if node.input else None
            if first is None:
                continue
            if op_name(node) in MOVES_VALUES or op_name(node) == "Clip":
                origin[node.output[0]] = first
            elif node.op_type == "DequantizeLinear" and first not in self.found.integers:
                type = self._type_name(self.graph.types.get(first, 0))
                if not np.isfinite(_bounds(type)).all():
                    continue
                levels = self._levels(node, type)
                _refuse_not_positive(levels, first)
                self.found.integers[first] = levels
                self.found.activations.append((first, levels))

    def _stand_for(self, node: NodeProto) -> None:
        name = str(node.input[0])
        self.found.sources[node.output[0]] = self.found.sources.get(name, name)

    def _levels(self, node: NodeProto, type: str) -> Levels:
        """Of a Q or DQ node; of a DQ, in the type that was quantized to."""
        names = [str(name) for name in node.input[1:3] if name]
        for name in names:
            if name not in self.graph.fixed:
                raise ModelError(f"{label(node)}: its scale or zero point {name!r} is computed, not constant")
        scale = self._value(names[0])
        zero_point = self._value(names[1]) if len(names) > 1 else np.zeros(())
        if zero_point.size not in (1, scale.size):
            raise ModelError(f"{label(node)}: has {scale.size} scales and {zero_point.size} zero points")
        axis = None if scale.size == 1 else int_attribute(node, "axis", 1)
        floats = self._floats(node.input[0] if node.op_type == "QuantizeLinear" else node.output[0])
        zeros = zero_point.astype(np.float64)
        block = int_attribute(node, "block_size", 0)
        low, high = _bounds(type)
        return Levels(label(node), type, scale, zeros, low, high, axis, block, floats)

    def _type_of(self, node: NodeProto) -> str:
        """What a QuantizeLinear makes: the type of its zero point, or what opset 21 and newer say; else uint8."""
        from onnx import TensorProto

        declared = int_attribute(node, "output_dtype", 0)
        name = node.input[2] if len(node.input) > 2 else ""
        if not name:
            return self._type_name(declared or TensorProto.UINT8)
        constant = self.graph.constants.get(name)
        type = self.graph.types.get(name, 0) if constant is None else constant.tensor.data_type
        if declared not in (0, type):
            raise ModelError(
                f"{label(node)}: is to give {self._type_name(declared)} with a zero point that is "
                f"{self._type_name(type)}"
            )
        return self._type_name(type)

    @staticmethod
    def _type_name(number: int) -> str:
        from onnx import TensorProto

        try:
            return str(TensorProto.DataType.Name(number)).lower()
        except ValueError as error:
            raise ModelError(f"a QuantizeLinear gives the element type {number}, which ONNX does not know") from error

    def _floats(self, name: str) -> int:
        from onnx import TensorProto

        return self.graph.types.get(name, int(TensorProto.FLOAT))

    def _clipped(self, node: NodeProto, levels: Levels) -> Levels:
        """What a Clip of integers leaves of the levels."""
        bounds: list[float] = [levels.low, levels.high]
        for position, name in enumerate(node.input[1:3]):
            if name:
                if name not in self.graph.fixed:
                    raise ModelError(f"{label(node)}: its bound {name!r} is computed, not constant")
                value = self._value(name)
                if value.size != 1:
                    raise ModelError(
                        f"{label(node)}: its bound {name!r} has the shape {value.shape}, not of one number"
                    )
                bounds[position] = (max, min)[position](bounds[position], float(value.item()))
        return replace(levels, low=bounds[0], high=bounds[1])

    def _moved(self, node: NodeProto, levels: Levels) -> Levels:
        """The same levels behind a node that moves values: their axis may be another then."""
        if levels.axis is None or op_name(node) in _SAME_AXES:
            return levels
        order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
        if op_name(node) != "Transpose" or not -len(order) <= levels.axis < len(order):
            raise ModelError(
                f"{label(node)}: moves values that {levels.by} quantized with {levels.scale.size} scales, and which "
                f"axis those are along then is not known"
            )
        return replace(levels, axis=order.index(levels.axis % len(order)))

    def _refuse_other(self, node: NodeProto, quantized: Levels, levels: Levels) -> None:
        """ModelError where a DQ does not undo what its Q did: the pair is then more than a rounding."""
        for what, first, second in (
            ("scale", quantized.scale, levels.scale),
            ("zero point", quantized.zero_point, levels.zero_point),
        ):
            if not _same(first, second):
                raise ModelError(
                    f"{label(node)}: dequantizes with another {what} than {quantized.by} quantizes with "
                    f"({_shown(second)} and {_shown(first)}), so the pair does more than round, and no float model "
                    f"underlies it"
                )
        if quantized.axis is None or levels.axis is None:
            return  # one number stands for all of them
        if not self._same_axis(node, quantized.axis, levels.axis):
            raise ModelError(
                f"{label(node)}: dequantizes along axis {levels.axis} what {quantized.by} quantizes along axis "
                f"{quantized.axis}"
            )
        if levels.block != quantized.block:
            raise ModelError(f"{label(node)}: has other blocks than {quantized.by}: {levels.block}, {quantized.block}")

    def _same_axis(self, node: NodeProto, first: int, second: int) -> bool:
        """One of them may count from behind; of constants the number of axes is known."""
        name = self.found.sources.get(node.input[0], node.input[0])
        rank = self._value(name).ndim if first != second and name in self.graph.fixed else 0
        return first == second or bool(rank and (first - second) % rank == 0)

    def _refuse_inside(self, node: NodeProto) -> None:
        for body in bodies(node):
            for inner in body.node:
                if is_quantized(inner):
                    raise ModelError(
                        f"{label(inner)}: stands inside {label(node)}, where trtcal does not take quantization apart"
                    )
                self._refuse_inside(inner)

    def _value(self, name: str) -> np.ndarray:
        if name not in self._values:
            self._values |= fixed_values(self.graph, [name], self.folder)
        return self._values[name]


def _bounds(type: str) -> tuple[float, float]:
    """Least and largest number of an integer type; those of others do not matter."""
    head, _, bits = type.partition("int")
    if head not in ("", "u") or not bits.isdigit():
        return -np.inf, np.inf
    return (0.0, 2.0 ** int(bits) - 1) if head else (-(2.0 ** (int(bits) - 1)), 2.0 ** (int(bits) - 1) - 1)


def _refuse_not_positive(levels: Levels, name: str) -> None:
    scale = levels.scale.astype(np.float64)
    wrong = scale[~(np.isfinite(scale) & (scale > 0))].ravel()
    if wrong.size or not scale.size:
        raise ModelError(
            f"{levels.by}: {name!r} is quantized with the scale {wrong[0] if wrong.size else None}; expected a "
            f"positive finite number"
        )


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    """Two scales or two zero points: are they the same, one number standing for any number of it?"""
    a, b = first.astype(np.float64), second.astype(np.float64)
    if 1 not in (a.size, b.size) and a.shape != b.shape:
        return False
    return bool((np.abs(a.ravel() - b.ravel()) <= SAME_SCALE * np.abs(a.ravel())).all())


def _shown(array: np.ndarray) -> str:
    values: Iterator[float] = map(float, array.ravel()[:3])
    return ", ".join(f"{value:.6g}" for value in values) + (", ..." if array.size > 3 else "")

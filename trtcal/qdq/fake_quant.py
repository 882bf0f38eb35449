"""Fake quantization spelt out in plain operators, as exporters write it: Div, Round, Clip, Mul.

``Clip(Round(x / s), low, high) * s`` is what a QuantizeLinear and its DequantizeLinear compute. Recognised are Div by
the scale or Mul by its inverse, on either side; Clip, or Min and Max, before or after Round; a zero point that is added
before or after Round and subtracted again; Floor(x + 1/2) for Round; casts to integers and back; and what a
straight-through estimator leaves, ``x + (Round(x) - x)``. All parameters must be constant, or computed from constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from trtcal.model.nodes import op_name
from trtcal.model.topology import Graph

MOST_BITS = 16
ROUNDS = frozenset({"Round", "Floor"})  # without one of them nothing is rounded


class FakeQuant(NamedTuple):
    """``output`` is ``source`` rounded to ``low``..``high`` steps of ``scale``, by the nodes with these indices."""

    source: str
    output: str
    scale: np.ndarray
    low: int
    high: int
    nodes: tuple[int, ...]

    @property
    def is_int8(self) -> bool:
        """All numbers of int8, or all but the lowest."""
        return (self.low, self.high) in ((-128, 127), (-127, 127))


Value = Callable[[str], np.ndarray]
"""Name of a tensor that depends on no input of the model -> its value."""


def fake_quants(graph: Graph, value: Value) -> Iterator[FakeQuant]:
    """Graph -> every fake quantization in it that is not QuantizeLinear and DequantizeLinear, in its order."""
    for index, node in enumerate(graph.nodes):
        rounding = _rounding(graph, value, index) if op_name(node) in ROUNDS and node.input[0] else None
        found = None if rounding is None else _around(graph, value, rounding)
        if found is not None:
            yield found


class _Steps:
    """Shifts by whole numbers and clips, one after the other: ``clip(x + shift, low, high)``."""

    def __init__(self) -> None:
        self.shift, self.low, self.high = 0.0, -math.inf, math.inf

    def add(self, number: float) -> None:
        self.shift, self.low, self.high = self.shift + number, self.low + number, self.high + number

    def clip(self, low: float, high: float) -> None:
        self.low, self.high = (min(max(bound, low), high) for bound in (self.low, self.high))


Step = Callable[[_Steps], None]


class _Rounding(NamedTuple):
    """``output`` is ``source`` rounded to whole numbers by these nodes, which read nothing else that counts."""

    source: str
    output: str
    nodes: tuple[int, ...]


def _rounding(graph: Graph, value: Value, index: int) -> _Rounding | None:
    """A Round, or a Floor behind an Add of 1/2, and what a straight-through estimator made around it."""
    node = graph.nodes[index]
    source = str(node.input[0])
    nodes: tuple[int, ...] = (index,)
    if op_name(node) == "Floor":
        producer = graph.producer.get(source)
        if producer is None or op_name(graph.nodes[producer]) != "Add" or not _is_read_by(graph, source, nodes):
            return None
        data = [name for name in graph.nodes[producer].input if name not in graph.fixed or _number(value(name)) != 0.5]
        if len(data) != 1:
            return None
        source, nodes = data[0], (producer, index)
    output, around = _straight_through(graph, str(node.output[0]), source)
    return _Rounding(source, output, (*nodes, *around))


def _straight_through(graph: Graph, output: str, source: str) -> tuple[str, tuple[int, ...]]:
    """What ``source + (output - source)`` is called, and the two nodes that make it; the output alone where none do."""
    sub = _only_reader(graph, output)
    if sub is None or op_name(graph.nodes[sub]) != "Sub" or list(graph.nodes[sub].input) != [output, source]:
        return output, ()
    difference = str(graph.nodes[sub].output[0])
    add = _only_reader(graph, difference)
    if add is None or op_name(graph.nodes[add]) != "Add" or set(graph.nodes[add].input) != {difference, source}:
        return output, ()
    return str(graph.nodes[add].output[0]), (sub, add)


def _around(graph: Graph, value: Value, rounding: _Rounding) -> FakeQuant | None:
    """The fake quantization that these nodes are the heart of; None where what stands around them makes none."""
    after = _down(graph, value, rounding)
    if after is None:
        return None
    later, factor, used, output = after
    before = _up(graph, value, rounding, factor)
    if before is None:
        return None
    earlier, divisor, exact, also_used, source = before
    steps = _Steps()
    for step in (*reversed(earlier), *later):
        step(steps)
    if factor.dtype != divisor.dtype or not _alike(factor, divisor) or not _are_levels(steps):
        return None
    if graph.dtype(source) != graph.dtype(output):
        return None
    scale = divisor if exact and not _multiplies(graph, used[-1]) else factor
    output, around = _straight_through(graph, output, source)
    nodes = (*reversed(also_used), *rounding.nodes, *used, *around)
    return FakeQuant(source, output, scale, int(steps.low), int(steps.high), nodes)


def _down(graph: Graph, value: Value, rounding: _Rounding) -> tuple[list[Step], np.ndarray, list[int], str] | None:
    """From a rounding to the Mul or Div behind it: the steps between, the scale, the nodes, the output of the last."""
    steps: list[Step] = []
    used: list[int] = []
    name = rounding.output
    while (reader := _only_reader(graph, name)) is not None:
        node = graph.nodes[reader]
        used.append(reader)
        operands = [other for other in node.input if other != name]
        if op_name(node) in ("Mul", "Div") and len(operands) == 1 and operands[0] in graph.fixed:
            number = value(operands[0])
            if op_name(node) == "Mul":
                return steps, number, used, str(node.output[0])
            return (steps, _inverse(number), used, str(node.output[0])) if node.input[0] == name else None
        step = _step(graph, value, reader, name)
        if step is None:
            return None
        steps.append(step)
        name = node.output[0]
    return None


def _up(
    graph: Graph, value: Value, rounding: _Rounding, scale: np.ndarray
) -> tuple[list[Step], np.ndarray, bool, list[int], str] | None:
    """From a rounding back to the Div or Mul before it: steps, scale, whether it is a Div's, nodes, source."""
    steps: list[Step] = []
    used: list[int] = []
    name, readers = rounding.source, rounding.nodes
    while (producer := graph.producer.get(name)) is not None and _is_read_by(graph, name, readers):
        node = graph.nodes[producer]
        readers = (producer,)
        used.append(producer)
        if op_name(node) == "Div" and node.input[1] in graph.fixed:
            return steps, value(node.input[1]), True, used, str(node.input[0])
        if op_name(node) == "Mul":
            for data, factor in ((0, 1), (1, 0)):  # of constant weights both are constant: which is the scale?
                if node.input[factor] in graph.fixed and node.input[data] != node.input[factor]:
                    divisor = _inverse(value(node.input[factor]))
                    if node.input[data] not in graph.fixed or _alike(scale, divisor):
                        return steps, divisor, False, used, str(node.input[data])
            return None
        data_input = _data_input(graph, value, producer)
        step = None if data_input is None else _step(graph, value, producer, data_input)
        if step is None or data_input is None:
            return None
        steps.append(step)
        name = data_input
    return None


def _only_reader(graph: Graph, name: str) -> int | None:
    """The one node that reads a tensor, where nobody else does and it is no output of the model."""
    readers = graph.readers.get(name, [])
    if len(readers) != 1 or name in graph.outputs or list(graph.nodes[readers[0]].input).count(name) != 1:
        return None
    return readers[0]


def _is_read_by(graph: Graph, name: str, readers: tuple[int, ...]) -> bool:
    """Is a tensor read by these nodes alone, and no output of the model?"""
    return name not in graph.outputs and set(graph.readers.get(name, ())) <= set(readers)


def _data_input(graph: Graph, value: Value, index: int) -> str | None:
    """Which input of a shift or clip is the data: of two constants the one that is no single number."""
    names = list(graph.nodes[index].input)
    if op_name(graph.nodes[index]) in ("Clip", "Sub") or len(names) != 2:
        return names[0] if names else None
    open_ends = [name for name in names if name not in graph.fixed] or [n for n in names if value(n).size != 1]
    return open_ends[0] if len(open_ends) == 1 else None


def _step(graph: Graph, value: Value, index: int, data: str) -> Step | None:
    """What a node does to ``data``, where that is a shift by one whole number or a clip to two; else None."""
    node = graph.nodes[index]
    others = [name for name in node.input if name != data]
    if node.input[0] != data and op_name(node) not in ("Add", "Min", "Max"):
        return None
    if not all(name in graph.fixed for name in others if name):
        return None
    if op_name(node) == "Cast":  # of whole numbers
        return lambda steps: None
    numbers = [_number(value(name)) if name else None for name in others]
    if op_name(node) in ("Add", "Sub") and len(numbers) == 1 and numbers[0] is not None:
        shift = numbers[0] if op_name(node) == "Add" else -numbers[0]
        return (lambda steps: steps.add(shift)) if shift.is_integer() else None
    if op_name(node) in ("Min", "Max") and len(numbers) == 1 and numbers[0] is not None:
        bound = numbers[0]
        return lambda steps: steps.clip(*((-math.inf, bound) if op_name(node) == "Min" else (bound, math.inf)))
    if op_name(node) == "Clip":
        bounds = [-math.inf, math.inf]
        for position, (name, number) in enumerate(zip(others[:2], numbers, strict=False)):
            if name and number is None:
                return None
            bounds[position] = bounds[position] if number is None else number
        return lambda steps: steps.clip(*bounds)
    return None


def _are_levels(steps: _Steps) -> bool:
    """Do the bounds say 2 to 16 bits, all of them or one less, with 0 among them and where it was?"""
    if not (math.isfinite(steps.low) and math.isfinite(steps.high)) or steps.shift:
        return False
    count = steps.high - steps.low + 1
    bits = math.ceil(math.log2(count)) if count > 1 else 0
    whole = steps.low.is_integer() and steps.high.is_integer()
    return whole and steps.low <= 0 < steps.high and 2 <= bits <= MOST_BITS and count in (2**bits, 2**bits - 1)


def _number(array: np.ndarray) -> float | None:
    """The one number that an array holds, however often; None where it holds several."""
    values = array.ravel().astype(np.float64)
    return float(values[0]) if values.size and (values == values[0]).all() else None


def _inverse(array: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / array if array.dtype.kind == "f" else array * np.nan
        return np.asarray(inverse, array.dtype if array.dtype.kind == "f" else None)


def _alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Are two scales the same, but for the rounding of an inverse?"""
    if first.dtype.kind != "f" or second.dtype.kind != "f":
        return False
    try:
        a, b = np.broadcast_arrays(first.astype(np.float64), second.astype(np.float64))
    except ValueError:
        return False
    precision = max(float(np.finfo(array.dtype).eps) for array in (first, second))
    with np.errstate(invalid="ignore"):
        return bool(a.size and ((a == b) | (np.abs(a - b) <= 4 * precision * np.abs(b))).all())


def _multiplies(graph: Graph, index: int) -> bool:
    return op_name(graph.nodes[index]) == "Mul"

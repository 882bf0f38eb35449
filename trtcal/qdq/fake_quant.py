"""Fake quantization spelt out in plain operators, as exporters write it: Div, Round, Clip, Mul.

``Clip(Round(x / s), low, high) * s`` is what a QuantizeLinear and its DequantizeLinear compute. Recognised are Div by
the scale or Mul by its inverse, on either side; Clip, or Min and Max, before or after Round; and a zero point that is
added before or after Round and subtracted again. All parameters must be constant, or computed from constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from trtcal.model.nodes import op_name
from trtcal.model.topology import Graph

MOST_BITS = 16


class FakeQuant(NamedTuple):
    """``output`` is ``source`` rounded to ``low``..``high`` steps of ``scale``, by the nodes with these indices."""

    source: str
    output: str
    scale: np.ndarray
    low: int
    high: int
    nodes: tuple[int, ...]


Value = Callable[[str], np.ndarray]
"""Name of a tensor that depends on no input of the model -> its value."""


def fake_quants(graph: Graph, value: Value) -> Iterator[FakeQuant]:
    """Graph -> every fake quantization in it that is not QuantizeLinear and DequantizeLinear, in its order."""
    for index, node in enumerate(graph.nodes):
        if op_name(node) == "Round" and node.input[0]:
            found = _around(graph, value, index)
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


def _around(graph: Graph, value: Value, index: int) -> FakeQuant | None:
    """The fake quantization whose Round is this node; None where what stands around it is none."""
    after = _down(graph, value, index)
    if after is None:
        return None
    later, factor, used, output = after
    before = _up(graph, value, index, factor)
    if before is None:
        return None
    earlier, divisor, exact, also_used, source = before
    steps = _Steps()
    for step in (*reversed(earlier), *later):
        step(steps)
    if factor.dtype != divisor.dtype or not _alike(factor, divisor) or not _are_levels(steps):
        return None
    scale = divisor if exact and not _multiplies(graph, used[-1]) else factor
    return FakeQuant(source, output, scale, int(steps.low), int(steps.high), (*reversed(also_used), index, *used))


def _down(graph: Graph, value: Value, index: int) -> tuple[list[Step], np.ndarray, list[int], str] | None:
    """From a Round to the Mul or Div behind it: the steps between, the scale, the nodes, the output of the last."""
    steps: list[Step] = []
    used: list[int] = []
    name = graph.nodes[index].output[0]
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
    graph: Graph, value: Value, index: int, scale: np.ndarray
) -> tuple[list[Step], np.ndarray, bool, list[int], str] | None:
    """From a Round back to the Div or Mul before it: steps, scale, whether it is a Div's, nodes, source."""
    steps: list[Step] = []
    used: list[int] = []
    name = graph.nodes[index].input[0]
    while (producer := graph.producer.get(name)) is not None and _only_reader(graph, name) is not None:
        node = graph.nodes[producer]
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
        return np.asarray(1 / array if array.dtype.kind == "f" else array * np.nan)


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

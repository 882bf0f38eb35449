"""How a histogram's limit grows: (limit so far or 0.0, largest |x| of the next batch) -> new limit.

A new rule is one function and one row of :data:`GROWTH`. The command line, sweeps, the report and the documentation
read that table; nobody asks for a rule's name. A rule never shrinks a limit and keeps the ratio of limits a power of
two, or bins could not merge exactly. Once there is a limit, values in turn grow it as far as the largest of them at
once: only the first batch that is not all zeros has to be known as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from trtcal.errors import SettingError
from trtcal.ranges.histogram import FLOAT32_MAX, GrowthRule


class Rule(NamedTuple):
    """A growth rule: its function, its words, and what passes, replays and advice have to know of it.

    ``label``: what it is, in a word or two; ``description``: what the limit becomes, in one line of help, report and
    documentation. ``invariant``: no batch size and no order changes a limit or a count, so that no batch has to be
    known as a whole. ``foresees``: it is asked once, with the largest |x| of all data, which only a replay
    (`emulation`) knows beforehand; none of :data:`GROWTH` does.
    """

    grow: GrowthRule
    label: str
    description: str
    invariant: bool = False
    foresees: bool = False

    @property
    def tensorrt(self) -> bool:
        """Is it TensorRT's own?"""
        return self.grow is double

    @property
    def fine(self) -> bool:
        """Is its grid that of the fine histogram, so that this one serves and no replay has to read bins off it?"""
        return self.grow is power_of_two


def double(limit: float, amax: float) -> float:
    """TensorRT's rule: the first batch that is not all zeros sets the limit, then it doubles until the next fits.

    In float32, as TensorRT: past the largest float32 the limit is inf. Source: NVIDIA's developer guide
    ("increased by a power of two"), and limits recomputed from public calibration caches.
    """
    if limit == 0:
        return float(np.float32(amax))
    while amax > limit:
        limit *= 2
    return limit if limit <= FLOAT32_MAX else math.inf


def power_of_two(limit: float, amax: float) -> float:
    """The smallest power of two strictly greater than all data: no batch, order or split changes it."""
    if amax < limit or amax == 0:
        return limit
    return math.ldexp(1.0, math.frexp(amax)[1])


GROWTH: dict[str, Rule] = {
    "double": Rule(double, "TensorRT as measured", "the limit doubles until the value fits"),
    "power-of-two": Rule(power_of_two, "batch-invariant", "the power of two above the largest value", invariant=True),
}


def growth_rule(name: str, rules: Mapping[str, Rule] = GROWTH) -> Rule:
    """Name -> rule; SettingError, which is a ValueError, lists the names."""
    if name not in rules:
        raise SettingError(f"unknown growth rule {name!r}; choose one of {', '.join(rules)}")
    return rules[name]

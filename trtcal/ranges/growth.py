"""How a histogram's limit grows: (limit so far or 0.0, largest |x| of the next batch) -> new limit.

A new rule is one function and one line in :data:`GROWTH`, which also says whether it is batch-invariant; nobody asks
for a rule's name. A rule never shrinks a limit and keeps the ratio of limits a power of two, or bins could not merge
exactly. Once there is a limit, values in turn grow it as far as the largest of them at once: only the first batch
that is not all zeros has to be known as a whole.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from trtcal.ranges.histogram import FLOAT32_MAX, GrowthRule


class Rule(NamedTuple):
    """A growth rule: its function, and what passes, replays and advice have to know of it.

    ``invariant``: no batch size and no order changes a limit or a count, so that no batch has to be known as a whole.
    ``foresees``: it is asked once, with the largest |x| of all data, which only a replay (`emulation`)
    knows beforehand; none of :data:`GROWTH` does.
    """

    grow: GrowthRule
    invariant: bool = False
    foresees: bool = False


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


GROWTH: dict[str, Rule] = {"double": Rule(double), "power-of-two": Rule(power_of_two, invariant=True)}


def growth_rule(name: str) -> Rule:
    """Name -> rule; ValueError lists the names."""
    if name not in GROWTH:
        raise ValueError(f"unknown growth rule {name!r}; choose one of {', '.join(GROWTH)}")
    return GROWTH[name]

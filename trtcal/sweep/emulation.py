"""TensorRT's calibration histograms replayed from the statistics of one pass, for any batch size and order.

The largest |x| of each sample gives the limit, and every growth of it, exactly. The shape comes from the
fine histogram, whose bins are at least eight to one of TensorRT's: a bin that a border of TensorRT's cuts
is shared out in proportion. What that leaves open is closed by a second pass, :mod:`trtcal.passes.second_pass`.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trtcal.ranges.growth import GROWTH, Rule, double, growth_rule
from trtcal.ranges.histogram import NUM_BINS, Histogram
from trtcal.ranges.stats import TensorStats


def square_max(limit: float, amax: float) -> float:
    """A value that does not fit makes the range its own square; values below 1 leave the rule undefined: nan.

    One reading of the account that TensorRT's range is *squared*, as tutorials retell NVIDIA/TensorRT#774.
    """
    if amax <= limit:
        return limit
    return amax * amax if amax >= 1 else math.nan


def square_range(limit: float, amax: float) -> float:
    """The range squares itself until the value fits; ranges up to 1 never grow so, which leaves it undefined: nan.

    The other reading of the same account.
    """
    if limit == 0:
        return amax
    while amax > limit:
        if limit <= 1:
            return math.nan
        limit *= limit
    return limit


REPLAYED = {
    "square-max": Rule(square_max, "as tutorials tell it", "the range becomes the new maximum squared"),
    "square-range": Rule(square_range, "as tutorials tell it", "the old range is squared until the value fits"),
    "exact": Rule(max, "known beforehand", "the largest value of all data", invariant=True, foresees=True),
}
"""Rules that no pass can count by: bins do not merge where a range is squared, and no pass knows all data's maximum."""

RULES: Mapping[str, Rule] = ChainMap(REPLAYED, GROWTH)
"""How a replayed limit grows: as in a pass, or by one of :data:`REPLAYED`."""


Shape = Callable[[float, np.ndarray], np.ndarray]
"""(limit, rows of samples) -> counts of all their elements in TensorRT's bins over [0, limit), (2048,) int64."""


class Stage(NamedTuple):
    """A limit and the batches [first, last) that were counted on it."""

    limit: float
    first: int
    last: int


class Trajectory(NamedTuple):
    """How a limit came to be: its stages, the maximum of the first batch, and whether the rule was undefined."""

    stages: tuple[Stage, ...]
    first_amax: float
    fell_back: bool

    @property
    def limit(self) -> float:
        """The limit at the end; 0.0 for nothing but zeros."""
        return self.stages[-1].limit if self.stages else 0.0

    @property
    def doublings(self) -> float:
        """log2 of how much it grew: a whole number, but for rules that square."""
        return math.log2(self.limit / self.stages[0].limit) if self.stages else 0.0

    @property
    def last_growth(self) -> int | None:
        """Number of the batch in which it last grew, from 0; None where it never did."""
        return self.stages[-1].first if len(self.stages) > 1 else None


def groups(order: Sequence[int] | np.ndarray, batch_size: int, partial: str = "pad") -> list[np.ndarray]:
    """Order of samples -> rows of each batch, the last one filled up or dropped as ``Batches`` does."""
    rows = np.asarray(order)
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    short = batch_size - len(batches[-1]) if batches else 0
    if short and partial == "drop":
        batches.pop()
    elif short and partial == "wrap":
        batches[-1] = np.concatenate([batches[-1], np.resize(rows, short)])
    elif short and partial == "pad":
        batches[-1] = np.concatenate([batches[-1], np.repeat(rows[-1:], short)])
    return batches


def trajectory(maxima: Sequence[float] | np.ndarray, growth: str = "double") -> Trajectory:
    """Largest |x| of each batch, in order -> the limits they lead to; ValueError for an unknown rule.

    Where the rule is undefined for the data it doubles instead, as TensorRT does, and says so.
    """
    return _trajectories(np.asarray(maxima)[None], growth)[0]


def _trajectories(maxima: np.ndarray, growth: str) -> list[Trajectory]:
    """:func:`trajectory` of many tensors, (tensors, batches); a rule is asked only where a value was never reached."""
    rule = growth_rule(growth, RULES)
    rises = np.ones(maxima.shape, np.bool_)
    rises[:, 1:] = maxima[:, 1:] > np.maximum.accumulate(maxima, axis=1)[:, :-1]
    numbers = np.nonzero(rises)[1].tolist()
    values = maxima[rises].astype(np.float64).tolist()
    ends = np.cumsum(rises.sum(axis=1)).tolist()
    return [
        _trajectory(numbers[start:end], values[start:end], maxima.shape[1], rule)
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _trajectory(numbers: Sequence[int], maxima: Sequence[float], batches: int, rule: Rule) -> Trajectory:
    """Those of so many batches that hold a larger value than all before, and these values -> the limits."""
    first_amax = maxima[0] if maxima else 0.0
    if rule.foresees:
        numbers, maxima = numbers[:1], maxima[-1:]
    stages: list[Stage] = []
    limit, since, fell_back = 0.0, 0, False
    for number, amax in zip(numbers, maxima, strict=True):
        grown = rule.grow(limit, amax)
        if math.isnan(grown):
            grown, fell_back = double(limit, amax), True
        if grown != limit:
            if limit:
                stages.append(Stage(limit, since, number))
            limit, since = grown, number
    if limit:
        stages.append(Stage(limit, since, batches))
    return Trajectory(tuple(stages), first_amax, fell_back)


@dataclass(frozen=True, eq=False)
class Paths:
    """How the limits of all tensors come to be for one batch size and order.

    ``rows``: the sample of each row of all batches. ``amax``: largest |x| in them, (tensors,) float32. By tensor:
    ``trajectories``, and in ``low`` the elements that TensorRT has one bin low, ``(bin where they belong, number)``:
    an element at a limit lies in its last bin, and stays there when a later batch outgrows it.
    """

    rows: np.ndarray
    amax: np.ndarray
    trajectories: list[Trajectory]
    low: list[tuple[tuple[int, int], ...]]


def paths(
    sample_amax: np.ndarray,
    sample_peaks: np.ndarray,
    order: Sequence[int] | np.ndarray,
    batch_size: int,
    growth: str = "double",
    *,
    partial: str = "pad",
) -> Paths:
    """Maxima of samples and how many elements have them, both (tensors, samples) -> what follows from them exactly.

    Raises ValueError for an order that makes no batch, and for an unknown rule.
    """
    batches = groups(order, batch_size, partial)
    if not batches:
        raise ValueError(f"{len(np.asarray(order))} samples make no batch of {batch_size}")
    rows = np.concatenate(batches)
    ordered = sample_amax[:, rows]
    maxima = np.maximum.reduceat(ordered, np.arange(0, rows.size, batch_size), axis=1)
    made = _trajectories(maxima, growth)
    outgrown = [(number, stage) for number, path in enumerate(made) for stage in path.stages[:-1]]
    low: list[tuple[tuple[int, int], ...]] = [()] * len(made)
    if outgrown:
        at = np.array([number for number, _ in outgrown])
        with np.errstate(over="ignore"):  # squares of float32 may be none
            limit = np.array([stage.limit for _, stage in outgrown]).astype(np.float32)
        last = np.array([stage.last for _, stage in outgrown]) * batch_size
        # Nothing before a limit's first batch is as large as the limit, or it would have grown earlier.
        there = (ordered[at] == limit[:, None]) & (np.arange(rows.size) < last[:, None])
        held = np.where(there, sample_peaks[at][:, rows], 0).sum(axis=1).tolist()
        for (number, stage), elements in zip(outgrown, held, strict=True):
            border = stage.limit / made[number].limit * NUM_BINS
            if elements and border >= 1 and border == int(border):
                low[number] = (*low[number], (int(border), elements))
    return Paths(rows, maxima.max(axis=1), made, low)


@dataclass(frozen=True)
class Replay:
    """TensorRT's histogram of one tensor for one batch size and order, and how its limit came to be."""

    histogram: Histogram
    trajectory: Trajectory


def replay(
    tensor: TensorStats,
    order: Sequence[int] | np.ndarray,
    batch_size: int,
    growth: str = "double",
    *,
    partial: str = "pad",
    shape: Shape | None = None,
) -> Replay:
    """Statistics of a tensor, order of samples and batch size -> its histogram on TensorRT's 2048 bins.

    One tensor of what :func:`paths` and :func:`lowered` say of many. ``shape`` gives the counts of these rows' elements
    on a limit; by default they are read off the fine histogram, which knows nothing of rows that ``partial`` repeats or
    leaves out. Raises ValueError for an order that makes no batch.
    """
    made = paths(tensor.sample_amax[None], tensor.sample_peaks[None], order, batch_size, growth, partial=partial)
    path, shape = made.trajectories[0], shape or read_off(tensor.histogram)
    return Replay(Histogram(lowered(tensor, path.limit, made.low[0], made.rows, shape), path.limit, made.amax[0]), path)


def lowered(
    tensor: TensorStats, limit: float, low: Sequence[tuple[int, int]], rows: np.ndarray, shape: Shape
) -> np.ndarray:
    """A tensor's part of :class:`Paths`, and the counts of its elements on a limit -> TensorRT's counts."""
    if not limit:
        return tensor.histogram.coarse(NUM_BINS).counts
    counts = shape(limit, rows).copy()
    for place, held in low:
        held = min(held, int(counts[place]))
        counts[place] -= held
        counts[place - 1] += held
    return counts


def read_off(fine: Histogram) -> Shape:
    """A fine histogram -> what counts its elements in TensorRT's bins over [0, limit), for any limit.

    What lies above the limit goes into the last bin. Bins that a border cuts are shared out in proportion.
    """
    cumulative = np.concatenate([[0], np.cumsum(fine.counts)]).astype(np.float64)
    inside = np.arange(1, NUM_BINS)
    whole = np.zeros(NUM_BINS + 1)
    whole[-1] = cumulative[-1]

    def counts(limit: float, rows: np.ndarray) -> np.ndarray:
        if not fine.limit or math.isinf(limit):
            found = np.zeros(NUM_BINS, np.int64)
            found[0] = fine.total
            return found
        border = np.minimum(inside * (limit / NUM_BINS / fine.bin_width), fine.num_bins)  # in fine bins
        cut = np.minimum(border.astype(np.intp), fine.num_bins - 1)
        before = cumulative.take(cut)
        below = whole.copy()
        below[1:-1] = np.floor((cumulative.take(cut + 1) - before) * (border - cut) + before + 0.5)
        return np.diff(below).astype(np.int64)

    return counts

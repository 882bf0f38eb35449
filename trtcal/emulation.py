"""TensorRT's calibration histograms replayed from the statistics of one pass, for any batch size and order.

The largest |x| of each sample gives the limit, and every growth of it, exactly. The shape comes from the
fine histogram, whose bins are at least eight to one of TensorRT's: a bin that a border of TensorRT's cuts
is shared out in proportion. What that leaves open is closed by a second pass, :mod:`trtcal.exact`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trtcal.growth import double, power_of_two
from trtcal.histogram import NUM_BINS, GrowthRule, Histogram
from trtcal.stats import TensorStats


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


RULES: dict[str, GrowthRule | None] = {
    "double": double,
    "square-max": square_max,
    "square-range": square_range,
    "power-of-two": power_of_two,
    "exact": None,
}
"""How a replayed limit grows. ``exact`` knows the whole data's maximum beforehand and never grows."""


Shape = Callable[[float, np.ndarray], np.ndarray]
"""(limit, rows of samples) -> counts of all their elements in TensorRT's bins over [0, limit), (2048,) int64."""


@dataclass(frozen=True)
class Stage:
    """A limit and the batches [first, last) that were counted on it."""

    limit: float
    first: int
    last: int


@dataclass(frozen=True)
class Trajectory:
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
    if growth not in RULES:
        raise ValueError(f"unknown growth rule {growth!r}; choose one of {', '.join(RULES)}")
    values = [float(value) for value in maxima]
    first_amax = values[0] if values else 0.0
    rule = RULES[growth]
    if rule is None:
        whole = max(values, default=0.0)
        return Trajectory((Stage(whole, 0, len(values)),) if whole else (), first_amax, False)
    stages: list[Stage] = []
    limit, since, fell_back = 0.0, 0, False
    for number, amax in enumerate(values):
        grown = rule(limit, amax)
        if math.isnan(grown):
            grown, fell_back = double(limit, amax), True
        if grown != limit:
            if limit:
                stages.append(Stage(limit, since, number))
            limit, since = grown, number
    if limit:
        stages.append(Stage(limit, since, len(values)))
    return Trajectory(tuple(stages), first_amax, fell_back)


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

    ``shape`` gives the counts of these rows' elements on a limit; by default they are read off the fine
    histogram, which knows nothing of rows that ``partial`` repeats or leaves out. Raises ValueError for an
    order that makes no batch.
    """
    batches, path = limits(tensor, order, batch_size, growth, partial=partial)
    if not path.limit:
        return Replay(Histogram(tensor.histogram.coarse(NUM_BINS).counts, 0.0, np.float32(0)), path)
    if shape is None:
        counts = resampled(tensor.histogram, path.limit).counts.copy()
    else:
        counts = shape(path.limit, np.concatenate(batches)).copy()
    for stage in path.stages[:-1]:
        # Elements at a limit lie in its last bin, and stay there, one bin low, when a later batch outgrows it.
        rows = np.concatenate(batches[stage.first : stage.last])
        held = int(tensor.sample_peaks[rows][tensor.sample_amax[rows] == np.float32(stage.limit)].sum())
        place = stage.limit / path.limit * NUM_BINS
        if held and place >= 1 and place == int(place):
            held = min(held, int(counts[int(place)]))
            counts[int(place)] -= held
            counts[int(place) - 1] += held
    return Replay(Histogram(counts, path.limit, tensor.sample_amax[np.concatenate(batches)].max()), path)


def limits(
    tensor: TensorStats,
    order: Sequence[int] | np.ndarray,
    batch_size: int,
    growth: str = "double",
    *,
    partial: str = "pad",
) -> tuple[list[np.ndarray], Trajectory]:
    """The part of :func:`replay` that is exact by itself: rows of each batch, and the limits they lead to."""
    batches = groups(order, batch_size, partial)
    if not batches:
        raise ValueError(f"{len(np.asarray(order))} samples make no batch of {batch_size}")
    return batches, trajectory([float(tensor.sample_amax[rows].max()) for rows in batches], growth)


def resampled(fine: Histogram, limit: float, num_bins: int = NUM_BINS) -> Histogram:
    """A fine histogram -> counts in ``num_bins`` bins over [0, limit); what lies above goes into the last bin."""
    if not fine.limit or math.isinf(limit):
        counts = np.zeros(num_bins, np.int64)
        counts[0] = fine.total
        return Histogram(counts, limit, fine.amax)
    cumulative = np.concatenate([[0], np.cumsum(fine.counts)])
    borders = np.arange(1, num_bins) * (limit / num_bins / fine.bin_width)
    below = np.interp(borders, np.arange(fine.num_bins + 1), cumulative)
    whole = np.concatenate([[0], np.floor(below + 0.5), [cumulative[-1]]]).astype(np.int64)
    return Histogram(np.diff(whole), limit, fine.amax)

"""Histograms of |x| as values that add exactly.

Bins divide [0, limit) equally. A limit grows by whole powers of two and bins then merge in groups, so
counts are never resampled: ``a + b`` is exact wherever two limits differ by a power of two. Two grids
of the same type serve all of trtcal:

* **fine**: 32768 bins, the limit is the smallest power of two *strictly greater* than the data. Nothing
  but the data decides the counts, so any split, order or number of workers gives the same histogram.
* **TensorRT's**: 2048 bins, the limit is the largest |x| of the first batch, then doubled. An element
  equal to the limit has no bin of its own and is clamped into the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trtcal.ranges.kernels import MANY, kernels

NUM_BINS = 2048  # of TensorRT's calibration histogram
FINE_BINS = 32768  # 16 per bin of TensorRT's where limits agree, at least 8 where they do not
FLOAT32_MAX = float(np.finfo(np.float32).max)
INT64_MAX = np.iinfo(np.int64).max

GrowthRule = Callable[[float, float], float]
"""(limit so far or 0.0, largest |x| of the batch) -> limit that holds both; see ``trtcal.ranges.growth.GROWTH``."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of |x| in equal bins over [0, limit).

    ``counts`` is (num_bins,) int64 and read-only. ``limit`` is 0.0 while nothing but zeros was seen (they
    are in bin 0). ``amax`` is the exact largest |x|. Raises ValueError for a negative count, limit or amax, nan, and
    a number of bins that is no power of two. Adding raises it where limits do not differ by a power of two, the
    numbers of bins differ, or there are more elements than int64 counts.
    """

    counts: np.ndarray
    limit: float
    amax: np.float32

    def __post_init__(self) -> None:
        counts = np.ascontiguousarray(self.counts, np.int64)
        if counts.ndim != 1 or counts.size < 1 or counts.size & (counts.size - 1):
            raise ValueError(f"counts need one axis whose length is a power of two, got shape {counts.shape}")
        if counts.min() < 0:
            raise ValueError(f"counts are of elements, but bin {counts.argmin()} has {counts.min()}")
        for name, value in (("limit", self.limit), ("amax", self.amax)):
            if not value >= 0:  # nor nan
                raise ValueError(f"the {name} is one of |x|, but is {value}")
        counts = counts.copy() if counts is self.counts and counts.flags.writeable else counts
        counts.flags.writeable = False
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "limit", float(self.limit))
        object.__setattr__(self, "amax", np.float32(self.amax))

    @property
    def num_bins(self) -> int:
        """Number of bins."""
        return self.counts.size

    @property
    def bin_width(self) -> float:
        """Width of one bin, in units of x."""
        return self.limit / self.num_bins

    @property
    def total(self) -> int:
        """Number of elements counted."""
        return int(self.counts.sum())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self.limit == other.limit and self.amax == other.amax and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Histogram) -> Histogram:
        if self.num_bins != other.num_bins:
            raise ValueError(f"histograms of {self.num_bins} and {other.num_bins} bins do not add")
        if self.total + other.total > INT64_MAX:  # which NumPy would let wrap around to negative counts
            raise ValueError(f"{self.total} and {other.total} elements are more than int64 counts")
        limit = max(self.limit, other.limit)
        return Histogram(self.grown(limit).counts + other.grown(limit).counts, limit, max(self.amax, other.amax))

    def grown(self, limit: float) -> Histogram:
        """The same elements over [0, limit); ``limit`` is this one's times a power of two >= 1."""
        if limit == self.limit or self.limit == 0:  # bin 0 holds zeros whatever the limit
            return Histogram(self.counts, limit, self.amax)
        return Histogram(_merged(self.counts, growth_factor(self.limit, limit)), limit, self.amax)

    def coarse(self, num_bins: int) -> Histogram:
        """The same elements in fewer bins over the same range; ``num_bins`` divides this one's."""
        if num_bins < 1 or self.num_bins % num_bins:
            raise ValueError(f"{self.num_bins} bins do not merge into {num_bins}")
        return Histogram(self.counts.reshape(num_bins, -1).sum(axis=1), self.limit, self.amax)

    def clipped(self, amax: float) -> float:
        """Share of the elements in bins that lie wholly above ``amax``; 0.0 for an empty histogram."""
        if not self.total:
            return 0.0
        first = min(int(amax / self.bin_width) + 1, self.num_bins) if amax < self.limit else self.num_bins
        return float(self.counts[first:].sum() / self.total)


class HistogramBuilder:
    """Streams arrays into a :class:`Histogram` whose limit grows by a rule.

    TensorRT looks at a whole batch before it grows the limit. To get its counts from a batch that comes
    in pieces, call :meth:`start_batch` at each batch: elements that were clamped at a limit which the same
    batch then outgrows are put where they would have gone, had the batch come in one piece.
    """

    def __init__(self, num_bins: int, growth: GrowthRule) -> None:
        self.growth = growth
        self.counts = np.zeros(num_bins, np.int64)
        self.limit = 0.0
        self.amax = np.float32(0)
        self._clamped = 0

    def start_batch(self) -> None:
        """Forget which elements the batch before had at the limit: for them it was outgrown too late."""
        self._clamped = 0

    def add(self, values: np.ndarray, amax: float) -> int:
        """Count |values| (float32, finite, any shape); ``amax`` is their largest |x|, or their batch's.

        Returns how many of them equal it.
        """
        self.fit(amax)
        flat = np.ascontiguousarray(values).reshape(-1)
        if self.limit == 0:
            self.counts[0] += flat.size
            return flat.size
        if self.limit > FLOAT32_MAX:  # 2**128 or, after an overflow, inf: float32 cannot divide by it
            index = (np.abs(flat).astype(np.float64) / self.limit * self.counts.size).astype(np.int64)
            self.counts += np.bincount(index, minlength=self.counts.size)
            return int((np.abs(flat) == np.float32(amax)).sum())
        limit, edge, hits = np.float32(self.limit), np.float32(amax), 0
        for begin in range(0, flat.size, MANY):
            counts = np.zeros(self.counts.size, np.int32)
            part = flat[begin : begin + MANY]
            hits += kernels().add_counts(part, limit, counts.size, np.float32(0), edge, counts)
            self.counts += counts
        self.clamp(amax, hits)
        return hits

    def fit(self, amax: float) -> None:
        """Grow so that ``amax`` has a place."""
        self._grow(self.growth(self.limit, float(amax)))
        self.amax = max(self.amax, np.float32(amax))

    def clamp(self, amax: float, hits: int) -> None:
        """Remember that so many elements were counted at ``amax``, in case the limit is just that."""
        if amax == self.limit:  # x / limit rounds to 1 for no smaller x
            self._clamped += hits

    def build(self) -> Histogram:
        """The histogram of all that was added so far."""
        return Histogram(self.counts, self.limit, self.amax)

    def restore(self, histogram: Histogram) -> None:
        """Go on from what :meth:`build` gave, at the start of a batch."""
        self.counts, self.limit, self.amax = histogram.counts.copy(), histogram.limit, histogram.amax

    def _grow(self, limit: float) -> None:
        if limit == self.limit:
            return
        if self.limit:
            factor = growth_factor(self.limit, limit)
            self.counts = _merged(self.counts, factor)
            first_above = self.counts.size // factor  # where the old limit lies now
            if self._clamped and first_above:
                self.counts[first_above - 1] -= self._clamped
                self.counts[first_above] += self._clamped
        self._clamped = 0
        self.limit = limit


def abs_max(values: np.ndarray) -> float:
    """Largest |x| of a float32 array of any shape; nan if any is nan, 0.0 if it is empty."""
    bits = kernels().abs_max_bits(np.ascontiguousarray(values).reshape(-1))
    return float(np.uint32(bits).view(np.float32))


def growth_factor(old: float, new: float) -> int:
    """How many bins over [0, old) make one over [0, new); ValueError where that is no whole power of two."""
    if math.isinf(new) and not math.isinf(old):
        return 1 << 1100  # past every float: all elements fall into bin 0
    factor = new / old
    if factor < 1 or math.frexp(factor)[0] != 0.5:
        raise ValueError(f"a histogram over [0, {old!r}) has no exact place in [0, {new!r})")
    return int(factor)


def _merged(counts: np.ndarray, factor: int) -> np.ndarray:
    """Counts after every ``factor`` neighbours became one bin; the bins that fall free are empty."""
    size = counts.size
    merged = np.zeros(size, np.int64)
    groups = counts.reshape(-1, min(factor, size)).sum(axis=1)
    merged[: groups.size] = groups
    return merged

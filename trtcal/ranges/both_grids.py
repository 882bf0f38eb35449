"""Both histograms of a pass at the price of one."""

from __future__ import annotations

import numpy as np

from trtcal.ranges.growth import growth_rule, power_of_two
from trtcal.ranges.histogram import FINE_BINS, FLOAT32_MAX, NUM_BINS, HistogramBuilder
from trtcal.ranges.kernels import MANY, kernels

SMALL = 2.0**-100  # below, the scale of a grid or the width of a bin is no normal float32


class PairBuilder:
    """Streams arrays into a histogram on the fine grid and one on TensorRT's, bit-equal to two builders.

    One store for each element, not two: what is counted is the *sum* of its bins on both grids. Neither bin falls
    where |x| rises, so each sum belongs to one pair of bins. The sums are taken apart where a limit changes, and
    before a histogram is asked for.
    """

    def __init__(self, growth: str) -> None:
        self._fine = HistogramBuilder(FINE_BINS, power_of_two)
        self._batch_grid = HistogramBuilder(NUM_BINS, growth_rule(growth).grow)
        self._sums = np.zeros(FINE_BINS + NUM_BINS - 1, np.int32)
        self._elements = 0  # in the sums
        self._limits: tuple[float, float] | None = None  # of the fine and the other histogram, behind the sums
        self._first: np.ndarray | None = None  # the least sum of each of TensorRT's bins

    @property
    def fine(self) -> HistogramBuilder:
        """The histogram on the fine grid, complete for now."""
        self._take_apart()
        return self._fine

    @property
    def batch_grid(self) -> HistogramBuilder:
        """TensorRT's histogram, complete for now."""
        self._take_apart()
        return self._batch_grid

    @property
    def limit(self) -> float:
        """TensorRT's limit, 0.0 while nothing but zeros was seen."""
        return self._batch_grid.limit

    def start_batch(self) -> None:
        """What :meth:`trtcal.ranges.histogram.HistogramBuilder.start_batch` is for."""
        self._batch_grid.start_batch()

    def fit(self, amax: float) -> None:
        """Grow TensorRT's limit so that ``amax``, of elements to come, has a place."""
        self.batch_grid.fit(amax)

    def add(self, values: np.ndarray, amax: float) -> int:
        """Count |values| (float32, finite, any shape) in both; ``amax`` is their largest |x|.

        Returns how many of them equal it.
        """
        limits = self._fine.growth(self._fine.limit, amax), self._batch_grid.growth(self._batch_grid.limit, amax)
        if limits != self._limits or self._elements + values.size > MANY:
            self._take_apart()
            self._limits, self._first = limits, None
        if values.size > MANY or not all(SMALL <= limit <= FLOAT32_MAX for limit in limits):
            self._batch_grid.add(values, amax)
            return self._fine.add(values, amax)
        self._fine.fit(amax)
        self._batch_grid.fit(amax)
        flat, limit, scale = np.ascontiguousarray(values).reshape(-1), np.float32(limits[1]), _scale(limits[0])
        hits = kernels().add_counts(flat, limit, NUM_BINS, scale, np.float32(amax), self._sums)
        self._batch_grid.clamp(amax, hits)
        self._elements += flat.size
        return hits

    def _take_apart(self) -> None:
        """Move what is counted by sums into both histograms."""
        if not self._elements:
            return
        assert self._limits is not None
        if self._first is None:
            self._first = _first_sums(*self._limits)
        self._batch_grid.counts += np.add.reduceat(self._sums, self._first)
        own = np.ones(self._sums.size, np.bool_)
        own[self._first[1:]] = False
        self._fine.counts += self._sums[own]
        # A border of TensorRT's cuts a fine bin in two and gives it another sum. No two borders cut the same one, for
        # fine bins are at most an eighth as wide; those past the largest |x| have nothing to add.
        bins = np.flatnonzero(self._sums[self._first[1:]]) + 1
        cut = self._first[bins]
        self._fine.counts[cut - bins] += self._sums[cut]
        self._sums[:] = 0
        self._elements = 0


def _first_sums(fine_limit: float, limit: float) -> np.ndarray:
    """The limits of both grids -> the least sum of each of TensorRT's bins, (NUM_BINS,), rising."""
    bins = np.arange(1, NUM_BINS)
    edge = np.asarray(bins * (limit / NUM_BINS), np.float32)
    # Two roundings stand between an element and its bin: the first float32 of a bin is within 2 of the edge.
    near = (edge.view(np.int32)[:, None] + np.arange(-2, 3, dtype=np.int32)).view(np.float32)
    inside = near / np.float32(limit) * np.float32(NUM_BINS) >= bins[:, None]
    first = near[np.arange(bins.size), inside.argmax(axis=1)]
    with np.errstate(over="ignore"):  # a fine grid of small values beside a limit near the largest float32
        fine = np.minimum(first * _scale(fine_limit), np.float32(FINE_BINS - 1)).astype(np.int64)
    return np.concatenate([[0], fine + bins])


def _scale(fine_limit: float) -> np.float32:
    """What turns |x| into fine bins, exactly, since it is a power of two."""
    return np.float32(FINE_BINS / fine_limit)

"""What is said of a tensor's histograms: the thresholds they give, how far they are from the batch-invariant one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from trtcal.ranges.histogram import Histogram
from trtcal.ranges.thresholds import entropy_amax, entropy_bins
from trtcal.ranges.thresholds import method as threshold_method

COMPARED_BINS = 8192  # grid on which histograms are compared
MEASURED = "entropy"  # the method whose thresholds `measured` gives, whatever else is asked for

T = TypeVar("T")
R = TypeVar("R")


class Measured(NamedTuple):
    """What is said of some histograms, (histograms,) each; the fields are those of `Measures`."""

    empty: np.ndarray
    m: np.ndarray
    amax: np.ndarray
    clipped: np.ndarray
    js: np.ndarray
    emd: np.ndarray


def measured(fine: Histogram, counts: np.ndarray, limit: np.ndarray, amax: np.ndarray) -> Measured:
    """A tensor's batch-invariant histogram and some of TensorRT's -> what is said of these.

    ``counts`` is (histograms, 2048), ``limit`` (histograms,), ``amax`` their largest |x|, (histograms,) float32.
    """
    num_bins = counts.shape[1]
    m = np.array([-1 if kept is None else kept for kept in entropy_bins(counts)])
    m[limit == 0] = -1
    threshold = np.where(m < 0, amax, entropy_amax(m, limit, num_bins))
    threshold[np.isinf(limit)] = np.inf  # as entropy() has it
    below = np.zeros((len(counts), num_bins + 1), np.int64)
    np.cumsum(counts, axis=1, out=below[:, 1:])
    with np.errstate(invalid="ignore", divide="ignore"):  # limits of 0 and inf
        kept = np.minimum(threshold / (limit / num_bins), num_bins - 1).astype(np.intp) + 1  # cut bins included
    kept[threshold >= limit] = num_bins
    above = below[:, -1] - below[np.arange(len(below)), kept]
    reference = Reference(fine)
    apart = np.array([reference.distances(*row) for row in zip(below, limit.tolist(), strict=True)]).reshape(-1, 2)
    return Measured(
        1 - np.count_nonzero(counts, axis=1) / num_bins,
        m,
        threshold,
        above / np.maximum(below[:, -1], 1),
        apart[:, 0],
        apart[:, 1],
    )


def thresholds(histograms: Sequence[Histogram], methods: Iterable[str], workers: int = 1) -> dict[str, np.ndarray]:
    """Histograms and methods -> the thresholds by each method, (histograms,) float32."""
    rules = {name: threshold_method(name) for name in methods}
    rows = in_threads(lambda hist: [rule(hist) for rule in rules.values()], histograms, workers)
    return dict(zip(rules, np.array(rows, np.float32).reshape(len(histograms), len(rules)).T, strict=True))


def in_threads(work: Callable[[T], R], items: Sequence[T], workers: int) -> list[R]:
    """What ``work`` makes of each item, in order; so many at once, for work that leaves Python's lock alone."""
    if workers <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(workers, thread_name_prefix="trtcal-measure") as pool:
        return list(pool.map(work, items))


class Reference:
    """The batch-invariant histogram of a tensor, ready to be compared with many of TensorRT's."""

    def __init__(self, fine: Histogram) -> None:
        self._usable = bool(fine.limit and fine.total)
        if not self._usable:
            return
        fine = fine.coarse(COMPARED_BINS)
        self._density = fine.counts / fine.total
        self._occupied = np.flatnonzero(self._density)
        self._occupying = self._density[self._occupied]
        self._end = int(self._occupied[-1]) + 1
        self._cumulative = np.cumsum(self._density)
        self._borders = np.arange(COMPARED_BINS + 1) * fine.bin_width
        self._bin_width, self._amax = fine.bin_width, float(fine.amax)

    def distances(self, below: np.ndarray, limit: float) -> tuple[float, float]:
        """How many elements lie below each border of TensorRT's bins -> Jensen-Shannon and earth mover's distance.

        ``below`` is (num_bins + 1,), of the same elements as the reference. Both histograms are taken as densities,
        constant within a bin, on 8192 bins over the batch-invariant range. The first distance is the square root of
        the divergence to base 2, 0..1 (Endres and Schindelin, 2003); the second is the area between the cumulative
        distributions, in units of the largest |x|.
        """
        total, num_bins = below[-1], below.size - 1
        if not self._usable or not limit or not total or np.isinf(limit):
            return 0.0, 0.0
        borders = np.arange(num_bins + 1) * (limit / num_bins)
        # Past the last element of either both are zero.
        end = max(self._end, math.ceil(borders[np.searchsorted(below, total)] / self._bin_width))
        spread = np.interp(self._borders[: end + 1], borders, below / total)
        q = np.diff(spread)
        middle = (self._density[:end] + q) / 2
        some = q > 0
        divergence = (_relative(self._occupying, middle[self._occupied]) + _relative(q[some], middle[some])) / 2
        apart = np.abs(self._cumulative[:end] - spread[1:]).sum() * self._bin_width / self._amax
        return float(np.sqrt(max(divergence, 0.0))), float(apart)


def _relative(density: np.ndarray, other: np.ndarray) -> float:
    """Kullback-Leibler divergence of two positive densities, to base 2."""
    return float((density * np.log2(density / other)).sum())

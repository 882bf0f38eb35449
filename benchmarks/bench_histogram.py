"""Elements counted per second by trtcal's loops and by other packages' histograms, on one core.

    python -m pip install boost-histogram fast-histogram torch   # what is missing is left out
    python benchmarks/bench_histogram.py

All count |x| in 2048 equal bins over [0, max|x|], 2**20 float32 at a time; the others are given |x|, which
trtcal finds by itself. trtcal's finer, batch-invariant histogram of 32768 bins has a row of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
from page import parser, publish, table

from trtcal.ranges.histogram import FINE_BINS, NUM_BINS
from trtcal.ranges.kernels import kernels, numpy_add_counts

Count = Callable[[np.ndarray, float], object]
"""(|x| or x, limit) -> counts."""


def shapes(size: int) -> dict[str, np.ndarray]:
    """What activations look like."""
    normal = np.random.default_rng(0).normal(size=size).astype(np.float32)
    return {
        "normal": normal,
        "after ReLU, half zeros": np.maximum(normal, 0),
        "after ReLU, 84% zeros": np.maximum(normal - 1, 0),
        "constant": np.full(size, 0.7, np.float32),
    }


def pair(bins: int) -> Count:
    """What a pass does: both histograms, by the sum of their bins."""

    def count(x: np.ndarray, limit: float) -> object:
        sums = np.zeros(FINE_BINS + bins - 1, np.int32)
        scale = FINE_BINS / 2.0 ** math.frexp(limit)[1]
        kernels().add_counts(x, np.float32(limit), bins, np.float32(scale), np.float32(limit), sums)
        return sums

    return count


def counters(bins: int) -> Iterator[tuple[str, Count | str]]:
    """Name -> a way to count, or why it is missing."""

    def ours(add: Callable[..., int], bins: int) -> Count:
        def count(x: np.ndarray, limit: float) -> object:
            counts = np.zeros(bins, np.int32)
            add(x, np.float32(limit), bins, np.float32(0), np.float32(limit), counts)
            return counts

        return count

    yield "trtcal, largest \\|x\\| alone", lambda x, limit: kernels().abs_max_bits(x)
    yield "**trtcal**", ours(kernels().add_counts, bins)
    yield f"**trtcal**, {FINE_BINS} bins", ours(kernels().add_counts, FINE_BINS)
    yield f"**trtcal**, {bins} and {FINE_BINS} bins at once", pair(bins)
    yield "trtcal without numba", ours(numpy_add_counts, bins)
    yield "numpy.histogram", lambda x, limit: np.histogram(x, bins, (0, limit))[0]
    try:
        import fast_histogram
    except ImportError as error:
        yield "fast-histogram", str(error)
    else:
        yield "fast-histogram", lambda x, limit: fast_histogram.histogram1d(x, bins, (0, limit))
    try:
        import boost_histogram
    except ImportError as error:
        yield "boost-histogram", str(error)
    else:
        axis = boost_histogram.axis.Regular

        def boost(x: np.ndarray, limit: float) -> object:
            found = boost_histogram.Histogram(axis(bins, 0, limit), storage=boost_histogram.storage.Int64())
            return found.fill(x)

        yield "boost-histogram", boost
    try:
        import torch
    except ImportError as error:
        yield "torch.histc", str(error)
    else:
        torch.set_num_threads(1)
        yield "torch.histc", lambda x, limit: torch.histc(torch.from_numpy(x), bins, 0, limit)


def speed(count: Count, x: np.ndarray, repeat: int) -> float:
    """Elements per second, the best of several runs: what else the machine does can only slow it down."""
    limit = float(np.abs(x).max())
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        count(x, limit)
        best = min(best, time.perf_counter() - start)
    return x.size / best


def main() -> None:
    options = parser(__doc__).parse_args()
    data = shapes(1 << 14 if options.quick else 1 << 20)
    rows, missing = [], []
    for name, count in counters(NUM_BINS):
        if isinstance(count, str):
            missing.append(f"{name} is left out: {count}\n")
            continue
        alone = name.startswith(("trtcal", "**trtcal"))
        values = (x if alone else np.abs(x) for x in data.values())
        rows.append([name, *(f"{speed(count, x, 2 if options.quick else 15) / 1e9:.2f}" for x in values)])
    lines = ["Thousands of millions of elements per second, on one core; the best of 15.\n"]
    lines += [*table(["", *data], rows), *missing]
    publish(__file__, lines, options, ["trtcal", "numpy", "numba", "fast-histogram", "boost-histogram", "torch"])


if __name__ == "__main__":
    main()

"""Threshold methods: histogram of |x| -> amax, the |x| that maps to 127.

A new method is one function and one line in :data:`METHODS`; the command line, the documentation and the
contract tests read that dict.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from trtcal.ranges.histogram import NUM_BINS, Histogram
from trtcal.ranges.kernels import kernels, x_log_x

NUM_LEVELS = 128  # magnitudes that int8 tells apart: 0..127
FIRST_KEPT = 128  # bins that TensorRT's entropy keeps at least
DEFAULT_PERCENTILE = 99.99
TIE = 1e-12  # divergences that differ by less are equal, and the smaller threshold wins

ThresholdMethod = Callable[[Histogram], np.float32]


def minmax(hist: Histogram) -> np.float32:
    """Largest |x| seen: nothing is clipped. What TensorRT's MinMax calibrator does."""
    return hist.amax


def percentile(hist: Histogram, q: float = DEFAULT_PERCENTILE) -> np.float32:
    """Upper edge of the bin that holds the q-th percentile of |x|, at most the largest |x|; q in (0, 100].

    ``q`` outside that raises ValueError.
    """
    if not 0 < q <= 100:
        raise ValueError(f"percentile needs 0 < q <= 100, got {q}")
    cumulative = np.cumsum(hist.counts)
    rank = math.ceil(Fraction(str(q)) * int(cumulative[-1]) / 100)  # exactly: 99.9% of 1000 are 999 and no more
    held = int(np.searchsorted(cumulative, rank))
    return np.float32(min((held + 1) * hist.bin_width, float(hist.amax)))


def entropy(hist: Histogram) -> np.float32:
    """Threshold of least Kullback-Leibler divergence, bit for bit as TensorRT's entropy calibrators set it.

    Wants TensorRT's 2048 bins; a finer histogram is merged to them. The amax is the *middle* of the bin
    after the chosen one, ``(m + 0.5) * limit / 2048`` in float32, so data that is not clipped at all gets a
    little more than its largest |x|. ValueError for fewer than the 128 bins that it keeps at least.
    Source: "8-bit inference with TensorRT" (S. Migacz, GTC 2017) for the idea; start, levels and rounding as
    seen in caches of TensorRT 7 to 10.
    """
    if hist.num_bins < FIRST_KEPT:
        raise ValueError(f"entropy keeps at least {FIRST_KEPT} bins, but the histogram has {hist.num_bins}")
    hist = hist.coarse(min(NUM_BINS, hist.num_bins))
    if math.isinf(hist.limit):
        return np.float32(np.inf)
    m = entropy_bin(hist.counts)
    if m is None:
        return hist.amax
    return np.float32(entropy_amax(m, hist.limit, hist.num_bins))


def entropy_amax(m: int | np.ndarray, limit: float | np.ndarray, num_bins: int) -> np.ndarray:
    """Bins kept of so many over [0, limit) -> amax, float32; inf where the middle of a bin is past the largest one."""
    f32 = np.float32
    with np.errstate(over="ignore"):
        return (np.asarray(m, f32) + f32(0.5)) * np.asarray(limit / num_bins).astype(f32)


def mse(hist: Histogram) -> np.float32:
    """Threshold of least mean squared error after rounding |x| to 127 equal steps and clipping above.

    The error is that of bin centres on at most 2048 bins; candidates are the upper edges from bin 64 on.
    """
    hist = hist.coarse(min(NUM_BINS, hist.num_bins))
    centre = np.arange(hist.num_bins) + 0.5  # in bins, so that limits of any size keep their precision
    candidates, begin = _mse_grid(hist.num_bins)
    cumulative, moment, square = map(_prefix, (hist.counts, hist.counts * centre, hist.counts * centre**2))
    # The error of |x| on level v is x**2 - 2vx + v**2. The first is the same for all candidates; the others grow by
    # 2 step x and (2j - 1) step**2 from level j - 1 to j, for all elements that are on level j or above. With 127 times
    # the step all of it is whole numbers, so that candidates that are equally good, as for a constant, are equal.
    above = cumulative[-1] - cumulative, moment[-1] - moment, square[-1] - square

    def error(rows: slice) -> np.ndarray:
        counted = above[0].take(begin[rows]) @ (2 * np.arange(NUM_LEVELS - 1) + 1.0)
        summed = above[1].take(begin[rows]) @ np.ones(NUM_LEVELS - 1)  # faster than its sum
        return np.asarray(candidates[rows] * (candidates[rows] * counted - 2 * (NUM_LEVELS - 1) * summed))

    # What clipping alone costs falls as candidates rise: below the first that may be as good as some, none is.
    clipping = above[2][candidates] - 2 * candidates * above[1][candidates] + candidates**2 * above[0][candidates]
    bound = above[2][0] * (1 + 1e-9) + error(slice(None, None, 32)).min() / (NUM_LEVELS - 1) ** 2
    first = int(np.argmax(clipping <= bound))
    best = first + int(np.argmin(error(slice(first, None))))
    return np.float32(min(candidates[best] * hist.bin_width, float(hist.amax)))


@functools.cache
def _mse_grid(num_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidate thresholds in bins (M,), the bins at which int8 levels 1 to 127 begin (M, 127)."""
    candidates = np.arange(min(64, num_bins), num_bins + 1)
    step = candidates / (NUM_LEVELS - 1)
    middle = np.arange(1, NUM_LEVELS) - 0.5
    begin = np.clip(np.ceil(middle * step[:, None] - 0.5), 0, num_bins).astype(np.intp)
    return candidates, begin


METHODS: dict[str, Callable[..., np.float32]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def method(spec: str) -> ThresholdMethod:
    """``"entropy"``, ``"percentile"`` or ``"percentile:99.9"`` -> the method; else ValueError."""
    name, _, q = canonical(spec).partition(":")
    return functools.partial(percentile, q=float(q)) if q else METHODS[name]


def canonical(spec: str) -> str:
    """A method as it may be written -> the one way to write it, ``percentile:99.99`` for ``percentile``.

    ValueError names the choices; a percentile of at most 1 is taken for a share that was meant in percent, and refused.
    """
    name, colon, q = spec.partition(":")
    if name not in METHODS or (colon and name != "percentile"):
        raise ValueError(f"unknown method {spec!r}; choose one of {', '.join(METHODS)}, or percentile:Q")
    if name != "percentile":
        return name
    try:
        number = float(q) if colon else DEFAULT_PERCENTILE
    except ValueError:
        raise ValueError(f"percentile needs a number after the colon, got {q!r}") from None
    if not 0 < number <= 100:
        raise ValueError(f"percentile needs 0 < q <= 100, got {q}")
    if number <= 1:
        raise ValueError(
            f"percentile:{q} counts in percent and would clip {100 - number:g}% of all values; "
            f"did you mean percentile:{100 * number:.15g}?"
        )
    return f"percentile:{number:.15g}"


def entropy_bin(counts: np.ndarray) -> int | None:
    """:func:`entropy_bins` for one histogram, (num_bins,)."""
    return entropy_bins(np.asarray(counts)[None])[0]


def entropy_bins(counts: np.ndarray) -> list[int | None]:
    """Counts (histograms, num_bins) -> number m of bins kept, 128 <= m <= num_bins, of least divergence KL(P||Q).

    None for no counts.

    For each m, P is ``counts[:m]`` with everything above added to its last bin. Q spreads each of 128 equal
    levels of ``counts[:m]``, *without* what lies above, evenly over the level's non-empty bins. Bin 0 counts
    as much as bin 1.
    """
    h = np.array(counts, np.float64)
    h[:, 0] = h[:, 1]
    divergences, found = kernels().divergences, []
    for row in zip(h, _prefix(h), _prefix(h > 0), _prefix(x_log_x(h)), strict=True):
        empty = row[1][-1] == 0
        found.append(None if empty else FIRST_KEPT + first_minimum(divergences(*row, FIRST_KEPT, NUM_LEVELS)))
    return found


def first_minimum(values: np.ndarray) -> int:
    """Index of the least value, where one within 1e-12 of the best before it does not displace it."""
    finite = np.flatnonzero(np.isfinite(values))
    found = values[finite]
    falling = found <= np.minimum.accumulate(found)
    best, least = 0, math.inf
    for index, value in zip(finite[falling].tolist(), found[falling].tolist(), strict=True):
        if value < least - TIE:
            best, least = index, value
    return best


def _prefix(values: np.ndarray) -> np.ndarray:
    """(..., n) -> sums of the first 0, 1, ..., n values, (..., n + 1)."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, axis=-1, dtype=np.float64, out=sums[..., 1:])
    return sums

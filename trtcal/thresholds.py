"""Threshold methods: histogram of |x| -> amax, the |x| that maps to 127.

A new method is one function and one line in :data:`METHODS`; the command line, the documentation and the
contract tests read that dict.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from trtcal.histogram import NUM_BINS, Histogram
from trtcal.kernels import kernels, x_log_x

NUM_LEVELS = 128  # magnitudes that int8 tells apart: 0..127
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
    held = np.searchsorted(cumulative, q / 100 * cumulative[-1])
    return min(np.float32((int(held) + 1) * hist.bin_width), hist.amax)


def entropy(hist: Histogram, m: int | None = None) -> np.float32:
    """Threshold of least Kullback-Leibler divergence, bit for bit as TensorRT's entropy calibrators set it.

    Wants TensorRT's 2048 bins; a finer histogram is merged to them. The amax is the *middle* of the bin
    after the chosen one, ``(m + 0.5) * limit / 2048`` in float32, so data that is not clipped at all gets a
    little more than its largest |x|. ``m``, the number of bins kept, may be given where it is known.
    Source: "8-bit inference with TensorRT" (S. Migacz, GTC 2017) for the idea; start, levels and rounding as
    seen in caches of TensorRT 7 to 10.
    """
    hist = hist.coarse(NUM_BINS) if hist.num_bins > NUM_BINS else hist
    if math.isinf(hist.limit):
        return np.float32(np.inf)
    m = entropy_bin(hist.counts) if m is None else m
    if m is None:
        return hist.amax
    f32 = np.float32
    with np.errstate(over="ignore"):  # half a bin above the largest float32 is inf, which the caller reports
        return f32((f32(m) + f32(0.5)) * f32(f32(hist.limit) / f32(hist.num_bins)))


def mse(hist: Histogram) -> np.float32:
    """Threshold of least mean squared error after rounding |x| to 127 equal steps and clipping above.

    The error is that of bin centres on at most 2048 bins; candidates are the upper edges from bin 64 on.
    """
    hist = hist.coarse(NUM_BINS) if hist.num_bins > NUM_BINS else hist
    if hist.limit == 0 or not hist.total:
        return hist.amax
    centre = np.arange(hist.num_bins) + 0.5  # in bins, so that limits of any size keep their precision
    candidates, edges, value = _mse_grid(hist.num_bins)
    count, total, square = (np.diff(_prefix(hist.counts * centre**power)[edges], axis=1) for power in range(3))
    error = (square - 2 * value * total + value**2 * count).sum(axis=1)
    return min(np.float32(candidates[int(np.argmin(error))] * hist.bin_width), hist.amax)


@functools.cache
def _mse_grid(num_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidate thresholds (M,), the bins at which each int8 level begins and ends (M, 129), its value (M, 128)."""
    candidates = np.arange(min(64, num_bins), num_bins + 1)
    step = candidates[:, None] / (NUM_LEVELS - 1)  # bins per int8 step
    level = np.arange(NUM_LEVELS)
    first = np.clip(np.ceil((level - 0.5) * step - 0.5), 0, num_bins).astype(np.int64)
    return candidates, np.concatenate([first, np.full((len(candidates), 1), num_bins)], axis=1), level * step


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

    ValueError names the choices.
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
    return f"percentile:{number:.15g}"


def entropy_bin(counts: np.ndarray, start: int = NUM_LEVELS) -> int | None:
    """Number m of bins kept, start <= m <= num_bins, of least divergence KL(P||Q); None for no counts.

    For each m, P is ``counts[:m]`` with everything above added to its last bin. Q spreads each of 128 equal
    levels of ``counts[:m]``, *without* what lies above, evenly over the level's non-empty bins. Bin 0 counts
    as much as bin 1.
    """
    h = np.asarray(counts, np.float64).copy()
    h[0] = h[1]
    cumulative = _prefix(h)
    if cumulative[-1] == 0:
        return None
    divergences = kernels().divergences(h, cumulative, _prefix(h > 0), _prefix(x_log_x(h)), start, NUM_LEVELS)
    return start + first_minimum(divergences)


def first_minimum(values: np.ndarray) -> int:
    """Index of the least value, where one within 1e-12 of the best before it does not displace it."""
    best = 0
    for index in np.flatnonzero((values <= np.minimum.accumulate(values)) & np.isfinite(values)):
        if values[index] < values[best] - TIE:
            best = int(index)
    return best


def _prefix(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ..., n values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])

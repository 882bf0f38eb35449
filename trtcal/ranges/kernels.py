"""The inner loops over activations and over thresholds, compiled by numba where it is installed.

Each has a NumPy twin with the same result; :func:`kernels` picks once per process. Bins are found in float32,
operation by operation, because TensorRT's bin indices depend on its rounding.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

MAGNITUDE = np.uint32(0x7FFFFFFF)  # all bits of a float32 but its sign
BLOCK = 512  # elements whose bins are found before they are counted; their indices stay in the first cache
SPREAD = np.int32(16)  # a power of two
MANY = 1 << 30  # elements that an int32 counts for sure, in a call or over calls


class Kernels(NamedTuple):
    """The loops; what each does is said at its NumPy twin."""

    abs_max_bits: Callable[[np.ndarray], np.uint32]
    add_counts: Callable[[np.ndarray, np.float32, int, np.float32, np.float32, np.ndarray], int]
    divergences: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, int], np.ndarray]


def numpy_abs_max_bits(x: np.ndarray) -> np.uint32:
    """Flat float32 -> the bits of its largest magnitude; any nan wins, since its bits exceed those of inf."""
    return np.uint32((x.view(np.uint32) & MAGNITUDE).max(initial=0))


def numpy_add_counts(
    x: np.ndarray, limit: np.float32, num_bins: int, scale: np.float32, edge: np.float32, counts: np.ndarray
) -> int:
    """Count finite |x| <= limit by the sum of two bins; returns how many |x| >= edge.

    The first bin is one of ``num_bins`` equal ones over [0, limit), the last of them closed. The second is
    ``|x| * scale`` rounded down, at most what makes the sum an index of ``counts``: none if they have ``num_bins``.
    ``counts`` are int32, so MANY elements are enough for them.
    """
    hits = 0
    for begin in range(0, x.size, 1 << 20):  # the indices of many elements take several times their memory
        magnitude = np.abs(x[begin : begin + (1 << 20)])
        index = np.minimum((magnitude / limit * np.float32(num_bins)).astype(np.int64), num_bins - 1)
        if counts.size > num_bins:
            index += np.minimum((magnitude * scale).astype(np.int64), counts.size - num_bins)
        counts += np.bincount(index, minlength=counts.size).astype(np.int32)
        hits += int((magnitude >= edge).sum())
    return hits


def numpy_divergences(
    h: np.ndarray, cumulative: np.ndarray, occupied: np.ndarray, h_log_h: np.ndarray, start: int, levels: int
) -> np.ndarray:
    """Counts (n,) and prefix sums (n + 1,) of h, h > 0 and h log h -> KL(P||Q) for m = start..n bins kept.

    What P and Q are is said in `entropy_bins`; ``levels`` is a power of two. A value that is
    more than 1e-9 above the least may be any larger one; inf where Q is 0 and P is not, and where m is no candidate.
    """
    m = np.arange(start, h.size + 1)
    total = cumulative[-1]
    # Where the last bin is empty but outliers pile up on it, Q is 0 and P is not; with no other bin than the last, the
    # outliers would cost nothing. The last condition asks for any mass at all to make Q of.
    whole = cumulative[m] == total
    finite = (whole | ((h[m - 1] > 0) & (occupied[m] > 1))) & (cumulative[m] > 0)
    out = np.full(m.size, np.inf)
    m = m[finite]
    outliers = total - cumulative[m]
    # Bin b is on level floor(b * levels / m), so level j begins at bin ceil(j * m / levels): exact in integers.
    edge = -(-np.arange(levels + 1) * m[:, None] // levels)
    level_sum = np.diff(cumulative[edge], axis=1)
    mean = level_sum / np.maximum(np.diff(occupied[edge], axis=1), 1)
    log_mean = np.log(mean, out=np.zeros_like(mean), where=mean > 0)
    last = h[m - 1]
    p_log_p = h_log_h[m] - x_log_x(last) + x_log_x(last + outliers)
    p_log_q = (level_sum * log_mean).sum(axis=1) + outliers * log_mean[:, -1]
    out[finite] = (p_log_p - p_log_q) / total + np.log(cumulative[m] / total)
    return out


def x_log_x(x: np.ndarray) -> np.ndarray:
    """x -> x log x, 0 at 0."""
    return np.asarray(x * np.log(np.where(x > 0, x, 1.0)))


@functools.cache
def kernels() -> Kernels:
    """The compiled loops, or their NumPy twins (said once in the log) where numba cannot be used."""
    try:
        import numba
    except ImportError as error:
        logger.warning("numba is not usable (%s): counting with NumPy, same results, several times slower", error)
        return Kernels(numpy_abs_max_bits, numpy_add_counts, numpy_divergences)

    def abs_max_bits(x: np.ndarray) -> np.uint32:
        bits = x.view(np.uint32)
        largest = np.uint32(0)
        for i in range(bits.size):
            largest = max(largest, bits[i] & MAGNITUDE)
        return largest

    def add_counts(
        x: np.ndarray, limit: np.float32, num_bins: int, scale: np.float32, edge: np.float32, counts: np.ndarray
    ) -> int:
        size, bins = np.int32(counts.size), np.float32(num_bins)
        last = np.int32(num_bins - 1), np.int32(counts.size - num_bins)
        index = np.empty(BLOCK, np.int32)
        # One bin hit over and over, as zeros after a ReLU do, waits for itself each time: they take turns in SPREAD
        # places behind the last bin. What that costs per bin pays where there are a quarter as many elements.
        spread = x.size > counts.size // 4
        first, turns = (size, SPREAD - np.int32(1)) if spread else (np.int32(0), np.int32(0))
        part = np.zeros(counts.size + SPREAD, np.int32) if spread else counts
        hits = 0
        for begin in range(0, x.size, BLOCK):
            block = x[begin : begin + BLOCK]
            at_edge = np.int32(0)
            for i in range(block.size):  # free of stores to computed places, so it becomes vector instructions
                magnitude = np.abs(block[i])
                bin_ = min(np.int32(magnitude / limit * bins), last[0]) + min(np.int32(magnitude * scale), last[1])
                index[i] = bin_ if bin_ else first + (np.int32(i) & turns)
                at_edge += np.int32(magnitude >= edge)
            hits += int(at_edge)
            for i in range(block.size):
                part[np.uint32(index[i])] += np.int32(1)  # unsigned, or numba looks for indices from the end
        if spread:
            for i in range(counts.size):
                counts[i] += part[i]
            for i in range(counts.size, part.size):
                counts[0] += part[i]
        return hits

    def divergences(
        h: np.ndarray, cumulative: np.ndarray, occupied: np.ndarray, h_log_h: np.ndarray, start: int, levels: int
    ) -> np.ndarray:
        total = cumulative[h.size]
        out = np.full(h.size - start + 1, np.inf)
        best = np.inf
        shift = 0  # for a division: levels is a power of two
        while 1 << shift < levels:
            shift += 1
        # What bins [begin, end) cost as one level, by end - begin and begin: candidates have many levels in common.
        known = np.full((h.size // levels + 2) * h.size, -1.0)
        # Every 32nd first: a good one among them ends most of the others early.
        for m in np.concatenate((np.arange(h.size, start - 1, -32), np.arange(h.size, start - 1, -1))):
            kept, last = cumulative[m], h[m - 1]
            outliers = total - kept
            hopeless = outliers > 0 and (last == 0 or occupied[m] == 1)
            if kept == 0 or hopeless or out[m - start] < np.inf:
                continue
            # What clipping costs comes first. Each level then adds how far its bins are from their mean, which
            # is never negative, so a sum above the best so far ends the search at this m.
            edge = ((levels - 1) * m + levels - 1) // levels
            held = kept - cumulative[edge]
            log_mean = math.log(held / (occupied[m] - occupied[edge])) if held > 0 else 0.0
            piled = last + outliers
            cost = h_log_h[m] - h_log_h[edge] - (held + outliers) * log_mean + total * math.log(kept / total)
            if outliers > 0:
                cost += piled * math.log(piled) - last * math.log(last)
            bound = (best + 1e-9) * total
            begin, at = np.uint32(0), np.uint32(levels - 1)  # unsigned, or numba looks for indices from the end
            for _ in range(1, levels):
                if cost > bound:
                    break
                at += np.uint32(m)
                end = at >> np.uint32(shift)
                key = (end - begin) * np.uint32(h.size) + begin
                if known[key] == -1:
                    held = cumulative[end] - cumulative[begin]
                    apart = h_log_h[end] - h_log_h[begin]
                    known[key] = apart - held * math.log(held / (occupied[end] - occupied[begin])) if held > 0 else 0.0
                cost += known[key]
                begin = end
            if cost <= bound:
                out[m - start] = cost / total
                best = min(best, cost / total)
        return out

    nb = numba.types
    flat = nb.Array(nb.float32, 1, "C", readonly=True)  # takes writable arrays as well
    return Kernels(
        _compiled(numba, abs_max_bits, nb.uint32(flat)),
        _compiled(numba, add_counts, nb.int64(flat, nb.float32, nb.int64, nb.float32, nb.float32, nb.int32[::1])),
        _compiled(numba, divergences, nb.float64[::1](*[nb.float64[::1]] * 4, nb.int64, nb.int64)),
    )


def _compiled(numba: Any, function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """A function's machine code, from numba's cache where it has one."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(signature, cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # numba found no folder where it may write its cache: compile in every process
        return numba.njit(signature, **options)(function)  # type: ignore[no-any-return]

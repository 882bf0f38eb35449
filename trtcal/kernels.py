"""The two inner loops over activations, compiled by numba where it is installed.

Both have a NumPy twin with the same results bit for bit; :func:`kernels` picks once per process.
Arithmetic is float32, operation by operation, because TensorRT's bin indices depend on its rounding.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

MAGNITUDE = np.uint32(0x7FFFFFFF)  # all bits of a float32 but its sign


class Kernels(NamedTuple):
    """``abs_max_bits(x)`` and ``add_counts(x, limit, edge, counts)``, both over flat float32."""

    abs_max_bits: Callable[[np.ndarray], np.uint32]
    add_counts: Callable[[np.ndarray, np.float32, np.float32, np.ndarray], int]


def numpy_abs_max_bits(x: np.ndarray) -> np.uint32:
    """Flat float32 -> the bits of its largest magnitude; any nan wins, since its bits exceed those of inf."""
    return np.uint32((x.view(np.uint32) & MAGNITUDE).max(initial=0))


def numpy_add_counts(x: np.ndarray, limit: np.float32, edge: np.float32, counts: np.ndarray) -> int:
    """Count finite |x| <= limit in equal bins over [0, limit), the last one closed; returns how many |x| >= edge."""
    magnitude = np.abs(x)
    index = (magnitude / limit * np.float32(counts.size)).astype(np.int64)
    counts += np.bincount(np.minimum(index, counts.size - 1), minlength=counts.size)
    return int((magnitude >= edge).sum())


@functools.cache
def kernels() -> Kernels:
    """The compiled loops, or their NumPy twins (said once in the log) where numba cannot be used."""
    try:
        import numba
    except ImportError as error:
        logger.warning("numba is not usable (%s): counting with NumPy, same results, several times slower", error)
        return Kernels(numpy_abs_max_bits, numpy_add_counts)

    def abs_max_bits(x: np.ndarray) -> np.uint32:
        bits = x.view(np.uint32)
        largest = np.uint32(0)
        for i in range(bits.size):
            largest = max(largest, bits[i] & MAGNITUDE)
        return largest

    def add_counts(x: np.ndarray, limit: np.float32, edge: np.float32, counts: np.ndarray) -> int:
        bins = np.float32(counts.size)
        last = np.int64(counts.size - 1)
        hits = 0
        for i in range(x.size):
            magnitude = np.abs(x[i])
            counts[min(np.int64(magnitude / limit * bins), last)] += 1
            hits += magnitude >= edge
        return hits

    nb = numba.types
    flat = nb.Array(nb.float32, 1, "C", readonly=True)  # takes writable arrays as well
    return Kernels(
        _compiled(numba, abs_max_bits, nb.uint32(flat)),
        _compiled(numba, add_counts, nb.int64(flat, nb.float32, nb.float32, nb.int64[::1])),
    )


def _compiled(numba: Any, function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """A function's machine code, from numba's cache where it has one."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(signature, cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # numba found no folder where it may write its cache: compile in every process
        return numba.njit(signature, **options)(function)  # type: ignore[no-any-return]

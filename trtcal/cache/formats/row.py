"""What a format is, and the numbers that all of them share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from trtcal.cache.cache import CalibrationCache
from trtcal.errors import CacheError, CacheFormatError

# No digit can be read in two ways, so that a line of a million of them is no trap.
_NUMBER = re.compile(
    r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|infinity|nan)", re.IGNORECASE
)


class Format(NamedTuple):
    """A file format for scales."""

    parse: Callable[[bytes, str], CalibrationCache]
    """(content, name of the file for messages) -> cache; raises CacheFormatError and nothing else."""
    format: Callable[[CalibrationCache], bytes] | None
    """Cache -> content; CacheError where it cannot hold a scale. None if a model is needed besides."""
    matches: Callable[[bytes, Any], bool]
    """(content, content parsed as JSON or None) -> does it look like this format?"""
    description: str
    """What such a file is, in one line of the documentation's table."""
    holds: str = "amax"
    """What it says of each tensor, for the same table."""
    suffixes: tuple[str, ...] = ()
    """Ends of file names that stand for this format alone."""


def cache_without_header(
    scales: Mapping[str, np.float32],
    name: str,
    *,
    algorithm: str = "EntropyCalibration2",
    notes: Iterable[str] = (),
) -> CalibrationCache:
    """Scales of a file without a header -> cache; CacheFormatError for a tensor name that no cache can hold."""
    try:
        return CalibrationCache("8601", algorithm, scales, tuple(notes))
    except CacheError as error:
        raise CacheFormatError(f"{name}: {error}") from error


def scale_of(amax: float, where: str) -> np.float32:
    """Amax -> scale; CacheFormatError if it is negative or beyond float32."""
    return checked_scale(amax / 127, where)


def checked_scale(value: float, where: str) -> np.float32:
    """Number -> float32 scale; CacheFormatError if it is negative or beyond float32."""
    if value < 0:
        raise CacheFormatError(
            f"{where}: expected the largest |x| of a tensor, got a negative number; ONNX Runtime writes one where no "
            f"value is positive, and both ends of the range into calibration.json: take that"
        )
    with np.errstate(over="ignore"):
        scale = np.float32(value)
    if np.isinf(scale) and not np.isinf(value):
        raise CacheFormatError(f"{where}: expected a number that float32 holds, got a larger one")
    return scale


def amax_of(tensor: str, scale: np.float32) -> float:
    """Scale -> the amax of fewest digits from which it comes back; CacheError if it is negative."""
    if scale < 0:
        raise CacheError(f"tensor {tensor!r} has the scale {scale}, and a range cannot be negative")
    amax = float(scale) * 127  # of 31 bits, so nothing is rounded
    with np.errstate(over="ignore"):
        shortened = (float(f"{amax:.{digits}g}") for digits in range(1, 17))
        return next((value for value in shortened if np.float32(value / 127) == scale), amax)


def finite_amax(tensor: str, scale: np.float32) -> float:
    """As :func:`amax_of`, and CacheError for inf and nan, which JSON cannot hold."""
    if not np.isfinite(scale):
        raise CacheError(
            f"tensor {tensor!r} has the scale {scale}, which JSON cannot hold and nothing can use; calibrate anew, "
            f"or take its line out of the cache"
        )
    return amax_of(tensor, scale)


def is_number(text: str) -> bool:
    """Is it a decimal number that C's strtod and Python's float both read?"""
    return _NUMBER.fullmatch(text) is not None


def number(text: str, where: str) -> float:
    """Decimal text -> number; CacheFormatError if it is none."""
    if not is_number(text):
        raise CacheFormatError(f"{where}: expected a number, got {text[:60]!r}")
    return float(text)

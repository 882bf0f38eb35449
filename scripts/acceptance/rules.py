"""TensorRT's entropy calibration written out once more, slowly, with every rule of it changeable.

`trtcal` holds the rules as they are believed to be; a default `Rules` gives the same bits, which a test holds. The
other values are what TensorRT might do instead: where its scale is not ours, they say which rule would explain it, and
a test feeds them to every comparison to see it fail.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from trtcal.sweep.emulation import REPLAYED

BINS, LEVELS = 2048, 128
_TIE = 1e-12


@dataclass(frozen=True)
class Rules:
    """The algorithm's rules, one field each; `ALTERNATIVES` lists the values that a field may have instead."""

    index: str = "division"
    zero_bin: str = "as bin 1"
    start: int = 128
    threshold: str = "middle of the next bin"
    growth: str = "double"
    zero_batch: str = "waits"
    merge: str = "pairs"
    ties: str = "first"
    levels: str = "digitize"
    outliers: str = "in P"

    def broken(self) -> Iterator[tuple[str, Rules]]:
        """Every way to change one rule, with its name, for example ``start=129``."""
        for item in fields(self):
            for value in ALTERNATIVES[item.name]:
                changed: dict[str, Any] = {item.name: value}
                yield f"{item.name}={value}", replace(self, **changed)


ALTERNATIVES: dict[str, tuple[str | int, ...]] = {
    "index": ("times the inverse", "in double precision"),
    "zero_bin": ("kept", "empty"),
    "start": (127, 129, 64),
    "threshold": ("edge of the bin", "edge of the next bin"),
    "growth": ("times 4", "square-max", "square-range", "whole data", "next power of two"),
    "zero_batch": ("starts at 1",),
    "merge": ("shifted pairs", "counted anew"),
    "ties": ("last",),
    "levels": ("whole bins",),
    "outliers": ("in P and Q", "dropped"),
}


def scale(batches: Sequence[np.ndarray], rules: Rules | None = None) -> np.float32:
    """Batches of one tensor -> the scale that the rules give."""
    rules = rules or Rules()
    counts, limit = histogram(batches, rules)
    kept = bins_kept(counts, rules)
    f32 = np.float32
    offset = {"middle of the next bin": 0.5, "edge of the bin": 0.0, "edge of the next bin": 1.0}[rules.threshold]
    return f32(f32(f32(kept) + f32(offset)) * f32(f32(limit) / f32(BINS))) / f32(127)


def histogram(batches: Sequence[np.ndarray], rules: Rules) -> tuple[np.ndarray, float]:
    """Batches -> counts (2048,) and the limit."""
    counts, limit = np.zeros(BINS), 0.0
    if rules.zero_batch == "starts at 1" and not np.any(batches[0]):
        limit = 1.0
    if rules.growth == "whole data":
        limit = float(max(np.abs(batch).max() for batch in batches))
    parts: list[np.ndarray] = []
    for batch in batches:
        values = np.abs(np.asarray(batch, np.float32)).ravel()
        grown = _grown(limit, float(values.max()), rules.growth)
        if limit and grown != limit:
            counts = _regrouped(counts, grown / limit, rules, parts, grown)
        limit = grown
        parts.append(values)
        if limit:
            counts = counts + _counted(values, limit, rules)
        else:
            counts[0] += values.size
    return counts, limit


def _grown(limit: float, amax: float, growth: str) -> float:
    if limit == 0 and growth != "next power of two":
        return amax
    if amax <= limit:
        return limit
    if growth == "next power of two":
        return math.ldexp(1.0, math.frexp(amax)[1])
    if growth in REPLAYED:
        grown = REPLAYED[growth].grow(limit, amax)
        if not math.isnan(grown):
            return float(np.float32(grown))
    factor = 4 if growth == "times 4" else 2
    while amax > limit:
        limit *= factor
    return limit


def _regrouped(
    counts: np.ndarray, factor: float, rules: Rules, parts: Sequence[np.ndarray], limit: float
) -> np.ndarray:
    if rules.merge == "counted anew" or math.frexp(factor)[0] != 0.5:
        anew: np.ndarray = np.sum([_counted(part, limit, rules) for part in parts], axis=0)
        return anew
    if rules.merge == "shifted pairs":
        counts = np.concatenate([[0], counts[:-1]])
    merged = counts.reshape(-1, min(int(factor), BINS)).sum(axis=1)
    return np.concatenate([merged, np.zeros(BINS - merged.size)])


def _counted(values: np.ndarray, limit: float, rules: Rules) -> np.ndarray:
    bins, whole = np.float32(BINS), np.float32(limit)
    place: np.ndarray
    if rules.index == "times the inverse":
        place = values * (bins / whole)
    elif rules.index == "in double precision":
        place = values.astype(np.float64) / float(whole) * BINS
    else:
        place = values / whole * bins
    return np.bincount(np.minimum(place.astype(np.int64), BINS - 1), minlength=BINS).astype(float)


def bins_kept(counts: np.ndarray, rules: Rules) -> int:
    """Counts -> the number of bins that the search keeps; all of them where there is nothing to search."""
    h = np.array(counts, float)
    h[0] = {"as bin 1": h[1], "kept": h[0], "empty": 0.0}[rules.zero_bin]
    total = h.sum()
    least, best = math.inf, BINS
    for kept in range(rules.start, BINS + 1):
        outliers = total - h[:kept].sum()
        if h[kept - 1] == 0 and outliers and rules.outliers != "dropped":
            continue  # the outliers would lie in an empty bin: infinite
        found = _divergence(h[:kept], outliers, rules)
        if found <= least + _TIE if rules.ties == "last" else found < least - _TIE:
            least, best = found, kept
    return best


@functools.cache
def _levels(kept: int, rule: str) -> np.ndarray:
    """The level of each bin that is kept."""
    if rule == "whole bins":
        level = np.arange(kept) // max(kept // LEVELS, 1)
    else:
        level = np.digitize(np.arange(kept), np.linspace(0, kept, LEVELS + 1)) - 1
    return np.minimum(level, LEVELS - 1)


def _divergence(h: np.ndarray, outliers: float, rules: Rules) -> float:
    p = h.copy()
    if rules.outliers != "dropped":
        p[-1] += outliers
    spread = p if rules.outliers == "in P and Q" else h
    filled = spread > 0
    level = _levels(h.size, rules.levels)
    sums = np.bincount(level, weights=spread, minlength=LEVELS)
    bins = np.bincount(level, weights=filled, minlength=LEVELS)
    q = np.where(filled, (sums / np.maximum(bins, 1))[level], 0.0)
    if not q.sum():
        return math.inf
    held = p > 0
    p, q = p[held] / p.sum(), q[held] / q.sum()
    return math.inf if (q <= 0).any() else float((p * np.log(p / q)).sum())

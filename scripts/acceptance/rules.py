"""TensorRT's entropy calibration written out once more, slowly, with every rule of it changeable.

`trtcal` holds the rules as they are believed to be; a default `Rules` gives the same bits, which a test holds. The
other values are what TensorRT might do instead. `refuted` says by how many histograms of real networks each is refuted
(`scripts/refute_rules.py` makes the table of docs/parity.md of it). Where a scale that TensorRT writes on a GPU is not
ours, they say which rule would explain it, and a test feeds them to every comparison to see it fail.
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
FEWEST = 64  # bins; no rule keeps fewer
_TIE = 1e-12


@dataclass(frozen=True)
class Rules:
    """The algorithm's rules, one field each; `ALTERNATIVES` lists the values that a field may have instead."""

    index: str = "division"
    zero_bin: str = "as bin 1"
    start: int = 128
    stop: int = BINS
    threshold: str = "middle of the next bin"
    growth: str = "double"
    zero_batch: str = "waits"
    merge: str = "pairs"
    ties: str = "last"
    levels: str = "digitize"
    outliers: str = "in P"
    empty_bins: str = "infinite"
    least_bins: int = 2
    divergence: str = "float64"

    def broken(self) -> Iterator[tuple[str, Rules]]:
        """Every way to change one rule, with its name, for example ``start=129``."""
        for item in fields(self):
            for value in ALTERNATIVES[item.name]:
                changed: dict[str, Any] = {item.name: value}
                yield f"{item.name}={value}", replace(self, **changed)


ALTERNATIVES: dict[str, tuple[str | int, ...]] = {
    "index": ("times the inverse", "in double precision"),
    "zero_bin": ("kept", "empty", "the greater of both", "the lesser of both"),
    "start": (127, 129, 64),
    "stop": (BINS - 1,),
    "threshold": ("edge of the bin", "edge of the next bin"),
    "growth": ("times 4", "square-max", "square-range", "whole data", "next power of two"),
    "zero_batch": ("starts at 1",),
    "merge": ("shifted pairs", "counted anew"),
    "ties": ("first",),
    "levels": ("whole bins",),
    "outliers": ("in P and Q", "dropped"),
    "empty_bins": ("skipped",),
    "least_bins": (1, 3, 8, 9),
    "divergence": ("float32",),
}


def scale(batches: Sequence[np.ndarray], rules: Rules | None = None) -> np.float32:
    """Batches of one tensor -> the scale that the rules give."""
    rules = rules or Rules()
    counts, limit = histogram(batches, rules)
    return scale_of(bins_kept(counts, rules), limit, rules)


def scale_of(kept: int, limit: float, rules: Rules) -> np.float32:
    """Bins kept of those over [0, limit) -> the scale."""
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
        grown = grown_limit(limit, float(values.max()), rules.growth)
        if limit and grown != limit:
            counts = _regrouped(counts, grown / limit, rules, parts, grown)
        limit = grown
        parts.append(values)
        if limit:
            counts = counts + _counted(values, limit, rules)
        else:
            counts[0] += values.size
    return counts, limit


def grown_limit(limit: float, amax: float, growth: str) -> float:
    """A histogram's limit, 0 for none, and the largest |x| of the next batch -> the limit with that batch."""
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
    return chosen(*divergences(counts, rules), rules)


def chosen(found: np.ndarray, filled: np.ndarray, rules: Rules) -> int:
    """What `divergences` found -> the number of bins that the search keeps."""
    least, best = math.inf, BINS
    for kept in range(rules.start, rules.stop + 1):
        clips = filled[kept] < filled[-1]
        if clips and filled[kept] < rules.least_bins:
            continue
        if found[kept] < least + _TIE if rules.ties == "last" else found[kept] < least - _TIE:
            least, best = min(least, found[kept]), kept
    return best


def divergences(counts: np.ndarray, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """Counts -> KL(P||Q) by the number of bins kept, (2049,), inf where there is none; how many of them are filled."""
    h = np.array(counts, float)
    h[0] = {
        "as bin 1": h[1],
        "kept": h[0],
        "empty": 0.0,
        "the greater of both": max(h[:2]),
        "the lesser of both": min(h[:2]),
    }[rules.zero_bin]
    filled = np.concatenate([[0], np.cumsum(h > 0)])
    found = np.full(BINS + 1, math.inf)
    for kept in range(FEWEST, BINS + 1):
        bins = np.flatnonzero(h[:kept])
        outliers = h[kept:].sum()
        if outliers and not h[kept - 1]:
            if rules.outliers == "in P" and rules.empty_bins == "infinite":
                continue  # the outliers lie in an empty bin, where Q is 0
            bins = np.append(bins, kept - 1)
        if bins.size:
            found[kept] = _divergence(h[bins], outliers, _levels(kept, rules.levels)[bins], rules)
    return found, filled


@functools.cache
def _levels(kept: int, rule: str) -> np.ndarray:
    """The level of each bin that is kept."""
    if rule == "whole bins":
        level = np.arange(kept) // max(kept // LEVELS, 1)
    else:
        level = np.digitize(np.arange(kept), np.linspace(0, kept, LEVELS + 1)) - 1
    return np.minimum(level, LEVELS - 1)


def _divergence(h: np.ndarray, outliers: float, level: np.ndarray, rules: Rules) -> float:
    """The bins with anything in them, what is clipped, the level of each bin -> KL(P||Q).

    Every number and every sum of it is of one precision, added one after the other as a plain loop does.
    """
    h = h.astype(rules.divergence)
    p = h.copy()
    if rules.outliers != "dropped":
        p[-1] += outliers
    spread = p if rules.outliers == "in P and Q" else h
    sums = np.zeros(LEVELS, h.dtype)
    np.add.at(sums, level, spread)
    bins = np.bincount(level, spread > 0, LEVELS).astype(h.dtype)
    q = np.where(spread > 0, (sums / np.maximum(bins, 1))[level], 0)
    if not q.any():
        return math.inf
    held = (p > 0) & (q > 0) if rules.empty_bins == "skipped" else p > 0
    p, q = p[held] / _total(p), q[held] / _total(q)
    return math.inf if (q <= 0).any() else float(_total(p * np.log(p / q)))


def _total(values: np.ndarray) -> Any:
    # NumPy's own sum is cleverer than a loop, which in float32 decides.
    return values.sum() if values.dtype == np.float64 else np.add.accumulate(values)[-1]

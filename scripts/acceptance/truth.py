"""Histograms of networks that a real TensorRT calibrated, with the scales that it wrote for them.

Of `tests/data/tensorrt_*.npz`. The scales are TensorRT's own, from the caches that were published with the networks;
the histograms were counted from the published weights and data, with activations computed on a CPU. docs/parity.md
says where each comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from acceptance.rules import BINS, Rules, bins_kept, chosen, divergences, grown_limit, scale_of

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
VERSIONS = ("7.2.2", "8.5.1")
CLOSE = 3e-6  # of a scale: activations of a CPU differ from a GPU's in their low bits


class Tensor(NamedTuple):
    """A histogram of |x| over [0, limit), the doublings that led to it, and TensorRT's scale."""

    version: str
    network: str
    name: str
    counts: np.ndarray
    limit: np.float32
    doublings: int
    scale: np.float32

    @property
    def kept(self) -> int:
        """The number of bins that TensorRT kept, which its scale tells."""
        return _kept(self.scale, float(self.limit))


def load() -> list[Tensor]:
    """All tensors, by version and network."""
    return [tensor for version in VERSIONS for tensor in _load(version)]


def _load(version: str) -> Iterator[Tensor]:
    with np.load(DATA / f"tensorrt_{version.replace('.', '_')}.npz", allow_pickle=False) as held:
        columns = [held[key] for key in ("network", "tensor", "counts", "limit", "doublings", "scale")]
    for network, name, counts, limit, doublings, scale in zip(*columns, strict=True):
        yield Tensor(version, str(network), str(name), counts.astype(np.int64), limit, int(doublings), scale)


class _Search:
    """Bins kept of one tensor's counts by many rules; those with the same divergences have them computed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, counts: np.ndarray, rules: Rules) -> int:
        key = (counts.tobytes(), rules.zero_bin, rules.levels, rules.outliers, rules.empty_bins, rules.divergence)
        if key not in self._known:
            self._known[key] = divergences(counts, rules)
        return chosen(*self._known[key], rules)


def agrees(tensor: Tensor, rules: Rules, search: Callable[[np.ndarray, Rules], int] = bins_kept) -> bool:
    """Whether the rules give TensorRT's scale; where they want another grid than the counts', whether they may.

    ValueError for rules of which these histograms say nothing.
    """
    silent = [name for name in ("index", "zero_batch", "merge") if getattr(rules, name) != getattr(Rules(), name)]
    if silent or rules.growth == "square-max":
        raise ValueError(f"{rules} does not show in histograms, but only in the values that they count")
    if rules.growth == "whole data":
        # The threshold is at most half a bin above the largest |x|, whatever the counts are.
        return float(tensor.scale) * 127 <= _largest(tensor) * (BINS + 0.5) / BINS * (1 + CLOSE)
    if rules.growth in ("square-range", "next power of two"):
        # The threshold is the middle of a bin over the range that there would be, whatever the counts are.
        first = 0.0 if rules.growth == "next power of two" else float(tensor.limit) / 2**tensor.doublings
        limit = grown_limit(first, _largest(tensor), rules.growth)
        kept = min(max(_kept(tensor.scale, limit), rules.start), rules.stop)
        return _close(scale_of(kept, limit, rules), tensor.scale)
    counts, limit = tensor.counts, float(tensor.limit)
    if rules.growth == "times 4" and tensor.doublings % 2:  # twice what doubling gave: the same bins in pairs
        counts, limit = np.append(counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, int)), limit * 2
    return _close(scale_of(search(counts, rules), limit, rules), tensor.scale)


def _kept(scale: np.float32, limit: float) -> int:
    return round(float(scale) * 127 * BINS / limit - 0.5)


def _close(ours: np.float32, theirs: np.float32) -> bool:
    return abs(float(ours) / float(theirs) - 1) <= CLOSE


def _largest(tensor: Tensor) -> float:
    """The upper edge of the last bin that holds a value."""
    return float((np.flatnonzero(tensor.counts)[-1] + 1) * float(tensor.limit) / BINS)


def answers(tensors: Sequence[Tensor], changed: Iterable[tuple[str, Rules]], workers: int = 1) -> dict[str, list[bool]]:
    """Names and rules -> whether they agree with each tensor."""
    names, asked = zip(*changed, strict=True)
    if workers == 1:
        rows = [_answers(asked, tensor) for tensor in tensors]
    else:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            rows = list(pool.map(partial(_answers, asked), tensors, chunksize=4))
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _answers(asked: Sequence[Rules], tensor: Tensor) -> list[bool]:
    search = _Search()
    return [agrees(tensor, rules, search) for rules in asked]

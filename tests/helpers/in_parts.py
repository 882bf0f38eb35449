"""Passes cut into parts and added up again, for tests of statistics that add."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import reduce
from itertools import pairwise

import numpy as np

from trtcal.passes.collect import collect
from trtcal.passes.partial import Part, added, collect_part, continued, first_limits, recounted, uncounted
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.batches import Batch


class Network:
    """A network with a tensor of every kind; nan in "hole" reaches no output of it."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return _tensors(batch["x"])

    def decisive(self, names: Collection[str]) -> set[str]:
        return set(names) - {"hole"}


network = Network()


def _tensors(x: np.ndarray) -> dict[str, np.ndarray]:
    big = np.abs(x) > 2
    return {
        "x": x,
        "late": np.where(big, x, 0),  # zero in many a first batch
        "flag": np.where(big, 4096, 0),  # two levels: limits of any parts fit together
        "mask": np.where(x > 7, -np.inf, x),
        "hole": np.where(x > 6, np.nan, x),
        "dead": x * 0,
        "huge": np.clip(x.astype(np.float64) * 1.7e38, -3.4e38, 3.4e38),  # limits that pass the largest float32
        "tiny": x * np.float32(1e-40),
    }


def in_parts(batches: Sequence[Batch], cuts: Sequence[int], growth: str, order: Sequence[int]) -> ActivationStats:
    """The pass in parts: the first batch, then what lies between the cuts, added by neighbours in some order."""
    start = collect(network, batches[:1], growth=growth)
    rest = batches[1:]
    if not rest:
        return start
    limits = first_limits(start)
    ends = sorted({0, len(rest), *(cut for cut in cuts if cut < len(rest))})
    spans = list(pairwise(ends))
    runs = [collect_part(network, rest[a:b], limits, growth=growth) for a, b in spans]
    parts: list[Part] = list(runs)
    for place in order:
        if len(parts) > 1:
            place %= len(parts) - 1
            parts[place : place + 2] = [added(parts[place], parts[place + 1])]
    whole = reduce(added, parts)
    again = uncounted(start, whole)
    if again:
        counted = [
            collect_part(lambda batch: {n: network(batch)[n] for n in again}, rest[a:b], again, growth=growth)
            for (a, b), run in zip(spans, runs, strict=True)
            if any(run.tensors[name].batch_amax.any() for name in again)
        ]
        whole = recounted(whole, reduce(added, counted))
    return continued(start, whole)


def batch(*rows: Sequence[float], name: str = "b", valid: int | None = None) -> Batch:
    x = np.array(rows, np.float32)
    return Batch({"x": x}, samples=[f"{name}{row}" for row in range(len(x))], valid=valid)

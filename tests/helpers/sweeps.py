"""A small network without a model, its statistics, and a grid of arrangements for sweeps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from replays import samples

from trtcal.passes.collect import collect
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.batches import Batch
from trtcal.sweep.emulation import groups
from trtcal.sweep.trials import ORDERS, configurations


def network(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    x = batch["x"]
    return {"x": x, "relu": np.maximum(x, 0), "mask": np.where(x > 0, 0, -np.inf), "dead": x * 0}


def stats_of(x: np.ndarray, batch_size: int = 4) -> ActivationStats:
    batches = []
    for rows in groups(np.arange(len(x)), batch_size):
        batches.append(Batch({"x": x[rows]}, samples=[f"s{r}" for r in rows], valid=len(np.unique(rows))))
    return collect(network, batches)


X = samples(24)


STATS = stats_of(X)


GRID, _ = configurations((1, 4, 24), tuple(ORDERS), 2, ("double", "power-of-two"), 24)

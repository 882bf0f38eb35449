"""One tensor whose samples are easy to name, and what a pass over it leaves."""

from __future__ import annotations

import numpy as np

from trtcal.passes.collect import collect
from trtcal.ranges.stats import TensorStats
from trtcal.samples.batches import Batch
from trtcal.sweep.emulation import groups


def network(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"x": batch["x"]}


def stats_of(x: np.ndarray, batch_size: int = 1, growth: str = "double") -> TensorStats:
    batches = []
    for rows in groups(np.arange(len(x)), batch_size):
        valid = len(np.unique(rows))
        batches.append(Batch({"x": x[rows]}, samples=[str(r) for r in rows], valid=valid))
    return collect(network, batches, growth=growth).tensors["x"]


def samples(number: int = 24, seed: int = 0, levels: float = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.laplace(size=(number, 300)) * rng.uniform(0.2, 5, size=(number, 1))
    return (np.rint(x * levels) / levels).astype(np.float32)

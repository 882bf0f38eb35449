"""A network of one line of Python, and data whose elements often lie on limits."""

from __future__ import annotations

import numpy as np

Batches = list[dict[str, np.ndarray]]


def network(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    x = batch["x"]
    return {"x": x, "relu": np.maximum(x, 0), "dead": np.maximum(-np.abs(x), 0), "wide": x[..., None] * [1, 30]}


def data(number: int = 23, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.laplace(size=(number, 40)) * rng.uniform(0.2, 4, size=(number, 1))
    return np.rint(x * 8).astype(np.float32) / 8  # few levels: many elements lie exactly on limits


def cut(x: np.ndarray, size: int) -> Batches:
    return [{"x": x[i : i + size]} for i in range(0, len(x), size)]

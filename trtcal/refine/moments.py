"""What the layers of the FP32 model multiply their weights with: second moments of the columns, in one pass a group."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from trtcal.refine.layers import Weights

MOST_ROWS = 16_000  # columns' positions a layer, spread over all samples
ROWS_PER_K = 3  # enough for a layer with few weights a channel: second moments of k columns settle after a few times k
LEAST_ROWS = 2_048
TOGETHER = 512  # positions that are multiplied at once: few at a time move more memory than they compute


def grouped(weights: Sequence[Weights], memory: int) -> Iterator[list[Weights]]:
    """Weights, in order, and bytes -> groups of them whose second moments fit; a single one may be larger."""
    group: list[Weights] = []
    held = 0
    for each in weights:
        size = 8 * each.groups * each.k**2
        if group and held + size > memory:
            yield group
            group, held = [], 0
        group.append(each)
        held += size
    if group:
        yield group


def moments(shown: Iterable[Mapping[str, np.ndarray]], number: int, group: Sequence[Weights]) -> dict[str, np.ndarray]:
    """The inputs of layers, (1, ...) each, of so many samples, and weights -> (groups, k, k) float64 by weight.

    At most 16,000 positions of a layer's input are taken, as many of each sample, drawn by a generator that the layer's
    name and the sample's number seed: equal arguments give equal bytes where BLAS does.
    """
    found = {each.name: np.zeros((each.groups, each.k, each.k)) for each in group}
    waiting: dict[str, list[np.ndarray]] = {each.name: [] for each in group}

    def add(name: str) -> None:
        columns = np.concatenate(waiting[name], axis=1)
        waiting[name] = []
        if len(columns) == 1:
            found[name][0] += columns[0].T @ columns[0]
        else:
            found[name] += np.swapaxes(columns, 1, 2) @ columns

    for position, tensors in enumerate(shown):
        for each in group:
            most = -(-min(MOST_ROWS, max(LEAST_ROWS, ROWS_PER_K * each.k)) // (number * len(each.readers)))
            for reader in each.readers:
                rng = np.random.default_rng([zlib.crc32(reader.name.encode("utf-8", "surrogateescape")), position])
                waiting[each.name].append(np.asarray(reader.columns(tensors[reader.source], most, rng), np.float32))
                if sum(columns.shape[1] for columns in waiting[each.name]) >= TOGETHER:
                    add(each.name)
    for name, columns in waiting.items():
        if columns:
            add(name)
    return found

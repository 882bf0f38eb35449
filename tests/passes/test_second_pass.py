from __future__ import annotations

import numpy as np
import pytest
from replays import network, samples, stats_of

from trtcal.passes.second_pass import count_exactly
from trtcal.sweep.emulation import groups, replay


@pytest.mark.parametrize("partial", ["pad", "wrap"])
@pytest.mark.parametrize("levels", [8, 1e6])
def test_a_second_pass_makes_every_replay_bit_equal_to_calibrating_by_itself(partial: str, levels: float) -> None:
    x = samples(22, levels=levels)
    tensor = stats_of(x)
    orders = [np.arange(22), *(np.random.default_rng(seed).permutation(22) for seed in range(3))]
    configurations = [(order, size) for order in orders for size in (1, 3, 4, 8, 22, 40)]
    limits = {replay(tensor, order, size, partial=partial).trajectory.limit for order, size in configurations}
    uneven = {
        int(row)
        for order, size in configurations
        for row, times in enumerate(np.bincount(np.concatenate(groups(order, size, partial)), minlength=22))
        if times != 1
    }
    counts = count_exactly(network, [{"x": x[:9]}, {"x": x[9:]}], {"x": limits}, uneven, workers=2)["x"]
    for order, size in configurations:
        made = replay(tensor, order, size, partial=partial, shape=counts)
        batches = [{"x": x[rows]} for rows in groups(order, size, partial)]
        from trtcal.passes.collect import collect

        assert made.histogram == collect(network, batches).tensors["x"].batch_grid


def test_samples_that_are_dropped_are_not_counted() -> None:
    x = samples(7)
    tensor, order = stats_of(x), np.arange(7)
    limit = replay(tensor, order, 3, partial="drop").trajectory.limit
    counts = count_exactly(network, [{"x": x}], {"x": {limit}}, {6})["x"]
    made = replay(tensor, order, 3, partial="drop", shape=counts)
    assert made.histogram == stats_of(x[:6], 3).batch_grid


def test_progress_counts_samples() -> None:
    done: list[int] = []
    count_exactly(network, [{"x": samples(5)}], {"x": {64.0}}, progress=done.append)
    assert done == [1, 2, 3, 4, 5]

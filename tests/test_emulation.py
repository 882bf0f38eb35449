from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtcal.collector import collect
from trtcal.data import Batch
from trtcal.emulation import RULES, groups, replay, resampled, square_max, square_range, trajectory
from trtcal.histogram import NUM_BINS, Histogram
from trtcal.stats import TensorStats


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


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 24])
@pytest.mark.parametrize("seed", range(4))
def test_limits_and_growths_are_exact_for_any_batch_size_and_order(batch_size: int, seed: int) -> None:
    x = samples(seed=seed)
    order = np.random.default_rng(seed).permutation(len(x))
    once = stats_of(x)
    made = replay(once, order, batch_size)
    streamed = stats_of(x[order], batch_size).streamed
    assert streamed is not None
    assert made.histogram.limit == streamed.limit
    assert made.trajectory.doublings == math.log2(streamed.limit / made.trajectory.first_amax)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_where_bins_agree_the_replay_is_the_stream_itself(batch_size: int) -> None:
    """A first maximum that is a power of two puts TensorRT's borders on borders of the fine histogram."""
    x = samples(levels=4)
    x[0] = np.clip(x[0], -1, 1)
    x[0, 0] = 1
    x[1:3] = np.clip(x[1:3], -2, 2)
    x[1, :9] = 2
    order = np.arange(len(x))
    streamed = stats_of(x, batch_size).streamed
    assert streamed is not None
    made = replay(stats_of(x), order, batch_size)
    assert made.histogram == streamed


def test_elements_at_an_outgrown_limit_are_one_bin_low_as_in_tensorrt() -> None:
    x = np.array([[1.0, -1.0, 0.1], [0.2, 1.5, 0.3]], np.float32)
    made = replay(stats_of(x), [0, 1], 1)
    assert np.flatnonzero(made.histogram.counts).tolist() == [102, 204, 307, 1023, 1536]
    assert made.histogram.counts[1023] == 2
    assert np.flatnonzero(replay(stats_of(x), [1, 0], 1).histogram.counts)[-1] == 2047


def test_the_tutorials_numbers_come_out_as_it_gives_them() -> None:
    assert trajectory([2.4], "square-max").limit == pytest.approx(5.76)
    assert trajectory([1.54, 2.4], "square-max").stages[0].limit == pytest.approx(2.3716)
    assert trajectory([1.54, 2.4], "square-max").limit == pytest.approx(5.76)  # strictly, 2.4 does not fit 2.3716
    assert square_max(round(1.54**2, 1), 2.4) == 2.4  # rounded to 2.4, it does
    assert trajectory([1.54, 2.4], "square-range").limit == pytest.approx(1.54**2**2)
    assert trajectory([1.54, 2.4], "double").limit == float(np.float32(1.54)) * 2
    assert trajectory([1.54, 2.4], "exact").limit == 2.4


@pytest.mark.parametrize("rule", [square_max, square_range])
def test_squaring_below_one_is_undefined_and_falls_back_to_doubling(rule: object) -> None:
    assert callable(rule)
    name = rule.__name__.replace("_", "-")
    path = trajectory([0.5, 0.7], name)
    assert path.fell_back
    assert path.limit == 1.0
    assert not trajectory([2.0, 3.0], name).fell_back


def test_the_last_growth_is_dated() -> None:
    path = trajectory([1.0, 1.5, 1.2, 5.0, 0.1])
    assert (path.doublings, path.last_growth, path.limit) == (3, 3, 8.0)
    assert trajectory([3.0, 1.0]).last_growth is None
    assert trajectory([0.0, 0.0]).limit == 0
    assert trajectory([0.0, 2.0, 3.0]).stages[0].first == 1


@given(st.lists(st.floats(2.0**-40, 2.0**40, width=32), min_size=1, max_size=30))
def test_every_rule_holds_the_data(maxima: list[float]) -> None:
    for growth in RULES:
        path = trajectory(maxima, growth)
        assert path.limit >= max(maxima)
        assert path.stages[-1].last == len(maxima)
        for one, two in zip(path.stages, path.stages[1:], strict=False):
            assert one.last == two.first
            assert one.limit < two.limit


def test_batch_invariant_rules_do_not_depend_on_order() -> None:
    tensor = stats_of(samples())
    orders = [np.random.default_rng(seed).permutation(24) for seed in range(3)]
    for growth in ("power-of-two", "exact"):
        first, *others = [replay(tensor, order, size, growth).histogram for order in orders for size in (1, 5, 24)]
        assert all(other == first for other in others)
    assert replay(tensor, orders[0], 3, "power-of-two").histogram.counts.tolist() == (
        tensor.histogram.coarse(NUM_BINS).counts.tolist()
    )


@pytest.mark.parametrize("limit", [1.0, 1.37, 2.9, 17.0, 1e-3])
def test_resampling_loses_no_element(limit: float) -> None:
    fine = stats_of(samples()).histogram
    assert resampled(fine, limit).total == fine.total


def test_groups_are_filled_as_batches_are() -> None:
    order = [3, 1, 2, 0, 4]
    assert [rows.tolist() for rows in groups(order, 2)] == [[3, 1], [2, 0], [4, 4]]
    assert [rows.tolist() for rows in groups(order, 2, "wrap")] == [[3, 1], [2, 0], [4, 3]]
    assert [rows.tolist() for rows in groups(order, 2, "drop")] == [[3, 1], [2, 0]]
    assert [rows.tolist() for rows in groups(order, 7, "wrap")] == [[3, 1, 2, 0, 4, 3, 1]]


def test_wrong_arguments_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="unknown growth rule 'x'; choose one of double, square-max"):
        trajectory([1.0], "x")
    with pytest.raises(ValueError, match="2 samples make no batch of 3"):
        replay(stats_of(samples(2)), [0, 1], 3, partial="drop")


def test_a_tensor_of_zeros_or_of_a_mask_replays_to_nothing() -> None:
    zeros = stats_of(np.zeros((3, 4), np.float32))
    assert replay(zeros, [0, 1, 2], 2).histogram.limit == 0
    empty = Histogram(np.zeros(NUM_BINS), 0.0, np.float32(0))
    assert resampled(empty, 2.0).total == 0

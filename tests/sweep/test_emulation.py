from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replays import samples, stats_of

from trtcal.passes.collect import collect
from trtcal.ranges.histogram import FINE_BINS, NUM_BINS
from trtcal.sweep.emulation import (
    RULES,
    Stage,
    Trajectory,
    groups,
    paths,
    read_off,
    replay,
    square_max,
    square_range,
    trajectory,
)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 24])
@pytest.mark.parametrize("seed", range(4))
def test_limits_and_growths_are_exact_for_any_batch_size_and_order(batch_size: int, seed: int) -> None:
    x = samples(seed=seed)
    order = np.random.default_rng(seed).permutation(len(x))
    once = stats_of(x)
    made = replay(once, order, batch_size)
    batch_grid = stats_of(x[order], batch_size).batch_grid
    assert batch_grid is not None
    assert made.histogram.limit == batch_grid.limit
    assert made.trajectory.doublings == math.log2(batch_grid.limit / made.trajectory.first_amax)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_where_bins_agree_the_replay_is_the_stream_itself(batch_size: int) -> None:
    """A first maximum that is a power of two puts TensorRT's borders on borders of the fine histogram."""
    x = samples(levels=4)
    x[0] = np.clip(x[0], -1, 1)
    x[0, 0] = 1
    x[1:3] = np.clip(x[1:3], -2, 2)
    x[1, :9] = 2
    order = np.arange(len(x))
    batch_grid = stats_of(x, batch_size).batch_grid
    assert batch_grid is not None
    made = replay(stats_of(x), order, batch_size)
    assert made.histogram == batch_grid


def test_elements_at_an_outgrown_limit_are_one_bin_low_as_in_tensorrt() -> None:
    x = np.array([[1.0, -1.0, 0.1], [0.2, 1.5, 0.3]], np.float32)
    made = replay(stats_of(x), [0, 1], 1)
    assert np.flatnonzero(made.histogram.counts).tolist() == [102, 204, 307, 1023, 1536]
    assert made.histogram.counts[1023] == 2
    assert np.flatnonzero(replay(stats_of(x), [1, 0], 1).histogram.counts)[-1] == 2047


@pytest.mark.parametrize("doublings", [1, 2, 10, 11, 12, 30])
def test_a_limit_that_is_outgrown_many_times_over_leaves_its_elements_where_a_stream_does(doublings: int) -> None:
    x = np.array([[1.0, -1.0, 0.0], [2.0**doublings, 1.0, 0.25]], np.float32)
    assert replay(stats_of(x), [0, 1], 1).histogram == stats_of(x).batch_grid


def test_elements_at_a_limit_are_not_one_bin_low_in_the_batch_that_outgrows_it() -> None:
    x = np.array([[1.0, 0.5], [0.75, 0.5], [1.0, 1.0], [2.0, 0.5]], np.float32)
    made = replay(stats_of(x), [0, 1, 2, 3], 2)
    assert made.histogram == stats_of(x, batch_size=2).batch_grid
    assert made.histogram.counts[1023:1025].tolist() == [1, 2]


def test_limits_are_those_of_float32_when_elements_are_compared_with_them() -> None:
    first = np.float32(1.1)
    square = np.float32(float(first) ** 2)
    assert float(square) < float(first) ** 2  # so that it fits, and lies at the limit in float32
    made = paths(np.array([[first, square, 2 * first]]), np.array([[1, 3, 1]]), [0, 1, 2], 1, "square-max")
    assert made.low == [((512, 3),)]


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


def test_squaring_at_one_is_defined_where_it_leads_somewhere() -> None:
    assert trajectory([0.0, 1.0], "square-max") == Trajectory((Stage(1.0, 1, 2),), 0.0, False)
    assert trajectory([1.0, 2.0], "square-range").fell_back  # 1 x 1 never reaches 2
    assert trajectory([2.0, 4.0], "square-range").limit == 4  # which holds 4


@pytest.mark.parametrize("growth", RULES)
def test_nothing_and_zeros_lead_nowhere(growth: str) -> None:
    for maxima in ([], [0.0], [0.0, 0.0]):
        assert trajectory(maxima, growth) == Trajectory((), 0.0, False)


def test_the_exact_rule_has_one_stage() -> None:
    assert trajectory([1.0, 3.0, 2.0], "exact") == Trajectory((Stage(3.0, 0, 3),), 1.0, False)


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


@pytest.mark.parametrize("limit", [1.0, 1.37, 2.9, 17.0, 1e-3, math.inf])
def test_no_element_is_lost_on_any_limit(limit: float) -> None:
    fine = stats_of(samples()).histogram
    counts = read_off(fine)(limit, np.empty(0, int))
    assert counts.dtype == np.int64
    assert counts.sum() == fine.total
    if math.isinf(limit):
        assert counts[0] == fine.total


def test_zeros_are_in_the_first_bin_on_any_limit() -> None:
    counts = read_off(stats_of(np.zeros((3, 4), np.float32)).histogram)(2.0, np.empty(0, int))
    assert counts.dtype == np.int64
    assert counts.tolist() == [12] + [0] * (NUM_BINS - 1)


@pytest.mark.parametrize("growth", RULES)
@pytest.mark.parametrize("partial", ["pad", "wrap", "drop"])
@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_paths_of_many_tensors_are_those_of_each(batch_size: int, partial: str, growth: str) -> None:
    tensors = [stats_of(samples(seed=seed, levels=2)) for seed in range(4)] + [stats_of(samples() * 0)]
    maxima, peaks = (np.array([getattr(t, name) for t in tensors]) for name in ("sample_amax", "sample_peaks"))
    order = np.random.default_rng(0).permutation(24)
    made = paths(maxima, peaks, order, batch_size, growth, partial=partial)
    batches = groups(order, batch_size, partial)
    assert made.rows.tolist() == np.concatenate(batches).tolist()
    for row, tensor in enumerate(tensors):
        path = made.trajectories[row]
        assert path == trajectory([tensor.sample_amax[rows].max() for rows in batches], growth)
        low = []
        for stage in path.stages[:-1]:
            rows = np.concatenate(batches[stage.first : stage.last])
            held = tensor.sample_peaks[rows][tensor.sample_amax[rows] == np.float32(stage.limit)].sum()
            place = stage.limit / path.limit * NUM_BINS
            if held and place >= 1 and place == int(place):
                low.append((int(place), held))
        assert list(made.low[row]) == low
        assert made.amax[row] == tensor.sample_amax[made.rows].max()
    if growth == "double" and batch_size < 24:
        assert any(made.low)


@pytest.mark.parametrize("factor", [0.01, 1 / 3, 0.61, 1, 1.0007, 1.37, 2, 700])
def test_counts_are_read_off_by_linear_interpolation(factor: float) -> None:
    x = samples(levels=1e6)
    top = stats_of(x).histogram.limit
    x[0, :8] = np.nextafter(np.float32(top), np.float32(0))  # the last fine bin is cut as any other
    x[1, :5] = top * (1 - 1.5 / FINE_BINS)
    fine = stats_of(x).histogram
    assert fine.counts[-2:].tolist() == [5, 8]
    limit = fine.limit * factor
    cumulative = np.concatenate([[0], np.cumsum(fine.counts)])
    inner = np.arange(1, NUM_BINS) * (limit / NUM_BINS / fine.bin_width)
    border = np.floor(np.interp(inner, np.arange(fine.num_bins + 1), cumulative) + 0.5)
    expected = np.diff(np.concatenate([[0], border, [fine.total]]))
    assert read_off(fine)(limit, np.empty(0, int)).tolist() == expected.tolist()


def test_groups_are_filled_as_batches_are() -> None:
    order = [3, 1, 2, 0, 4]
    assert [rows.tolist() for rows in groups(order, 2)] == [[3, 1], [2, 0], [4, 4]]
    assert [rows.tolist() for rows in groups(order, 2, "wrap")] == [[3, 1], [2, 0], [4, 3]]
    assert [rows.tolist() for rows in groups(order, 2, "drop")] == [[3, 1], [2, 0]]
    assert [rows.tolist() for rows in groups(order, 7, "wrap")] == [[3, 1, 2, 0, 4, 3, 1]]
    assert [groups([], 2, partial) for partial in ("pad", "wrap", "drop")] == [[], [], []]


def test_unless_told_otherwise_limits_double_and_the_last_batch_is_padded() -> None:
    tensor, order = stats_of(samples(5)), np.arange(5)
    maxima, peaks = tensor.sample_amax[None], tensor.sample_peaks[None]
    assert paths(maxima, peaks, order, 2).rows.tolist() == [0, 1, 2, 3, 4, 4]
    assert paths(maxima, peaks, order, 2).trajectories == paths(maxima, peaks, order, 2, "double").trajectories
    seen: list[list[int]] = []

    def shape(limit: float, rows: np.ndarray) -> np.ndarray:
        seen.append(rows.tolist())
        return read_off(tensor.histogram)(limit, rows)

    replay(tensor, order[::-1], 2, shape=shape)
    assert seen == [[4, 3, 2, 1, 0, 0]]


def test_wrong_arguments_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=f"unknown growth rule 'x'; choose one of {', '.join(RULES)}$"):
        trajectory([1.0], "x")
    with pytest.raises(ValueError, match="2 samples make no batch of 3"):
        replay(stats_of(samples(2)), [0, 1], 3, partial="drop")


@pytest.mark.parametrize("growth", RULES)
def test_a_tensor_of_zeros_or_of_a_mask_replays_to_nothing(growth: str) -> None:
    zeros = stats_of(np.zeros((3, 4), np.float32))
    assert replay(zeros, [0, 1, 2], 2, growth).histogram.limit == 0
    x = np.array([[1e30, 1.0], [2e30, 1.0], [1.0, 2.0]], np.float32)
    mask = collect(lambda batch: {"mask": np.where(batch["x"] == 2, -np.inf, batch["x"])}, [{"x": x}]).tensors["mask"]
    for order in ([0, 1, 2], [2, 1, 0]):
        assert replay(mask, order, 1, growth).histogram.total == 0

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from trtcal.ranges import kernels as module
from trtcal.ranges.kernels import (
    Kernels,
    kernels,
    numpy_abs_max_bits,
    numpy_add_counts,
    numpy_divergences,
    x_log_x,
)
from trtcal.ranges.thresholds import last_minimum

PLAIN = Kernels(numpy_abs_max_bits, numpy_add_counts, numpy_divergences)
EXTREMES = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 1.0, -2.5, 3.4028235e38, -3.4028235e38]


def as_float(bits: np.uint32) -> float:
    return float(np.uint32(bits).view(np.float32))


def count(loops: Kernels, x: NDArray[np.float32], limit: float, edge: float, counts: NDArray[np.int32]) -> int:
    """Count on one grid alone."""
    return loops.add_counts(x, np.float32(limit), counts.size, np.float32(0), np.float32(edge), counts)


def samples() -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    shapes = [rng.normal(size=n) * 10.0 ** rng.integers(-30, 30) for n in (1, 2, 31, 1000, 4097)]
    return [np.asarray(x, np.float32) for x in [*shapes, EXTREMES, []]]


@pytest.mark.parametrize("x", samples(), ids=len)
def test_compiled_and_plain_loops_agree_bit_for_bit(x: NDArray[np.float32]) -> None:
    assert kernels().abs_max_bits(x) == numpy_abs_max_bits(x)
    for limit in (as_float(numpy_abs_max_bits(x)), 1e30):
        if limit == 0:
            continue
        inside = x[np.abs(x) <= limit]
        for num_bins in (2048, 32768):
            counts = [np.zeros(num_bins, np.int32) for _ in range(2)]
            clamped = [
                count(loops, inside, limit, limit, mine) for loops, mine in zip((kernels(), PLAIN), counts, strict=True)
            ]
            assert clamped[0] == clamped[1]
            assert np.array_equal(counts[0], counts[1])
            assert counts[0].sum() == inside.size


@pytest.mark.parametrize("loops", [kernels(), PLAIN], ids=["compiled", "plain"])
def test_the_largest_magnitude_is_exact_and_any_nan_wins(loops: Kernels) -> None:
    f32 = np.float32
    assert as_float(loops.abs_max_bits(np.array([1, -7, 3], f32))) == 7
    assert as_float(loops.abs_max_bits(np.array([], f32))) == 0
    assert as_float(loops.abs_max_bits(np.array([1, -np.inf], f32))) == np.inf
    assert np.isnan(as_float(loops.abs_max_bits(np.array([np.inf, -np.nan, 1], f32))))


@pytest.mark.parametrize("loops", [kernels(), PLAIN], ids=["compiled", "plain"])
def test_an_element_at_the_limit_is_in_the_last_bin_and_elements_at_the_edge_are_counted(loops: Kernels) -> None:
    counts = np.zeros(2048, np.int32)
    x = np.array([1.0, -1.0, 0.5, 0.0], np.float32)
    assert count(loops, x, 1, 0.5, counts.copy()) == 3
    assert count(loops, x, 1, 1, counts) == 2
    assert counts[2047] == 2
    assert counts[1024] == 1
    assert counts[0] == 1


@pytest.mark.parametrize("num_bins", [2048, 32768])
@pytest.mark.parametrize("size", [511, 512, 513, 2048, 8192, 8193, 70001, (1 << 20) + 7])
def test_crowds_of_zeros_and_a_constant_are_counted_like_anything_else(size: int, num_bins: int) -> None:
    x = np.maximum(np.random.default_rng(size).normal(size=size), 0).astype(np.float32)
    for values in (x, -x, np.full(size, 0.7, np.float32), np.zeros(size, np.float32)):
        limit, edge = np.float32(max(x.max(), 0.7)), np.abs(values).max()
        counts = [np.ones(num_bins, np.int32) for _ in range(2)]
        hits = [count(loops, values, limit, edge, mine) for loops, mine in zip((kernels(), PLAIN), counts, strict=True)]
        assert hits[0] == hits[1]
        assert np.array_equal(counts[0], counts[1])


@pytest.mark.parametrize("loops", [kernels(), PLAIN], ids=["compiled", "plain"])
@pytest.mark.parametrize("size", [100, 70001])
def test_bins_of_two_grids_are_counted_by_their_sum(loops: Kernels, size: int) -> None:
    x = np.random.default_rng(size).normal(size=size).astype(np.float32)
    limit, scale, edge = np.abs(x).max(), np.float32(32768 / 8), np.float32(0.5)
    counts = np.ones(32768 + 2047, np.int32)
    assert loops.add_counts(x, limit, 2048, scale, edge, counts) == (np.abs(x) >= edge).sum()
    coarse = np.minimum((np.abs(x) / limit * np.float32(2048)).astype(int), 2047)
    assert np.array_equal(counts - 1, np.bincount(coarse + (np.abs(x) * 4096).astype(int), minlength=counts.size))


def test_an_array_that_may_not_be_written_is_read() -> None:
    x = np.array([1, -2], np.float32)
    x.flags.writeable = False
    assert as_float(kernels().abs_max_bits(x)) == 2
    assert count(kernels(), x, 2, 2, np.zeros(2048, np.int32)) == 1


@pytest.mark.parametrize("seed", range(30))
def test_the_pruned_search_finds_the_minimum_of_the_full_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x: NDArray[np.float64] = [
        rng.laplace(size=4000),
        np.abs(rng.normal(size=500)),
        rng.standard_t(2, size=9000),
        rng.integers(0, 9, 99),
        rng.uniform(0.5, 1, 300),
        rng.choice([8, 16, 32], 500),
    ][seed % 6]
    x = np.abs(np.append(x, rng.uniform(1, 3) * np.abs(x).max()))
    h = np.bincount(np.minimum((x / x.max() * 2048).astype(int), 2047), minlength=2048).astype(np.float64)
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in (h, h > 0, x_log_x(h))]
    full, pruned = (loops.divergences(h, *sums, 128, 128) for loops in (PLAIN, kernels()))
    assert last_minimum(pruned) == last_minimum(full)
    found = np.isfinite(pruned)
    np.testing.assert_allclose(pruned[found], full[found], rtol=1e-9, atol=1e-12)


def test_without_numba_the_same_results_come_slower_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    module.kernels.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert module.kernels() == PLAIN
            assert module.kernels() == PLAIN
        assert len(caplog.records) == 1
        assert "same results" in caplog.text
    finally:
        module.kernels.cache_clear()

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from trtcal.ranges import both_grids as module
from trtcal.ranges import histogram as histogram_module
from trtcal.ranges.both_grids import SMALL, PairBuilder, _first_sums
from trtcal.ranges.growth import GROWTH, double, power_of_two
from trtcal.ranges.histogram import FINE_BINS, NUM_BINS, HistogramBuilder, abs_max

Arrays = list[NDArray[np.float32]]

SHAPES: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "after ReLU": lambda rng, size: np.maximum(rng.normal(size=size), 0),
    "comb": lambda rng, size: rng.integers(-8, 9, size=size) / 8,  # elements on limits, and on edges of bins
    "heavy-tailed": lambda rng, size: np.clip(rng.standard_t(2, size=size), -5, 5),
    "few": lambda rng, size: rng.normal(size=3),
    "zeros and then more": lambda rng, size: rng.normal(size=size) * rng.integers(0, 2),
}
SCALES = [1.0, 1e-30, 1e-31, 1e-42, 1e30, 3e37]


def stream(shape: str, scale: float, seed: int) -> list[Arrays]:
    """Batches, each in pieces."""
    rng = np.random.default_rng(seed)
    return [
        [
            np.asarray(SHAPES[shape](rng, int(rng.integers(1, 20000))) * rng.uniform(0.2, 2) * scale, np.float32)
            for _ in range(3)
        ]
        for _ in range(4)
    ]


def together(batches: list[Arrays], growth: str, ask: bool = False) -> PairBuilder:
    pair = PairBuilder(growth)
    for batch in batches:
        pair.start_batch()
        for part in batch:
            pair.add(part, abs_max(part))
            if ask:
                pair.fine.build()
    return pair


def apart(batches: list[Arrays], growth: str) -> tuple[HistogramBuilder, HistogramBuilder, list[int]]:
    fine, batch_grid = HistogramBuilder(FINE_BINS, power_of_two), HistogramBuilder(NUM_BINS, GROWTH[growth].grow)
    hits = []
    for batch in batches:
        batch_grid.start_batch()
        for part in batch:
            hits.append(fine.add(part, abs_max(part)))
            batch_grid.add(part, abs_max(part))
    return fine, batch_grid, hits


@pytest.mark.parametrize("growth", GROWTH)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_pair_counts_as_two_builders_do(shape: str, scale: float, growth: str) -> None:
    for seed in range(3):
        batches = stream(shape, scale, seed)
        fine, batch_grid, hits = apart(batches, growth)
        pair = together(batches, growth, ask=seed == 1)
        assert pair.fine.build() == fine.build()
        assert pair.batch_grid.build() == batch_grid.build()
        assert pair.limit == batch_grid.limit
        pair = PairBuilder(growth)
        assert [pair.add(part, abs_max(part)) for batch in batches for part in batch] == hits


EDGES = [0.0, -0.0, 2.0**-149, 2.0**-126, SMALL, -1.0, 1.5, -3.0, 2.0**127, float(np.finfo(np.float32).max)]
edge_arrays = hnp.arrays(
    np.float32,
    st.integers(0, 12),
    elements=st.sampled_from(EDGES) | st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@pytest.mark.parametrize("growth", GROWTH)
@given(batches=st.lists(st.lists(edge_arrays, min_size=1, max_size=3), max_size=5), ask=st.booleans())
def test_a_pair_counts_as_two_builders_do_whatever_the_floats(batches: list[Arrays], ask: bool, growth: str) -> None:
    fine, batch_grid, _ = apart(batches, growth)
    pair = together(batches, growth, ask)
    assert pair.fine.build() == fine.build()
    assert pair.batch_grid.build() == batch_grid.build()
    assert pair.fine.build().total == sum(part.size for batch in batches for part in batch)


def test_asking_changes_nothing() -> None:
    batches = stream("normal", 1.0, 0)
    once, often = together(batches, "double"), together(batches, "double", ask=True)
    for _ in range(2):
        assert once.fine.build() == often.fine.build()
        assert once.batch_grid.build() == often.batch_grid.build()


def test_what_only_tensorrt_sees_is_counted_beside_the_rest() -> None:
    batches = stream("normal", 1.0, 0)
    pair, more = together(batches, "double"), np.array([1e3, 2.0, 0.0], np.float32)
    fine, batch_grid, _ = apart(batches, "double")
    pair.batch_grid.add(more, 1e3)
    batch_grid.add(more, 1e3)
    assert pair.fine.build() == fine.build()
    assert pair.batch_grid.build() == batch_grid.build()
    # From here on TensorRT's limit is far above the fine one.
    pair.add(batches[0][0], abs_max(batches[0][0]))
    fine.add(batches[0][0], abs_max(batches[0][0]))
    batch_grid.add(batches[0][0], abs_max(batches[0][0]))
    assert pair.fine.build() == fine.build()
    assert pair.batch_grid.build() == batch_grid.build()


def test_a_limit_that_is_known_before_its_elements_is_kept() -> None:
    pair, builder = PairBuilder("double"), HistogramBuilder(NUM_BINS, double)
    x = np.linspace(-1, 1, 999, dtype=np.float32)
    for target in (pair, builder):
        target.fit(1.7)
        target.add(x, 1.0)
    assert pair.batch_grid.build() == builder.build()
    assert pair.limit == float(np.float32(1.7))
    assert pair.fine.build().limit == 2.0


def test_more_elements_than_an_int32_counts_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = stream("normal", 1.0, 4)
    expected = together(batches, "double")
    for many in (10, 5000, 25000):
        monkeypatch.setattr(module, "MANY", many)
        monkeypatch.setattr(histogram_module, "MANY", many)
        pair = PairBuilder("double")
        for batch in batches:
            pair.start_batch()
            for part in batch:
                pair.add(part, abs_max(part))
                assert pair._sums.sum() == pair._elements <= many
        assert pair.fine.build() == expected.fine.build()
        assert pair.batch_grid.build() == expected.batch_grid.build()


@given(
    st.floats(SMALL, float(np.finfo(np.float32).max), width=32),
    st.integers(-1, 1),
)
def test_the_least_sum_of_a_bin_is_that_of_its_first_float(limit: float, octaves: int) -> None:
    """For the edge of each of TensorRT's bins: the floats around it, and on which side of it they are counted."""
    fine_limit = power_of_two(0.0, limit) * 2.0**octaves
    if not SMALL <= fine_limit < 2.0**128:
        return
    least = _first_sums(fine_limit, limit)
    assert (np.diff(least) > 0).all()
    edge = (np.arange(NUM_BINS) * (limit / NUM_BINS)).astype(np.float32)
    bits = edge.view(np.int32)[:, None] + np.arange(-6, 7, dtype=np.int32)
    x = np.maximum(bits, 0).astype(np.int32).view(np.float32)
    x = np.minimum(x, np.float32(limit))
    coarse = np.minimum((x / np.float32(limit) * np.float32(NUM_BINS)).astype(np.int64), NUM_BINS - 1)
    fine = np.minimum(x * np.float32(FINE_BINS / fine_limit), np.float32(FINE_BINS - 1)).astype(np.int64)
    assert np.array_equal(np.searchsorted(least, coarse + fine, side="right") - 1, coarse)


def test_small_values_beside_a_limit_near_the_largest_float_are_counted_without_a_warning() -> None:
    pair, apart = PairBuilder("double"), HistogramBuilder(NUM_BINS, double)
    small = np.linspace(0, 2**-60, 100, dtype=np.float32)
    for builder in (pair, apart):
        builder.fit(3.4e38)
        builder.add(small, abs_max(small))
    assert pair.batch_grid.build() == apart.build()
    assert pair.fine.build().total == 100

from __future__ import annotations

import itertools

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from trtcal.growth import double, power_of_two
from trtcal.histogram import FINE_BINS, NUM_BINS, Histogram, HistogramBuilder, abs_max, growth_factor

arrays = hnp.arrays(
    np.float32,
    st.integers(0, 50),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def fine(*parts: NDArray[np.float32]) -> Histogram:
    builder = HistogramBuilder(FINE_BINS, power_of_two)
    for part in parts:
        builder.add(part, abs_max(part))
    return builder.build()


def tensorrt(batches: list[NDArray[np.float32]]) -> HistogramBuilder:
    builder = HistogramBuilder(NUM_BINS, double)
    for batch in batches:
        builder.start_batch()
        builder.add(batch, abs_max(batch))
    return builder


@given(arrays, arrays, arrays)
def test_any_split_and_order_gives_the_same_fine_histogram(
    a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]
) -> None:
    whole = fine(np.concatenate([a, b, c]))
    for order in itertools.permutations([a, b, c]):
        assert fine(*order) == whole
    assert fine(a) + fine(b) + fine(c) == whole
    assert fine(a) + (fine(b) + fine(c)) == whole
    assert whole.total == a.size + b.size + c.size
    assert whole.limit == 0 or whole.limit > float(whole.amax)


@given(arrays, st.integers(0, 40))
def test_growth_keeps_every_count_and_equals_counting_on_the_larger_limit(
    x: NDArray[np.float32], doublings: int
) -> None:
    hist = fine(x)
    grown = hist.grown(hist.limit * 2.0**doublings)
    assert grown.total == hist.total
    assert grown.amax == hist.amax
    if hist.limit:
        index = (np.abs(x).astype(np.float64) / grown.limit * FINE_BINS).astype(np.int64)
        assert np.array_equal(grown.counts, np.bincount(index, minlength=FINE_BINS))


STREAMS = {
    "normal": lambda rng: rng.normal(size=500),
    "one-sided": lambda rng: np.abs(rng.normal(size=500)),
    "heavy-tailed": lambda rng: rng.standard_t(2, size=500),
    "sparse": lambda rng: np.where(rng.random(500) < 0.95, 0, rng.normal(size=500)),
    "comb": lambda rng: rng.integers(0, 17, size=500) / 16,
    "constant": lambda rng: np.full(100, 0.7),
    "tiny": lambda rng: rng.normal(size=500) * 1e-38,
    "huge": lambda rng: rng.normal(size=500) * 1e34,
    "few": lambda rng: rng.normal(size=3),
}


@pytest.mark.parametrize("shape", STREAMS)
@pytest.mark.parametrize("seed", range(12))
def test_a_stream_of_batches_has_tensorrts_counts(shape: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [(STREAMS[shape](rng) * rng.uniform(0.3, 3)).astype(np.float32) for _ in range(rng.integers(1, 7))]
    if seed % 4 == 0:
        batches.insert(0, np.zeros(7, np.float32))
    reference = oracle.Hist()
    for batch in batches:
        reference.update(batch)
    hist = tensorrt(batches).build()
    assert hist.limit == float(reference.R)
    assert np.array_equal(hist.counts[1:], reference.h[1:])
    assert hist.counts[0] == reference.h[0] + reference.zeros


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_in_pieces_counts_as_the_batch_in_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Few levels: many elements equal the limit that a later piece of the same batch outgrows.
    batches = [(rng.integers(0, 4, size=60) / 3 * 2.0 ** rng.integers(0, 3)).astype(np.float32) for _ in range(5)]
    pieces = HistogramBuilder(NUM_BINS, double)
    for batch in batches:
        pieces.start_batch()
        for part in np.array_split(batch, 4):
            pieces.add(part, abs_max(batch) if pieces.limit == 0 else abs_max(part))
    assert pieces.build() == tensorrt(batches).build()


def test_an_element_at_the_limit_stays_one_bin_low_after_a_later_batch_doubles_it() -> None:
    one, two = np.array([1.0], np.float32), np.array([1.5], np.float32)
    assert np.flatnonzero(tensorrt([one, two]).counts).tolist() == [1023, 1536]
    assert np.flatnonzero(tensorrt([np.concatenate([one, two])]).counts).tolist() == [1365, 2047]


def test_a_builder_goes_on_from_its_own_histogram() -> None:
    rng = np.random.default_rng(3)
    batches = [rng.laplace(size=100).astype(np.float32) * scale for scale in (1, 2, 9)]
    resumed = HistogramBuilder(NUM_BINS, double)
    resumed.restore(tensorrt(batches[:2]).build())
    resumed.start_batch()
    resumed.add(batches[2], abs_max(batches[2]))
    assert resumed.build() == tensorrt(batches).build()


def test_the_largest_floats_have_a_place() -> None:
    top = np.finfo(np.float32).max
    hist = fine(np.array([top, -top, 1.0], np.float32))
    assert hist.limit == 2.0**128
    assert np.flatnonzero(hist.counts).tolist() == [0, FINE_BINS - 1]
    assert hist.coarse(NUM_BINS).counts[-1] == 2


def test_nothing_but_zeros_has_no_limit_and_adds_to_anything() -> None:
    zeros, ones = np.zeros(5, np.float32), np.ones(3, np.float32)
    assert fine(zeros).limit == 0
    assert fine(zeros) + fine(ones) == fine(np.concatenate([ones, zeros])) == fine(ones) + fine(zeros)


def test_clipped_is_the_share_in_bins_wholly_above() -> None:
    hist = Histogram(np.array([2, 1, 0, 1]), 4.0, np.float32(3.5))
    assert [hist.clipped(amax) for amax in (0.5, 1.0, 1.5, 3.0, 4.0, 9.0)] == [0.5, 0.25, 0.25, 0, 0, 0]
    assert fine(np.zeros(3, np.float32)).clipped(0.0) == 0


def test_a_histogram_is_a_value() -> None:
    counts = np.array([1, 2])
    hist = Histogram(counts, 1.0, np.float32(1))
    counts[0] = 9
    assert hist.counts.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        hist.counts[0] = 9
    assert hist != Histogram(np.array([1, 2]), 2.0, np.float32(1))
    assert hist != "histogram"
    with pytest.raises(TypeError, match="unhashable"):
        hash(hist)


def test_histograms_that_do_not_add_say_why() -> None:
    a, b = Histogram(np.ones(4), 1.0, np.float32(1)), Histogram(np.ones(4), 1.5, np.float32(1))
    with pytest.raises(ValueError, match=r"over \[0, 1.0\) has no exact place in \[0, 1.5\)"):
        a + b
    with pytest.raises(ValueError, match="4 and 8 bins do not add"):
        a + Histogram(np.ones(8), 1.0, np.float32(1))
    with pytest.raises(ValueError, match="4 bins do not merge into 3"):
        a.coarse(3)
    with pytest.raises(ValueError, match="no exact place"):
        growth_factor(2.0, 1.0)


@pytest.mark.parametrize("counts", [np.ones((2, 2)), np.ones(3), np.ones(0)])
def test_counts_of_another_shape_are_refused(counts: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Histogram(counts, 1.0, np.float32(1))

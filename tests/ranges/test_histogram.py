from __future__ import annotations

import itertools
import math

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from trtcal.ranges import histogram as module
from trtcal.ranges.growth import double, power_of_two
from trtcal.ranges.histogram import FINE_BINS, INT64_MAX, NUM_BINS, Histogram, HistogramBuilder, abs_max, growth_factor

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


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    """16 bins, a power of two as the limit, from the least that float32 data gives to the largest."""
    exponent = draw(st.none() | st.integers(-148, 128))
    if exponent is None:
        return Histogram(np.array([draw(st.integers(0, 9))] + [0] * 15), 0.0, np.float32(0))
    counts = draw(hnp.arrays(np.int64, 16, elements=st.just(0) | st.integers(0, 2**40)))
    amax = np.float32(draw(st.floats(2.0**-149, min(2.0**exponent, 2.0**127), width=32)))
    return Histogram(counts, 2.0**exponent, amax)


@given(histograms(), histograms(), histograms())
def test_addition_is_associative_and_commutative(a: Histogram, b: Histogram, c: Histogram) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert ((a + b) + c).total == a.total + b.total + c.total


@given(histograms(), st.integers(0, 300), st.integers(0, 300))
def test_growing_twice_is_growing_once(hist: Histogram, one: int, two: int) -> None:
    grown = hist.grown(hist.limit * 2.0**one)
    assert grown.total == hist.total
    assert grown.grown(grown.limit * 2.0**two) == hist.grown(hist.limit * 2.0 ** (one + two))


def test_counts_reach_as_far_as_int64_and_no_further() -> None:
    zeros, ones = np.zeros(3, np.int64), np.array([1], np.int64)
    most = Histogram(np.append(zeros, INT64_MAX), 1.0, np.float32(1))
    assert (most + Histogram(np.zeros(4), 1.0, np.float32(1))).total == most.total == INT64_MAX
    assert most.grown(4.0).counts.tolist() == [INT64_MAX, 0, 0, 0]
    assert most.coarse(1).counts.tolist() == [INT64_MAX]
    for other in (most, Histogram(np.append(ones, zeros), 1.0, np.float32(1))):  # in the same bin, or in another
        with pytest.raises(ValueError, match="more than int64 counts"):
            most + other


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
    batches, limit = [rng.uniform(-0.7, 0.7, 60)], 0.7
    for doublings in rng.choice([1, 1, 2, 3, 10, 11, 12], size=3).tolist():
        # Elements at the limit in several pieces, before one that the limit does not hold.
        batches.append(np.append(rng.choice([limit, -limit, limit / 3, 0.0], 59), limit * 2.0**doublings))
        limit *= 2.0**doublings
    batches[0][7] = 0.7
    batches32 = [batch.astype(np.float32) for batch in batches]
    pieces = HistogramBuilder(NUM_BINS, double)
    for batch in batches32:
        pieces.start_batch()
        for part in np.array_split(batch, 4):
            pieces.add(part, abs_max(batch) if pieces.limit == 0 else abs_max(part))
    assert pieces.build() == tensorrt(batches32).build()


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


EDGES = [0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-126 - 2.0**-149, 2.0**-126, 1.0, -float(np.finfo(np.float32).max)]


@given(st.lists(st.sampled_from(EDGES) | st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_every_float_is_in_the_bin_that_holds_it(values: list[float]) -> None:
    x = np.array(values, np.float32)
    hist = fine(x)
    assert hist.amax == np.abs(x).max(initial=0)
    assert not np.signbit(hist.amax)
    assert hist.limit == 0 or hist.limit / 2 <= float(hist.amax) < hist.limit
    bins = [0 if hist.limit == 0 else int(abs(float(v)) / hist.limit * FINE_BINS) for v in x]  # exact in float64
    assert np.array_equal(hist.counts, np.bincount(np.array(bins, int), minlength=FINE_BINS))


def test_the_largest_floats_have_a_place() -> None:
    top = np.finfo(np.float32).max
    hist = fine(np.array([top, -top, 1.0], np.float32))
    assert hist.limit == 2.0**128
    assert HistogramBuilder(FINE_BINS, power_of_two).add(np.array([top, -top, 1.0], np.float32), float(top)) == 2
    assert np.flatnonzero(hist.counts).tolist() == [0, FINE_BINS - 1]
    assert hist.coarse(NUM_BINS).counts[-1] == 2


def test_past_the_largest_float_a_limit_is_inf_and_all_elements_are_in_the_first_bin() -> None:
    hist = tensorrt([np.array([3e38, 1.0], np.float32), np.array([3.2e38], np.float32)]).build()
    assert hist.limit == math.inf
    assert hist.counts[0] == hist.total == 3
    assert hist.amax == np.float32(3.2e38)
    with pytest.raises(ValueError, match="no exact place"):
        hist.grown(2.0)


def test_a_large_array_is_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.array([1.0, -1.0, 0.5, 0.0, 1.0, 0.25, 1.0], np.float32)
    whole = HistogramBuilder(NUM_BINS, double)
    assert whole.add(x, 1.0) == 4
    monkeypatch.setattr(module, "MANY", 3)
    parts = HistogramBuilder(NUM_BINS, double)
    assert parts.add(x, 1.0) == 4
    assert parts.build() == whole.build()


def test_nothing_but_zeros_has_no_limit_and_adds_to_anything() -> None:
    zeros, ones = np.zeros(5, np.float32), np.ones(3, np.float32)
    assert fine(zeros).limit == 0
    assert fine(zeros) + fine(ones) == fine(np.concatenate([ones, zeros])) == fine(ones) + fine(zeros)


def test_clipped_is_the_share_in_bins_wholly_above() -> None:
    hist = Histogram(np.array([2, 1, 0, 1]), 4.0, np.float32(3.5))
    assert [hist.clipped(amax) for amax in (0.5, 1.0, 1.5, 3.0, 4.0, 9.0)] == [0.5, 0.25, 0.25, 0, 0, 0]
    for limit in (0.5, 1.0, 2.0, 1e30):
        hist = Histogram(np.array([1, 0, 2, 1]), limit, np.float32(limit))
        assert [hist.clipped(share * limit) for share in (0.1, 0.3, 0.6, 0.8, 1, math.inf)] == [
            0.75,
            0.75,
            0.25,
            0,
            0,
            0,
        ]
    assert fine(np.zeros(3, np.float32)).clipped(0.0) == 0
    assert Histogram(np.zeros(4), 1.0, np.float32(0)).clipped(0.5) == 0


def test_a_histogram_is_a_value() -> None:
    counts = np.array([1, 2])
    hist = Histogram(counts, 1.0, np.float32(1))
    counts[0] = 9
    assert hist.counts.tolist() == [1, 2]
    assert hist.coarse(1).amax == hist.grown(4.0).amax == hist.amax
    other = Histogram(np.array([1.0, 2.0]), np.float32(1), 1.0)  # type: ignore[arg-type]
    assert [type(value) for value in (other.limit, other.amax)] == [float, np.float32]
    assert other.counts.dtype == tensorrt([]).counts.dtype == np.int64
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
    assert [growth_factor(2.0, limit) for limit in (2.0, 4.0, 64.0)] == [1, 2, 32]


@pytest.mark.parametrize("counts", [np.ones((2, 2)), np.ones(3), np.ones(0)])
def test_counts_of_another_shape_are_refused(counts: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Histogram(counts, 1.0, np.float32(1))


@pytest.mark.parametrize(
    ("counts", "limit", "amax", "message"),
    [
        ([3, -1, 0, 0], 1.0, 0.5, "counts are of elements, but bin 1 has -1"),
        ([1, 0], -1.0, 0.5, r"the limit is one of \|x\|, but is -1.0"),
        ([1, 0], math.nan, 0.5, r"the limit is one of \|x\|, but is nan"),
        ([1, 0], 1.0, -0.5, r"the amax is one of \|x\|, but is -0.5"),
        ([1, 0], 1.0, math.nan, r"the amax is one of \|x\|, but is nan"),
    ],
)
def test_what_cannot_have_been_counted_is_no_histogram(
    counts: list[int], limit: float, amax: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Histogram(np.array(counts), limit, np.float32(amax))
    assert Histogram(np.array([0, 0]), 0.0, np.float32(0)).total == 0
    assert Histogram(np.array([1, 0]), math.inf, np.float32(math.inf)).limit == math.inf

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import oracle
import pytest
from acceptance import rules
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from trtcal.errors import TrtcalError
from trtcal.ranges.growth import double, power_of_two
from trtcal.ranges.histogram import FINE_BINS, NUM_BINS, Histogram, HistogramBuilder, abs_max
from trtcal.ranges.thresholds import (
    METHODS,
    entropy,
    entropy_bin,
    entropy_bins,
    last_minimum,
    method,
    minmax,
    mse,
    percentile,
    spelt,
    usages,
)

SHAPES: dict[str, Callable[[np.random.Generator], NDArray[np.float64]]] = {
    "normal": lambda rng: rng.normal(size=3000),
    "laplace": lambda rng: rng.laplace(size=3000),
    "student": lambda rng: rng.standard_t(2, size=3000),
    "one-sided": lambda rng: np.maximum(rng.normal(size=3000), 0),
    "sparse": lambda rng: np.where(rng.random(3000) < 0.99, 0, rng.normal(size=3000)),
    "comb": lambda rng: rng.integers(0, 256, size=3000) / 255,
    "grey": lambda rng: rng.integers(0, 17, size=3000) / 16,
    "two values": lambda rng: np.where(rng.random(3000) < 0.5, 1.0, 0.25),
    "constant": lambda rng: np.full(100, 0.7),
    "uniform": lambda rng: rng.uniform(size=3000),
    "outlier": lambda rng: np.append(rng.normal(size=3000) * 0.001, 50.0),
    "few": lambda rng: rng.normal(size=20),
}


def batch_grid(batches: list[NDArray[np.float32]]) -> Histogram:
    builder = HistogramBuilder(NUM_BINS, double)
    for batch in batches:
        builder.start_batch()
        builder.add(batch, abs_max(batch))
    return builder.build()


def fine(x: NDArray[np.float64]) -> Histogram:
    builder = HistogramBuilder(FINE_BINS, power_of_two)
    array = np.asarray(x, np.float32)
    builder.add(array, abs_max(array))
    return builder.build()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(20))
def test_entropy_is_the_reference_bit_for_bit(shape: str, seed: int) -> None:
    """240 streams; the reference is the slow one that reproduces TensorRT's caches."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-30, 30) if seed % 3 == 0 else rng.uniform(0.5, 2)
    batches = [
        (SHAPES[shape](rng) * scale * rng.uniform(0.7, 1.4)).astype(np.float32) for _ in range(rng.integers(1, 5))
    ]
    if seed % 5 == 0:
        batches.insert(0, np.zeros(50, np.float32))
    reference = oracle.Hist()
    for batch in batches:
        reference.update(batch)
    m = oracle.entropy_bin(reference.h)
    hist = batch_grid(batches)
    assert entropy_bin(hist.counts) == m
    scale32 = entropy(hist) / np.float32(127)
    assert oracle.hexf(scale32) == oracle.hexf(oracle.scale_from_bin(m, reference.R))


def test_the_scale_of_data_up_to_one_that_is_not_clipped_is_the_one_seen_in_public_caches() -> None:
    hist = batch_grid([np.linspace(0, 1, 4097, dtype=np.float32)])
    assert oracle.hexf(entropy(hist) / np.float32(127)) == "3c010a14"
    assert oracle.hexf(minmax(hist) / np.float32(127)) == "3c010204"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_threshold_is_positive_and_at_most_half_a_bin_above_the_limit(name: str, shape: str) -> None:
    hist = fine(SHAPES[shape](np.random.default_rng(0)))
    amax = METHODS[name](hist)
    assert amax.dtype == np.float32
    assert 0 < amax <= np.float32(hist.limit * (NUM_BINS + 0.5) / NUM_BINS)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("power", [-60, -1, 1, 60])
def test_thresholds_scale_with_the_data_by_powers_of_two_exactly(name: str, power: int) -> None:
    x = np.random.default_rng(1).laplace(size=3000).astype(np.float32)
    for make in (fine, lambda x: batch_grid([x.astype(np.float32)])):
        assert METHODS[name](make(x * 2.0**power)) == METHODS[name](make(x)) * np.float32(2.0**power)


@given(shape=st.sampled_from(sorted(SHAPES)), seed=st.integers(0, 99), power=st.integers(-100, 128))
@example(shape="laplace", seed=0, power=128)
@settings(max_examples=30)
def test_thresholds_scale_exactly_as_far_as_float32_goes(shape: str, seed: int, power: int) -> None:
    x = SHAPES[shape](np.random.default_rng(seed)).astype(np.float32)
    x = np.ldexp(x, -np.frexp(np.abs(x).max())[1])  # largest |x| in [0.5, 1): 2**128 times that is finite
    for make in (fine, lambda x: batch_grid([x.astype(np.float32)])):
        unit, scaled = make(x), make(np.ldexp(x, power))
        for name, threshold in METHODS.items():
            with np.errstate(over="ignore"):  # half a bin more than the largest float32 is inf
                assert threshold(scaled) == np.ldexp(threshold(unit), power), name


@pytest.mark.parametrize("largest", [2.0**-149, 2.0**-126, 2.0**127, float(np.finfo(np.float32).max)])
@pytest.mark.parametrize("name", METHODS)
def test_thresholds_of_the_largest_and_the_least_floats_are_no_accidents(name: str, largest: float) -> None:
    for x in ([largest], [largest, largest / 2, 0], [-largest, 0, 0, 0, 0, 0, 0, 0], [largest, *np.linspace(0, 1, 99)]):
        for hist in (fine(np.array(x)), batch_grid([np.array(x, np.float32)])):
            amax = METHODS[name](hist)
            assert amax.dtype == np.float32
            assert amax >= 0
            if not METHODS[name].depends_on_batches:  # those of TensorRT's may lie half a bin above
                assert amax <= hist.amax
            elif largest < 2.0**127:
                assert np.isfinite(amax)


@pytest.mark.parametrize("name", METHODS)
def test_a_tensor_of_zeros_has_the_threshold_zero(name: str) -> None:
    assert METHODS[name](fine(np.zeros(9))) == 0


@pytest.mark.parametrize("num_bins", [1, 2, 64, 128, 256])
def test_entropy_refuses_fewer_bins_than_it_keeps(num_bins: int) -> None:
    hist = Histogram(np.ones(num_bins, np.int64), 1.0, np.float32(1))
    if num_bins < 128:
        with pytest.raises(ValueError, match=f"entropy keeps at least 128 bins, but the histogram has {num_bins}"):
            entropy(hist)
    else:
        assert 0.5 < entropy(hist) <= 1 + 0.5 / num_bins


@pytest.mark.parametrize("threshold", [entropy, mse])
def test_a_finer_histogram_is_merged_to_tensorrts_bins(threshold: Callable[[Histogram], np.float32]) -> None:
    for seed in range(5):
        hist = fine(np.random.default_rng(seed).normal(size=5000))
        assert threshold(hist) == threshold(hist.coarse(NUM_BINS))


def only(bins: dict[int, int]) -> NDArray[np.int64]:
    counts = np.zeros(NUM_BINS, np.int64)
    counts[list(bins)] = list(bins.values())
    return counts


@pytest.mark.parametrize(
    "counts",
    [
        only({2047: 5}),
        only({0: 99, 2047: 1}),
        only({1: 1}),
        only({0: 7, 1: 5000, 2: 1, 300: 90, 301: 5, 2047: 1}),
        only({0: 7, 1: 1, 2: 5000, 300: 90, 301: 5, 2047: 1}),
        only({0: 1, 2: 9000, 130: 1, 140: 1, 200: 1}),
        # Here bin 1, and no other, has to stand in for bin 0.
        only({1: 82, 2: 835, 166: 462, 1160: 508, 1925: 654}),
        only({1: 2894, 2: 77, 86: 12, 156: 298, 373: 417, 1632: 352, 2013: 783}),
    ],
)
def test_entropy_is_the_reference_where_there_is_little_to_search(counts: NDArray[np.int64]) -> None:
    assert entropy_bin(counts) == oracle.entropy_bin(counts)


def spiky(rng: np.random.Generator) -> NDArray[np.int64]:
    """Counts of few levels, of spikes on a smooth tensor, of values that begin far from zero."""
    counts = np.zeros(NUM_BINS, np.int64)
    many = 10 ** rng.integers(0, 9)
    kind = rng.integers(0, 4)
    if kind == 0:
        places = rng.integers(0, NUM_BINS, rng.integers(1, 8))
        counts[places] = rng.integers(1, 50, places.size) * many
    elif kind == 1:
        counts[rng.choice(NUM_BINS, rng.integers(2, 130), replace=False)] = many  # ties among them
    elif kind == 2:
        lowest = rng.integers(100, 2000)
        counts[lowest:] = rng.integers(0, 9, NUM_BINS - lowest) * many
    else:
        x = np.abs(rng.laplace(size=3000))
        counts += np.bincount(np.minimum((x / x.max() * NUM_BINS).astype(int), NUM_BINS - 1), minlength=NUM_BINS)
        counts[rng.integers(0, NUM_BINS, 6)] += rng.integers(1, 3000, 6) * many
    return counts


@pytest.mark.parametrize("seed", range(60))
def test_entropy_is_the_reference_on_spikes_and_few_levels(seed: int) -> None:
    counts = spiky(np.random.default_rng(seed))
    assert entropy_bin(counts) == oracle.entropy_bin(counts) == rules.bins_kept(counts, rules.Rules())


def test_a_window_of_one_bin_clips_nothing() -> None:
    """Its divergence is 0 whatever lies above; TensorRT never chose one. With two bins it is like any other."""
    assert entropy_bin(only({512: 6400, 1024: 1600, 2047: 400})) == NUM_BINS  # the strides 8, 16, 32 of a YOLO
    assert entropy_bin(only({1500: 10**6, 2047: 1})) == NUM_BINS
    assert entropy_bin(only({127: 1000, 2047: 1})) == NUM_BINS
    assert entropy_bin(only({126: 1000, 127: 10, 2047: 1})) == 128
    for lowest in (512, 1024, 1900):  # begin far from zero, as pages of text on white do
        assert entropy_bin((np.arange(NUM_BINS) >= lowest).astype(int) * 7) == NUM_BINS


def test_the_bin_of_zeros_counts_as_much_as_its_neighbour() -> None:
    rng = np.random.default_rng(0)
    for counts in rng.geometric(0.02, (5, NUM_BINS)) // np.arange(1, NUM_BINS + 1):
        found = entropy_bin(counts)
        counts[0] = 10**9
        assert entropy_bin(counts) == found
    assert entropy_bin(only({0: 10**9})) is None


def test_an_overflowed_limit_gives_inf_rather_than_a_number_that_looks_right() -> None:
    hist = batch_grid([np.array([3e38], np.float32), np.array([3.2e38], np.float32)])
    assert hist.limit == np.inf
    assert entropy(hist) == np.inf


def test_within_a_tie_the_last_minimum_wins() -> None:
    assert last_minimum(np.array([3.0, 1.0, 1.0 - 5e-13, 1.0 - 2e-12, 2.0])) == 3
    assert last_minimum(np.array([3.0, 1.0, 1.0 + 5e-13, 2.0, 1.0, 2.0])) == 4
    assert last_minimum(np.array([1.0 - 9e-13, 1.0 - 6e-13, 1.0, 1.0 + 2e-13])) == 2
    assert last_minimum(np.array([0.0, 1e-12, 2.0])) == 0  # a tie is closer than that
    assert last_minimum(np.array([math.inf, math.inf, 2.0, 3.0])) == 2
    assert last_minimum(np.array([math.inf, math.inf])) == 1


def test_percentile_is_the_upper_edge_of_its_bin() -> None:
    hist = Histogram(np.array([50, 40, 9, 1]), 4.0, np.float32(3.25))
    assert [float(percentile(hist, q)) for q in (1, 50, 50.1, 90, 99, 99.5, 100)] == [
        1,
        1,
        2,
        2,
        3,
        3.25,
        3.25,
    ]


def test_percentile_counts_elements_exactly() -> None:
    """99.9 / 100 is a little more than 0.999 in binary, and as many elements of 1000 are 999 nevertheless."""
    assert 99.9 / 100 * 1000 > 999
    for thousands in (1, 7, 1000, 2**52 // 1000, 2**62 // 1000):
        hist = Histogram(np.array([999 * thousands, thousands - 1, 0, 1]), 4.0, np.float32(3.5))
        assert percentile(hist, 99.9) == 1
        assert percentile(hist, 99.90000001) == (3.5 if thousands == 1 else 2)
        assert percentile(hist, 100) == 3.5


@given(
    hnp.arrays(np.int64, 8, elements=st.just(0) | st.integers(0, 2**59)),
    st.floats(1e-9, 100),
    st.floats(1e-9, 100),
)
def test_percentile_rises_with_q(counts: NDArray[np.int64], one: float, two: float) -> None:
    counts[7] += 1
    hist = Histogram(counts, 8.0, np.float32(7.25))
    low, high = sorted([one, two])
    assert percentile(hist, low) <= percentile(hist, high) <= percentile(hist, 100) == hist.amax
    kept = int(counts[: math.ceil(percentile(hist, low))].sum())
    assert Fraction(kept, hist.total) >= Fraction(str(low)) / 100


def test_percentile_rises_with_q_and_ends_at_the_largest_value() -> None:
    hist = fine(np.random.default_rng(3).standard_t(3, size=20000))
    amax = [percentile(hist, q) for q in (50, 90, 99, 99.9, 99.99, 99.999, 100)]
    assert amax == sorted(amax)
    assert amax[-1] == hist.amax


@pytest.mark.parametrize("q", [0, -1, 100.1, float("nan")])
def test_percentile_out_of_range_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="0 < q <= 100"):
        percentile(fine(np.ones(3)), q)


def test_mse_is_the_least_error_of_all_candidates() -> None:
    x = np.random.default_rng(4).laplace(size=20000)
    hist = fine(x)

    def error(amax: float) -> float:
        step = amax / 127
        return float(np.mean((np.clip(np.rint(np.abs(x) / step), 0, 127) * step - np.abs(x)) ** 2))

    best = min(error(i * hist.limit / NUM_BINS) for i in range(64, NUM_BINS + 1))
    assert error(float(mse(hist))) <= best * 1.01
    assert mse(hist) < hist.amax


@given(st.dictionaries(st.integers(0, NUM_BINS - 1), st.integers(1, 1000), min_size=1, max_size=12))
@example({2047: 1})
@example({0: 500, 2046: 3, 2047: 2})
@example({63: 7})
def test_mse_is_the_first_of_the_candidates_with_the_least_error_of_bin_centres(bins: dict[int, int]) -> None:
    """In whole numbers: 254 times as large as in bins, so that centres and levels are whole."""
    x, number = np.array(list(bins)) * 254 + 127, np.array(list(bins.values()))
    candidates = np.arange(64, NUM_BINS + 1)
    step = 2 * candidates[:, None]
    level = np.minimum((x + step // 2) // step, 127)
    error = ((x - level * step) ** 2 * number).sum(axis=1)
    hist = Histogram(only(bins), float(NUM_BINS), np.float32(NUM_BINS))
    assert mse(hist) == candidates[np.argmin(error)]


@pytest.mark.parametrize("spec", ["entropy", "minmax", "mse", "percentile", "percentile:99.9"])
def test_a_method_is_found_by_its_name(spec: str) -> None:
    hist = fine(np.random.default_rng(5).normal(size=1000))
    name, _, q = spec.partition(":")
    assert method(spec)(hist) == (percentile(hist, float(q)) if q else METHODS[name](hist))


def test_a_method_has_one_way_to_be_written() -> None:
    specs = ["percentile", "percentile:99.99", "percentile:99.990", "percentile:9.999e1"]
    assert {method(spec).name for spec in specs} == {"percentile:99.99"}
    for spec in ("entropy", "minmax", "mse", "percentile:100", "percentile:50"):
        assert method(spec).name == spec


WRONG = ["", "Entropy", "entropy:3", "entropy:", "kl", "percentile:", "percentile:x", "percentile:0", "percentile:101"]


@pytest.mark.parametrize("spec", WRONG)
def test_a_wrong_method_is_refused_with_what_is_right(spec: str) -> None:
    with pytest.raises(ValueError, match=r"choose one of |percentile needs|takes no parameter") as error:
        method(spec)
    assert isinstance(error.value, TrtcalError)
    if "choose one of" in str(error.value):
        assert [text for text in (*METHODS, *usages().values()) if text not in str(error.value)] == []


def test_methods_are_spelt_with_their_parameters() -> None:
    assert {name: usages()[name] for name in ("entropy", "percentile")} == {
        "entropy": "entropy",
        "percentile": "percentile:Q",
    }
    assert {"entropy", "percentile:99.99"} <= set(spelt())
    assert {"entropy", "percentile:99.9", "percentile:99.99", "percentile:99.999"} <= set(spelt(swept=True))
    assert [name for name in (*spelt(), *spelt(swept=True)) if method(name).name != name] == []


def test_many_histograms_are_searched_as_each_by_itself() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([np.zeros(2048), rng.integers(0, 9, 2048), rng.geometric(0.3, 2048) // 3, np.arange(2048) < 700])
    assert entropy_bins(counts) == [entropy_bin(row) for row in counts]
    assert entropy_bins(counts)[0] is None
    counts = np.array([spiky(rng) for _ in range(12)])
    assert entropy_bins(counts) == [entropy_bin(row) for row in counts]


@pytest.mark.parametrize(("q", "meant"), [("0.999", "99.9"), ("0.9999", "99.99"), ("1", "100"), ("1.0", "100")])
def test_a_percentile_that_was_meant_as_a_share_is_refused(q: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"percentile:{q} counts in percent .* did you mean percentile:{meant}\?"):
        method(f"percentile:{q}")

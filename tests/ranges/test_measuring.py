from __future__ import annotations

import numpy as np
import pytest
from replays import samples, stats_of

from trtcal.ranges.histogram import NUM_BINS, Histogram
from trtcal.ranges.measuring import Reference, in_threads, measured, thresholds
from trtcal.ranges.thresholds import entropy, entropy_bin, method, mse
from trtcal.sweep.emulation import read_off

FINE = stats_of(samples()).histogram
EMPTY = Histogram(np.zeros(32768, np.int64), 0.0, np.float32(0))


def below(limit: float) -> np.ndarray:
    return np.append(0, np.cumsum(read_off(FINE)(limit, np.empty(0, int))))


def test_many_histograms_at_once_are_measured_as_each_by_itself() -> None:
    limits = np.array([FINE.limit / 1.37, FINE.limit, FINE.limit * 3.1, FINE.limit * 64, np.inf])
    counts = np.array([read_off(FINE)(limit, np.empty(0, int)) for limit in limits])
    found = measured(FINE, counts, limits, np.full(len(limits), FINE.amax))
    for row, limit in enumerate(limits):
        hist = Histogram(counts[row], limit, FINE.amax)
        m = entropy_bin(hist.counts)
        assert found.m[row] == (-1 if m is None else m)
        assert found.amax[row] == entropy(hist)
        assert found.amax.dtype == np.float32
        assert found.clipped[row] == hist.clipped(float(found.amax[row]))
        assert found.empty[row] == (hist.counts == 0).mean()
        assert (found.js[row], found.emd[row]) == Reference(FINE).distances(below(limit), limit)
    assert found.clipped[0] > 0


def test_a_histogram_of_zeros_has_nothing_to_search_nor_to_clip() -> None:
    counts = np.zeros((1, NUM_BINS), np.int64)
    counts[0, :3] = 5  # whatever they are, a limit of 0 holds zeros alone
    found = measured(FINE, counts, np.zeros(1), np.zeros(1, np.float32))
    assert (found.m[0], found.amax[0], found.clipped[0], found.js[0], found.emd[0]) == (-1, 0, 0, 0, 0)


def test_distances_are_zero_for_the_same_density_and_grow_with_the_limit() -> None:
    reference = Reference(FINE)
    limits = [FINE.limit * factor for factor in (1, 8, 64)]
    same, wide, wider = (reference.distances(below(limit), limit) for limit in limits)
    assert same[0] < wide[0] < wider[0] <= 1
    assert 0 <= same[1] < wide[1] < wider[1]
    assert reference.distances(below(np.inf), np.inf) == (0.0, 0.0)
    assert Reference(EMPTY).distances(below(1.0), 1.0) == (0.0, 0.0)


def test_the_distances_are_those_of_their_definitions() -> None:
    """Mass on the first half of the range against mass on all of it, which can be worked out by hand."""
    fine = Histogram(np.repeat([1, 0], 16384), 1.0, np.float32(0.5))
    js, emd = Reference(fine).distances(np.arange(NUM_BINS + 1) * 8, 1.0)
    assert js == pytest.approx(np.sqrt(0.5 * np.log2(4 / 3) + 0.25 * np.log2(2 / 3) + 0.25))
    assert emd == pytest.approx(0.25 / 0.5, rel=1e-3)


@pytest.mark.parametrize("workers", [1, 3])
def test_thresholds_are_those_of_each_method_and_histogram(workers: int) -> None:
    histograms = [FINE, EMPTY, stats_of(samples(seed=1)).histogram]
    found = thresholds(histograms, ["mse", "percentile:99", "entropy"], workers)
    assert list(found) == ["mse", "percentile:99", "entropy"]
    for name, amax in found.items():
        assert amax.dtype == np.float32
        assert amax.tolist() == [method(name)(hist) for hist in histograms]
    assert thresholds(histograms, [], workers) == {}
    assert thresholds([], ["mse"], workers)["mse"].size == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_keep_the_order_and_hand_on_errors(workers: int) -> None:
    assert in_threads(lambda item: item * 2, range(50), workers) == list(range(0, 100, 2))
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 // item, [1, 0], workers)


@pytest.mark.parametrize("place", [69, 167, 404, 1142, 1621, 1815])
@pytest.mark.parametrize("elements", [1, 12, 7_590_185])
def test_of_candidates_that_are_equally_good_for_a_constant_mse_takes_the_least(place: int, elements: int) -> None:
    counts = np.zeros(NUM_BINS, np.int64)
    counts[place] = elements
    centre = 2 * place + 1  # in half bins, so that all of it is in whole numbers

    def error(candidate: int) -> int:
        # 254 times the distance to the level that is next, or to the last one.
        return min(abs(127 * centre - 2 * level * candidate) for level in range(128))

    best = min(range(64, NUM_BINS + 1), key=error)
    assert mse(Histogram(counts, float(NUM_BINS), np.float32(NUM_BINS))) == best

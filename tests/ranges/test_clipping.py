from __future__ import annotations

import numpy as np
import pytest

from trtcal.ranges.clipping import in_words, unusable_among, why_unusable
from trtcal.ranges.growth import power_of_two
from trtcal.ranges.histogram import FINE_BINS, Histogram, HistogramBuilder, abs_max
from trtcal.ranges.stats import ActivationStats, TensorStats
from trtcal.ranges.thresholds import METHODS, method, spelt


def fine(values: np.ndarray) -> Histogram:
    builder = HistogramBuilder(FINE_BINS, power_of_two)
    builder.add(values.astype(np.float32), abs_max(values.astype(np.float32)))
    return builder.build()


def mostly(zeros: float, above: float) -> Histogram:
    """So many zeros, so many values of 0.5, and the rest, 1."""
    counts = [round(zeros * 10000), round((1 - zeros - above) * 10000), round(above * 10000)]
    return fine(np.repeat([0, 0.25, 0.75], counts))


@pytest.mark.parametrize(("share", "usable"), [(0.25, True), (0.2501, False), (1.0, False)])
def test_a_threshold_that_clips_more_than_a_quarter_of_all_elements_is_unusable(share: float, usable: bool) -> None:
    assert (why_unusable(mostly(0, share), 0.1 if share == 1 else 0.5) is None) == usable


@pytest.mark.parametrize(("share", "usable"), [(0.01, True), (0.0101, False)])
def test_of_an_input_one_hundredth_is_enough(share: float, usable: bool) -> None:
    hist = mostly(0.3, share)
    assert (why_unusable(hist, 0.5, is_input=True) is None) == usable
    assert why_unusable(hist, 0.5) is None


def test_what_is_clipped_by_less_than_a_step_is_as_good_as_rounded() -> None:
    """A tenth of white pixels, 1.0, as photographs have them."""
    pixels = fine(np.concatenate([np.random.default_rng(0).uniform(0, 0.9, 900), np.ones(100)]))
    assert why_unusable(pixels, 0.993, is_input=True) is None
    assert why_unusable(pixels, 0.98, is_input=True) == "clips 10.0% of this input"


def test_zeros_are_not_clipped_and_say_nothing_for_a_threshold() -> None:
    """What a ReLU leaves: 90% zeros. All else clipped is the tensor gone, although it is a tenth of the elements."""
    relu = mostly(0.9, 0.1)
    assert why_unusable(relu, 0.5) == "clips 100.0% of its values that are not zero"
    assert why_unusable(relu, 1.0) is None
    assert why_unusable(mostly(0.9, 0.02), 0.5) is None
    assert why_unusable(fine(np.zeros(9)), 0.0) is None


def test_rare_outliers_are_there_to_be_clipped() -> None:
    """All else is in the first bin, as zeros would be."""
    values = np.concatenate([np.random.default_rng(0).uniform(0, 1, 100000), np.full(9, 1e6)])
    assert why_unusable(fine(values), float(method("percentile:99.99")(fine(values)))) is None


def test_nearly_all_is_not_called_all() -> None:
    values = np.concatenate([np.zeros(1), np.ones(10**5)])
    assert why_unusable(fine(values), 0.1) == "clips 99.9% of its values"
    assert why_unusable(fine(values), 0.1, is_input=True) == "clips 99.9% of this input"


@pytest.mark.parametrize("by", [name for name, row in METHODS.items() if not row.clips])
@pytest.mark.parametrize("values", [np.ones(5), np.arange(9.0), np.array([1e30, 1e-30]), np.zeros(2)])
def test_what_never_clips_is_always_usable(by: str, values: np.ndarray) -> None:
    hist = fine(values)
    assert why_unusable(hist, float(method(by)(hist)), is_input=True) is None


def test_many_trials_are_told_as_one_by_one() -> None:
    rng = np.random.default_rng(1)
    hists = {name: fine(np.maximum(rng.standard_normal(4000), floor)) for name, floor in (("x", -9), ("relu", 0))}
    stats = ActivationStats(
        ("a",), {name: TensorStats(np.array([h.amax]), np.array([1]), h, None) for name, h in hists.items()}
    )
    amax = {
        name: np.array([0.0, 0.3, 0.7, 1.5, float(h.amax), np.inf, *(by(h) for by in map(method, spelt()))])
        for name, h in hists.items()
    }
    found = unusable_among(stats, amax, {"x"})
    assert [len(why) for why in found][:6] == [2, 2, 2, 1, 0, 0]
    for trial, why in enumerate(found):
        for name, hist in hists.items():
            assert why.get(name) == why_unusable(hist, float(amax[name][trial]), is_input=name == "x")


def test_a_list_that_is_cut_says_how_many_more_there_are() -> None:
    assert in_words({"x": "clips 3% of this input"}) == "the threshold of x clips 3% of this input"
    assert in_words({"x": "is bad", "y": "", "z": ""}).endswith("is bad, and 2 more are like it")
    assert in_words({"x": "is bad", "y": ""}).endswith("is bad, and 1 more is like it")

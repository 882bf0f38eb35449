"""Whether a threshold is usable: one that clips much of a tensor is no range for it, whichever method chose it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from trtcal.ranges.histogram import Histogram
from trtcal.ranges.stats import ActivationStats

CLIPS_MUCH = (
    0.01  # share of a tensor's elements; above it a threshold deserves a look, and that of an input is unusable
)
LOST = 0.25  # share above which any threshold is unusable
STEP = 1 / 127  # of a threshold: what lies no further above it is hardly worse off than what is rounded


def why_unusable(hist: Histogram, amax: float, *, is_input: bool = False) -> str | None:
    """Histogram of |x|, its threshold, whether it is of what the model is fed -> why it is unusable; None if it is not.

    A threshold is unusable where it clips more than a quarter of all elements, or of a model's input more than one
    hundredth, by more than one step of INT8: white pixels a little above the threshold are as good as rounded.
    Zeros are never clipped: where more than one hundredth is, a quarter of the elements outside the first
    bin is enough, so that a tensor of mostly zeros does not lose all else unseen. Below one hundredth that is not
    asked, since zeros beside a few values look there like small values beside a few outliers.
    """
    return _why(*_shares(hist, np.array([amax])), is_input)[0]


def unusable_among(
    stats: ActivationStats, amax: Mapping[str, np.ndarray], inputs: Collection[str]
) -> list[dict[str, str]]:
    """Statistics, and by tensor the thresholds of some trials, (trials,) -> by trial, why which tensor's is unusable.

    ``inputs`` names the tensors that are the model's inputs.
    """
    trials = len(next(iter(amax.values()), ()))
    found: list[dict[str, str]] = [{} for _ in range(trials)]
    for name, thresholds in amax.items():
        shares = _shares(stats.tensors[name].histogram, thresholds)
        for trial, why in enumerate(_why(*shares, name in inputs)):
            if why is not None:
                found[trial][name] = why
    return found


def _shares(hist: Histogram, amax: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Histogram, thresholds (n,) -> the share clipped of all elements, and of those outside the first bin, (n,) each.

    Clipped are those in bins that lie wholly more than a step above it.
    """
    amax = np.asarray(amax, np.float64) * (1 + STEP)
    if not hist.total or not hist.limit:
        return np.zeros(amax.shape), np.zeros(amax.shape)
    above = np.append(np.cumsum(hist.counts[::-1])[::-1], 0)
    cut = np.where(amax < hist.limit, amax, hist.limit)  # nor inf
    clipped = above[np.minimum((cut / hist.bin_width).astype(np.intp) + 1, hist.num_bins)]
    clipped = np.where(amax < hist.limit, clipped, 0)
    return clipped / above[0], clipped / max(int(above[1]), 1)


def _why(of_all: np.ndarray, of_some: np.ndarray, is_input: bool) -> list[str | None]:
    found: list[str | None] = []
    for whole, some in zip(of_all.tolist(), of_some.tolist(), strict=True):
        if whole > LOST or (is_input and whole > CLIPS_MUCH):
            found.append(f"clips {_percent(whole)} of {'this input' if is_input else 'its values'}")
        elif whole > CLIPS_MUCH and some > LOST:
            found.append(f"clips {_percent(some)} of its values that are not zero")
        else:
            found.append(None)
    return found


def _percent(share: float) -> str:
    """A share for people, rounded down: what is not all is not called 100%."""
    return f"{math.floor(1000 * share) / 10:.1f}%"


def in_words(unusable: Mapping[str, str]) -> str:
    """Tensors and why their thresholds are unusable, one at least -> the first of them, and how many more there are."""
    name, why = next(iter(unusable.items()))
    others = len(unusable) - 1
    return f"the threshold of {name} {why}" + (f", and {others} more {_are(others)} like it" if others else "")


def _are(count: int) -> str:
    return "is" if count == 1 else "are"

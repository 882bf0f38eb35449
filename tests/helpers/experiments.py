"""Data of one tensor each, made so that its scale tells TensorRT's rules apart, and what a scale says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from acceptance import rules

from trtcal.ranges.growth import double
from trtcal.ranges.histogram import NUM_BINS, Histogram, HistogramBuilder, abs_max
from trtcal.ranges.thresholds import entropy

WIDTH = 4096
Batches = Sequence[np.ndarray]


@dataclass(frozen=True)
class Experiment:
    """Data of one tensor and the rules that its scale tells apart."""

    question: str
    batches: Callable[[], list[np.ndarray]]
    settles: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.question


def normal(seed: int, spread: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(4, 1, 1, WIDTH)) * spread).astype(np.float32)


def _uniform(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, size=(4, 1, 1, WIDTH)).astype(np.float32)


def _uniform_batches(seed: int) -> list[np.ndarray]:
    """Eight batches, the largest value not in the first: the range doubles, and half of the bins are empty."""
    batches = [_uniform(100 * seed + number) for number in range(8)]
    return sorted(batches, key=lambda batch: float(batch.max()))


def _peak(values: np.ndarray, amax: float, share: float = 0.0) -> np.ndarray:
    """The values below ``amax``, one element at it, and a share of the others too."""
    values = np.clip(values, -0.999 * amax, 0.999 * amax).astype(np.float32)
    values[np.random.default_rng(1).random(values.shape) < share] = amax
    values.flat[7] = amax
    return values


def _spike(seed: int, share: float) -> np.ndarray:
    """Half-normal values, a share of them in bin 1 and half as many zeros."""
    rng = np.random.default_rng(seed)
    values = np.abs(rng.normal(size=4 * WIDTH)).astype(np.float32)
    amax = values.max()
    values[rng.random(values.size) < share] = np.float32(1.5 / NUM_BINS) * amax
    values[rng.random(values.size) < share / 2] = 0
    values[7] = amax
    return values.reshape(4, 1, 1, WIDTH)


def _edges() -> np.ndarray:
    """Half-normal values, each on the lower edge of a bin, where the last bit of a division decides.

    2.9: of the ranges tried, one for which a product with the inverse moves half of them.
    """
    amax = 2.9
    bin_of = np.abs(np.random.default_rng(2).normal(size=4 * WIDTH)) * 500
    values: np.ndarray = (np.minimum(bin_of.astype(int), NUM_BINS - 1) * amax / NUM_BINS).astype(np.float32)
    values[7] = amax
    return values.reshape(4, 1, 1, WIDTH)


def _in_bins(counts: np.ndarray) -> np.ndarray:
    """Values up to 1 that fill bins so often."""
    values = np.repeat((np.arange(NUM_BINS) + 0.5) / NUM_BINS, counts).astype(np.float32)
    values[-1] = 1.0
    return values.reshape(4, 1, 1, WIDTH)


def _crowded() -> np.ndarray:
    """Counts made so that the search keeps the fewest bins it may: 64, 127, 128 each beat all that follow."""
    counts = np.zeros(NUM_BINS, np.int64)
    counts[:63] = np.random.default_rng(50).integers(20, 400, 63)
    counts[63], counts[64:126], counts[126], counts[127] = 2000, 1, 8, 2
    counts[[1500, 1700, 2047]] = 2, 1, 1
    counts[5] += 4 * WIDTH - counts.sum()
    return _in_bins(counts)


def _page(lowest: Sequence[int]) -> np.ndarray:
    """Mostly white, with nothing near black: what the lowest bins in use hold, greys, a spike and its neighbour."""
    counts = np.zeros(NUM_BINS, np.int64)
    counts[900 : 900 + 8 * len(lowest) : 8] = lowest
    counts[1100:2040] = np.random.default_rng(4).integers(0, 9, 940)
    counts[[2046, 2047]] = 200, 4 * WIDTH - 200 - counts.sum()
    return _in_bins(counts)


def _levels(count: int, largest: float) -> np.ndarray:
    return (np.arange(4 * WIDTH) % count * (largest / (count - 1))).astype(np.float32).reshape(4, 1, 1, WIDTH)


ZERO = np.zeros((4, 1, 1, WIDTH), np.float32)

# What the histograms in tests/data settle is not asked again, but for one control of each part.
EXPERIMENTS = (
    # First, because a cache of TensorRT 10.3 over such data, whose seed nobody knows, has a threshold (m = 1248) that
    # no simulation gives.
    *(
        Experiment(f"uniform, and a later batch has the largest value, seed {seed}", partial(_uniform_batches, seed))
        for seed in range(4)
    ),
    Experiment(
        "control: Laplace, one batch",
        lambda: [np.random.default_rng(18).laplace(size=(4, 1, 1, WIDTH)).astype(np.float32)],
    ),
    Experiment(
        "control: growth, maxima 1.54, then 2.4",
        lambda: [_peak(normal(7), 1.54), _peak(normal(8), 2.4)],
        ("growth",),
    ),
    Experiment("index: every value on the edge of a bin", lambda: [_edges()], ("index",)),
    Experiment("zero bin: a tenth in bin 1, some zeros", lambda: [_spike(2, 0.1)], ("zero_bin",)),
    Experiment("zero bin: a third in bin 1, more zeros", lambda: [_spike(0, 0.3)], ("zero_bin",)),
    Experiment("start: the fewest bins are the best", lambda: [_crowded()], ("start",)),
    Experiment(
        "merge: uniform, one ulp above in the last of 4 batches",
        lambda: [
            *(_peak(_uniform(seed), 1.0) for seed in range(3)),
            _peak(_uniform(3), np.nextafter(np.float32(1), np.float32(2))),
        ],
        ("merge",),
    ),
    Experiment("first batch all zero, then maximum 0.7", lambda: [ZERO, _peak(normal(13), 0.7)], ("zero_batch",)),
    Experiment("ties: five levels, doubled once", lambda: [_levels(5, 1.0), _levels(5, 1.25)], ("ties",)),
    Experiment("windows: two bins cost least", lambda: [_page((1, 30))], ("least_bins",)),
    Experiment("windows: five bins cost least", lambda: [_page((1, 1, 1, 1, 60))], ("least_bins",)),
)


def our_histogram(batches: Batches) -> Histogram:
    """Batches of one tensor -> TensorRT's histogram as trtcal counts it."""
    builder = HistogramBuilder(NUM_BINS, double)
    for batch in batches:
        builder.start_batch()
        builder.add(batch, abs_max(batch))
    return builder.build()


def our_scale(batches: Batches, algorithm: str = "EntropyCalibration2") -> np.float32:
    """Batches of one tensor -> the scale that trtcal gives."""
    histogram = our_histogram(batches)
    amax = histogram.amax if algorithm == "MinMaxCalibration" else entropy(histogram)
    return np.float32(amax) / np.float32(127)


def check(batches: Batches, got: np.float32 | None) -> None:
    """Batches of one tensor and the scale that TensorRT wrote -> AssertionError unless it is ours to the last bit.

    The message names the bins that both keep, and every change of one rule that would give TensorRT's.
    """
    expected, limit = our_scale(batches), our_histogram(batches).limit
    if got == expected:
        return
    if got is None:
        raise AssertionError(f"the cache has no scale for x; ours is {hexadecimal(expected)}")
    explained = [name for name, scale in scales_by_broken_rules(batches).items() if scale == got]
    raise AssertionError(
        f"TensorRT's scale is {hexadecimal(got)}, {bins(got, limit)} bins of [0, {limit:g}), and ours "
        f"{hexadecimal(expected)}, {bins(expected, limit)} bins; explained by {', '.join(explained) or 'no rule'}"
    )


_broken: dict[tuple[bytes, ...], dict[str, np.float32]] = {}


def scales_by_broken_rules(batches: Batches) -> dict[str, np.float32]:
    """Batches of one tensor -> for every change of one rule the scale that it would give; found once."""
    key = tuple(batch.tobytes() for batch in batches)
    if key not in _broken:
        _broken[key] = {name: rules.scale(batches, other) for name, other in rules.Rules().broken()}
    return _broken[key]


def bins(scale: np.float32, limit: float) -> float:
    """A scale -> its threshold in bins over [0, limit): m + 0.5 where m are kept."""
    return round(float(scale) * 127 * NUM_BINS / limit, 4) if limit else 0.0


def hexadecimal(scale: np.float32 | None) -> str | None:
    """A scale as a cache has it."""
    return None if scale is None else f"{np.float32(scale).view(np.uint32):x}"

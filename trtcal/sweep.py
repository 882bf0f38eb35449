"""The batch-size sweep: one pass's statistics -> what every batch size, order and method would have given.

Knows neither ONNX Runtime nor TensorRT: how a set of scales performs is asked of a ``judge``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtcal.emulation import RULES, Replay, Shape, groups, limits, replay, resampled
from trtcal.histogram import NUM_BINS, Histogram
from trtcal.stats import ActivationStats, TensorStats
from trtcal.thresholds import entropy, entropy_bin
from trtcal.thresholds import method as threshold_method

logger = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
METHODS = ("entropy", "minmax", "percentile:99.9", "percentile:99.99", "percentile:99.999", "mse")
SEEDS = 5
INVARIANT = ("power-of-two", "exact")  # growth rules that no batch size and no order changes
COMPARED_BINS = 8192  # grid on which histograms are compared


@dataclass(frozen=True, order=True)
class Arrangement:
    """How samples reach TensorRT: everything that its histograms depend on besides the samples themselves."""

    batch_size: int
    order: str
    seed: int | None
    growth: str = "double"


@dataclass(frozen=True, eq=False)
class Measures:
    """What an arrangement makes of each tensor's histogram; arrays of shape (tensors,).

    ``first_amax``: largest |x| of the first batch. ``limit``: of the final histogram. ``doublings``: log2 of
    its growth. ``last_growth``: batch number of the last growth, -1 for none. ``fell_back``: the rule was
    undefined and doubled instead. ``slack``: limit / largest |x|. ``empty``: share of empty bins. ``m``: bins
    that entropy keeps, -1 where there is nothing to search. ``amax``: entropy's threshold. ``clipped``: share
    of elements above it. ``change``: amax / the batch-invariant one - 1. ``js``: Jensen-Shannon distance
    (base 2, 0..1) and ``emd``: earth mover's distance (in units of the largest |x|), both to the histogram
    that knows no batches.
    """

    first_amax: np.ndarray
    limit: np.ndarray
    doublings: np.ndarray
    last_growth: np.ndarray
    fell_back: np.ndarray
    slack: np.ndarray
    empty: np.ndarray
    m: np.ndarray
    amax: np.ndarray
    clipped: np.ndarray
    change: np.ndarray
    js: np.ndarray
    emd: np.ndarray


@dataclass(frozen=True, eq=False)
class Judgement:
    """How a set of scales performs, a value per sample each, (samples,), or None for what was not asked.

    ``accuracy``: of the metric, one value where it judges the set as a whole. ``agreement``: 1.0 where the answer is
    FP32's. ``sqnr_db`` is one number.
    """

    accuracy: np.ndarray | None = None
    agreement: np.ndarray | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """One configuration and what came of it.

    ``amax`` is (tensors,) float32. ``error`` is the text of what went wrong while judging, None if nothing did.
    """

    arrangement: Arrangement
    method: str
    amax: np.ndarray
    judgement: Judgement | None = None
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Sweep:
    """All trials, the measures of every arrangement, and the batch-invariant thresholds by method.

    ``tensors`` names the rows of all arrays. ``exact`` says whether histograms were counted for their limits
    or read off the fine histogram; then ``off`` is how far the replay of the pass's own batches is from the
    thresholds that pass itself gave, |amax / exact - 1|, (tensors,), None where there is nothing to compare.
    ``metric`` names what accuracy is measured by; more is better.
    """

    tensors: tuple[str, ...]
    samples: tuple[str, ...]
    measures: Mapping[Arrangement, Measures]
    trials: tuple[Trial, ...]
    invariant: Mapping[str, np.ndarray]
    exact: bool
    off: np.ndarray | None = None
    partial: str = "pad"
    metric: str = "top1"
    notes: tuple[str, ...] = field(default=())


Judge = Callable[[Mapping[str, np.float32]], Judgement]
"""Tensor -> amax; how the model performs with these ranges."""


# --- orders


def _given(stats: ActivationStats, seed: int) -> np.ndarray:
    return np.arange(len(stats.samples))


def _shuffled(stats: ActivationStats, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(len(stats.samples))


def _largest_first(stats: ActivationStats, seed: int) -> np.ndarray:
    return np.argsort(-loudness(stats), kind="stable")


def _largest_last(stats: ActivationStats, seed: int) -> np.ndarray:
    return np.argsort(loudness(stats), kind="stable")


ORDERS: dict[str, Callable[[ActivationStats, int], np.ndarray]] = {
    "given": _given,
    "shuffled": _shuffled,
    "largest-first": _largest_first,
    "largest-last": _largest_last,
}


def loudness(stats: ActivationStats) -> np.ndarray:
    """How large a sample's activations are among all: mean over tensors of its maximum / the tensor's, (samples,)."""
    maxima = np.array([tensor.sample_amax for tensor in usable(stats).values()], np.float64)
    return np.asarray((maxima / np.maximum(maxima.max(axis=1, keepdims=True), 1e-300)).mean(axis=0))


def usable(stats: ActivationStats) -> dict[str, TensorStats]:
    """Tensors that have a range at all: not the masks, which hold inf."""
    return {name: tensor for name, tensor in stats.tensors.items() if np.isfinite(tensor.amax)}


def arrangements(
    batch_sizes: Sequence[int], orders: Sequence[str], seeds: int, growths: Sequence[str], samples: int
) -> tuple[list[Arrangement], list[str]]:
    """The grid, and a sentence about whatever of it makes no sense for this many samples."""
    for name in orders:
        if name not in ORDERS:
            raise ValueError(f"unknown order {name!r}; choose among {', '.join(ORDERS)}")
    for name in growths:
        if name not in RULES:
            raise ValueError(f"unknown growth rule {name!r}; choose among {', '.join(RULES)}")
    if not batch_sizes or min(batch_sizes) < 1 or seeds < 1:
        raise ValueError("batch sizes and the number of seeds are at least 1")
    notes = []
    fitting = [size for size in dict.fromkeys(batch_sizes) if size <= samples]
    if not fitting:
        raise ValueError(f"there are {samples} samples, fewer than the smallest batch size, {min(batch_sizes)}")
    if len(fitting) < len(set(batch_sizes)):
        left = sorted(set(batch_sizes) - set(fitting))
        notes.append(f"batch sizes {', '.join(map(str, left))} are left out: there are only {samples} samples")
    grid = [
        Arrangement(size, order, seed, growth)
        for growth in dict.fromkeys(growths)
        for size in fitting
        for order in dict.fromkeys(orders)
        for seed in (range(seeds) if order == "shuffled" else [None])
    ]
    return grid, notes


# --- the sweep


def sweep(
    stats: ActivationStats,
    grid: Sequence[Arrangement],
    methods: Sequence[str] = METHODS,
    *,
    partial: str = "pad",
    streamed_batch_size: int | None = None,
    judge: Judge | None = None,
    metric: str = "top1",
    shapes: Mapping[str, Shape] | None = None,
    done: Mapping[bytes, Judgement] | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    notes: Sequence[str] = (),
) -> Sweep:
    """Statistics of a pass and a grid of arrangements -> thresholds and histograms of each, and how they perform.

    ``shapes`` are the exact counts of a second pass (:mod:`trtcal.exact`) by tensor. Without them,
    ``streamed_batch_size``, the batch size of the pass, lets the replay be checked against it. Each *distinct*
    set of ranges is judged once; ``done`` are judgements that an interrupted sweep left, by the bytes of the
    ranges. A judge that fails makes a row with its error. ValueError for an unknown method.
    """
    tensors = usable(stats)
    rules = {name: threshold_method(name) for name in methods}
    invariant = {
        name: np.array([rule(tensor.histogram) for tensor in tensors.values()], np.float32)
        for name, rule in rules.items()
    }
    reference = invariant.get("entropy")
    if reference is None:
        reference = np.array([entropy(tensor.histogram) for tensor in tensors.values()], np.float32)
    measures: dict[Arrangement, Measures] = {}
    trials: list[Trial] = []
    judged: dict[bytes, Judgement | str] = dict(done or {})
    seen: _Seen = {name: {} for name in tensors}
    exact = shapes is not None
    if shapes is None:
        shapes = {name: _remembered(tensor) for name, tensor in tensors.items()}
    for arrangement in grid:
        order = ORDERS[arrangement.order](stats, arrangement.seed or 0)
        replays = {
            name: replay(
                tensor,
                order,
                arrangement.batch_size,
                arrangement.growth,
                partial=partial,
                shape=shapes[name],
            )
            for name, tensor in tensors.items()
        }
        measured = measures[arrangement] = _measure(tensors, replays, reference, seen)
        for name in rules:
            if name == "entropy":
                amax = measured.amax
            elif name == "minmax":  # the control: through the batches, and yet the same for all of them
                amax = np.array([made.histogram.amax for made in replays.values()], np.float32)
            else:
                amax = invariant[name]
            trial = _judged(Trial(arrangement, name, amax), tuple(tensors), judge, judged)
            trials.append(trial)
            on_trial(trial)
    off = None
    if not exact and streamed_batch_size is not None:
        off = _off(stats, tensors, streamed_batch_size, partial)
    return Sweep(
        tuple(tensors),
        stats.samples,
        measures,
        tuple(trials),
        invariant,
        exact,
        off,
        partial,
        metric,
        tuple(notes),
    )


def _judged(
    trial: Trial,
    tensors: tuple[str, ...],
    judge: Judge | None,
    judged: dict[bytes, Judgement | str],
) -> Trial:
    if judge is None:
        return trial
    key = trial.amax.tobytes()
    if key not in judged:
        try:
            judged[key] = judge(dict(zip(tensors, trial.amax, strict=True)))
        except Exception as error:  # one configuration's failure is a row, not the end of the others
            logger.warning("%s in batches of %d: %s", trial.method, trial.arrangement.batch_size, error)
            judged[key] = f"{type(error).__name__}: {error}"
    found = judged[key]
    if isinstance(found, str):
        return Trial(trial.arrangement, trial.method, trial.amax, None, found)
    return Trial(trial.arrangement, trial.method, trial.amax, found)


def _remembered(tensor: TensorStats) -> Shape:
    """The shape on a limit, read off the fine histogram once per limit."""
    known: dict[float, np.ndarray] = {}

    def shape(limit: float, rows: np.ndarray) -> np.ndarray:
        if limit not in known:
            known[limit] = resampled(tensor.histogram, limit).counts
        return known[limit]

    return shape


_Seen = dict[str, dict[bytes, tuple[Any, ...]]]
"""Tensor -> what is known of a histogram of it: many arrangements lead to the same one."""


def _measure(
    tensors: Mapping[str, TensorStats], replays: Mapping[str, Replay], reference: np.ndarray, seen: _Seen
) -> Measures:
    rows: list[tuple[Any, ...]] = []
    for (name, made), invariant in zip(replays.items(), reference, strict=True):
        hist, path = made.histogram, made.trajectory
        key = np.float64(hist.limit).tobytes() + hist.counts.tobytes()
        if key not in seen[name]:
            seen[name][key] = _shape_measures(tensors[name], hist, float(invariant))
        last = path.last_growth
        rows.append(
            (
                path.first_amax,
                path.limit,
                path.doublings,
                -1 if last is None else last,
                path.fell_back,
                path.limit / float(hist.amax) if hist.amax else 1.0,
                *seen[name][key],
            )
        )
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Measures(*columns)


def _shape_measures(tensor: TensorStats, hist: Histogram, invariant: float) -> tuple[Any, ...]:
    m = entropy_bin(hist.counts) if hist.limit else None
    amax = np.float32(hist.amax) if m is None else entropy(hist, m)
    return (
        float((hist.counts == 0).mean()),
        -1 if m is None else m,
        amax,
        hist.clipped(float(amax)),
        float(amax) / invariant - 1 if invariant else 0.0,
        *distances(tensor.histogram, hist),
    )


def _off(stats: ActivationStats, tensors: Mapping[str, TensorStats], batch_size: int, partial: str) -> np.ndarray:
    rows = np.arange(len(stats.samples))
    off = []
    for tensor in tensors.values():
        exact = 0.0 if tensor.streamed is None else float(entropy(tensor.streamed))
        made = replay(tensor, rows, batch_size, stats.growth, partial=partial)
        off.append(abs(float(entropy(made.histogram)) / exact - 1) if exact else 0.0)
    return np.array(off)


def distances(fine: Histogram, coarse: Histogram) -> tuple[float, float]:
    """Batch-invariant and TensorRT's histogram of the same elements -> Jensen-Shannon and earth mover's distance.

    Both are taken as densities, constant within a bin, on 8192 bins over the batch-invariant range. The first is
    the square root of the divergence to base 2, 0..1 (Endres and Schindelin, 2003); the second is the area
    between the cumulative distributions, in units of the largest |x|.
    """
    if not fine.limit or not coarse.limit or not fine.total or not coarse.total or np.isinf(coarse.limit):
        return 0.0, 0.0
    fine = fine.coarse(COMPARED_BINS)
    p = fine.counts / fine.total
    spread = np.interp(
        np.arange(COMPARED_BINS + 1) * fine.bin_width,
        np.arange(NUM_BINS + 1) * coarse.bin_width,
        np.concatenate([[0], np.cumsum(coarse.counts)]) / coarse.total,
    )
    q = np.diff(spread)
    middle = (p + q) / 2
    divergence = sum(float((part[part > 0] * np.log2(part[part > 0] / middle[part > 0])).sum()) for part in (p, q)) / 2
    apart = np.abs(np.cumsum(p) - spread[1:]).sum() * fine.bin_width / float(fine.amax)
    return float(np.sqrt(max(divergence, 0.0))), float(apart)


def limits_of(stats: ActivationStats, grid: Sequence[Arrangement], partial: str = "pad") -> dict[str, set[float]]:
    """Every limit that the grid leads to, by tensor: what a second pass has to count on."""
    found: dict[str, set[float]] = {name: set() for name in usable(stats)}
    for arrangement in grid:
        order = ORDERS[arrangement.order](stats, arrangement.seed or 0)
        for name, tensor in usable(stats).items():
            path = limits(tensor, order, arrangement.batch_size, arrangement.growth, partial=partial)[1]
            if path.limit:
                found[name].add(path.limit)
    return found


def uneven_samples(stats: ActivationStats, grid: Sequence[Arrangement], partial: str = "pad") -> set[int]:
    """Samples that some arrangement does not use exactly once, because of its last batch."""
    uneven: set[int] = set()
    for arrangement in grid:
        order = ORDERS[arrangement.order](stats, arrangement.seed or 0)
        rows = np.concatenate(groups(order, arrangement.batch_size, partial))
        uneven |= set(np.flatnonzero(np.bincount(rows, minlength=len(stats.samples)) != 1).tolist())
    return uneven

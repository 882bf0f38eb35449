"""The batch-size sweep: one pass's statistics -> what every batch size, order and method would have given.

Knows neither ONNX Runtime nor TensorRT: how a set of ranges performs is asked later (:mod:`trtcal.sweep.judge`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trtcal.errors import SettingError, StatsError
from trtcal.files.brief import brief
from trtcal.ranges.clipping import in_words, unusable_among
from trtcal.ranges.growth import growth_rule
from trtcal.ranges.histogram import Histogram
from trtcal.ranges.measuring import MEASURED, Measured, in_threads, measured, thresholds
from trtcal.ranges.stats import ActivationStats, TensorStats
from trtcal.ranges.thresholds import Method, entropy, method, spelt
from trtcal.sweep.emulation import RULES, Paths, Shape, groups, lowered, paths, read_off


@dataclass(frozen=True, order=True)
class Configuration:
    """How samples reach TensorRT: everything that its histograms depend on besides the samples themselves."""

    batch_size: int
    order: str
    seed: int | None
    growth: str = "double"


@dataclass(frozen=True, eq=False)
class Measures:
    """What a configuration makes of each tensor's histogram; arrays of shape (tensors,).

    ``first_amax``: largest |x| of the first batch. ``limit``: of the final histogram. ``doublings``: log2 of
    its growth. ``last_growth``: batch number of the last growth, -1 for none. ``fell_back``: the rule was
    undefined and doubled instead. ``slack``: limit / largest |x|. ``empty``: share of empty bins. ``m``: bins
    that entropy keeps, -1 where there is nothing to search. ``amax``: entropy's threshold. ``clipped``: share
    of elements above it. ``change``: amax / the batch-invariant one - 1. ``js``: Jensen-Shannon distance
    (base 2, 0..1) and ``emd``: earth mover's distance (in units of the largest |x|), both to the histogram
    that does not depend on batches.
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

    __repr__ = brief


@dataclass(frozen=True, eq=False)
class Judgement:
    """How a set of scales performs, a value per sample each, (samples,), or None for what was not asked.

    ``accuracy``: of the metric, one value where it judges the set as a whole. ``agreement``: 1.0 where the answer is
    FP32's. ``sqnr_db`` is one number, of one output, and ``noise`` what it is made of: the power of the difference from
    FP32 in each sample over FP32's mean power per sample, so that ``sqnr_db`` is -10 log10 of its mean. ``samples``: on
    how many of the samples, None where the judge does not say; FP32's mean power is that of all.
    """

    accuracy: np.ndarray | None = None
    agreement: np.ndarray | None = None
    sqnr_db: float | None = None
    noise: np.ndarray | None = None
    samples: int | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """One configuration and what came of it.

    ``amax`` is (tensors,) float32. ``error`` is the text of what went wrong while judging, None if nothing did.
    ``unusable`` says of which tensors the threshold is no range (:mod:`trtcal.ranges.clipping`), None where of none.
    ``dropped`` says why it was judged on a part of the samples, or on none; ``judged_as``, which other trial's
    judgement it has, since their thresholds hardly differ (:mod:`trtcal.sweep.race`).
    """

    configuration: Configuration
    method: str
    amax: np.ndarray
    judgement: Judgement | None = None
    error: str | None = None
    unusable: str | None = None
    dropped: str | None = None
    judged_as: str | None = None

    __repr__ = brief


@dataclass(frozen=True, eq=False)
class Sweep:
    """All trials, the measures of every configuration, and the batch-invariant thresholds by method.

    ``tensors`` names the rows of all arrays. ``exact`` says whether histograms were counted for their limits
    or read off the fine histogram; then ``off`` is how far the replay of the pass's own batches is from the
    thresholds that pass itself gave, |amax / exact - 1|, (tensors,), None where there is nothing to compare.
    ``metric`` names what accuracy is measured by; more is better.
    """

    tensors: tuple[str, ...]
    samples: tuple[str, ...]
    measures: Mapping[Configuration, Measures]
    trials: tuple[Trial, ...]
    invariant: Mapping[str, np.ndarray]
    exact: bool
    off: np.ndarray | None = None
    partial: str = "pad"
    metric: str = "top1"
    notes: tuple[str, ...] = field(default=())

    __repr__ = brief


def relative_change(sweep: Sweep, trial: Trial) -> np.ndarray:
    """How far a trial's thresholds are from the batch-invariant ones of its method, |amax / those - 1|, (tensors,)."""
    invariant = sweep.invariant[trial.method].astype(np.float64)
    different = (invariant > 0) & (trial.amax != invariant)  # and not both inf
    ratio = np.divide(trial.amax, invariant, out=np.ones_like(invariant), where=different)
    return np.asarray(np.abs(ratio - 1))


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


def check_grid(
    batch_sizes: Sequence[int], orders: Sequence[str], seeds: int, growths: Sequence[str], methods: Sequence[str] = ()
) -> None:
    """What a sweep is to compare -> ValueError for a name that is none and a number below 1."""
    for name in orders:
        if name not in ORDERS:
            raise SettingError(f"unknown order {name!r}; choose among {', '.join(ORDERS)}")
    for name in growths:
        growth_rule(name, RULES)
    if min(batch_sizes, default=1) < 1 or seeds < 1:
        raise ValueError("batch sizes and the number of seeds are at least 1")
    distinct_methods(methods)


def configurations(
    batch_sizes: Sequence[int], orders: Sequence[str], seeds: int, growths: Sequence[str], samples: int
) -> tuple[list[Configuration], list[str]]:
    """The grid, and a sentence about whatever of it makes no sense for this many samples."""
    check_grid(batch_sizes, orders, seeds, growths)
    if not batch_sizes:
        raise ValueError("batch sizes and the number of seeds are at least 1")
    notes = []
    fitting = [size for size in dict.fromkeys(batch_sizes) if size <= samples]
    if not fitting:
        raise ValueError(f"there are {samples} samples, fewer than the smallest batch size, {min(batch_sizes)}")
    if len(fitting) < len(set(batch_sizes)):
        left = sorted(set(batch_sizes) - set(fitting))
        notes.append(f"batch sizes {', '.join(map(str, left))} are left out: there are only {samples} samples")
    grid = [
        Configuration(size, order, seed, growth)
        for growth in dict.fromkeys(growths)
        for size in fitting
        for order in dict.fromkeys(orders)
        for seed in (range(seeds) if order == "shuffled" else [None])
    ]
    return grid, notes


def distinct_methods(specs: Sequence[str] | None = None) -> tuple[list[Method], list[str]]:
    """Methods as they were given, by default every one -> each of them once, and a sentence about those merged.

    SettingError for one that there is not.
    """
    given: dict[str, list[str]] = {}
    for spec in spelt(swept=True) if specs is None else specs:
        given.setdefault(method(spec).name, []).append(spec)
    notes = []
    for name, same in given.items():
        if len(set(same)) > 1:
            notes.append(f"{' and '.join(dict.fromkeys(same))} are the same method, which is compared once")
        elif len(same) > 1:
            notes.append(f"method {name} was given {len(same)} times and is compared once")
    return [method(name) for name in given], notes


# --- the sweep


def sweep(
    stats: ActivationStats,
    grid: Sequence[Configuration],
    methods: Sequence[str] | None = None,
    *,
    partial: str = "pad",
    streamed_batch_size: int | None = None,
    metric: str = "top1",
    shapes: Mapping[str, Shape] | None = None,
    notes: Sequence[str] = (),
    known: Mapping[str, np.ndarray] | None = None,
    workers: int = 1,
    inputs: Collection[str] = (),
) -> Sweep:
    """Statistics of a pass and a grid of configurations -> thresholds and histograms of each.

    ``shapes`` are the exact counts of a second pass (:mod:`trtcal.passes.second_pass`) by tensor. Without them,
    ``streamed_batch_size``, the batch size of the pass, lets the replay be checked against it. ``known`` are
    batch-invariant thresholds that need not be found again, by method. ``workers`` tensors are measured at once; they
    change nothing but the time. ``inputs`` names the tensors that the model is fed. SettingError for an unknown method;
    StatsError where no tensor has a range.
    """
    tensors = usable(stats)
    if not tensors:
        raise StatsError(f"none of the {len(stats.tensors)} tensors has a finite range, so there is nothing to sweep")
    chosen, merged = distinct_methods(methods)
    fine = [tensor.histogram for tensor in tensors.values()]
    by_method = dict(known or {})
    wanted = dict.fromkeys([*(choice.name for choice in chosen), MEASURED])
    by_method |= thresholds(fine, [name for name in wanted if name not in by_method], workers)
    own = None if shapes is not None or streamed_batch_size is None else streamed_batch_size
    replays = [_paths(stats, tensors, configuration, partial) for configuration in grid]
    if own is not None:
        replays.append(_paths(stats, tensors, Configuration(own, "given", None, stats.growth), partial))
    searched = [choice for choice in chosen if choice.depends_on_batches and choice.threshold is not entropy]
    table = _measured(tensors, replays, shapes, searched, workers)
    measures: dict[Configuration, Measures] = {}
    trials: list[Trial] = []
    for configuration, made, (row, found) in zip(grid, replays, table, strict=False):
        measures[configuration] = _measures(made, row, by_method[MEASURED])
        for choice in chosen:
            if not choice.clips:  # the control: through the batches, and yet the same for all of them
                amax = made.amax
            elif choice.depends_on_batches:
                amax = found.get(choice.name, row.amax)
            else:
                amax = by_method[choice.name]
            trials.append(Trial(configuration, choice.name, amax))
    trials = _marked(trials, stats, list(tensors), inputs)
    off = None if own is None else _off(tensors, table[-1][0].amax, workers)
    return Sweep(
        tuple(tensors),
        stats.samples,
        measures,
        tuple(trials),
        {choice.name: by_method[choice.name] for choice in chosen},
        shapes is not None,
        off,
        partial,
        metric,
        (*notes, *merged),
    )


def _marked(trials: list[Trial], stats: ActivationStats, tensors: list[str], inputs: Collection[str]) -> list[Trial]:
    """The trials, those with unusable thresholds marked."""
    first = {trial.amax.tobytes(): trial for trial in trials}
    columns = np.array([trial.amax for trial in first.values()]).reshape(-1, len(tensors)).T
    found = dict(zip(first, unusable_among(stats, dict(zip(tensors, columns, strict=True)), inputs), strict=True))
    return [
        replace(trial, unusable=in_words(why)) if (why := found[trial.amax.tobytes()]) else trial for trial in trials
    ]


def _paths(
    stats: ActivationStats, tensors: Mapping[str, TensorStats], configuration: Configuration, partial: str
) -> Paths:
    made = paths(
        np.array([tensor.sample_amax for tensor in tensors.values()]).reshape(len(tensors), -1),
        np.array([tensor.sample_peaks for tensor in tensors.values()]).reshape(len(tensors), -1),
        ORDERS[configuration.order](stats, configuration.seed or 0),
        configuration.batch_size,
        configuration.growth,
        partial=partial,
    )
    if RULES[configuration.growth].invariant:  # which counts no padding in a pass either
        made = replace(made, rows=np.unique(made.rows))
    return made


def _measured(
    tensors: Mapping[str, TensorStats],
    replays: Sequence[Paths],
    shapes: Mapping[str, Shape] | None,
    methods: Sequence[Method],
    workers: int,
) -> list[tuple[Measured, dict[str, np.ndarray]]]:
    """What is said of all tensors' histograms in each replay, and the thresholds that other methods find in them.

    Many replays lead to the same histogram.
    """
    # Counts depend on how often each sample is used, but for those that are read off the fine histogram.
    uses = [b"" if shapes is None else np.bincount(made.rows).tobytes() for made in replays]
    rows = {use: made.rows for use, made in zip(uses, replays, strict=True)}

    def measure(number: int) -> list[np.ndarray]:
        name, tensor = names[number], tensors[names[number]]
        shape = read_off(tensor.histogram) if shapes is None else shapes[name]
        keys = [
            (made.trajectories[number].limit, made.low[number], made.amax[number], use)
            for made, use in zip(replays, uses, strict=True)
        ]
        distinct = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        counts = [lowered(tensor, limit, low, rows[use], shape) for limit, low, _, use in distinct]
        limits, amax = np.array([limit for limit, *_ in distinct]), np.array([amax for _, _, amax, _ in distinct])
        found: list[np.ndarray] = [*measured(tensor.histogram, np.array(counts), limits, amax)]
        if methods:
            histograms = [Histogram(*row) for row in zip(counts, limits, amax, strict=True)]
            found += [np.array([search(hist) for hist in histograms], np.float32) for search in methods]
        which = [distinct[key] for key in keys]
        return [column[which] for column in found]

    names = list(tensors)
    by_tensor = in_threads(measure, range(len(names)), workers)
    columns = [np.array(column).T for column in zip(*by_tensor, strict=True)]  # (replays, tensors) each
    spoken = len(Measured._fields)
    return [
        (Measured(*row[:spoken]), dict(zip([search.name for search in methods], row[spoken:], strict=True)))
        for row in zip(*columns, strict=True)
    ]


def _measures(made: Paths, found: Measured, reference: np.ndarray) -> Measures:
    limit = np.array([path.limit for path in made.trajectories])
    last = [path.last_growth for path in made.trajectories]
    invariant, largest = reference.astype(np.float64), made.amax.astype(np.float64)
    alike = found.amax == invariant  # both inf, too
    return Measures(
        first_amax=np.array([path.first_amax for path in made.trajectories]),
        limit=limit,
        doublings=np.array([path.doublings for path in made.trajectories]),
        last_growth=np.array([-1 if batch is None else batch for batch in last]),
        fell_back=np.array([path.fell_back for path in made.trajectories]),
        slack=np.divide(limit, largest, out=np.ones_like(limit), where=largest > 0),
        change=np.divide(found.amax, invariant, out=np.ones_like(limit), where=(invariant > 0) & ~alike) - 1,
        **found._asdict(),
    )


def _off(tensors: Mapping[str, TensorStats], amax: np.ndarray, workers: int) -> np.ndarray:
    """How far replayed thresholds are from those of the pass."""
    batch_grid = [tensor.batch_grid for tensor in tensors.values()]
    exact = in_threads(lambda hist: 0.0 if hist is None else float(entropy(hist)), batch_grid, workers)
    pairs = zip(amax.tolist(), exact, strict=True)
    return np.array([abs(a / b - 1) if b and a != b else 0.0 for a, b in pairs])  # and not both inf


def limits_of(stats: ActivationStats, grid: Sequence[Configuration], partial: str = "pad") -> dict[str, set[float]]:
    """Every limit that the grid leads to, by tensor: what a second pass has to count on."""
    found: dict[str, set[float]] = {name: set() for name in usable(stats)}
    for configuration in grid:
        made = _paths(stats, usable(stats), configuration, partial)
        for limits, path in zip(found.values(), made.trajectories, strict=True):
            if path.limit:
                limits.add(path.limit)
    return found


def uneven_samples(stats: ActivationStats, grid: Sequence[Configuration], partial: str = "pad") -> set[int]:
    """Samples that some configuration does not use exactly once, because of its last batch."""
    uneven: set[int] = set()
    for configuration in grid:
        order = ORDERS[configuration.order](stats, configuration.seed or 0)
        rows = np.concatenate(groups(order, configuration.batch_size, partial))
        uneven |= set(np.flatnonzero(np.bincount(rows, minlength=len(stats.samples)) != 1).tolist())
    return uneven

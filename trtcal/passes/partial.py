"""Statistics of a part of a pass that add to those of the whole, TensorRT's own histogram included.

On the fine grid any parts add. TensorRT's grid begins with the maximum of the first batch, and an element equal to
the limit of its time stays one bin low, so a part in the middle of a pass knows neither. It is therefore counted

* from the limit that the beginning of the pass set, which leaves only the factor 2**k open, by which bins merge;
* *settled*: every element in the bin where it belongs, whenever it came.

What order does to the counts is put back at the end, from the largest magnitude of each batch and from how many
elements have it: only a batch's largest can be equal to the limit.

A tensor that was zero throughout the beginning has no limit yet. Its parts count from their own first batch; where
those limits do not differ by a power of two, the parts do not add, and the tensor has to be counted again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from trtcal.passes.collect import Run, collect
from trtcal.ranges.growth import Rule, growth_rule
from trtcal.ranges.histogram import FINE_BINS, NUM_BINS, Histogram, growth_factor
from trtcal.ranges.stats import ActivationStats, TensorStats
from trtcal.samples.batches import Batch


@dataclass(frozen=True, eq=False)
class TensorPart:
    """What one tensor did in a part of a pass.

    ``samples`` and ``histogram`` are those of `TensorStats`. ``batch_amax`` is the largest |x| of
    each batch, (batches,) float32, ``batch_peaks`` how many elements have it, (batches,) int64, padding included.
    ``regrouped`` is TensorRT's histogram with every element where it belongs, None where limits do not fit together;
    ``elements`` is what it counts, or would.
    """

    sample_amax: np.ndarray
    sample_peaks: np.ndarray
    histogram: Histogram
    batch_amax: np.ndarray
    batch_peaks: np.ndarray
    regrouped: Histogram | None
    elements: int

    @property
    def masked(self) -> bool:
        """Is there a -inf or a nan, and so no range to find?"""
        return not np.isfinite(self.batch_amax).all()


@dataclass(frozen=True, eq=False)
class Part:
    """What all tensors did in so many batches that follow each other."""

    samples: tuple[str, ...]
    tensors: Mapping[str, TensorPart]
    batches: int


def collect_part(
    runner: Run,
    batches: Iterable[Batch],
    limits: Mapping[str, float],
    *,
    growth: str = "double",
    workers: int = 1,
) -> Part:
    """Run some batches of a pass -> their part of its statistics.

    ``limits`` are those of TensorRT's histograms at the beginning of the pass, as :func:`first_limits` gives them;
    the runner answers with these tensors. Raises what :func:`trtcal.passes.collect.collect` raises.
    """
    start = _beginning(limits, growth)
    sizes: list[int] = []  # valid rows of each batch
    padding: list[tuple[int, ActivationStats]] = []

    def valid_rows() -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            rows = len(batch.samples)
            sizes.append(batch.valid)
            if batch.valid:
                yield _rows(batch, 0, batch.valid)
            if batch.valid < rows:
                # TensorRT sees padding, but it belongs to no sample: a pass of its own.
                rest = _rows(batch, batch.valid, rows)
                padding.append((number, collect(runner, [rest], growth=growth, workers=workers, start=start)))

    filled = valid_rows()
    first = next(filled, None)
    stats = start
    if first is not None:
        stats = collect(runner, chain([first], filled), growth=growth, workers=workers, start=start)
    part = _part(stats, np.repeat(np.arange(len(sizes)), sizes), len(sizes), limits)
    for number, extra in padding:
        part = _padded(part, _part(extra, np.full(len(extra.samples), number), len(sizes), limits))
    return part


def first_limits(stats: ActivationStats) -> dict[str, float]:
    """Statistics of the beginning of a pass -> tensor to limit of TensorRT's histogram, 0.0 where it is still open."""
    return {name: 0.0 if t.batch_grid is None else t.batch_grid.limit for name, t in stats.tensors.items()}


def added(one: Part, two: Part) -> Part:
    """Parts that follow each other -> both in one."""
    tensors = {}
    for name, a in one.tensors.items():
        b = two.tensors[name]
        tensors[name] = TensorPart(
            np.concatenate([a.sample_amax, b.sample_amax]),
            np.concatenate([a.sample_peaks, b.sample_peaks]),
            a.histogram + b.histogram,
            np.concatenate([a.batch_amax, b.batch_amax]),
            np.concatenate([a.batch_peaks, b.batch_peaks]),
            _settled_sum(a, b),
            a.elements + b.elements,
        )
    return Part(one.samples + two.samples, tensors, one.batches + two.batches)


def uncounted(start: ActivationStats, part: Part) -> dict[str, float]:
    """Beginning of a pass and what follows it -> tensors that must be counted again, from which limit."""
    rule = growth_rule(start.growth)
    again = {}
    for name, tensor in part.tensors.items():
        begun = start.tensors[name]
        if not rule.invariant and not tensor.masked and np.isfinite(begun.amax):
            limit = first_limits(start)[name] or _first(tensor.batch_amax, rule)
            if tensor.regrouped is None or not _leads_to(tensor.regrouped.limit, _last(limit, tensor.batch_amax, rule)):
                again[name] = limit
    return again


def recounted(part: Part, counted: Part) -> Part:
    """A part, and those of its batches counted again that are not all zeros -> the part with these counts."""
    tensors = dict(part.tensors)
    for name, found in counted.tensors.items():
        assert found.regrouped is not None
        counts = found.regrouped.counts.copy()
        counts[0] += tensors[name].elements - found.elements
        regrouped = Histogram(counts, found.regrouped.limit, found.regrouped.amax)
        tensors[name] = replace(tensors[name], regrouped=regrouped)
    return replace(part, tensors=tensors)


def continued(start: ActivationStats, part: Part) -> ActivationStats:
    """Statistics of the beginning of a pass, and the part that follows -> those of both, as if one process had run it.

    Nothing may be left of what :func:`uncounted` says.
    """
    rule, tensors = growth_rule(start.growth), {}
    for name, one in start.tensors.items():
        two = part.tensors[name]
        masked = two.masked or not np.isfinite(one.amax)
        tensors[name] = TensorStats(
            np.concatenate([one.sample_amax, two.sample_amax]),
            np.concatenate([one.sample_peaks, two.sample_peaks]),
            _empty(FINE_BINS) if masked else one.histogram + two.histogram,
            _empty(NUM_BINS) if masked else _batch_grid(one, two, rule),
        )
    return ActivationStats(start.samples + part.samples, tensors, start.growth, start.batches + part.batches)


def _batch_grid(one: TensorStats, two: TensorPart, rule: Rule) -> Histogram:
    begun, regrouped = one.batch_grid, two.regrouped
    assert begun is not None
    assert regrouped is not None
    if rule.invariant:
        return begun + regrouped
    last = _last(begun.limit, two.batch_amax, rule)
    counts = _grown(two, last).counts.copy()
    _shift(counts, last, _outgrown(begun.limit, two, rule), -1)
    return Histogram(begun.grown(last).counts + counts, last, max(begun.amax, regrouped.amax))


def _part(stats: ActivationStats, batch: np.ndarray, batches: int, start: Mapping[str, float]) -> Part:
    """Statistics whose rows belong to these batches, each batch's rows streamed as one -> their part."""
    rule, tensors = growth_rule(stats.growth), {}
    for name, tensor in stats.tensors.items():
        amax, peaks, batch_grid = tensor.sample_amax, tensor.sample_peaks, tensor.batch_grid
        assert batch_grid is not None
        batch_amax = np.zeros(batches, np.float32)
        with np.errstate(invalid="ignore"):  # nan, which stays
            np.maximum.at(batch_amax, batch, amax)
        batch_peaks = np.zeros(batches, np.int64)
        largest = amax == batch_amax[batch]
        np.add.at(batch_peaks, batch[largest], peaks[largest])
        made = TensorPart(amax, peaks, tensor.histogram, batch_amax, batch_peaks, batch_grid, batch_grid.total)
        if not rule.invariant and not made.masked:
            counts = batch_grid.counts.copy()
            _shift(counts, batch_grid.limit, _outgrown(start[name], made, rule), 1)
            made = replace(made, regrouped=replace(batch_grid, counts=counts))
        tensors[name] = made
    return Part(stats.samples, tensors, batches)


def _padded(part: Part, padding: Part) -> Part:
    """A part without the padding of its batches, and the padding -> the part with both."""
    tensors = {}
    for name, one in part.tensors.items():
        two = padding.tensors[name]
        amax = np.maximum(one.batch_amax, two.batch_amax)
        peaks = np.where(one.batch_amax == amax, one.batch_peaks, 0) + np.where(
            two.batch_amax == amax, two.batch_peaks, 0
        )
        tensors[name] = TensorPart(
            one.sample_amax,
            one.sample_peaks,
            one.histogram,
            amax,
            peaks,
            _settled_sum(one, two),
            one.elements + two.elements,
        )
    return replace(part, tensors=tensors)


def _limits(start: float, batch_amax: np.ndarray, rule: Rule) -> np.ndarray:
    """The limit after each batch, from the one before the first."""
    records, place = np.unique(np.maximum.accumulate(batch_amax.astype(np.float64)), return_inverse=True)
    grown = []
    for record in records:
        start = rule.grow(start, float(record))
        grown.append(start)
    return np.array(grown, np.float64)[place]


def _last(start: float, batch_amax: np.ndarray, rule: Rule) -> float:
    limits = _limits(start, batch_amax, rule)
    return float(limits[-1]) if limits.size else start


def _outgrown(start: float, part: TensorPart, rule: Rule) -> dict[float, int]:
    """Limits that a part outgrew, from the one before it -> how many elements were equal to one while it was that."""
    limits = _limits(start, part.batch_amax, rule)
    at = (part.batch_amax == limits) & (limits > 0) & (limits < limits.max(initial=0))
    return {float(limit): int(part.batch_peaks[at & (limits == limit)].sum()) for limit in np.unique(limits[at])}


def _shift(counts: np.ndarray, last: float, held: Mapping[float, int], sign: int) -> None:
    """Put elements at limits that were outgrown into the bin where they belong (1), or one bin low (-1)."""
    for limit, number in held.items():
        place = limit / last * NUM_BINS
        if place >= 1:
            counts[int(place)] += sign * number
            counts[int(place) - 1] -= sign * number


def _grown(tensor: TensorPart, limit: float) -> Histogram:
    """Its settled histogram on a limit that fits; what equals its own limit gets a bin of its own."""
    regrouped = tensor.regrouped
    assert regrouped is not None
    if limit == regrouped.limit or not regrouped.limit:
        return regrouped.grown(limit)
    counts = regrouped.grown(limit).counts.copy()
    held = int(tensor.batch_peaks[tensor.batch_amax == regrouped.limit].sum())
    _shift(counts, limit, {regrouped.limit: held}, 1)
    return Histogram(counts, limit, regrouped.amax)


def _settled_sum(one: TensorPart, two: TensorPart) -> Histogram | None:
    if one.regrouped is None or two.regrouped is None:
        return None
    a, b = one.regrouped.limit, two.regrouped.limit
    if one.masked or two.masked:
        return _empty(NUM_BINS)
    if not (_leads_to(a, max(a, b)) and _leads_to(b, max(a, b))):
        return None
    return _grown(one, max(a, b)) + _grown(two, max(a, b))


def _leads_to(limit: float, last: float) -> bool:
    """Has a histogram over [0, limit) its exact place in one over [0, last)?"""
    if limit in (0, last):
        return True
    try:
        growth_factor(limit, last)
    except (ValueError, ZeroDivisionError):
        return False
    return True


def _first(batch_amax: np.ndarray, rule: Rule) -> float:
    """The limit that batches of these maxima begin with; 0.0 where all are zero."""
    return rule.grow(0.0, float(batch_amax[np.argmax(batch_amax > 0)])) if batch_amax.size else 0.0


def _beginning(limits: Mapping[str, float], growth: str) -> ActivationStats:
    """Statistics of no samples, with these limits."""
    none = np.zeros(0, np.float32), np.zeros(0, np.int64)
    tensors = {
        name: TensorStats(*none, _empty(FINE_BINS), Histogram(np.zeros(NUM_BINS, np.int64), limit, np.float32(0)))
        for name, limit in limits.items()
    }
    return ActivationStats((), tensors, growth, 0)


def _empty(num_bins: int) -> Histogram:
    return Histogram(np.zeros(num_bins, np.int64), 0.0, np.float32(0))


def _rows(batch: Batch, first: int, last: int) -> Batch:
    return Batch({name: array[first:last] for name, array in batch.items()}, samples=batch.samples[first:last])

"""Which samples suffice: few of them whose thresholds stay within 1% of those of all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from trtcal.calibration.calibrate import from_stats, on_fine_grid
from trtcal.errors import DataError, SettingError
from trtcal.files.atomic import write_bytes
from trtcal.files.brief import brief
from trtcal.model.open import FloatRunner, Model
from trtcal.model.overwriting import Input, Kind, check_output
from trtcal.passes.collect import as_float32, run_rows
from trtcal.passes.executor import Executor, Here
from trtcal.passes.sharing import resolved
from trtcal.ranges.histogram import FLOAT32_MAX, NUM_BINS, Histogram, HistogramBuilder, abs_max
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import method as threshold_method
from trtcal.samples.batches import Batches, Samples
from trtcal.samples.listed import MARK, list_text
from trtcal.samples.spread import evenly

logger = logging.getLogger(__name__)

TOLERANCE = 0.01
AIM = 0.009  # of what is calibrated afterwards: bins are wider here, and a rounding away is no reason to fail
SEARCHES = 20_000  # thresholds that are searched for a set of one size
MOST_BYTES = 1 << 30  # of samples' own histograms; of more samples than have room, some are candidates
TINY = float(np.finfo(np.float32).tiny)

Step = Callable[[int, int], None]
"""Told how many of how many runs of the model are done."""


@dataclass(frozen=True)
class Selection:
    """Some of the samples of a calibration, in their order, and how far their thresholds are from those of all.

    ``difference``: the largest relative one, over all tensors, of a calibration of these samples that was really made,
    inf where one of both has no range; ``tensor``: where it is, "" where there is none.
    """

    samples: tuple[str, ...]
    of: int
    difference: float
    tensor: str

    __repr__ = brief

    @property
    def within(self) -> bool:
        """Do the thresholds stay within the tolerance?"""
        return self.difference <= TOLERANCE


def select(
    model: Model,
    stats: ActivationStats,
    batches: Batches,
    most: int,
    method: str = "entropy",
    *,
    growth: str = "double",
    executor: Executor | None = None,
    progress: Step | None = None,
) -> Selection:
    """Model, statistics of a pass over batches -> few of the samples, at most so many, that calibrate as all do.

    Where the method does not clip, the maxima alone tell: greedily, the samples that hold the tensors' largest |x|
    within the tolerance. Else a second pass counts each sample's own histograms, and samples are exchanged one by one
    until thresholds by the sum of their histograms are those of all; how many are needed is searched by halving. What
    is given back has been calibrated by the same method, in batches of the same size and in the order of all samples.
    No smaller set of another kind is ruled out.

    SettingError where fewer than a batch are asked for and incomplete batches are not used; DataError for a stream.
    """
    check_selectable(batches, most)
    model, executor = resolved(model, batches), executor or Here()
    whole = from_stats(model, stats, method).cache.scales
    names, number = stats.samples, len(stats.samples)
    fine = on_fine_grid(method, growth)
    by_batches = not fine or batches.partial in ("drop", "error")
    step = batches.batch_size if by_batches and most >= batches.batch_size else 1
    made: dict[int, Selection] = {number: Selection(names, number, 0.0, "")}

    def calibrated(places: Sequence[int]) -> Selection:
        part = executor.run_pass(partial(FloatRunner, model), batches.only(places), growth=growth)
        difference, tensor = _difference(whole, from_stats(model, part, method).cache.scales)
        return Selection(tuple(names[place] for place in places), number, difference, tensor)

    if not threshold_method(method).clips:
        covering = _covering(stats)[:most]
        spare = (place for place in range(number) if place not in covering)
        return calibrated(sorted([*covering, *islice(spare, -len(covering) % step)]))
    sizes = [*range(step, min(most, number - 1) + 1, step), *([number] if most >= number else [])]
    search = _Search(model, stats, batches, most, method, fine, executor.workers, progress)

    def suffices(size: int) -> bool:
        if size in made:
            return made[size].within
        places, likely = search.best(size)
        if not likely and size != sizes[-1]:
            return False
        made[size] = calibrated(places)
        return made[size].within

    # Nearly all samples leave few to exchange, so that fewer may do where they do not.
    last = len(sizes) - 1
    high = next((at for at in (last, last * 3 // 4, last // 2) if suffices(sizes[at])), None)
    if high is None:
        del made[number]
        return min(made.values(), key=lambda one: one.difference)
    low = -1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(sizes[middle]) else (middle, high)
    return made[sizes[high]]


def check_selectable(batches: Batches, most: int) -> None:
    """Batches, and how many samples are asked for -> nothing, where so many can be selected; SettingError, DataError.

    To be asked before a long pass.
    """
    if not isinstance(batches.source, Samples):
        raise DataError(
            f"{batches.source.describe()}: samples that come in their own order cannot be selected, as no list can "
            "name them; save them as an .npz file"
        )
    if most < 1:
        raise SettingError(f"select takes a number of samples from 1 on, got {most}")
    if batches.partial in ("drop", "error") and most < batches.batch_size:
        raise SettingError(
            f"{most} samples do not fill a batch of {batches.batch_size}, and one that is not full is left out or "
            "refused; select more, or pad batches"
        )


def check_list_output(path: str | Path, inputs: Sequence[Input | None] = ()) -> None:
    """List to write, and what it is made from -> nothing; OutputError where a file would be lost."""
    check_output(path, LIST, inputs)


def write_selection(path: str | Path, selection: Selection, data: str, said: str) -> None:
    """Selection of samples of ``data`` -> the list that names them, replaced in one step; ``said`` stands above it.

    A warning where their thresholds do not stay within the tolerance.
    """
    text = list_text(path, data, selection.samples, f"{len(selection.samples)} of {selection.of}, {said}")
    write_bytes(path, text.encode("utf-8", "surrogateescape"))
    if not selection.within:
        far = f"is {selection.difference:.1%} off" if selection.difference < float("inf") else "has a range in one only"
        logger.warning(
            "%s: no %d samples were found whose thresholds stay within 1%% of those of all: %s %s; select more",
            path, len(selection.samples), selection.tensor, far,
        )  # fmt: skip


def _is_list(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(MARK)) == MARK.encode()


LIST = Kind("list of samples that trtcal wrote", _is_list, plain=True)


def _difference(whole: Mapping[str, np.float32], part: Mapping[str, np.float32]) -> tuple[float, str]:
    """Scales of all samples and of some -> the largest relative difference, and the tensor that has it."""
    worst, where = 0.0, ""
    for name in dict.fromkeys([*whole, *part]):
        if name not in whole or name not in part:
            return float("inf"), name
        one, other = float(whole[name]), float(part[name])
        found = 0.0 if one == other else abs(other - one) / one if one else float("inf")
        if found > worst:
            worst, where = found, name
    return worst, where


def _covering(stats: ActivationStats) -> list[int]:
    """Places of few samples that hold the largest |x| of every tensor within the tolerance, and what is not finite.

    Greedily: always the sample that covers most of what is not covered yet. None of them can be left out.
    """
    amax = np.array([tensor.sample_amax for tensor in stats.tensors.values()]).reshape(-1, len(stats.samples))
    finite = np.isfinite(amax).all(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        largest = amax.max(axis=1, keepdims=True, initial=0)
        # In float64, since rounding must not let a sample in that is past the tolerance; _difference is strict.
        holds = np.where(
            finite, amax.astype(np.float64) >= (1 - TOLERANCE) * largest.astype(np.float64), ~np.isfinite(amax)
        )
    taken: list[int] = []
    left = np.ones(len(holds), bool)
    while left.any():
        taken.append(int(holds[left].sum(axis=0).argmax()))
        left &= ~holds[:, taken[-1]]
    for place in taken[::-1]:
        others = [other for other in taken if other != place]
        if others and holds[:, others].any(axis=1).all():
            taken = others
    return taken or [0]


class _Search:
    """Sets of so many samples whose thresholds, by their own histograms, are those of all; found by exchanging samples.

    The histograms stand on the limits of all samples' in TensorRT's number of bins. They tell nearly what a calibration
    will; whether it does, a calibration has to show.
    """

    def __init__(
        self, model: Model, stats: ActivationStats, batches: Batches, most: int, method: str, fine: bool,
        workers: int, progress: Step | None,
    ) -> None:  # fmt: skip
        self._method = threshold_method(method)
        grids = {name: tensor.histogram if fine else tensor.batch_grid for name, tensor in stats.tensors.items()}
        self._whole = [
            (name, Histogram(grid.counts.reshape(NUM_BINS, -1).sum(axis=1), grid.limit, grid.amax))
            for name, grid in grids.items()
            if grid is not None and 0 < grid.limit < FLOAT32_MAX
        ]
        self._limits = [grid.limit for _, grid in self._whole]
        self._targets = [float(self._method(grid)) for _, grid in self._whole]
        self._needs_limit = self._method.depends_on_batches  # bins of another width give other thresholds
        number = len(stats.samples)
        held = MOST_BYTES // (4 * NUM_BINS * max(len(self._whole), 1))
        # TensorRT's limits begin at the first batch's maxima, so that batch stays as it is.
        self._kept = 0 if fine else min(batches.batch_size, most, number)
        first = range(self._kept)
        self.places = sorted({*first, *evenly(number, min(max(held, most), number))})
        self._amax = np.array([stats.tensors[name].sample_amax[self.places] for name, _ in self._whole])
        self._counts = np.zeros((len(self._whole), len(self.places), NUM_BINS), np.uint32)
        self._count(model, batches.only(self.places, partial="pad"), workers, progress)

    def best(self, size: int) -> tuple[list[int], bool]:
        """A number -> so many places, and whether their histograms give all thresholds within the tolerance."""
        rng = np.random.default_rng(0)
        kept = list(range(self._kept))[:size]
        rest = range(len(kept), len(self.places))
        chosen = kept + [rest[at] for at in evenly(len(rest), size - len(kept))]
        free = sorted(set(rest) - set(chosen))
        total = self._counts[:, chosen].sum(axis=1, dtype=np.int64)
        excess = np.array([self._excess(at, total[at], chosen) for at in range(len(self._whole))])
        left = SEARCHES
        while excess.any() and left > 0 and free and size > len(kept):
            out, into = int(rng.integers(len(kept), size)), int(rng.integers(len(free)))
            other = [*chosen[:out], free[into], *chosen[out + 1 :]]
            found = np.zeros_like(excess)
            for at in np.argsort(-excess, kind="stable"):
                counts = self._counts[at]
                found[at] = self._excess(at, total[at] - counts[chosen[out]] + counts[free[into]], other)
                left -= 1
                if found.sum() > excess.sum():
                    break
            else:
                total += self._counts[:, free[into]].astype(np.int64) - self._counts[:, chosen[out]]
                free[into], chosen, excess = chosen[out], other, found
        return sorted(self.places[at] for at in chosen), not excess.any()

    def _excess(self, at: int, counts: np.ndarray, chosen: Sequence[int]) -> float:
        """Tensor, and the counts of samples -> by how much the difference of its threshold is too large."""
        amax, limit, target = self._amax[at, chosen].max(), self._limits[at], self._targets[at]
        if self._needs_limit and amax <= limit / 2:
            return 1.0
        found = float(self._method(Histogram(counts, limit, amax)))
        return max(0.0, abs(found - target) / max(target, TINY) - AIM)

    def _count(self, model: Model, batches: Batches, workers: int, progress: Step | None) -> None:
        sample = 0
        with FloatRunner(model) as runner:
            for batch in batches:
                for _, answer in run_rows(runner, batch, range(batch.valid), workers):
                    for at, (name, grid) in enumerate(self._whole):
                        values = as_float32(answer[name])
                        builder = HistogramBuilder(NUM_BINS, partial(_fixed, grid.limit))
                        builder.add(values, abs_max(values))
                        self._counts[at, sample] = builder.counts
                    sample += 1
                    if progress is not None:
                        progress(sample, len(self.places))


def _fixed(limit: float, _: float, __: float) -> float:
    return limit

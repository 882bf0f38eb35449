"""What a pass keeps account of, wherever values are: which samples ran, what waits, what has no range.

A :class:`TensorSource` runs samples and counts where their tensors lie: in NumPy's memory (`trtcal.passes.collect`) or
on a GPU (`calibrators.gpu_stats`). All else is the same, and here.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from trtcal.errors import DataError, ModelError, NonFiniteError
from trtcal.ranges.growth import growth_rule
from trtcal.ranges.histogram import Histogram
from trtcal.ranges.stats import ActivationStats, TensorStats
from trtcal.samples.batches import Batch

logger = logging.getLogger(__name__)

HELD_BYTES = 128 << 20  # a batch that has to be known before it is counted is kept up to here, and above run twice
ROW_BYTES = 256  # what an array and its _Row take beside the elements

Progress = Callable[[int], None]
"""Called with the number of samples that are done, after each."""


class Shown(Protocol):
    """One tensor of one sample, wherever its values are."""

    @property
    def name(self) -> str:
        """Its name in the graph."""

    @property
    def kept_bytes(self) -> int | None:
        """What keeping its values takes; None where they are gone when the next tensors are asked for."""


class Seen(NamedTuple):
    """What one look at a tensor says of it."""

    amax: float
    """Largest |x|; nan if any is nan."""
    peaks: int | None
    """How many elements have it; None where only counting finds out."""
    positive_inf: bool
    counted: bool
    """Was it counted as well, where that was wanted?"""


ShownT = TypeVar("ShownT", bound=Shown)
Shown_contra = TypeVar("Shown_contra", bound=Shown, contravariant=True)


class Grids(Protocol[Shown_contra]):
    """The histograms of one tensor: on the fine grid, and on TensorRT's."""

    @property
    def limit(self) -> float:
        """TensorRT's limit, 0.0 while it saw nothing but zeros."""

    def start_batch(self) -> None:
        """`trtcal.ranges.histogram.HistogramBuilder.start_batch`."""

    def fit(self, amax: float) -> None:
        """Grow TensorRT's limit so that ``amax``, of elements to come, has a place."""

    def add(self, shown: Shown_contra, seen: Seen, *, fine: bool, batch_grid: bool) -> int:
        """Count what was looked at on the fine grid, TensorRT's, both or none -> how many elements have its amax."""

    def add_clipped(self, shown: Shown_contra, seen: Seen, *, fine: bool, batch_grid: bool) -> int:
        """As :meth:`add` for values that are no longer those that were ``seen``; larger ones count as its amax."""

    def clear(self) -> None:
        """Forget all that was counted."""

    def build(self) -> tuple[Histogram, Histogram]:
        """What was counted so far, on the fine grid and on TensorRT's."""

    def restore(self, fine: Histogram, batch_grid: Histogram) -> None:
        """Go on from what :meth:`build` gave, at the start of a batch."""


GridsT = TypeVar("GridsT", bound=Grids[Any])


class TensorSource(Protocol[ShownT, GridsT]):
    """Runs samples and shows their tensors, and makes the grids that count them."""

    def run(self, batch: Batch, rows: Iterable[int]) -> Iterator[tuple[int, Iterable[Sequence[ShownT]]]]:
        """Rows of a batch, each run by itself -> its number and its tensors, in groups and in the graph's order."""

    def grids(self) -> GridsT:
        """Nothing -> what one more tensor is counted by."""

    def look(
        self, group: Sequence[ShownT], grids: Sequence[GridsT], wanted: Sequence[tuple[bool, bool]]
    ) -> Sequence[Seen]:
        """A group of tensors, and whether each will be counted on the fine grid and on TensorRT's -> what is seen.

        A source that can count while it looks does so where it is wanted; `Grids.add` then does the rest.
        """

    def decisive(self, names: Collection[str]) -> Collection[str] | None:
        """Tensors that it shows -> those a nan in which reaches what the model answers; None where nobody knows."""


class _Waiting:
    """A row that TensorRT's grid of one tensor cannot count before its batch is known as a whole."""

    __slots__ = ("kept", "place", "row", "seen")

    def __init__(self, row: int, seen: Seen, place: int | None) -> None:
        self.row, self.seen = row, seen
        self.place = place  # among the tensor's samples; None for padding
        self.kept: Shown | None = None  # None: it runs again


class _Tensor:
    """Everything that is known of one tensor."""

    def __init__(self, grids: Grids[Any]) -> None:
        self.grids = grids
        self.sample_amax = array("f")  # 12 bytes a sample in both; lists of numbers would take four times that
        self.sample_peaks = array("q")
        self.waiting: list[_Waiting] = []  # in a batch that sets the first limit and is still arriving
        self.first_amax = 0.0  # of the batch that set the first limit
        self.masked = False
        self.unsteady = False
        self.run = 0  # the last one that showed it

    def mask(self) -> None:
        """From the first -inf or nan on there is no range to find, whatever the other samples hold."""
        if not self.masked:
            self.masked = True
            self.waiting = [row for row in self.waiting if row.place is not None and not row.seen.counted]
            self.grids.clear()

    def wait(self, row: _Waiting, shown: Shown) -> None:
        """Leave a row for later; what a look has counted of it is complete."""
        self.waiting.append(row)
        if row.seen.counted and row.place is not None:
            self.sample_peaks[row.place] = self.grids.add(shown, row.seen, fine=True, batch_grid=False)

    def count_waiting(self, row: _Waiting, shown: Shown, seen: Seen) -> None:
        """Count what is left to be counted of a row that waited, and is ``seen`` now."""
        new, batch_grid = row.place is not None and not row.seen.counted, not self.masked
        if seen.amax == row.seen.amax:
            peaks = self.grids.add(shown, seen, fine=new and batch_grid, batch_grid=batch_grid)
        else:
            peaks = self.grids.add_clipped(shown, row.seen, fine=new and batch_grid, batch_grid=batch_grid)
        if new and row.place is not None:
            self.sample_peaks[row.place] = peaks


class Collector:
    """What a pass has seen so far; after an error it is of no further use."""

    def __init__(self, source: TensorSource[Any, Any], growth: str, progress: Progress | None = None) -> None:
        self._source, self._growth = source, growth
        self._progress = progress or (lambda done: None)
        self._tensors: dict[str, _Tensor] = {}
        self._known_from = ""  # what showed which tensors there are
        self._keeps = True
        self._kept_bytes = 0
        self._run = 0
        self._holding_nan: list[str] = []  # tensors of the row that is looked at
        self._decisive: frozenset[str] | None = None  # once somebody asked
        self.samples: list[str] = []
        self.batches = 0
        self.seen = 0

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Run one batch."""
        batch = as_batch(arrays, self.seen)
        self.seen += batch.valid
        # TensorRT wants the maximum of a batch that sets a limit before it counts.
        wait = len(batch.samples) > 1 and not growth_rule(self._growth).invariant
        self._keeps, self._kept_bytes = True, 0
        for tensor in self._tensors.values():
            tensor.grids.start_batch()
        for row, groups in self._source.run(batch, range(len(batch.samples))):
            self._run += 1
            for group in groups:
                self._observe(group, batch, row, wait)
            self._refuse_lost(batch.samples[row])
            self._refuse_lasting_nan(batch.samples[row])
            if row == 0 and len(batch.samples) * self._kept_bytes > HELD_BYTES:  # the others are about as large
                self._let_go()
            if row < batch.valid:
                self.samples.append(batch.samples[row])
                self._progress(len(self.samples))
        self._count_waiting(batch)
        self.batches += 1

    def build(self) -> ActivationStats:
        """The statistics so far."""
        tensors = {
            name: TensorStats(
                np.array(tensor.sample_amax, np.float32),
                np.array(tensor.sample_peaks, np.int64),
                *tensor.grids.build(),
            )
            for name, tensor in self._tensors.items()
        }
        return ActivationStats(tuple(self.samples), tensors, self._growth, self.batches)

    def restore(self, stats: ActivationStats) -> None:
        """Stand where :meth:`build` gave ``stats``."""
        self.samples, self.batches, self.seen = list(stats.samples), stats.batches, len(stats.samples)
        self._known_from = "the part of the pass that is there already"
        for name, saved in stats.tensors.items():
            assert saved.batch_grid is not None
            tensor = self._tensors[name] = _Tensor(self._source.grids())
            tensor.sample_amax = array("f", saved.sample_amax.tolist())
            tensor.sample_peaks = array("q", saved.sample_peaks.tolist())
            tensor.masked = not np.isfinite(saved.amax)
            tensor.grids.restore(saved.histogram, saved.batch_grid)

    def _observe(self, group: Sequence[Shown], batch: Batch, row: int, wait: bool) -> None:
        """A group of a row's tensors -> their maxima and counts."""
        sample, valid = batch.samples[row], row < batch.valid
        tensors, wanted = [], []
        for shown in group:
            tensor = self._tensors.get(shown.name) or self._new(shown.name, sample)
            tensor.run = self._run
            tensors.append(tensor)
            wanted.append((valid, not (wait and tensor.grids.limit == 0)) if not tensor.masked else (False, False))
        looked = self._source.look(group, [tensor.grids for tensor in tensors], wanted)
        for shown, tensor, seen, (fine, batch_grid) in zip(group, tensors, looked, wanted, strict=True):
            if not math.isfinite(seen.amax):
                fed = shown.name in batch
                if not_finite(seen) == "nan" and not fed and self._source.decisive([]) is not None:
                    self._holding_nan.append(shown.name)  # which the graph may replace
                else:
                    refuse_unless_mask(shown.name, seen, sample, fed=fed)
                tensor.mask()
            if valid:
                tensor.sample_amax.append(seen.amax)
                tensor.sample_peaks.append(0)
            if tensor.masked:
                fine = batch_grid = False
            elif not batch_grid and seen.amax:
                row_waiting = _Waiting(row, seen, len(tensor.sample_amax) - 1 if valid else None)
                tensor.wait(row_waiting, shown)
                if self._has_room(shown):
                    row_waiting.kept = shown
                continue
            else:
                batch_grid = True
            if fine or batch_grid or valid:
                peaks = tensor.grids.add(shown, seen, fine=fine, batch_grid=batch_grid)
                if valid and not math.isnan(seen.amax):  # which nothing is equal to
                    tensor.sample_peaks[-1] = peaks

    def _new(self, name: str, sample: str) -> _Tensor:
        if self._known_from:
            raise ModelError(f"{sample}: shows a tensor {name!r}, which {self._known_from} does not; {SAME}")
        return self._tensors.setdefault(name, _Tensor(self._source.grids()))

    def _refuse_lost(self, sample: str) -> None:
        for name, tensor in self._tensors.items():
            if tensor.run != self._run:
                raise ModelError(f"{sample}: shows no tensor {name!r}, which {self._known_from} does; {SAME}")
        self._known_from = self._known_from or sample

    def _refuse_lasting_nan(self, sample: str) -> None:
        """nan that the graph itself replaces, as in masked rows of attention, costs its tensors their range alone."""
        if self._holding_nan:
            if self._decisive is None:
                self._decisive = frozenset(self._source.decisive(self._tensors) or ())
            if not self._decisive.isdisjoint(self._holding_nan):
                refuse_unless_mask(self._holding_nan[0], NAN, sample, fed=False)
            self._holding_nan = []

    # --- a batch that has to be known as a whole before it is counted

    def _has_room(self, shown: Shown) -> bool:
        """May the tensor be kept until its batch is known?"""
        nbytes = shown.kept_bytes
        if not self._keeps or nbytes is None:
            return False
        self._kept_bytes += nbytes + ROW_BYTES
        if self._kept_bytes > HELD_BYTES:
            self._let_go()
        return self._keeps

    def _let_go(self) -> None:
        """Give up what is kept, since the rows will run again."""
        self._keeps = False
        for tensor in self._tensors.values():
            for row in tensor.waiting:
                row.kept = None

    def _count_waiting(self, batch: Batch) -> None:
        """Count what waited for the batch's maximum, now that it is known."""
        again: dict[int, dict[str, _Waiting]] = {}
        for name, tensor in self._tensors.items():
            if not tensor.waiting:
                continue
            tensor.first_amax = max(row.seen.amax for row in tensor.waiting)
            if not tensor.masked:
                tensor.grids.fit(tensor.first_amax)
            for row in tensor.waiting:
                if row.kept is None:
                    again.setdefault(row.row, {})[name] = row
                else:
                    tensor.count_waiting(row, row.kept, row.seen)
            tensor.waiting = []
        for number, groups in self._source.run(batch, sorted(again)):
            rows, sample = again[number], batch.samples[number]
            for group in groups:
                some = [shown for shown in group if shown.name in rows]
                self._count_again(some, [rows.pop(shown.name) for shown in some], sample)
            if rows:
                raise ModelError(f"{sample}: shows no tensor {next(iter(rows))!r} when it runs again; {SAME}")

    def _count_again(self, group: Sequence[Shown], rows: Sequence[_Waiting], sample: str) -> None:
        """Tensors of a row that runs a second time, and what is known of them -> the counts that are missing."""
        tensors = [self._tensors[shown.name] for shown in group]
        wanted = [(False, not tensor.masked) for tensor in tensors]
        looked = self._source.look(group, [tensor.grids for tensor in tensors], wanted)
        for shown, tensor, row, seen in zip(group, tensors, rows, looked, strict=True):
            if not math.isfinite(seen.amax):
                refuse_unless_mask(shown.name, seen, sample, fed=True)  # a mask would have been one the first time
            # By its last bit, where a layer adds up in any order. A limit that grew for that would be twice TensorRT's.
            if seen.amax > tensor.first_amax and not tensor.unsteady:
                tensor.unsteady = True
                logger.warning(
                    "tensor %r came out larger when the first batch ran again; what is above its first maximum %s "
                    "counts as equal to that", shown.name, np.float32(tensor.first_amax),
                )  # fmt: skip
            tensor.count_waiting(row, shown, seen)


NAN = Seen(math.nan, None, positive_inf=False, counted=False)
SAME = "statistics need the same tensors of every sample"


def as_batch(batch: Mapping[str, np.ndarray], seen: int = 0) -> Batch:
    """Arrays by input, of as many samples each -> a Batch; samples without a name are numbered on from ``seen``.

    DataError where the arrays disagree or there are none.
    """
    sizes = {name: array.shape[0] if array.ndim else 0 for name, array in batch.items()}
    if len(set(sizes.values())) != 1 or not min(sizes.values()):
        found = ", ".join(f"{name}: {size}" for name, size in sizes.items()) or "no inputs"
        raise DataError(f"a batch needs arrays of one equal, positive length on axis 0, got {found}")
    rows = next(iter(sizes.values()))
    names = getattr(batch, "samples", None) or [f"sample {seen + row}" for row in range(rows)]
    return Batch(batch, samples=names, valid=min(getattr(batch, "valid", rows), rows))


def not_finite(seen: Seen) -> str:
    """The worst that a tensor holds."""
    return "inf" if seen.positive_inf else "nan" if math.isnan(seen.amax) else "-inf"


def refuse_unless_mask(name: str, seen: Seen, sample: str, *, fed: bool) -> None:
    """nan, inf, and -inf in an input are errors; -inf inside the network is how attention masks its scores."""
    found = not_finite(seen)
    if fed or found != "-inf":
        raise NonFiniteError(f"{sample}: tensor {name!r} holds {found}, and no tensor before it in the graph does")

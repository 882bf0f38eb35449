"""One pass over the data: runner and batches -> activation statistics."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trtcal.errors import DataError
from trtcal.files import checkpoint as checkpoints
from trtcal.passes.collector import Collector, Progress, Seen
from trtcal.passes.ordered import in_order
from trtcal.ranges.both_grids import PairBuilder
from trtcal.ranges.histogram import Histogram, abs_max
from trtcal.ranges.stats import ActivationStats, parse
from trtcal.samples.batches import Batch

logger = logging.getLogger(__name__)

SNAPSHOT_SECONDS = 1.0  # at most this much of a pass is lost to an interruption,
CHECKPOINT_SECONDS = 30.0  # and this much to a kill
GROUP = 1 << 14  # elements that are looked at before they are counted: what is small enough for a core's own cache

Answer = Mapping[str, np.ndarray]
Run = Callable[[Mapping[str, np.ndarray]], Answer]
"""One sample, ``{input: (1, ...)}`` -> its tensors: what any Runner is when called."""


def collect(
    runner: Run,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    growth: str = "double",
    workers: int = 1,
    checkpoint: str | Path | None = None,
    checkpoint_key: str = "",
    keep_checkpoint: bool = False,
    progress: Progress | None = None,
    look: Callable[[ActivationStats], None] | None = None,
    start: ActivationStats | None = None,
) -> ActivationStats:
    """Run every sample of the batches once -> what each float tensor of the answers did.

    Samples run one at a time, so a tensor's largest |x| belongs to a sample whatever its axes mean, memory
    holds one sample's tensors per worker, and the batch size leaves no trace but in ``batch_grid``. (There, TensorRT
    wants the maximum of a tensor's first batch that is not all zeros before it counts. Up to 128 MiB of such a batch
    are held; a larger one runs twice.) ``workers`` samples run at once; they change nothing but the time.

    ``look`` is shown the statistics after each batch with which their samples reach another power of two, and
    at the end.

    ``checkpoint`` names a file that keeps the statistics of an interrupted pass, with ``checkpoint_key``
    saying what they belong to; a later call with an equal key goes on from there and deletes the file at
    the end, unless ``keep_checkpoint`` leaves that to the caller. One that cannot be written costs a warning.

    ``start`` is what the pass goes on from where there is no such file: the statistics of so many of the first batches
    as they say, which are not run again.

    A nan or an inf raises NonFiniteError with the sample and the first such tensor. Two are let pass inside the
    network, and leave their tensor without histograms: -inf, since masks are made of it, and nan that the graph itself
    replaces, as the runner's ``decisive(names)`` tells, which of its tensors decide what the model answers (without it,
    any nan is an error). ModelError where tensors differ from sample to sample. No batches at all: DataError.
    """
    collector = Collector(_Here(runner, growth, workers), growth, progress)
    done = 0
    resume = load_checkpoint(checkpoint, checkpoint_key) if checkpoint is not None else None
    if resume is not None:
        logger.info("%s: going on after %d samples", checkpoint, len(resume.samples))
    resume = resume or start
    if resume is not None:
        collector.restore(resume)
        done = resume.batches
    snapshot, taken, saved = None, time.monotonic(), time.monotonic()
    shown = False
    try:
        for batch in islice(batches, done, None):
            before = len(collector.samples)
            collector.add(batch)
            shown = len(collector.samples).bit_length() > before.bit_length()
            if look is not None and shown:
                look(collector.build())
            if checkpoint is None:
                continue
            now = time.monotonic()
            if now - taken >= SNAPSHOT_SECONDS:
                snapshot, taken = collector.build(), now
            if snapshot is not None and now - saved >= CHECKPOINT_SECONDS:
                save_checkpoint(snapshot, checkpoint, checkpoint_key)
                saved = now
    except BaseException:
        if checkpoint is not None and snapshot is not None:
            save_checkpoint(snapshot, checkpoint, checkpoint_key)
        raise
    if not collector.batches:
        raise DataError("no batches: there is nothing to calibrate on")
    if checkpoint is not None and not keep_checkpoint:
        Path(checkpoint).unlink(missing_ok=True)
    stats = collector.build()
    if look is not None and not shown:
        look(stats)
    return stats


def load_checkpoint(path: str | Path, key: str) -> ActivationStats | None:
    """What an interrupted pass left under this key; None, with the reason in the log, where nothing can be used."""

    def parsed(data: bytes) -> tuple[ActivationStats, object]:
        stats, header = parse(data, str(path))
        return stats, header.get("key")

    return checkpoints.load(path, key, parsed)


def save_checkpoint(stats: ActivationStats, path: str | Path, key: str) -> None:
    """Statistics so far -> a file from which a pass with this key goes on; where it cannot be written, a warning."""
    checkpoints.save(path, stats.to_bytes(key=key))


class Values(NamedTuple):
    """A tensor of one sample in NumPy's memory."""

    name: str
    values: np.ndarray  # float32

    @property
    def kept_bytes(self) -> int:
        """What keeping its values takes."""
        return self.values.nbytes


class _Grids:
    """One tensor's histograms, counted by the CPU."""

    def __init__(self, growth: str) -> None:
        self._growth = growth
        self._both = PairBuilder(growth)

    @property
    def limit(self) -> float:
        return self._both.limit

    def start_batch(self) -> None:
        self._both.start_batch()

    def fit(self, amax: float) -> None:
        self._both.fit(amax)

    def add(self, shown: Values, seen: Seen, *, fine: bool, batch_grid: bool) -> int:
        return self._add(shown.values, seen.amax, fine, batch_grid)

    def add_clipped(self, shown: Values, seen: Seen, *, fine: bool, batch_grid: bool) -> int:
        return self._add(np.minimum(np.abs(shown.values), np.float32(seen.amax)), seen.amax, fine, batch_grid)

    def _add(self, values: np.ndarray, amax: float, fine: bool, batch_grid: bool) -> int:
        if fine and batch_grid:
            return self._both.add(values, amax)
        if fine or batch_grid:
            return (self._both.fine if fine else self._both.batch_grid).add(values, amax)
        return int((np.abs(values) == np.float32(amax)).sum())

    def clear(self) -> None:
        self._both = PairBuilder(self._growth)

    def build(self) -> tuple[Histogram, Histogram]:
        return self._both.fine.build(), self._both.batch_grid.build()

    def restore(self, fine: Histogram, batch_grid: Histogram) -> None:
        self._both.fine.restore(fine)
        self._both.batch_grid.restore(batch_grid)


class _Here:
    """A runner whose answers are NumPy arrays, as a `trtcal.passes.collector.TensorSource`."""

    def __init__(self, runner: Run, growth: str, workers: int) -> None:
        self._runner, self._growth, self._workers = runner, growth, workers

    def run(self, batch: Batch, rows: Iterable[int]) -> Iterator[tuple[int, Iterator[list[Values]]]]:
        for row, answer in run_rows(self._runner, batch, rows, self._workers):
            yield row, self._groups(answer)

    def grids(self) -> _Grids:
        return _Grids(self._growth)

    def look(self, group: Sequence[Values], grids: object, wanted: object) -> list[Seen]:
        return [self._look(shown.values) for shown in group]

    def decisive(self, names: Collection[str]) -> Collection[str] | None:
        known = getattr(self._runner, "decisive", None)
        return None if known is None else known(names)

    def _look(self, values: np.ndarray) -> Seen:
        amax = abs_max(values)
        return Seen(amax, None, not math.isfinite(amax) and bool((values == np.inf).any()), False)

    def _groups(self, answer: dict[str, np.ndarray]) -> Iterator[list[Values]]:
        """An answer -> its tensors, which are let go of as soon as they are counted; small ones together."""
        group, size = [], 0
        for name in list(answer):
            group.append(Values(name, as_float32(answer.pop(name))))
            size += group[-1].values.size
            if size >= GROUP:
                yield group
                group, size = [], 0
        yield group


def as_float32(values: np.ndarray) -> np.ndarray:
    """Array -> itself in float32, in which a float64 may be inf, as it is in TensorRT."""
    if values.dtype == np.float32:
        return values
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def run_rows(
    runner: Run,
    batch: Mapping[str, np.ndarray],
    rows: Iterable[int],
    workers: int,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Rows of a batch -> each row's number and the runner's answer to it alone, in order.

    Up to ``workers`` of them are under way at once. A dictionary belongs to the caller, who may empty it.
    """

    def run(row: int) -> tuple[int, dict[str, np.ndarray]]:
        return row, dict(runner({name: array[row : row + 1] for name, array in batch.items()}))

    return in_order(run, rows, workers)

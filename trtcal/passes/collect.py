"""One pass over the data: runner and batches -> activation statistics."""

from __future__ import annotations

import logging
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trtcal.errors import DataError, NonFiniteError, OutputError, StatsError
from trtcal.files.atomic import write_bytes
from trtcal.ranges.both_grids import PairBuilder
from trtcal.ranges.growth import growth_rule
from trtcal.ranges.histogram import abs_max
from trtcal.ranges.stats import ActivationStats, TensorStats, parse
from trtcal.samples.batches import Batch

logger = logging.getLogger(__name__)

SNAPSHOT_SECONDS = 1.0  # at most this much of a pass is lost to an interruption,
CHECKPOINT_SECONDS = 30.0  # and this much to a kill
HELD_BYTES = 128 << 20  # a batch that has to be known before it is counted is kept up to here, and above run twice
ROW_BYTES = 256  # what an array and its _Row take beside the elements

Answer = Mapping[str, np.ndarray]
Progress = Callable[[int], None]
"""Called with the number of samples that are done, after each."""


def collect(
    runner: Callable[[Mapping[str, np.ndarray]], Answer],
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
    holds one sample's tensors per worker, and the batch size leaves no trace but in ``streamed``. (There, TensorRT
    wants the maximum of a tensor's first batch that is not all zeros before it counts. Up to 128 MiB of such a batch
    are held; a larger one runs twice.) ``workers`` samples run at once; they change nothing but the time.

    ``look`` is shown the statistics after each batch with which their samples reach another power of two, and
    at the end.

    ``checkpoint`` names a file that keeps the statistics of an interrupted pass, with ``checkpoint_key``
    saying what they belong to; a later call with an equal key goes on from there and deletes the file at
    the end, unless ``keep_checkpoint`` leaves that to the caller. One that cannot be written costs a warning.

    ``start`` is what the pass goes on from where there is no such file: the statistics of so many of the first batches
    as they say, which are not run again.

    A nan or an inf raises NonFiniteError with the sample and the first such tensor; only -inf inside the
    network is let pass, since masks are made of it, and leaves its tensor without histograms. No batches at
    all: DataError.
    """
    collector = _Collector(runner, growth, workers, progress)
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
    path = Path(path)
    if not path.exists():
        return None
    try:
        stats, header = parse(path.read_bytes(), str(path))
    except (OSError, StatsError) as error:
        logger.warning("%s; starting over", error)
        return None
    if header.get("key") != key:
        logger.info("%s: left by a pass over something else; starting over", path)
        return None
    return stats


def save_checkpoint(stats: ActivationStats, path: str | Path, key: str) -> None:
    """Statistics so far -> a file from which a pass with this key goes on; where it cannot be written, a warning."""
    try:
        write_bytes(path, stats.to_bytes(key=key))
    except OutputError as error:  # a full disk ends the convenience, not the pass
        logger.warning("%s; an interruption will cost what was done so far", error)


@dataclass
class _Row:
    """A sample of a batch that has to be known as a whole before it is counted."""

    row: int
    amax: float
    sample: int | None  # its place among the tensor's samples; None for padding
    values: np.ndarray | None  # None: not held


class _Tensor:
    """Everything that is accumulated for one tensor."""

    def __init__(self, growth: str) -> None:
        self.sample_amax = array("f")  # 12 bytes a sample in both; lists of numbers would take four times that
        self.sample_peaks = array("q")
        self.growth = growth
        self.both = PairBuilder(growth)
        self.waiting: list[_Row] = []  # in a batch that sets the first limit and is still arriving
        self.masked = False

    def add(self, values: np.ndarray, row: _Row, *, wait: bool) -> None:
        """Note one sample's maximum and count it; with ``wait`` later, if the limit is still open."""
        if not np.isfinite(row.amax) and not self.masked:
            # From the first -inf on there is no range to find, whatever the other samples hold.
            self.masked, self.both = True, PairBuilder(self.growth)
        if row.sample is not None:
            self.sample_amax.append(row.amax)
            self.sample_peaks.append(0)
        if wait and row.amax and not self.masked and self.both.limit == 0:
            self.waiting.append(row)
        else:
            self.count(values, row)

    def count(self, values: np.ndarray, row: _Row) -> None:
        """Count one sample."""
        if row.sample is None:
            if not self.masked:
                self.both.streamed.add(values, row.amax)
        elif self.masked:
            self.sample_peaks[row.sample] = int((np.abs(values) == row.amax).sum())
        else:
            self.sample_peaks[row.sample] = self.both.add(values, row.amax)

    def count_held(self) -> None:
        """Count what waited and is at hand, now that the batch is known; the rest goes on waiting."""
        if not self.masked:
            self.both.fit(max(row.amax for row in self.waiting))
        for row in self.waiting:
            if row.values is not None:
                self.count(row.values, row)
        self.waiting = [row for row in self.waiting if row.values is None]


class _Collector:
    def __init__(self, runner: Any, growth: str, workers: int, progress: Progress | None) -> None:
        self.runner, self.growth, self.workers = runner, growth, workers
        self.progress = progress or (lambda done: None)
        self.samples: list[str] = []
        self.tensors: dict[str, _Tensor] = {}
        self.batches = 0
        self.seen = 0

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Run one batch; after an error the collector is of no further use."""
        batch = as_batch(arrays, self.seen)
        names, rows, valid = batch.samples, len(batch.samples), batch.valid
        self.seen += valid
        wait = rows > 1 and not growth_rule(self.growth).invariant
        hold: bool | None = None
        for tensor in self.tensors.values():
            tensor.both.start_batch()
        for row, answer in run_rows(self.runner, batch, range(rows), self.workers):
            if not self.tensors:
                self.tensors = {name: _Tensor(self.growth) for name in answer}
            if hold is None:
                unknown = [name for name, seen in self.tensors.items() if seen.both.limit == 0 and not seen.masked]
                size = sum(4 * np.size(answer[name]) + ROW_BYTES for name in unknown)
                hold = wait and rows * size <= HELD_BYTES
            for name in list(answer):
                values = _float32(answer.pop(name))  # a tensor is let go of as soon as it is counted
                amax = abs_max(values)
                if not np.isfinite(amax):
                    refuse_unless_mask(name, values, amax, names[row], name in batch)
                tensor = self.tensors[name]
                sample = len(tensor.sample_amax) if row < valid else None
                tensor.add(values, _Row(row, amax, sample, values if hold else None), wait=wait)
            if row < valid:
                self.samples.append(names[row])
                self.progress(len(self.samples))
        for tensor in self.tensors.values():
            if tensor.waiting:
                tensor.count_held()
        self._count_again(batch)
        self.batches += 1

    def _count_again(self, batch: Mapping[str, np.ndarray]) -> None:
        """Run rows once more for the tensors that go on waiting, since they were not held."""
        waiting = {name: {row.row: row for row in tensor.waiting} for name, tensor in self.tensors.items()}
        waiting = {name: rows for name, rows in waiting.items() if rows}
        if not waiting:
            return
        rows = sorted(set().union(*waiting.values()))
        for row, answer in run_rows(self.runner, batch, rows, self.workers):
            for name in list(answer):
                values = answer.pop(name)
                if row in waiting.get(name, ()):
                    self.tensors[name].count(_float32(values), waiting[name][row])
        for name in waiting:
            self.tensors[name].waiting = []

    def build(self) -> ActivationStats:
        """The statistics so far."""
        tensors = {
            name: TensorStats(
                np.array(tensor.sample_amax, np.float32),
                np.array(tensor.sample_peaks, np.int64),
                tensor.both.fine.build(),
                tensor.both.streamed.build(),
            )
            for name, tensor in self.tensors.items()
        }
        return ActivationStats(tuple(self.samples), tensors, self.growth, self.batches)

    def restore(self, stats: ActivationStats) -> None:
        """Stand where :meth:`build` gave ``stats``."""
        self.samples, self.batches, self.seen = list(stats.samples), stats.batches, len(stats.samples)
        self.tensors = {}
        for name, saved in stats.tensors.items():
            tensor = self.tensors[name] = _Tensor(self.growth)
            tensor.sample_amax = array("f", saved.sample_amax.tolist())
            tensor.sample_peaks = array("q", saved.sample_peaks.tolist())
            tensor.masked = bool(np.isinf(saved.sample_amax).any())
            tensor.both.fine.restore(saved.histogram)
            if saved.streamed is not None:
                tensor.both.streamed.restore(saved.streamed)


def run_rows(
    runner: Callable[[Mapping[str, np.ndarray]], Answer],
    batch: Mapping[str, np.ndarray],
    rows: Iterable[int],
    workers: int,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Rows of a batch -> each row's number and the runner's answer to it alone, in order.

    Up to ``workers`` of them are under way at once. A dictionary belongs to the caller, who may empty it.
    """

    def run(row: int) -> tuple[int, dict[str, np.ndarray]]:
        return row, dict(runner({name: array[row : row + 1] for name, array in batch.items()}))

    if workers <= 1:
        yield from map(run, rows)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="trtcal-run") as pool:
        under_way: deque[Future[tuple[int, dict[str, np.ndarray]]]] = deque()
        for row in rows:
            under_way.append(pool.submit(run, row))
            # The caller's thread is one of the busy ones, so one row fewer runs while it has an answer.
            if len(under_way) == workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


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


def refuse_unless_mask(name: str, values: np.ndarray, amax: float, sample: str, fed: bool) -> None:
    """nan, inf, and -inf in an input are errors; -inf inside the network is how attention masks its scores."""
    found = "nan" if np.isnan(amax) else "inf" if (values == np.inf).any() else "-inf"
    if fed or found != "-inf":
        raise NonFiniteError(f"{sample}: tensor {name!r} holds {found}, and no tensor before it in the graph does")


def _float32(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)

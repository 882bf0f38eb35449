"""One pass over the data on a Ray cluster.

The first batch runs as one task, since TensorRT's histograms begin with its maxima. Then shards of the batches run
as tasks whose worker processes keep their session, a bounded number of them at once. What they leave is added in a
tree, neighbours to neighbours (`partial`), and the result has the bytes of a pass in one process, whatever
the number of workers, the order in which shards end, or how often Ray has to try.

The tree is cut where the samples reach another power of two. There the statistics so far are complete: they can be
looked at, tensors are counted again that no part knew the limit of, and less is held back by a shard that is late.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from trtcal.cluster import shards
from trtcal.cluster.ray_cluster import Cluster, fetched
from trtcal.errors import BackendError, DataError
from trtcal.passes.collect import CHECKPOINT_SECONDS, load_checkpoint, save_checkpoint
from trtcal.passes.collector import Progress
from trtcal.passes.executor import OpenRunner
from trtcal.passes.partial import Part, added, continued, first_limits, recounted, uncounted
from trtcal.ranges.stats import ActivationStats

logger = logging.getLogger(__name__)

SHARD_SAMPLES = 256  # at most; what a shard leaves is as large as what one sample leaves
FEW_SAMPLES = 32  # of the first shards of a source whose length nobody knows
SHARD_BYTES = 64 << 20  # of a shard whose arrays travel to the worker
SHARDS_PER_SLOT = 8  # at least, so that the last ones end at about the same time


def collect(
    open_runner: OpenRunner,
    batches: Iterable[Mapping[str, Any]],
    *,
    cluster: Cluster,
    growth: str = "double",
    workers: int | None = None,
    shard_samples: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_key: str = "",
    keep_checkpoint: bool = False,
    progress: Progress | None = None,
    look: Callable[[ActivationStats], None] | None = None,
) -> ActivationStats:
    """:func:`trtcal.passes.collect.collect` on a cluster, with the same answer to the last bit.

    ``open_runner`` is called once in each worker process, for instance ``partial(FloatRunner, model)``, and runs
    ``workers`` samples at once there (default: one for each CPU of a task). Of `Batches` over a source with random
    access only the numbers of the samples travel; workers read them where they lie. Other batches are read here and
    sent; they may be needed again, so an iterator is a TypeError. A shard is ``shard_samples`` or fewer (default: 256,
    fewer where that leaves workers idle).

    The checkpoint is that of one process, so either goes on where the other stopped. An error is the one that a
    single process would have come to. A lost worker costs its shard, which runs elsewhere; BackendError where that
    fails three times.
    """
    if isinstance(batches, Iterator):
        raise TypeError(f"a {type(batches).__name__} can be run through only once; pass what it was made from")
    done = None if checkpoint is None else load_checkpoint(checkpoint, checkpoint_key)
    if done is not None:
        logger.info("%s: going on after %d samples", checkpoint, len(done.samples))
    run = _Pass(open_runner, batches, cluster, growth, workers, shard_samples, done, progress, look)

    def save() -> None:
        if checkpoint is not None and (so_far := run.so_far()) is not None:
            save_checkpoint(so_far, checkpoint, checkpoint_key)

    try:
        stats = run.run(save)
    except BaseException:
        save()
        raise
    if checkpoint is not None and not keep_checkpoint:
        Path(checkpoint).unlink(missing_ok=True)
    return stats


class _Tree:
    """Parts in their order; neighbours are added as soon as both are there, in blocks of 2, 4, 8 and so on."""

    def __init__(self, add: Callable[[Any, Any], Any]) -> None:
        self._add = add
        self._blocks: dict[tuple[int, int], Any] = {}  # (level, number of the block on this level) -> reference

    def put(self, place: int, part: Any) -> None:
        level = 0
        while (neighbour := self._blocks.pop((level, place ^ 1), None)) is not None:
            part = self._add(neighbour, part) if place & 1 else self._add(part, neighbour)
            level, place = level + 1, place >> 1
        self._blocks[level, place] = part

    def beginning(self) -> Iterator[Any]:
        """The blocks that follow each other from the first part on."""
        end = 0
        for (level, place), part in sorted(self._blocks.items(), key=lambda block: block[0][1] << block[0][0]):
            if place << level != end:
                return
            yield part
            end += 1 << level

    def whole(self) -> Any:
        """All parts in one."""
        *others, whole = (
            part for _, part in sorted(self._blocks.items(), key=lambda block: block[0][1] << block[0][0])
        )
        for part in reversed(others):
            whole = self._add(part, whole)
        return whole


class _Segment:
    """Shards between two numbers of samples at which the statistics are complete."""

    def __init__(self, first: int, begin: int, add: Callable[[Any, Any], Any]) -> None:
        self.first = first  # number of its first shard
        self.begin = begin  # batches before it
        self.batches: list[int] = []  # of each shard
        self.tree = _Tree(add)
        self.ended = 0
        self.closed = False


class _Pass:
    def __init__(
        self,
        open_runner: OpenRunner,
        batches: Iterable[Mapping[str, Any]],
        cluster: Cluster,
        growth: str,
        workers: int | None,
        shard_samples: int | None,
        stats: ActivationStats | None,
        progress: Progress | None,
        look: Callable[[ActivationStats], None] | None,
    ) -> None:
        self.batches, self.cluster, self.stats = batches, cluster, stats
        self.progress = progress or (lambda done: None)
        self.look = look or (lambda stats: None)
        self.least_shards = SHARDS_PER_SLOT * cluster.slots
        self.shard_samples = shard_samples  # None, where nobody knows how many samples there are: more and more
        numbered = shards.by_number(batches)
        if shard_samples is None and numbered is not None:
            self.shard_samples = max(1, min(SHARD_SAMPLES, numbered.num_samples // self.least_shards))
        threads = workers or cluster.threads
        shared = cluster.share((open_runner, numbered and numbered.source))
        begin, shard = cluster.remote(shards.begin), cluster.remote(shards.shard, num_returns=2)
        self._begin: Callable[..., Any] = lambda work: begin.remote(shared, work, growth, threads)
        self._shard: Callable[..., Any] = lambda work, limits, again: shard.remote(
            shared, work, limits, growth, threads, again
        )
        self._add: Callable[[Any, Any], Any] = cluster.remote(added).remote
        self.segments: deque[_Segment] = deque()
        self.parts: dict[int, Any] = {}  # of shards under way
        self.names: dict[int, str] = {}  # their first samples
        self.shown = False
        self.failed: tuple[int, Exception] | None = None

    def run(self, save: Callable[[], None]) -> ActivationStats:
        units = shards.units(self.batches)
        if self.stats is None:
            first = next(units, None)
            if first is None:
                raise DataError("no batches: there is nothing to calibrate on")
            for _, ref in self.cluster.ended([lambda: self._begin([first.work])]):
                self.stats = fetched(ref, f"the batch of {first.first}")
            assert self.stats is not None
            self.progress(len(self.stats.samples))
            self._show(True)
        else:
            units = islice(units, self.stats.batches, None)
        done, due = len(self.stats.samples), time.monotonic() + CHECKPOINT_SECONDS
        for number, ref in self.cluster.ended(self._starts(units)):
            part, name = self.parts.pop(number), self.names.pop(number)
            try:
                done += fetched(ref, f"the samples from {name} on")
            except Exception as error:
                self._fail(number, error)
            else:
                segment = next(s for s in self.segments if number < s.first + len(s.batches))
                segment.tree.put(number - segment.first, part)
                segment.ended += 1
                self.progress(done)
                while self.segments and self.segments[0].closed and self._complete(self.segments[0]):
                    self._close()
            if self.failed is not None and self.failed[0] < min(self.parts, default=number + 1):
                break
            if time.monotonic() >= due:
                before = time.monotonic()
                save()
                # Of very many samples that takes long, and shards wait meanwhile: a twentieth of the time at most.
                due = time.monotonic() + max(CHECKPOINT_SECONDS, 20 * (time.monotonic() - before))
        if self.failed is not None:
            raise self.failed[1]
        while self.segments:
            self._close()
        if not self.shown:
            self.look(self.stats)
        return self.stats

    def so_far(self) -> ActivationStats | None:
        """The statistics of all batches up to the first shard that is not there."""
        stats = self.stats
        # An interruption may have come between the two steps by which a segment becomes part of the statistics.
        if stats is None or not self.segments or self.segments[0].begin != stats.batches:
            return stats
        try:
            for ref in self.segments[0].tree.beginning():
                part = fetched(ref)
                if uncounted(stats, part):
                    break
                stats = continued(stats, part)
        except (BackendError, OSError) as error:
            logger.warning("%s; what the shards under way had counted is lost", error)
        return stats

    def _starts(self, units: Iterator[shards.Unit]) -> Iterator[Callable[[], Any]]:
        """The shards, each as what starts it; no more of them after an error."""
        assert self.stats is not None
        samples, begin, number = len(self.stats.samples), self.stats.batches, 0
        more = True
        while more and self.failed is None:
            shard: list[shards.Unit] = []
            cut = False
            try:
                for unit in units:
                    shard.append(unit)
                    cut = (samples + unit.samples).bit_length() > samples.bit_length()
                    samples += unit.samples
                    enough = self.shard_samples or min(SHARD_SAMPLES, max(FEW_SAMPLES, samples // self.least_shards))
                    full = sum(u.samples for u in shard) >= enough or sum(u.size for u in shard) >= SHARD_BYTES
                    if cut or full:
                        break
                else:
                    more = False
            except Exception as error:  # of a source that is read here: what came before it goes first
                more = False
                self._fail(number + bool(shard), error)
            if shard:
                if not self.segments or self.segments[-1].closed:
                    self.segments.append(_Segment(number, begin, self._add))
                self.segments[-1].batches.append(len(shard))
                self.segments[-1].closed = cut
                yield self._start(number, shard)
                begin, number = begin + len(shard), number + 1

    def _start(self, number: int, shard: list[shards.Unit]) -> Callable[[], Any]:
        def start() -> Any:
            assert self.stats is not None
            ended, part = self._shard([unit.work for unit in shard], first_limits(self.stats), False)
            self.parts[number], self.names[number] = part, shard[0].first
            return ended

        return start

    def _fail(self, number: int, error: Exception) -> None:
        if self.failed is None or number < self.failed[0]:
            self.failed = number, error

    def _complete(self, segment: _Segment) -> bool:
        return segment.ended == len(segment.batches)

    def _close(self) -> None:
        """The first segment becomes part of the statistics."""
        assert self.stats is not None
        segment = self.segments[0]
        part = fetched(segment.tree.whole())
        again = uncounted(self.stats, part)
        if again:
            logger.info("counting %d tensors again whose first batch was all zeros", len(again))
            part = recounted(part, self._count_again(segment, part, again))
        self.stats = continued(self.stats, part)
        self.segments.popleft()
        self._show(segment.closed)

    def _count_again(self, segment: _Segment, part: Part, limits: Mapping[str, float]) -> Part:
        assert self.stats is not None
        units = islice(shards.units(self.batches), self.stats.batches, None)
        parts: list[Any] = []

        def starts() -> Iterator[Callable[[], Any]]:
            end = 0
            for size in segment.batches:
                begin, end = end, end + size
                work = [unit.work for unit in islice(units, size)]
                if any(part.tensors[name].batch_amax[begin:end].any() for name in limits):
                    yield start(work)

        def start(work: list[Any]) -> Callable[[], Any]:
            def now() -> Any:
                ended, counted = self._shard(work, limits, True)
                parts.append(counted)
                return ended

            return now

        for _, ref in self.cluster.ended(starts()):
            fetched(ref)
        tree = _Tree(self._add)
        for place, counted in enumerate(parts):
            tree.put(place, counted)
        found: Part = fetched(tree.whole())
        return found

    def _show(self, cut: bool) -> None:
        self.shown = cut
        if cut:
            assert self.stats is not None
            self.look(self.stats)

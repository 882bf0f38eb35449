"""Batches that are gone through many times: kept as they were read, as far as memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from trtcal.samples.batches import Batch, Batches, Samples, load_batches

HELD_BYTES = 512 << 20

T = TypeVar("T")
R = TypeVar("R")


class Held:
    """Batches -> the same, read once where they fit into ``at_most`` bytes; of more, the first are kept.

    Reading pictures costs as much as running a small model does.
    """

    def __init__(self, batches: Batches, at_most: int = HELD_BYTES) -> None:
        self._batches, self._room = batches, at_most
        self._kept: list[Batch] = []
        self._full = False

    def __iter__(self) -> Iterator[Batch]:
        return self.some(0, None)

    def some(self, first: int, last: int | None) -> Iterator[Batch]:
        """The batches from number ``first`` up to ``last``, to the end if that is None."""
        yield from self._kept[first:last]
        begin = max(first, len(self._kept))
        if last is not None and begin >= last:
            return
        for number, batch in enumerate(self._read(begin, last), begin):
            size = sum(array.nbytes for array in batch.values())
            self._full = self._full or size > self._room
            if not self._full and number == len(self._kept):
                self._kept.append(batch)
                self._room -= size
            yield batch

    def _read(self, first: int, last: int | None) -> Iterator[Batch]:
        source = self._batches.source
        if isinstance(source, Samples):
            return load_batches(source, islice(self._batches.groups(), first, last))
        return islice(iter(self._batches), first, last)


def in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """What ``work`` makes of each item, in order; so many at once, and hardly more items taken than that."""
    if workers <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="trtcal-judge") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

"""Where work runs: the pass over the data, and tasks that do not depend on each other.

:class:`Here` is this process; :class:`trtcal.cluster.executor.RayExecutor` a cluster. Results do not depend on which.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from trtcal.passes.collect import collect
from trtcal.ranges.stats import ActivationStats

T = TypeVar("T")
R = TypeVar("R")

Ended = Generator[tuple[int, R | Exception], None, None]
"""Numbers of items and what came of each, as they end; who does not want all of it closes it."""

OpenRunner = Callable[[], AbstractContextManager[Any]]
"""Nothing -> the runner of a pass, once in each process: for instance ``partial(FloatRunner, model)``."""


class Executor(Protocol):
    """Where work runs."""

    @property
    def workers(self) -> int:
        """How many samples, or tensors, are worked on at once by what stays in this process."""

    @property
    def within_task(self) -> Executor:
        """Where a task of :meth:`spread` runs what it is made of."""

    def run_pass(
        self, open_runner: OpenRunner, batches: Iterable[Mapping[str, Any]], **options: Any
    ) -> ActivationStats:
        """The pass over the batches; ``options`` are those of :func:`trtcal.passes.collect.collect`."""

    def spread(self, function: Callable[[T], R], items: Sequence[T]) -> Ended[R]:
        """Call a function on each item -> number of the item and what came of it, as they end.

        An exception is what came of that item.
        """


class Here:
    """This process: so many samples at once (default: one per core), one task after the other."""

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.workers = workers or os.cpu_count() or 1

    @property
    def within_task(self) -> Here:
        """The same: a task has this process to itself."""
        return self

    def run_pass(
        self, open_runner: OpenRunner, batches: Iterable[Mapping[str, Any]], **options: Any
    ) -> ActivationStats:
        """:meth:`Executor.run_pass`."""
        with open_runner() as runner:
            return collect(runner, batches, workers=self.workers, **options)

    def spread(self, function: Callable[[T], R], items: Sequence[T]) -> Ended[R]:
        """:meth:`Executor.spread`."""
        return one_by_one(function, items)


def one_by_one(function: Callable[[T], R], items: Sequence[T]) -> Ended[R]:
    """What :meth:`Executor.spread` does, within this thread."""
    for number, item in enumerate(items):
        try:
            found: R | Exception = function(item)
        except Exception as error:
            found = error
        yield number, found

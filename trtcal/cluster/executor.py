"""A Ray cluster as the place where work runs: the counterpart of :class:`trtcal.passes.executor.Here`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from trtcal.cluster.distributed import collect
from trtcal.cluster.ray_cluster import Cluster
from trtcal.passes.executor import Ended, Here, OpenRunner
from trtcal.ranges.stats import ActivationStats

T = TypeVar("T")
R = TypeVar("R")


class RayExecutor:
    """An open cluster: parts of a pass and tasks run on its nodes.

    ``workers`` samples run at once in a task (default: one for each CPU that it takes), and in what stays in this
    process (default: one per core).
    """

    def __init__(self, cluster: Cluster, workers: int | None = None) -> None:
        self.cluster = cluster
        self.workers = workers or os.cpu_count() or 1
        self.within_task = Here(workers or cluster.threads)

    def run_pass(
        self, open_runner: OpenRunner, batches: Iterable[Mapping[str, Any]], **options: Any
    ) -> ActivationStats:
        """:meth:`trtcal.passes.executor.Executor.run_pass`; of the options, ``start`` is not known here."""
        return collect(open_runner, batches, cluster=self.cluster, workers=self.within_task.workers, **options)

    def spread(self, function: Callable[[T], R], items: Sequence[T]) -> Ended[R]:
        """:meth:`trtcal.cluster.ray_cluster.Cluster.spread`."""
        return self.cluster.spread(function, items)

"""What a pass on a cluster is cut into, and what its workers do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from trtcal.cluster.ray_cluster import Shared
from trtcal.passes.collect import collect
from trtcal.passes.collector import as_batch
from trtcal.passes.executor import OpenRunner
from trtcal.passes.partial import Part, collect_part
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.batches import Batch, Batches, Samples, load_batches


class Unit(NamedTuple):
    """A batch: the numbers of its samples and how many are valid, or itself; how many samples and bytes it is."""

    work: Any
    first: str
    samples: int
    size: int


def by_number(batches: object) -> Batches | None:
    """The batches, if their samples have numbers, so that workers can read them."""
    return batches if isinstance(batches, Batches) and isinstance(batches.source, Samples) else None


def units(batches: Iterable[Mapping[str, Any]]) -> Iterator[Unit]:
    """Batches -> their units, in order."""
    numbered = by_number(batches)
    if numbered is not None:
        assert isinstance(numbered.source, Samples)
        for numbers, valid in numbered.groups():
            yield Unit((numbers, valid), numbered.source.name(numbers[0]), valid, 0)
        return
    seen = 0
    for feed in batches:
        batch = as_batch(feed, seen)
        seen += batch.valid
        yield Unit(batch, batch.samples[0], batch.valid, sum(array.nbytes for array in batch.values()))


# --- what runs in the workers


def _open(shared: tuple[OpenRunner, Samples | None]) -> tuple[Any, Samples | None]:
    return shared[0]().__enter__(), shared[1]


def _loaded(source: Samples | None, work: Sequence[Any], threads: int) -> Iterable[Batch]:
    return work if source is None else load_batches(source, work, threads)


def begin(shared: Shared, work: Sequence[Any], growth: str, threads: int) -> ActivationStats:
    """Works of the first units -> the statistics with which a pass begins."""
    runner, source = shared.kept(_open)
    return collect(runner, _loaded(source, work, threads), growth=growth, workers=threads)


def shard(
    shared: Shared,
    work: Sequence[Any],
    limits: Mapping[str, float],
    growth: str,
    threads: int,
    again: bool,
) -> tuple[int, Part]:
    """Works of a shard's units, and the limits that the pass began with -> number of samples, and their part.

    With ``again``, only the tensors that have a limit are run.
    """
    runner, source = shared.kept(_open)
    with _only(runner, limits) if again else nullcontext(runner) as runner:
        part = collect_part(runner, _loaded(source, work, threads), limits, growth=growth, workers=threads)
    return len(part.samples), part


@contextmanager
def _only(runner: Any, names: Iterable[str]) -> Iterator[Callable[[Mapping[str, Any]], dict[str, Any]]]:
    only = getattr(runner, "only", lambda names: nullcontext(runner))
    with only(names) as runner:

        def some(batch: Mapping[str, Any]) -> dict[str, Any]:
            answer = runner(batch)
            return {name: answer[name] for name in names}

        yield some

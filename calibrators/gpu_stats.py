"""Activation statistics on a GPU: TensorRT runs the model in FP32, a kernel counts where the values lie.

The same value as `trtcal.passes.collect.collect` gives on a CPU. On equal values the counts are equal bit for bit; but
values come from TensorRT there and from ONNX Runtime here, and differ in their last bits, and ranges with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from calibrators.buffers import Buffers
from calibrators.device_kernels import NOTHING, SUMMARY_BYTES, TABLE_BYTES, Observer, Span, below
from calibrators.memory import DeviceMemory, open_memory
from calibrators.shapes import extremes
from calibrators.visible import Visible, VisibleEngine
from trtcal.errors import DataError
from trtcal.model.open import Source, open_model
from trtcal.passes.collector import Collector, Progress, Seen
from trtcal.passes.sharing import peeked
from trtcal.ranges.growth import growth_rule, power_of_two
from trtcal.ranges.histogram import FINE_BINS, NUM_BINS, Histogram, HistogramBuilder
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.batches import Batch, Batches
from trtcal.samples.streams import batches_of


def collect_on_gpu(
    model: Source,
    batches: Iterable[Any],
    *,
    growth: str = "double",
    memory: str | DeviceMemory | None = None,
    limit: int | None = None,
    workspace: int | None = None,
    progress: Progress | None = None,
) -> ActivationStats:
    """Model and batches ``{input: (N, ...)}`` -> what each float tensor did, collected on the GPU.

    Batches and ``growth`` are as `trtcal.calibrate` takes them, ``progress`` is called with the number of samples done.
    ``memory`` is what `open_memory` takes: a name, or what it gave before, for another device say. ``limit``: bytes of
    activations that may be on the device at once (default: half of what is free); a sample with more runs through
    several engines. ``workspace``: bytes of scratch memory for TensorRT.

    Samples run singly, as on the CPU: a tensor's largest |x| then belongs to a sample whatever its axes mean.

    Raises BackendError where TensorRT, a GPU or NVRTC is missing or the model cannot be run so; ModelError, DataError
    and NonFiniteError as the pass on the CPU does.
    """
    growth_rule(growth)
    model = open_model(model)
    inputs = model.inputs
    with ExitStack() as stack:
        opened = open_memory(memory)
        if opened is not memory:
            stack.callback(opened.close)
        observer = stack.enter_context(Observer(opened))
        # Not before: the CPU may have to do it, with batches that cannot be had twice.
        model, batches = peeked(model, batches, must_run=False)

        def fed() -> Iterable[Batch]:
            return batches if isinstance(batches, Batches) else batches_of(batches, inputs)

        # An engine takes a range of shapes; data that can be read twice tell it before the first engine is built.
        sizes = None if isinstance(batches, Iterator) else extremes(inputs, fed())
        engine = stack.enter_context(VisibleEngine(model, opened, limit=limit, workspace=workspace, sizes=sizes))
        return observe_all(engine, observer, fed(), growth, progress)


class Shows(Protocol):
    """What runs a sample and shows its tensors: `VisibleEngine`, or a stand-in."""

    def run(self, sample: Mapping[str, np.ndarray]) -> Iterator[list[Visible]]:
        """As `VisibleEngine.run`."""


def observe_all(
    engine: Shows,
    observer: Observer,
    batches: Iterable[Mapping[str, np.ndarray]],
    growth: str = "double",
    progress: Progress | None = None,
) -> ActivationStats:
    """Every sample of the batches, run once -> statistics, by `collect`'s rules; DataError without a batch."""
    with _OnDevice(engine, observer, growth) as source:
        collector = Collector(source, growth, progress)
        for batch in batches:
            collector.add(batch)
        if not collector.batches:
            raise DataError("no batches: there is nothing to calibrate on")
        return collector.build()


class _OnDevice:
    """An engine and a kernel that counts what it shows, as a `trtcal.passes.collector.TensorSource`."""

    def __init__(self, engine: Shows, observer: Observer, growth: str) -> None:
        self._engine, self._growth = engine, growth
        self.observer = observer
        self.buffers = Buffers(observer.memory, slots=2)
        self._made = 0

    def run(self, batch: Batch, rows: Iterable[int]) -> Iterator[tuple[int, Iterator[list[Visible]]]]:
        for row in rows:
            yield row, self._engine.run({name: array[row : row + 1] for name, array in batch.items()})

    def decisive(self, names: Collection[str]) -> Collection[str] | None:
        known = getattr(self._engine, "decisive", None)
        return None if known is None else known(names)

    def grids(self) -> _Grids:
        self._made += 1
        return _Grids(self, self.buffers.device(0, str(self._made), TABLE_BYTES), self._growth)

    def look(
        self, group: Sequence[Visible], grids: Sequence[_Grids], wanted: Sequence[tuple[bool, bool]]
    ) -> Sequence[Seen]:
        """Each tensor read once, and counted where its limits reach."""
        if not group:
            return []
        nbytes = len(group) * SUMMARY_BYTES
        summaries = self.buffers.device(1, "summaries", nbytes)
        self.observer.memory.clear(summaries, nbytes)
        for number, (shown, tensor, (fine, batch_grid)) in enumerate(zip(group, grids, wanted, strict=True)):
            tensor.read(shown, summaries + number * SUMMARY_BYTES, fine, batch_grid)
        found = self.observer.summaries(summaries, len(group))
        return [Seen(float(one.amax), one.peaks, one.positive_inf, counted=True) for one in found]

    def __enter__(self) -> _OnDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.buffers.close()


class _Grids:
    """One tensor's histograms; what was counted since a limit last grew is still on the device, at ``counts``."""

    def __init__(self, source: _OnDevice, counts: int, growth: str) -> None:
        self._source, self._observer, self._counts, self._growth = source, source.observer, counts, growth
        self.clear()

    def clear(self) -> None:
        self._fine = HistogramBuilder(FINE_BINS, power_of_two)
        self._batch_grid = HistogramBuilder(NUM_BINS, growth_rule(self._growth).grow)
        self._spans = [NOTHING, NOTHING]  # of both, as they were counted by the look before
        self._observer.memory.clear(self._counts, TABLE_BYTES)

    @property
    def limit(self) -> float:
        return self._batch_grid.limit

    def start_batch(self) -> None:
        self._batch_grid.start_batch()

    def fit(self, amax: float) -> None:
        self._batch_grid.fit(amax)

    def read(self, shown: Visible, summary: int, fine: bool, batch_grid: bool) -> None:
        """Count what has a bin already."""
        self._spans = [below(grid.limit) if wanted else NOTHING for grid, _, wanted in self._pairs(fine, batch_grid)]
        self._observe(shown, summary, self._spans)

    def add(self, shown: Visible, seen: Seen, *, fine: bool, batch_grid: bool) -> int:
        """Limits grown where a tensor was larger, and then counts of what had no bin before."""
        assert seen.peaks is not None
        wanted = [(grid, span) for grid, span, counts in self._pairs(fine, batch_grid) if counts]
        if any(grid.growth(grid.limit, seen.amax) != grid.limit for grid, _ in wanted):
            self._fetch()  # they are in bins of the limits so far
        for grid, span in wanted:
            grid.fit(seen.amax)
            if seen.amax == 0 and span is NOTHING:
                grid.counts[0] += shown.elements
            if seen.amax == grid.limit > 0:  # the kernel has no bin for the limit itself, TensorRT takes its last one
                grid.counts[-1] += seen.peaks
                grid.clamp(seen.amax, seen.peaks)
        if seen.amax:
            pairs = self._pairs(fine, batch_grid)
            left = [below(grid.limit, span) if counts else NOTHING for grid, span, counts in pairs]
            self._count_more(shown, [span if span.high > span.low else NOTHING for span in left])
        return seen.peaks

    def add_clipped(self, shown: Visible, seen: Seen, *, fine: bool, batch_grid: bool) -> int:
        """What is now at or above the limit, in the last bin: there it would have been counted, had it not grown."""
        assert batch_grid
        assert not fine  # which the first look has counted
        self._fetch()
        low, high = (int(np.float32(value).view(np.uint32)) for value in (self._batch_grid.limit, np.inf))
        self._count_more(shown, [NOTHING, Span(2.0**128, low, high)])
        excess = int(self._observer.counts(self._counts)[1].sum())
        self._observer.memory.clear(self._counts, TABLE_BYTES)
        self._batch_grid.counts[-1] += excess
        self._batch_grid.clamp(self._batch_grid.limit, excess)
        return excess

    def build(self) -> tuple[Histogram, Histogram]:
        self._fetch()
        return self._fine.build(), self._batch_grid.build()

    def restore(self, fine: Histogram, batch_grid: Histogram) -> None:
        self.clear()
        self._fine.restore(fine)
        self._batch_grid.restore(batch_grid)

    def _pairs(self, fine: bool, batch_grid: bool) -> tuple[tuple[HistogramBuilder, Span, bool], ...]:
        """Both grids, what the look before has counted on each, and whether it is wanted."""
        return (self._fine, self._spans[0], fine), (self._batch_grid, self._spans[1], batch_grid)

    def _count_more(self, shown: Visible, spans: Sequence[Span]) -> None:
        if any(span is not NOTHING for span in spans):
            self._observe(shown, self._source.buffers.device(1, "unread", SUMMARY_BYTES), spans)

    def _observe(self, shown: Visible, summary: int, spans: Sequence[Span]) -> None:
        self._observer.observe(shown.address, shown.elements, self._counts, summary, *spans)

    def _fetch(self) -> None:
        """Counts on the device -> added to those here."""
        fine, batch_grid = self._observer.counts(self._counts)
        self._fine.counts += fine
        self._batch_grid.counts += batch_grid
        self._observer.memory.clear(self._counts, TABLE_BYTES)

"""Activation statistics on a GPU: TensorRT runs the model in FP32, a kernel counts where the values lie.

The same value as `trtcal.passes.collect.collect` gives on a CPU. On equal values the counts are equal bit for bit; but
values come from TensorRT there and from ONNX Runtime here, and differ in their last bits, and ranges with them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from calibrators.buffers import Buffers
from calibrators.device_kernels import NOTHING, SUMMARY_BYTES, TABLE_BYTES, Observer, Seen, Span, below
from calibrators.memory import DeviceMemory, open_memory
from calibrators.shapes import extremes
from calibrators.visible import Visible, VisibleEngine
from trtcal.errors import DataError
from trtcal.model.open import Source, open_model
from trtcal.passes.collect import Progress, as_batch, refuse_unless_mask
from trtcal.ranges.growth import growth_rule, power_of_two
from trtcal.ranges.histogram import FINE_BINS, NUM_BINS, HistogramBuilder
from trtcal.ranges.stats import ActivationStats, TensorStats
from trtcal.samples.batches import Batch, Batches
from trtcal.samples.streams import batches_of

logger = logging.getLogger(__name__)


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

    def fed() -> Iterable[Batch]:
        return batches if isinstance(batches, Batches) else batches_of(batches, inputs)

    with ExitStack() as stack:
        opened = open_memory(memory)
        if opened is not memory:
            stack.callback(opened.close)
        observer = stack.enter_context(Observer(opened))
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
    collected = _Pass(engine, observer, growth, progress or (lambda done: None))
    try:
        for batch in batches:
            collected.add(batch)
        if not collected.batches:
            raise DataError("no batches: there is nothing to calibrate on")
        return collected.build()
    finally:
        collected.close()


class _Tensor:
    """One tensor's statistics; what was counted since a limit last grew is still on the device, at ``counts``."""

    def __init__(self, growth: str, counts: int) -> None:
        self.counts = counts
        self.sample_amax: list[np.float32] = []
        self.sample_peaks: list[int] = []
        self.fine = HistogramBuilder(FINE_BINS, power_of_two)
        self.streamed = HistogramBuilder(NUM_BINS, growth_rule(growth).grow)
        self.waiting: dict[int, np.float32] = {}  # row -> largest |x|, in a batch that sets the first limit and arrives
        self.masked = False

    def mask(self) -> None:
        """From the first -inf on there is no range to find; what was counted is of no use."""
        self.masked, self.waiting = True, {}
        self.fine, self.streamed = (HistogramBuilder(b.counts.size, b.growth) for b in (self.fine, self.streamed))

    def stats(self) -> TensorStats:
        """The statistics, once the counts on the device are in."""
        return TensorStats(
            np.array(self.sample_amax, np.float32),
            np.array(self.sample_peaks, np.int64),
            self.fine.build(),
            self.streamed.build(),
        )


class _Pass:
    """What `observe_all` has seen so far."""

    def __init__(self, engine: Shows, observer: Observer, growth: str, progress: Progress) -> None:
        self._engine, self._observer, self._memory = engine, observer, observer.memory
        self._growth, self._progress = growth, progress
        self._buffers = Buffers(observer.memory, slots=2)
        self._samples: list[str] = []
        self._tensors: dict[str, _Tensor] = {}
        self._unsteady: set[str] = set()
        self._seen = 0
        self.batches = 0

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Run one batch; after an error the pass is of no further use."""
        batch = as_batch(arrays, self._seen)
        self._seen += batch.valid
        for tensor in self._tensors.values():
            tensor.streamed.start_batch()
        for row, name in enumerate(batch.samples):
            for group in self._engine.run(_row(batch, row)):
                self._observe(group, batch, row)
            if row < batch.valid:
                self._samples.append(name)
                self._progress(len(self._samples))
        self._count_again(batch)
        self.batches += 1

    def build(self) -> ActivationStats:
        """The statistics so far."""
        for tensor in self._tensors.values():
            self._fetch(tensor)
        tensors = {name: tensor.stats() for name, tensor in self._tensors.items()}
        return ActivationStats(tuple(self._samples), tensors, self._growth, self.batches)

    def close(self) -> None:
        """Free what it holds on the device."""
        self._buffers.close()

    def _tensor(self, name: str) -> _Tensor:
        if name not in self._tensors:
            counts = self._buffers.device(0, name, TABLE_BYTES)
            self._memory.clear(counts, TABLE_BYTES)
            self._tensors[name] = _Tensor(self._growth, counts)
        return self._tensors[name]

    def _observe(self, group: list[Visible], batch: Batch, row: int) -> None:
        """One group of a sample's tensors -> counts and maxima."""
        # TensorRT wants the maximum of a batch that sets a limit before it counts.
        wait = len(batch.samples) > 1 and not growth_rule(self._growth).invariant
        valid = row < batch.valid
        spans = []
        for shown in group:
            tensor = self._tensor(shown.name)
            waits = wait and tensor.streamed.limit == 0
            fine = below(tensor.fine.limit) if valid and not tensor.masked else NOTHING
            spans.append((fine, NOTHING if waits or tensor.masked else below(tensor.streamed.limit)))
        for shown, seen, (fine, streamed) in zip(group, self._read(group, spans), spans, strict=True):
            tensor = self._tensors[shown.name]
            if not np.isfinite(seen.amax):
                found = np.array([np.inf if seen.positive_inf else -np.inf])
                refuse_unless_mask(shown.name, found, float(seen.amax), batch.samples[row], shown.name in batch)
                tensor.mask()
            if valid:
                tensor.sample_amax.append(seen.amax)
                tensor.sample_peaks.append(seen.peaks)
            if tensor.masked:
                continue
            if streamed is NOTHING and seen.amax:
                tensor.waiting[row] = seen.amax
            elif streamed is NOTHING:
                tensor.streamed.counts[0] += shown.elements
            self._count_rest(shown, seen, fine, streamed)

    def _count_again(self, batch: Batch) -> None:
        """Run rows once more for the tensors that wait for the batch's maximum, now that it is known."""
        waiting = [tensor for tensor in self._tensors.values() if tensor.waiting]
        for tensor in waiting:
            tensor.streamed.fit(float(max(tensor.waiting.values())))
        for row in sorted(set().union(*(tensor.waiting for tensor in waiting))):
            for group in self._engine.run(_row(batch, row)):
                self._count_streamed([shown for shown in group if row in self._tensors[shown.name].waiting])
        for tensor in waiting:
            tensor.waiting = {}

    def _count_streamed(self, group: list[Visible]) -> None:
        """One group of a sample's tensors -> counts on TensorRT's grid alone, whose limit holds them."""
        spans = [(NOTHING, below(self._tensors[shown.name].streamed.limit)) for shown in group]
        for shown, seen, (fine, streamed) in zip(group, self._read(group, spans), spans, strict=True):
            if seen.amax > self._tensors[shown.name].streamed.amax:
                self._count_excess(shown)
            else:
                self._count_rest(shown, seen, fine, streamed)

    def _count_excess(self, shown: Visible) -> None:
        """A second run that differs from the first -> what is now at or above the limit, in the last bin.

        There it would have been counted, had it not grown: by its last bit, where a layer adds up in any order. A limit
        that grew for that would be twice TensorRT's.
        """
        tensor = self._tensors[shown.name]
        if shown.name not in self._unsteady:
            self._unsteady.add(shown.name)
            logger.warning(
                "tensor %r came out larger when the first batch ran again; what is above its first maximum %s counts "
                "as equal to that", shown.name, tensor.streamed.amax,
            )  # fmt: skip
        self._fetch(tensor)
        low, high = (int(np.float32(value).view(np.uint32)) for value in (tensor.streamed.limit, np.inf))
        unread = self._buffers.device(1, "unread", SUMMARY_BYTES)
        above = Span(2.0**128, low, high)
        self._observer.observe(shown.address, shown.elements, tensor.counts, unread, streamed=above)
        excess = int(self._observer.counts(tensor.counts)[1].sum())
        self._memory.clear(tensor.counts, TABLE_BYTES)
        tensor.streamed.counts[-1] += excess
        tensor.streamed.clamp(tensor.streamed.limit, excess)

    def _read(self, group: Sequence[Visible], spans: Sequence[tuple[Span, Span]]) -> list[Seen]:
        """Each tensor read once, and counted where its limits reach -> what was seen."""
        if not group:
            return []
        nbytes = len(group) * SUMMARY_BYTES
        summaries = self._buffers.device(1, "summaries", nbytes)
        self._memory.clear(summaries, nbytes)
        for number, (shown, grids) in enumerate(zip(group, spans, strict=True)):
            counts = self._tensors[shown.name].counts
            self._observer.observe(shown.address, shown.elements, counts, summaries + number * SUMMARY_BYTES, *grids)
        return self._observer.summaries(summaries, len(group))

    def _count_rest(self, shown: Visible, seen: Seen, *counted: Span) -> None:
        """Limits grown where a tensor was larger, and then counts of what had no bin before."""
        tensor = self._tensors[shown.name]
        amax = float(seen.amax)
        pairs = list(zip((tensor.fine, tensor.streamed), counted, strict=True))
        grows = [span is not NOTHING and grid.growth(grid.limit, amax) != grid.limit for grid, span in pairs]
        if any(grows):
            self._fetch(tensor)  # they are in bins of the limits so far
        for grid, span in pairs:
            if span is not NOTHING:
                grid.fit(amax)
                if amax == grid.limit > 0:  # the kernel has no bin for the limit itself, TensorRT takes its last one
                    grid.counts[-1] += seen.peaks
                    grid.clamp(amax, seen.peaks)
        if any(grows):
            rest = [
                below(grid.limit, span) if more else NOTHING for (grid, span), more in zip(pairs, grows, strict=True)
            ]
            unread = self._buffers.device(1, "unread", SUMMARY_BYTES)
            self._observer.observe(shown.address, shown.elements, tensor.counts, unread, *rest)

    def _fetch(self, tensor: _Tensor) -> None:
        """Counts on the device -> added to those here."""
        if not tensor.masked:
            fine, streamed = self._observer.counts(tensor.counts)
            tensor.fine.counts += fine
            tensor.streamed.counts += streamed
        self._memory.clear(tensor.counts, TABLE_BYTES)


def _row(batch: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    return {name: array[row : row + 1] for name, array in batch.items()}

"""Activations on the device -> their largest |x| and counts, bit for bit those of `trtcal.ranges.kernels` on a CPU.

The kernel's source is `kernels.cu`, compiled for the GPU at hand when an `Observer` is made.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calibrators.buffers import Buffers
from calibrators.memory import Attribute, Compiler, DeviceMemory, Staging
from trtcal.errors import BackendError
from trtcal.ranges.histogram import FINE_BINS, FLOAT32_MAX, NUM_BINS

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cu")
KERNEL = "observe"

THREADS = 1024  # of a block
ELEMENTS = 16  # that a thread is to see before another block pays
MOST = 2**32 - 1  # elements of a tensor: a block counts in 32 bits

_STREAMED_BYTES, _FINE_BYTES = NUM_BINS * 4, FINE_BINS * 4
_STATIC_BYTES = 1024  # more than the kernel's own variables in shared memory, and what the driver takes of it

TABLE_BYTES = (FINE_BINS + NUM_BINS) * 8
"""Bytes of one tensor's counts on the device: uint64, the fine grid's before the streamed one's."""
SUMMARY_BYTES = 16
"""Bytes of what one call says of a tensor; clear them before."""


class Span(NamedTuple):
    """Which magnitudes a grid counts: those in [low, high), as bits of a float32, in bins over [0, limit).

    What equals the limit is never counted.
    """

    limit: float
    low: int
    high: int


NOTHING = Span(1.0, 0, 0)


def below(limit: float, counted: Span | None = None) -> Span:
    """All magnitudes under the limit that ``counted`` had no bin for; only zeros where the limit is 0."""
    high = 1 if limit == 0 else int(np.float32(limit if limit <= FLOAT32_MAX else math.inf).view(np.uint32))
    return Span(limit or 1.0, 0 if counted is None else counted.high, high)


class Seen(NamedTuple):
    """What one read of a tensor says of it."""

    amax: np.float32
    """Largest |x|; nan if any is nan."""
    peaks: int
    """How many elements have it."""
    positive_inf: bool


class Observer:
    """Launches the kernel through a `DeviceMemory`, on its stream; BackendError where that cannot be."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory
        self._buffers = Buffers(memory, slots=1)
        major, minor = Attribute.COMPUTE_CAPABILITY_MAJOR, Attribute.COMPUTE_CAPABILITY_MINOR
        capability = memory.attribute(major) * 10 + memory.attribute(minor)
        self._blocks = max(memory.attribute(Attribute.MULTIPROCESSORS), 1)
        # Room for both grids: on GPUs of data centres from 8.0. Others count the fine grid in device memory.
        room = memory.attribute(Attribute.SHARED_MEMORY_OPT_IN)
        self._own_fine = room >= _STREAMED_BYTES + _FINE_BYTES + _STATIC_BYTES
        self._shared = _STREAMED_BYTES + (_FINE_BYTES if self._own_fine else 0)
        self._function: object = None
        try:
            self._function = self._load(capability)
        except BaseException:
            self.close()
            raise

    def _load(self, capability: int) -> object:
        """The function from the first compiler whose code runs here and counts right."""
        reasons = []
        for compiler in self.memory.compilers():
            try:
                function = self.memory.load(compile_kernel(compiler, capability), KERNEL, self._shared)
                self._check(function)
            except BackendError as error:
                reasons.append(str(error))
                continue
            logger.info("counting kernel compiled for compute capability %s by %s", capability / 10, compiler.path)
            return function
        raise BackendError(
            "; ".join(reasons) or "no NVRTC to compile the counting kernel with: pip install nvidia-cuda-nvrtc-cu12"
        )

    def observe(
        self, address: int, elements: int, counts: int, summary: int, fine: Span = NOTHING, batch_grid: Span = NOTHING
    ) -> None:
        """Float32 elements at a device address -> counts and summary at theirs; done when the stream is.

        ``counts``: `TABLE_BYTES`, added to. ``summary``: `SUMMARY_BYTES`, cleared before; `read_summaries` reads it.
        ``fine``: its limit is a power of two. ``batch_grid``: any limit, in float32 arithmetic as TensorRT has it.
        """
        self._launch(self._function, address, elements, counts, summary, fine, batch_grid)

    def counts(self, counts: int) -> tuple[np.ndarray, np.ndarray]:
        """Address of a tensor's counts -> the fine grid's (32768,) and the streamed one's (2048,), int64."""
        table = self._read(counts, TABLE_BYTES).view(np.int64).copy()
        return table[:FINE_BINS], table[FINE_BINS:]

    def summaries(self, summary: int, number: int) -> list[Seen]:
        """Address of summaries, one behind the other -> what they say, when all that the stream holds is done."""
        words = self._read(summary, number * SUMMARY_BYTES).view(np.uint64).reshape(number, 2)
        largest = (words[:, 0] >> np.uint64(32)).astype(np.uint32).view(np.float32)
        peaks = words[:, 0] & np.uint64(0xFFFFFFFF)
        return [Seen(*row) for row in zip(largest, peaks.tolist(), (words[:, 1] > 0).tolist(), strict=True)]

    def _read(self, address: int, nbytes: int) -> Staging:
        staging = self._buffers.staging(0, "read", nbytes)
        self.memory.download(staging, address)
        self.memory.synchronize()
        return staging

    def close(self) -> None:
        """Free what it holds; the memory is its owner's to close."""
        self._function = None  # PyCUDA unloads a module with the last of its functions
        self._buffers.close()

    def __enter__(self) -> Observer:
        """The observer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """As `close`."""
        self.close()

    def _launch(
        self, function: object, address: int, elements: int, counts: int, summary: int, fine: Span, batch_grid: Span
    ) -> None:
        if not elements:
            return
        if elements > MOST:
            raise BackendError(f"a tensor of {elements} elements: more than the {MOST} that the kernel counts")
        limit, scale = batch_grid.limit, NUM_BINS
        if math.isfinite(limit) and limit > FLOAT32_MAX:  # 2**128 has no float32; half of everything is the same
            limit, scale = limit / 2, NUM_BINS // 2
        arguments = (
            np.uint64(address),
            np.uint64(elements),
            np.uint32(fine.low),
            np.uint32(fine.high),
            np.int32(math.frexp(fine.limit)[1] - 1),
            np.uint32(batch_grid.low),
            np.uint32(batch_grid.high),
            np.float32(limit),
            np.float32(scale),
            np.uint64(counts),
            np.uint64(counts + FINE_BINS * 8),
            np.uint64(summary),
            np.int32(self._own_fine),
        )
        blocks = min(self._blocks, -(-elements // (THREADS * ELEMENTS)))
        self.memory.launch(function, blocks, THREADS, self._shared, arguments)

    def _check(self, function: object) -> None:
        """BackendError where the function, as loaded, does not count a few values right: a wrong image, no device."""
        values = np.array([0, 1, -2, 3, -3, 1.5e-42, np.inf], np.float32)
        room = values.nbytes + SUMMARY_BYTES + TABLE_BYTES
        address = self.memory.allocate(-(-room // 8) * 8)
        staging = self.memory.allocate_staging(values.nbytes)
        try:
            counts, summary = address, address + TABLE_BYTES
            data = summary + SUMMARY_BYTES
            self.memory.clear(address, TABLE_BYTES + SUMMARY_BYTES)
            staging[:] = values.view(np.uint8)
            self.memory.upload(data, staging)
            self._launch(function, data, values.size, counts, summary, below(4.0), below(3.0))
            table = self.counts(counts)
            seen = self.summaries(summary, 1)[0]
        finally:
            self.memory.free_staging(staging)
            self.memory.free(address)
        places = [{i: int(grid[i]) for i in np.flatnonzero(grid)} for grid in table]
        expected = [{0: 2, 8192: 1, 16384: 1, 24576: 2}, {0: 2, 682: 1, 1365: 1}]
        if places != expected or seen != (np.float32(np.inf), 1, True):
            raise BackendError(f"the counting kernel, as compiled, counts wrong on this device: {places}, {seen}")


def compile_kernel(compiler: Compiler, capability: int) -> bytes:
    """Compiler and compute capability (90 is 9.0) -> the kernel's image."""
    return compiler.compile(SOURCE.read_text(encoding="utf-8"), SOURCE.name, capability)


def throughput(observer: Observer, *, elements: int = 1 << 26, runs: int = 20) -> float:
    """Elements of a tensor, normally distributed -> bytes that the kernel reads of it in a second, on both grids."""
    memory = observer.memory
    with Buffers(memory, slots=1) as buffers:
        values = np.random.default_rng(0).standard_normal(elements, np.float32)
        address = buffers.place_host(0, "values", values, values.dtype, lambda _: None)
        counts, summary = (buffers.device(0, f"{size}", size) for size in (TABLE_BYTES, SUMMARY_BYTES))

        def work() -> None:
            for _ in range(runs):
                observer.observe(address, elements, counts, summary, below(8.0), below(6.0))

        memory.clear(counts, TABLE_BYTES)
        memory.clear(summary, SUMMARY_BYTES)
        memory.elapsed(work)  # to warm up
        return runs * values.nbytes / memory.elapsed(work) * 1000

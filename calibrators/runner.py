"""A TensorRT engine as a Runner: batch -> {output: array}, and the time that one inference takes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from calibrators import versions
from calibrators.inspection import layers_per_precision
from calibrators.memory import DeviceMemory, open_memory
from calibrators.shapes import Range, Shape
from trtcal.errors import BackendError, DataError, ModelError
from trtcal.samples.conform import as_dtype
from trtcal.spec import InputSpec

_Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Latency:
    """Milliseconds that one inference of ``batch_size`` samples takes on the GPU: quantiles and mean over ``runs``.

    Taken by CUDA events right before and after TensorRT's work on its stream. Copies of inputs and outputs are left
    out; the gaps between kernels, while the host is still launching them, are not. Each run is waited for before the
    next begins.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    batch_size: int
    runs: int


class Engine:
    """A serialized engine, by its file or its bytes, ready to run on a GPU with TensorRT 8.5 to 11.

    Called with a batch ``{input: (N, ...)}`` it answers ``{output: (N, ...)}``, as any Runner does. N need not be what
    the engine takes: more samples than it takes at once run one batch after the other, and fewer are filled up with
    copies of the last one, of which the answer has nothing. Arrays of another dtype are converted where that changes
    no value, and refused where it would.

    ``device``: number of the CUDA device. ``memory``: as `calibrators.memory.open_memory` takes it. ``name`` stands
    for the engine in messages (default: its path). Several threads may call it, and take turns.

    ``inputs`` say what it is to be fed, ``outputs`` name what it answers with. An engine with several optimization
    profiles runs in the one that takes most of a batch at once. ``memory`` and ``device`` are those of
    `calibrators.memory.open_memory`: without them it runs where it was built, on the calling thread's current device.

    Raises BackendError where TensorRT, a GPU or room on it is missing, or TensorRT does not take or run the engine,
    with TensorRT's own words; ModelError for an engine that ordinary arrays cannot be fed to, and for a batch that
    does not fit it.
    """

    def __init__(
        self,
        plan: str | Path | bytes,
        *,
        memory: str | DeviceMemory | None = None,
        device: int | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name or ("the engine" if isinstance(plan, bytes) else os.fspath(plan))
        data = plan if isinstance(plan, bytes) else _read(Path(plan))
        self._trt = versions.tensorrt()
        if versions.version(self._trt)[:2] < versions.OLDEST:
            oldest = ".".join(map(str, versions.OLDEST))
            raise BackendError(f"TensorRT {self._trt.__version__} is older than {oldest}, the oldest that runs here")
        self._lock = threading.Lock()
        # First of all, because without a driver TensorRT 8.6 does not fail, but crashes.
        self._memory = open_memory(memory, device)
        self._foreign = self._memory is memory
        self._execution: Any = None
        try:
            from calibrators.execution import Execution

            with self._memory.current():
                self._execution = Execution(data, self.name, self._memory)
            self._profiles: tuple[dict[str, Range], ...] = self._execution.profiles
            self.inputs = tuple(self._spec(tensor) for tensor in self._execution.inputs)
            self.outputs: tuple[str, ...] = tuple(tensor.name for tensor in self._execution.outputs)
        except BaseException:
            self.close()
            raise

    def _spec(self, tensor: Any) -> InputSpec:
        if not tensor.shape:
            raise ModelError(f"{self.name}: input {tensor.name!r} has no batch axis: its first axis must count samples")
        taken = [shape for profile in self._profiles for shape in _ends(profile[tensor.name])]
        sizes = [set(axis) for axis in zip(*taken, strict=True)]
        return InputSpec(tensor.name, tensor.dtype, tuple(size.pop() if len(size) == 1 else None for size in sizes[1:]))

    def __call__(self, batch: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """Run one batch of any size; the arrays of the answer belong to the caller."""
        with self._running():
            profile, pieces = self._pieces(self._checked(batch))
            answers = []
            for piece, rows in pieces:
                answer = self._execution.run(profile, piece)
                ran = _rows(piece)
                if ran > rows or len(pieces) > 1:
                    self._check_rows(answer, ran)
                answers.append({name: array[:rows] for name, array in answer.items()} if ran > rows else answer)
        if len(answers) == 1:
            return answers[0]
        try:
            return {name: np.concatenate([answer[name] for answer in answers]) for name in self.outputs}
        except ValueError as error:  # outputs whose shape the data decide
            raise ModelError(f"{self.name}: its answers to parts of the batch do not fit together: {error}") from error

    def latency(self, batch: Mapping[str, np.ndarray] | None = None, *, warmup: int = 10, runs: int = 100) -> Latency:
        """Batch -> time of one inference on it, after ``warmup`` others that do not count.

        Of a batch that would run in parts, the first is timed. Without a batch: zeros, in the shape that the engine
        is optimized for.
        """
        if warmup < 0 or runs < 1:
            raise ValueError(f"latency needs warmup >= 0 and runs >= 1, got {warmup} and {runs}")
        with self._running():
            profile, pieces = self._pieces(self._checked(self._zeros() if batch is None else batch))
            piece, _ = pieces[0]
            self._execution.prepare(profile, piece)
            for _ in range(warmup):
                self._execution.enqueue()
            self._memory.synchronize()
            times = [self._memory.elapsed(self._execution.enqueue) for _ in range(runs)]
        p50, p90, p99 = (float(value) for value in np.quantile(times, (0.5, 0.9, 0.99)))
        return Latency(p50, p90, p99, float(np.mean(times)), _rows(piece), runs)

    def layers(self) -> dict[str, int] | None:
        """Precision -> number of layers that compute in it, most first; None where TensorRT does not tell."""
        with self._running():
            return layers_per_precision(self._trt, self._execution.engine)

    @contextmanager
    def _running(self) -> Iterator[None]:
        with self._lock:
            if self._execution is None:
                raise RuntimeError("this Engine is closed")
            with self._memory.current():
                yield

    def _zeros(self) -> _Arrays:
        best = {name: taken.opt for name, taken in self._profiles[0].items()}
        return {spec.name: np.zeros(best[spec.name], spec.dtype) for spec in self.inputs}

    def _checked(self, batch: Mapping[str, np.ndarray]) -> _Arrays:
        """Batch -> its arrays in the engine's dtypes, all of the same number of samples."""
        names = [spec.name for spec in self.inputs]
        if batch.keys() != set(names):
            raise ModelError(f"{self.name}: takes {', '.join(names)}; got {', '.join(batch) or 'nothing'}")
        arrays = {}
        for spec in self.inputs:
            try:
                arrays[spec.name] = as_dtype(np.asarray(batch[spec.name]), spec.dtype)
            except DataError as error:
                raise ModelError(f"{self.name}: input {spec.name!r}: {error}") from error
        rows = {array.shape[:1] for array in arrays.values()}
        if len(rows) != 1 or rows <= {(), (0,)}:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise ModelError(f"{self.name}: needs at least one sample, and as many in every input; got {shapes}")
        return arrays

    def _pieces(self, arrays: _Arrays) -> tuple[int, list[tuple[_Arrays, int]]]:
        """Arrays -> the profile to run in, and parts of a size that it takes, each with its number of real samples."""
        profile, low, high = self._profile(arrays)
        pieces = []
        for first in range(0, _rows(arrays), high):
            part = {name: array[first : first + high] for name, array in arrays.items()}
            pieces.append(({name: _filled(array, low) for name, array in part.items()}, _rows(part)))
        return profile, pieces

    def _profile(self, arrays: _Arrays) -> tuple[int, int, int]:
        """Arrays -> the profile that takes most of their samples at once, and how many it takes: at least, at most."""
        rows, fitting = _rows(arrays), []
        for number, ranges in enumerate(self._profiles):
            low = max(taken.min[0] for taken in ranges.values())
            high = min(taken.max[0] for taken in ranges.values())
            if low <= high and all(_takes(ranges[name], array.shape) for name, array in arrays.items()):
                fitting.append((number, low, high))
        if not fitting:
            raise ModelError(self._no_profile(arrays))
        return max(fitting, key=lambda found: (min(found[2], rows), -found[1]))

    def _no_profile(self, arrays: _Arrays) -> str:
        """What does not fit, and what would."""
        unfit = [
            name for name, array in arrays.items() if not any(_takes(p[name], array.shape) for p in self._profiles)
        ]
        lines = []
        for name in unfit or arrays:
            taken = " or ".join(_spelt(profile[name]) for profile in self._profiles)
            lines.append(f"input {name!r} is {arrays[name].shape}, the engine takes {taken}")
        return (
            f"{self.name}: {'; '.join(lines)}; bring the samples to such a shape, or build the engine for more of them "
            f"(--minShapes, --maxShapes)"
        )

    def _check_rows(self, answer: _Arrays, ran: int) -> None:
        for name, array in answer.items():
            if not array.ndim or len(array) != ran:
                raise ModelError(
                    f"{self.name}: output {name!r} is {array.shape} for {ran} samples: without a row per sample, a "
                    f"batch can neither run in parts nor be filled up; feed as many as the engine takes at once"
                )

    def close(self) -> None:
        """Give the engine, its buffers and the GPU's context back; closing twice is allowed."""
        with self._lock:
            execution, self._execution = self._execution, None
            try:
                if execution is not None:
                    with self._memory.current():
                        execution.close()
            finally:
                if not self._foreign:
                    self._memory.close()

    def __enter__(self) -> Engine:
        """The engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close it."""
        self.close()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def _ends(taken: Range) -> tuple[Shape, Shape]:
    return taken.min, taken.max


def _takes(taken: Range, shape: Shape) -> bool:
    """Whether a profile takes the shape, its batch axis apart."""
    return len(shape) == len(taken.max) and all(
        low <= size <= high for low, size, high in zip(taken.min[1:], shape[1:], taken.max[1:], strict=True)
    )


def _spelt(taken: Range) -> str:
    return str(taken.max) if taken.min == taken.max else f"{taken.min} to {taken.max}"


def _rows(arrays: _Arrays) -> int:
    return len(next(iter(arrays.values())))


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    """Array -> at least so many rows, by copies of the last one."""
    missing = rows - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])

"""Batches -> device pointers, in the order that TensorRT asks for them.

The copy of batch n + 1 is started before the pointers of batch n are handed over, into a second set of buffers, and so
runs while TensorRT works on batch n. TensorRT reads as many bytes as the network's input says and nobody checks the
buffer, so shape and size are checked here before a pointer leaves.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from calibrators.buffers import Buffers
from calibrators.intake import DeviceArray, Expected, as_array, check_fits, expected_inputs, fed_dtype
from calibrators.memory import BACKENDS, DeviceMemory, open_memory
from trtcal.errors import BackendError, DataError, NonFiniteError
from trtcal.samples.batches import declared_length

logger = logging.getLogger(__name__)

_SHOWN_SAMPLES = 8
_END = object()
_MOST_ROWS = 2**31 - 1  # TensorRT counts them in an int32
_NO_BATCH = "the data holds no batch at all; check the folder, the sample count and partial='drop'"


class Feed:
    """A pass over the batches, one `next` per batch; frees everything at the end, on `close` and on any error.

    ``batches`` yields mappings from input name to an array (see `calibrators.intake` for what counts as one, and for
    the casts); entries that the network does not ask for are left alone. ``inputs`` (name -> (full shape, dtype)) is
    what TensorRT will read; without it the first batch sets the shapes, and later ones must equal it. ``memory`` and
    ``device`` are those of `open_memory`. ``batch_size`` need only be given where batches hold nothing but device
    addresses. ``int64``: whether this TensorRT has that type.
    """

    def __init__(
        self,
        batches: Iterable[Mapping[str, Any]],
        *,
        inputs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        memory: str | DeviceMemory | None = None,
        device: int | None = None,
        int64: bool = True,
    ) -> None:
        if isinstance(batches, (str, bytes, Mapping)) or not isinstance(batches, Iterable):
            raise TypeError(
                f"batches must be an iterable of mappings from input name to array, got {type(batches).__name__}"
            )
        if batch_size is not None:
            _check_batch_size(batch_size)
        if isinstance(memory, str) and memory not in BACKENDS:
            raise ValueError(f"memory must be one of {', '.join(BACKENDS)}, got {memory!r}")
        self.consumed = 0
        """Batches handed to TensorRT so far."""
        self.samples = 0
        """Rows of those batches, without padding."""
        self.where = "before the first batch"
        """The batch that is being worked on, for messages: number, counted from 1, and sample names."""
        self.expected: dict[str, Expected] = expected_inputs(inputs or {})
        self.exhausted = False
        """Whether TensorRT was told of the end because the data came to their own end, and for no other reason."""
        self._declared = inputs is not None
        self._batches = batches
        self._asked_size = self._batch_size = batch_size
        self._choice, self._device, self._int64 = memory, device, int64
        self._iterator: Iterator[Mapping[str, Any]] | None = None
        self._held: Mapping[str, Any] | None = None  # the first batch, if it was looked at before it was asked for
        self._loaded = 0
        self._buffers: Buffers | None = None
        self._owners: list[list[Any]] = [[], []]
        self._pending: tuple[list[int], int] | None = None
        self._names: tuple[str, ...] = ()
        self._ended = False

    def expect(self, inputs: Mapping[str, Any]) -> None:
        """What the network really reads, name -> (full shape, dtype); before the first batch is asked for."""
        if self._names:
            raise ValueError("the feed has begun; say what the network reads before the build starts")
        self.expected = expected_inputs(inputs)
        self._declared = True

    @property
    def known_batch_size(self) -> int | None:
        """The batch size if it can be told without reading data."""
        if self._batch_size is None:
            declared = getattr(self._batches, "batch_size", None)  # trtcal's Batches, torch's DataLoader
            if isinstance(declared, int) and not isinstance(declared, bool) and 0 < declared <= _MOST_ROWS:
                self._batch_size = declared
            elif self.expected:
                shape = next(iter(self.expected.values())).shape
                self._batch_size = shape[0] if shape and 0 < shape[0] <= _MOST_ROWS else None
        return self._batch_size

    @property
    def batch_size(self) -> int:
        """Rows of a batch, from the first one if nothing else tells; DataError where there is none."""
        size = self.known_batch_size
        if size is None:
            size = self._batch_size = self._rows(self._peek())
            if not 0 < size <= _MOST_ROWS:
                raise DataError(f"the first batch has {size} rows; TensorRT takes 1 to {_MOST_ROWS}")
        return size

    @property
    def fed_rows(self) -> int | None:
        """Rows of the batches that were handed to TensorRT; None before the first, and for inputs without axes."""
        shape = self.expected[self._names[0]].shape if self._names and self.consumed else ()
        return shape[0] if shape else None

    def first_shapes(self, inputs: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        """Input name -> full shape, from what was declared or else from the first batch, which is not lost.

        An entry that is no array is left out, as labels and the like are; among ``inputs``, it raises.
        """
        if self.expected:
            return {name: expected.shape for name, expected in self.expected.items()}
        shapes = {}
        for name, value in self._peek().items():
            try:
                shapes[name] = tuple(int(size) for size in as_array(value, None).shape)
            except (TypeError, DataError) as error:
                if name in inputs:
                    raise type(error)(f"input {name!r}: {error}") from error
        return shapes

    def _peek(self) -> Mapping[str, Any]:
        """The first batch, which is kept and will be the first one fed."""
        if self._held is None:
            self.where = "batch 1"
            self._held = self._next_batch()
            if self._held is None:
                raise DataError(_NO_BATCH)
        return self._held

    def _rows(self, batch: Mapping[str, Any]) -> int:
        samples = getattr(batch, "samples", None)
        if samples:
            return len(samples)
        for value in batch.values():
            try:
                shape = as_array(value, None).shape
            except (TypeError, DataError):  # a label, or an address, which tells nothing
                continue
            if shape:
                return int(shape[0])
        raise DataError("cannot tell the batch size from the first batch; say it: batch_size=…")

    def next(self, names: Sequence[str]) -> list[int]:
        """Input names in TensorRT's order -> one device pointer each; [] when there is no more data.

        The pointers stay good until the next call. Raises DataError for a batch that does not fit, BackendError when
        CUDA fails; whatever the loader raises goes through.
        """
        if self._ended and not self.exhausted:
            raise BackendError("the feed was closed before the data came to their end")
        if self._ended:
            return []
        try:
            buffers = self._buffers or self._begin(tuple(names))
            if tuple(names) != self._names:
                raise DataError(f"TensorRT asked for inputs {list(names)} after {list(self._names)}")
            if self._pending is None:
                self.close()
                self.where = f"after batch {self._loaded}, the last"
                self.exhausted = True
                return []
            buffers.memory.synchronize()
            pointers, rows = self._pending
            self._pending = self._load(buffers)
            self.consumed += 1
            self.samples += rows
        except BaseException:
            self.close()
            raise
        return pointers

    def _begin(self, names: tuple[str, ...]) -> Buffers:
        """First names -> buffers, with the copy of the first batch under way."""
        missing = [name for name in names if self._declared and name not in self.expected]
        if missing:
            raise DataError(f"TensorRT asks for input {missing[0]!r}; inputs= describes {list(self.expected)}")
        self._names = names
        memory = open_memory(self._choice, self._device)
        self._buffers = Buffers(memory)
        logger.info("calibration data goes through memory backend %r", memory.name)
        self._pending = self._load(self._buffers)
        if self._pending is None:
            raise DataError(_NO_BATCH)
        return self._buffers

    def _next_batch(self) -> Mapping[str, Any] | None:
        if self._iterator is None:
            self._iterator = iter(self._batches)
        batch: object = next(self._iterator, _END)
        if batch is _END:
            self._check_length()
            return None
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"expected a mapping from input name to array, got {type(batch).__name__}; "
                f"a loader of (images, labels) becomes one by: ({{'input': x}} for x, _ in loader)"
            )
        return batch

    def _check_length(self) -> None:
        """DataError where the loader has a length and ended before it."""
        length = declared_length(self._batches)
        if length is not None and self._loaded < length:
            raise DataError(
                f"the loader says that it has {length} batches (its len()), and ended after {self._loaded}; give it "
                f"the length that is right, or none"
            )

    def _load(self, buffers: Buffers) -> tuple[list[int], int] | None:
        """Next batch -> its pointers, with copies under way, and its rows without padding; None at the end."""
        number = self._loaded + 1
        self.where = f"batch {number}"
        batch, self._held = (self._held, None) if self._held is not None else (self._next_batch(), None)
        if batch is None:
            return None
        samples = tuple(str(sample) for sample in getattr(batch, "samples", ()))
        self.where += _shown(samples)
        slot = self._loaded % 2
        self._owners[slot] = []
        pointers = [self._place(buffers, batch, name, slot, samples) for name in self._names]
        self._loaded = number
        shape = self.expected[self._names[0]].shape
        if self._asked_size is not None and shape and shape[0] != self._asked_size:
            raise DataError(f"batch_size={self._asked_size} was said, the batch has {shape[0]} rows")
        return pointers, int(getattr(batch, "valid", shape[0] if shape else 1))

    def _place(self, buffers: Buffers, batch: Mapping[str, Any], name: str, slot: int, samples: tuple[str, ...]) -> int:
        """One input of a batch -> pointer into our own buffer, with the copy under way."""
        if name not in batch:
            raise DataError(f"TensorRT asks for input {name!r}; the batch holds {sorted(map(str, batch))}")
        expected = self.expected.get(name)
        try:
            array = as_array(batch[name], expected)
            dtype = fed_dtype(array.dtype, expected, int64=self._int64)
            self._check_shape(array.shape, expected)
            if 0 in array.shape:
                raise DataError(f"the shape is {tuple(array.shape)}: a batch without a row or a value")
            if isinstance(array, DeviceArray):
                pointer = buffers.place_device(slot, name, array, dtype)
                self._owners[slot].append(array.owner)
            else:
                check_fits(array, dtype)
                pointer = buffers.place_host(slot, name, array, dtype, lambda staged: _check_finite(staged, samples))
        except (DataError, TypeError) as error:
            raise type(error)(f"input {name!r}: {error}") from error
        self.expected[name] = expected or Expected(tuple(array.shape), dtype)
        return pointer

    def _check_shape(self, found: tuple[int, ...], expected: Expected | None) -> None:
        if expected is None or tuple(found) == expected.shape:
            return
        source = "the network reads" if self._declared else "the first batch had"
        hint = ""
        if len(found) == len(expected.shape) and tuple(found[1:]) == expected.shape[1:]:
            hint = (
                "; a last, shorter batch must be filled up or left out: Batches(…, partial='pad') or 'drop', "
                "drop_last=True in a torch DataLoader"
                if found[0] < expected.shape[0]
                else "; TensorRT would read only the first rows"
            )
        raise DataError(f"the shape is {tuple(found)}, {source} {expected.shape}{hint}")

    def close(self) -> None:
        """Free buffers, stream and context, and let go of the data; the feed gives nothing afterwards."""
        self._ended = True
        self._pending = self._held = None
        buffers, self._buffers = self._buffers, None
        steps: list[Callable[[], object]] = []
        if buffers is not None:
            steps += [buffers.memory.synchronize, buffers.close]  # a copy under way still uses the buffers
            if buffers.memory is not self._choice:
                steps.append(buffers.memory.close)
        if isinstance(self._iterator, Generator):  # ends its threads and closes its files
            steps.append(self._iterator.close)
        for step in steps:
            try:
                step()
            except Exception as error:
                logger.warning("while the calibration feed was closed: %s", error)
        self._owners = [[], []]


def _check_batch_size(size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _MOST_ROWS:
        raise ValueError(f"batch_size must be a whole number from 1 to {_MOST_ROWS}, got {size!r}")


def _check_finite(staged: np.ndarray, samples: tuple[str, ...]) -> None:
    """Values that TensorRT will read and names of the rows -> NonFiniteError where one is inf or nan."""
    if staged.dtype.kind != "f" or np.isfinite(staged).all():
        return
    place = tuple(int(axis) for axis in np.argwhere(~np.isfinite(staged))[0])
    row = place[0] if place else 0
    sample = f"sample {samples[row]!r}" if row < len(samples) else f"row {row}"
    raise NonFiniteError(f"{sample} holds {staged[place]} at {place}; it would spoil every scale")


def _shown(samples: tuple[str, ...]) -> str:
    if not samples:
        return ""
    names = ", ".join(itertools.islice(samples, _SHOWN_SAMPLES))
    more = f" and {len(samples) - _SHOWN_SAMPLES} more" if len(samples) > _SHOWN_SAMPLES else ""
    return f" (samples {names}{more})" if len(samples) > 1 else f" (sample {names})"

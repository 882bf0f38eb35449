"""Arrays as samples: ``.npy`` and ``.npz`` files, folders of them, and arrays in memory."""

from __future__ import annotations

import os
import threading
import zipfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trtcal.errors import DataError
from trtcal.files.folders import files_below, reading, seen
from trtcal.files.npy import Header, archive_headers, read_header
from trtcal.files.remote import Remote
from trtcal.samples.batches import LABELS, key_of, sample_digest
from trtcal.samples.conform import axis_hint, conform
from trtcal.spec import InputSpec

EXTENSIONS = frozenset({".npy", ".npz"})

# Arrays in .npz files cannot be memory-mapped; so much of them is held, all blocks together.
MAX_NPZ_BYTES = 4 << 30


MAX_SAMPLES = 1 << 24
"""Each takes some memory before it is read; more than this is no set to calibrate on."""


class ArrayFolder:
    """A ``.npy`` or ``.npz`` file, or a folder of them, sub-folders included and sorted -> samples.

    - In a single file the first axis is the samples.
    - In a folder a file is one sample if its arrays have the rank of the inputs without the batch
      axis, and a block of samples if they have one axis more.
    - ``.npy`` holds the only input of a model; ``.npz`` holds every input under its name, all of
      one length. ``labels`` or ``label``, where that is no input, holds the classes.

    ``.npy`` is memory-mapped. A block in ``.npz`` stays in memory once read, so all of them may hold
    MAX_NPZ_BYTES. Pickled objects are never loaded. Raises DataError, naming file and input, for
    anything that does not fit. ``only`` these files of a folder are taken where they are given.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, inputs: Sequence[InputSpec], only: Sequence[str] | None = None
    ) -> None:
        self._path = Path(path)
        self._inputs = tuple(inputs)
        folder = self._path.is_dir()
        names = [self._path.name] if not folder else files_below(self._path) if only is None else list(only)
        root = self._path if folder else self._path.parent
        chosen = [name for name in names if Path(name).suffix.lower() in EXTENSIONS]
        if not chosen:
            raise DataError(f"{path}: no .npy or .npz files; {seen(names)}")
        self._files: list[tuple[str, _ArrayFile]] = []
        self._ends: list[int] = []  # number of the first sample behind each file
        held = 0
        for name in chosen:
            file = _ArrayFile(root / name, self._inputs, single_samples=folder)
            held = held + file.npz_bytes if file.length is not None else max(held, file.npz_bytes)
            _refuse_beyond_memory(held, root / name)
            self._files.append((name, file))
            self._ends.append(len(self) + (1 if file.length is None else file.length))
            _refuse_too_many(len(self), root / name)
        if not len(self):
            raise DataError(f"{path}: no samples, the first axis of the arrays is 0; save some")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def load(self, index: int) -> dict[str, np.ndarray]:
        """Number of a sample -> input name to array."""
        name, file, row = self._row(index)
        return conform(file.load(row), self._inputs, name)

    def name(self, index: int) -> str:
        """Number of a sample -> its file below the folder, with ``[row]`` if the file is a block."""
        return self._row(index).name

    def label(self, index: int) -> int | None:
        """Number of a sample -> its class, None where the file has none."""
        _, file, row = self._row(index)
        return None if file.labels is None else file.labels[row or 0]

    def key(self, indices: Sequence[int] | None = None) -> str:
        """Numbers of samples -> SHA-256 of their names and arrays, in this order."""
        chosen = range(len(self)) if indices is None else indices
        return key_of(sample_digest(self.name(index), self.load(index)) for index in chosen)

    def describe(self) -> str:
        """Nothing -> one line for people."""
        files = f"{len(self._files)} array files in " if self._path.is_dir() else ""
        return f"{len(self)} samples of {files}{self._path}"

    def _row(self, index: int) -> _Row:
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        name, file = self._files[number]
        if file.length is None:
            return _Row(name, file, None)
        row = index - (self._ends[number - 1] if number else 0)
        width = len(str(file.length - 1))  # names of one length sort as their numbers do
        return _Row(f"{name}[{row:0{width}}]", file, row)


class RemoteArrays(ArrayFolder):
    """What ArrayFolder makes of a copy of a file or folder behind a URL.

    Every process that reads it copies all of its array files into a temporary folder first.
    """

    def __init__(self, remote: Remote, *, inputs: Sequence[InputSpec]) -> None:
        self._remote = remote
        names = [""]
        if remote.is_folder:
            there = remote.files()
            names = [name for name in there if Path(name).suffix.lower() in EXTENSIONS]
            if not names:
                raise DataError(f"{remote}: no .npy or .npz files; {seen(there)}")
        self._copy = remote.copy(names)
        with self._named():
            super().__init__(self._copy if remote.is_folder else self._copy / remote.name, inputs=inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(RemoteArrays, inputs=self._inputs), (self._remote,)

    def load(self, index: int) -> dict[str, np.ndarray]:
        """Number of a sample -> input name to array."""
        with self._named():
            return super().load(index)

    def describe(self) -> str:
        """Nothing -> one line for people."""
        return super().describe().replace(str(self._path), str(self._remote))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors name the URL and not the copy."""
        try:
            yield
        except DataError as error:
            here, there = (
                (self._copy, self._remote) if self._remote.is_folder else (self._copy / self._remote.name, self._remote)
            )
            raise type(error)(str(error).replace(str(here), str(there))) from error


class ArraySource:
    """Input name -> array in memory, first axis the samples -> samples.

    ``inputs`` is what the model takes; without it the arrays are taken as they are. Raises
    ValueError where arrays and labels differ in length.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        inputs: Sequence[InputSpec] | None = None,
        labels: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self._arrays, self._labels = dict(arrays), labels
        lengths = {name: len(array) for name, array in arrays.items()}
        self._length = next(iter(lengths.values()), 0)
        if labels is not None:
            lengths["labels"] = len(labels)
        if len(set(lengths.values())) != 1:
            raise ValueError(f"arrays and labels need a first axis of one length, got {lengths}")
        self._inputs = inputs or [InputSpec(name, a.dtype, a.shape[1:]) for name, a in arrays.items()]

    def __len__(self) -> int:
        return self._length

    def load(self, index: int) -> dict[str, np.ndarray]:
        """Number of a sample -> input name to array."""
        feed = {name: array[index] for name, array in self._arrays.items()}
        return conform(feed, self._inputs, self.name(index))

    def name(self, index: int) -> str:
        """Number of a sample -> the number, with zeros in front so that names sort as numbers do."""
        return f"{index:0{len(str(self._length - 1))}}"

    def label(self, index: int) -> int | None:
        """Number of a sample -> its class, None without labels."""
        return None if self._labels is None else int(self._labels[index])

    def key(self, indices: Sequence[int] | None = None) -> str:
        """Numbers of samples -> SHA-256 of their names and arrays, in this order."""
        chosen = range(len(self)) if indices is None else indices
        return key_of(sample_digest(self.name(index), self.load(index)) for index in chosen)

    def describe(self) -> str:
        """Nothing -> one line for people."""
        return f"{len(self)} samples in memory"


class _ArrayFile:
    """One file: ``length`` samples if it is a block, one sample if ``length`` is None."""

    def __init__(self, path: Path, inputs: Sequence[InputSpec], *, single_samples: bool) -> None:
        self._path, self._inputs = path, inputs
        self._is_npz = path.suffix.lower() == ".npz"
        self._block: Mapping[str, np.ndarray] | None = None
        self._lock = threading.Lock()
        with reading(path):
            headers = self._npz_headers() if self._is_npz else self._npy_headers()
        self.npz_bytes = sum(header.nbytes for header in headers.values()) if self._is_npz else 0
        _refuse_beyond_memory(self.npz_bytes, path)
        self.length = self._length(headers, single_samples)
        _refuse_too_many(self.length or 0, path)
        self.labels = self._read_labels(headers)
        self._headers = {spec.name: headers[spec.name] for spec in inputs}

    def __getstate__(self) -> dict[str, object]:  # on the way to another process, which reads the block itself
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | {"_block": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def load(self, row: int | None) -> dict[str, np.ndarray]:
        """Row of a block, or None for a single sample -> array name to array."""
        with reading(self._path):
            if row is None:
                return dict(self._read())
            if not self._is_npz:
                return {name: array[row] for name, array in self._read().items()}
            with self._lock:  # or every thread would unpack the block
                if self._block is None:
                    self._block = self._read()
            return {name: array[row] for name, array in self._block.items()}

    def _read(self) -> Mapping[str, np.ndarray]:
        if not self._is_npz:
            return {name: header.mapped(self._path) for name, header in self._headers.items()}
        with zipfile.ZipFile(self._path) as archive:
            return {name: self._unpacked(archive, name, header) for name, header in self._headers.items()}

    @staticmethod
    def _unpacked(archive: zipfile.ZipFile, name: str, header: Header) -> np.ndarray:
        member = f"{name}.npy" if f"{name}.npy" in archive.NameToInfo else name
        with archive.open(member) as stream:
            return header.unpacked(stream)

    def _npy_headers(self) -> dict[str, Header]:
        if len(self._inputs) != 1:
            raise DataError(f"{self._path}: one array, the model takes {_names(self._inputs)}: use .npz")
        with open(self._path, "rb") as stream:
            return {self._inputs[0].name: read_header(stream, self._path.stat().st_size, str(self._path))}

    def _npz_headers(self) -> dict[str, Header]:
        with zipfile.ZipFile(self._path) as archive:
            return archive_headers(archive, str(self._path))

    def _length(self, headers: Mapping[str, Header], single_samples: bool) -> int | None:
        lengths: dict[str, int | None] = {}
        for spec in self._inputs:
            if spec.name not in headers:
                found = ", ".join(repr(name) for name in headers) or "nothing"
                raise DataError(
                    f"{self._path}: no array {spec.name!r}, it holds {found}; save it under this name, or say what the "
                    f"input always is: --input {spec.name}=VALUE"
                )
            shape = headers[spec.name].shape
            if len(shape) == len(spec.shape) + 1:
                lengths[spec.name] = shape[0]
            elif len(shape) == len(spec.shape) and single_samples:
                lengths[spec.name] = None
            else:
                also = f", or one sample of rank {len(spec.shape)}" if single_samples else ""
                hint = axis_hint(shape[1:], spec)
                raise DataError(f"{self._path}: shape {shape}; expected {spec.of_rows} with N samples{also}{hint}")
        for name in headers:
            if name not in lengths and name not in LABELS:
                raise DataError(
                    f"{self._path}: array {name!r} is no input of the model, "
                    f"which takes {_names(self._inputs)}; rename or remove it"
                )
        if len(set(lengths.values())) != 1:
            found = ", ".join(f"{name!r} {'one' if n is None else n}" for name, n in lengths.items())
            raise DataError(f"{self._path}: different numbers of samples ({found}); every sample needs all inputs")
        return next(iter(lengths.values()))

    def _read_labels(self, headers: Mapping[str, Header]) -> list[int] | None:
        inputs = {spec.name for spec in self._inputs}
        key = next((name for name in LABELS if name in headers and name not in inputs), None)
        if key is None:
            return None
        expected = () if self.length is None else (self.length,)
        if headers[key].shape != expected or headers[key].dtype.kind not in "iu":
            raise DataError(
                f"{self._path}: {key!r} is {headers[key].dtype} {headers[key].shape}, "
                f"expected integers of shape {expected}, one for each sample"
            )
        with reading(self._path), zipfile.ZipFile(self._path) as archive:
            return [int(label) for label in np.atleast_1d(self._unpacked(archive, key, headers[key]))]


class _Row(NamedTuple):
    name: str
    file: _ArrayFile
    row: int | None


def _refuse_beyond_memory(held: int, path: Path) -> None:
    if held > MAX_NPZ_BYTES:
        raise DataError(
            f"{path}: arrays in .npz are held in memory, and with these they pass "
            f"{MAX_NPZ_BYTES / 2**30:.3g} GiB; save them as .npy, which is memory-mapped"
        )


def _refuse_too_many(samples: int, path: Path) -> None:
    if samples > MAX_SAMPLES:  # of no values each, any number fits into a file of any size
        raise DataError(f"{path}: with its samples there are {samples}; take at most {MAX_SAMPLES}")


def _names(inputs: Sequence[InputSpec]) -> str:
    return ", ".join(repr(spec.name) for spec in inputs)

"""Arrays as samples: ``.npy`` and ``.npz`` files, folders of them, and arrays in memory."""

from __future__ import annotations

import math
import os
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from trtcal.conform import conform
from trtcal.data import LABELS, key_of, sample_digest
from trtcal.errors import DataError
from trtcal.folders import files_below, reading, seen
from trtcal.spec import InputSpec

EXTENSIONS = frozenset({".npy", ".npz"})

# Arrays in .npz files cannot be memory-mapped; so much of them is held, all blocks together.
MAX_NPZ_BYTES = 4 << 30


class ArrayFolder:
    """A ``.npy`` or ``.npz`` file, or a folder of them, sub-folders included and sorted -> samples.

    - In a single file the first axis is the samples.
    - In a folder a file is one sample if its arrays have the rank of the inputs without the batch
      axis, and a block of samples if they have one axis more.
    - ``.npy`` holds the only input of a model; ``.npz`` holds every input under its name, all of
      one length. ``labels`` or ``label``, where that is no input, holds the classes.

    ``.npy`` is memory-mapped. A block in ``.npz`` stays in memory once read, so all of them may hold
    MAX_NPZ_BYTES. Pickled objects are never loaded. Raises DataError, naming file and input, for
    anything that does not fit.
    """

    def __init__(self, path: str | os.PathLike[str], *, inputs: Sequence[InputSpec]) -> None:
        self._path = Path(path)
        self._inputs = tuple(inputs)
        folder = self._path.is_dir()
        names = files_below(self._path) if folder else [self._path.name]
        root = self._path if folder else self._path.parent
        chosen = [name for name in names if Path(name).suffix.lower() in EXTENSIONS]
        if not chosen:
            raise DataError(f"{path}: no .npy or .npz files; {seen(names)}")
        self._rows: list[_Row] = []
        held = 0
        for name in chosen:
            file = _ArrayFile(root / name, self._inputs, single_samples=folder)
            held = held + file.npz_bytes if file.length is not None else max(held, file.npz_bytes)
            if held > MAX_NPZ_BYTES:
                raise DataError(
                    f"{root / name}: arrays in .npz are held in memory, and with these they pass "
                    f"{MAX_NPZ_BYTES / 2**30:.3g} GiB; save them as .npy, which is memory-mapped"
                )
            if file.length is None:
                self._rows.append(_Row(name, file, None))
                continue
            width = len(str(file.length - 1))  # names of one length sort as their numbers do
            self._rows += [_Row(f"{name}[{row:0{width}}]", file, row) for row in range(file.length)]
        if not self._rows:
            raise DataError(f"{path}: no samples, the first axis of the arrays is 0; save some")
        self._files = len(chosen)

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, index: int) -> dict[str, np.ndarray]:
        """Number of a sample -> input name to array."""
        name, file, row = self._rows[index]
        return conform(file.load(row), self._inputs, name)

    def name(self, index: int) -> str:
        """Number of a sample -> its file below the folder, with ``[row]`` if the file is a block."""
        return self._rows[index].name

    def label(self, index: int) -> int | None:
        """Number of a sample -> its class, None where the file has none."""
        _, file, row = self._rows[index]
        return None if file.labels is None else file.labels[row or 0]

    def key(self, indices: Sequence[int] | None = None) -> str:
        """Numbers of samples -> SHA-256 of their names and arrays, in this order."""
        chosen = range(len(self)) if indices is None else indices
        return key_of(sample_digest(self.name(index), self.load(index)) for index in chosen)

    def describe(self) -> str:
        """Nothing -> one line for people."""
        files = f"{self._files} array files in " if self._path.is_dir() else ""
        return f"{len(self)} samples of {files}{self._path}"


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


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _ArrayFile:
    """One file: ``length`` samples if it is a block, one sample if ``length`` is None."""

    def __init__(self, path: Path, inputs: Sequence[InputSpec], *, single_samples: bool) -> None:
        self._path, self._inputs = path, inputs
        self._is_npz = path.suffix.lower() == ".npz"
        self._block: Mapping[str, np.ndarray] | None = None
        self._lock = threading.Lock()
        with reading(path):
            headers = self._npz_headers() if self._is_npz else self._npy_headers()
        self.length = self._length(headers, single_samples)
        self.labels = self._read_labels(headers)
        self.npz_bytes = sum(header.nbytes for header in headers.values()) if self._is_npz else 0

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
            return {self._inputs[0].name: np.load(self._path, mmap_mode="r", allow_pickle=False)}
        with np.load(self._path, allow_pickle=False) as archive:
            return {spec.name: archive[spec.name] for spec in self._inputs}

    def _npy_headers(self) -> dict[str, _Header]:
        if len(self._inputs) != 1:
            raise DataError(f"{self._path}: one array, the model takes {_names(self._inputs)}: use .npz")
        with open(self._path, "rb") as stream:
            return {self._inputs[0].name: _header(stream, self._path.stat().st_size, str(self._path))}

    def _npz_headers(self) -> dict[str, _Header]:
        headers = {}
        with zipfile.ZipFile(self._path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as stream:
                    headers[name] = _header(stream, member.file_size, f"{self._path}: array {name!r}")
        return headers

    def _length(self, headers: Mapping[str, _Header], single_samples: bool) -> int | None:
        lengths: dict[str, int | None] = {}
        for spec in self._inputs:
            if spec.name not in headers:
                found = ", ".join(repr(name) for name in headers) or "nothing"
                raise DataError(f"{self._path}: no array {spec.name!r}, it holds {found}; save it under this name")
            shape = headers[spec.name].shape
            if len(shape) == len(spec.shape) + 1:
                lengths[spec.name] = shape[0]
            elif len(shape) == len(spec.shape) and single_samples:
                lengths[spec.name] = None
            else:
                also = f", or one sample of rank {len(spec.shape)}" if single_samples else ""
                raise DataError(f"{self._path}: shape {shape}; expected {spec} with N samples{also}")
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

    def _read_labels(self, headers: Mapping[str, _Header]) -> list[int] | None:
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
        with reading(self._path), np.load(self._path, allow_pickle=False) as archive:
            return [int(label) for label in np.atleast_1d(archive[key])]


class _Row(NamedTuple):
    name: str
    file: _ArrayFile
    row: int | None


def _header(stream: IO[bytes], size: int, where: str) -> _Header:
    """Stream of ``size`` bytes -> its npy header, once the size bears it out.

    A member of a .npz file may claim any shape in a few bytes, and numpy would allocate it.
    """
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise DataError(f"{where}: npy format {version}, which is for tables; save arrays of numbers")
    header = _Header(shape, dtype)
    if dtype.kind not in "biuf":
        raise DataError(f"{where}: holds {dtype}, expected numbers; pickled objects are never loaded")
    if stream.tell() + header.nbytes != size:
        raise DataError(
            f"{where}: claims {header.nbytes} bytes in shape {shape}, there are {size - stream.tell()}; "
            "it is truncated or not what it says"
        )
    return header


def _names(inputs: Sequence[InputSpec]) -> str:
    return ", ".join(repr(spec.name) for spec in inputs)

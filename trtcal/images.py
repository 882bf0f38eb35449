"""Folders of pictures, and the class labels that come with them."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from trtcal.conform import conform
from trtcal.data import key_of
from trtcal.errors import DataError
from trtcal.folders import files_below, reading, seen
from trtcal.preprocess import Preprocess, decode, image_extensions, is_image
from trtcal.spec import InputSpec

_HEADER = ("file", "filename", "image", "name", "path")


class ImageFolder:
    """Folder of pictures, sub-folders included, sorted by the bytes of their relative names -> samples.

    Where every picture lies in a sub-folder, the first-level folders are the classes, numbered from
    0 in sorted order. A CSV file ``labels`` takes precedence; it has a row ``file,label`` for every
    picture and may have a header. Its labels are numbers, or names that are numbered in sorted order.

    ``dtype`` is the input's; pixels are rounded where it is an integer type.

    Raises DataError for a folder without pictures, a link that leads out of it, and rows of the CSV
    file that do not fit, naming the line.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        preprocess: Preprocess,
        *,
        input_name: str,
        labels: str | os.PathLike[str] | None = None,
        dtype: np.dtype | type[np.generic] = np.float32,
    ) -> None:
        self._root = Path(path)
        files = files_below(self._root)
        self._names = [name for name in files if is_image(self._root / name)]
        if not self._names:
            raise DataError(f"{path}: no pictures ({', '.join(sorted(image_extensions()))}); {seen(files)}")
        self.preprocess = preprocess
        self._input = InputSpec(input_name, np.dtype(dtype), preprocess.shape)
        self._rounds = self._input.dtype.kind in "iu"
        if self._rounds and (preprocess.scale != 1 or set(preprocess.std) != {1}):
            raise DataError(
                f"{path}: input {input_name!r} takes {self._input.dtype}, the preset makes fractions of "
                "pixels; use one that leaves them whole, such as 'raw'"
            )
        self._labels = _folder_labels(self._root, self._names)
        if labels is not None:
            self._labels = _csv_labels(labels, self._names)

    def __len__(self) -> int:
        return len(self._names)

    def load(self, index: int) -> dict[str, np.ndarray]:
        """Number of a picture -> input name to preprocessed array."""
        name = self._names[index]
        image = decode(self._root / name)
        try:
            array = self.preprocess(image)
        except DataError as error:
            raise DataError(f"{self._root / name}: {error}") from error
        if self._rounds:
            array = np.rint(array).astype(np.int64)
        return conform({self._input.name: array}, [self._input], name)

    def name(self, index: int) -> str:
        """Number of a picture -> its path below the folder, with slashes."""
        return self._names[index]

    def label(self, index: int) -> int | None:
        """Number of a picture -> its class, None where nothing tells."""
        return None if self._labels is None else self._labels[index]

    def key(self, indices: Sequence[int] | None = None) -> str:
        """Numbers of pictures -> SHA-256 of their names and files, in this order; without preprocessing."""
        chosen = range(len(self)) if indices is None else indices
        return key_of(self._digest(self._names[index]) for index in chosen)

    def describe(self) -> str:
        """Nothing -> one line for people."""
        classes = "" if self._labels is None else f" of {len(set(self._labels))} classes"
        return f"{len(self)} pictures{classes} in {self._root}"

    def _digest(self, name: str) -> str:
        with reading(self._root / name):
            content = (self._root / name).read_bytes()
        return hashlib.sha256(os.fsencode(name) + b"\0" + content).hexdigest()


def _folder_labels(root: Path, names: Sequence[str]) -> list[int] | None:
    if not all("/" in name for name in names):
        return None
    # Folders that are empty here count, so that a part of a data set keeps the numbers of the whole.
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[name.split("/", 1)[0]] for name in names]


def _csv_labels(path: str | os.PathLike[str], names: Sequence[str]) -> list[int]:
    """CSV file of ``file,label`` rows -> the label of each name."""
    where = os.fspath(path)
    known = set(names)
    labels: dict[str, str] = {}
    lines: dict[str, int] = {}
    try:
        # Names that are no UTF-8 come back as the operating system gives them.
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.reader(file, strict=True)
            for row in rows:
                at = f"{where}:{rows.line_num}"
                if not row:
                    continue
                if len(row) != 2:
                    raise DataError(f"{at}: {len(row)} columns, expected two: file,label")
                name, label = row[0].strip(), row[1].strip()
                if rows.line_num == 1 and name.lower() in _HEADER and name not in known:
                    continue
                entry = PurePosixPath(name)
                if entry.is_absolute() or ".." in entry.parts:
                    raise DataError(f"{at}: {name!r} leads out of the folder; names are relative to it")
                name = str(entry)
                if name not in known:
                    raise DataError(f"{at}: no picture {name!r} in the folder; names are relative to it")
                if name in labels:
                    raise DataError(f"{at}: {name!r} is there twice, first on line {lines[name]}; keep one")
                labels[name], lines[name] = label, rows.line_num
    except OSError as error:
        raise DataError(f"{where}: the labels cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise DataError(f"{where}: not a CSV file: {error}") from error
    if missing := [name for name in names if name not in labels]:
        raise DataError(f"{where}: no label for {missing[0]!r} and {len(missing) - 1} more; add their rows")
    numeric = {name: label.isascii() and label.isdigit() for name, label in labels.items()}
    if all(numeric.values()):
        return [int(labels[name]) for name in names]
    for name, label in labels.items():
        if numeric[name] or not label:
            raise DataError(f"{where}:{lines[name]}: label {label!r} among names; use numbers from 0, or names only")
    numbers = {label: number for number, label in enumerate(sorted(set(labels.values())))}
    return [numbers[labels[name]] for name in names]

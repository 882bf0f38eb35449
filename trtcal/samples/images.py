"""Folders of pictures, here or behind a URL, and the class labels that come with them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trtcal.errors import DataError
from trtcal.files.brief import few
from trtcal.files.folders import LocalFolder, seen
from trtcal.files.remote import Remote
from trtcal.samples.batches import key_of
from trtcal.samples.conform import conform
from trtcal.samples.preprocess import Preprocess, decode, image_extensions, is_image
from trtcal.spec import InputSpec

_READERS = 16  # files read at once for their digests
_MANY = 1024  # of them wait at once
SHOWN = 10  # classes that are named to people


class ImageFolder:
    """Folder of pictures, sub-folders included, sorted by the bytes of their relative names -> samples.

    Where every picture lies in a sub-folder, the first-level folders are the classes, numbered from
    0 in sorted order.

    ``dtype`` is the input's; pixels are rounded where it is an integer type.

    Raises DataError for a folder without pictures, and for a link that leads out of it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | LocalFolder | Remote,
        preprocess: Preprocess,
        *,
        input_name: str,
        dtype: np.dtype | type[np.generic] = np.float32,
    ) -> None:
        self._folder = path if isinstance(path, (LocalFolder, Remote)) else LocalFolder(path)
        files = self._folder.files()
        self._names = pictures(self._folder, files)
        if not self._names:
            raise DataError(f"{self._folder}: no pictures ({', '.join(sorted(image_extensions()))}); {seen(files)}")
        self.preprocess = preprocess
        self._input = InputSpec(input_name, np.dtype(dtype), preprocess.shape)
        self._rounds = self._input.dtype.kind in "iu"
        if self._rounds and (preprocess.scale != 1 or set(preprocess.std) != {1}):
            raise DataError(
                f"{path}: input {input_name!r} takes {self._input.dtype}, the preset makes fractions of "
                "pixels; use one that leaves them whole, such as 'raw'"
            )
        self._classes = _classes(self._folder, self._names)
        self._labels: list[int] | None = None
        if self._classes:
            numbers = {name: number for number, name in enumerate(self._classes)}
            self._labels = [numbers[name.split("/", 1)[0]] for name in self._names]

    def __len__(self) -> int:
        return len(self._names)

    def load(self, index: int) -> dict[str, np.ndarray]:
        """Number of a picture -> input name to preprocessed array."""
        name = self._names[index]
        where = self._folder.where(name)
        image = decode(where, self._folder.read(name) if isinstance(self._folder, Remote) else None)
        try:
            array = self.preprocess(image)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
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
        return key_of(self._digests([self._names[index] for index in chosen]))

    def describe(self) -> str:
        """Nothing -> one line for people."""
        there = sorted(set(self._labels or ()))
        classes = f" of {len(there)} classes" if there else ""
        if self._classes:
            numbered = [f"{number} {self._classes[number]}" for number in there]
            classes += f" ({few(numbered, SHOWN)})"
        return f"{len(self)} pictures{classes} in {self._folder}"

    def _digests(self, names: Sequence[str]) -> Iterator[str]:
        """One for each, several read at once: behind a URL a file is mostly waiting."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="trtcal-read") as pool:
            for first in range(0, len(names), _MANY):
                yield from pool.map(self._digest, names[first : first + _MANY])

    def _digest(self, name: str) -> str:
        return hashlib.sha256(os.fsencode(name) + b"\0" + self._folder.read(name)).hexdigest()


def pictures(folder: LocalFolder | Remote, files: Sequence[str]) -> list[str]:
    """Files of a folder -> those that are pictures; behind a URL a name without extension is none."""
    if isinstance(folder, Remote):
        return [name for name in files if os.path.splitext(name)[1].lower() in image_extensions()]
    return [name for name in files if is_image(folder.where(name))]


def _classes(folder: LocalFolder | Remote, names: Sequence[str]) -> list[str]:
    """The classes in the order of their numbers; none where some picture lies outside of all sub-folders."""
    if not all("/" in name for name in names):
        return []
    # Folders that are empty here count, so that a part of a data set keeps the numbers of the whole.
    return folder.folders() if isinstance(folder, LocalFolder) else sorted({name.split("/", 1)[0] for name in names})

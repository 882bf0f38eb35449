"""Lists of samples: a text file that names some of the samples of a folder, of an array file or of what a URL has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from trtcal.errors import DataError
from trtcal.files.remote import is_url, shown
from trtcal.samples.batches import Samples

SUFFIX = ".txt"
MARK = "# trtcal samples"
"""How a list begins that trtcal wrote, so that another may take its place."""

_ROOT = re.compile(r"\[(.+)\]")
_ROW = re.compile(r"(.+\.np[yz])\[([0-9]{1,18})\]", re.IGNORECASE)  # as ArrayFolder names rows


@dataclass(frozen=True)
class SampleList:
    """What a list says: names of samples of ``root``, and the line where each stands."""

    path: str
    root: str  # a folder, an array file, or a URL
    lines: dict[str, int]

    @property
    def files(self) -> list[str]:
        """The files of a local folder that hold the samples, sorted by their bytes; DataError where one is missing."""
        found: set[str] = set()
        for name, line in self.lines.items():
            row = _ROW.fullmatch(name)
            file = name if row is None or Path(self.root, name).is_file() else row[1]
            path = Path(self.root, file)
            if not path.is_file() or not os.access(path, os.R_OK):
                said = "cannot be read" if path.exists() else "no such file"
                raise DataError(f"{self.path}:{line}: {path}: {said}; paths are relative to {self.root}")
            found.add(file)
        return sorted(found, key=os.fsencode)


class Listed:
    """A source and a list -> the samples of the source that are listed, in the order of the list.

    Their names, classes and contents are those of the source. A line that names a file of several samples stands for
    all of them. DataError, with the line, for what is no sample of the source, or is there twice.
    """

    def __init__(self, source: Samples, listing: SampleList) -> None:
        self.source, self._path = source, listing.path
        numbers, rows = _numbers(source)
        taken: dict[int, int] = {}  # number of a sample -> its line
        for name, line in listing.lines.items():
            at = f"{listing.path}:{line}"
            row = _ROW.fullmatch(name)
            if name in numbers:
                found = [numbers[name]]
            elif row is not None and int(row[2]) in rows.get(row[1], {}):
                found = [rows[row[1]][int(row[2])]]
            elif name in rows:
                found = list(rows[name].values())
            else:
                raise DataError(f"{at}: {name!r} is no sample of {source.describe()}; names are as in {_some(numbers)}")
            for number in found:
                if number in taken:
                    raise DataError(
                        f"{at}: {source.name(number)!r} is there twice, first on line {taken[number]}; keep one"
                    )
                taken[number] = line
        self._numbers, self._lines = list(taken), list(taken.values())

    def __len__(self) -> int:
        return len(self._numbers)

    def load(self, index: int) -> dict[str, np.ndarray]:
        """Number of a sample -> input name to array; errors name the line of the list."""
        try:
            return self.source.load(self._numbers[index])
        except DataError as error:
            raise DataError(f"{self._path}:{self._lines[index]}: {error}") from error

    def name(self, index: int) -> str:
        """Number of a sample -> its name in the source."""
        return self.source.name(self._numbers[index])

    def label(self, index: int) -> int | None:
        """Number of a sample -> its class in the source, None where nothing tells."""
        return self.source.label(self._numbers[index])

    def key(self, indices: Sequence[int] | None = None) -> str:
        """Numbers of samples -> the source's key for them, in this order."""
        chosen = range(len(self)) if indices is None else indices
        return self.source.key([self._numbers[index] for index in chosen])

    def describe(self) -> str:
        """Nothing -> one line for people."""
        return f"{len(self)} {'sample' if len(self) == 1 else 'samples'} listed in {self._path}"


def is_list(path: str | os.PathLike[str]) -> bool:
    """Does the name say that it is a list, here and not behind a URL?"""
    return not is_url(path) and Path(path).suffix.lower() == SUFFIX


def read_list(path: str | os.PathLike[str]) -> SampleList:
    """File -> what it lists.

    One sample a line: a path below the folder of the list, or below what a first line ``[PATH]`` names, a folder, a
    ``.npy`` or ``.npz`` file or a URL. A row of an array file is ``x.npz[17]``. Empty lines and those that begin with
    ``#`` are passed over; a name that begins so is written ``./#name``. DataError names the line.
    """
    where = os.fspath(path)
    try:
        # Names that are no UTF-8 come back as the operating system gives them.
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{where}: the list cannot be read: {error.strerror}") from error
    root, named = os.path.dirname(where) or ".", False
    lines: dict[str, int] = {}
    for line, written in enumerate(text.split("\n"), 1):
        entry = written.rstrip("\r")
        if not entry.strip() or entry.startswith("#"):
            continue
        if entry.startswith("["):
            match = _ROOT.fullmatch(entry.strip())
            if match is None or named or lines:
                raise DataError(
                    f"{where}:{line}: {entry!r}: only the first line may say where all samples are, as [FOLDER]; a "
                    "name that begins with [ is written ./["
                )
            root, named = _root(match[1], root, f"{where}:{line}"), True
            continue
        name = _name(entry, root, f"{where}:{line}")
        if name in lines:
            raise DataError(f"{where}:{line}: {name!r} is there twice, first on line {lines[name]}; keep one")
        lines[name] = line
    if not lines:
        raise DataError(f"{where}: lists no samples; write one path a line")
    return SampleList(where, root, lines)


def root_of(data: str) -> str:
    """``--data`` -> the folder, file or URL that names of its samples are relative to."""
    return read_list(data).root if is_list(data) else data


def list_text(path: str | os.PathLike[str], data: str, names: Iterable[str], said: str) -> str:
    """Where a list will be, ``--data``, names of samples of it, and what to say of them -> its content.

    DataError for a name that no line can hold.
    """
    root = root_of(data)
    if not is_url(root) and not os.path.isabs(root):
        folder = os.path.realpath(os.path.dirname(os.fspath(path)) or ".")
        root = os.path.relpath(os.path.realpath(root), folder)
    lines = [f"{MARK}: {' '.join(said.split())}", f"[{shown(root) if is_url(root) else root}]"]
    for name in names:
        if "\n" in name or name.endswith("\r"):
            raise DataError(f"{name!r}: no list can hold a name with the end of a line in it; rename the file")
        lines.append(f"./{name}" if name.startswith(("#", "[")) or not name.strip() else name)
    return "\n".join(lines) + "\n"


def _root(written: str, folder: str, at: str) -> str:
    if is_url(written):
        return written
    root = os.path.normpath(os.path.join(folder, written))
    if Path(root).suffix.lower() == SUFFIX or re.search(r"\.py(:\w+)?$", root):
        raise DataError(
            f"{at}: [{written}]: a list names samples of a folder, of a .npy or .npz file or of a URL; a script's "
            "samples come in its own order, and a list has no lists"
        )
    if not os.path.exists(root):
        raise DataError(f"{at}: {root}: no such file or folder")
    return root


def _name(entry: str, root: str, at: str) -> str:
    """A line -> the name of a sample below the root."""
    path = entry
    if os.path.isabs(entry) and not is_url(root):
        path = os.path.relpath(os.path.normpath(entry), os.path.abspath(root))
    name = str(PurePosixPath(os.path.normpath(path)))
    if name.split("/")[0] == ".." or os.path.isabs(name):
        raise DataError(f"{at}: {entry!r} leads out of {root}; name the folder that holds all on a first line [FOLDER]")
    return name


def _numbers(source: Samples) -> tuple[dict[str, int], dict[str, dict[int, int]]]:
    """Source -> the numbers of its samples by name; and of those that are rows, by file and row."""
    numbers = {source.name(index): index for index in range(len(source))}
    rows: dict[str, dict[int, int]] = {}
    for name, index in numbers.items():
        row = _ROW.fullmatch(name)
        if row is not None:
            rows.setdefault(row[1], {})[int(row[2])] = index
    return numbers, rows


def _some(names: Iterable[str]) -> str:
    return repr(next(iter(names), ""))

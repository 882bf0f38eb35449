"""Labels in a CSV file of ``sample,label`` rows."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from trtcal.errors import DataError

_HEADER = ("file", "filename", "image", "index", "name", "path", "row", "sample")
_ROW = re.compile(r"(?:(.*\.np[yz])\[)?([0-9]+)(?(1)\])", re.IGNORECASE)  # as sources.py names rows of arrays


_DIGITS = re.compile(r"[0-9]{1,18}")  # what fits into int64: longer ones are names, or a trap


class Label(NamedTuple):
    """A label as it is written, and the line where it stands."""

    text: str
    line: int


def read_labels(path: str | os.PathLike[str], names: Collection[str], *, part: bool = False) -> dict[str, Label]:
    """CSV file of ``sample,label`` rows, and the samples' names -> label by name, in the file's order.

    Where all samples are rows of one array, as ``x.npy[07]``, their numbers alone will do: ``07`` or ``7``. A first
    line that names the columns is passed over. DataError, with the line, for a row of other than two columns, a
    name that is no sample or stands there twice. Where the names are a ``part`` of those that there are, rows of other
    names are taken too, so that classes keep the numbers of the whole.
    """
    where = os.fspath(path)
    known = set(names)
    numbered = _rows(names)
    labels: dict[str, Label] = {}
    try:
        # Names that are no UTF-8 come back as the operating system gives them.
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.reader(file, strict=True)
            for row in rows:
                at = f"{where}:{rows.line_num}"
                if not row:
                    continue
                if len(row) != 2:
                    raise DataError(f"{at}: {len(row)} columns, expected two: sample,label")
                name, label = row[0].strip(), row[1].strip()
                if rows.line_num == 1 and name.lower() in _HEADER and name not in known:
                    continue
                entry = PurePosixPath(name)
                if entry.is_absolute() or ".." in entry.parts:
                    raise DataError(f"{at}: {name!r} leads out of the folder; names are relative to it")
                name = str(entry)
                if name not in known and _DIGITS.fullmatch(name):
                    name = numbered.get(int(name), name)
                if name not in known and not part:
                    hint = "names are relative to the folder of the data"
                    if numbered:
                        hint = f"the samples are {min(known)} to {max(known)}, or {min(numbered)} to {max(numbered)}"
                    raise DataError(f"{at}: there is no sample {name!r}; {hint}")
                if name in labels:
                    raise DataError(f"{at}: {name!r} is there twice, first on line {labels[name].line}; keep one")
                labels[name] = Label(label, rows.line_num)
    except OSError as error:
        raise DataError(f"{where}: the labels cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise DataError(f"{where}: not a CSV file: {error}") from error
    return labels


def _rows(names: Collection[str]) -> dict[int, str]:
    """Names of samples -> those by row number, where all are rows of one array; else nothing."""
    matches = [(_ROW.fullmatch(name), name) for name in names]
    if len({match and match[1] for match, _ in matches}) != 1:
        return {}
    return {int(match[2]): name for match, name in matches if match}


def class_numbers(path: str | os.PathLike[str], labels: Mapping[str, Label]) -> dict[str, int]:
    """Labels -> class by name: the numbers themselves, or of names their places in sorted order.

    DataError, with the line, where names and numbers are mixed.
    """
    if all(map(is_number, labels.values())):
        return {name: int(label.text) for name, label in labels.items()}
    for label in labels.values():
        if is_number(label) or not label.text:
            raise DataError(
                f"{os.fspath(path)}:{label.line}: label {label.text!r} among names; use numbers from 0, or names only"
            )
    numbers = {text: number for number, text in enumerate(sorted({label.text for label in labels.values()}))}
    return {name: numbers[label.text] for name, label in labels.items()}


def classes_of(path: str | os.PathLike[str], names: Collection[str], *, part: bool = False) -> Mapping[str, int | str]:
    """CSV file of ``sample,label`` rows, and the samples' names -> class of each sample that has a row.

    That is its class number, or the text itself where the texts are no classes: some numbers, some not, as they are
    for a metric of one's own. DataError as :func:`read_labels` raises it.
    """
    labels = read_labels(path, names, part=part)
    numbers = sum(map(is_number, labels.values()))
    if numbers == len(labels) or (numbers == 0 and all(label.text for label in labels.values())):
        return class_numbers(path, labels)
    return {name: label.text for name, label in labels.items()}


def refuse_unlabelled(path: str | os.PathLike[str], names: Collection[str], labelled: Collection[str]) -> None:
    """DataError where one of the names is not among those that the CSV file has a row for."""
    missing = [name for name in names if name not in labelled]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{os.fspath(path)}: no label for {missing[0]!r}{more}; add their rows")


def is_number(label: Label) -> bool:
    """Is the label a class number, 0 or more?"""
    return _DIGITS.fullmatch(label.text) is not None

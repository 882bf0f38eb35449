"""What a command may write over: results of its own kind, and nothing that it reads.

Every command asks :func:`check_output` for each of its outputs before it begins. A new kind of output is one
:class:`Kind`, which lives where the content is known.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from trtcal.errors import ModelError, OutputError
from trtcal.graph import external_files, load_model

HTML_MARK = '<meta name="generator" content="trtcal">'
"""Stands in the head of every page that trtcal writes."""

_ARRAYS = (".npy", ".npz")
_SCRIPT = re.compile(r"(\.py):\w+$")


class Kind(NamedTuple):
    """A kind of file that a command writes, recognised by its content."""

    name: str
    """As it stands after "is no"."""
    matches: Callable[[Path], bool]
    """Regular file -> is it of this kind, and may one like it take its place? Raises OSError where it is unreadable."""


def check_output(
    output: str | os.PathLike[str], kind: Kind, inputs: Iterable[str | os.PathLike[str] | None] = ()
) -> None:
    """File to write, what it will be, and what it is made from -> nothing, where writing loses nothing.

    ``inputs`` are models, with which count the files of their weights, caches, labels, data, and scripts also as
    ``file.py:function``; None stands for an option that is not given. Of a folder, the pictures and arrays in it
    count. OutputError where ``output`` cannot be written, is one of these under whatever name, or exists and
    is not of that ``kind``; an empty file may be replaced.
    """
    output = Path(output)
    _refuse_unwritable(output)
    if not output.exists():
        return
    for path in (path for path in inputs if path is not None):
        for file in _files_of(Path(_SCRIPT.sub(r"\1", os.fspath(path))), output):
            if file.exists() and os.path.samefile(file, output):
                what = "an input of this command" if file == output else f"{file}, an input of this command"
                raise OutputError(f"{output}: is {what}, which would be lost; choose another name")
    try:
        replaceable = not output.stat().st_size or kind.matches(output)
    except OSError as error:
        raise OutputError(f"{output}: exists and cannot be read: {error.strerror}; choose another name") from error
    if not replaceable:
        raise OutputError(f"{output}: exists and is no {kind.name}, so it is not replaced; choose another name")


def json_of(name: str, format: str | int, *keys: str) -> Kind:
    """What to call it, the value of "format" in it, and other keys of it -> the kind of such JSON objects."""

    def matches(path: Path) -> bool:
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return False
        return isinstance(content, dict) and content.get("format") == format and content.keys() >= set(keys)

    return Kind(name, matches)


def _is_onnx(path: Path) -> bool:
    try:
        load_model(path)
    except ModelError:
        return False
    return True


def _begins(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)


ONNX = Kind("ONNX model", _is_onnx)
HTML = Kind("page of trtcal's", lambda path: HTML_MARK.encode() in _begins(path, 4096))
PNG = Kind("PNG", lambda path: _begins(path, 8) == b"\x89PNG\r\n\x1a\n")


def weights_beside(model: Path) -> Kind:
    """File of a model -> the kind of the files that hold this model's weights."""

    def matches(path: Path) -> bool:
        return any(os.path.samefile(file, path) for file in _weights(model) if file.exists())

    return Kind(f"file of the weights of {model.name}", matches)


def _files_of(path: Path, output: Path) -> Iterator[Path]:
    """An input -> the files of it that ``output`` might be."""
    yield path
    if path.is_dir():
        from trtcal.preprocess import is_image  # Pillow loads slowly, and most outputs do not exist yet

        inside = output.resolve().is_relative_to(path.resolve())
        if inside and (output.suffix.lower() in _ARRAYS or is_image(output)):
            yield output
    elif path.is_file():
        yield from _weights(path)


def _weights(path: Path) -> Iterator[Path]:
    """File -> the files beside it that hold its weights; none where it is no model."""
    if path.is_file() and (path.suffix.lower() == ".onnx" or _begins(path, 1) == b"\x08"):
        try:
            yield from (path.parent / name for name in external_files(load_model(path)))
        except ModelError:
            return


def _refuse_unwritable(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: cannot be written: it is {'a folder' if path.is_dir() else 'no regular file'}")
    folder = Path(os.path.realpath(path)).parent  # a link is followed
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"the folder {path.parent} does not exist" if not folder.exists() else error.strerror
        raise OutputError(f"{path}: cannot be written: {reason}") from error

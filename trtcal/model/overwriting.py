"""What a command may write over: results of its own kind, and nothing that it reads.

Every command asks :func:`check_output` for each of its outputs before it begins. A new kind of output is one
:class:`Kind`, which lives where the content is known.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from trtcal.errors import DataError, ModelError, OutputError
from trtcal.files.html import HTML_MARK
from trtcal.model.read import external_files, load_model, load_model_alone

_ARRAYS = (".npy", ".npz")
_SCRIPT = re.compile(r"(\.py):\w+$")


class Opened(Protocol):
    """A model that is open already, so that nobody need read it again to know its files."""

    @property
    def name(self) -> str:
        """Its path, or what to call it."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """Its file, and those of its weights."""
        ...


Input: TypeAlias = "str | os.PathLike[str] | Opened"


class Kind(NamedTuple):
    """A kind of file that a command writes, recognised by its content."""

    name: str
    """As it stands after "is no"."""
    matches: Callable[[Path], bool]
    """Regular file -> is it of this kind, and may one like it take its place? Raises OSError where it is unreadable."""
    plain: bool = False
    """Is what matches plainly a result, so that it cannot hold the weights of a model that the command reads?"""


def check_output(output: str | os.PathLike[str], kind: Kind, inputs: Iterable[Input | None] = ()) -> None:
    """File to write, what it will be, and what it is made from -> nothing, where writing loses nothing.

    ``inputs`` are models, open or not, with which count the files of their weights, caches, labels, data, and scripts
    also as ``file.py:function``; None stands for an option that is not given. Of a folder, the pictures and arrays in
    it count. OutputError where ``output`` cannot be written, is one of these under whatever name, or exists and is not
    of that ``kind``; an empty file may be replaced.
    """
    output = Path(output)
    _refuse_unwritable(output)
    if not output.exists():
        return
    inputs = list(inputs)
    _refuse(output, inputs, weights=False)
    try:
        replaceable = not output.stat().st_size or kind.matches(output)
    except OSError as error:
        raise OutputError(f"{output}: exists and cannot be read: {error.strerror}; choose another name") from error
    if not (kind.plain and replaceable):
        _refuse(output, inputs, weights=True)
    if not replaceable:
        raise OutputError(f"{output}: exists and is no {kind.name}, so it is not replaced; choose another name")


def refuse_input(output: str | os.PathLike[str], inputs: Iterable[Input | None]) -> None:
    """As :func:`check_output` of a file that need not be written: OutputError only where it is an input."""
    output = Path(output)
    if output.exists():
        _refuse(output, inputs, weights=True)


def _refuse(output: Path, inputs: Iterable[Input | None], weights: bool) -> None:
    for given in (given for given in inputs if given is not None):
        if isinstance(given, (str, os.PathLike)):
            path = Path(_SCRIPT.sub(r"\1", os.fspath(given)))
            files = [path, *_inside(path, output), *(_weights(path) if weights else ())]
        else:
            path, files = Path(given.name), list(given.files)
        for file in files:
            if file.exists() and os.path.samefile(file, output):
                what = "an input of this command" if file == output else f"{file}, an input of this command"
                raise OutputError(f"{output}: is {what}, which would be lost; choose another name")


def check_distinct(outputs: Iterable[tuple[str, str | os.PathLike[str] | None]]) -> None:
    """What will be written, and where (None: nowhere) -> nothing; OutputError where one file is to be two of them."""
    taken: list[tuple[str, Path]] = []
    for what, path in ((what, Path(path)) for what, path in outputs if path is not None):
        for other, there in taken:
            if _same(path, there):
                raise OutputError(f"{path}: is to become both {other} and {what}; choose two names")
        taken.append((what, path))


@contextmanager
def only_writer(output: str | os.PathLike[str]) -> Iterator[None]:
    """File to write -> a block in which no other run writes it; OutputError where one does already.

    For runs that take long or write several files. The lock is a hidden file beside the output, removed at the end;
    one that a killed run left binds nobody.
    """
    from filelock import FileLock, Timeout

    real = Path(os.path.realpath(output))
    lock = FileLock(real.with_name(f".{real.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"{output}: another run is writing it; wait for that one, or choose another name") from error
    except (OSError, NotImplementedError) as error:  # the latter where the file system has no locks
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{output}: cannot be written: no lock beside it ({reason})") from error
    try:
        yield
    finally:
        # While it is held: who has opened the file already and locks it now is refused, since filelock looks whether it
        # is still there. Before 3.20.4 it did not, and up to 3.29.4 releasing removed what had come in its place.
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def json_of(name: str, format: str | int, *keys: str) -> Kind:
    """What to call it, the value of "format" in it, and other keys of it -> the kind of such JSON objects."""

    def matches(path: Path) -> bool:
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return False
        return isinstance(content, dict) and content.get("format") == format and content.keys() >= set(keys)

    return Kind(name, matches, plain=True)


def _is_onnx(path: Path) -> bool:
    try:
        load_model_alone(path)
    except ModelError:
        return False
    return True


def _begins(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)


ONNX = Kind("ONNX model", _is_onnx)
HTML = Kind("page of trtcal's", lambda path: HTML_MARK.encode() in _begins(path, 4096), plain=True)
PNG = Kind("PNG", lambda path: _begins(path, 8) == b"\x89PNG\r\n\x1a\n", plain=True)


def weights_beside(model: Path) -> Kind:
    """File of a model -> the kind of the files that hold this model's weights."""

    def matches(path: Path) -> bool:
        return any(os.path.samefile(file, path) for file in _weights(model) if file.exists())

    return Kind(f"file of the weights of {model.name}", matches)


def _inside(path: Path, output: Path) -> Iterator[Path]:
    """An input -> ``output``, where that may be one of the samples in it; of a list, the files that it names."""
    if path.suffix.lower() == ".txt" and path.is_file():
        from trtcal.samples.listed import read_list  # NumPy need not be loaded for other inputs

        with suppress(DataError):  # labels may be a text file too, and whoever opens a list says what is wrong with it
            listing = read_list(path)
            root = Path(listing.root)
            yield from [root / name for name in listing.files] if root.is_dir() else [root]
    if path.is_dir():
        from trtcal.samples.preprocess import is_image  # Pillow loads slowly, and most outputs do not exist yet

        inside = output.resolve().is_relative_to(path.resolve())
        if inside and (output.suffix.lower() in _ARRAYS or is_image(output)):
            yield output


def _weights(path: Path) -> Iterator[Path]:
    """File -> the files beside it that hold its weights; none where it is no model."""
    try:
        if path.is_file() and (path.suffix.lower() == ".onnx" or _begins(path, 1) == b"\x08"):
            yield from (path.parent / name for name in external_files(load_model(path)))
    except ModelError:
        return
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _same(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return one.samefile(other)  # hard links, and file systems that do not tell A from a
    except OSError:
        return False


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

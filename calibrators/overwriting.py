"""Where results may go: never over what they are made from, over each other, or over a file that is something else.

All of it is asked before the work begins: calibration takes minutes, and a model that was overwritten is gone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from calibrators.origin import external_data
from trtcal.cache import CalibrationCache
from trtcal.errors import CacheError, CacheFormatError, ModelError, OutputError
from trtcal.provenance import sidecar_path

Named = tuple[str, "str | os.PathLike[str] | None"]
"""What a file holds, for messages, and its path; None where there is none."""

_PLAN = b"ftrt"
_OTHERS = (
    (b"\x93NUMPY", "a numpy array"),
    (b"PK\x03\x04", "a .npz or zip file"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"BM", "a picture"),
    (b"GIF8", "a picture"),
    (b"II*\x00", "a picture"),
    (b"RIFF", "a picture"),
    (b"{", "a JSON file"),
)
_LARGEST_ONNX = 2**31  # protobuf's limit
_TEXT_ONNX = {".json", ".onnxjson", ".textproto", ".prototxt", ".pbtxt", ".onnxtxt", ".onnxtext"}


def refuse_clashes(inputs: Iterable[Named], outputs: Iterable[Named]) -> None:
    """What is read and what will be written -> nothing; OutputError where one file is two of them, by any name."""
    taken = [(what, Path(path)) for what, path in inputs if path is not None]
    for what, path in outputs:
        if path is None:
            continue
        for other, there in taken:
            if _same(Path(path), there):
                raise OutputError(f"{os.fspath(path)}: cannot hold {what}, it is {other} as well; choose another name")
        taken.append((what, Path(path)))


def cache_outputs(path: str | os.PathLike[str]) -> list[Named]:
    """Path of a calibration cache -> the files that are written for it."""
    return [("the calibration cache", path), ("the sidecar of the calibration cache", sidecar_path(path))]


def model_inputs(model: str | os.PathLike[str] | None) -> list[Named]:
    """ONNX file -> the files that it consists of: itself, and those that hold its weights."""
    if model is None:
        return []
    return [("the model", model), *(("the model's weights", path) for path in external_data(Path(model)))]


def refuse_unwritable(path: str | os.PathLike[str]) -> None:
    """Path of a result -> nothing; OutputError where its folder is missing or it is a folder itself."""
    real = Path(os.path.realpath(path))
    if real.is_dir():
        raise OutputError(f"{os.fspath(path)}: cannot be written: it is a folder")
    if not real.parent.is_dir():
        raise OutputError(f"{os.fspath(path)}: cannot be written: the folder {real.parent} does not exist")


def refuse_replacing(path: str | os.PathLike[str], what: str) -> None:
    """Path of an engine or a timing cache -> nothing; OutputError where it cannot be written or lies over another
    kind of file.
    """
    refuse_unwritable(path)
    found = other_kind(Path(path))
    if found is not None:
        raise OutputError(f"{os.fspath(path)}: exists and is {found}, not {what}; choose another name")


def refuse_cache(path: Path, *, force: bool) -> None:
    """Path of a calibration cache -> nothing; OutputError where it cannot be written or something would be lost.

    A file that is no cache is never replaced, nor one beside it that is no sidecar; a cache without a sidecar, which
    somebody else made, only by ``force``.
    """
    refuse_unwritable(path)
    sidecar = sidecar_path(path)
    if sidecar.exists() and not _is_sidecar(sidecar):
        raise OutputError(f"{sidecar}: would be replaced by the sidecar of {path}, and is none; choose another name")
    if not path.exists():
        return
    try:
        CalibrationCache.load(path)
    except CacheFormatError as error:
        raise OutputError(f"{path}: exists and is no calibration cache ({error}); choose another file") from error
    if not sidecar.exists() and not force:
        raise OutputError(
            f"{path}: exists, and nothing beside it says what it was made from; use it with policy 'read', replace it "
            f"with policy 'write' (--force), or choose another file"
        )


def other_kind(path: Path) -> str | None:
    """Existing file -> what it is, where that is known and it is no engine; None else."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
        size = path.stat().st_size
    except OSError:  # not there; or not readable, which the writing will tell
        return None
    if not head or head.startswith(_PLAN):
        return None
    for magic, kind in _OTHERS:
        if head.startswith(magic):
            return kind
    if head.startswith(b"TRT-"):
        try:
            CalibrationCache.load(path)
        except CacheError:
            return None
        return "a calibration cache"
    return "an ONNX model" if size < _LARGEST_ONNX and _is_onnx(path) else None


def _is_onnx(path: Path) -> bool:
    from trtcal.graph import load_model

    if path.suffix in _TEXT_ONNX:  # onnx would read it as text
        return False
    try:
        load_model(path)
    except ModelError:
        return path.suffix == ".onnx"
    return True


def _is_sidecar(path: Path) -> bool:
    try:
        return b'"cache_sha256"' in path.read_bytes()
    except OSError:
        return False


def _same(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return one.samefile(other)  # hard links, and file systems that do not tell A from a
    except OSError:
        return False

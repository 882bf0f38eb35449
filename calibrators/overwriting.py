"""What a build writes, for the rule of `overwriting`: never over an input, another result or a stranger.

All of it is asked before the work begins: calibration takes minutes, and a model that was overwritten is gone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.provenance import sidecar_path
from trtcal.errors import CacheError, ModelError
from trtcal.model.overwriting import Input, Kind, check_distinct, check_output, refuse_input

AnyPath = str | os.PathLike[str]

_PLAN = b"ftrt"
_OTHERS = (
    *(b"\x93NUMPY", b"PK\x03\x04", b"{"),  # .npy; .npz and zip; JSON
    *(b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\x00", b"RIFF"),
)
_LARGEST_ONNX = 2**31  # protobuf's limit
_TEXT_ONNX = {".json", ".onnxjson", ".textproto", ".prototxt", ".pbtxt", ".onnxtxt", ".onnxtext"}


def check_build_outputs(
    inputs: Iterable[Input | None],
    *,
    engine: AnyPath | None,
    timing_cache: AnyPath | None,
    cache: AnyPath | None,
) -> None:
    """Files that a build reads and those that it writes -> nothing; OutputError where something would be lost.

    What may lie under ``cache`` is for `calibrators.store` to say: a build may only read it.
    """
    inputs = list(inputs)
    outputs: list[tuple[str, AnyPath | None]] = [("the engine", engine), ("the timing cache", timing_cache)]
    if cache is not None:
        outputs += [("the calibration cache", cache), ("its sidecar", sidecar_path(cache))]
        refuse_input(cache, inputs)
        refuse_input(sidecar_path(cache), inputs)
    check_distinct(outputs)
    for path, kind in ((engine, ENGINE), (timing_cache, TIMING_CACHE)):
        if path is not None:
            check_output(path, kind, inputs)


def known_as_another_kind(path: Path) -> bool:
    """Existing file -> is it known to be something else than what TensorRT writes, which has no common mark?"""
    with path.open("rb") as file:
        head = file.read(8)
    if not head or head.startswith(_PLAN):
        return False
    if head.startswith(b"TRT-"):
        try:
            CalibrationCache.load(path)
        except CacheError:
            return False
        return True
    return head.startswith(_OTHERS) or (path.stat().st_size < _LARGEST_ONNX and _is_onnx(path))


ENGINE = Kind("TensorRT engine", lambda path: not known_as_another_kind(path))
TIMING_CACHE = Kind("timing cache", lambda path: not known_as_another_kind(path))


def _is_onnx(path: Path) -> bool:
    from trtcal.model.read import load_model

    if path.suffix in _TEXT_ONNX:  # onnx would read it as text
        return False
    try:
        load_model(path)
    except ModelError:
        return path.suffix == ".onnx"
    return True

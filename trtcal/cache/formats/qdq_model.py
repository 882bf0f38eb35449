"""A Q/DQ model as a source of ranges, and of the float model underneath."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.formats.row import Format, cache_without_header
from trtcal.errors import CacheFormatError, ModelError
from trtcal.model.file import check_weights_output, save_model
from trtcal.model.open import open_model
from trtcal.model.overwriting import ONNX, check_output, only_writer
from trtcal.qdq.extract import extract_scales, strip_qdq


def _parse(data: bytes, name: str) -> CalibrationCache:
    try:
        scales = extract_scales(open_model(data, path=name))
    except ModelError as error:
        raise CacheFormatError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error
    except Exception as error:  # whatever protobuf and ONNX say to bytes that make no sense to them
        raise CacheFormatError(f"{name}: is not an ONNX model that can be read: {error}") from error
    return cache_without_header(scales, name)


def _matches(data: bytes, tree: Any) -> bool:
    # The first field of a model is its IR version. A FlatBuffer may begin with 8 as well, but then has zeros.
    return data[:1] == b"\x08" and data[1:2] > b"\x00"


def save_float_model(path: str | Path, output: str | Path) -> tuple[Path, ...]:
    """Q/DQ ONNX file -> the float model underneath at ``output`` (see ``strip_qdq``); returns the files written.

    Weights lie where they lay, in the file or beside it. Raises ModelError where no float model is underneath,
    and OutputError where it cannot be written, or would be over the Q/DQ model or a file that is no model.
    """
    check_output(output, ONNX, [path])
    model = open_model(path)
    if model.has_external_data:
        check_weights_output(output, [model])
    with only_writer(output):
        return save_model(strip_qdq(model), output, external=model.has_external_data, source=path)


QDQ = Format(
    _parse,
    None,
    _matches,
    "an ONNX model with Q/DQ pairs, in every spelling; read only, `trtcal qdq` writes",
    "scale of each int8 activation with zero point 0",
    (".onnx",),
)

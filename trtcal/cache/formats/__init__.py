"""Every file format for ranges that trtcal reads and writes, as rows of one table.

Most formats hold amax as a decimal number, and no header. An amax becomes a scale by one division by 127 that
is rounded to float32 once, and is written with the fewest digits from which the very same scale comes back; a
program that rounds amax to float32 before it divides gets the scale to one unit in the last place. A zero may
lose its sign, and a nan its sign and payload. What a format cannot hold (inf in JSON, a negative range) is a
CacheError that names the tensor. A file without a header gives a cache for TensorRT 8.6.1 and
EntropyCalibration2, which ``trtcal.cache.doctor.retarget`` changes.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.formats import ort, qdq_model, tables, text
from trtcal.cache.formats.row import Format
from trtcal.errors import CacheError, CacheFormatError
from trtcal.model.overwriting import Kind

__all__ = ["CACHE", "FORMATS", "RANGES", "Format", "detect", "load", "output_format"]

FORMATS: dict[str, Format] = {
    "tensorrt": text.TENSORRT,
    "qdq": qdq_model.QDQ,
    "ort-flatbuffers": ort.FLATBUFFERS,
    "ort-json": ort.JSON,
    "tao": tables.TAO,
    "ppq": tables.PPQ,
    "mqbench": tables.MQBENCH,
    "dipoorlet": tables.DIPOORLET,
    "nvdla": tables.NVDLA,
    "int8api": text.INT8API,
    "ort-text": ort.TEXT,
}
"""Name on the command line -> format; a file is of the first that matches its content.

Sources: ``write_calibration_table`` of ONNX Runtime; NVIDIA's sampleINT8API, which MQBench writes for PPL;
``calibration_cache_from_dict`` of TAO's exporters; ``TensorrtExporter`` of PPQ, ``deploy_linear.py`` of MQBench,
``gen_trt_range`` of Dipoorlet; ``calib_txt_to_json.py`` and ``LowPrecision.md`` of nvdla/sw.
"""


def detect(data: bytes, name: str = "<bytes>") -> str:
    """Content of a file -> name of its format in FORMATS; ``name`` decides where the content does not.

    Raises CacheFormatError where neither does.
    """
    tree: Any = None
    problem = None
    if data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        try:
            tree = tables.parse_json(data, name)
        except CacheFormatError as error:
            problem = error
    for format, row in FORMATS.items():
        if row.matches(data, tree):
            return format
    guess = _by_suffix(name)
    if guess is None:
        raise problem or CacheFormatError(
            f"{name}: not recognised as any of {', '.join(FORMATS)}; if it is one of them, name it"
        )
    return guess


def load(path: str | os.PathLike[str], format: str | None = None) -> tuple[CalibrationCache, str]:
    """File, and its format if it is known -> its ranges, and the name of its format.

    Raises CacheError where it cannot be read, CacheFormatError where it is not in that format or, without
    one, in any; ValueError for an unknown format.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    name = os.fspath(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CacheError(f"{name}: cannot be read: {error.strerror or error}") from error
    format = format or detect(data, name)
    return FORMATS[format].parse(data, name), format


def output_format(path: str | os.PathLike[str], format: str | None = None) -> str:
    """File to write, and its format if it is given -> the format, or the one that its name asks for.

    Raises ValueError where the name asks for none, or the format cannot be written.
    """
    format = format or _by_suffix(os.fspath(path))
    if format == "qdq":
        raise ValueError(f"{os.fspath(path)}: ranges go into a model by trtcal qdq, which takes the model too")
    writable = [name for name, row in FORMATS.items() if row.format is not None]
    if format is None:
        raise ValueError(
            f"{os.fspath(path)}: its name does not say in which format; name one (--to) of {', '.join(writable)}"
        )
    if format not in writable:
        raise ValueError(f"unknown format {format!r}; choose one of {', '.join(writable)}")
    return format


def _holds(path: Path, formats: Collection[str]) -> bool:
    """Does the file hold ranges in one of these formats? A lone number is the header of TensorRT 4, or anything."""
    data = path.read_bytes()
    try:
        format = detect(data)
        return format in formats and bool(FORMATS[format].parse(data, str(path)).scales or data.startswith(b"TRT-"))
    except CacheError:
        return False


CACHE = Kind("calibration cache", lambda path: _holds(path, ("tensorrt",)))
RANGES = Kind("calibration cache, nor ranges in another format", lambda path: _holds(path, FORMATS.keys() - {"qdq"}))


def _by_suffix(name: str) -> str | None:
    return next((format for format, row in FORMATS.items() if name.lower().endswith(row.suffixes)), None)

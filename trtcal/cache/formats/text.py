"""Formats of one tensor per line."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from trtcal.cache.cache import CalibrationCache, Notes, text_lines
from trtcal.cache.formats.row import Format, amax_of, cache_without_header, is_number, number, scale_of
from trtcal.errors import CacheFormatError

_BOM = "\ufeff"


def lines(separator: str, description: str, *, suffixes: tuple[str, ...] = ()) -> Format:
    """Lines of name, separator and amax, cut at the last separator: a name may hold it too.

    NVIDIA's sampleINT8API cuts at the first colon and so misses names that hold one.
    """
    mark = separator.rstrip() or separator

    def split(line: str) -> tuple[str, str]:
        tensor, _, value = line.rstrip(" \t").rpartition(mark)
        return tensor, value.strip(" \t")

    def parse(data: bytes, name: str) -> CalibrationCache:
        notes = Notes()
        scales: dict[str, np.float32] = {}
        for line_number, line in text_lines(data, name, notes):
            where = f"{name}:{line_number}"
            tensor, value = split(line)
            if not tensor:
                raise CacheFormatError(f"{where}: expected '<tensor>{separator}<amax>', got {line[:120]!r}")
            if tensor in scales:
                notes.repeated(tensor, line_number)
            scales[tensor] = scale_of(number(value, where), where)
        if not scales:
            raise CacheFormatError(f"{name}: expected lines of '<tensor>{separator}<amax>', got an empty file")
        return cache_without_header(scales, name, notes=notes.sentences())

    def format(cache: CalibrationCache) -> bytes:
        text = "".join(f"{n}{separator}{amax_of(n, scale)!r}\n" for n, scale in cache.scales.items())
        return (_BOM * text.startswith(_BOM) + text).encode()  # readers drop one, and must not drop a name's own

    def matches(data: bytes, tree: Any) -> bool:
        tensor, value = split(_first_line(data).rstrip())
        return bool(tensor) and is_number(value)

    return Format(parse, format, matches, description, suffixes=suffixes)


def _is_tensorrt(data: bytes, tree: Any) -> bool:
    """Does it begin with a header, the bare number of TensorRT 3 and 4 included?"""
    return re.fullmatch(r"TRT-.+|[0-9]+", _first_line(data).strip()) is not None


def _first_line(data: bytes) -> str:
    first = data.removeprefix(_BOM.encode()).lstrip(b"\r\n").split(b"\n", 1)[0]
    try:
        return first.decode()
    except UnicodeDecodeError:
        return ""


TENSORRT = Format(
    lambda data, name: CalibrationCache.parse(data, name=name),
    CalibrationCache.format,
    _is_tensorrt,
    "the calibration cache above",
    "scale, exact; version and algorithm",
    (".cache", ".calib", ".table", "cal.bin"),
)
INT8API = lines(": ", "lines of `name: amax`, read by NVIDIA's sampleINT8API", suffixes=(".txt",))

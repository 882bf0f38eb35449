"""What ``write_calibration_table`` of ONNX Runtime writes.

Three files with the same ranges: ``calibration.flatbuffers``, whose values the TensorRT provider takes for
amax (``ReadDynamicRange`` in its ``tensorrt_execution_provider_utils.h``); ``calibration.cache``, the same as
text, which nothing reads; and ``calibration.json`` with both ends of each range, in one of three layouts:

- ``TensorsData``, as calibrators return it since 1.16, with NumPy arrays spelled out;
- the same without its frame: an object of ``TensorData``;
- ``{tensor: [lowest, highest]}``, before 1.16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.formats import flatbuffer
from trtcal.cache.formats.row import Format, amax_of, cache_without_header, finite_amax, number, scale_of
from trtcal.cache.formats.tables import dump_json, json_number, parse_json
from trtcal.cache.formats.text import lines
from trtcal.errors import CacheFormatError

# ONNX Runtime's #22166 made max(|highest|, |lowest|) into max(highest, lowest) (reported as #25621, still so
# in 1.32).
SIGN_LOST = (
    "ONNX Runtime writes the upper end of a range even where the lower one is further from zero, so some ranges may "
    "be too small; calibration.json beside this file has both ends"
)


def noting_lost_signs(row: Format) -> Format:
    """The same format; a cache that trtcal did not write notes what ONNX Runtime may have lost."""
    format = row.format
    assert format is not None

    def parse(data: bytes, name: str) -> CalibrationCache:
        cache = row.parse(data, name)
        notes = cache.tolerated if format(cache) == data else (*cache.tolerated, SIGN_LOST)
        return CalibrationCache(cache.version, cache.algorithm, cache.scales, notes)

    return row._replace(parse=parse)


def _parse_flatbuffer(data: bytes, name: str) -> CalibrationCache:
    scales: dict[str, np.float32] = {}
    notes = []
    for tensor, value in flatbuffer.parse(data, name):
        where = f"{name}: tensor {tensor!r}"
        if tensor in scales:
            notes.append(f"tensor {tensor!r} again, its last value counts")
        scales[tensor] = scale_of(number(value, where), where)
    return cache_without_header(scales, name, notes=notes)


def _format_flatbuffer(cache: CalibrationCache) -> bytes:
    return flatbuffer.format([(name, repr(amax_of(name, scale))) for name, scale in cache.scales.items()])


def _is_flatbuffer(data: bytes, tree: Any) -> bool:
    try:
        flatbuffer.parse(data)
    except CacheFormatError:
        return False
    return True


def _parse_json(data: bytes, name: str) -> CalibrationCache:
    tree = parse_json(data, name)
    framed = _is_framed(tree)
    table = tree.get("data") if framed else tree
    if not isinstance(table, dict):
        raise CacheFormatError(f"{name}: expected an object with a range for each tensor")
    scales = {}
    for tensor, entry in table.items():
        where = f"{name}: tensor {tensor!r}"
        ends = [entry.get(end) for end in ENDS] if isinstance(entry, dict) else entry
        if not isinstance(ends, list) or len(ends) != 2:
            raise CacheFormatError(f"{where}: expected the lowest and the highest value")
        scales[tensor] = scale_of(max(abs(_end(end, where)) for end in ends), where)
    method = tree.get("calibration_method") if framed else None
    method = method.get("value") if isinstance(method, dict) else method
    minmax = isinstance(method, str) and "MinMax" in method
    return cache_without_header(scales, name, algorithm="MinMaxCalibration" if minmax else "EntropyCalibration2")


def _end(value: object, where: str) -> float:
    """A number, a NumPy scalar spelled out, or an array of one element."""
    if isinstance(value, dict):
        value = value.get("data")
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        raise CacheFormatError(f"{where}: has {len(value)} ranges, where a cache holds one per tensor")
    return json_number(value, where)


def _format_json(cache: CalibrationCache) -> bytes:
    def array(value: float) -> dict[str, Any]:
        return {"data": value, "dtype": "float32", "CLS": "numpy.array"}

    table = {}
    for name, scale in cache.scales.items():
        amax = finite_amax(name, scale)
        table[name] = {"lowest": array(-amax), "highest": array(amax), "CLS": "TensorData"}
    method = "MinMax" if cache.algorithm == "MinMaxCalibration" else "Entropy"
    return dump_json(
        {
            "CLS": "TensorsData",
            "data": table,
            "calibration_method": {"CLS": "CalibrationMethod", "value": f"CalibrationMethod.{method}"},
        }
    )


def _is_json(data: bytes, tree: Any) -> bool:
    if not isinstance(tree, dict):
        return False
    first = next(iter(tree.values()), None)
    return (
        _is_framed(tree)
        or (isinstance(first, dict) and set(ENDS) <= first.keys())
        or (isinstance(first, list) and len(first) == 2)
    )


def _is_framed(tree: object) -> bool:
    return isinstance(tree, dict) and tree.get("CLS") == "TensorsData"


ENDS = ("lowest", "highest")

FLATBUFFERS = noting_lost_signs(
    Format(
        _parse_flatbuffer,
        _format_flatbuffer,
        _is_flatbuffer,
        "`calibration.flatbuffers`, which ONNX Runtime's TensorRT provider reads",
        "amax, as text in a FlatBuffer",
        (".flatbuffers",),
    )
)
JSON = Format(
    _parse_json,
    _format_json,
    _is_json,
    "`calibration.json` of ONNX Runtime, in the layouts of all versions",
    "lowest and highest; MinMax or another method",
)
TEXT = noting_lost_signs(lines(" ", "`calibration.cache` of ONNX Runtime, lines of `name amax`"))

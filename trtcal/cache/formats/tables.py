"""JSON formats: plain tables of amax, and NVDLA's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.formats.row import Format, cache_without_header, checked_scale, finite_amax, scale_of
from trtcal.errors import CacheFormatError


def parse_json(data: bytes, name: str) -> Any:
    """JSON, Python's Infinity and NaN included -> values; CacheFormatError, also for a key that comes twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key that comes twice in one object")
        return found

    try:
        return json.loads(data.removeprefix(b"\xef\xbb\xbf"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise CacheFormatError(f"{name}:{error.lineno}: expected JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise CacheFormatError(f"{name}: expected JSON, got {error}") from error


def dump_json(tree: Mapping[str, Any]) -> bytes:
    """Values -> JSON, indented as the tools that write these formats do."""
    return f"{json.dumps(tree, indent=4, allow_nan=False)}\n".encode()


def json_number(value: object, where: str) -> float:
    """Value out of JSON -> number; CacheFormatError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        # What is nested may be so deep that it cannot be shown.
        found = type(value).__name__ if isinstance(value, (dict, list)) else str(value)[:60]
        raise CacheFormatError(f"{where}: expected a number, got {found!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise CacheFormatError(f"{where}: expected a number that float32 holds, got a larger one") from error


def json_table(*keys: str, note: str = "") -> Format:
    """An object {tensor: amax} under ``keys``, each the key of the object around the next; ``note``: whose it is."""

    def parse(data: bytes, name: str) -> CalibrationCache:
        table = _nested(parse_json(data, name), keys)
        if not isinstance(table, dict):
            raise CacheFormatError(f"{name}: expected an object of ranges under {' -> '.join(map(repr, keys))}")
        scales = {}
        for tensor, value in table.items():
            where = f"{name}: tensor {tensor!r}"
            scales[tensor] = scale_of(json_number(value, where), where)
        return cache_without_header(scales, name)

    def format(cache: CalibrationCache) -> bytes:
        tree: dict[str, Any] = {name: finite_amax(name, scale) for name, scale in cache.scales.items()}
        for key in reversed(keys):
            tree = {key: tree}
        return dump_json(tree)

    shown = "{name: amax}"
    for key in reversed(keys):
        shown = f'{{"{key}": {shown}}}'
    return Format(parse, format, lambda data, tree: isinstance(_nested(tree, keys), dict), f"`{shown}`{note}")


def _nested(tree: object, keys: Iterable[str]) -> object:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _parse_nvdla(data: bytes, name: str) -> CalibrationCache:
    """NVDLA's table -> cache. Where min and max stand beside a scale, the scale counts, as for its compiler."""
    tree = parse_json(data, name)
    if not isinstance(tree, dict):
        raise CacheFormatError(f"{name}: expected an object with an entry for each tensor")
    scales = {}
    for tensor, entry in tree.items():
        where = f"{name}: tensor {tensor!r}"
        if not _is_nvdla_entry(entry):
            raise CacheFormatError(f"{where}: expected an object that holds a scale, or min and max")
        if json_number(entry.get("offset", 0), where):
            raise CacheFormatError(f"{where}: expected the offset 0, the only one a cache stands for")
        if "scale" in entry:
            scales[tensor] = checked_scale(json_number(entry["scale"], where), where)
        else:
            scales[tensor] = scale_of(max(abs(json_number(entry[end], where)) for end in ("min", "max")), where)
    return cache_without_header(scales, name)


def _format_nvdla(cache: CalibrationCache) -> bytes:
    """Cache -> NVDLA's table, as its calib_txt_to_json.py writes it."""
    tree = {}
    for name, scale in cache.scales.items():
        finite_amax(name, scale)  # refuses what JSON cannot hold
        tree[name] = {"scale": float(str(scale)), "min": 0, "max": 0, "offset": 0}
    return dump_json(tree)


def _is_nvdla(data: bytes, tree: Any) -> bool:
    """Is its first entry one of NVDLA's?"""
    return isinstance(tree, dict) and any(_is_nvdla_entry(entry) for entry in list(tree.values())[:1])


def _is_nvdla_entry(entry: object) -> bool:
    return isinstance(entry, dict) and ("scale" in entry or {"min", "max"} <= entry.keys())


TAO = json_table("tensor_scales", note=" of NVIDIA TAO; amax in spite of its name")
PPQ = json_table("act_quant_info")
MQBENCH = json_table("tensorrt", "blob_range")
DIPOORLET = json_table("blob_range")
NVDLA = Format(
    _parse_nvdla,
    _format_nvdla,
    _is_nvdla,
    '`{name: {"scale": ..., "min": 0, "max": 0, "offset": 0}}` for NVDLA\'s compiler',
    "scale, else min and max",
)

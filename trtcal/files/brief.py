"""Results as one short text: a repr that fits a screen, whatever a model or a data set holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any

WIDE = 60  # characters of one value
INNER = 240  # characters of a result within a result
FEW = 2  # entries of a collection


def brief(thing: Any) -> str:
    """Object of a dataclass -> its class and fields; of collections the first entries, and how many more there are."""
    parts = (f"{item.name}={_value(getattr(thing, item.name))}" for item in fields(thing) if item.repr)
    return f"{type(thing).__name__}({', '.join(parts)})"


def few(names: Sequence[str], most: int = 3, more: str = "") -> str:
    """Names -> the first of them, and how many more there are; ``more`` says where these are listed."""
    others = len(names) - most
    return ", ".join(names[:most]) + (f" and {others} more{more}" if others > 0 else "")


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _cut(repr(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if hasattr(value, "SerializeToString"):  # a ModelProto may write all its weights
        return f"<{type(value).__name__}>"
    if hasattr(value, "dtype") and hasattr(value, "shape") and value.shape:
        return f"<{value.dtype} {'x'.join(map(str, value.shape))}>"
    if is_dataclass(value):
        text = repr(value)
        return text if len(text) <= INNER else f"{type(value).__name__}(...)"
    if isinstance(value, Mapping):
        return _listed("{}", (f"{_value(key)}: {_value(inner)}" for key, inner in value.items()), value)
    if isinstance(value, (tuple, list, set, frozenset)):
        return _listed("()" if isinstance(value, tuple) else "[]", map(_value, value), value)
    return _cut(repr(value))


def _listed(brackets: str, parts: Iterable[str], whole: Collection[Any]) -> str:
    shown = list(islice(parts, FEW))
    more = len(whole) - len(shown)
    return brackets[0] + ", ".join(shown + [f"... {more} more"] * (more > 0)) + brackets[1]


def _cut(text: str) -> str:
    return text if len(text) <= WIDE else f"{text[: WIDE - 20]}...{text[-17:]}"

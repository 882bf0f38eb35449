"""Settings as fields of a frozen dataclass: what a command line says of each, and its value, which may come as text."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import Field, field, fields
from typing import Any


def option(
    text: str,
    metavar: str | None = None,
    *,
    default: Any = None,
    least: int | None = None,
    most: int | None = None,
    otherwise: str | None = None,
    group: str | None = None,
    joined: bool = False,
) -> Any:
    """A field, with what a command line says of it: help, shape of its values, bounds, and what holds ``otherwise``.

    ``joined``: several values are one text with commas, as numbers always are; others are given one by one.
    """
    said = {"help": text, "metavar": metavar, "least": least, "most": most, "otherwise": otherwise, "group": group}
    return field(default=default, metadata={**said, "joined": joined})


def is_joined(item: Field[Any]) -> bool:
    """Are the values of the field one text on a command line?"""
    kind = str(item.type)
    return kind.startswith("tuple") and (bool(item.metadata["joined"]) or "str" not in kind)


def take_values(settings: Any, of: type) -> None:
    """Object of a frozen dataclass -> its fields that are ``of`` this class hold values of their types.

    ValueError, naming the option, for a value of another kind or out of bounds.
    """
    for item in fields(of):
        object.__setattr__(settings, item.name, _value(item, getattr(settings, item.name)))


def flag(name: str) -> str:
    """Name of a field -> its option: ``batch_size`` -> ``--batch-size``."""
    return f"--{name.replace('_', '-')}"


def size_in_bytes(text: str, unit: str | None = None) -> int:
    """A size such as 512M or 2GiB -> bytes; a number alone counts in ``unit`` (K, M or G), or is a ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    letter = (match[2].upper() or unit) if match else None
    if match is None or letter is None:
        alone = "" if unit is None else f"1 ({unit}iB), "
        raise ValueError(f"expected a size such as {alone}512M or 2G, got {text!r}")
    return int(float(match[1]) * 1024 ** {"K": 1, "M": 2, "G": 3}[letter])


def duration(text: str) -> float:
    """A time such as 90s, 5m or 1.5h -> seconds; ValueError for anything else, and for none."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smh])", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ValueError(f"expected a time such as 90s, 5m or 1.5h, got {text!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2].lower()]


_KINDS: dict[str, tuple[type, str, str, str]] = {
    "str": (str, "text", "names", "a,b"),
    "int": (int, "a whole number", "whole numbers", "1,4,16"),
    "float": (float, "a number", "numbers", "0.5,0.5,0.5"),
    "bool": (bool, "true or false", "", ""),
}
"""Type of a field -> itself, what one value and several are called, and several as text."""


def _value(item: Field[Any], given: Any) -> Any:
    """A field and what it was given -> its value."""
    if given is None and item.default in (None, ()):
        return item.default
    kind = str(item.type).removesuffix(" | None")
    if not kind.startswith("tuple"):
        return _single(item, kind, given)
    inner = kind.removeprefix("tuple[").removesuffix(", ...]")
    if not is_joined(item):
        return tuple(_single(item, inner, part) for part in (given if isinstance(given, (list, tuple)) else [given]))
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, (list, tuple)) else [given]
    values = []
    with suppress(ValueError):
        values = [_single(item, inner, part) for part in parts]
    if len(values) < len(parts) or (not values and item.default is None):
        *_, several, example = _KINDS[inner]
        raise ValueError(
            f"{flag(item.name)} {given}: expected {several}{_bounds(item)} joined by commas, such as {example}"
        )
    return tuple(values)


def _single(item: Field[Any], kind: str, given: Any) -> Any:
    """A value of one of _KINDS, within the bounds of its field."""
    wanted, words, *_ = _KINDS[kind]
    least, most = item.metadata["least"], item.metadata["most"]
    if kind == "bool":
        if isinstance(given, bool):
            return given
    elif kind == "str":
        if isinstance(given, (str, os.PathLike)):
            return os.fspath(given)
    elif isinstance(given, (str, int, float)) and not isinstance(given, bool):
        with suppress(ValueError, OverflowError):
            value = wanted(given)
            whole = isinstance(given, str) or value == given
            if whole and (least is None or value >= least) and (most is None or value <= most):
                return value
    raise ValueError(f"{flag(item.name)} {given}: expected {words}{_bounds(item)}")


def _bounds(item: Field[Any]) -> str:
    least, most = item.metadata["least"], item.metadata["most"]
    if least is None:
        return ""
    return f" from {least} on" if most is None else f" from {least} to {most}"

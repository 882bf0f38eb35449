from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from trtcal.files.settings import duration, flag, is_joined, option, size_in_bytes, take_values


@dataclass(frozen=True, kw_only=True)
class Settings:
    where: str = option("Where.", "PATH", default=MISSING)
    size: int = option("How many.", "N", default=8, least=1, most=9)
    factor: float | None = option("Times this.", "F")
    fast: bool = option("Be quick.", default=False)
    sizes: tuple[int, ...] = option("Several.", "N,N", default=(1, 2), least=1)
    means: tuple[float, ...] | None = option("Per channel.", "M,M")
    names: tuple[str, ...] = option("Of these.", "NAME,...", default=("a",), joined=True)
    shapes: tuple[str, ...] = option("Repeatable.", "SIZES", default=())

    def __post_init__(self) -> None:
        take_values(self, Settings)


def made(**given: Any) -> Settings:
    return Settings(**{"where": "x", **given})


def test_values_of_their_types_and_their_texts_are_the_same() -> None:
    values: dict[str, Any] = {
        "where": "x", "size": 3, "factor": 0.5, "sizes": (4, 5), "means": (0.5, 1.0), "names": ("b", "c"),
        "shapes": ("1,2",), "fast": True,
    }  # fmt: skip
    texts: dict[str, Any] = {
        "where": Path("x"), "size": "3", "factor": "0.5", "sizes": "4,5", "means": "0.5,1", "names": "b,c",
        "shapes": "1,2", "fast": True,
    }  # fmt: skip
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    assert made(**values) == made(**texts) == made(**lists)
    for name, value in values.items():
        assert getattr(made(**texts), name) == value
        assert type(getattr(made(**texts), name)) is type(value)


def test_what_is_not_given_is_the_default() -> None:
    assert made(factor=None, means=None, shapes=None) == made()
    assert (made().size, made().sizes, made().names, made().shapes, made().factor) == (8, (1, 2), ("a",), (), None)
    assert made(sizes=[], names=[]).sizes == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"where": 3}, "--where 3: expected text"),
        ({"size": 0}, "--size 0: expected a whole number from 1 to 9"),
        ({"size": "10"}, "--size 10: expected a whole number from 1 to 9"),
        ({"size": 1.5}, "--size 1.5: expected a whole number from 1 to 9"),
        ({"size": True}, "--size True: expected a whole number from 1 to 9"),
        ({"size": None}, "--size None: expected a whole number from 1 to 9"),
        ({"factor": "x"}, "--factor x: expected a number"),
        ({"fast": 1}, "--fast 1: expected true or false"),
        ({"fast": "true"}, "--fast true: expected true or false"),
        ({"sizes": "1,x"}, "--sizes 1,x: expected whole numbers from 1 on joined by commas, such as 1,4,16"),
        ({"sizes": "1,,2"}, "--sizes 1,,2: expected whole numbers from 1 on joined by commas"),
        ({"sizes": [2, 0]}, r"--sizes \[2, 0\]: expected whole numbers from 1 on joined by commas"),
        ({"sizes": ""}, "--sizes : expected whole numbers from 1 on joined by commas"),
        ({"means": "1,x"}, "--means 1,x: expected numbers joined by commas, such as 0.5,0.5,0.5"),
        ({"means": ()}, r"--means \(\): expected numbers joined by commas"),
        ({"names": [1]}, r"--names \[1\]: expected names joined by commas, such as a,b"),
        ({"shapes": [1]}, "--shapes 1: expected text"),
    ],
)
def test_what_a_field_does_not_take_is_refused_by_the_name_of_its_option(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        made(**given)


def test_a_field_says_what_a_command_line_has_to_know() -> None:
    joined = {item.name for item in fields(Settings) if is_joined(item)}
    assert joined == {"sizes", "means", "names"}
    assert fields(Settings)[1].metadata["help"] == "How many."
    assert flag("batch_size") == "--batch-size"


@pytest.mark.parametrize(
    ("text", "unit", "size"),
    [
        ("512M", None, 512 << 20),
        ("2g", None, 2 << 30),
        ("1.5 GiB", None, 3 << 29),
        ("64KB", None, 64 << 10),
        ("3", "M", 3 << 20),
    ],
)
def test_a_size_is_bytes(text: str, unit: str | None, size: int) -> None:
    assert size_in_bytes(text, unit) == size


@pytest.mark.parametrize("text", ["3", "much", "-1M", "", "1T"])
def test_what_is_no_size_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as 512M or 2G, got"):
        size_in_bytes(text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("1.5 h", 5400), ("2M", 120)])
def test_a_time_is_seconds(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["5", "soon", "-1m", "", "0s", "1d", "5m 3s"])
def test_what_is_no_time_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a time such as 90s, 5m or 1\.5h, got"):
        duration(text)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from trtcal.files.brief import brief, few


@dataclass
class Inner:
    text: str


@dataclass
class Result:
    number: int
    name: str
    array: np.ndarray
    table: Mapping[str, object]
    rows: tuple[object, ...]
    inner: Inner
    hidden: str = field(default="secret", repr=False)

    __repr__ = brief


def test_a_small_result_is_shown_whole() -> None:
    result = Result(3, "a", np.float32(2), {"x": 1}, (1, "b"), Inner("c"))
    assert repr(result) == (
        "Result(number=3, name='a', array=np.float32(2.0), table={'x': 1}, rows=(1, 'b'), inner=Inner(text='c'))"
    ).replace("np.float32(2.0)", repr(np.float32(2)))


def test_a_large_one_fits_a_screen_and_says_how_much_more_there_is() -> None:
    names = [f"a long name of a tensor, number {number}, deep within scopes of all kinds" for number in range(1000)]
    result = Result(10**300, "\n" * 500, np.zeros((3, 4)), dict.fromkeys(names, 1), tuple(names), Inner("x" * 999))
    text = repr(result)
    assert len(text) < 800
    assert "\n" not in text
    assert text.count("... 998 more") == 2
    assert "array=<float64 3x4>" in text
    assert "inner=Inner(...)" in text
    assert "secret" not in text


def test_neither_bytes_nor_models_are_written_out() -> None:
    class Proto:
        def SerializeToString(self) -> bytes:
            return b""

        def __repr__(self) -> str:
            raise AssertionError("all its weights")

    text = repr(Result(1, "a", np.zeros(1), {"plan": bytes(10**7)}, (Proto(),), Inner("b")))
    assert "table={'plan': <10000000 bytes>}, rows=(<Proto>)" in text


def test_a_list_that_is_cut_says_how_many_more_there_are() -> None:
    assert few(["a", "b", "c"]) == "a, b, c"
    assert few(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert few(["a", "b", "c"], 1, " (--json lists all)") == "a and 2 more (--json lists all)"
    assert few([]) == ""

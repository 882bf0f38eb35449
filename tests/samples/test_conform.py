from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trtcal.errors import DataError, NonFiniteError
from trtcal.samples.conform import as_dtype, conform, fits
from trtcal.spec import InputSpec


def one(array: Any, dtype: Any = np.float32, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    spec = InputSpec("x", np.dtype(dtype), np.shape(array) if shape is None else shape)
    return conform({"x": array}, [spec], "cat.png")["x"]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("float64", "float32"),
        ("float32", "float64"),
        ("float32", "float16"),
        (">f4", "float32"),
        ("uint8", "int32"),
        ("uint16", "float32"),
        ("int64", "float32"),
        ("bool", "float32"),
        ("int64", "int32"),
        ("int32", "int64"),
        ("int64", "uint8"),
        ("bool", "int64"),
        ("int64", "bool"),
        ("bool", "bool"),
    ],
)
def test_casts_that_keep_every_value_are_made(found: str, wanted: str) -> None:
    array = np.array([0, 1, 1], found)
    cast = one(array, wanted)
    assert cast.dtype == wanted
    assert cast.tolist() == array.tolist()


@pytest.mark.parametrize("wanted", ["float32", "float16", "float64"])
def test_pixels_for_a_floating_point_input_are_refused_unless_they_are_meant(wanted: str) -> None:
    array = np.array([0, 7, 255], np.uint8)
    with pytest.raises(DataError, match=r"'cat\.png', input 'x': uint8 for a .* --preset raw or astype"):
        one(array, wanted)
    cast = conform({"x": array}, [InputSpec("x", np.dtype(wanted), (3,), pixels=True)], "a")["x"]
    assert (cast.dtype, cast.tolist()) == (wanted, [0, 7, 255])


@pytest.mark.parametrize(
    ("array", "wanted", "words"),
    [
        (np.array([0, 2**40]), "int32", "value 1099511627776 does not fit int32"),
        (np.array([-1]), "uint8", "value -1 does not fit uint8"),
        (np.array([2]), "bool", "value 2 does not fit bool"),
        (np.array([2**24 + 1]), "float32", "value 16777217 does not fit float32"),
        (np.array([1e300]), "float32", "does not fit float32"),
        (np.array([1e5], np.float32), "float16", "does not fit float16"),
        (np.array([1.0]), "int64", "round and cast them yourself"),
        (np.array([1.0]), "bool", "round and cast them yourself"),
        (np.array([1j]), "float32", "complex128"),
        (np.array(["1"]), "float32", "convert it to numbers"),
        (np.array([None]), "float32", "convert it to numbers"),
        ([[1, 2], ["a", 3]], "float32", "convert it to numbers"),
    ],
)
def test_casts_that_change_values_are_refused(array: object, wanted: str, words: str) -> None:
    with pytest.raises(DataError, match=rf"sample 'cat\.png', input 'x': .*{words}"):
        one(array, wanted)


def test_the_result_is_a_plain_array_of_its_own() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for given in (array, array.T, np.asfortranarray(array)):
        result = one(given)
        assert result.flags.c_contiguous
        assert not np.shares_memory(result, array)
        np.testing.assert_array_equal(result, given)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inf_and_nan_are_named_with_their_place(value: float) -> None:
    array = np.ones((2, 3))
    array[1, 2] = value
    with pytest.raises(NonFiniteError, match=r"'cat\.png', input 'x': 1 of 6 .* at \(1, 2\)"):
        one(array)


def test_inf_in_a_scalar_is_found() -> None:
    with pytest.raises(NonFiniteError, match=r"at \(\)"):
        one(np.float32(np.inf))


@pytest.mark.parametrize(
    ("found", "wanted", "words"),
    [
        ((1, 4, 4), (3, 4, 4), "the model takes 3 channels, the array has 1"),
        ((4, 4, 4), (3, 4, 4), "the model takes 3 channels, the array has 4"),
        ((4, 4, 1), (4, 4, 3), "the model takes 3 channels, the array has 1"),
        ((4, 5, 3), (3, 4, 5), r"transpose\(2, 0, 1\)"),
        ((3, 4, 5), (4, 5, 3), r"transpose\(1, 2, 0\)"),
        (
            (1, 3, 4, 5),
            (3, 4, 5),
            "no batch axis: take it off; if a sample is one whole input, say --batch-axis x=none",
        ),
        ((4, 5), (3, 4, 5), "rank 3"),
        ((3, 8, 8), (3, 4, 5), "resize or cut"),
        ((3, 8, 8), (3, None, 5), r"shape \(3, 8, 8\), expected \(3, \?, 5\)"),
        ((8, 2), (), "rank 0"),
    ],
)
def test_a_wrong_shape_says_what_to_do(found: tuple[int, ...], wanted: tuple[int, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        one(np.zeros(found, np.float32), shape=wanted)


def test_a_dynamic_size_takes_any() -> None:
    assert one(np.zeros((3, 7, 9)), shape=(3, None, None)).shape == (3, 7, 9)
    assert fits((), InputSpec("x", np.dtype("f4"), ()))
    assert not fits((1,), InputSpec("x", np.dtype("f4"), ()))


INPUTS = [InputSpec("ids", np.dtype("i8"), (2,)), InputSpec("mask", np.dtype("?"), (2,))]


def test_several_inputs_come_in_the_order_of_the_model() -> None:
    feed = conform({"mask": np.array([True, False]), "ids": np.array([1, 2])}, INPUTS, "s")
    assert list(feed) == ["ids", "mask"]


def test_missing_and_unknown_inputs_are_named() -> None:
    with pytest.raises(DataError, match=r"'s' lacks 'mask': it has 'ids', the model's inputs are 'ids', 'mask'"):
        conform({"ids": np.array([1, 2])}, INPUTS, "s")
    with pytest.raises(DataError, match=r"'s' has 'types', which the model does not take"):
        conform({"ids": np.ones(2), "mask": np.ones(2), "types": np.ones(2)}, INPUTS, "s")


@pytest.mark.parametrize(
    ("values", "found", "wanted"),
    [
        ([1.5, -2, np.inf, np.nan], "float64", "float32"),
        ([1.5, -2, np.nan], "float32", "float16"),
        ([-(2**31), 2**31 - 1], "int64", "int32"),
        ([0, 255], "uint8", "float16"),
        ([0, 1], "int64", "bool"),
        ([3.0, -1.0], "float32", "int8"),
    ],
)
def test_another_dtype_holds_the_same_values(values: list[float], found: str, wanted: str) -> None:
    array = np.array(values, found)
    cast = as_dtype(array, np.dtype(wanted))
    assert cast.dtype == wanted
    np.testing.assert_array_equal(cast.astype(found), array)


@pytest.mark.parametrize(
    ("value", "found", "wanted"),
    [
        (0.1, "float64", "float32"),
        (0.1, "float32", "float16"),
        (70000.0, "float32", "float16"),
        (2**31, "int64", "int32"),
        (200, "uint8", "int8"),
        (2**24 + 1, "int32", "float32"),
        (2**63 - 1, "int64", "float32"),
        (2**53 + 1, "int64", "float64"),
        (2, "int64", "bool"),
        (0.5, "float32", "int32"),
        (np.nan, "float32", "int32"),
        (-1, "int64", "uint64"),
    ],
)
def test_another_dtype_without_one_of_the_values_is_refused(value: float, found: str, wanted: str) -> None:
    array = np.array([0, value], found)
    with pytest.raises(DataError, match=rf"^{found} value {array[1]} is none of {wanted}".replace("+", r"\+")):
        as_dtype(array, np.dtype(wanted))


def test_an_array_of_the_dtype_is_not_copied() -> None:
    array = np.zeros(3, np.float32)
    assert as_dtype(array, np.dtype(np.float32)) is array

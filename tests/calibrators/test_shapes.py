from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from calibrators.shapes import NetworkInput, Range, calibration_shapes, extremes, inference_ranges, static_batch
from trtcal.errors import DataError, ModelError
from trtcal.spec import InputSpec

STATIC = NetworkInput("x", (8, 3, 32, 32), "float32")
DYNAMIC = NetworkInput("x", (-1, 3, -1, -1), "float32")
TOKENS = NetworkInput("ids", (-1, 16), "int32")


def test_the_batch_of_the_data_is_the_one_that_is_calibrated() -> None:
    fed = {"x": (4, 3, 32, 32), "ids": (4, 16), "label": (4,)}
    assert calibration_shapes([DYNAMIC, TOKENS], fed, {}, None) == {"x": (4, 3, 32, 32), "ids": (4, 16)}


def test_the_profiles_opt_does_not_replace_the_batch_of_the_data() -> None:
    asked = {"x": Range.of((1, 3, 32, 32))}
    assert calibration_shapes([DYNAMIC], {"x": (4, 3, 32, 32)}, asked, None) == {"x": (4, 3, 32, 32)}


def test_a_static_batch_that_differs_is_an_error_that_says_how_to_mend_it() -> None:
    with pytest.raises(DataError, match=r"fixes batch size 8, the data come in batches of 4.*--rewrite-batch.*export"):
        calibration_shapes([STATIC], {"x": (4, 3, 32, 32)}, {}, None)


def test_a_batch_size_that_was_asked_for_must_be_that_of_the_data() -> None:
    with pytest.raises(DataError, match="batch size 16 was asked for, the data come in batches of 4"):
        calibration_shapes([DYNAMIC], {"x": (4, 3, 32, 32)}, {}, 16)


@pytest.mark.parametrize("shape", [(8, 1, 32, 32), (8, 3, 32), ()])
def test_data_of_another_shape_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"the batches have shape .*, the model takes \(8, 3, 32, 32\)"):
        calibration_shapes([STATIC], {"x": shape}, {}, None)


def test_data_without_an_input_are_an_error() -> None:
    with pytest.raises(DataError, match=r"takes input 'ids'; the batches hold \['x'\]"):
        calibration_shapes([DYNAMIC, TOKENS], {"x": (4, 3, 32, 32)}, {}, None)


def test_without_data_static_shapes_and_what_was_asked_for_count() -> None:
    asked = {"x": Range.of(((1, 3, 32, 32), (4, 3, 64, 64), (8, 3, 96, 96)))}
    assert calibration_shapes([STATIC], {}, {}, None) == {"x": (8, 3, 32, 32)}
    assert calibration_shapes([DYNAMIC], {}, asked, None) == {"x": (4, 3, 64, 64)}
    assert calibration_shapes([TOKENS], {}, {}, 2) == {"ids": (2, 16)}


def test_an_axis_that_stays_unknown_is_an_error_with_an_example() -> None:
    with pytest.raises(
        ModelError,
        match=r"dynamic axes \(-1, 3, -1, -1\); say its shape, .*'x': \(8, 3, …, …\).*--optShapes x:8x3x…x… on",
    ):
        calibration_shapes([DYNAMIC], {}, {}, None)


def test_a_shape_for_what_is_no_input_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"shapes are given for \['y'\]; the model's inputs are \['x'\]"):
        calibration_shapes([STATIC], {}, {"y": Range.of((1,))}, None)


def test_the_engines_profile_is_what_was_asked_for_else_batch_one_to_the_calibrated_one() -> None:
    calibrated = {"x": (4, 3, 32, 32), "ids": (4, 16)}
    asked = {"x": Range.of((2, 3, 32, 32))}
    found = inference_ranges([DYNAMIC, TOKENS], calibrated, asked, None)
    assert found == {"x": asked["x"], "ids": Range((1, 16), (4, 16), (4, 16))}


def test_static_inputs_beside_dynamic_ones_are_in_the_profile_too() -> None:
    fixed = NetworkInput("scale", (1, 2), "float32")
    found = inference_ranges([TOKENS, fixed], {"ids": (4, 16), "scale": (1, 2)}, {}, None)
    assert found["scale"] == Range.of((1, 2))


def test_an_engine_keeps_the_batch_that_was_made_dynamic_for_calibration_alone() -> None:
    found = inference_ranges([TOKENS], {"ids": (32, 16)}, {}, 8)
    assert found == {"ids": Range.of((8, 16))}


def test_the_static_batch_is_known_where_the_inputs_agree() -> None:
    assert static_batch([STATIC]) == 8
    assert static_batch([DYNAMIC]) is None
    assert static_batch([STATIC, NetworkInput("y", (1, 2), "float32")]) is None
    assert static_batch([STATIC, NetworkInput("y", (), "float32")]) == 8


def test_a_range_is_one_shape_or_three() -> None:
    assert Range.of([1, 2]) == Range((1, 2), (1, 2), (1, 2))
    assert Range.of([[1, 2], [2, 2], [3, 2]]) == Range((1, 2), (2, 2), (3, 2))
    assert Range.of(Range.of((1,))) == Range.of((1,))
    assert Range.of(()) == Range((), (), ())


def test_an_input_without_axes_has_no_batch() -> None:
    scalar = NetworkInput("s", (), "float32")
    assert calibration_shapes([scalar], {"s": ()}, {}, 4) == {"s": ()}


def spec(*shape: int | None) -> InputSpec:
    return InputSpec("x", np.dtype(np.float32), shape)


def test_extremes_of_open_axes_come_from_the_data() -> None:
    batches = [{"x": np.zeros((2, 3, width))} for width in (5, 9, 4)]
    assert extremes([spec(3, None)], batches) == {"x": ((3, 4), (3, 9))}


def test_data_are_not_read_where_no_axis_is_open() -> None:
    def batches() -> Iterator[dict[str, np.ndarray]]:
        raise AssertionError("read")
        yield {}

    assert extremes([spec(3, 8)], batches()) == {"x": ((3, 8), (3, 8))}


def test_without_data_there_are_no_extremes() -> None:
    assert extremes([spec(None)], []) == {}

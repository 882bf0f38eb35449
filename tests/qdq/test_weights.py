from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import conv_model, make_model
from onnx import helper

from trtcal.qdq.weights import (
    WEIGHT_METHODS,
    WeightScales,
    decibels,
    percentile_weight_scales,
    weight_clipping_cost,
    weight_method,
    weight_scales,
    weight_sqnr_db,
)


def f32(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


arrays = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=st.floats(-1e6, 1e6, width=32)
)
every_method = pytest.mark.parametrize("scales", WEIGHT_METHODS.values(), ids=WEIGHT_METHODS)


@given(arrays, st.integers(0, 1))
def test_the_largest_weight_of_each_channel_maps_to_127(array: np.ndarray, axis: int) -> None:
    scales = weight_scales(array, axis)
    assert scales.dtype == np.float32
    assert scales.shape == (array.shape[axis],)
    for channel, scale in zip(np.moveaxis(array, axis, 0), scales, strict=True):
        if scale != 1:
            assert scale == np.abs(channel).max() / np.float32(127)
            assert np.rint(np.abs(channel) / scale).max() == 127


def test_one_scale_serves_all_where_there_is_no_axis() -> None:
    scales = weight_scales(f32([[1, -254], [3, 4]]), None)
    assert scales.shape == ()
    assert scales == 2


@every_method
def test_zeros_and_tiny_channels_have_scale_one(scales: WeightScales) -> None:
    array = np.zeros((3, 4), np.float32)
    array[1] = 1e-40
    array[2] = 127
    found = scales(array, 0)
    np.testing.assert_array_equal(found[:2], 1)
    assert found[2] > 0


@every_method
@pytest.mark.parametrize(("shape", "axis"), [((0, 3), 0), ((3, 0), 0), ((3, 0), 1), ((0,), None)])
def test_weights_without_elements_have_scale_one(
    scales: WeightScales, shape: tuple[int, ...], axis: int | None
) -> None:
    found = scales(np.zeros(shape, np.float32), axis)
    assert found.shape == (() if axis is None else (shape[axis],))
    assert (found == 1).all()


@every_method
@given(arrays)
def test_no_method_exceeds_the_largest_weight_of_a_channel(scales: WeightScales, array: np.ndarray) -> None:
    found = scales(array, 0)
    assert found.dtype == np.float32
    assert found.shape == (len(array),)
    assert np.all(found <= weight_scales(array, 0))
    assert np.all(found > 0)


def test_a_percentile_clips_at_the_threshold_of_the_whole_tensor() -> None:
    array = np.arange(1, 1001, dtype=np.float32).reshape(10, 100) * 127
    found = percentile_weight_scales(array, 0, q=50)
    np.testing.assert_array_equal(found, [100, 200, 300, 400, 500, 500, 500, 500, 500, 500])
    np.testing.assert_array_equal(percentile_weight_scales(array, 0, q=100), weight_scales(array, 0))


@pytest.mark.parametrize("q", [0, -1, 100.1])
def test_a_percentile_outside_0_to_100_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="0 < q <= 100"):
        percentile_weight_scales(np.ones((1, 1), np.float32), 0, q)


def test_the_input_is_left_alone_even_if_it_is_read_only() -> None:
    array = f32([[0.5, -2], [0, 0]])
    array.flags.writeable = False
    for scales in WEIGHT_METHODS.values():
        scales(array, 1)
    np.testing.assert_array_equal(array, [[0.5, -2], [0, 0]])


def test_weights_on_the_grid_have_no_noise_and_others_what_arithmetic_says() -> None:
    exact = f32([[127, -128], [254, 2]])
    assert weight_sqnr_db(exact, f32([1, 2]), 0) == math.inf
    # 0.5 and 1.5 are ties and go to the even 0 and 2; 200 is clipped to 127.
    array = f32([0.5, 1.5, 200])
    noise = 0.5**2 + 0.5**2 + 73**2
    assert weight_sqnr_db(array, f32(1), None) == pytest.approx(10 * math.log10((0.25 + 2.25 + 40000) / noise))


def test_decibels_at_the_ends() -> None:
    assert decibels(1, 0) == math.inf
    assert decibels(0, 0) == math.inf
    assert decibels(0, 1) == -math.inf
    assert decibels(100, 1) == 20


def test_the_table_has_every_weight_in_order_with_every_method() -> None:
    rows = weight_clipping_cost(conv_model())
    assert [(row.tensor, row.layer, row.shape) for row in rows] == [
        ("w", "conv", (4, 3, 3, 3)),
        ("gw", "logits", (5, 64)),
    ]
    assert all(list(row.sqnr_db) == list(WEIGHT_METHODS) for row in rows)


def test_the_table_shows_what_clipping_costs_weights_with_long_tails() -> None:
    weights = np.random.default_rng(0).laplace(size=(64, 64)).astype(np.float32)
    model = make_model([helper.make_node("Gemm", ["x", "w"], ["y"])], {"x": [1, 64]}, ["y"], {"w": weights})
    (row,) = weight_clipping_cost(model)
    assert row.sqnr_db["percentile:99.999"] == row.sqnr_db["max"], "4096 weights have no 99.999th percentile"
    assert row.sqnr_db["percentile:99.9"] < row.sqnr_db["max"] - 1
    assert row.sqnr_db["entropy"] < row.sqnr_db["max"]


def test_the_table_has_a_shared_weight_once_per_axis_and_leaves_out_what_is_no_float32() -> None:
    node = helper.make_node
    shared = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    model = make_model(
        [
            node("Identity", ["w"], ["w2"]),
            node("MatMul", ["x", "w2"], ["a"]),
            node("Gemm", ["a", "w"], ["b"]),
            node("Gemm", ["b", "w"], ["c"], transB=1),
            node("MatMul", ["c", "nan"], ["d"]),
            node("Cast", ["d"], ["e"], to=10),
            node("MatMul", ["e", "half"], ["y"]),
        ],
        {"x": [1, 4]},
        ["y"],
        {"w": shared, "nan": shared * np.float32(np.nan), "half": shared.astype(np.float16)},
    )
    assert [(row.tensor, row.layer) for row in weight_clipping_cost(model)] == [("w", "a"), ("w", "c")]


def test_a_method_goes_by_its_name() -> None:
    for name, method in WEIGHT_METHODS.items():
        assert weight_method(name) is method
    array = f32([[1, 2, 3, 100]])
    np.testing.assert_array_equal(
        weight_method("percentile:75")(array, None), percentile_weight_scales(array, None, q=75)
    )


@pytest.mark.parametrize("name", ["kl", "percentile", "percentile:", "percentile:x", "max:1", "percentile:nan"])
def test_an_unknown_method_for_weights_is_an_error_that_lists_them(name: str) -> None:
    with pytest.raises(ValueError, match="choose max, entropy or percentile:Q"):
        weight_method(name)


@pytest.mark.parametrize("q", ["0", "-1", "101", "inf"])
def test_a_percentile_out_of_range_is_an_error(q: str) -> None:
    with pytest.raises(ValueError, match="0 < q <= 100"):
        weight_method(f"percentile:{q}")

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from models import make_model
from onnx import helper

from trtcal.model.runner import OrtRunner
from trtcal.model.topology import Graph
from trtcal.refine.layers import Weights, refinable

node = helper.make_node
RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


# Layer, its attributes, shape of the data, shape of the weights, axis of the output's channels.
LAYERS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    "convolution": ("Conv", {}, (1, 3, 7, 6), (4, 3, 3, 3)),
    "strides, pads and dilations": (
        "Conv",
        {"strides": [2, 1], "pads": [1, 2, 0, 1], "dilations": [1, 2]},
        (1, 4, 9, 8),
        (6, 4, 3, 2),
    ),
    "groups": ("Conv", {"group": 2, "pads": [1, 1, 1, 1]}, (1, 4, 5, 5), (6, 2, 3, 3)),
    "depthwise": ("Conv", {"group": 4, "strides": [2, 2]}, (1, 4, 9, 9), (4, 1, 3, 3)),
    "one axis": ("Conv", {"pads": [1, 1]}, (1, 3, 9), (5, 3, 3)),
    "three axes": ("Conv", {}, (1, 2, 4, 5, 3), (3, 2, 2, 2, 2)),
    "same upper": ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (1, 2, 7, 8), (3, 2, 4, 3)),
    "same lower": ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 3]}, (1, 2, 7, 8), (3, 2, 4, 2)),
    "valid": ("Conv", {"auto_pad": "VALID"}, (1, 2, 7, 8), (3, 2, 3, 3)),
    "transposed": ("ConvTranspose", {"strides": [2, 2], "pads": [1, 0, 1, 0]}, (1, 3, 4, 5), (3, 2, 3, 3)),
    "transposed, more": (
        "ConvTranspose",
        {"strides": [3, 2], "dilations": [1, 2], "output_padding": [1, 0], "pads": [2, 1, 0, 3]},
        (1, 3, 4, 5),
        (3, 4, 3, 2),
    ),
    "gemm": ("Gemm", {}, (1, 6), (6, 4)),
    "gemm, transposed weights": ("Gemm", {"transB": 1}, (1, 6), (4, 6)),
    "matmul": ("MatMul", {}, (1, 5, 6), (6, 4)),
}


def found(op_type: str, attributes: dict[str, Any], x: tuple[int, ...], w: np.ndarray) -> tuple[Any, Weights]:
    model = make_model([node(op_type, ["x", "w"], ["y"], **attributes)], {"x": list(x)}, ["y"], {"w": w})
    weights, left = refinable(Graph(model), transposed=True)
    assert not left
    return model, weights[0]


@pytest.mark.parametrize("layer", LAYERS)
def test_columns_times_rows_are_what_the_layer_computes(layer: str) -> None:
    op_type, attributes, shape, kernel = LAYERS[layer]
    x, w = f32(*shape), f32(*kernel)
    model, weights = found(op_type, attributes, shape, w)
    y = OrtRunner(model)({"x": x})["y"]
    columns = weights.readers[0].columns(x, 10**9, RNG)
    products = np.einsum("gpk,gok->gop", columns, weights.to_rows(w))
    expected = y.reshape(-1, y.shape[-1]).T if op_type in ("Gemm", "MatMul") else y.reshape(y.shape[1], -1)
    np.testing.assert_allclose(products.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)
    assert columns.shape[-1] == weights.k


@pytest.mark.parametrize("layer", LAYERS)
def test_rows_go_back_to_the_weights_they_came_from(layer: str) -> None:
    op_type, attributes, shape, kernel = LAYERS[layer]
    w = f32(*kernel)
    _, weights = found(op_type, attributes, shape, w)
    assert np.array_equal(weights.from_rows(weights.to_rows(w)), w)


def test_so_many_positions_at_most_are_taken_and_the_same_again() -> None:
    op_type, attributes, shape, kernel = LAYERS["convolution"]
    _, weights = found(op_type, attributes, shape, f32(*kernel))
    x = f32(*shape)
    reader = weights.readers[0]
    some = reader.columns(x, 7, np.random.default_rng(1))
    assert some.shape == (1, 7, 27)
    assert np.array_equal(some, reader.columns(x, 7, np.random.default_rng(1)))
    every = reader.columns(x, 10**9, RNG)[0]
    assert all((every == row).all(axis=1).any() for row in some[0])


def test_layers_that_share_weights_are_refined_together_and_others_are_named_with_the_reason() -> None:
    model = make_model(
        [
            node("Conv", ["x", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
            node("Conv", ["a", "w"], ["b"], "second", pads=[2, 2, 2, 2], dilations=[2, 2]),
            node("ConvTranspose", ["b", "t"], ["c"], "up"),
            node("Conv", ["c", "z"], ["d"], "zeros"),
            node("Conv", ["c", "e"], ["f"], "read elsewhere"),
            node("Reshape", ["e", "flat"], ["g"], "reshape"),
            node("Mul", ["e2", "e2"], ["made"], "mul"),
            node("Conv", ["c", "made"], ["h"], "computed"),
        ],
        {"x": [1, 2, 6, 6]},
        ["d", "f", "g", "h"],
        {
            "w": f32(2, 2, 3, 3),
            "t": f32(2, 2, 2, 2),
            "z": np.zeros((2, 2, 1, 1), np.float32),
            "e": f32(2, 2, 1, 1),
            "e2": f32(2, 2, 1, 1),
            "flat": np.array([-1]),
        },
    )
    weights, left = refinable(Graph(model))
    assert [(each.name, [reader.name for reader in each.readers]) for each in weights] == [("w", ["first", "second"])]
    assert left == {
        "up": "TensorRT quantizes the kernels of ConvTranspose per input channel where a cache decides",
        "zeros": "its weights are zeros",
        "read elsewhere": "Reshape 'reshape' reads its weights as well",
        "computed": "its weights are computed, or it multiplies two activations",
    }

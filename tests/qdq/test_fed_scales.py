from __future__ import annotations

import numpy as np
import pytest
from models import make_model
from onnx import helper
from qdq_models import ranges, run, small_network

from trtcal.qdq.fed_scales import FedScales, layers, rounded
from trtcal.qdq.weights import weight_scales


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_rounded_weights_are_what_onnx_runtime_makes_of_a_pair(axis: int | None) -> None:
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(6, 5, 3)) * 10.0 ** rng.integers(-30, 30, size=(6, 5, 1))).astype(np.float32)
    weights[0, 0], weights[1, 1] = 0, -1e-45
    weights[2] = np.round(weights[2] / np.abs(weights[2]).max() * 127 * 2) / 2  # ties
    if axis is not None:
        weights[:, 2] = 0
    scales = weight_scales(weights, axis)
    attributes = {} if axis is None else {"axis": axis}
    pair = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    constants = {"s": scales, "z": np.zeros(scales.shape, np.int8)}
    expected = run(make_model(pair, {"w": list(weights.shape)}, ["y"], constants), w=weights)["y"]
    assert rounded(weights, axis).tobytes() == expected.tobytes()


def test_scales_are_inputs_and_weights_are_held_once() -> None:
    fed = FedScales(small_network())
    plan = fed.plan(ranges(small_network()))
    made = fed.model(plan)
    inputs = {value.name for value in made.model.graph.input}
    assert set(made.inputs) == set(plan.scales)
    assert set(made.inputs.values()) < inputs
    held = {tensor.name for tensor in made.model.graph.initializer}
    assert held.isdisjoint({"w1", "w5", "gw"})
    weights = {"w1_dequantized", "w2_dequantized", "w5_dequantized", "gw_dequantized"}
    assert weights <= held & inputs  # of a constant, a runtime would make something else


def test_plans_of_equal_layers_differ_in_their_numbers_alone() -> None:
    fed, given = FedScales(small_network()), ranges(small_network())
    one, two = fed.plan(given), fed.plan({name: scale * 2 for name, scale in given.items()})
    assert layers(one) == layers(two)
    assert one.scales != two.scales
    del given["r1"]
    assert layers(fed.plan(given)) != layers(one)

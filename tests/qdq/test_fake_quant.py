from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from models import make_model
from qdq_models import STEP, WEIGHTS, f32, node, run
from qdq_models import STEPS as CHANNELS

from trtcal.errors import ModelError
from trtcal.model.topology import Graph
from trtcal.qdq.extract import extract_scales, strip_qdq
from trtcal.qdq.fake_quant import fake_quants

Made = tuple[list[onnx.NodeProto], dict[str, np.ndarray]]
"""Nodes that make ``<name>_fq`` of ``<name>``, and their constants."""

STEPS = CHANNELS.reshape(4, 1, 1, 1)


def levels(x: np.ndarray, scale: np.ndarray, low: int = -128, high: int = 127) -> np.ndarray:
    return (np.clip(np.rint(x / scale), low, high) * scale).astype(np.float32)


def chain(name: str, *steps: tuple[Any, ...]) -> Made:
    """Steps as (op, constant, constant, ...), one after the other; ("left", op, constant) has the constant first."""
    nodes, constants = [], {}
    data = name
    for number, (op, *values) in enumerate(steps):
        left = op == "left"
        if left:
            op, *values = values
        output = f"{name}_fq" if number == len(steps) - 1 else f"{name}_{number}"
        names = [f"{name}_{number}_{position}" for position in range(len(values))]
        constants |= dict(zip(names, (np.asarray(value, np.float32) for value in values), strict=True))
        nodes.append(node(op, [*names, data] if left else [data, *names], [output]))
        data = output
    return nodes, constants


Spelling = Callable[[str, np.ndarray], Made]

SPELLINGS: dict[str, Spelling] = {
    "div": lambda x, s: chain(x, ("Div", s), ("Round",), ("Clip", -128, 127), ("Mul", s)),
    "times the inverse": lambda x, s: chain(x, ("Mul", 1 / s), ("Round",), ("Clip", -128, 127), ("Mul", s)),
    "constants first": lambda x, s: chain(
        x, ("left", "Mul", 1 / s), ("Round",), ("Clip", -128, 127), ("left", "Mul", s)
    ),
    "by the inverse": lambda x, s: chain(x, ("Div", s), ("Round",), ("Clip", -128, 127), ("Div", 1 / s)),
    "inverses only": lambda x, s: chain(x, ("Mul", 1 / s), ("Round",), ("Clip", -128, 127), ("Div", 1 / s)),
    "clip first": lambda x, s: chain(x, ("Div", s), ("Clip", -128, 127), ("Round",), ("Mul", s)),
    "min and max": lambda x, s: chain(x, ("Div", s), ("Round",), ("Min", 127), ("left", "Max", -128), ("Mul", s)),
    "min before": lambda x, s: chain(x, ("Div", s), ("left", "Min", 127), ("Round",), ("Max", -128), ("Mul", s)),
    "zero point of 128": lambda x, s: chain(
        x, ("Div", s), ("Round",), ("Add", 128), ("Clip", 0, 255), ("Sub", 128), ("Mul", s)
    ),
    "zero point before": lambda x, s: chain(
        x, ("Div", s), ("left", "Add", 128), ("Round",), ("Clip", 0, 255), ("Add", -128), ("Mul", s)
    ),
    "clipped twice": lambda x, s: chain(
        x, ("Div", s), ("Clip", -500, 500), ("Round",), ("Clip", -128, 127), ("Mul", s)
    ),
}


def spelt(spelling: Spelling, weights: Spelling | None = None) -> onnx.ModelProto:
    """x -> fake quantization -> Conv, its weights fake-quantized per channel -> y."""
    nodes, constants = spelling("x", STEP)
    more, others = (weights or spelling)("w", STEPS)
    conv = node("Conv", ["x_fq", "w_fq"], ["y"])
    return make_model([*nodes, *more, conv], {"x": [1, 3, 2, 4]}, ["y"], {"w": WEIGHTS} | constants | others)


def conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.einsum("nchw,mc->nmhw", x, w[:, :, 0, 0]).astype(np.float32)


def check_taken_apart(model: onnx.ModelProto, low: int = -128) -> None:
    """The model rounds as it should; its scale comes out; what is left computes with the floats, exactly."""
    x = f32(np.arange(24).reshape(1, 3, 2, 4) * 1.5 - 20)
    expected = conv(levels(x, STEP, low), levels(WEIGHTS, STEPS, low))
    np.testing.assert_array_equal(run(model, x=x)["y"], expected)
    assert extract_scales(model) == {"x": STEP}
    stripped = strip_qdq(model)
    assert [list(n.input) for n in stripped.graph.node] == [["x", "w"]]
    assert [tensor.name for tensor in stripped.graph.initializer] == ["w"]
    np.testing.assert_array_equal(run(stripped, x=x)["y"], conv(x, WEIGHTS))


def test_the_nodes_that_do_it_are_named() -> None:
    model = spelt(SPELLINGS["div"])
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = list(fake_quants(Graph(model), values.__getitem__))
    assert [(each.source, each.output, each.low, each.high) for each in found] == [
        ("x", "x_fq", -128, 127),
        ("w", "w_fq", -128, 127),
    ]
    assert [[model.graph.node[index].op_type for index in each.nodes] for each in found] == [
        ["Div", "Round", "Clip", "Mul"]
    ] * 2


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_is_taken_for_what_it_is(spelling: str) -> None:
    check_taken_apart(spelt(SPELLINGS[spelling]))


def test_constants_that_are_nodes_are_constants_and_the_range_may_be_symmetric() -> None:
    def with_nodes(x: str, s: np.ndarray) -> Made:
        nodes, constants = chain(x, ("Div", s), ("Round",), ("Clip", -127, 127), ("Mul", s))
        held = [node("Constant", [], [name], value=onnx.numpy_helper.from_array(v)) for name, v in constants.items()]
        return [*held, *nodes], {}

    check_taken_apart(spelt(with_nodes), -127)


def test_a_scale_that_is_computed_from_constants_is_a_constant() -> None:
    def logarithm(x: str, s: np.ndarray) -> Made:
        nodes, constants = chain(x, ("Div", s), ("Round",), ("Clip", -128, 127), ("Mul", s))
        for name, value in list(constants.items()):
            if value.shape == s.shape and (value == s).all():
                constants[f"{name} log"] = np.log2(constants.pop(name))
                nodes[:0] = [node("Pow", ["two", f"{name} log"], [name])]
        return nodes, constants | {"two": f32(2)}

    check_taken_apart(spelt(logarithm))


def test_scales_of_one_ulp_apart_are_the_same() -> None:
    s = f32(0.03)
    inverse = np.float32(1) / s[()]
    assert np.float32(1) / inverse != s, "the inverse of the inverse is another number"
    nodes, constants = chain("x", ("Mul", inverse), ("Round",), ("Clip", -128, 127), ("Mul", s))
    model = make_model([*nodes, node("Relu", ["x_fq"], ["y"])], {"x": [4]}, ["y"], constants)
    assert extract_scales(model) == {"x": s}


def straight_through(x: str, s: np.ndarray) -> Made:
    """(y.round() - y).detach() + y, as quantizers that are trained have it, and its exporters write it."""
    nodes, constants = chain(x, ("Div", s), ("Clip", -128, 127))
    nodes[-1].output[0] = y = f"{x}_y"
    nodes += [
        node("Round", [y], [f"{x}_r"]),
        node("Sub", [f"{x}_r", y], [f"{x}_d"]),
        node("Add", [f"{x}_d", y] if x == "x" else [y, f"{x}_d"], [f"{x}_t"]),
        node("Mul", [f"{x}_t", f"{x} scale"], [f"{x}_fq"]),
    ]
    return nodes, constants | {f"{x} scale": np.asarray(s)}


def outer_straight_through(x: str, s: np.ndarray) -> Made:
    nodes, constants = chain(x, ("Div", s), ("Round",), ("Clip", -128, 127), ("Mul", s))
    nodes[-1].output[0] = f"{x}_mul"
    nodes += [node("Sub", [f"{x}_mul", x], [f"{x}_d"]), node("Add", [x, f"{x}_d"], [f"{x}_fq"])]
    return nodes, constants


@pytest.mark.parametrize("spelling", [straight_through, outer_straight_through])
def test_straight_through_estimators_are_seen_through(spelling: Spelling) -> None:
    check_taken_apart(spelt(spelling))


@pytest.mark.parametrize("seen", ["x_y", "x_r", "x_d", "x_t"])
def test_what_others_see_of_a_straight_through_estimator_stays(seen: str) -> None:
    nodes, constants = straight_through("x", f32(0.5))
    model = make_model([*nodes, node("Neg", [seen], ["n"])], {"x": [2]}, ["x_fq", "n"], constants)
    assert strip_qdq(model) == model


def test_casts_to_integers_and_back_are_part_of_it() -> None:
    def cast(x: str, s: np.ndarray) -> Made:
        nodes, constants = chain(x, ("Div", s), ("Round",), ("Clip", -128, 127), ("Cast",), ("Cast",), ("Mul", s))
        for each, to in zip([n for n in nodes if n.op_type == "Cast"], (3, 1), strict=True):
            each.attribute.append(onnx.helper.make_attribute("to", to))
        return nodes, constants

    check_taken_apart(spelt(cast))


def test_a_half_that_is_added_before_floor_rounds() -> None:
    """But for ties: those go up, and to even with Round."""
    nodes, constants = chain("x", ("Div", STEP), ("Add", 0.5), ("Floor",), ("Clip", -128, 127), ("Mul", STEP))
    model = make_model([*nodes, node("Neg", ["x_fq"], ["y"])], {"x": [6]}, ["y"], constants)
    x = f32([-70, 70, 0.3, 0.8, 1.26, -1.26])
    np.testing.assert_array_equal(run(model, x=x)["y"], -levels(x, STEP))
    assert extract_scales(model) == {"x": STEP}
    assert [list(n.input) for n in strip_qdq(model).graph.node] == [["x"]]


NO_FAKE_QUANT: dict[str, Made] = {
    "other scale": chain("x", ("Div", 0.5), ("Round",), ("Clip", -128, 127), ("Mul", 0.25)),
    "no clip": chain("x", ("Div", 0.5), ("Round",), ("Mul", 0.5)),
    "one bound": chain("x", ("Div", 0.5), ("Round",), ("Max", -128), ("Mul", 0.5)),
    "odd bounds": chain("x", ("Div", 0.5), ("Round",), ("Clip", -100, 90), ("Mul", 0.5)),
    "broken bounds": chain("x", ("Div", 0.5), ("Round",), ("Clip", -127.5, 127.5), ("Mul", 0.5)),
    "one way only": chain("x", ("Div", 0.5), ("Round",), ("Add", 128), ("Clip", 0, 255), ("Mul", 0.5)),
    "half a step": chain("x", ("Div", 0.5), ("Add", 0.5), ("Round",), ("Clip", -128, 127), ("Mul", 0.5)),
    "the wrong way round": chain("x", ("Div", 0.5), ("Round",), ("Clip", -128, 127), ("left", "Div", 2)),
    "another op between": chain("x", ("Div", 0.5), ("Round",), ("Abs",), ("Clip", -128, 127), ("Mul", 0.5)),
    "floor": chain("x", ("Div", 0.5), ("Floor",), ("Clip", -128, 127), ("Mul", 0.5)),
    "floor of a third more": chain("x", ("Div", 0.5), ("Add", 1 / 3), ("Floor",), ("Clip", -128, 127), ("Mul", 0.5)),
    "nothing before": chain("x", ("Round",), ("Clip", -128, 127), ("Mul", 0.5)),
    "nothing after": chain("x", ("Div", 0.5), ("Round",), ("Clip", -128, 127)),
    "bounds per element": chain("x", ("Div", 0.5), ("Round",), ("Max", [-128, 0]), ("Min", 127), ("Mul", 0.5)),
}


@pytest.mark.parametrize("case", NO_FAKE_QUANT)
def test_what_is_no_fake_quantization_stays_and_computes_the_same(case: str) -> None:
    nodes, constants = NO_FAKE_QUANT[case]
    model = make_model([*nodes, node("Neg", ["x_fq"], ["y"])], {"x": [6, 2]}, ["y"], constants)
    x = f32([[-70, 70], [0.3, 0.8], [1.25, -1.25], [60, -60], [0, 1], [-45, 45]])
    assert strip_qdq(model) == model
    assert np.unique(run(model, x=x)["y"]).size > 1
    with pytest.raises(ModelError, match="no QuantizeLinear on an activation"):
        extract_scales(model)


@pytest.mark.parametrize("seen", ["x_0", "x_1", "x_2"])
def test_steps_that_others_see_stay(seen: str) -> None:
    nodes, constants = chain("x", ("Div", 0.5), ("Round",), ("Clip", -128, 127), ("Mul", 0.5))
    model = make_model(nodes, {"x": [2]}, ["x_fq", seen], constants)
    assert strip_qdq(model) == model
    reader = make_model([*nodes, node("Neg", [seen], ["n"])], {"x": [2]}, ["x_fq", "n"], constants)
    assert strip_qdq(reader) == reader


def test_a_scale_that_depends_on_the_input_stays() -> None:
    nodes = [
        node("ReduceMax", ["x"], ["s"], keepdims=0),
        node("Div", ["x", "s"], ["d"]),
        node("Round", ["d"], ["r"]),
        node("Clip", ["r", "low", "high"], ["c"]),
        node("Mul", ["c", "s"], ["y"]),
    ]
    model = make_model(nodes, {"x": [2]}, ["y"], {"low": f32(-128), "high": f32(127)})
    assert strip_qdq(model) == model


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(-8, 7, "from -8 to 7"), (0, 255, "from 0 to 255"), (-7, 7, "from -7 to 7")]
)
def test_other_bits_of_activations_are_refused_and_of_weights_are_not(low: int, high: int, shown: str) -> None:
    def narrow(x: str, s: np.ndarray) -> Made:
        return chain(x, ("Div", s), ("Round",), ("Clip", low, high), ("Mul", s))

    with pytest.raises(ModelError, match=f"Mul 'x_fq': 'x' is quantized to numbers {shown} with 1 scale"):
        extract_scales(spelt(narrow))
    model = spelt(SPELLINGS["div"], weights=narrow)
    assert extract_scales(model) == {"x": STEP}
    assert [list(n.input) for n in strip_qdq(model).graph.node] == [["x", "w"]]


def test_scales_per_channel_of_an_activation_are_refused() -> None:
    nodes, constants = SPELLINGS["div"]("x", STEPS.reshape(4))
    model = make_model(nodes, {"x": [2, 4]}, ["x_fq"], constants)
    with pytest.raises(ModelError, match=r"'x' is quantized to int8 with 4 scale\(s\)"):
        extract_scales(model)


@pytest.mark.parametrize("scale", [-0.5, 0.0, np.inf])
def test_scales_that_are_not_positive_and_finite_are_refused(scale: float) -> None:
    nodes, constants = SPELLINGS["div"]("x", f32(scale))
    model = make_model(nodes, {"x": [2, 4]}, ["x_fq"], constants)
    with pytest.raises(ModelError, match=f"Mul 'x_fq': 'x' is quantized with the scale {scale}; expected a positive"):
        extract_scales(model)


def test_an_output_that_was_rounded_is_still_there() -> None:
    nodes, constants = SPELLINGS["div"]("c", STEP)
    model = make_model([node("Neg", ["x"], ["c"]), *nodes], {"x": [2]}, ["c_fq"], constants)
    assert extract_scales(model) == {"c": STEP}
    np.testing.assert_array_equal(run(strip_qdq(model), x=f32([0.01, 99]))["c_fq"], f32([-0.01, -99]))

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import conv_model, images, make_model
from onnx import helper, numpy_helper
from qdq_models import body_model, f32, i8, node, ranges, run, small_network, typed

from trtcal.errors import ModelError
from trtcal.qdq.extract import extract_scales, strip_qdq
from trtcal.qdq.insert import insert_qdq
from trtcal.qdq.placement import PLACEMENTS

ORT = tuple(map(int, ort.__version__.split(".")[:2]))


def test_bodies_that_read_what_is_stripped_read_the_float_tensor() -> None:
    model = insert_qdq(body_model(), {name: np.float32(0.5) for name in "xcd"}).model
    for attribute in next(n for n in model.graph.node if n.op_type == "If").attribute:
        attribute.g.node[0].input[0] = "c_dequantized"
    assert strip_qdq(model).graph == body_model().graph


@pytest.mark.parametrize("domain", ["", "ai.onnx", "my.ops"])
def test_only_onnx_s_own_ops_move_quantized_values(domain: str) -> None:
    model = make_model(
        [
            node("QuantizeLinear", ["x", "s", "zero"], ["q"]),
            node("Transpose", ["q"], ["moved"], domain=domain),
            node("DequantizeLinear", ["moved", "s", "zero"], ["y"]),
        ],
        {"x": [1, 2]},
        ["y"],
        {"s": np.float32(0.5), "zero": np.int8(0)},
    )
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    if domain != "my.ops":
        assert extract_scales(model) == {"x": 0.5}
    else:
        with pytest.raises(ModelError, match="Transpose 'moved': computes with quantized values"):
            extract_scales(model)


def test_a_scale_that_a_node_holds_is_a_constant() -> None:
    model = make_model(
        [
            node("Constant", [], ["s"], value_float=0.5),
            node("QuantizeLinear", ["x", "s", "zero"], ["q"]),
            node("DequantizeLinear", ["q", "s", "zero"], ["d"]),
            node("Relu", ["d"], ["y"]),
        ],
        {"x": [1]},
        ["y"],
        {"zero": np.int8(0)},
    )
    assert extract_scales(model) == {"x": 0.5}
    assert [n.op_type for n in strip_qdq(model).graph.node] == ["Relu"]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_ranges_come_out_as_they_went_in(placement: str) -> None:
    model = small_network()
    scales = ranges(model)
    result = insert_qdq(model, scales, placement=placement)
    extracted = extract_scales(result.model)
    assert list(extracted.items()) == list(result.quantized.items())
    shared = {"s", "c4", "cat"}  # the Concat's
    assert {name: scales[name] for name in extracted.keys() - shared} == {
        name: scale for name, scale in extracted.items() if name not in shared
    }
    assert {extracted[name] for name in shared} == {scales["cat"]}
    again = insert_qdq(strip_qdq(result.model), extracted, placement=placement)
    assert extract_scales(again.model) == extracted


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("opset", [11, 13])
def test_stripping_gives_the_float_model_back(opset: int, placement: str) -> None:
    model = small_network(opset)
    stripped = strip_qdq(insert_qdq(model, ranges(model), placement=placement).model)
    onnx.checker.check_model(stripped, full_check=True)
    assert stripped.graph.initializer == insert_qdq(model, {}).model.graph.initializer
    x = images(2, size=6)
    for name, value in run(model, x=x).items():
        np.testing.assert_array_equal(run(stripped, x=x)[name], value)


def foreign_model(**changes: Any) -> onnx.ModelProto:
    """As other tools write it: int8 weights, int32 bias, pooling on int8 values, a pair at the output."""
    parts: dict[str, Any] = {
        "zero": i8(0),
        "ws": f32([0.5, 0.25]),
        "pool": "MaxPool",
        "attributes": {"kernel_shape": [1, 1]},
        "axis": 0,
    } | changes
    axis = {} if parts["axis"] is None else {"axis": parts["axis"]}
    return make_model(
        [
            node("QuantizeLinear", ["x", "xs", "zero"], ["xq"]),
            node(parts["pool"], ["xq"], ["mq"], **parts["attributes"]),
            node("DequantizeLinear", ["mq", "xs", "zero"], ["m"]),
            node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], **axis),
            node("DequantizeLinear", ["bq", "bs"], ["b"], axis=0),
            node("Conv", ["m", "w", "b"], ["c"]),
            node("QuantizeLinear", ["c", "cs", "zero"], ["cq"]),
            node("DequantizeLinear", ["cq", "cs", "zero"], ["y"]),
        ],
        {"x": [1, 2, 1, 1]},
        ["y"],
        {
            "xs": f32(0.5),
            "cs": f32(2),
            "zero": parts["zero"],
            "wq": i8([[1, -2], [3, 127]]).reshape(2, 2, 1, 1),
            "ws": parts["ws"],
            "wz": np.zeros(2, np.int8),
            "bq": np.array([100, -300], np.int32),
            "bs": f32([0.25, 0.125]),
        },
    )


def test_another_tool_s_model_is_taken_apart() -> None:
    model = foreign_model()
    assert extract_scales(model) == {"x": np.float32(0.5), "c": np.float32(2)}
    stripped = strip_qdq(typed(model))
    onnx.checker.check_model(stripped, full_check=True)
    assert "mq" not in [value.name for value in stripped.graph.value_info], "which said that it is int8"
    assert [n.op_type for n in stripped.graph.node] == ["MaxPool", "Conv", "Identity"]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in stripped.graph.initializer}
    assert values.keys() == {"w", "b"}
    np.testing.assert_array_equal(values["w"].reshape(2, 2), f32([[0.5, -1], [0.75, 31.75]]))
    np.testing.assert_array_equal(values["b"], f32([25, -37.5]))
    x = f32([1, 2]).reshape(1, 2, 1, 1)
    np.testing.assert_array_equal(run(stripped, x=x)["y"].ravel(), f32([0.5 - 2 + 25, 0.75 + 63.5 - 37.5]))


@pytest.mark.parametrize(("axis", "along"), [(0, (2, 1)), (-4, (2, 1)), (1, (1, 2)), (None, (1, 2))])
def test_int8_weights_are_dequantized_along_their_axis(axis: int | None, along: tuple[int, int]) -> None:
    model = foreign_model(axis=axis)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in strip_qdq(model).graph.initializer}
    expected = f32([[1, -2], [3, 127]]) * f32([0.5, 0.25]).reshape(along)
    np.testing.assert_array_equal(values["w"].reshape(2, 2), expected)
    x = f32([1, 2]).reshape(1, 2, 1, 1)
    np.testing.assert_array_equal(run(model, x=x)["y"], np.rint(run(strip_qdq(model), x=x)["y"] / 2) * 2)


def test_a_tensor_that_is_quantized_twice_gives_its_larger_scale_under_its_float_name() -> None:
    model = make_model(
        [
            node("QuantizeLinear", ["x", "s1", "zero"], ["q1"]),
            node("DequantizeLinear", ["q1", "s1", "zero"], ["d1"]),
            node("QuantizeLinear", ["d1", "s2", "zero"], ["q2"]),
            node("DequantizeLinear", ["q2", "s2", "zero"], ["d2"]),
            node("Add", ["d1", "d2"], ["y"]),
        ],
        {"x": [1]},
        ["y"],
        {"s1": f32(3), "s2": f32(1), "zero": i8(0)},
    )
    assert extract_scales(model) == {"x": np.float32(3)}
    assert [list(n.input) for n in strip_qdq(model).graph.node] == [["x", "x"]]


def test_a_model_without_pairs_has_no_ranges_and_nothing_to_strip() -> None:
    model = conv_model()
    with pytest.raises(ModelError, match="no QuantizeLinear on an activation"):
        extract_scales(model)
    assert strip_qdq(model) == model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero": np.uint8(128)}, "quantized to uint8 with 1 .*zero point 128"),
        ({"zero": np.int8(3)}, "quantized to int8 with 1 .*zero point 3"),
    ],
)
def test_ranges_that_a_cache_cannot_hold_are_refused(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"'x' is {message}.*zero point 0"):
        extract_scales(foreign_model(**changes))


def test_a_scale_per_channel_of_an_activation_is_refused() -> None:
    model = make_model(
        [node("QuantizeLinear", ["x", "s", "zero"], ["y"], axis=1)],
        {"x": [1, 2]},
        ["y"],
        {"s": f32([1, 2]), "zero": np.zeros(2, np.int8)},
    )
    with pytest.raises(ModelError, match=r"int8 with 2 scale\(s\)"):
        extract_scales(model)


@pytest.mark.parametrize("take_apart", [extract_scales, strip_qdq])
def test_computing_with_quantized_values_is_refused(take_apart: Callable[[onnx.ModelProto], object]) -> None:
    with pytest.raises(ModelError, match="Sign 'mq': computes with quantized values"):
        take_apart(foreign_model(pool="Sign", attributes={}))
    integer = make_model([node("ConvInteger", ["x", "w"], ["y"])], {"x": [1, 1, 1, 1]}, ["y"], {"w": i8([[[[1]]]])})
    with pytest.raises(ModelError, match="ConvInteger 'y': computes with quantized values"):
        take_apart(integer)
    unmade = make_model([node("DequantizeLinear", ["x", "s"], ["y"])], {"x": [1]}, ["y"], {"s": f32(1)})
    with pytest.raises(ModelError, match="dequantizes 'x', which no QuantizeLinear made"):
        take_apart(unmade)


def test_a_computed_scale_is_refused() -> None:
    model = make_model(
        [node("QuantizeLinear", ["x", "s", "zero"], ["q"]), node("DequantizeLinear", ["q", "s", "zero"], ["y"])],
        {"x": [1], "s": []},
        ["y"],
        {"zero": i8(0)},
    )
    with pytest.raises(ModelError, match="'s' is computed, not constant"):
        extract_scales(model)


@pytest.mark.skipif(ORT < (1, 20), reason="ONNX Runtime dequantizes blocks from 1.20 on")
def test_weights_with_scales_per_block_are_dequantized() -> None:
    model = make_model(
        [node("DequantizeLinear", ["w", "s"], ["wf"], axis=1, block_size=2), node("MatMul", ["x", "wf"], ["y"])],
        {"x": [1, 2]},
        ["y"],
        {"w": i8([[1, 2, 3, 4], [5, 6, 7, 8]]), "s": f32([[1, 2], [4, 8]])},
        opset=21,
    )
    (weights,) = strip_qdq(model).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(weights), f32([[1, 2, 6, 8], [20, 24, 56, 64]]))

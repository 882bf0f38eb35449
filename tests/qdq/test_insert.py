from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import conv_model, images, make_model
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper
from qdq_models import body_model, f32, node, ranges, run, small_network, typed

from trtcal.errors import ModelError
from trtcal.model.calibrated import calibration_graph
from trtcal.model.runner import OrtRunner
from trtcal.qdq.extract import strip_qdq
from trtcal.qdq.insert import CONSTANT, QdqResult, check_exclude, insert_qdq
from trtcal.qdq.placement import PLACEMENTS

STEP = np.float32(0.125)  # a power of two, so that float32 arithmetic on multiples of it is exact


def checked(result: QdqResult) -> onnx.ModelProto:
    onnx.checker.check_model(result.model, full_check=True)
    return result.model


def round_to_int8(x: np.ndarray, scale: np.ndarray | np.float32) -> np.ndarray:
    """The specification: x / scale in float32, rounded to nearest with ties to even, clipped to -128..127."""
    return np.clip(np.rint(x / scale), -128, 127).astype(np.int64)


def awkward(*shape: int) -> np.ndarray:
    """float32 multiples of STEP / 2 from -140 to 140 steps: every tie, and values beyond both ends."""
    half_steps = np.random.default_rng(sum(shape)).integers(-280, 281, shape)
    half_steps.flat[:6] = [254, 255, 257, -255, -256, -257]  # 127, 127.5, 128.5, -127.5, -128, -128.5
    return half_steps.astype(np.float32) * STEP / 2


def integer_weights(axis: int | None, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 weights and scales, powers of two that differ per channel; each channel has a 127 or -127."""
    rng = np.random.default_rng(len(shape))
    values = rng.integers(-127, 128, shape)
    if axis is None:
        values.flat[0] = -127
        return values, f32(0.25)
    for channel in range(shape[axis]):
        np.moveaxis(values, axis, 0)[channel].flat[0] = 127 if channel % 2 else -127
    scales = np.float32(2.0) ** -rng.integers(3, 7, shape[axis])
    return values, scales.astype(np.float32)


def conv(x: np.ndarray, w: np.ndarray, group: int) -> np.ndarray:
    """Integers: (N, C, H, W) and (M, C / group, 3, 3) -> (N, M, H, W), padded by 1."""
    windows = sliding_window_view(np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)]), (3, 3), axis=(2, 3))
    parts = [
        np.einsum("nchwij,mcij->nmhw", part, weights)
        for part, weights in zip(np.split(windows, group, axis=1), np.split(w, group), strict=True)
    ]
    return np.concatenate(parts, axis=1)


def conv_transpose(x: np.ndarray, w: np.ndarray, group: int) -> np.ndarray:
    """Integers: (N, C, H, W) and (C, M / group, 2, 2) -> (N, M, 2 H, 2 W), stride 2."""
    n, _, height, width = x.shape
    parts = []
    for part, weights in zip(np.split(x, group, axis=1), np.split(w, group), strict=True):
        out = np.zeros((n, w.shape[1], 2 * height, 2 * width), np.int64)
        for i, j in product(range(2), range(2)):
            out[:, :, i::2, j::2] = np.einsum("nchw,cm->nmhw", part, weights[:, :, i, j])
        parts.append(out)
    return np.concatenate(parts, axis=1)


Reference = Callable[[np.ndarray, np.ndarray], np.ndarray]


# op type, attributes, shape of x, shape of the weights, their axis, and the same on integers
WEIGHTED: dict[str, tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...], int | None, Reference]] = {
    "conv": ("Conv", {"pads": [1] * 4}, (2, 4, 5, 5), (6, 4, 3, 3), 0, lambda x, w: conv(x, w, 1)),
    "grouped": ("Conv", {"pads": [1] * 4, "group": 2}, (2, 4, 5, 5), (6, 2, 3, 3), 0, lambda x, w: conv(x, w, 2)),
    "depthwise": ("Conv", {"pads": [1] * 4, "group": 4}, (2, 4, 5, 5), (4, 1, 3, 3), 0, lambda x, w: conv(x, w, 4)),
    "transposed": (
        "ConvTranspose", {"strides": [2, 2]}, (2, 4, 3, 3), (4, 6, 2, 2), 1, lambda x, w: conv_transpose(x, w, 1),
    ),
    "transposed, grouped": (
        "ConvTranspose", {"strides": [2, 2], "group": 2}, (2, 4, 3, 3), (4, 3, 2, 2), None,
        lambda x, w: conv_transpose(x, w, 2),
    ),
    "gemm": ("Gemm", {}, (5, 8), (8, 6), 1, lambda x, w: x @ w),
    "gemm, transposed": ("Gemm", {"transB": 1}, (5, 8), (6, 8), 0, lambda x, w: x @ w.T),
    "matmul": ("MatMul", {}, (2, 5, 8), (8, 6), 1, lambda x, w: x @ w),
    "matmul, batched": ("MatMul", {}, (2, 5, 8), (2, 8, 6), 2, lambda x, w: x @ w),
}  # fmt: skip


@pytest.mark.parametrize("layer", WEIGHTED)
@pytest.mark.parametrize("optimization", ["disabled", "extended"])
def test_a_weighted_layer_equals_integer_arithmetic_bit_for_bit(layer: str, optimization: Any) -> None:
    op_type, attributes, x_shape, w_shape, axis, reference = WEIGHTED[layer]
    values, scales = integer_weights(axis, *w_shape)
    along = scales if axis is None else scales.reshape([-1 if i == axis else 1 for i in range(len(w_shape))])
    x = awkward(*x_shape)
    has_bias = op_type != "MatMul"
    channel_axis = 1 if op_type in ("Conv", "ConvTranspose", "Gemm") else -1
    accumulated = reference(round_to_int8(x, STEP), values)
    channels = accumulated.shape[channel_axis]
    bias = np.arange(channels).astype(np.float32) / 64
    model = typed(
        make_model(
            [node(op_type, ["x", "w", "b"] if has_bias else ["x", "w"], ["y"], **attributes)],
            {"x": list(x_shape)},
            ["y"],
            {"w": values.astype(np.float32) * along, **({"b": bias} if has_bias else {})},
        )
    )
    result = checked(insert_qdq(model, {"x": STEP}))
    shape = [-1 if i == channel_axis % accumulated.ndim else 1 for i in range(accumulated.ndim)]
    expected = accumulated * (STEP * np.broadcast_to(scales, (channels,)).reshape(shape).astype(np.float64))
    expected = expected + bias.reshape(shape) if has_bias else expected
    with OrtRunner(result, optimization=optimization) as runner:
        (y,) = runner({"x": x}).values()
    np.testing.assert_array_equal(y, expected)


def test_a_product_of_activations_equals_integer_arithmetic_bit_for_bit() -> None:
    a, b = awkward(2, 3, 5, 8), awkward(2, 3, 8, 4) * 2
    model = typed(make_model([node("MatMul", ["a", "b"], ["y"])], {"a": [2, 3, 5, 8], "b": [2, 3, 8, 4]}, ["y"]))
    result = checked(insert_qdq(model, {"a": STEP, "b": STEP * 2}))
    expected = round_to_int8(a, STEP) @ round_to_int8(b, STEP * 2)
    np.testing.assert_array_equal(run(result, a=a, b=b)["y"], expected * STEP * STEP * 2)


def test_a_residual_sum_equals_integer_arithmetic_bit_for_bit() -> None:
    values, scales = integer_weights(0, 4, 4, 3, 3)
    weights = (values * scales.reshape(-1, 1, 1, 1)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], ["c"], pads=[1] * 4), node("Add", ["c", "shortcut"], ["y"])]
    shape = (2, 4, 5, 5)
    model = typed(make_model(nodes, {"x": [*shape], "shortcut": [*shape]}, ["y"], {"w": weights}))
    result = checked(insert_qdq(model, {"x": STEP, "shortcut": STEP * 4}))
    x, shortcut = awkward(*shape), awkward(*shape)[::-1] * 4
    convolved = conv(round_to_int8(x, STEP), values, 1) * (STEP * scales.reshape(1, -1, 1, 1).astype(np.float64))
    expected = convolved + round_to_int8(shortcut, STEP * 4) * (STEP * 4)
    np.testing.assert_array_equal(run(result, x=x, shortcut=shortcut)["y"], expected)


@settings(max_examples=30)
@given(
    hnp.arrays(np.float32, (1, 1, 3, 4), elements=st.floats(allow_nan=False, width=32)),
    st.floats(2.0**-126, 2.0**100, width=32),
)
def test_any_value_under_any_scale_is_rounded_and_clipped_as_specified(x: np.ndarray, scale: float) -> None:
    model = make_model([node("AveragePool", ["x"], ["y"], kernel_shape=[1, 1])], {"x": [1, 1, 3, 4]}, ["y"])
    result = insert_qdq(typed(model), {"x": np.float32(scale)})
    with np.errstate(over="ignore"):
        expected = round_to_int8(x, np.float32(scale)).astype(np.float32) * np.float32(scale)
    np.testing.assert_array_equal(run(result.model, x=x)["y"], expected)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_the_model_passes_the_checker_runs_and_keeps_its_names(opset: int, placement: str) -> None:
    model = small_network(opset)
    result = insert_qdq(model, ranges(model), placement=placement)
    x = images(2, size=6)
    outputs = run(checked(result), x=x)
    assert result.model.opset_import[0].version == max(opset, 13)
    names = {name for n in result.model.graph.node for name in (n.name, *n.output)}
    assert {name for n in model.graph.node for name in (n.name, *n.output)} <= names
    assert [value.name for value in result.model.graph.output] == list(outputs) == ["p", "s"]
    assert [value.name for value in result.model.graph.input] == ["x"]
    assert outputs["p"].shape == run(model, x=x)["p"].shape
    assert result.skipped == ()


def test_the_arithmetic_is_that_of_the_float_model_on_rounded_operands() -> None:
    # The same kernels on operands that NumPy rounded, layer by layer; any scales, so nothing is exact here
    # but the rounding itself.
    model = small_network()
    scales = ranges(model)
    result = insert_qdq(model, scales)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    for n in rounded.graph.node:
        n.input[:] = [{"w2 alias": "w2"}.get(name, name) for name in n.input]
    rounded.graph.node.remove(next(n for n in rounded.graph.node if n.name == "constant"))
    rounded.graph.initializer.append(
        numpy_helper.from_array(numpy_helper.to_array(model.graph.node[4].attribute[0].t), "k")
    )
    for tensor in rounded.graph.initializer:
        if tensor.name in result.weights:
            w = numpy_helper.to_array(tensor)
            scale = np.abs(w).max(axis=tuple(range(1, w.ndim)), keepdims=True) / np.float32(127)
            tensor.CopyFrom(numpy_helper.from_array((round_to_int8(w, scale) * scale).astype(np.float32), tensor.name))
    tensors = {"x": images(2, size=6)}
    for n in rounded.graph.node:
        reads = {
            name: (
                round_to_int8(tensors[name], result.quantized[name]).astype(np.float32) * result.quantized[name]
                if name in result.quantized and (n.op_type, name) != ("Add", "c3")
                else tensors[name]
            )
            for name in n.input
            if name in tensors
        }
        weights = {t.name: numpy_helper.to_array(t) for t in rounded.graph.initializer if t.name in n.input}
        layer = make_model([n], {name: list(value.shape) for name, value in reads.items()}, list(n.output), weights)
        tensors.update(run(layer, **reads))
    for name, value in run(result.model, x=tensors["x"]).items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)


def pairs_by_tensor(model: onnx.ModelProto) -> dict[str, tuple[onnx.NodeProto, onnx.NodeProto]]:
    quantize = {n.output[0]: n for n in model.graph.node if n.op_type == "QuantizeLinear"}
    dequantize = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert len(quantize) == len(dequantize)
    return {quantize[n.input[0]].input[0]: (quantize[n.input[0]], n) for n in dequantize}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_pair_shares_a_positive_scale_and_an_int8_zero(placement: str) -> None:
    model = small_network()
    result = insert_qdq(model, ranges(model), placement=placement)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    pairs = pairs_by_tensor(result.model)
    assert pairs.keys() == result.quantized.keys() | set(result.weights)
    for tensor, (quantize, dequantize) in pairs.items():
        assert quantize.input[1:] == dequantize.input[1:]
        assert quantize.attribute == dequantize.attribute
        scale, zero_point = (constants[name] for name in quantize.input[1:])
        assert scale.dtype == np.float32
        assert np.all((scale > 0) & np.isfinite(scale))
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        assert (
            zero_point.shape
            == scale.shape
            == (() if tensor in result.quantized else (constants[quantize.input[1]].size,))
        )


def test_the_result_accounts_for_what_is_int8() -> None:
    model = small_network()
    result = insert_qdq(model, ranges(model), exclude=["third", "Gemm"])
    assert result.layers == ("first", "second", "fourth", "concat", "fifth", "pool")
    assert list(result.quantized) == ["x", "r1", "s", "c4", "cat", "c5"]
    assert result.weights == ("w1", "w2", "w5")


def test_a_shared_weight_has_one_pair_per_axis_and_other_readers_see_it_unrounded() -> None:
    w = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    model = typed(
        make_model(
            [
                node("Gather", ["w", "ids"], ["e"]),
                node("MatMul", ["e", "w"], ["a"]),
                node("MatMul", ["a", "w"], ["b"]),
                node("Gemm", ["b", "w"], ["y"], transB=1),
            ],
            {"ids": [3]},
            ["y", "e"],
            {"w": w},
            dtypes={"ids": TensorProto.INT64},
        )
    )
    result = insert_qdq(model, {name: np.float32(0.1) for name in ("e", "a", "b")})
    graph = checked(result).graph
    assert [n.attribute[0].i for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "w"] == [1, 0]
    matmul1, matmul2 = (n for n in graph.node if n.op_type == "MatMul")
    assert matmul1.input[1] == matmul2.input[1]
    ids = np.array([0, 3, 1])
    np.testing.assert_array_equal(run(result.model, ids=ids)["e"], w[ids])
    assert result.weights == ("w",)


def test_new_names_never_meet_the_model_s_own() -> None:
    model = typed(
        make_model(
            [node("Relu", ["x"], ["x_quantized"], name="x_QuantizeLinear"), node("Conv", ["x", "x_scale"], ["y"])],
            {"x": [1, 1, 2, 2]},
            ["y", "x_quantized"],
            {"x_scale": np.ones((1, 1, 1, 1), np.float32), "zero_point": f32(3)},
        )
    )
    result = insert_qdq(model, {"x": np.float32(1)})
    x = f32([[[[1, -2], [3, 200]]]])
    outputs = run(checked(result), x=x)
    np.testing.assert_array_equal(outputs["x_quantized"], np.maximum(x, 0))
    np.testing.assert_array_equal(outputs["y"], np.minimum(x, 127))
    assert strip_qdq(result.model).graph == model.graph


def test_equal_arguments_give_equal_bytes_and_leave_the_model_alone() -> None:
    model = small_network(11)
    before = model.SerializeToString(deterministic=True)
    first, second = (insert_qdq(model, ranges(model)).model.SerializeToString() for _ in range(2))
    assert first == second
    strip_qdq(insert_qdq(model, ranges(model)).model)
    assert model.SerializeToString(deterministic=True) == before


def test_no_ranges_leave_the_model_in_float() -> None:
    model = small_network()
    result = insert_qdq(model, {})
    assert result.model.graph == model.graph
    assert dict(result.skipped)["x"] == "it has no scale; Conv 'first' stays in float"
    assert insert_qdq(model, ranges(model), exclude=["*"]).model.graph == model.graph


def test_a_name_that_the_model_lacks_is_reported() -> None:
    model = small_network()
    result = insert_qdq(model, {**ranges(model), "(Unnamed Layer* 3) [Shuffle]_output": np.float32(1)})
    assert result.skipped == (("(Unnamed Layer* 3) [Shuffle]_output", "no tensor of this model"),)


def test_a_constant_called_after_the_weights_inside_its_node_is_called_a_constant() -> None:
    """As exporters that inline functions leave them: node `inlined/offset` holds weights called `offset`."""
    graph = onnx.parser.parse_graph("g (float[1, 2] x) => (float[1, 2] y) { w = Mul(x, x) y = Add(w, inlined_offset) }")
    offset = numpy_helper.from_array(np.ones((1, 2), np.float32), "offset")
    graph.node.insert(0, helper.make_node("Constant", [], ["inlined_offset"], value=offset))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    scales = {name: np.float32(0.1) for name in calibration_graph(model).order}
    assert scales.keys() == {"x", "w", "offset_output", "y"}
    assert dict(insert_qdq(model, scales, placement="all").skipped) == {"offset_output": CONSTANT}


def test_the_cache_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"none of the 2 ranges.*'other1'.*take the cache of this very model"):
        insert_qdq(small_network(), {"other1": np.float32(1), "other2": np.float32(1)})


def test_a_quantized_model_is_refused() -> None:
    model = small_network()
    once = insert_qdq(model, ranges(model)).model
    with pytest.raises(ModelError, match=r"QuantizeLinear 'x_QuantizeLinear'.*quantized already.*strip_qdq"):
        insert_qdq(once, ranges(model))


def test_a_model_with_pairs_in_a_body_is_refused() -> None:
    model = body_model()
    branch = model.graph.node[2].attribute[0].g
    branch.node.append(node("QuantizeLinear", ["inner", "s"], ["q"]))
    with pytest.raises(ModelError, match=r"QuantizeLinear 'q'.*quantized already"):
        insert_qdq(model, {"x": np.float32(1)})


def test_a_model_that_rounds_its_activations_in_plain_operators_is_refused() -> None:
    def rounding(low: int, of: str) -> onnx.ModelProto:
        nodes = [
            node("Div", [of, "s"], ["d"]),
            node("Round", ["d"], ["r"]),
            node("Clip", ["r", "low", "high"], ["c"]),
            node("Mul", ["c", "s"], ["rounded"]),
            node("MatMul", ["rounded", "w"] if of == "x" else ["x", "rounded"], ["y"]),
        ]
        constants = {"s": f32(0.5), "low": f32(low), "high": f32(low + 255), "w": np.ones((2, 2), np.float32)}
        return make_model(nodes, {"x": [2, 2]}, ["y"], constants)

    scales = {"x": np.float32(1), "rounded": np.float32(1)}
    with pytest.raises(ModelError, match=r"Mul 'rounded': the model is quantized already, 'x' in plain operators"):
        insert_qdq(rounding(-128, "x"), scales)
    assert insert_qdq(rounding(0, "x"), scales).layers == ("y",), "a picture's 256 shades are no quantization"
    assert insert_qdq(rounding(-128, "w"), scales).layers == ("y",), "weights may be rounded twice: they are to int8"


def test_an_unknown_placement_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'best'; choose one of tensorrt, all"):
        insert_qdq(small_network(), {}, placement="best")


def test_a_model_of_an_old_ir_is_raised_though_its_weights_are_no_inputs() -> None:
    model = small_network(9)
    model.ir_version = 3
    assert checked(insert_qdq(model, ranges(model))).ir_version >= 7


def test_a_model_that_cannot_be_raised_to_opset_13_is_refused() -> None:
    attributes = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "ceil"}
    model = make_model(
        [node("Resize", ["x", "r", "s"], ["y"], name="up", **attributes)],
        {"x": [1, 1]},
        ["y"],
        {"r": f32([]), "s": f32([1, 2])},
        opset=11,
    )
    with pytest.raises(ModelError, match=r"Resize 'up': samples by tf_half_pixel_for_nn with ceil.*export the model"):
        insert_qdq(model, {"x": np.float32(1)})


def test_an_older_opset_is_raised_so_that_it_computes_the_same() -> None:
    """ONNX's own converter gave linear Resize of opset 10 other sampling, and Upsample's output another name."""
    for opset, op in ((9, "Upsample"), (10, "Resize")):
        model = make_model(
            [
                node("Conv", ["x", "w"], ["c"]),
                node(op, ["c", "s"], ["u"], name="up", mode="linear"),
                node("Conv", ["u", "v"], ["y"]),
            ],
            {"x": ["N", 3, 6, 6]},
            ["y"],
            {"w": np.ones((4, 3, 3, 3), np.float32), "s": f32([1, 1, 2, 2]), "v": np.ones((2, 4, 1, 1), np.float32)},
            opset=opset,
        )
        result = insert_qdq(model, {"x": np.float32(0.01), "u": np.float32(0.1)})
        assert set(result.quantized) == {"x", "u"}
        x = images(2, size=6)
        np.testing.assert_array_equal(run(strip_qdq(result.model), x=x)["y"], run(model, x=x)["y"])


def test_weights_in_a_file_that_was_not_loaded_are_asked_for() -> None:
    model = small_network()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ModelError, match=r"'w1'.*external file"):
        insert_qdq(model, ranges(model))


@pytest.mark.parametrize(
    "scales",
    [np.float32(1), np.ones(3, np.float32), np.ones(4), f32([1, 1, 0, 1]), f32([1, 1, np.nan, 1])],
)
def test_scales_of_a_custom_weight_method_are_checked(scales: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"'w1': expected positive float32 scales of shape \(4,\)"):
        insert_qdq(small_network(), {"x": np.float32(1)}, weights=lambda array, axis: np.asarray(scales))


def test_bodies_are_left_as_they_are_and_reported() -> None:
    model = body_model()
    result = insert_qdq(model, {name: np.float32(0.5) for name in "xcd"})
    switch = next(n for n in checked(result).graph.node if n.op_type == "If")
    assert switch == model.graph.node[2]
    assert dict(result.skipped)["inner"].startswith("inside If 'switch', which stays in float; if one branch is always")
    x = f32([[[[0.3, 1], [2, 3]]]])
    np.testing.assert_array_equal(run(result.model, x=x)["y"], f32([[[[1, 2], [4, 6]]]]))
    assert strip_qdq(result.model).graph == model.graph


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("imports", ["", "ai.onnx"])
def test_the_other_name_of_onnx_s_own_domain_changes_nothing(opset: int, imports: str) -> None:
    plain, alias = conv_model(), conv_model()
    for model in (plain, alias):
        model.opset_import[0].version = opset
    alias.opset_import[0].domain = imports
    for each in alias.graph.node:
        each.domain = "ai.onnx"
    expected, found = (insert_qdq(model, ranges(conv_model()), placement="all") for model in (plain, alias))
    assert found.layers == expected.layers == ("conv", "pool", "sum", "logits")
    assert (found.skipped, found.quantized) == (expected.skipped, expected.quantized)
    assert found.model.graph == expected.model.graph


def test_functions_for_another_opset_are_reported() -> None:
    model = make_model([node("Block", ["x"], ["y"], domain="mine")], {"x": [1]}, ["y"])
    model.opset_import.append(helper.make_opsetid("mine", 1))
    old = [helper.make_opsetid("", 11)]
    model.functions.append(helper.make_function("mine", "Block", ["a"], ["b"], [node("Softmax", ["a"], ["b"])], old))
    assert dict(insert_qdq(model, {"x": np.float32(1)}).skipped)["y"].startswith("made by a function of the model")


def test_what_is_left_in_float_can_be_checked_before_there_are_ranges() -> None:
    check_exclude(conv_model(), ["Conv", "poo*", "logits"])
    check_exclude(conv_model(), [])
    with pytest.raises(ValueError, match=r"output 'Convv'; did you mean 'Conv'\?"):
        check_exclude(conv_model(), ["Gemm", "Convv"])

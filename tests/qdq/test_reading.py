from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from models import make_model
from onnx import TensorProto, helper
from qdq_models import PAIRS, STEP, STEPS, WEIGHTS, f32, i8, node, paired, run, typed

from trtcal.errors import ModelError
from trtcal.model.runner import OrtRunner
from trtcal.model.topology import Graph
from trtcal.qdq.extract import extract_scales, strip_qdq
from trtcal.qdq.reading import read_quantized

X = f32(np.arange(24).reshape(1, 3, 2, 4) * 1.5 - 20)


def conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.einsum("nchw,mc->nmhw", x, w.reshape(4, 3)).astype(np.float32)


def levels(x: np.ndarray, scale: np.ndarray, low: int = -128, high: int = 127) -> np.ndarray:
    return (np.clip(np.rint(x / scale), low, high) * scale).astype(np.float32)


def checked_float_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """What strip_qdq makes; the checker takes it, and ONNX Runtime loads it (tests call :func:`run`)."""
    stripped = strip_qdq(typed(model))
    onnx.checker.check_model(stripped, full_check=True)
    return stripped


@pytest.mark.parametrize("spelling", PAIRS)
def test_scales_come_out_and_the_float_model_is_underneath(spelling: str) -> None:
    model = paired(spelling)
    rounded = conv(levels(X, STEP), levels(WEIGHTS, STEPS.reshape(4, 1, 1, 1)))
    np.testing.assert_array_equal(run(model, x=X)["y"], rounded)
    assert extract_scales(model) == {"x": STEP}
    stripped = checked_float_model(model)
    assert {n.op_type for n in stripped.graph.node} <= {"Conv", "Transpose"}
    assert len(stripped.graph.initializer) == 1
    np.testing.assert_array_equal(run(stripped, x=X)["y"], conv(X, WEIGHTS))


@pytest.mark.parametrize("opset", [13, 21])
def test_int8_constants_behind_other_nodes_are_dequantized(opset: int) -> None:
    """Integers that a Clip or a Transpose makes of a constant, as brevitas and folding tools leave them."""
    integers = np.random.default_rng(3).integers(-127, 128, (3, 4, 1, 1)).astype(np.int8)
    model = make_model(
        [
            node("Clip", ["turned", "low", "high"], ["clipped"]),
            node("Transpose", ["clipped"], ["wq"], perm=[1, 0, 2, 3]),
            node("DequantizeLinear", ["wq", "ws"], ["wd"], axis=0),
            node("Conv", ["x", "wd"], ["y"]),
        ],
        {"x": [1, 3, 2, 4]},
        ["y"],
        {"turned": integers, "low": i8(-100), "high": i8(100), "ws": STEPS},
        opset=opset,
    )
    stripped = checked_float_model(model)
    assert [n.op_type for n in stripped.graph.node] == ["Conv"]
    assert [tensor.name for tensor in stripped.graph.initializer] == ["wd"]
    np.testing.assert_array_equal(run(stripped, x=X)["y"], run(model, x=X)["y"])


@pytest.mark.parametrize("turned", [False, True])
def test_an_input_of_integers_is_one_of_floats(turned: bool) -> None:
    between = [node("Transpose", ["x"], ["t"], perm=[0, 2, 1])] if turned else []
    model = make_model(
        [*between, node("DequantizeLinear", ["t" if turned else "x", "s", "z"], ["d"]), node("Abs", ["d"], ["y"])],
        {"x": [1, 2, 3]},
        ["y"],
        {"s": STEP, "z": i8(0)},
        dtypes={"x": TensorProto.INT8},
    )
    integers = i8([[[-128, 127, 3], [0, -1, 1]]])
    assert extract_scales(model) == {"x": STEP}
    stripped = checked_float_model(model)
    np.testing.assert_array_equal(run(stripped, x=integers.astype(np.float32) * STEP)["y"], run(model, x=integers)["y"])


def test_an_input_of_integers_that_is_used_as_such_is_refused() -> None:
    model = make_model(
        [node("DequantizeLinear", ["x", "s"], ["d"]), node("Cast", ["x"], ["c"], to=1), node("Add", ["d", "c"], ["y"])],
        {"x": [2]},
        ["y"],
        {"s": STEP},
        dtypes={"x": TensorProto.INT8},
    )
    for take_apart in (extract_scales, strip_qdq):
        with pytest.raises(ModelError, match="Cast 'c': computes with quantized values"):
            take_apart(model)


def test_an_input_of_integers_with_two_scales_is_refused() -> None:
    model = make_model(
        [
            node("DequantizeLinear", ["x", "s"], ["d"]),
            node("DequantizeLinear", ["x", "t"], ["e"]),
            node("Add", ["d", "e"], ["y"]),
        ],
        {"x": [2]},
        ["y"],
        {"s": STEP, "t": f32(1)},
        dtypes={"x": TensorProto.INT8},
    )
    with pytest.raises(ModelError, match="'e': dequantizes with another scale than DequantizeLinear 'd'"):
        strip_qdq(model)


@pytest.mark.parametrize("moved", [[], [node("Reshape", ["cq", "shape"], ["out"])]])
def test_an_output_of_integers_is_one_of_floats(moved: list[onnx.NodeProto]) -> None:
    output = "out" if moved else "cq"
    model = make_model(
        [node("Abs", ["x"], ["c"]), node("QuantizeLinear", ["c", "s", "z"], ["cq"]), *moved],
        {"x": [2, 2]},
        [output],
        {"s": STEP, "z": i8(0)} | ({"shape": np.array([4], np.int64)} if moved else {}),
    )
    x = f32([[-0.5, 0.25], [1, 15.875]])
    assert extract_scales(model) == {"c": STEP}
    stripped = checked_float_model(model)
    np.testing.assert_array_equal(run(stripped, x=x)[output], run(model, x=x)[output].astype(np.float32) * STEP)
    assert extract_scales(make_model([*model.graph.node], {"x": [2, 2]}, ["c", output], constants(model)))


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_integers_of_an_output_and_of_a_dq_may_be_the_same() -> None:
    model = make_model(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            node("Abs", ["d"], ["y"]),
        ],
        {"x": [2]},
        ["y", "q"],
        {"s": STEP, "z": i8(0)},
    )
    found = run(checked_float_model(model), x=f32([-1, 2]))
    np.testing.assert_array_equal(found["y"], f32([1, 2]))
    np.testing.assert_array_equal(found["q"], f32([-1, 2]))


def test_an_initializer_that_is_an_input_too_goes_with_its_dq() -> None:
    model = make_model(
        [node("DequantizeLinear", ["w", "s"], ["d"]), node("Add", ["x", "d"], ["y"])],
        {"x": [2], "w": [2]},
        ["y"],
        {"s": STEP, "w": i8([8, 16])},
        dtypes={"w": TensorProto.INT8},
    )
    stripped = checked_float_model(model)
    assert [value.name for value in stripped.graph.input] == ["x"]
    np.testing.assert_array_equal(run(stripped, x=f32([1, 1]))["y"], f32([2, 3]))


def test_floats_of_another_type_behind_the_pair_stay_of_that_type() -> None:
    model = make_model(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "half", "z"], ["d"]),
            node("Abs", ["d"], ["y"]),
        ],
        {"x": [2]},
        ["y"],
        {"s": STEP, "half": STEP.astype(np.float16), "z": i8(0)},
        opset=21,
    )
    assert extract_scales(model) == {"x": STEP}
    stripped = checked_float_model(model)
    assert [n.op_type for n in stripped.graph.node] == ["Cast", "Abs"]
    assert run(stripped, x=f32([-0.5, 2]))["y"].dtype == np.float16


def between(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """x -> Q -> the nodes, which read q and give r -> DQ with t, a, the axis 1 -> y."""
    given = {"s": STEP, "z": i8(0), "t": STEP, "a": i8(0)} | constants
    axis = {"axis": 1} if given["t"].ndim else {}
    return make_model(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"], **({"axis": 1} if given["s"].ndim else {})),
            *nodes,
            node("DequantizeLinear", ["r" if nodes else "q", "t", "a"], ["d"], **axis),
            node("Abs", ["d"], ["y"]),
        ],
        {"x": [2, 3]},
        ["y"],
        given,
    )


@pytest.mark.parametrize("take_apart", [extract_scales, strip_qdq])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (between(t=f32(0.25)), r"'d': dequantizes with another scale than .*'q' quantizes with \(0.25 and 0.125\)"),
        (between(a=i8(1)), r"'d': dequantizes with another zero point than .*'q' quantizes with \(1 and 0\)"),
        (between(s=f32([1, 2, 3]), z=i8([0] * 3)), "another scale"),
        (between(s=f32(-0.5), t=f32(-0.5)), "'x' is quantized with the scale -0.5; expected a positive finite"),
        (between(s=f32(0), t=f32(0)), "'x' is quantized with the scale 0.0; expected a positive finite"),
        (between(s=f32(np.inf), t=f32(np.inf)), "'x' is quantized with the scale inf"),
        (between(s=f32(np.nan), t=f32(np.nan)), "'x' is quantized with the scale nan"),
        (between(s=f32([1, 2, 3]), t=f32([1, 2, 3]), z=i8([0, 0]), a=i8([0, 0])), "3 scales and 2 zero points"),
        (between(node("Clip", ["q", "", "x"], ["r"])), "Clip 'r': its bound 'x' is computed"),
        (between(node("Clip", ["q", "two"], ["r"]), two=i8([1, 2])), r"bound 'two' has the shape \(2,\), not of one"),
        (between(node("Relu", ["q"], ["r"])), "Relu 'r': computes with quantized values"),
        (
            between(
                node("Reshape", ["q", "shape"], ["r"]),
                **{"shape": np.array([3, 2]), "s": f32([1, 2, 3]), "t": f32([1, 2, 3])},
            ),
            "Reshape 'r': moves values that .*'q' quantized with 3 scales",
        ),
        (
            between(node("Transpose", ["q"], ["r"], perm=[1, 0]), s=f32([1, 2, 3]), t=f32([1, 2, 3])),
            "'d': dequantizes along axis 1 what QuantizeLinear 'q' quantizes along axis 0",
        ),
    ],
    ids=range(13),
)
def test_pairs_that_do_more_than_round_are_refused(
    model: onnx.ModelProto, message: str, take_apart: Callable[[onnx.ModelProto], object]
) -> None:
    with pytest.raises(ModelError, match=message):
        take_apart(model)


def test_scales_that_differ_by_rounding_are_the_same() -> None:
    assert extract_scales(between(s=f32(0.03), t=np.nextafter(f32(0.03), f32(1)))) == {"x": f32(0.03)}


def test_one_scale_is_as_good_as_one_per_channel_that_are_all_the_same() -> None:
    model = between(t=np.repeat(STEP, 3), a=i8([0] * 3))
    assert extract_scales(model) == {"x": STEP}


@pytest.mark.parametrize(
    ("low", "high", "fits"), [(-128, 127, True), (-127, 127, True), (-8, 7, False), (0, 127, False)]
)
def test_a_clip_that_leaves_other_bits_is_refused_for_a_cache_alone(low: int, high: int, fits: bool) -> None:
    model = between(node("Clip", ["q", "low", "high"], ["r"]), low=i8(low), high=i8(high))
    if fits:
        assert extract_scales(model) == {"x": STEP}
    else:
        with pytest.raises(ModelError, match=f"'x' is quantized to int8, of which {low} to {high} are used"):
            extract_scales(model)
    stripped = checked_float_model(model)
    assert [n.op_type for n in stripped.graph.node] == ["Abs"]


def test_a_type_that_contradicts_the_zero_point_is_refused() -> None:
    model = make_model(
        [node("QuantizeLinear", ["x", "s", "z"], ["y"], output_dtype=TensorProto.UINT8)],
        {"x": [2]},
        ["y"],
        {"s": STEP, "z": i8(0)},
        opset=21,
    )
    with pytest.raises(ModelError, match="'y': is to give uint8 with a zero point that is int8"):
        extract_scales(model)


@pytest.mark.parametrize(
    ("type", "name"), [(TensorProto.UINT8, "uint8"), (TensorProto.INT16, "int16"), (TensorProto.FLOAT8E4M3FN, "float8")]
)
def test_other_types_are_refused_for_a_cache_alone(type: int, name: str) -> None:
    model = make_model(
        [
            node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=type),
            node("DequantizeLinear", ["q", "s"], ["d"]),
            node("Abs", ["d"], ["y"]),
        ],
        {"x": [2]},
        ["y"],
        {"s": STEP},
        opset=21,
    )
    with pytest.raises(ModelError, match=f"'x' is quantized to {name}"):
        extract_scales(model)
    assert [n.op_type for n in checked_float_model(model).graph.node] == ["Abs"]


def test_quantization_inside_a_body_is_refused() -> None:
    body = helper.make_graph(
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["inner"])],
        "b",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    model = make_model(
        [node("If", ["yes"], ["y"], name="switch", then_branch=body, else_branch=body)],
        {"x": [2]},
        ["y"],
        {"s": STEP, "z": i8(0), "yes": np.array(True)},
    )
    for take_apart in (extract_scales, strip_qdq):
        with pytest.raises(ModelError, match="QuantizeLinear 'q': stands inside If 'switch'"):
            take_apart(model)


def test_integers_that_a_body_reads_are_computed_with() -> None:
    body = helper.make_graph(
        [node("Cast", ["q"], ["inner"], to=1)],
        "b",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    model = make_model(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("If", ["yes"], ["y"], name="switch", then_branch=body, else_branch=body),
        ],
        {"x": [2]},
        ["y"],
        {"s": STEP, "z": i8(0), "yes": np.array(True)},
    )
    with pytest.raises(ModelError, match="If 'switch': computes with quantized values"):
        strip_qdq(model)


def test_quantization_in_a_function_of_the_model_is_put_in_its_place() -> None:
    model = make_model([node("Block", ["x"], ["m"], domain="mine"), node("Abs", ["m"], ["y"])], {"x": [2]}, ["y"], {})
    model.opset_import.append(helper.make_opsetid("mine", 1))
    nodes = [
        node("Constant", [], ["s"], value_float=0.125),
        node("Constant", [], ["z"], value=onnx.numpy_helper.from_array(i8(0))),
        node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("Neg", ["d"], ["b"]),
    ]
    model.functions.append(helper.make_function("mine", "Block", ["a"], ["b"], nodes, [helper.make_opsetid("", 13)]))
    assert extract_scales(model) == {"x": STEP}
    stripped = checked_float_model(model)
    assert [n.op_type for n in stripped.graph.node] == ["Neg", "Abs"]


def test_scales_per_block_are_read_and_compared() -> None:
    weights = f32([[1, -2, 3, 4], [0.5, 1, -1, 2]])
    blocks = f32([[2**-5, 2**-4], [2**-6, 2**-5]])

    def blocked(size: int) -> onnx.ModelProto:
        return make_model(
            [
                node("QuantizeLinear", ["w", "s"], ["q"], axis=1, block_size=2, output_dtype=TensorProto.INT8),
                node("DequantizeLinear", ["q", "s"], ["wd"], axis=1, block_size=size),
                node("MatMul", ["x", "wd"], ["y"]),
            ],
            {"x": [1, 2]},
            ["y"],
            {"w": weights, "s": blocks},
            opset=21,
        )

    np.testing.assert_array_equal(run(strip_qdq(blocked(2)), x=f32([[1, 2]]))["y"], f32([[1, 2]]) @ weights)
    with pytest.raises(ModelError, match="'wd': has other blocks than QuantizeLinear 'q': 1, 2"):
        strip_qdq(blocked(1))


def test_what_is_read_says_where_it_stands() -> None:
    model = between(node("Reshape", ["q", "shape"], ["r"]), shape=np.array([3, 2]))
    reading = read_quantized(Graph(model))
    assert reading.sources == {"q": "x", "d": "r"}
    assert set(reading.integers) == {"q", "r"}
    assert reading.removed == {0, 2}
    assert [(name, found.by, found.type) for name, found in reading.activations] == [
        ("x", "QuantizeLinear 'q'", "int8")
    ]


def test_a_float_model_of_a_float_model_is_the_same(tmp_path: Any) -> None:
    model = make_model([node("Abs", ["x"], ["y"])], {"x": [2]}, ["y"])
    assert strip_qdq(model) == model
    with OrtRunner(strip_qdq(model)) as runner:
        assert runner.outputs == ("y",)

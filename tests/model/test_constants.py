from __future__ import annotations

import logging

import numpy as np
import pytest
from models import make_model
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trtcal.model.constants import lifted
from trtcal.model.runner import OrtRunner

node = helper.make_node
RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
X = RNG.normal(size=(2, 3, 6, 6)).astype(np.float32)


def model(nodes: list[NodeProto], outputs: tuple[str, ...] = ("y",), **constants: np.ndarray) -> ModelProto:
    return make_model(nodes, {"x": ["N", 3, 6, 6]}, list(outputs), constants, opset=17)


CONV = node("Conv", ["x", "k"], ["y"], "conv")
STANDARDIZED = [
    node("ReduceMean", ["w"], ["mean"], axes=[1, 2, 3]),
    node("Sub", ["w", "mean"], ["centred"]),
    node("Mul", ["centred", "centred"], ["squares"]),
    node("ReduceMean", ["squares"], ["variance"], axes=[1, 2, 3]),
    node("Sqrt", ["variance"], ["deviation"]),
    node("Div", ["centred", "deviation"], ["k"]),
    CONV,
]
DRAWN = [
    helper.make_graph(
        [node("RandomNormal", [], [name], shape=[4, 3, 3, 3])],
        "drawn",
        [],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 3, 3, 3])],
    )
    for name in "st"
]
DRAWING = node("If", ["training"], ["k"], then_branch=DRAWN[0], else_branch=DRAWN[1])
HALF = W.astype(np.float16)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        pytest.param([node("Cast", ["w"], ["k"], to=TensorProto.FLOAT), CONV], {"w": HALF}, id="cast"),
        pytest.param([node("Transpose", ["w"], ["k"], perm=[3, 2, 1, 0]), CONV], {"w": W.T}, id="transpose"),
        pytest.param(
            [node("Reshape", ["w", "s"], ["k"]), CONV], {"w": W.ravel(), "s": np.array(W.shape)}, id="reshape"
        ),
        pytest.param(STANDARDIZED, {"w": W}, id="weight standardization"),
        pytest.param(
            [
                node("Constant", [], ["w"], value=numpy_helper.from_array(HALF)),
                node("Identity", ["w"], ["v"]),
                node("Cast", ["v"], ["u"], to=TensorProto.FLOAT),
                node("Identity", ["u"], ["k"]),
                CONV,
            ],
            {},
            id="behind identities",
        ),
    ],
)
def test_a_computed_weight_becomes_a_constant_of_its_name(
    nodes: list[NodeProto], constants: dict[str, np.ndarray]
) -> None:
    before = model(nodes, **constants)
    bytes_before = before.SerializeToString()
    found = lifted(before)
    assert before.SerializeToString() == bytes_before
    assert [each.op_type for each in found.graph.node] == ["Conv"]
    assert [tensor.name for tensor in found.graph.initializer] == ["k"]
    expected, there = (OrtRunner(each)({"x": X})["y"] for each in (before, found))
    np.testing.assert_array_equal(there, expected)
    assert lifted(found) is found


def test_both_factors_of_a_matmul_may_be_computed_but_not_a_bias() -> None:
    nodes = [
        node("Transpose", ["a"], ["at"], perm=[1, 0]),
        node("Neg", ["b"], ["bn"]),
        node("Gemm", ["at", "x", "bn"], ["y"]),
    ]
    before = make_model(nodes, {"x": [3, 2]}, ["y"], {"a": np.ones((3, 4), np.float32), "b": np.ones(2, np.float32)})
    found = lifted(before)
    assert [each.output[0] for each in found.graph.node] == ["bn", "y"]
    assert [tensor.name for tensor in found.graph.initializer] == ["b", "at"]


def test_what_others_read_stays() -> None:
    """mean and one half of a Split are read elsewhere too."""
    nodes = [
        node("Split", ["w"], ["k", "other"], axis=0),
        node("Mul", ["k", "two"], ["k2"]),
        node("Conv", ["x", "k2"], ["a"]),
        node("Conv", ["x", "k"], ["b"]),
        node("ReduceMax", ["other"], ["largest"], keepdims=0),
        node("Add", ["a", "b"], ["c"]),
        node("Mul", ["c", "largest"], ["y"]),
    ]
    before = model(nodes, w=np.concatenate([W, 2 * W]), two=np.float32(2))
    found = lifted(before)
    assert [each.op_type for each in found.graph.node] == ["Split", "Conv", "Conv", "ReduceMax", "Add", "Mul"]
    assert [tensor.name for tensor in found.graph.initializer] == ["w", "k", "k2"]
    expected, there = (OrtRunner(each)({"x": X})["y"] for each in (before, found))
    np.testing.assert_array_equal(there, expected)


def test_dead_nodes_and_constants_nobody_reads_are_none_of_its_business() -> None:
    nodes = [node("Neg", ["w"], ["k"]), node("Exp", ["dead"], ["nothing"]), CONV]
    found = lifted(model(nodes, w=W, dead=W, unread=W))
    assert [each.op_type for each in found.graph.node] == ["Exp", "Conv"]
    assert [tensor.name for tensor in found.graph.initializer] == ["dead", "unread", "k"]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        pytest.param([node("Conv", ["x", "w"], ["y"])], ("y",), id="constant already"),
        pytest.param([node("Identity", ["w"], ["k"]), CONV], ("y",), id="behind an Identity"),
        pytest.param([node("Neg", ["w"], ["k"]), CONV], ("y", "k"), id="an output of the model"),
        pytest.param([node("RandomNormalLike", ["w"], ["k"]), CONV], ("y",), id="random"),
        pytest.param([DRAWING, CONV], ("y",), id="random in a branch"),
        pytest.param([node("Dropout", ["w", "", "training"], ["k"]), CONV], ("y",), id="Dropout in training"),
        pytest.param(
            [node("ReduceMean", ["x"], ["m"]), node("Mul", ["w", "m"], ["k"]), CONV], ("y",), id="of the data"
        ),
        pytest.param([node("Neg", ["w"], ["v"]), node("Mul", ["x", "v"], ["y"])], ("y",), id="no weight"),
    ],
)
def test_a_model_with_nothing_to_do_stays_as_it_is(nodes: list[NodeProto], outputs: tuple[str, ...]) -> None:
    before = model(nodes, outputs, w=W, training=np.array(True))
    assert lifted(before) is before


def test_a_weight_that_cannot_be_computed_stays_and_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    nodes = [node("Odd", ["w"], ["k"], domain="own"), node("Neg", ["w"], ["m"]), CONV, node("Conv", ["x", "m"], ["z"])]
    before = model(nodes, ("y", "z"), w=W)
    before.opset_import.append(helper.make_opsetid("own", 1))
    found = lifted(before)
    assert [each.output[0] for each in found.graph.node] == ["k", "y", "z"]
    assert "'k': cannot be computed from the constants they depend on" in caplog.text

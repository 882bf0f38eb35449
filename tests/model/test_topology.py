from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import conv_model, make_model
from onnx import TensorProto, helper

from trtcal.errors import ModelError
from trtcal.model.topology import Graph, decisive, int_attribute, reads

node = helper.make_node
ONE = np.ones(1, np.float32)


def test_constants_are_found_behind_identity_and_constant_nodes() -> None:
    model = make_model(
        [
            node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(ONE * 3)),
            node("Identity", ["k"], ["k2"]),
            node("Identity", ["w"], ["w2"]),
            node("Identity", ["w2"], ["w3"]),
            node("Sum", ["x", "k2", "w3"], ["y"]),
        ],
        {"x": [1]},
        ["y"],
        {"w": ONE * 2},
    )
    graph = Graph(model)
    assert {name: constant.name for name, constant in graph.constants.items()} == {
        "w": "w", "w2": "w", "w3": "w", "k": "k", "k2": "k",
    }  # fmt: skip
    assert graph.array("k2") == 3
    assert graph.array("w3") == 2


def test_what_constants_alone_decide_is_fixed_and_no_activation() -> None:
    model = make_model(
        [
            node("Reshape", ["b", "shape"], ["b4"]),
            node("Shape", ["x"], ["s"]),
            node("Add", ["x", "b4"], ["y"]),
            node("RandomNormal", [], ["r"], shape=[1]),
        ],
        {"x": [1, 2]},
        ["y", "s", "r"],
        {"b": ONE, "shape": np.array([1, 1], np.int64)},
    )
    graph = Graph(model)
    assert graph.fixed == {"b", "shape", "b4"}
    assert graph.activations(2) == [0]


def test_a_branch_that_reads_activations_is_not_fixed_by_its_constant_condition() -> None:
    branch = helper.make_graph(
        [node("Relu", ["x"], ["inner"])], "branch", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1])]
    )
    model = make_model(
        [node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)],
        {"x": [1]},
        ["y"],
        {"yes": np.array(True)},
    )
    graph = Graph(model)
    assert set(reads(model.graph.node[0])) == {"yes", "x"}
    assert graph.readers["x"] == [0, 0]
    assert "y" not in graph.fixed


def test_types_are_inferred_and_unknown_ones_are_float32() -> None:
    model = make_model(
        [
            node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
            node("Relu", ["half"], ["half2"]),
            node("Shape", ["half2"], ["s"]),
            node("Odd", ["x"], ["odd"], domain="elsewhere"),
        ],
        {"x": [1]},
        ["s"],
    )
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    graph = Graph(model)
    assert [graph.dtype(name) for name in ("x", "half2", "s", "odd")] == [
        np.float32, np.float16, np.int64, np.float32,
    ]  # fmt: skip


def test_fusion_goes_through_pointwise_nodes_and_ends_where_others_read() -> None:
    model = make_model(
        [
            node("Conv", ["x", "w"], ["c"]),  # 0
            node("Identity", ["c"], ["i"]),  # 1
            node("Sigmoid", ["i"], ["s"]),  # 2
            node("Mul", ["i", "s"], ["silu"]),  # 3: still in the kernel of the convolution
            node("MaxPool", ["silu"], ["p"], kernel_shape=[1, 1]),  # 4
            node("Relu", ["silu"], ["r"]),  # 5: silu is stored, since the pool reads it
            node("Add", ["p", "r"], ["y"]),  # 6
        ],
        {"x": [1, 1, 4, 4]},
        ["y"],
        {"w": np.ones((1, 1, 1, 1), np.float32)},
    )
    graph = Graph(model)
    assert graph.root == {0: 0, 1: 0, 2: 0, 3: 0, 5: 5, 6: 5}
    assert graph.is_fused(3, 0)
    assert graph.is_fused(3, 1)
    assert not graph.is_fused(5, 0)
    assert not graph.is_fused(6, 0)
    assert graph.is_fused(6, 1)


def test_ops_of_another_domain_fuse_nothing_and_move_nothing() -> None:
    def graph(domain: str) -> Graph:
        nodes = [
            node("Conv", ["x", "w"], ["c"], domain="ai.onnx"),
            node("Relu", ["c"], ["r"], domain=domain),
            node("Flatten", ["r"], ["f"], domain=domain),
        ]
        model = make_model(nodes, {"x": [1, 1, 4, 4]}, ["f"], {"w": np.ones((1, 1, 1, 1), np.float32)})
        model.opset_import.append(helper.make_opsetid("my.ops", 1))
        return Graph(model)

    for own in ("", "ai.onnx"):
        assert graph(own).root == {0: 0, 1: 0}
        assert graph(own).is_fused(1, 0)
        assert graph(own).moved_from("f") == "r"
    other = graph("my.ops")
    assert other.root == {0: 0}
    assert not other._is_fusible("c")
    assert other.moved_from("f") is None


def test_types_are_inferred_under_either_name_of_onnx_s_own_domain() -> None:
    model = make_model([node("Shape", ["x"], ["s"], domain="ai.onnx")], {"x": [1]}, ["s"])
    assert Graph(model).dtype("s") == np.int64
    assert model.graph.node[0].domain == "ai.onnx"  # the caller's model is left as it is


def test_an_output_of_the_model_is_stored_and_not_fused() -> None:
    model = conv_model()
    model.graph.output.append(onnx.ValueInfoProto(name="conv"))
    assert not Graph(model).is_fused(1, 0)
    assert Graph(conv_model()).is_fused(1, 0)


def test_moved_values_have_a_source() -> None:
    graph = Graph(conv_model())
    assert graph.moved_from("pool") == "relu"
    assert graph.moved_from("flat") == "sum"
    assert graph.moved_from("relu") is None
    assert graph.moved_from("image") is None


def test_weights_left_in_a_file_are_asked_for() -> None:
    model = conv_model()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ModelError, match=r"'w'.*load the model with onnx.load"):
        Graph(model).array("w")


def test_an_attribute_that_is_not_given_has_its_default() -> None:
    gemm = conv_model().graph.node[-1]
    assert int_attribute(gemm, "transB", 0) == 1
    assert int_attribute(gemm, "transA", 0) == 0


def test_what_decides_an_output_are_the_known_tensors_next_to_it() -> None:
    node = helper.make_node
    then = helper.make_graph(
        [node("Add", ["b", "b"], ["t"])], "then", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [node("Identity", ["c"], ["e"])], "else", [], [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)]
    )
    graph = make_model(
        [
            node("Relu", ["x"], ["a"]),
            node("Relu", ["a"], ["b"]),
            node("Relu", ["b"], ["c"]),
            node("Reshape", ["c", "shape"], ["moved"]),
            node("ArgMax", ["moved"], ["largest"]),
            node("IsNaN", ["a"], ["nan"]),
            node("Not", ["nan"], ["there"]),
            node("If", ["there"], ["y"], then_branch=then, else_branch=other),
        ],
        {"x": ["N", 2]},
        ["y", "largest", "there", "a"],
        {"shape": np.array([0, -1])},
    ).graph

    def of(*outputs: str, known: str = "x a b c y") -> set[str]:
        return set(decisive(graph, outputs, known.split()))

    assert of("y") == {"y"}
    assert of("y", known="x a b c") == {"b", "c"}
    assert of("y", known="x a") == {"a"}
    assert of("largest", "moved") == {"c"}
    assert of("there") == set()
    assert of("a", "b") == {"a", "b"}
    assert of("shape") == set()
    assert of("largest", known="") == set()

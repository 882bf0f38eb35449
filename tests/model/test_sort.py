from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import conv_model, make_model
from onnx import TensorProto, helper

from trtcal.errors import ModelError
from trtcal.model.nodes import copied, replaced
from trtcal.model.runner import OrtRunner
from trtcal.model.sort import is_sorted, sort

node = helper.make_node
X = np.float32([[-2, 3]])


def graph(nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def names(nodes: list[onnx.NodeProto]) -> list[str]:
    return [each.output[0] for each in nodes]


def permuted(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    model = copied(model)
    order = np.random.default_rng(seed).permutation(len(model.graph.node))
    replaced(model.graph.node, [model.graph.node[index] for index in order])
    return model


@pytest.mark.parametrize("seed", range(8))
def test_any_order_becomes_one_that_runs(seed: int) -> None:
    model = permuted(conv_model(), seed)
    sort(model)
    assert is_sorted(model)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model))
    assert sorted(names(model.graph.node)) == sorted(names(conv_model().graph.node))


def test_sorted_nodes_stay_where_they_are() -> None:
    nodes = [node("Neg", ["x"], ["b"]), node("Abs", ["x"], ["a"]), node("Add", ["a", "b"], ["y"])]
    model = make_model(nodes, {"x": ["N", 2]}, ["y"])
    before = model.SerializeToString()
    assert is_sorted(model)
    sort(model)
    assert model.SerializeToString() == before


def test_of_independent_nodes_the_first_stays_first() -> None:
    nodes = [
        node("Add", ["a", "b"], ["y"]),
        node("Exp", ["x"], ["c"]),
        node("Neg", ["x"], ["b"]),
        node("Abs", ["x"], ["a"]),
    ]
    model = make_model(nodes, {"x": ["N", 2]}, ["y", "c"])
    assert not is_sorted(model)
    sort(model)
    assert names(model.graph.node) == ["c", "b", "a", "y"]


def branching(then: list[onnx.NodeProto], after: list[onnx.NodeProto]) -> onnx.ModelProto:
    branches = {"then_branch": graph(then, "t"), "else_branch": graph([node("Abs", ["x"], ["e"])], "e")}
    return make_model(
        [node("If", ["c"], ["y"], **branches), *after], {"x": ["N", 2], "c": [1]}, ["y"], dtypes={"c": TensorProto.BOOL}
    )


def test_what_a_branch_reads_from_outside_comes_before_it() -> None:
    model = branching([node("Relu", ["late"], ["t"])], [node("Neg", ["x"], ["late"])])
    assert not is_sorted(model)
    sort(model)
    assert names(model.graph.node) == ["late", "y"]
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model))


def test_nodes_in_a_branch_are_sorted_too() -> None:
    """ONNX Runtime sorts a graph, but not the graphs inside its nodes."""
    model = branching([node("Relu", ["a"], ["t"]), node("Neg", ["x"], ["a"])], [])
    assert not is_sorted(model)
    sort(model)
    assert is_sorted(model)
    np.testing.assert_array_equal(OrtRunner(model)({"x": X, "c": np.array([True])})["y"], [[2, 0]])


def test_a_name_of_the_branch_s_own_is_not_waited_for() -> None:
    """The branch writes t and so does a node that comes later; each is its own."""
    model = branching([node("Neg", ["x"], ["t"])], [node("Exp", ["y"], ["t"])])
    assert is_sorted(model)


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ([("Relu", "y", "y")], "Relu 'y' is on a cycle: it reads what Relu 'y' writes"),
        ([("Relu", "a", "b"), ("Neg", "b", "a"), ("Abs", "b", "y")], "(Relu|Neg) '[ab]' is on a cycle"),
        ([("Abs", "b", "y"), ("Relu", "a", "b"), ("Neg", "b", "a")], "(Relu|Neg) '[ab]' is on a cycle"),
    ],
)
def test_a_cycle_is_refused_with_a_node_on_it(nodes: list[tuple[str, str, str]], found: str) -> None:
    model = make_model([node(op, [read], [written]) for op, read, written in nodes], {"x": ["N", 2]}, ["y"])
    with pytest.raises(ModelError, match=found):
        sort(model)


def test_a_node_with_a_name_is_named_by_it() -> None:
    model = branching([node("Relu", ["y"], ["t"])], [])
    model.graph.node[0].name = "switch"
    with pytest.raises(ModelError, match="If 'switch' is on a cycle"):
        sort(model)


def test_thousands_of_nodes_in_a_row_are_no_matter() -> None:
    chain = [node("Neg", [f"t{k}"], [f"t{k + 1}"]) for k in range(5000)]
    model = make_model(chain[::-1], {"t0": ["N", 2]}, ["t5000"])
    sort(model)
    assert names(model.graph.node) == [f"t{k + 1}" for k in range(5000)]

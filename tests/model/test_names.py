from __future__ import annotations

import numpy as np
import pytest
from models import conv_model, make_model
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trtcal.errors import ModelError
from trtcal.model.names import are_unique, make_unique, refuse_ambiguous
from trtcal.model.nodes import all_graphs
from trtcal.model.runner import OrtRunner

node = helper.make_node
X = np.float32([[-2, 3]])


def graph(
    nodes: list[NodeProto], output: str, inputs: dict[str, int] | None = None, **constants: np.ndarray
) -> GraphProto:
    return helper.make_graph(
        nodes,
        "b",
        [helper.make_tensor_value_info(name, dtype, None) for name, dtype in (inputs or {}).items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )


def branching(then: GraphProto, other: GraphProto, before: list[NodeProto]) -> ModelProto:
    return make_model(
        [*before, node("If", ["c"], ["y"], "if", then_branch=then, else_branch=other)],
        {"x": ["N", 2], "c": [1]},
        ["y"],
        dtypes={"c": TensorProto.BOOL},
    )


def runs(model: ModelProto, condition: bool) -> list[float]:
    return list(OrtRunner(model)({"x": X, "c": np.array([condition])})["y"].ravel())


def unchanged(model: ModelProto) -> None:
    before = model.SerializeToString()
    assert are_unique(model)
    assert make_unique(model) == ({}, {})
    assert model.SerializeToString() == before


def test_names_that_are_unique_stay() -> None:
    unchanged(conv_model())
    other = graph([node("Abs", ["x"], ["t"], "abs")], "t")
    unchanged(branching(graph([node("Neg", ["x"], ["t"], "neg")], "t"), other, []))  # branches may share names
    unchanged(branching(graph([node("Neg", ["x"], ["y"])], "y"), other, []))  # and have that of the If's own output


def test_nodes_of_one_name_get_others_and_the_first_keeps_it() -> None:
    """ONNX Runtime refuses such a model; the checker and TensorRT take it."""
    nodes = [
        node("Neg", ["x"], ["a"], "n"),
        node("Abs", ["a"], ["n_0"], "n"),
        node("Relu", ["n_0"], ["y"], "n"),
        node("Exp", ["y"], ["z"]),
    ]
    model = make_model(nodes, {"x": ["N", 2]}, ["y"])
    assert not are_unique(model)
    found = make_unique(model)
    assert [each.name for each in model.graph.node] == ["n", "n_1", "n_2", ""]
    assert found == ({"n_1": "n", "n_2": "n"}, {})
    assert are_unique(model)
    assert list(OrtRunner(model)({"x": X})["y"].ravel()) == [2, 3]


def test_nodes_of_the_graph_go_before_those_in_branches() -> None:
    then = graph([node("Neg", ["x"], ["a"], "late"), node("Relu", ["a"], ["t"], "late")], "t")
    model = branching(then, graph([node("Abs", ["x"], ["e"], "e")], "e"), [])
    model.graph.node.append(node("Exp", ["x"], ["z"], "late"))
    found = make_unique(model)
    assert [[each.name for each in body.node] for body in all_graphs(model)] == [
        ["if", "late"],
        ["e"],
        ["late_0", "late_1"],
    ]
    assert found.nodes == {"late_0": "late", "late_1": "late"}


def test_a_tensor_in_a_branch_that_hides_one_around_it_gets_another_name() -> None:
    then = graph([node("Neg", ["x"], ["a"]), node("Relu", ["a"], ["t"])], "t")
    model = branching(then, graph([node("Abs", ["a"], ["e"])], "e"), [node("Exp", ["x"], ["a"])])
    assert not are_unique(model)
    with pytest.raises(ModelError, match=r"\(SSA\)"):
        runs(model, True)
    assert make_unique(model).tensors == {"a_0": "a"}
    assert are_unique(model)
    assert runs(model, True) == [2, 0]
    assert runs(model, False) == pytest.approx(np.exp(X).ravel())  # the other branch reads the one around it


def test_a_constant_in_a_branch_may_be_the_one_that_hides() -> None:
    then = graph([node("Add", ["x", "a"], ["t"])], "t", a=np.float32([10, 20]))
    model = branching(then, graph([node("Abs", ["a"], ["e"])], "e"), [node("Exp", ["x"], ["a"])])
    assert make_unique(model).tensors == {"a_0": "a"}
    assert runs(model, True) == [8, 23]


def test_inner_bodies_read_the_renamed_tensor_unless_they_have_their_own() -> None:
    """a is written around, in the branch, and in one of two branches inside that branch."""
    own = graph([node("Neg", ["x"], ["a"]), node("Exp", ["a"], ["u"])], "u")
    reads = graph([node("Identity", ["a"], ["v"])], "v")
    then = graph(
        [
            node("Relu", ["x"], ["a"]),
            node("If", ["c"], ["i"], then_branch=own, else_branch=reads),
            node("Add", ["a", "i"], ["t"]),
        ],
        "t",
    )
    model = branching(then, graph([node("Identity", ["a"], ["e"])], "e"), [node("Abs", ["x"], ["a"])])
    assert set(make_unique(model).tensors.values()) == {"a"}
    assert are_unique(model)
    assert runs(model, True) == pytest.approx((np.maximum(X, 0) + np.exp(-X)).ravel())
    assert runs(model, False) == [2, 3]


def test_inputs_of_a_loop_s_body_may_hide_too() -> None:
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Add", ["x", "k"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info(n, t, None) for n, t in (("on", TensorProto.BOOL), ("w", TensorProto.FLOAT))],
    )
    model = make_model(
        [node("Loop", ["n", "", "x"], ["y"], body=body)],
        {"x": ["N", 2]},
        ["y"],
        {"n": np.int64(3), "k": np.float32([1, 10])},
    )
    assert make_unique(model).tensors == {"x_0": "x"}
    assert list(OrtRunner(model)({"x": X})["y"].ravel()) == [1, 33]


@pytest.mark.parametrize(
    ("name", "other"), [("a", "by Neg 'n'"), ("x", "is an input or a constant"), ("k", "is an input or a constant")]
)
def test_a_tensor_that_is_written_twice_is_refused(name: str, other: str) -> None:
    nodes = [node("Neg", ["x"], ["a"], "n"), node("Exp", ["x"], [name]), node("Add", ["a", "k"], ["y"])]
    model = make_model(nodes, {"x": ["N", 2]}, ["y"], {"k": np.float32([1])})
    with pytest.raises(
        ModelError, match=f"tensor '{name}' is written by Exp '{name}', and {other}; the file is damaged"
    ):
        refuse_ambiguous(model)


def test_outputs_that_are_left_out_share_the_empty_name() -> None:
    model = make_model(
        [node("TopK", ["x", "k"], ["", ""]), node("Neg", ["x"], ["y"])], {"x": ["N", 2]}, ["y"], {"k": np.int64([1])}
    )
    refuse_ambiguous(model)

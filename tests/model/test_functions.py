from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx.inliner
import pytest
from models import make_model
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trtcal.errors import ModelError
from trtcal.model.functions import inline, inlined
from trtcal.model.nodes import all_bodies, copied
from trtcal.model.runner import OrtRunner

node = helper.make_node
X = np.float32([[-2, -1], [0, 3]])
ANY = helper.make_tensor_value_info


def function(
    name: str,
    nodes: list[NodeProto],
    inputs: Iterable[str] = "X",
    outputs: Iterable[str] = "Y",
    *,
    opset: int = 17,
    imports: Iterable[str] = ("my",),
    **more: list[str] | list[onnx.AttributeProto],
) -> FunctionProto:
    sets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in imports)]
    return helper.make_function("my", name, list(inputs), list(outputs), nodes, sets, **more)


def call(name: str, inputs: list[str], outputs: list[str], label: str = "", **attributes: object) -> NodeProto:
    return node(name, inputs, outputs, label, domain="my", **attributes)


def model(
    nodes: list[NodeProto], *defined: FunctionProto, inputs: dict[str, list[int | str]] | None = None
) -> ModelProto:
    made = make_model(nodes, {"x": ["N", 2]} | (inputs or {}), ["y"], dtypes={"c": TensorProto.BOOL}, opset=17)
    made.opset_import.append(helper.make_opsetid("my", 1))
    made.functions.extend(defined)
    return made


def same(made: ModelProto, **more: np.ndarray) -> ModelProto:
    """Inline -> the result, which computes what ONNX Runtime makes of the functions."""
    before = made.SerializeToString()
    found = inlined(made)
    assert made.SerializeToString() == before
    expected, there = (OrtRunner(each)({"x": X, **more})["y"] for each in (made, found))
    np.testing.assert_array_equal(there, expected)
    return found


BLOCK = function("Block", [node("Neg", ["X"], ["c"], "neg"), node("Relu", ["c"], ["Y"], "relu")])
TWO = function("Two", [call("Block", ["X"], ["b"], "inner"), call("Block", ["b"], ["Y"])])


def listed(made: ModelProto) -> list[tuple[str, str, list[str], list[str]]]:
    return [(n.op_type, n.name, list(n.input), list(n.output)) for n in made.graph.node]


def test_a_function_stands_where_it_is_called_with_the_number_of_the_call_in_its_names() -> None:
    found = same(model([call("Block", ["x"], ["f"], "b1"), call("Block", ["f"], ["y"])], BLOCK))
    assert listed(found) == [
        ("Neg", "neg__1", ["x"], ["c__1"]),
        ("Relu", "relu__1", ["c__1"], ["f"]),
        ("Neg", "neg__2", ["f"], ["c__2"]),
        ("Relu", "relu__2", ["c__2"], ["y"]),
    ]
    assert not found.functions


def test_names_are_those_that_onnx_gives_so_that_caches_of_before_fit() -> None:
    made = model(
        [
            call("Two", ["x"], ["p"]),
            node("Exp", ["p"], ["c__3"]),
            call("Block", ["c__3"], ["q"]),
            call("Two", ["q"], ["y"]),
        ],
        BLOCK,
        TWO,
    )
    found = same(made)
    assert listed(found) == listed(onnx.inliner.inline_local_functions(made))
    assert [n.output[0] for n in found.graph.node] == [
        *("c__2", "b__1", "c__3_0", "p", "c__3"), *("c__4", "q"), *("c__6", "b__5", "c__7", "y"),
    ]  # fmt: skip


def test_functions_inside_branches_and_branches_inside_functions() -> None:
    weights = numpy_helper.from_array(np.float32([1, 2]), "k")
    then = helper.make_graph(
        [node("Neg", ["X"], ["t"], "n"), call("Block", ["t"], ["u"])], "then", [], [ANY("u", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [node("Add", ["X", "k"], ["e"])], "else", [], [ANY("e", TensorProto.FLOAT, None)], [weights]
    )
    branches = function(
        "Branches",
        [
            node("Abs", ["X"], ["a"]),
            node("If", ["C"], ["i"], then_branch=then, else_branch=other),
            node("Add", ["a", "i"], ["Y"]),
        ],
        "XC",
    )
    made = model(
        [call("Branches", ["x", "c"], ["q"]), call("Branches", ["q", "c"], ["y"])], BLOCK, branches, inputs={"c": [1]}
    )
    for condition in (True, False):
        same(made, c=np.array([condition]))
    around = helper.make_graph([call("Two", ["x"], ["t"])], "then", [], [ANY("t", TensorProto.FLOAT, None)])
    besides = helper.make_graph([call("Block", ["x"], ["t"])], "else", [], [ANY("t", TensorProto.FLOAT, None)])
    made = model([node("If", ["c"], ["y"], then_branch=around, else_branch=besides)], BLOCK, TWO, inputs={"c": [1]})
    for condition in (True, False):
        found = same(made, c=np.array([condition]))
    assert not any(n.domain for body in all_bodies(found) for n in body.node)


def test_a_loop_in_a_function_keeps_its_own_names() -> None:
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), call("Block", ["v"], ["w"])],
        "body",
        [ANY("i", TensorProto.INT64, []), ANY("go", TensorProto.BOOL, []), ANY("v", TensorProto.FLOAT, None)],
        [ANY("on", TensorProto.BOOL, []), ANY("w", TensorProto.FLOAT, None)],
    )
    times = node("Constant", [], ["n"], value=numpy_helper.from_array(np.int64(3)))
    loop = function("Loops", [times, node("Loop", ["n", "", "X"], ["Y"], body=body)])
    same(model([call("Loops", ["x"], ["v"]), call("Loops", ["v"], ["y"])], BLOCK, loop))


def leaky() -> NodeProto:
    made = node("LeakyRelu", ["X"], ["Y"])
    made.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    return made


@pytest.mark.parametrize(
    ("given", "default", "expected"), [(0.5, None, -1), (0.5, 0.25, -1), (None, 0.25, -0.5), (None, None, -0.02)]
)
def test_attributes_are_the_call_s_else_the_function_s_else_the_op_s(
    given: float | None, default: float | None, expected: float
) -> None:
    """Where the function has a default value, ONNX's own inliner in 1.23 takes the op's."""
    known = (
        {"attributes": ["slope"]}
        if default is None
        else {"attribute_protos": [helper.make_attribute("slope", default)]}
    )
    attributes = {} if given is None else {"slope": given}
    found = same(model([call("L", ["x"], ["y"], **attributes)], function("L", [leaky()], **known)))
    assert OrtRunner(found)({"x": X})["y"][0, 0] == np.float32(expected)


def test_inputs_that_the_call_leaves_out_are_left_out() -> None:
    clip = function("Clips", [node("Clip", ["X", "L"], ["Y"])], "XL")
    for inputs in (["x"], ["x", ""]):
        assert list(same(model([call("Clips", inputs, ["y"])], clip)).graph.node[0].input) == ["x", ""]


def test_outputs_may_be_left_out_too() -> None:
    both = function("Both", [node("Exp", ["X"], ["Z"]), node("Neg", ["X"], ["Y"])], outputs="ZY")
    found = same(model([call("Both", ["x"], ["", "y"])], both))
    assert [n.output[0] for n in found.graph.node] == ["Z__1", "y"]


def test_an_output_that_is_an_input_or_given_twice_is_copied() -> None:
    """ONNX Runtime refuses such functions; the text of ONNX does not."""
    through = function("Through", [node("Neg", ["X"], ["Y"])], outputs=["Y", "X", "Y"])
    found = inlined(model([call("Through", ["x"], ["a", "b", "d"]), node("Sum", ["a", "b", "d"], ["y"])], through))
    np.testing.assert_array_equal(OrtRunner(found)({"x": X})["y"], -X)


def test_a_domain_that_only_the_function_imports_is_imported() -> None:
    made = model(
        [call("G", ["x"], ["y"])],
        function("G", [node("Gelu", ["X"], ["Y"], domain="com.microsoft")], imports=["com.microsoft"]),
    )
    found = same(made)
    assert {entry.domain for entry in found.opset_import} == {"", "my", "com.microsoft"}


@pytest.mark.parametrize("opset", [13, 15, 18])
def test_a_function_for_another_opset_is_put_in_its_place_where_its_ops_are_the_same(opset: int) -> None:
    block = function("Block", list(BLOCK.node), opset=opset)
    assert not same(model([call("Block", ["x"], ["y"])], block)).functions


def test_a_function_whose_ops_another_opset_changed_stays_one() -> None:
    """Softmax flattened its input before opset 13."""
    old = function("Old", [call("Block", ["X"], ["b"]), node("Softmax", ["b"], ["Y"])], opset=11)
    found = same(
        model(
            [call("Block", ["x"], ["a"]), call("Old", ["a"], ["y"])],
            BLOCK,
            old,
            function("Dead", [node("Neg", ["X"], ["Y"])]),
        )
    )
    assert [n.op_type for n in found.graph.node] == ["Neg", "Relu", "Old"]
    assert [each.name for each in found.functions] == ["Block", "Old"]


def test_nodes_of_a_function_need_no_order_and_read_nothing_outside() -> None:
    unsorted = function("F", [node("Relu", ["c"], ["Y"]), node("Neg", ["X"], ["c"])])
    found = inlined(model([node("Exp", ["x"], ["c"]), call("F", ["c"], ["y"])], unsorted))
    assert listed(found)[1:] == [("Relu", "", ["c__1"], ["y"]), ("Neg", "", ["c"], ["c__1"])]
    stray = inlined(
        model([node("Exp", ["x"], ["c"]), call("F", ["x"], ["y"])], function("F", [node("Add", ["X", "c"], ["Y"])]))
    )
    assert list(stray.graph.node[1].input) == ["x", "c__1"]  # which nothing writes, as ONNX Runtime then says


@pytest.mark.parametrize("circle", [["F"], ["F", "G"], ["F", "G", "H"]])
def test_functions_that_call_themselves_are_refused(circle: list[str]) -> None:
    defined = [function(a, [call(b, ["X"], ["Y"])]) for a, b in zip(circle, circle[1:] + circle[:1], strict=True)]
    with pytest.raises(ModelError, match=r"its function my::[FGH] calls itself"):
        inlined(model([call("F", ["x"], ["y"])], *defined))


def test_functions_that_stand_for_too_many_nodes_are_refused() -> None:
    doubling = [
        function(f"F{k}", [call(f"F{k - 1}", ["X"], ["a"]), call(f"F{k - 1}", ["a"], ["Y"])]) for k in range(1, 64)
    ]
    with pytest.raises(ModelError, match=r"stand for \d{19} nodes; at most 1000000"):
        inlined(model([call("F63", ["x"], ["y"])], function("F0", [node("Neg", ["X"], ["Y"])]), *doubling))


def test_calls_may_go_thousands_deep() -> None:
    chain = [function(f"F{k}", [call(f"F{k - 1}", ["X"], ["a"]), node("Neg", ["a"], ["Y"])]) for k in range(1, 3000)]
    found = inlined(model([call("F2999", ["x"], ["y"])], function("F0", [node("Neg", ["X"], ["Y"])]), *chain))
    assert len(found.graph.node) == 3000


def test_graphs_in_functions_in_graphs_too_deep_for_a_file_are_refused() -> None:
    def inside(name: str) -> onnx.GraphProto:
        return helper.make_graph([call(name, ["X", "C"], ["t"])], "b", [], [ANY("t", TensorProto.FLOAT, None)])

    def branches(k: int) -> NodeProto:
        return node("If", ["C"], ["Y"], then_branch=inside(f"F{k - 1}"), else_branch=inside("F0"))

    chain = [function(f"F{k}", [branches(k)], "XC") for k in range(1, 100)]
    last = function("F0", [node("Neg", ["X"], ["Y"])], "XC")
    with pytest.raises(ModelError, match="more than 30 graphs inside each other"):
        inlined(model([call("F99", ["x", "c"], ["y"])], last, *chain, inputs={"c": [1]}))


def test_a_call_with_more_than_the_function_has_is_refused() -> None:
    for inputs, outputs in ((["x", "x"], ["y"]), (["x"], ["y", "z"])):
        with pytest.raises(
            ModelError, match=r"node 'b' calls my::Block with . inputs and . outputs; the function has 1 and 1"
        ):
            inlined(model([call("Block", inputs, outputs, "b")], BLOCK))


def test_a_function_is_called_by_domain_name_and_overload() -> None:
    exp = function("Block", [node("Exp", ["X"], ["Y"])])
    exp.overload = "b"
    called = call("Block", ["x"], ["f"])
    called.overload = "b"
    found = inlined(
        model([called, call("Block", ["f"], ["g"]), node("Block", ["g"], ["y"], domain="other")], BLOCK, exp)
    )
    assert [n.op_type for n in found.graph.node] == ["Exp", "Neg", "Relu", "Block"]


def test_what_the_functions_call_their_nodes_and_tensors_is_remembered() -> None:
    found = inline(copied(model([call("Two", ["x"], ["y"])], BLOCK, TWO)))
    assert found.tensors == {"b__1": "b", "c__2": "c", "c__3": "c"}
    assert {name: found.nodes[name] for name in ("neg__2", "relu__3")} == {"neg__2": "neg", "relu__3": "relu"}

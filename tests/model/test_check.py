from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, make_model, save
from onnx import TensorProto, helper

from trtcal.errors import ModelError
from trtcal.model.check import check_file

node = helper.make_node
FLOATS = TensorProto.FLOAT


def of_another_domain(*nodes: onnx.NodeProto, typed: dict[str, int] | None = None) -> onnx.ModelProto:
    """x (N, 4) -> nodes -> y, with ops of my.ops among them."""
    model = make_model(list(nodes), {"x": ["N", 4]}, ["y"], {"w": np.ones((4, 4), np.float32)})
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOATS, ["N", 4]))
    for name, type in (typed or {}).items():
        model.graph.value_info.append(helper.make_tensor_value_info(name, type, None))
    return model


def test_a_good_model_passes_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_file(save(conv_model(), tmp_path / "m.onnx"), "m.onnx")
    assert not caplog.records


def test_a_model_that_cannot_be_loaded_is_an_error_with_its_future_name(tmp_path: Path) -> None:
    """An output that says int8 while it is float: ONNX's checker does not infer types, ONNX Runtime does."""
    model = conv_model()
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    file = save(model, tmp_path / "temporary")
    onnx.checker.check_model(model)
    with pytest.raises(
        ModelError, match=r"^q\.onnx: ONNX Runtime cannot load it: .*int8.*; it is not written$"
    ) as caught:
        check_file(file, "q.onnx", file)
    assert "temporary" not in str(caught.value)


def test_what_the_checker_refuses_is_an_error_unless_it_refused_the_source_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = conv_model()
    model.graph.name = ""
    file = save(model, tmp_path / "temporary")
    sound = save(conv_model(), tmp_path / "sound.onnx")
    for source in (None, sound):
        with pytest.raises(ModelError, match=r"^q\.onnx: is not written, since ONNX's checker refuses it: .*'graph'"):
            check_file(file, "q.onnx", source)
    assert not caplog.records
    check_file(file, "q.onnx", save(model, tmp_path / "m.onnx"))
    assert "q.onnx: ONNX's checker refuses it as it does" in caplog.text
    check_file(file, "q.onnx", model)
    assert "q.onnx: ONNX's checker refuses it as it does the model that was given" in caplog.text


def test_a_source_that_is_wrong_in_another_way_is_no_excuse(tmp_path: Path) -> None:
    model, other = conv_model(), conv_model()
    model.graph.name = ""
    other.graph.output[0].ClearField("type")
    with pytest.raises(ModelError, match=r"is not written, since ONNX's checker refuses it: .*'graph'"):
        check_file(save(model, tmp_path / "a"), "q.onnx", save(other, tmp_path / "b"))


def test_all_but_what_depends_on_unknown_ops_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = of_another_domain(
        node("MatMul", ["x", "w"], ["m"]),
        node("Strange", ["m"], ["s"], domain="my.ops"),
        node("Stranger", ["m"], ["t"], domain="my.ops"),
        node("Add", ["s", "t"], ["y"]),
    )
    check_file(save(model, tmp_path / "m"), "m.onnx")
    assert (
        "m.onnx: ONNX Runtime does not know my.ops::Strange, my.ops::Stranger, and has loaded 1 of its 4 nodes; "
        "ONNX's checker has seen all"
    ) in caplog.text


def test_what_follows_an_unknown_op_is_loaded_where_its_type_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = of_another_domain(
        node("Strange", ["x"], ["s"], domain="my.ops"), node("MatMul", ["s", "w"], ["y"]), typed={"s": FLOATS}
    )
    check_file(save(model, tmp_path / "m"), "m.onnx")
    assert "has loaded 1 of its 2 nodes" in caplog.text
    wrong = of_another_domain(
        node("Strange", ["x"], ["s"], domain="my.ops"),
        node("MatMul", ["s", "w"], ["y"]),
        typed={"s": TensorProto.INT8},
    )
    with pytest.raises(ModelError, match=r"m\.onnx: ONNX Runtime cannot load it: .*MatMul.*it is not written"):
        check_file(save(wrong, tmp_path / "m"), "m.onnx")


def test_what_is_wrong_beside_an_unknown_op_is_found(tmp_path: Path) -> None:
    model = of_another_domain(
        node("Strange", ["x"], ["s"], domain="my.ops"),
        node("Conv", ["x", "w"], ["c"]),  # of two axes: no kernel has that
        node("Add", ["s", "c"], ["y"]),
    )
    model.graph.node[1].attribute.append(helper.make_attribute("kernel_shape", [1, 1]))
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load it.*it is not written"):
        check_file(save(model, tmp_path / "m"), "m.onnx")


def test_unknown_ops_in_bodies_and_functions_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = helper.make_graph(
        [node("Strange", ["x"], ["inner"], domain="my.ops")], "b", [], [helper.make_tensor_value_info("inner", 1, None)]
    )
    model = of_another_domain(
        node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True))),
        node("If", ["yes"], ["i"], then_branch=body, else_branch=body),
        node("Add", ["i", "x"], ["y"]),
    )
    check_file(save(model, tmp_path / "m"), "m.onnx")
    assert "does not know my.ops::Strange, and has loaded 2 of its 3 nodes" in caplog.text
    caplog.clear()
    called = of_another_domain(node("Block", ["x"], ["b"], domain="mine"), node("MatMul", ["x", "w"], ["y"]))
    called.opset_import.append(helper.make_opsetid("mine", 1))
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("my.ops", 1)]
    strange = node("Strange", ["a"], ["c"], domain="my.ops")
    called.functions.append(helper.make_function("mine", "Block", ["a"], ["c"], [strange], imports))
    check_file(save(called, tmp_path / "m"), "m.onnx")
    assert "does not know my.ops::Strange, and has loaded 1 of its 2 nodes" in caplog.text


def test_a_model_of_nothing_but_unknown_ops_is_left_to_the_checker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = of_another_domain(node("Strange", ["x"], ["y"], domain="my.ops"))
    check_file(save(model, tmp_path / "m"), "m.onnx")
    assert "has loaded 0 of its 1 nodes" in caplog.text


def test_an_op_without_a_kernel_on_a_cpu_is_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(
        [
            node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
            node("Sigmoid", ["b"], ["s"]),
            node("Relu", ["x"], ["y"]),
        ],
        {"x": [1, 2]},
        ["y", "s"],
    )
    check_file(save(model, tmp_path / "m"), "m.onnx")
    assert "does not know Sigmoid, and has loaded 2 of its 3 nodes" in caplog.text


def test_a_plugin_in_onnx_s_own_domain_is_written_where_it_was_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As TensorRT's users write their plugins; ONNX's checker refuses those, of the source as well."""
    model = make_model(
        [node("MatMul", ["x", "w"], ["m"]), node("My_Plugin_TRT", ["m"], ["y"])],
        {"x": ["N", 4]},
        [],
        {"w": np.ones((4, 4), np.float32)},
    )
    model.graph.output.append(helper.make_tensor_value_info("y", FLOATS, ["N", 4]))
    file = save(model, tmp_path / "m")
    with pytest.raises(ModelError, match="checker refuses it: No Op registered for My_Plugin_TRT with this opset"):
        check_file(file, "m.onnx")
    check_file(file, "m.onnx", file)
    assert "ONNX Runtime does not know My_Plugin_TRT, and has loaded 1 of its 2 nodes" in caplog.text
    older = onnx.ModelProto()
    older.CopyFrom(model)
    older.opset_import[0].version = 9
    check_file(file, "m.onnx", older)  # the opset in the checker's words is another one, as after raising it

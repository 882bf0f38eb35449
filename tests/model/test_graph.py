from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import conv_model, images, make_model, save
from onnx import TensorProto, helper

from trtcal.calibration.calibrate import open_graph
from trtcal.errors import ModelError
from trtcal.model.graph import (
    all_bodies,
    array_of,
    batch_size,
    calibration_graph,
    constants_of,
    external_files,
    load_model,
    model_inputs,
    refuse_damaged,
    set_batch_size,
)
from trtcal.model.runner import OrtRunner

node = helper.make_node


def test_what_tensorrt_calibrates_is_visible_in_topological_order(tmp_path: Path) -> None:
    graph = calibration_graph(save(conv_model(), tmp_path / "m.onnx"))
    assert graph.visible == ("image", "conv", "relu", "sum", "logits")
    assert graph.carried == {"pool": "relu", "flat": "sum"}
    assert list(graph.constants) == ["offset_output", "gw_output"]
    assert graph.order == (
        "image", "conv", "relu", "pool", "offset_output", "sum", "flat", "gw_output", "logits",
    )  # fmt: skip
    assert {output.name for output in graph.model.graph.output} == {"conv", "relu", "sum", "logits"}


def test_a_scale_is_carried_through_chains_to_its_first_source(tmp_path: Path) -> None:
    model = make_model(
        [
            node("Relu", ["x"], ["a"]),
            node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
            node("Identity", ["b"], ["c"]),
            node("Resize", ["c", "", "s"], ["d"], mode="nearest"),
            node("Resize", ["d", "", "s"], ["e"], mode="linear"),
        ],
        {"x": ["N", 4, 4]},
        ["e"],
        {"s": np.array([1, 1, 2], np.float32)},
    )
    graph = calibration_graph(save(model, tmp_path / "m.onnx"))
    assert graph.carried == {"b": "a", "c": "a", "d": "a"}
    assert graph.visible == ("x", "a", "e")
    assert graph.constants == {}


def test_weights_are_no_tensors_but_operands_are(tmp_path: Path) -> None:
    model = make_model(
        [
            node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(np.float32([2.0]))),
            node("Constant", [], ["f"], value_floats=[3.0, 4.0, 5.0]),
            node("Identity", ["s"], ["same"]),
            node("BatchNormalization", ["x", "same", "b", "m", "v"], ["n"]),
            node("Mul", ["n", "k"], ["z"]),
            node("Mul", ["z", "f"], ["y"]),
        ],
        {"x": ["N", 2, 3]},
        ["y"],
        {name: np.ones(2, np.float32) for name in "sbmv"},
    )
    graph = calibration_graph(save(model, tmp_path / "m.onnx"))
    assert list(graph.constants) == ["k_output", "f_output"]
    assert graph.constants["f_output"].tolist() == [3, 4, 5]
    assert graph.visible == ("x", "n", "z", "y")
    assert graph.constants["k_output"].tolist() == [2.0]


def test_tensors_in_subgraphs_are_counted_and_stay_hidden(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [node("Neg", ["x"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )

    model = make_model(
        [node("If", ["c"], ["y"], then_branch=branch("t"), else_branch=branch("e"))],
        {"x": ["N", 2], "c": [1]},
        ["y"],
        dtypes={"c": TensorProto.BOOL},
    )
    graph = calibration_graph(save(model, tmp_path / "m.onnx"))
    assert graph.hidden == 2
    assert graph.visible == ("x", "y")


def test_inputs_are_described_without_initializers_and_without_the_batch_axis(tmp_path: Path) -> None:
    model = make_model(
        [node("Gather", ["table", "ids"], ["e"]), node("Mul", ["e", "x"], ["y"])],
        {"table": [7, 4], "ids": ["N", 3], "x": ["N", "T", 4]},
        ["y"],
        {"table": np.ones((7, 4), np.float32)},
        dtypes={"ids": TensorProto.INT64},
    )
    assert [str(spec) for spec in model_inputs(model)] == ["ids: int64 (N, 3)", "x: float32 (N, ?, 4)"]
    assert [spec.shape for spec in model_inputs(model)] == [(3,), (None, 4)]


@pytest.mark.parametrize("size", [1, 3, None])
def test_a_fixed_batch_size_is_rewritten_where_the_graph_allows(tmp_path: Path, size: int | None) -> None:
    fixed, free = conv_model(batch=2), conv_model()
    assert (batch_size(fixed), batch_size(free)) == (2, None)
    changed = set_batch_size(fixed, size, tmp_path)
    assert batch_size(changed) == size
    assert batch_size(fixed) == 2
    x = images(size or 5)
    np.testing.assert_array_equal(OrtRunner(changed)({"image": x})["logits"], OrtRunner(free)({"image": x})["logits"])


@pytest.mark.parametrize("attribute", ["value", "value_ints"])
def test_the_batch_size_is_rewritten_in_a_shape_that_a_node_holds(tmp_path: Path, attribute: str) -> None:
    model = conv_model(batch=2)
    (shape,) = [tensor for tensor in model.graph.initializer if tensor.name == "shape"]
    value = shape if attribute == "value" else onnx.numpy_helper.to_array(shape).tolist()
    model.graph.node.insert(0, node("Constant", [], ["held"], **{attribute: value}))
    model.graph.node[5].input[1] = "held"
    x = {"image": images(3)}
    found = OrtRunner(set_batch_size(model, 3, tmp_path))(x)["logits"]
    np.testing.assert_array_equal(found, OrtRunner(conv_model())(x)["logits"])


@pytest.mark.parametrize("elsewhere", ["no file of that name", "a file of that name"])
def test_a_shape_beside_the_model_is_read_from_the_model_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: str
) -> None:
    folder, cwd = tmp_path / "models", tmp_path / "cwd"
    folder.mkdir()
    cwd.mkdir()
    onnx.save(conv_model(2), folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    if elsewhere.startswith("a"):
        (cwd / "w.bin").write_bytes(bytes(100_000))
    monkeypatch.chdir(cwd)
    changed = set_batch_size(load_model(Path("../models/m.onnx")), 3, "../models")
    x = {"image": images(3)}
    found = OrtRunner(changed, folder=folder)(x)["logits"]
    np.testing.assert_array_equal(found, OrtRunner(conv_model())(x)["logits"])
    assert open_graph("../models/m.onnx").inputs == model_inputs(conv_model(1))


def test_a_constant_in_a_file_is_not_looked_for_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv_model(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"constant 'w': still in an external file.*onnx\.load"):
        array_of(load_model(path).graph.initializer[0])


def renamed(model: onnx.ModelProto, domain: str) -> onnx.ModelProto:
    """With all nodes in this domain, which is imported beside ONNX's own."""
    for each in model.graph.node:
        each.domain = domain
    model.opset_import.append(helper.make_opsetid(domain, 13))
    return model


def test_the_other_name_of_onnx_s_own_domain_changes_nothing(tmp_path: Path) -> None:
    plain = calibration_graph(save(conv_model(2), tmp_path / "m.onnx"))
    alias = calibration_graph(save(renamed(conv_model(2), "ai.onnx"), tmp_path / "m.onnx"))
    assert (alias.visible, alias.carried, alias.order) == (plain.visible, plain.carried, plain.order)
    changed = set_batch_size(renamed(conv_model(2), "ai.onnx"), 3, tmp_path)
    assert OrtRunner(changed)({"image": images(3)})["logits"].shape == (3, 5)
    del changed.graph.node[0].input[:]
    with pytest.raises(ModelError, match="a Conv has at least 2 and 1"):
        refuse_damaged(changed)


def test_an_op_of_another_domain_is_not_taken_for_onnx_s_of_that_name(tmp_path: Path) -> None:
    model = renamed(
        make_model(
            [node("Resize", ["x"], ["a"]), node("Conv", ["a", "w"], ["y"])],
            {"x": [1, 2]},
            ["y"],
            {"w": np.ones(2, np.float32)},
        ),
        "my.ops",
    )
    graph = calibration_graph(save(model, tmp_path / "m.onnx"))
    assert graph.carried == {}
    assert graph.visible == ("x", "a", "y")
    assert list(graph.constants) == ["w_output"]  # which may be any tensor of that op's
    model = renamed(
        make_model(
            [
                node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(np.ones(2))),
                node("Identity", ["w"], ["i"]),
            ],
            {"x": [1, 2]},
            ["k", "i"],
            {"w": np.ones(2, np.float32)},
        ),
        "my.ops",
    )
    assert list(constants_of(model.graph)) == ["w"]
    assert calibration_graph(save(model, tmp_path / "m.onnx")).visible == ("x", "k", "i")


def test_an_op_that_its_opset_does_not_have_may_be_of_any_form(tmp_path: Path) -> None:
    model = make_model([node("Resize", [], ["a"]), node("Add", ["x", "a"], ["y"])], {"x": [1, 2]}, ["y"], opset=9)
    assert calibration_graph(save(model, tmp_path / "m.onnx")).visible == ("x", "a", "y")


def test_all_numbers_that_a_constant_node_can_hold_are_constants() -> None:
    values: dict[str, Any] = {"value_float": 0.5, "value_floats": [1.5, 2.5], "value_int": 3, "value_ints": [4, 5]}
    nodes = [node("Constant", [], [name], **{name: value}) for name, value in values.items()]
    others = [node("Constant", [], ["text"], value_string="a"), node("Identity", ["value_ints"], ["same"])]
    constants = constants_of(make_model([*nodes, *others], {"x": [1]}, ["text"]).graph)
    assert {name: constant.name for name, constant in constants.items()} == {
        **{name: name for name in values},
        "same": "value_ints",
    }
    found = {name: array_of(constants[name].tensor) for name in values}
    assert {name: array.tolist() for name, array in found.items()} == values
    assert [array.dtype for array in found.values()] == [np.float32, np.float32, np.int64, np.int64]


def test_a_body_inside_a_function_is_looked_at_as_any_other() -> None:
    broken = helper.make_graph([node("Add", ["a"], ["t"])], "g", [], [helper.make_tensor_value_info("t", 1, None)])
    inside = node("If", ["c"], ["b"], then_branch=broken, else_branch=broken)
    model = make_model([node("F", ["c"], ["y"], domain="own")], {"c": [1]}, ["y"], dtypes={"c": TensorProto.BOOL})
    model.functions.append(helper.make_function("own", "F", ["c"], ["b"], [inside], [helper.make_opsetid("", 13)]))
    assert [body.name for body in all_bodies(model)] == ["g", "g", "g", "F"]
    with pytest.raises(ModelError, match="a Add has at least 2 and 1"):
        refuse_damaged(model)


def test_inputs_that_fix_different_batch_sizes_are_refused() -> None:
    model = make_model([node("Concat", ["a", "b"], ["y"], axis=0)], {"a": [2, 3], "b": [4, 3]}, ["y"])
    with pytest.raises(ModelError, match=r"different batch sizes \(a: 2, b: 4\)"):
        batch_size(model)


def test_external_data_is_found_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    assert external_files(load_model(path)) == ["weights.bin"]
    graph = calibration_graph(path)
    assert graph.constants["offset_output"].ravel().tolist() == [-1.0, 0.5, 0.25, 1.0]
    x = {"image": images(1)}
    inline = OrtRunner(conv_model())(x)["logits"]
    np.testing.assert_array_equal(OrtRunner(graph.model, folder=tmp_path, outputs=["logits"])(x)["logits"], inline)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"m\.onnx: its external data file 'weights.bin' is missing"):
        load_model(path)


def test_weights_of_a_branch_without_nodes_are_among_the_files_of_a_model() -> None:
    def branch(name: str) -> onnx.GraphProto:
        tensor = helper.make_tensor(name, TensorProto.FLOAT, [2], [1.0, 2.0])
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{name}.bin")
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
        return helper.make_graph([], name, [], [made], initializer=[tensor])

    choose = helper.make_node("If", ["c"], ["y"], then_branch=branch("one"), else_branch=branch("two"))
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    model = helper.make_model(helper.make_graph([choose], "g", [condition], [answer]))
    assert external_files(model) == ["one.bin", "two.bin"]


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", ""])
def test_external_data_may_not_leave_the_models_folder(location: str) -> None:
    model = conv_model()
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    with pytest.raises(ModelError, match="leaves the model's folder"):
        external_files(model)


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x08\x07", bytes(range(256))])
def test_a_file_that_is_not_onnx_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"photo\.onnx: is not an ONNX"):
        load_model(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.onnx: cannot be read: No such file"):
        load_model(tmp_path / "gone.onnx")


def test_an_opset_too_old_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="opset 8 is older than 9"):
        load_model(save(make_model([node("Relu", ["x"], ["y"])], {"x": ["N", 2]}, ["y"], opset=8), tmp_path / "m.onnx"))


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    model = make_model(
        [node("QuantizeLinear", ["x", "s"], ["q"]), node("DequantizeLinear", ["q", "s"], ["y"])],
        {"x": ["N", 2]},
        ["y"],
        {"s": np.float32(1)},
    )
    with pytest.raises(ModelError, match="already quantized"):
        calibration_graph(save(model, tmp_path / "m.onnx"))


def test_inputs_without_a_batch_axis_or_of_no_tensor_type_are_refused() -> None:
    with pytest.raises(ModelError, match="'x' has no batch axis"):
        model_inputs(make_model([node("Relu", ["x"], ["y"])], {"x": []}, ["y"]))
    sequence = make_model([node("Relu", ["x"], ["y"])], {"x": ["N"]}, ["y"])
    sequence.graph.input[0].type.Clear()
    sequence.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(ModelError, match="'x' is no tensor"):
        model_inputs(sequence)
    with pytest.raises(ModelError, match="no inputs to feed"):
        model_inputs(make_model([node("Relu", ["x"], ["y"])], {"x": ["N"]}, ["y"], {"x": np.ones(2, np.float32)}))

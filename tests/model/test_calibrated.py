from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, images, make_model, save
from onnx import TensorProto, helper

from trtcal.calibration.calibrate import calibrate
from trtcal.errors import ModelError
from trtcal.model.batch_axis import set_batch_size
from trtcal.model.calibrated import with_outputs
from trtcal.model.nodes import constants_of
from trtcal.model.open import open_model
from trtcal.model.read import external_files, load_model, refuse_damaged
from trtcal.model.runner import OrtRunner

node = helper.make_node


def test_what_tensorrt_calibrates_is_visible_in_topological_order(tmp_path: Path) -> None:
    graph = open_model(save(conv_model(), tmp_path / "m.onnx")).calibrated
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
    graph = open_model(save(model, tmp_path / "m.onnx")).calibrated
    assert graph.carried == {"b": "a", "c": "a", "d": "a"}
    assert graph.visible == ("x", "a", "e")
    assert graph.constants == {}


@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
def test_behind_a_pool_a_reshape_is_measured_and_what_follows_it_carries_its_scale(pool: str) -> None:
    model = make_model(
        [
            node(pool, ["x"], ["p"], kernel_shape=[2, 2]),
            node("Identity", ["p"], ["i"]),
            node("Transpose", ["i"], ["t"], perm=[0, 2, 3, 1]),  # not measured itself
            node("Flatten", ["t"], ["f"]),
            node("Transpose", ["f"], ["g"], perm=[1, 0]),
            node("Reshape", ["g", "s"], ["h"]),
            node(pool, ["h"], ["q"], kernel_shape=[1, 1]),
            node("Squeeze", ["q"], ["r"]),
            node("Reshape", ["p", "s"], ["y"]),
        ],
        {"x": [1, 2, 4, 4]},
        ["r", "y"],
        {"s": np.array([1, 1, -1, 1], np.int64)},
    )
    graph = open_model(model).calibrated
    assert graph.carried == {"p": "x", "i": "x", "t": "x", "g": "f", "h": "f", "q": "f"}
    assert graph.visible == ("x", "f", "r", "y")


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
    graph = open_model(save(model, tmp_path / "m.onnx")).calibrated
    assert list(graph.constants) == ["k_output", "f_output"]
    assert graph.constants["f_output"].tolist() == [3, 4, 5]
    assert graph.visible == ("x", "n", "z", "y")
    assert graph.constants["k_output"].tolist() == [2.0]


def test_a_tensor_that_is_called_as_the_output_of_a_constant_keeps_its_own_range() -> None:
    """It got that of the constant."""
    model = make_model(
        [node("Mul", ["x", "c"], ["c_output"]), node("Relu", ["c_output"], ["y"])],
        {"x": ["N", 4]},
        ["y"],
        {"c": np.full(4, 100, np.float32)},
    )
    graph = open_model(model).calibrated
    assert graph.order == graph.visible == ("x", "c_output", "y")
    assert graph.constants == {}
    found = calibrate(model, [{"x": np.full((2, 4), 0.5, np.float32)}], "minmax").cache.scales
    assert found["c_output"] == found["y"] == np.float32(50) / np.float32(127)


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
    graph = open_model(save(model, tmp_path / "m.onnx")).calibrated
    assert graph.hidden == 2
    assert graph.visible == ("x", "y")


def renamed(model: onnx.ModelProto, domain: str) -> onnx.ModelProto:
    """With all nodes in this domain, which is imported beside ONNX's own."""
    for each in model.graph.node:
        each.domain = domain
    model.opset_import.append(helper.make_opsetid(domain, 13))
    return model


def test_the_other_name_of_onnx_s_own_domain_changes_nothing(tmp_path: Path) -> None:
    plain = open_model(save(conv_model(2), tmp_path / "m.onnx")).calibrated
    alias = open_model(save(renamed(conv_model(2), "ai.onnx"), tmp_path / "m.onnx")).calibrated
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
    graph = open_model(save(model, tmp_path / "m.onnx")).calibrated
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
    assert open_model(save(model, tmp_path / "m.onnx")).calibrated.visible == ("x", "k", "i")


def test_an_op_that_its_opset_does_not_have_may_be_of_any_form(tmp_path: Path) -> None:
    model = make_model([node("Resize", [], ["a"]), node("Add", ["x", "a"], ["y"])], {"x": [1, 2]}, ["y"], opset=9)
    assert open_model(save(model, tmp_path / "m.onnx")).calibrated.visible == ("x", "a", "y")


def test_external_data_is_found_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    assert external_files(load_model(path)) == ["weights.bin"]
    graph = open_model(path).calibrated
    assert graph.constants["offset_output"].ravel().tolist() == [-1.0, 0.5, 0.25, 1.0]
    x = {"image": images(1)}
    inline = OrtRunner(conv_model())(x)["logits"]
    np.testing.assert_array_equal(OrtRunner(graph.model, folder=tmp_path, outputs=["logits"])(x)["logits"], inline)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"m\.onnx: its external data file 'weights.bin' is missing"):
        load_model(path)


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    model = make_model(
        [node("QuantizeLinear", ["x", "s"], ["q"]), node("DequantizeLinear", ["q", "s"], ["y"])],
        {"x": ["N", 2]},
        ["y"],
        {"s": np.float32(1)},
    )
    with pytest.raises(ModelError, match="already quantized"):
        _ = open_model(save(model, tmp_path / "m.onnx")).calibrated


def test_tensors_are_shown_in_a_copy_and_only_once() -> None:
    model = conv_model()
    before = model.SerializeToString()
    shown = with_outputs(model, ["image", "pool", "logits"])
    assert [value.name for value in shown.graph.output] == ["logits", "pool"]
    assert model.SerializeToString() == before

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import make_model
from onnx import TensorProto, helper
from plugins import detector, doubled, images, library, twice

from trtcal.calibration.calibrate import calibrate
from trtcal.errors import ModelError, NonFiniteError, SettingError
from trtcal.model.open import Model, open_model
from trtcal.model.runner import OrtRunner
from trtcal.model.unknown import Op

node = helper.make_node
NMS = Op("TRT", "EfficientNMS_TRT")
BATCHES = [{"image": images(4)}, {"image": images(4, seed=1)}]


def ends(model: Model) -> list[str]:
    return [value.name for value in model.unknown.ends]


def with_ops(nodes: list[onnx.NodeProto], outputs: list[str], **more: int) -> onnx.ModelProto:
    """x (N, 4) -> nodes -> outputs, with operators of my.ops among them."""
    model = make_model(nodes, {"x": ["N", 4]}, outputs, {"w": np.ones((4, 4), np.float32)}, **more)
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    return model


def test_onnx_runtime_knows_all_of_an_ordinary_model() -> None:
    model = open_model(doubled())
    assert not model.unknown
    assert model.reached(model.proto) is model.proto
    assert model.for_judging() is model


def test_a_quantized_model_is_refused_before_onnx_is_asked_of_what_an_unknown_operator_leaves() -> None:
    """ONNX 1.16 ends the process at a pair of opset 21 that reads a tensor without a type."""
    nodes = [
        node("Mystery", ["x"], ["v"]),
        node("QuantizeLinear", ["v", "s"], ["q"], output_dtype=TensorProto.INT8),
        node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [1.0])
    graph = helper.make_graph(nodes, "g", [x], [y], [scale])
    model = open_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    with pytest.raises(ModelError, match="already quantized"):
        _ = model.calibrated
    assert list(model.unknown.tensors) == ["v", "q", "y"]


def test_operators_that_onnx_runtime_adds_to_onnx_s_own_are_known() -> None:
    model = with_ops([node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", alpha=2.0)], ["y"])
    assert not open_model(model).unknown


def test_one_that_it_has_a_name_for_and_no_kernel_is_unknown() -> None:
    model = make_model(
        [node("NhwcConv", ["x", "w"], ["y"], domain="com.microsoft")],
        {"x": ["N", 4, 4, 3]},
        ["y"],
        {"w": np.ones((2, 3, 1, 1), np.float32)},
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert open_model(model).unknown.ops == {Op("com.microsoft", "NhwcConv"): "has no kernel for a CPU"}


@pytest.mark.parametrize(
    ("domain", "imported", "said"),
    [
        ("TRT", True, "by its name a plugin of TensorRT"),
        ("TRT", False, "by its name a plugin of TensorRT, the file does not import its domain TRT"),
        ("", True, "by its name a plugin of TensorRT"),
        ("ai.onnx", True, "by its name a plugin of TensorRT"),
    ],
)
@pytest.mark.parametrize("op", ["EfficientNMS_TRT", "BatchedNMSDynamic_TRT"])
def test_a_plugin_at_the_end_is_unknown_in_any_domain(domain: str, imported: bool, said: str, op: str) -> None:
    unknown = open_model(detector(op, domain, imported=imported and domain == "TRT")).unknown
    assert unknown.ops == {Op("TRT" if domain == "TRT" else "", op): said}
    assert list(unknown.tensors) == ["num", "dets"]
    assert unknown.uncalibrated == ("dets",)  # the other one is declared int32
    assert unknown.missing == ("num", "dets")
    assert [value.name for value in unknown.ends] == ["boxes", "scores"]


def test_ranges_of_what_is_reached_are_those_of_the_model_cut_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    whole, cut = calibrate(detector(), BATCHES), calibrate(detector(whole=False), BATCHES)
    assert whole.cache.format() == cut.cache.format()
    assert whole.stats.to_bytes() == cut.stats.to_bytes()
    assert whole.unusable == {"dets": "depends on TRT::EfficientNMS_TRT, an operator that ONNX Runtime does not know"}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "model: ONNX Runtime does not know TRT::EfficientNMS_TRT (by its name a plugin of TensorRT); 1 tensor that "
        "depends on it gets no range: 'dets'"
    ]


def test_from_an_operator_in_the_middle_on_nothing_is_reached_but_what_does_not_depend_on_it() -> None:
    model = with_ops(
        [
            node("MatMul", ["x", "w"], ["a"]),
            node("Strange", ["a"], ["s"], domain="my.ops"),
            node("MatMul", ["s", "w"], ["b"]),
            node("Relu", ["a"], ["r"]),
            node("Add", ["b", "r"], ["y"]),
        ],
        ["y", "r"],
    )
    batches = [{"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}]
    found = calibrate(model, batches)
    assert list(found.cache.scales) == ["x", "w_output", "a", "r"]
    assert list(found.unusable) == ["s", "b", "y"]
    opened = open_model(model)
    assert opened.unknown.ops == {Op("my.ops", "Strange"): ""}
    assert ends(opened) == ["r"]  # an output is left
    assert [spec.name for spec in opened.for_judging().outputs] == ["r"]


def test_where_no_output_is_left_what_goes_into_the_operators_is_compared() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Cast", ["a"], ["i"], to=TensorProto.INT64),
        node("Strange", ["a", "i", "x"], ["s"], domain="my.ops"),
        node("MatMul", ["x", "w"], ["b"]),
        node("Add", ["b", "s"], ["y"]),
    ]
    assert ends(open_model(with_ops(nodes, ["y"]))) == ["a"]  # no whole numbers, and not the model's input
    nodes[2] = node("Strange", ["i"], ["s"], domain="my.ops")
    assert ends(open_model(with_ops(nodes, ["y"]))) == ["b"]  # what stands next to them, where these read no floats


@pytest.mark.parametrize("inside", ["If", "Loop", "Scan"])
def test_an_operator_inside_a_body_makes_the_whole_node_unknown(inside: str) -> None:
    value = helper.make_tensor_value_info
    strange = node("Strange", ["r"], ["inner"], domain="my.ops")
    if inside == "If":
        body = helper.make_graph([strange], "b", [], [value("inner", TensorProto.FLOAT, None)])
        outer = [
            node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True))),
            node("If", ["yes"], ["y"], then_branch=body, else_branch=body),
        ]
    elif inside == "Loop":
        inputs = [value("n", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("v", 1, None)]
        same = node("Identity", ["go"], ["on"])
        body = helper.make_graph([strange, same], "b", inputs, [value("on", 9, []), value("inner", 1, None)])
        outer = [
            node("Constant", [], ["times"], value=onnx.numpy_helper.from_array(np.array(2))),
            node("Loop", ["times", "", "r"], ["y"], body=body),
        ]
    else:
        strange.input[0] = "row"
        body = helper.make_graph([strange], "b", [value("row", 1, [4])], [value("inner", 1, [4])])
        outer = [node("Scan", ["r"], ["y"], body=body, num_scan_inputs=1)]
    model = with_ops([node("MatMul", ["x", "w"], ["m"]), node("Relu", ["m"], ["r"]), *outer], ["y"])
    found = calibrate(model, [{"x": np.ones((2, 4), np.float32)}])
    assert list(found.cache.scales) == ["x", "w_output", "m", "r"]
    assert found.unusable == {"y": "depends on my.ops::Strange, an operator that ONNX Runtime does not know"}
    assert ends(open_model(model)) == ["r"]


def test_an_operator_inside_a_function_that_stays_one_makes_its_calls_unknown() -> None:
    imports = [helper.make_opsetid("", 9), helper.make_opsetid("my.ops", 1)]
    body = [node("Strange", ["a"], ["s"], domain="my.ops"), node("Softmax", ["s"], ["c"])]  # another one from 13 on
    model = with_ops([node("MatMul", ["x", "w"], ["m"]), node("Block", ["m"], ["y"], domain="mine")], ["y"])
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.functions.append(helper.make_function("mine", "Block", ["a"], ["c"], body, imports))
    unknown = open_model(model).unknown
    assert list(unknown.ops) == [Op("my.ops", "Strange")]
    assert dict(unknown.tensors) == {"y": Op("my.ops", "Strange")}


def test_where_nothing_can_be_reached_that_is_an_error() -> None:
    model = with_ops([node("Strange", ["x"], ["s"], domain="my.ops"), node("MatMul", ["s", "w"], ["y"])], ["y"])
    with pytest.raises(
        ModelError,
        match=r"no floating-point tensor can be computed .* does not know: my\.ops::Strange; --ort-library FILE",
    ):
        calibrate(model, [{"x": np.ones((2, 4), np.float32)}])


def test_token_ids_are_no_hindrance() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("MatMul", ["e", "w"], ["m"]),
        node("Strange", ["m", "ids"], ["y"], domain="my.ops"),
    ]
    weights = {"table": rng.normal(size=(10, 4)).astype(np.float32), "w": np.ones((4, 4), np.float32)}
    model = make_model(nodes, {"ids": ["N", 3]}, ["y"], weights, dtypes={"ids": TensorProto.INT64})
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    found = calibrate(model, [{"ids": rng.integers(0, 10, (4, 3))}])
    assert list(found.cache.scales) == ["table_output", "e", "w_output", "m"]
    assert ends(open_model(model)) == ["m"]


def test_whole_numbers_alone_are_nothing_reached() -> None:
    nodes = [node("Cast", ["ids"], ["i"], to=TensorProto.INT32), node("Strange", ["i"], ["y"], domain="my.ops")]
    model = make_model(nodes, {"ids": ["N", 3]}, ["y"], dtypes={"ids": TensorProto.INT64})
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    with pytest.raises(ModelError, match="no floating-point tensor can be computed"):
        calibrate(model, [{"ids": np.ones((2, 3), np.int64)}])


def test_what_nobody_reads_is_calibrated_and_is_nothing_to_compare() -> None:
    model = with_ops([node("Relu", ["x"], ["r"]), node("Strange", ["x"], ["y"], domain="my.ops")], ["y"])
    assert list(calibrate(model, [{"x": np.ones((2, 4), np.float32)}]).cache.scales) == ["x", "r"]
    with pytest.raises(ModelError, match="there is nothing to compare"):
        open_model(model).for_judging()


def test_inputs_that_are_left_out_or_given_twice_hide_nothing() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Strange", ["r", "", "r"], ["y", ""], domain="my.ops")]
    unknown = open_model(with_ops(nodes, ["y"])).unknown
    assert dict(unknown.tensors) == {"y": Op("my.ops", "Strange")}


def test_an_opset_that_onnx_runtime_does_not_know_yet_is_said_to_be_that() -> None:
    model = detector()
    model.opset_import[0].version = 99
    with pytest.raises(
        ModelError, match=r"^model: ONNX Runtime cannot load it: the model says opset 99, and ONNX Runtime"
    ):
        calibrate(model, BATCHES)


def test_constants_alone_are_nothing_reached() -> None:
    model = with_ops(
        [
            node("Identity", ["w"], ["k"]),
            node("Relu", ["k"], ["c"]),
            node("Strange", ["x", "c"], ["y"], domain="my.ops"),
        ],
        ["y", "c"],
    )
    assert not open_model(model).unknown.reaches


def test_an_operator_of_a_newer_opset_is_an_error_that_says_which() -> None:
    model = make_model([node("Relu", ["x"], ["r"]), node("HardSwish", ["r"], ["y"], name="act")], {"x": [1, 2]}, ["y"])
    with pytest.raises(
        ModelError,
        match=r"model: HardSwish 'act': HardSwish is an operator of ONNX from opset 14 on, and the model says opset 13",
    ):
        calibrate(model, [{"x": np.ones((1, 2), np.float32)}])


def test_an_operator_in_other_letters_is_an_error_that_says_its_name() -> None:
    model = make_model([node("Relu", ["x"], ["r"]), node("leaky_relu", ["r"], ["y"])], {"x": [1, 2]}, ["y"])
    with pytest.raises(ModelError, match=r"leaky_relu 'y': ONNX has no operator leaky_relu, but LeakyRelu; export"):
        calibrate(model, [{"x": np.ones((1, 2), np.float32)}])


def test_a_name_like_one_of_onnx_s_is_asked_about(caplog: pytest.LogCaptureFixture) -> None:
    calibrate(detector("GridSampler", ""), BATCHES)
    assert "does not know GridSampler (ONNX has no such operator; is GridSample meant?)" in caplog.text


def test_a_plugin_in_the_place_of_weights_leaves_their_layer_unreached() -> None:
    """Computed from constants alone, and all the same by nobody here."""
    model = with_ops(
        [
            node("Relu", ["x"], ["r"]),
            node("Unpack", ["w"], ["u"], domain="my.ops"),
            node("MatMul", ["r", "u"], ["y"]),
        ],
        ["y"],
    )
    found = calibrate(model, [{"x": np.ones((2, 4), np.float32)}])
    assert "r" in found.cache.scales
    assert "y" in found.unusable


def test_nan_that_goes_into_an_operator_is_not_replaced_by_the_graph() -> None:
    nodes = [node("Sqrt", ["x"], ["s"]), node("Strange", ["s"], ["y"], domain="my.ops")]
    with pytest.raises(NonFiniteError, match="'s'"):
        calibrate(with_ops(nodes, ["y"]), [{"x": np.full((2, 4), -1, np.float32)}])
    assert open_model(detector()).decisive(["boxes", "scores", "p"]) == {"boxes", "scores"}


def test_a_fixed_batch_size_is_rewritten_in_front_of_the_operator() -> None:
    whole, cut = calibrate(detector(batch=2), BATCHES), calibrate(detector(batch=2, whole=False), BATCHES)
    assert whole.cache.format() == cut.cache.format()


def test_an_older_opset_is_raised_and_compared_as_far_as_it_can_be_run(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(
        [
            node("Upsample", ["x", "s"], ["u"], mode="nearest"),
            node("EfficientNMS_TRT", ["u"], ["y"], domain="TRT"),
        ],
        {"x": [1, 1, 2, 2]},
        ["y"],
        {"s": np.array([1, 1, 2, 2], np.float32)},
        opset=9,
    )
    model.opset_import.append(helper.make_opsetid("TRT", 1))
    raised = open_model(model).with_opset(13)
    assert [each.op_type for each in raised.proto.graph.node] == ["Resize", "EfficientNMS_TRT"]
    assert "is not compared" not in caplog.text


def test_a_library_makes_its_operators_known(caplog: pytest.LogCaptureFixture) -> None:
    assert list(open_model(twice()).unknown.ops) == [Op("test.ops", "Twice")]
    model = open_model(twice(), libraries=[library()])
    assert not model.unknown
    found, expected = calibrate(model, BATCHES), calibrate(doubled(), BATCHES)
    assert found.cache.format() == expected.cache.format()
    assert not found.unusable
    assert not caplog.records
    with model.runner() as runner, OrtRunner(doubled()) as plain:
        np.testing.assert_array_equal(runner(BATCHES[0])["y"], plain(BATCHES[0])["y"])


def test_a_library_stays_with_what_is_made_of_a_model() -> None:
    model = open_model(open_model(twice()), libraries=[library()])
    for made in (model.with_opset(13), model.with_batch_size(3), model.asked(["image=none"]), model.for_judging()):
        assert made.libraries == (library(),)
        assert not made.unknown


def test_what_results_depend_on_names_the_content_of_libraries_and_nothing_where_there_are_none() -> None:
    assert open_model(twice()).library_versions == {}
    (digest,) = open_model(twice(), libraries=[library()]).library_versions.values()
    assert len(digest) == 64


def test_a_file_that_is_no_library_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "ops.so"
    with pytest.raises(SettingError, match=r"--ort-library .*ops\.so: there is no such file"):
        open_model(twice(), libraries=[file])
    file.write_bytes(b"no library")
    with pytest.raises(SettingError, match=r"--ort-library .*ops\.so: ONNX Runtime cannot load it as a library of"):
        open_model(twice(), libraries=[file])

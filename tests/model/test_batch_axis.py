from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, images, make_model
from onnx import TensorProto, helper

from trtcal.errors import ModelError
from trtcal.model.batch_axis import Axis, batch_axes, batch_size, model_inputs, output_axes, set_batch_size
from trtcal.model.open import open_model
from trtcal.model.read import load_model
from trtcal.model.runner import OrtRunner

node = helper.make_node


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


def reshaped(rest: list[int], allow_zero: bool, before: list[int] | None = None) -> onnx.ModelProto:
    """x (2, 3, 4) -> what a shape that begins with the batch size makes of it, perhaps after another Reshape."""
    attributes = {"allowzero": 1} if allow_zero else {}
    return make_model(
        [
            node("Reshape", ["x", "before"], ["a"]),
            node("Relu", ["a"], ["b"]),
            node("Reshape", ["b", "shape"], ["y"], **attributes),
        ],
        {"x": [2, 3, 4]},
        ["y"],
        {"before": np.array(before or [-1, 3, 4]), "shape": np.array([2, *rest])},
        opset=14,
    )


@pytest.mark.parametrize("allow_zero", [False, True])
@pytest.mark.parametrize("size", [1, 2, 5, None])
@pytest.mark.parametrize(
    ("rest", "expected"), [([12], (12,)), ([-1], (12,)), ([4, 3], (4, 3)), ([2, -1, 3], (2, 2, 3)), ([6, -1], (6, 2))]
)
def test_a_reshape_gets_the_new_batch_size_whatever_it_says_of_zeros(
    rest: list[int], expected: tuple[int, ...], size: int | None, allow_zero: bool
) -> None:
    changed = set_batch_size(reshaped(rest, allow_zero), size, None)
    x = np.arange(60, dtype=np.float32).reshape(5, 3, 4)[: size or 4]
    np.testing.assert_array_equal(OrtRunner(changed)({"x": x})["y"], x.reshape(len(x), *expected))


@pytest.mark.parametrize("size", [1, 5])
def test_a_reshape_of_what_does_not_begin_with_the_batch_gets_the_new_batch_size_too(size: int) -> None:
    """The batch is folded into the first axis before: the size of that axis is not the batch's."""
    changed = set_batch_size(reshaped([-1], False, before=[-1, 2]), size, None)
    x = np.arange(60, dtype=np.float32).reshape(5, 3, 4)[:size]
    np.testing.assert_array_equal(OrtRunner(changed)({"x": x})["y"], x.reshape(size, 12))


def test_a_name_that_the_model_has_is_not_given_to_a_shape() -> None:
    model = reshaped([12], False)
    for each in model.graph.node[:2]:
        each.output[0] = each.output[0].replace("b", "y_shape")
    model.graph.node[2].input[0] = "y_shape"
    x = np.ones((3, 3, 4), np.float32)
    assert OrtRunner(set_batch_size(model, 3, None))({"x": x})["y"].shape == (3, 12)


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
    assert open_model("../models/m.onnx").inputs == model_inputs(conv_model(1))


def test_inputs_that_would_fix_different_batch_sizes_are_whole_and_refused_as_batches() -> None:
    model = make_model([node("Concat", ["a", "b"], ["y"], axis=0)], {"a": [2, 3], "b": [4, 3]}, ["y"])
    assert [(spec.axis, spec.shape) for spec in model_inputs(model)] == [(None, (2, 3)), (None, (4, 3))]
    assert batch_size(model) is None
    with pytest.raises(ModelError, match=r"different batch sizes \(a: 2, b: 4\).*--batch-axis a=none"):
        batch_size(model, model_inputs(model, {"a": 0, "b": 0}))


def test_inputs_without_a_shape_or_of_no_tensor_type_are_refused() -> None:
    shapeless = make_model([node("Relu", ["x"], ["y"])], {"x": []}, ["y"])
    assert [(spec.axis, spec.shape) for spec in model_inputs(shapeless)] == [(None, ())]
    shapeless.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="'x' has no shape"):
        model_inputs(shapeless)
    sequence = make_model([node("Relu", ["x"], ["y"])], {"x": ["N"]}, ["y"])
    sequence.graph.input[0].type.Clear()
    sequence.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(ModelError, match="'x' is no tensor"):
        model_inputs(sequence)
    with pytest.raises(ModelError, match="no inputs to feed"):
        model_inputs(make_model([node("Relu", ["x"], ["y"])], {"x": ["N"]}, ["y"], {"x": np.ones(2, np.float32)}))


Sizes = list[int | str | None]


def sized(inputs: dict[str, Sizes], outputs: dict[str, Sizes]) -> onnx.ModelProto:
    """A model of which nothing counts but the sizes of its inputs and outputs."""
    model = make_model([node("Max", list(inputs), ["all"])], {name: [] for name in inputs}, ["all"])
    for values, sizes in ((model.graph.input, inputs), (model.graph.output, outputs)):
        del values[:]
        values.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sizes.items())
    return model


CASES: list[tuple[dict[str, Sizes], dict[str, Sizes], dict[str, tuple[int | None, bool]]]] = [
    ({"x": ["batch", 4]}, {"y": ["batch", 3]}, {"x": (0, True)}),
    ({"x": ["N", 4]}, {"y": ["N", 3]}, {"x": (0, False)}),
    ({"x": ["batch", 4], "h": [2, "batch", 4]}, {"y": ["batch", 4]}, {"x": (0, True), "h": (1, True)}),
    ({"x": ["T", "batch", 4]}, {"y": ["T", "batch", 4]}, {"x": (1, True)}),
    ({"x": ["T", "B", 4]}, {"y": ["T", "B", 4]}, {"x": (1, False)}),
    ({"x": ["seq_len", "d1", 4]}, {"y": ["seq_len", "d1", 4]}, {"x": (1, False)}),
    ({"x": ["batch", "seq"], "m": ["batch", "seq"]}, {"y": ["batch", "seq", 8]}, {"x": (0, True), "m": (0, True)}),
    ({"ids": ["batch_size", "sequence"]}, {"y": ["batch_size"]}, {"ids": (0, True)}),
    ({"x": ["d0", "d1"]}, {"y": ["d0", "d1"]}, {"x": (0, False)}),
    ({"x": [None, None]}, {"y": [None, None]}, {"x": (0, False)}),
    (
        {"x": [None, 6], "h": [2, None, 8], "s": []},
        {"y": [None]},
        {"x": (0, False), "h": (1, False), "s": (None, True)},
    ),
    ({"x": ["x_batch", 3], "t": ["t_batch", "seq"]}, {"y": ["x_batch", "t_batch"]}, {"x": (0, True), "t": (0, True)}),
    ({"x": ["batch", 3], "boxes": ["num_boxes", 4]}, {"y": ["num_boxes", 5]}, {"x": (0, True), "boxes": (None, False)}),
    ({"x": ["batch", 3], "anchors": [100, 4]}, {"y": ["batch", 100]}, {"x": (0, True), "anchors": (None, False)}),
    ({"x": ["batch", 3], "scale": [1, 3]}, {"y": ["batch"]}, {"x": (0, True), "scale": (0, True)}),
    ({"x": ["batch", 3], "y": [None, 3]}, {"z": ["batch"]}, {"x": (0, True), "y": (0, False)}),
    ({"x": [1, "seq", 80]}, {"y": [1, "seq", 5]}, {"x": (0, True)}),
    ({"x": ["sequence_length", 9], "h": [1, 1, 8]}, {"y": ["sequence_length"]}, {"x": (None, False), "h": (0, True)}),
    ({"x": [8, 3, 4, 4]}, {"y": [8, 10]}, {"x": (0, False)}),
    ({"points": [1024, 3]}, {"y": [1, 40]}, {"points": (None, False)}),
    ({"points": [1024, 3]}, {"y": [1024, 13]}, {"points": (0, False)}),
    ({"x": [1, 576], "h": [2, 1, 8]}, {"y": [1, 1], "hN": [2, 1, 8]}, {"x": (0, True), "h": (None, False)}),
    ({"x": ["N", 4], "edges": ["N", "N"]}, {"y": ["N", 2]}, {"x": (0, False), "edges": (0, False)}),
    ({"n": []}, {"y": []}, {"n": (None, True)}),
]


@pytest.mark.parametrize(("inputs", "outputs", "expected"), CASES)
def test_the_axis_that_counts_samples_is_the_one_that_the_file_tells(
    inputs: dict[str, Sizes], outputs: dict[str, Sizes], expected: dict[str, tuple[int | None, bool]]
) -> None:
    found = batch_axes(sized(inputs, outputs))
    assert found == {name: Axis(*axis) for name, axis in expected.items()}


def test_a_sample_s_shape_is_the_input_s_without_that_axis() -> None:
    model = sized({"x": ["batch", 4], "state": [2, "batch", 4], "sr": []}, {"y": ["batch", 4]})
    assert [str(spec) for spec in model_inputs(model)] == [
        "x: float32 (N, 4)",
        "state: float32 (2, N, 4)",
        "sr: float32 ()",
    ]
    assert [spec.of_rows for spec in model_inputs(model)][1:] == ["state: float32 (N, 2, 4)", "sr: float32 (N)"]
    said = model_inputs(model, {"state": None, "x": 1})
    assert [str(spec) for spec in said][:2] == ["x: float32 (?, N)", "state: float32 (2, ?, 4)"]
    assert [spec.count for spec in model_inputs(sized({"x": [8, 3], "s": [3, 2]}, {"y": [8]}), {"s": 1})] == [None, 2]


@pytest.mark.parametrize("size", [1, 5, None])
def test_the_batch_size_is_set_where_each_input_has_its_batch_axis(size: int | None) -> None:
    model = sized({"x": [3, 4], "state": [2, 3, 4], "sr": []}, {"y": [3, 4]})
    inputs = model_inputs(model, {"x": 0, "state": 1})
    assert batch_size(model, inputs) == 3
    changed = set_batch_size(model, size, None, inputs)
    shapes = {
        value.name: [dim.dim_value or None for dim in value.type.tensor_type.shape.dim] for value in changed.graph.input
    }
    assert shapes == {"x": [size, 4], "state": [2, size, 4], "sr": []}


def test_shapes_of_what_is_computed_from_constants_keep_their_first_size() -> None:
    """Of a model for one sample, biases that a Reshape gives the shape (1, C) became those of several samples."""
    nodes = [
        node("Reshape", ["b", "row"], ["bias"]),
        node("Add", ["x", "bias"], ["a"]),
        node("Reshape", ["a", "row"], ["y"]),
    ]
    constants = {"b": np.ones(4, np.float32), "row": np.array([1, 4])}
    model = set_batch_size(make_model(nodes, {"x": [1, 4]}, ["y"], constants), 3, None)
    assert OrtRunner(model)({"x": np.zeros((3, 4), np.float32)})["y"].shape == (3, 4)
    assert [each.input[1] == "row" for each in model.graph.node if each.op_type == "Reshape"] == [True, False]


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ({"x": ["T", "batch", 4]}, {"y": ["T", "batch", 3], "h": [1, "batch", 6]}, {"y": 1, "h": 1}),
        ({"x": ["batch", 4]}, {"y": ["batch", 3], "found": ["num", 7]}, {"y": 0, "found": None}),
        ({"x": [None, 4]}, {"y": [None, 3], "n": [3]}, {"y": 0, "n": None}),
        ({"x": [1, 4]}, {"y": [1, 3]}, {"y": 0}),
        ({"x": [None, 4]}, {"y": [10, None, 3], "n": [None, None]}, {"y": 1, "n": 0}),
        ({"points": [1024, 3]}, {"y": [1, 40]}, {"y": None}),
    ],
)
def test_outputs_have_the_batch_where_their_names_say(
    inputs: dict[str, Sizes], outputs: dict[str, Sizes], expected: dict[str, int | None]
) -> None:
    model = sized(inputs, outputs)
    assert output_axes(model, model_inputs(model)) == expected

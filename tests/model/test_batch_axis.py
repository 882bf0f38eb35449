from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, images, make_model
from onnx import TensorProto, helper

from trtcal.errors import ModelError
from trtcal.model.batch_axis import batch_size, model_inputs, set_batch_size
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


def test_inputs_that_fix_different_batch_sizes_are_refused() -> None:
    model = make_model([node("Concat", ["a", "b"], ["y"], axis=0)], {"a": [2, 3], "b": [4, 3]}, ["y"])
    with pytest.raises(ModelError, match=r"different batch sizes \(a: 2, b: 4\)"):
        batch_size(model)


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

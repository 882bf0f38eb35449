from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, images, make_model, save
from onnx import TensorProto, helper

from trtcal.errors import ModelError
from trtcal.model.open import FloatRunner, Model, open_model
from trtcal.model.runner import OrtRunner

node = helper.make_node


def outside(path: Path) -> Path:
    """The model with its weights in a file beside it."""
    onnx.save(conv_model(), path, save_as_external_data=True, location="w.bin", size_threshold=100)
    return path


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "proto", "model"])
def test_a_model_is_the_same_from_wherever_it_comes(tmp_path: Path, kind: str) -> None:
    path = save(conv_model(), tmp_path / "m.onnx")
    sources = {"path": path, "text": str(path), "bytes": path.read_bytes(), "proto": onnx.load(path)}
    found = open_model(open_model(path) if kind == "model" else sources[kind])
    assert found.proto == conv_model()
    assert [str(spec) for spec in found.inputs] == ["image: float32 (N, 3, 8, 8)"]
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.calibrated.visible == ("image", "conv", "relu", "sum", "logits")
    assert found.name == ("model" if kind in ("bytes", "proto") else str(path))
    assert found.files == (() if kind in ("bytes", "proto") else (path,))


def test_a_model_that_is_open_is_not_opened_again(tmp_path: Path) -> None:
    model = open_model(save(conv_model(), tmp_path / "m.onnx"))
    (tmp_path / "m.onnx").unlink()
    assert open_model(model) is model
    assert model.calibrated is model.calibrated


def test_weights_beside_the_model_are_files_of_it_and_read_when_they_are_wanted(tmp_path: Path) -> None:
    model = open_model(outside(tmp_path / "m.onnx"))
    assert model.files == (tmp_path / "m.onnx", tmp_path / "w.bin")
    assert model.has_external_data
    before = model.proto.SerializeToString()
    (whole,) = OrtRunner(model.whole)({"image": images(2)}).values()
    (expected,) = OrtRunner(conv_model())({"image": images(2)}).values()
    np.testing.assert_array_equal(whole, expected)
    assert model.proto.SerializeToString() == before  # which still describes them


def test_weights_in_files_nobody_can_find_are_named(tmp_path: Path) -> None:
    described = onnx.load(outside(tmp_path / "m.onnx"), load_external_data=False)
    for source in (described, described.SerializeToString()):
        with pytest.raises(ModelError, match=r"constant 'w': still in an external file.*onnx\.load"):
            open_model(source)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08"])
def test_bytes_that_are_no_model_are_refused_by_the_name_given(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"^the upload: is not an ONNX"):
        open_model(content, "the upload")


def test_what_is_no_model_at_all_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="path, the content of an ONNX file, a ModelProto or a Model, got int"):
        open_model(3)  # type: ignore[arg-type]


def test_a_proto_stays_as_it_was_whatever_is_made_of_the_model() -> None:
    proto = conv_model(4)
    before = proto.SerializeToString()
    model = open_model(proto)
    assert model.calibrated.model != model.proto
    assert model.with_batch_size(2).batch_size == 2
    with FloatRunner(model) as runner:
        runner({"image": images(1)})
    assert proto.SerializeToString() == before


def test_the_batch_size_is_changed_where_the_file_fixes_another(tmp_path: Path) -> None:
    fixed = open_model(save(conv_model(4), tmp_path / "m.onnx"))
    assert fixed.batch_size == 4
    assert fixed.with_batch_size(4) is fixed
    assert fixed.with_batch_size(2).batch_size == 2
    assert fixed.with_batch_size(None).batch_size is None
    assert (fixed.with_batch_size(2).name, fixed.with_batch_size(2).files) == (fixed.name, fixed.files)
    free = open_model(conv_model())
    assert free.batch_size is None
    assert free.with_batch_size(2) is free


def test_an_input_that_cannot_be_fed_is_said_with_the_model_s_name(tmp_path: Path) -> None:
    model = make_model([node("Add", ["x", "s"], ["y"])], {"x": ["N", 2], "s": [2]}, ["y"])
    model.graph.input[1].type.tensor_type.ClearField("shape")
    opened = open_model(save(model, tmp_path / "m.onnx"))  # other commands need not feed it
    with pytest.raises(ModelError, match=r"m\.onnx: input 's' has no shape"):
        _ = opened.inputs


def test_outputs_are_what_the_file_says_of_them() -> None:
    model = conv_model()
    model.graph.output[0].ClearField("type")
    assert [(spec.name, spec.dtype, spec.shape) for spec in open_model(model).outputs] == [("logits", None, None)]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5]))
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, None))
    found = [(spec.name, spec.dtype, spec.shape) for spec in open_model(model).outputs]
    assert found == [("logits", np.dtype(np.float32), (None, 5)), ("flat", np.dtype(np.float32), None)]
    model.graph.output[0].type.tensor_type.elem_type = 99
    with pytest.raises(ModelError, match="model: tensor 'logits' has the element type 99"):
        _ = open_model(model).outputs


def test_a_model_travels_to_other_processes_without_what_was_made_of_it(tmp_path: Path) -> None:
    model = open_model(save(conv_model(), tmp_path / "m.onnx"))
    bare = len(pickle.dumps(model))
    assert model.calibrated.order
    assert len(pickle.dumps(model)) == bare
    there: Model = pickle.loads(pickle.dumps(model))
    assert there.proto == model.proto
    assert (there.name, there.files, there.calibrated.order) == (model.name, model.files, model.calibrated.order)


def test_a_runner_shows_what_is_to_calibrate_or_only_what_is_asked_for() -> None:
    x = {"image": images(1)}
    with FloatRunner(open_model(conv_model())) as runner:
        every = runner(x)
    assert list(every) == ["image", "conv", "relu", "sum", "logits"]
    with FloatRunner(open_model(conv_model()), only=["pool", "image"]) as runner:
        some = runner(x)
    assert list(some) == ["image", "pool"]
    np.testing.assert_array_equal(some["image"], x["image"])

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, images, make_model
from onnx import helper, numpy_helper

from trtcal.errors import ModelError
from trtcal.model.open import open_model
from trtcal.model.prepare import prepared
from trtcal.model.runner import OrtRunner

node = helper.make_node


def test_an_ordinary_model_passes_as_it_is() -> None:
    model = conv_model()
    before = model.SerializeToString()
    found, originals = prepared(model, ours=False)
    assert found is model
    assert model.SerializeToString() == before
    assert originals == ({}, {})


def odd() -> onnx.ModelProto:
    """Not sorted, nodes of one name, weights among the inputs, one of them twice."""
    model = conv_model()
    model.ir_version = 3
    for each in model.graph.node:
        each.name = "same"
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.graph.initializer.append(model.graph.initializer[0])
    return model


def test_an_odd_model_becomes_an_ordinary_one() -> None:
    found, originals = prepared(odd(), ours=True)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(found))
    assert [value.name for value in found.graph.input] == ["image"]
    assert [tensor.name for tensor in found.graph.initializer] == ["w", "b", "offset", "shape", "gw"]
    assert found.ir_version == 4
    assert set(originals.nodes.values()) == {"same"}
    x = {"image": images(2)}
    np.testing.assert_array_equal(OrtRunner(found)(x)["logits"], OrtRunner(conv_model())(x)["logits"])


def test_a_model_of_somebody_else_s_is_not_changed() -> None:
    model = odd()
    before = model.SerializeToString()
    found, _ = prepared(model, ours=False)
    assert model.SerializeToString() == before
    mine = odd()
    assert prepared(mine, ours=True)[0] is mine
    assert mine == found


def test_a_constant_that_is_there_twice_with_other_values_is_refused() -> None:
    model = make_model([node("Add", ["x", "k"], ["y"])], {"x": ["N", 2]}, ["y"], {"k": np.float32([1, 2])})
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 3]), "k"))
    with pytest.raises(ModelError, match="constant 'k' is there twice, with other values"):
        prepared(model, ours=True)


def test_shapes_that_lie_in_files_are_read_and_weights_stay_there(tmp_path: Path) -> None:
    """ONNX Runtime does not load a model whose shapes lie in a file."""
    path = tmp_path / "m.onnx"
    onnx.save(conv_model(size=12), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    model = open_model(path)
    outside = {tensor.name for tensor in model.proto.graph.initializer if tensor.external_data}
    assert outside == {"gw"}
    assert model.files == (path, tmp_path / "w.bin")
    x = {"image": images(2, size=12)}
    with OrtRunner(model.proto, folder=tmp_path) as runner, OrtRunner(conv_model(size=12)) as expected:
        np.testing.assert_array_equal(runner(x)["logits"], expected(x)["logits"])
    content = path.read_bytes()
    (tmp_path / "w.bin").unlink()
    assert open_model(content, path=path).inputs == model.inputs, "nobody wants the weights yet"
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"m.onnx: weights 'w' end at byte 432 of w.bin, which has 0"):
        open_model(path)


def test_onnx_s_own_ops_are_called_by_one_name_of_their_domain() -> None:
    """Inside an If, ONNX Runtime knows only one of the two."""
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("then", "else")]
    branches = [
        helper.make_graph([node(op, ["x"], [value.name], domain="ai.onnx")], "b", [], [value])
        for op, value in zip(("Relu", "Neg"), outputs, strict=True)
    ]
    nodes = [node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1], domain="ai.onnx")]
    model = make_model(nodes, {"x": [2], "yes": [1]}, ["y"], dtypes={"yes": onnx.TensorProto.BOOL})
    found, _ = prepared(model, ours=False)
    assert found is not model
    feed = {"x": np.array([-1, 2], np.float32), "yes": np.array([True])}
    np.testing.assert_array_equal(OrtRunner(found)(feed)["y"], [0, 2])

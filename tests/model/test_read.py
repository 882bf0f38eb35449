from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import pytest
from models import conv_model, make_model, save
from onnx import TensorProto, helper

from trtcal.errors import ModelError
from trtcal.model.nodes import all_bodies, array_of
from trtcal.model.read import external_files, load_model, model_files, refuse_damaged, sha256_of

node = helper.make_node


def test_a_constant_in_a_file_is_not_looked_for_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv_model(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"constant 'w': still in an external file.*onnx\.load"):
        array_of(load_model(path).graph.initializer[0])


def test_a_body_inside_a_function_is_looked_at_as_any_other() -> None:
    broken = helper.make_graph([node("Add", ["a"], ["t"])], "g", [], [helper.make_tensor_value_info("t", 1, None)])
    inside = node("If", ["c"], ["b"], then_branch=broken, else_branch=broken)
    model = make_model([node("F", ["c"], ["y"], domain="own")], {"c": [1]}, ["y"], dtypes={"c": TensorProto.BOOL})
    model.functions.append(helper.make_function("own", "F", ["c"], ["b"], [inside], [helper.make_opsetid("", 13)]))
    assert [body.name for body in all_bodies(model)] == ["g", "g", "g", "F"]
    with pytest.raises(ModelError, match="a Add has at least 2 and 1"):
        refuse_damaged(model)


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


def test_the_files_of_a_model_are_its_own_and_those_of_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv_model(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert model_files(path) == [path, tmp_path / "w.bin"]
    (tmp_path / "m.uff").write_bytes(b"no ONNX")
    assert model_files(str(tmp_path / "m.uff")) == [tmp_path / "m.uff"]


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


def test_a_lone_model_file_has_the_hash_that_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"x" * (3 << 20) + b"tail")
    assert sha256_of([tmp_path / "net.onnx"]) == hashlib.sha256(b"x" * (3 << 20) + b"tail").hexdigest()


def test_external_data_counts_and_so_does_the_border_between_files(tmp_path: Path) -> None:
    def hashed(*contents: bytes) -> str:
        files = [tmp_path / str(number) for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        return sha256_of(files)

    hashes = [hashed(b"ab"), hashed(b"ab", b""), hashed(b"a", b"b"), hashed(b"b", b"a"), hashed(b"a", b"c")]
    assert len(set(hashes)) == len(hashes)
    assert hashed(b"a", b"b") == hashes[2]


def test_a_model_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"weights\.bin: cannot be read: No such file"):
        sha256_of([tmp_path / "net.onnx", str(tmp_path / "weights.bin")])

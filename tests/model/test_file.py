from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import load_whole_model, make_model
from onnx import TensorProto, helper, numpy_helper

from trtcal.errors import ModelError, OutputError
from trtcal.model import file as modelfile
from trtcal.model.file import check_weights_output, save_model
from trtcal.model.runner import OrtRunner


def wide_model(columns: int = 1000) -> onnx.ModelProto:
    """x (N, 2) -> MatMul with weights big enough to lie outside -> Relu."""
    weights = np.arange(2 * columns, dtype=np.float32).reshape(2, columns)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Mul", ["m", "s"], ["y"])]
    return make_model(nodes, {"x": ["N", 2]}, ["y"], {"w": weights, "s": np.full(columns, 2, np.float32)})


def constants(model: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}


def test_a_model_with_its_weights_inside_is_saved_in_one_file(tmp_path: Path) -> None:
    assert save_model(wide_model(), tmp_path / "a.onnx") == (tmp_path / "a.onnx",)
    assert os.listdir(tmp_path) == ["a.onnx"]
    loaded, external = load_whole_model(tmp_path / "a.onnx")
    assert (loaded, external) == (wide_model(), False)


def test_weights_outside_come_back_as_they_were_and_run_from_there(tmp_path: Path) -> None:
    files = save_model(wide_model(), tmp_path / "a.onnx", external=True)
    assert files == (tmp_path / "a.onnx", tmp_path / "a.onnx.data")
    assert files[1].stat().st_size == 8192 + 4000  # 2 x 1000 float32, up to the next page, 1000 float32
    loaded, external = load_whole_model(tmp_path / "a.onnx")
    assert external
    assert constants(loaded) == constants(wide_model())
    with OrtRunner(tmp_path / "a.onnx") as runner:
        expected = np.arange(2000, dtype=np.float32).reshape(2, 1000).sum(axis=0) * 2
        np.testing.assert_array_equal(runner({"x": np.ones((1, 2), np.float32)})["y"][0], expected)


def test_small_constants_stay_in_the_model(tmp_path: Path) -> None:
    save_model(wide_model(10), tmp_path / "a.onnx", external=True)
    assert constants(onnx.load(tmp_path / "a.onnx", load_external_data=False)) == constants(wide_model(10))


def test_weights_beyond_protobuf_s_limit_go_outside_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelfile, "MAX_WEIGHTS_INSIDE", 11_999)
    assert len(save_model(wide_model(), tmp_path / "a.onnx")) == 2
    monkeypatch.setattr(modelfile, "MAX_WEIGHTS_INSIDE", 12_000)
    assert len(save_model(wide_model(), tmp_path / "b.onnx")) == 1


def test_old_files_are_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    save_model(wide_model(2000), tmp_path / "a.onnx", external=True)
    save_model(wide_model(), tmp_path / "a.onnx", external=True)
    assert constants(load_whole_model(tmp_path / "a.onnx")[0]) == constants(wide_model())
    assert sorted(os.listdir(tmp_path)) == ["a.onnx", "a.onnx.data"]


@pytest.mark.parametrize("external", [False, True])
def test_a_model_that_nobody_can_load_is_not_written(tmp_path: Path, external: bool) -> None:
    save_model(wide_model(), tmp_path / "a.onnx", external=external)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = wide_model(2000)
    broken.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    with pytest.raises(
        ModelError, match=r"/a\.onnx: ONNX Runtime cannot load it: .*int8.*; it is not written$"
    ) as caught:
        save_model(broken, tmp_path / "a.onnx", external=external)
    assert ".tmp" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    unsorted = wide_model(2000)
    unsorted.graph.node.reverse()
    with pytest.raises(ModelError, match=r"/a\.onnx: is not written, since ONNX's checker refuses it: .*sorted"):
        save_model(unsorted, tmp_path / "a.onnx", external=external)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_outside_are_loaded_from_where_they_are_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is checked are the very bytes that get the name afterwards, not those that had it before."""
    save_model(wide_model(), tmp_path / "a.onnx", external=True)
    seen = []

    def check(file: Path, name: str, source: object = None, libraries: object = ()) -> None:
        assert name == str(tmp_path / "a.onnx")
        with OrtRunner(file) as runner:
            seen.append(runner({"x": np.ones((1, 2), np.float32)})["y"].shape)

    monkeypatch.setattr(modelfile, "check_file", check)
    save_model(wide_model(2000), tmp_path / "a.onnx", external=True)
    assert seen == [(1, 2000)]
    with OrtRunner(tmp_path / "a.onnx") as runner:
        assert runner({"x": np.ones((1, 2), np.float32)})["y"].shape == (1, 2000)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    for external in (False, True):
        with pytest.raises(OutputError, match=r"no/a\.onnx.*: cannot be written: the folder .*no does not exist"):
            save_model(wide_model(), tmp_path / "no" / "a.onnx", external=external)


def test_weights_that_are_cut_off_or_missing_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    save_model(wide_model(), tmp_path / "a.onnx", external=True)
    (tmp_path / "a.onnx.data").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match=r"a\.onnx: weights 'w' end at byte 8000 of a\.onnx\.data, which has 100"):
        load_whole_model(tmp_path / "a.onnx")
    (tmp_path / "a.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"external data file 'a\.onnx\.data' is missing"):
        load_whole_model(tmp_path / "a.onnx")


def test_there_is_no_file_for_weights_where_none_go_there(tmp_path: Path) -> None:
    assert save_model(wide_model(10), tmp_path / "a.onnx", external=True) == (tmp_path / "a.onnx",)
    assert os.listdir(tmp_path) == ["a.onnx"]


def test_weights_replace_those_of_the_model_that_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    save_model(wide_model(), tmp_path / "a.onnx", external=True)
    check_weights_output(tmp_path / "a.onnx", [])
    with pytest.raises(OutputError, match=r"a\.onnx\.data: is an input of this command"):
        check_weights_output(tmp_path / "a.onnx", [tmp_path / "a.onnx"])
    (tmp_path / "b.onnx.data").write_text("mine")
    with pytest.raises(OutputError, match=r"b\.onnx\.data: exists and is no file of the weights of b\.onnx"):
        check_weights_output(tmp_path / "b.onnx", [])

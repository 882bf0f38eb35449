from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, images, load_whole_model, save

from trtcal.calibration.calibrate import calibrate
from trtcal.errors import ModelError, OutputError
from trtcal.model.file import save_model
from trtcal.model.runner import OrtRunner
from trtcal.qdq.file import qdq_to_file
from trtcal.qdq.insert import insert_qdq
from trtcal.qdq.weights import weight_method
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource


def scales_of(path: Path) -> dict[str, np.float32]:
    return dict(calibrate(path, Batches(ArraySource({"image": images(4)}), 2), "minmax").cache.scales)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(conv_model(), tmp_path / "m.onnx")


@pytest.mark.parametrize("weights", ["max", "percentile:99", "entropy"])
@pytest.mark.parametrize("placement", ["tensorrt", "all"])
def test_the_file_holds_what_insert_qdq_makes(model: Path, placement: str, weights: str) -> None:
    scales = scales_of(model)
    result = qdq_to_file(
        model, scales, model.with_name("q.onnx"), placement=placement, exclude=["Gemm"], weights=weights
    )
    method = weight_method(weights)
    expected = insert_qdq(conv_model(), scales, placement=placement, exclude=["Gemm"], weights=method)
    assert onnx.load(model.with_name("q.onnx")) == expected.model
    assert result.files == (model.with_name("q.onnx"),)
    assert result.skipped == expected.skipped
    assert tuple(result.layers) == expected.layers
    assert result.opset == 13


def test_layers_are_counted_by_op_type(model: Path) -> None:
    result = qdq_to_file(model, scales_of(model), model.with_name("q.onnx"))
    assert result.op_types == {"Conv": 1, "Gemm": 1}
    assert result.layers == {"conv": "Conv", "logits": "Gemm"}  # nodes without names go by their outputs


def test_a_model_with_weights_outside_gives_one_with_weights_outside(tmp_path: Path) -> None:
    model = conv_model(size=16)
    save_model(conv_model(size=16), tmp_path / "m.onnx", external=True)
    image = {"image": images(4, 16)}
    scales = calibrate(tmp_path / "m.onnx", Batches(ArraySource(image), 2), "minmax").cache.scales
    result = qdq_to_file(tmp_path / "m.onnx", scales, tmp_path / "q.onnx")
    assert result.files == (tmp_path / "q.onnx", tmp_path / "q.onnx.data")
    loaded, expected = load_whole_model(tmp_path / "q.onnx")[0], insert_qdq(model, scales).model
    assert loaded.graph.node == expected.graph.node
    for found, wanted in zip(loaded.graph.initializer, expected.graph.initializer, strict=True):
        assert (found.name, found.raw_data) == (wanted.name, wanted.raw_data)
    with OrtRunner(tmp_path / "q.onnx") as runner:
        assert runner(image)["logits"].shape == (4, 5)


def test_a_model_of_which_nothing_becomes_int8_is_an_error_and_writes_nothing(model: Path) -> None:
    with pytest.raises(ModelError, match=r"m\.onnx: nothing becomes INT8 .*; image: its scale is 0"):
        qdq_to_file(model, dict.fromkeys(scales_of(model), np.float32(0)), model.with_name("q.onnx"))
    with pytest.raises(ModelError, match=r"m\.onnx: nothing becomes INT8 .*"):
        qdq_to_file(model, scales_of(model), model.with_name("q.onnx"), exclude=["*"])
    assert not model.with_name("q.onnx").exists()


def test_the_model_is_not_overwritten(model: Path) -> None:
    with pytest.raises(OutputError, match="is an input of this command"):
        qdq_to_file(model, scales_of(model), model)
    assert onnx.load(model) == conv_model()


def test_wrong_options_are_an_error(model: Path) -> None:
    for options in ({"weights": "kl"}, {"placement": "some"}, {"exclude": ["Softmax"]}):
        with pytest.raises(ValueError, match=r"unknown|no node"):
            qdq_to_file(model, scales_of(model), model.with_name("q.onnx"), **options)  # type: ignore[arg-type]

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from trtcal import demo

CLASSES = 10
RECORDED_TOP1 = 0.9360  # of the model that ships, on the 2000 images that ship, as its training printed it


def model_strings(model: onnx.ModelProto) -> list[str]:
    """Every name, documentation string and metadata entry in the file."""
    graph = model.graph
    parts = [model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info]
    texts = [model.producer_name, model.producer_version, model.domain]
    for part in parts:
        texts += [getattr(part, "name", ""), part.doc_string]
        texts += [text for entry in part.metadata_props for text in (entry.key, entry.value)]
    for node in graph.node:
        texts += [*node.input, *node.output]
    return [text for text in texts if text]


def test_calibration_images_are_network_inputs() -> None:
    images = demo.calibration_images()
    assert images.shape == (512, 1, 28, 28)
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() == 1
    assert np.array_equal(np.rint(images * 255) / np.float32(255), images)


def test_labelled_images_come_with_a_label_each() -> None:
    images, labels = demo.labelled_images()
    assert images.shape == (2000, 1, 28, 28)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.shape == (2000,)
    assert labels.dtype == np.int64
    assert np.array_equal(np.unique(labels), np.arange(CLASSES))


def test_no_image_is_used_twice() -> None:
    calibration, (labelled, _) = demo.calibration_images(), demo.labelled_images()
    assert len({image.tobytes() for image in [*calibration, *labelled]}) == len(calibration) + len(labelled)


def test_every_batch_of_calibration_images_looks_like_the_whole() -> None:
    """Ten classes take turns, so batches differ far less than a split that is sorted by class."""
    images = demo.calibration_images()[:510].mean(axis=(1, 2, 3))
    in_turn = images.reshape(-1, 30).mean(axis=1)
    by_class = images.reshape(-1, 10).T.reshape(-1, 51).mean(axis=1)
    assert in_turn.std() < by_class.std() / 2


def test_the_model_keeps_its_recorded_accuracy() -> None:
    images, labels = demo.labelled_images()
    session = ort.InferenceSession(demo.model_path(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images})
    assert logits.shape == (2000, CLASSES)
    assert (logits.argmax(axis=1) == labels).mean() >= RECORDED_TOP1 - 0.01


@pytest.mark.parametrize("count", [1, 7])
def test_the_model_takes_any_batch_size(count: int) -> None:
    session = ort.InferenceSession(demo.model_path(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": demo.calibration_images()[:count]})
    assert logits.shape == (count, CLASSES)


def test_the_model_is_valid_onnx_for_every_supported_version() -> None:
    model = onnx.load(demo.model_path())
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
    assert model.ir_version <= 8
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    kinds = {node.op_type for node in model.graph.node}
    assert {"Conv", "Relu", "Add", "MaxPool", "HardSigmoid", "GlobalAveragePool", "Gemm"} <= kinds


def test_the_model_tells_nothing_of_the_machine_it_was_made_on() -> None:
    texts = model_strings(onnx.load(demo.model_path()))
    folder = r"^/(home|root|usr|tmp|work|opt|mnt|Users)/"
    suspicious = re.compile(rf"\.py|site-packages|\\|line \d|{folder}", re.MULTILINE)
    assert [text for text in texts if suspicious.search(text)] == []


def test_the_shipped_files_stay_small_and_carry_the_licence() -> None:
    folder = Path(demo.__file__).parent
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.suffix in (".onnx", ".npz")}
    assert set(sizes) == {"model.onnx", "images.npz"}
    assert sizes["model.onnx"] < 300_000
    assert sum(sizes.values()) < 1_700_000
    assert "Zalando" in (folder / "NOTICE").read_text(encoding="utf-8")

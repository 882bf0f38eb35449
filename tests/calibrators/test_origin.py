from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibrators.origin import origin
from trtcal.cache.provenance import Provenance
from trtcal.errors import ModelError
from trtcal.samples.batches import Batches
from trtcal.samples.images import ImageFolder
from trtcal.samples.preprocess import preset


def made(batches: Any = (), **changes: Any) -> tuple[Provenance, list[str]]:
    options: dict[str, Any] = {"model": None, "data_key": None, "batch_size": 2, "method": "m", "header": "TRT-1-x"}
    return origin(batches=batches, **{**options, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        Image.fromarray(np.full((8, 8, 3), number * 10, np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def of_folder(folder: Path, name: str = "0-1", **options: Any) -> Provenance:
    source = ImageFolder(folder, preset(name, size=(8, 8)), input_name="x")
    found, unknown = made(Batches(source, 2, **options))
    assert unknown == ["model= was not given"]
    return found


def test_what_is_not_known_is_said() -> None:
    assert made()[1] == ["model= was not given", "data_key= was not given"]
    assert made(data_key="cats")[1] == ["model= was not given"]


def test_the_model_is_known_by_its_content(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"one")
    one = made(model=model, data_key="k")[0]
    model.write_bytes(b"two")
    two = made(model=model, data_key="k")[0]
    assert one.model == "m.onnx"
    assert one.differences(two) == ["model: content differs (m.onnx)"]


def test_a_model_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.onnx"):
        made(model=tmp_path / "absent.onnx")


def test_weights_in_files_of_their_own_belong_to_the_model(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, 1, ["N", 4]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    one = made(model=tmp_path / "m.onnx")[0]
    (tmp_path / "w.bin").write_bytes(np.zeros((4, 4), np.float32).tobytes())
    assert made(model=tmp_path / "m.onnx")[0].model_sha256 != one.model_sha256


def test_a_folder_of_pictures_supplies_its_own_key(folder: Path) -> None:
    assert of_folder(folder) == of_folder(folder)
    assert of_folder(folder).samples_used == 4


def test_a_picture_that_changes_changes_the_origin(folder: Path) -> None:
    before = of_folder(folder)
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(folder / "2.png")
    assert any(line.startswith("data: samples differ") for line in before.differences(of_folder(folder)))


def test_what_is_done_to_the_pictures_belongs_to_the_origin(folder: Path) -> None:
    found = of_folder(folder).differences(of_folder(folder, "-1-1"))
    assert found
    assert all(line.startswith("preprocess ") for line in found)


@pytest.mark.parametrize("options", [{"order": "shuffled", "seed": 3}, {"samples": 3}])
def test_order_and_number_of_samples_belong_to_the_origin(folder: Path, options: dict[str, Any]) -> None:
    assert of_folder(folder).differences(of_folder(folder, **options))


def test_what_becomes_of_a_last_short_batch_belongs_to_the_origin(folder: Path) -> None:
    pad, wrap = (of_folder(folder, samples=3, partial=partial) for partial in ("pad", "wrap"))
    assert pad.differences(wrap) == ["partial batch: pad -> wrap"]

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trtcal.errors import DataError
from trtcal.samples.batches import Batches
from trtcal.samples.preprocess import Preprocess, preset
from trtcal.samples.sources import ArrayFolder, ImageFolder, LoaderScript, open_source
from trtcal.spec import InputSpec

IMAGE = InputSpec("x", np.dtype("float32"), (3, 4, 5))
MASK = InputSpec("mask", np.dtype("bool"), (None,))
RAW = preset("raw", size=(4, 5))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One of everything."""
    for name in ("images/a.png", "mixed/a.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (5, 4)).save(tmp_path / name)
    for name in ("arrays/x.npy", "mixed/x.npy", "x.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, np.zeros((2, 3, 4, 5), np.float32))
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 4, 5), np.float32))
    (tmp_path / "load.py").write_text("import numpy as np\ndef f():\n    return [np.zeros((2, 3, 4, 5))]\n")
    (tmp_path / "labels.csv").write_text("a.png,3\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.txt").write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind", "preprocess"),
    [
        ("images", ImageFolder, RAW),
        ("mixed", ImageFolder, RAW),
        ("arrays", ArrayFolder, None),
        ("x.npy", ArrayFolder, None),
        ("x.npz", ArrayFolder, None),
        ("load.py:f", LoaderScript, None),
    ],
)
def test_the_argument_tells_the_source(name: str, kind: type, preprocess: Preprocess | None, data: Path) -> None:
    for path in (data / name, str(data / name)):
        source = open_source(path, inputs=[IMAGE], preprocess=preprocess)
        assert isinstance(source, kind)
        assert next(iter(Batches(source, 1)))["x"].shape == (1, 3, 4, 5)


def test_the_dtype_reaches_the_pictures(data: Path) -> None:
    spec = InputSpec("pixels", np.dtype("uint8"), (None, None, 3))
    source = open_source(data / "images", inputs=[spec], preprocess=preset("raw", size=(4, 5), layout="HWC"))
    assert next(iter(Batches(source, 1)))["pixels"].dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "inputs", "more", "words"),
    [
        ("gone", [IMAGE], {}, "gone: no such file or folder"),
        ("gone.py", [IMAGE], {}, r"gone\.py: no such file"),
        ("empty", [IMAGE], {}, "empty: neither pictures nor .*; saw no files"),
        ("other", [IMAGE], {}, r"other: neither pictures nor .*; saw 1 \.txt"),
        ("labels.csv", [IMAGE], {}, r"expected a folder, a \.npy or \.npz file, or script\.py"),
        ("images/a.png", [IMAGE], {"preprocess": RAW}, "expected a folder"),
        ("images", [IMAGE], {}, "pictures need a preset .*: imagenet, torchvision-<size>, yolo-letterbox"),
        ("mixed", [IMAGE], {}, "1 pictures and 1 array files"),
        ("images", [IMAGE, MASK], {"preprocess": RAW}, r"the model takes 'x', 'mask': use \.npz"),
        ("arrays", [IMAGE], {"preprocess": RAW}, "a preset is for pictures"),
        ("x.npz", [IMAGE], {"preprocess": RAW}, "leave it out, and prepare the arrays themselves"),
        ("gone.py:f", [IMAGE], {"preprocess": RAW}, r"gone\.py:f: no such file"),
        ("load.py:f", [IMAGE], {"preprocess": RAW}, "a preset is for pictures"),
        (
            "images",
            [InputSpec("x", np.dtype("f4"), (1, 4, 5))],
            {"preprocess": RAW},
            r"makes \(3, 4, 5\), the model takes x: .*takes 1 channels, the array has 3",
        ),
        (
            "images",
            [InputSpec("x", np.dtype("f4"), (4, 5, 3))],
            {"preprocess": RAW},
            r"makes \(3, 4, 5\)",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    name: str, inputs: list[InputSpec], more: dict[str, object], words: str, data: Path
) -> None:
    with pytest.raises(DataError, match=words):
        open_source(data / name, inputs=inputs, **more)  # type: ignore[arg-type]

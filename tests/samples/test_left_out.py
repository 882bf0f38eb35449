from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import conv_model, save
from PIL import Image

from trtcal.errors import DataError
from trtcal.samples.left_out import by_kind, tell_left_out
from trtcal.samples.options import SampleOptions
from trtcal.spec import InputSpec

INPUT = InputSpec("x", np.dtype(np.float32), (3, 4, 4))


@pytest.mark.parametrize(
    ("files", "used", "said"),
    [
        (
            [*(f"{number}.heic" for number in range(50)), "z.jpg"],
            ["z.jpg"],
            "f: 50 of 51 files were left out: 50 .heic cannot be read, pip install pillow-heif",
        ),
        (["a.AVIF", "b.png"], ["b.png"], "f: 1 of 2 files was left out: 1 .avif cannot be read, pip install 'pillow>="),
        (["a.svg", "b.nef", "c.svg", "d"], ["e"], "f: 4 of 4 files were left out: 2 .svg cannot be read, convert them"),
        (["a.svg", "b", "c.png"], ["c.png"], "convert them to PNG or JPEG; 1 without extension"),
        (["a.pt", "x.npy"], ["x.npy"], "f: 1 of 2 files was left out: 1 .pt"),
        (["a.txt", "b.txt", "c.png"], ["c.png"], "f: 2 of 3 files were left out: 2 .txt"),
        (["a.txt", "b.pt", "c.png", "d.png"], ["c.png", "d.png"], "1 .txt; 1 .pt"),
    ],
)
def test_what_is_left_out_is_counted_by_kind(
    files: list[str], used: list[str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    tell_left_out("f", files, used)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert said in record.getMessage()


def test_notes_and_labels_beside_the_samples_are_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tell_left_out("f", ["a.png", "b.png"], ["a.png", "b.png"])
    assert not caplog.records
    tell_left_out("f", ["a.png", "a.txt", "b.png", "b.txt"], ["a.png", "b.png"])
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert caplog.messages == ["f: 2 of 4 files were left out: 2 .txt"]


def test_a_list_of_kinds_that_is_cut_says_how_many_more_there_are() -> None:
    many = [f"a.{letter}" for letter in "abcdefghij"]
    assert by_kind(many).endswith("1 .h; and files of 2 other kinds")
    assert by_kind(many[:9]).endswith("1 .h; and files of 1 other kind")
    assert by_kind([]) == ""


@pytest.mark.parametrize("kind", ["pictures", "arrays"])
def test_opening_a_folder_says_what_it_leaves_out(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if kind == "pictures":
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    else:
        np.save(tmp_path / "a.npy", np.zeros((3, 4, 4), np.float32))
    options = SampleOptions(data=str(tmp_path), preset="raw" if kind == "pictures" else None)
    before = options.open([INPUT]).key()
    assert not caplog.messages
    (tmp_path / "b.nef").write_bytes(b"x")
    after = options.open([INPUT])
    assert caplog.messages == [
        f"{tmp_path}: 1 of 2 files was left out: 1 .nef cannot be read, convert them to PNG or JPEG"
    ]
    assert (after.key(), after.num_samples) == (before, 1)


def test_a_folder_of_nothing_that_can_be_read_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.nef").write_bytes(b"x")
    with pytest.raises(DataError, match=r"neither pictures nor .*; saw 1 \.nef cannot be read, convert them to PNG"):
        SampleOptions(data=str(tmp_path), preset="raw").open([INPUT])


HEIC = b"\0\0\0\x18ftypheic" + bytes(200)
PLUGIN = """
from PIL import Image, ImageFile

class Fake(ImageFile.ImageFile):
    format = "HEIF"

    def _open(self):
        self._size, self.tile = (9, 7), []
        setattr(self, "_mode" if hasattr(Image.Image, "mode") else "mode", "RGB")  # a property since Pillow 10.1
        self.im = Image.new("RGB", self._size, (255, 0, 0)).im

def register_heif_opener():
    Image.register_open("HEIF", Fake, lambda start: start[4:12] == b"ftypheic")
    Image.register_extension("HEIF", ".heic")
"""


def calibrated(folder: Path, *, with_plugin: bool) -> str:
    """What `trtcal calibrate` says of a folder of 50 HEIC files and a JPEG, with a plugin for these or without any."""
    save(conv_model(), folder / "m.onnx")
    (folder / "photos").mkdir()
    for number in range(50):
        (folder / "photos" / f"{number:02}.heic").write_bytes(HEIC)
    Image.new("RGB", (16, 16), (90, 90, 90)).save(folder / "photos" / "z.jpg")
    (folder / "pillow_heif.py").write_text(PLUGIN if with_plugin else "raise ImportError\n")
    command = "import sys; sys.path.insert(0, '.'); from trtcal.cli import main; main()"
    arguments = ["calibrate", "m.onnx", "--data", "photos", "--preset", "0-1", "--method", "minmax"]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_pictures_that_cannot_be_read_are_named_by_the_command(tmp_path: Path) -> None:
    err = calibrated(tmp_path, with_plugin=False)
    said = "WARNING: photos: 50 of 51 files were left out: 50 .heic cannot be read, pip install pillow-heif"
    assert said in err.splitlines()
    assert "1 pictures in photos" in err


def test_heic_is_read_where_a_plugin_is_installed(tmp_path: Path) -> None:
    err = calibrated(tmp_path, with_plugin=True)
    assert "left out" not in err
    assert "51 pictures in photos" in err

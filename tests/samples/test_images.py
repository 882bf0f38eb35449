from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trtcal.errors import DataError
from trtcal.judging.evaluation import labels_of
from trtcal.samples.batches import Batches, Samples
from trtcal.samples.images import ImageFolder
from trtcal.samples.options import SampleOptions
from trtcal.samples.preprocess import Preprocess, preset
from trtcal.spec import InputSpec

RAW = preset("raw", size=(4, 6))


def picture(path: Path, value: int = 0, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def folder(path: Path, preprocess: Preprocess = RAW, **more: object) -> ImageFolder:
    return ImageFolder(path, preprocess, input_name="x", **more)  # type: ignore[arg-type]


def names(source: ImageFolder) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def labels(source: ImageFolder) -> list[int | None]:
    return [source.label(index) for index in range(len(source))]


def labelled(path: Path, csv: Path) -> list[object]:
    """Classes of the pictures in a folder by a CSV file, as the batches and as a metric of classes have them."""
    options = SampleOptions(data=str(path), preset="raw", labels=str(csv))
    batches = options.open([InputSpec("x", np.dtype(np.float32), (3, 4, 6))])
    known = labels_of(batches, csv, ["top1"])
    assert isinstance(known, Mapping)
    assert [known[name] for name in batches.sample_names] == list(batches.labels or ())
    return list(batches.labels or ())


def test_a_folder_of_pictures_becomes_batches(tmp_path: Path) -> None:
    for value in range(5):
        picture(tmp_path / f"{value}.png", value)
    source = folder(tmp_path)
    assert isinstance(source, Samples)
    first, second = Batches(source, 3)
    assert first["x"].shape == (3, 3, 4, 6)
    assert first["x"].dtype == np.float32
    assert first["x"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert second["x"][:, 0, 0, 0].tolist() == [3, 4, 4]
    assert (second.samples, second.valid) == (("3.png", "4.png", "4.png"), 2)


def test_every_kind_of_picture_is_found_below_the_folder(tmp_path: Path) -> None:
    for name in ("b/c/x.JPG", "a.png", "b/y.webp", "z.bmp", "b/t.TIFF", "g.gif"):
        picture(tmp_path / name)
    Image.new("RGB", (6, 4)).save(tmp_path / "no extension", "PNG")
    for name in ("labels.csv", "b/notes.txt", ".hidden.png", "b/._x.jpg"):
        (tmp_path / name).write_text("x")
    expected = ["a.png", "b/c/x.JPG", "b/t.TIFF", "b/y.webp", "g.gif", "no extension", "z.bmp"]
    assert names(folder(tmp_path)) == expected


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no pictures \(.*\.jpg.*\); saw no files"):
        folder(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=rf"{tmp_path}: no pictures .*saw 1 \.txt"):
        folder(tmp_path)


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
def test_a_broken_picture_is_named_at_its_batch(kind: str, tmp_path: Path) -> None:
    for value in range(4):
        picture(tmp_path / f"{value}.png", value, (60, 40))
    broken = tmp_path / "2.png"
    content = broken.read_bytes()
    broken.write_bytes({"truncated": content[: len(content) // 2], "text": b"hello", "empty": b""}[kind])
    batches = iter(Batches(folder(tmp_path), 2))
    assert next(batches).valid == 2
    with pytest.raises(DataError, match=r"2\.png: .*replace or remove it"):
        next(batches)


def test_a_picture_smaller_than_the_crop_is_named_with_both_sizes(tmp_path: Path) -> None:
    picture(tmp_path / "big.png", size=(10, 10))
    picture(tmp_path / "small.png", size=(6, 3))
    with pytest.raises(DataError, match=r"small\.png: the image is 6x3 .*6x4"):
        list(Batches(folder(tmp_path, Preprocess((4, 6), resize="none")), 2))


def test_no_warning_of_pillows_escapes_the_threads(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0"  # broken: Pillow warns of it
    for number in range(8):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.jpg", exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(list(Batches(folder(tmp_path), 2))) == 4
    assert not caught


def test_a_picture_that_links_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    picture(tmp_path / "data/a.png")
    (tmp_path / "data/b.png").symlink_to(tmp_path / "data/a.png")
    assert names(folder(tmp_path / "data")) == ["a.png", "b.png"]
    (tmp_path / "data/c.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"c\.png: links to"):
        folder(tmp_path / "data")


# --- integer inputs


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float32"])
def test_pixels_come_in_the_dtype_of_the_input(dtype: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 200)
    array = folder(tmp_path, dtype=np.dtype(dtype)).load(0)["x"]
    assert array.dtype == dtype
    assert (array == 200).all()


def test_fractions_of_pixels_are_rounded_for_integer_inputs(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 51297, np.uint16)).save(tmp_path / "a.png")  # 199.6 of 255
    assert (folder(tmp_path, dtype=np.uint8).load(0)["x"] == 200).all()
    np.testing.assert_allclose(folder(tmp_path).load(0)["x"], 199.599, atol=1e-3)


def test_pixels_that_an_integer_input_cannot_hold_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 200)
    with pytest.raises(DataError, match=r"takes uint8, the preset makes fractions .*'raw'"):
        folder(tmp_path, preset("0-1", size=(4, 6)), dtype=np.uint8)
    with pytest.raises(DataError, match=r"'a\.png', input 'x': .* 200 does not fit int8"):
        folder(tmp_path, dtype=np.int8).load(0)
    shifted = preset("raw", size=(4, 6), mean=(128,))
    assert (folder(tmp_path, shifted, dtype=np.int8).load(0)["x"] == 72).all()


# --- keys


def test_the_key_is_of_names_and_content_and_not_of_the_place(tmp_path: Path) -> None:
    for value in range(3):
        picture(tmp_path / f"one/{value}.png", value)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    key = folder(tmp_path / "one").key()
    assert folder(tmp_path / "two", preset("0-1", size=(2, 2))).key() == key
    assert folder(tmp_path / "two").key([0, 1, 2]) == key
    assert folder(tmp_path / "two").key([0, 2, 1]) != key
    (tmp_path / "two/0.png").rename(tmp_path / "two/00.png")
    assert folder(tmp_path / "two").key() != key
    picture(tmp_path / "one/0.png", 9)
    assert folder(tmp_path / "one").key() != key


def test_a_picture_that_vanished_is_named_by_the_key(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    source = folder(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        source.key()


# --- labels


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png", "dog/deep/3.png"):
        picture(tmp_path / name)
    (tmp_path / "bird").mkdir()  # empty here, but it keeps its number
    source = folder(tmp_path)
    assert dict(zip(names(source), labels(source), strict=True)) == {
        "cat/2.png": 1,
        "dog/1.png": 2,
        "dog/deep/3.png": 2,
    }
    assert Batches(source, 2).labels == (1, 2, 2)
    assert source.describe() == f"3 pictures of 2 classes (1 cat, 2 dog) in {tmp_path}"


def test_without_sub_folders_there_are_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "cat/b.png")
    source = folder(tmp_path)
    assert labels(source) == [None, None]
    assert Batches(source, 2).labels is None
    assert source.describe() == f"2 pictures in {tmp_path}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.png,7\nsub/b.png,0\n", [7, 0]),
        ("file,label\na.png,7\nsub/b.png,0\n", [7, 0]),
        ("\ufeffFilename,Class\r\nsub/b.png, 0\r\n\r\n./a.png ,007\r\n", [7, 0]),
        ('"a.png","zebra"\nsub/b.png,"ant, small"\n', [1, 0]),
    ],
    ids=["plain", "header", "windows", "names"],
)
def test_a_csv_file_gives_labels(text: str, expected: list[int], tmp_path: Path) -> None:
    picture(tmp_path / "data/a.png")
    picture(tmp_path / "data/sub/b.png")
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8", newline="")
    assert labelled(tmp_path / "data", tmp_path / "labels.csv") == expected


def test_a_csv_file_takes_precedence_over_sub_folders(tmp_path: Path) -> None:
    picture(tmp_path / "data/cat/a.png")
    (tmp_path / "labels.csv").write_text("cat/a.png,281\n")
    assert labelled(tmp_path / "data", tmp_path / "labels.csv") == [281]


def test_a_picture_named_like_a_header_is_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "file", "PNG")
    (tmp_path / "labels.csv").write_text("file,3\n")
    assert labelled(tmp_path, tmp_path / "labels.csv") == [3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.png,0\nc.png,1\nb.png,1\n", r"labels\.csv:2: there is no sample 'c\.png'"),
        ("header,label\na.png,0\nb.png,1\n", r"labels\.csv:1: there is no sample 'header'"),
        ("a.png,0\nb.png,1\na.png,0\n", r"labels\.csv:3: 'a\.png' is there twice, first on line 1"),
        ("a.png,0\nb.png,1\n./a.png,0\n", r"labels\.csv:3: 'a\.png' is there twice"),
        ("a.png,0\n", r"labels\.csv: no label for 'b\.png'; add"),
        ("", r"labels\.csv: no label for 'a\.png' and 1 more"),
        ("a.png,0\nb.png\n", r"labels\.csv:2: 1 columns, expected two"),
        ("a.png,0\nb.png,1,2\n", r"labels\.csv:2: 3 columns, expected two"),
        ("a.png,0\n../secret.png,1\n", r"labels\.csv:2: '\.\./secret\.png' leads out of the folder"),
        ("a.png,0\nsub/../../secret.png,1\n", r"labels\.csv:2: .* leads out"),
        ("a.png,0\n/etc/passwd,1\n", r"labels\.csv:2: '/etc/passwd' leads out"),
        ("a.png,0\nb.png,cat\n", r"labels\.csv:1: label '0' among names"),
        ("a.png,cat\nb.png,-1\n", None),
        ("a.png,0\nb.png,\n", r"labels\.csv:"),
        ("a.png,cat\nb.png,\n", r"labels\.csv:2: label ''"),
        ('a.png,"0\nb.png,1\n', r"labels\.csv: not a CSV file"),
    ],
)
def test_labels_that_do_not_fit_are_named_with_their_line(text: str, words: str | None, tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    for name in ("a.png", "b.png"):
        picture(tmp_path / "data" / name)
    (tmp_path / "labels.csv").write_text(text)
    if words is None:  # a name like any other
        assert labelled(tmp_path / "data", tmp_path / "labels.csv") == [1, 0]
        return
    with pytest.raises(DataError, match=words):
        labelled(tmp_path / "data", tmp_path / "labels.csv")


def test_a_missing_labels_file_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"gone\.csv: the labels cannot be read: No such file"):
        labelled(tmp_path, tmp_path / "gone.csv")


def test_names_that_are_no_utf8_work_throughout(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xe9.png"
    picture(tmp_path / "a.png")
    try:
        os.rename(tmp_path / "a.png", raw)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (tmp_path / "labels.csv").write_bytes(b"\xe9.png,5\n")
    source = folder(tmp_path)
    assert labelled(tmp_path, tmp_path / "labels.csv") == [5]
    assert len(Batches(source, 1, order="sorted").key()) == 64

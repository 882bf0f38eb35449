from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import conv_model, images, save
from PIL import Image

from trtcal.errors import DataError
from trtcal.samples.batches import Batches, Samples
from trtcal.samples.listed import list_text, read_list, root_of
from trtcal.samples.options import SampleOptions
from trtcal.samples.preprocess import preset
from trtcal.samples.sources import Listed, open_source
from trtcal.spec import InputSpec

SPEC = InputSpec("image", np.dtype("float32"), (3, 8, 8))
RAW = preset("raw", size=(8, 8))
LABELLED = ["cat/0.png", "cat/1.png", "dog/0.png", "owl/0.png"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/ of three classes, arrays/ of single samples and a block, x.npy and x.npz."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in LABELLED:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    (tmp_path / "arrays").mkdir()
    np.save("arrays/a.npy", images(1)[0])
    np.save("arrays/block.npy", images(12))
    np.save("arrays/odd.npy", np.zeros(3, np.float32))  # belongs to something else
    np.save("x.npy", images(12))
    np.savez("x.npz", image=images(12), labels=np.arange(12) % 5)
    return tmp_path


def opened(text: str, where: str = "list.txt", pictures: bool = False) -> Samples:
    Path(where).write_text(text)
    source = open_source(where, inputs=[SPEC], preprocess=RAW if pictures else None)
    assert isinstance(source, Listed)
    return source


def names(source: Samples) -> list[str]:
    return [source.name(index) for index in range(len(source))]


@pytest.mark.parametrize(
    ("text", "where", "expected"),
    [
        ("[photos]\nowl/0.png\ncat/1.png\n", "list.txt", ["owl/0.png", "cat/1.png"]),
        ("# mine\n\n[photos]\r\n./owl/0.png\r\ncat//1.png", "list.txt", ["owl/0.png", "cat/1.png"]),
        ("owl/0.png\ncat/1.png\n", "photos/list.txt", ["owl/0.png", "cat/1.png"]),
        ("\ufeffphotos/owl/0.png\n", "list.txt", ["photos/owl/0.png"]),
    ],
)
def test_pictures_come_in_the_order_of_the_list(text: str, where: str, expected: list[str], folder: Path) -> None:
    source = opened(text, where, pictures=True)
    assert names(source) == expected
    whole = open_source(folder / "photos", inputs=[SPEC], preprocess=RAW)
    assert isinstance(whole, Samples)
    for index, name in enumerate(expected):
        there = LABELLED.index(name.removeprefix("photos/"))
        assert np.array_equal(source.load(index)["image"], whole.load(there)["image"])
        if "photos" not in name:
            assert source.label(index) == whole.label(there), "a part keeps the class numbers of the whole"


def test_absolute_paths_are_taken_below_the_folder(folder: Path) -> None:
    assert names(opened(f"[photos]\n{folder}/photos/cat/1.png\n", pictures=True)) == ["cat/1.png"]


@pytest.mark.parametrize("root", ["x.npy", "x.npz"])
def test_rows_of_an_array_file_are_listed_by_number(root: str, folder: Path) -> None:
    source = opened(f"[{root}]\n{root}[7]\n{root}[03]\n")
    assert names(source) == [f"{root}[07]", f"{root}[03]"]
    assert np.array_equal(source.load(0)["image"], images(12)[7])
    assert source.label(1) == (3 if root == "x.npz" else None)


def test_of_a_folder_of_arrays_only_the_listed_files_are_opened(folder: Path) -> None:
    source = opened("arrays/block.npy[11]\narrays/a.npy\n")
    assert names(source) == ["arrays/block.npy[11]", "arrays/a.npy"]
    assert np.array_equal(source.load(0)["image"], images(12)[11])
    whole = opened("arrays/block.npy\n")
    assert len(whole) == 12, "a file of several samples stands for all of them"


def test_a_list_behind_a_url_names_samples_there(folder: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/listed/x.npy", Path("x.npy").read_bytes())
    source = opened("[memory://listed/x.npy]\nx.npy[5]\n")
    assert np.array_equal(source.load(0)["image"], images(12)[5])
    memory.rm("/listed", recursive=True)


def test_a_list_of_all_has_the_key_of_all_and_another_order_another(folder: Path) -> None:
    whole = open_source("photos", inputs=[SPEC], preprocess=RAW)
    key = Batches(whole, 2).key()
    text = "[photos]\n" + "\n".join(LABELLED)
    assert Batches(opened(text, pictures=True), 2).key() == key
    assert Batches(opened("[photos]\n" + "\n".join(LABELLED[::-1]), pictures=True), 2).key() != key
    assert Batches(opened("[photos]\n" + "\n".join(LABELLED[1:]), pictures=True), 2).key() != key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[photos]\ncat/0.png\ncat/9.png\n", "list.txt:3: photos/cat/9.png: no such file"),
        ("[photos]\ncat/0.png\n./cat/0.png\n", "list.txt:3: 'cat/0.png' is there twice, first on line 2"),
        ("[photos]\n../x.npy\n", "list.txt:2: '../x.npy' leads out of photos; name the folder that holds all"),
        ("[photos]\n/etc/hosts\n", "list.txt:2: '/etc/hosts' leads out of photos"),
        ("[gone]\na.png\n", "list.txt:1: gone: no such file or folder"),
        ("[load.py]\na\n", r"list.txt:1: \[load.py\]: a list names samples of a folder.* a script's"),
        ("[load.py:f]\na\n", "a script's samples come in its own order"),
        ("[list.txt]\na\n", "a list has no lists"),
        ("photos/cat/0.png\n[photos]\n", "list.txt:2: '\\[photos\\]': only the first line"),
        ("# nothing\n\n", "list.txt: lists no samples"),
        ("[x.npy]\nx.npy[12]\n", r"list.txt:2: 'x.npy\[12\]' is no sample of 12 samples of x.npy; .*'x.npy\[00\]'"),
        ("[x.npy]\nx.npy[1]\nx.npy[01]\n", r"list.txt:3: 'x.npy\[01\]' is there twice, first on line 2"),
        ("[x.npy]\nx.npy[1]\nx.npy\n", r"list.txt:3: 'x.npy\[01\]' is there twice, first on line 2"),
        ("photos/cat/0.png\nload.py\n", "list.txt:2: 'load.py' is no sample of 1 pictures"),
    ],
)
def test_what_is_wrong_with_a_list_names_its_line(text: str, message: str, folder: Path) -> None:
    Path("load.py").write_text("def load_data():\n    return []\n")
    with pytest.raises(DataError, match=message):
        opened(text, pictures="[x.npy]" not in text)


def test_a_picture_that_cannot_be_read_names_file_and_line(folder: Path) -> None:
    Path("photos/cat/1.png").write_bytes(Path("photos/cat/1.png").read_bytes()[:60])
    source = opened("[photos]\ncat/0.png\ncat/1.png\n", pictures=True)
    with pytest.raises(DataError, match=r"list\.txt:3: photos/cat/1\.png"):
        source.load(1)


def test_a_written_list_gives_back_its_names(folder: Path) -> None:
    Path("lists").mkdir()
    for odd in ("#a.png", "[b].png", " c .png"):
        Path("photos", odd).write_bytes(Path("photos/cat/0.png").read_bytes())
    chosen = ["owl/0.png", "#a.png", "[b].png", " c .png"]
    text = list_text("lists/new.txt", "photos", chosen, "some\nof them")
    assert text.startswith("# trtcal samples: some of them\n[../photos]\n")
    assert names(opened(text, "lists/new.txt", pictures=True)) == chosen
    assert root_of("lists/new.txt") == "photos"
    again = list_text("again.txt", "lists/new.txt", chosen[:1], "of a list")
    assert again.endswith("[photos]\nowl/0.png\n"), "of a list, names are those of its folder"
    assert read_list("lists/new.txt").files == sorted(chosen)
    with pytest.raises(DataError, match="no list can hold a name with the end of a line"):
        list_text("new.txt", "photos", ["a\nb.png"], "")


def test_every_command_that_takes_samples_takes_a_list(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    save(conv_model(), folder / "m.onnx")
    Path("list.txt").write_text("[x.npz]\n" + "".join(f"x.npz[{row}]\n" for row in (9, 2, 5, 0, 1, 11, 4, 3)))
    Path("labels.csv").write_text("".join(f"{row},{row % 5}\n" for row in range(12)))
    data: tuple[Any, ...] = ("--data", "list.txt")
    code, _, err = run("calibrate", "m.onnx", *data, "-o", "c.cache", "-b", 2)
    assert (code, "8 samples listed in list.txt" in err) == (0, True), err
    for command in (
        ["sweep", "m.onnx", *data, "--batch-sizes", "2", "--methods", "minmax", "-o", "s"],
        ["evaluate", "m.onnx", *data, "--cache", "c.cache", "--labels", "labels.csv"],
        ["sensitivity", "m.onnx", *data, "--cache", "c.cache"],
        ["contact-sheet", "m.onnx", *data, "-o", "sheet.png"],
        ["refine", "m.onnx", *data, "-o", "refined.onnx"],
    ):
        code, _, err = run(*command)
        assert code == 0, f"{command[0]}: {err}"
    code, _, err = run("calibrate", "m.onnx", "--data", "list.txt", "-o", "x.npz", "--force")
    assert (code, "an input of this command" in err) == (2, True)


def test_labels_are_those_of_the_whole_and_each_listed_sample_needs_one(
    folder: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    save(conv_model(), folder / "m.onnx")
    Path("list.txt").write_text("[photos]\nowl/0.png\ncat/1.png\n")
    rows = [f"{name},{label}\n" for name, label in zip(LABELLED, "bbcd", strict=True)]
    Path("labels.csv").write_text("".join(rows))
    options = SampleOptions(data="list.txt", preset="raw", labels="labels.csv")
    assert options.open([SPEC]).labels == (2, 0), "class numbers of the whole"
    command = ["evaluate", "m.onnx", "--data", "list.txt", "--preset", "0-1", "--labels", "labels.csv"]
    assert run(*command)[0] == 0
    Path("labels.csv").write_text("".join(rows[:3]))
    code, _, err = run(*command)
    assert (code, "labels.csv: no label for 'owl/0.png'" in err) == (2, True), err

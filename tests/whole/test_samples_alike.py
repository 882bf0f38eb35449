"""Whatever opens samples opens the same ones: every kind of source, with every option, by every door."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from models import conv_model, make_model, save
from onnx import helper
from PIL import Image

from trtcal.cli import app
from trtcal.errors import DataError, TrtcalError
from trtcal.model.open import open_model
from trtcal.samples.batches import Batches, sample_digest
from trtcal.samples.options import SampleOptions
from trtcal.samples.preprocess import PRESETS

Options = Mapping[str, Any]
Outcome = Any  # a digest of the batches, or the text of an error
Door = Callable[[Path, Options], Outcome]

SOURCES = [
    "photos",
    "classes",
    "x.npy",
    "x.npz",
    "arrays",
    "mixed",
    "load.py:f",
    "u8.npy",
    "load.py:u8",
    "gone",
    "other",
]
REFUSED = ("gone", "other", "memory://alike/gone")  # whatever the options
URLS = ["memory://alike/photos", "memory://alike/x.npz", "memory://alike/gone"]

KNOBS: dict[str, Any] = {
    "resize": "letterbox",
    "resize_to": 12,
    "crop": "none",
    "interpolation": "nearest",
    "color": "BGR",
    "scale": 0.5,
    "mean": (1.0, 2.0, 3.0),
    "std": (4.0,),
    "pad_value": 7,
    "layout": "CHW",
}
SOME: list[dict[str, Any]] = [
    {},
    {"preset": "0-1"},
    {"preset": "raw"},
    {"preset": "raw", "labels": "labels.csv"},
    {"labels": "rows.csv"},
    {"shape": ("3x8x8",)},
    {"samples": 4},
    {"partial": "error", "batch_size": 4},
]
OPTIONS = [
    *SOME,
    *({"preset": name.replace("<size>", "9")} for name in (*PRESETS, "torchvision-4", "nope") if name != "raw"),
    *({"preset": "torchvision-9" if name == "resize_to" else "0-1", name: value} for name, value in KNOBS.items()),
    *({name: value} for name, value in KNOBS.items() if name in ("scale", "mean", "layout")),
    *({"preset": "raw", "layout": layout} for layout in ("CHW", "HWC")),
    {"preset": "raw", "scale": 0.5},
    {"preset": "raw", "color": "GBR"},
    *({"preset": "raw", "labels": name} for name in ("few.csv", "unknown.csv", "none.csv")),
    {"labels": "unknown.csv"},
    *({"shape": shapes} for shapes in (("image:3x8x8",), ("3x9x9",), ("x:3x8x8",), ("8",))),
    {"batch_size": 4},
    *({"samples": number} for number in (1, 99)),
    *({"order": order, "samples": 4} for order in ("sorted", "shuffled", "sideways")),
    {"order": "shuffled", "seed": 3},
    *({"partial": partial, "batch_size": 4} for partial in ("wrap", "drop", "fold")),
]


def pixels(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and one source of every kind."""
    top = tmp_path_factory.mktemp("alike")
    save(conv_model(), top / "m.onnx")
    save(make_model([helper.make_node("Relu", ["image"], ["y"])], {"image": ["N", 3, "H", "W"]}, ["y"]), top / "d.onnx")
    for name in ("photos", "mixed", "classes/ant", "classes/bee", "arrays", "other"):
        (top / name).mkdir(parents=True)
    for number in range(6):
        for place in ("photos", f"classes/{'ant' if number < 4 else 'bee'}"):
            pixels(number).save(top / place / f"{number}.png")
    pixels(7).save(top / "mixed" / "7.png")
    x = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32)
    for name in ("x.npy", "mixed/x.npy", "arrays/block.npy"):
        np.save(top / name, x)
    np.save(top / "arrays" / "one.npy", x[0])
    np.savez(top / "x.npz", image=x, labels=np.arange(6) % 3)
    (top / "load.py").write_text(
        "import numpy as np\ndef f():\n    rng = np.random.default_rng(0)\n"
        "    for _ in range(3):\n        yield {'image': rng.normal(size=(2, 3, 8, 8)), 'labels': [0, 1]}\n"
    )
    with open(top / "load.py", "a") as file:
        file.write("def u8():\n    return [np.ones((2, 3, 8, 8), 'u1')]\n")
    np.save(top / "u8.npy", np.ones((2, 3, 8, 8), np.uint8))
    (top / "other" / "a.txt").write_text("x")
    (top / "labels.csv").write_text("".join(f"{number}.png,{number % 2}\n" for number in range(6)))
    (top / "few.csv").write_text("0.png,1\n")
    (top / "unknown.csv").write_text("nobody,1\n")
    (top / "rows.csv").write_text("".join(f"{row},{'ab'[row % 2]}\n" for row in range(6)))
    return top


@pytest.fixture(scope="module")
def urls(folder: Path) -> Iterator[None]:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'trtcal[remote]'")
    memory = fsspec.filesystem("memory")
    for name in ("photos", "x.npz"):
        memory.put(str(folder / name), f"/alike/{name}", recursive=True)
    yield
    memory.rm("/alike", recursive=True)


# --- the doors: each gives the batches that a person's words open, or the line in which they are refused


class Opened(Exception):
    """Carries what a door opened out of the command that would go on to use it."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches


def outcome(open_it: Callable[[], Batches]) -> Outcome:
    """Batches -> what is in them, to the last bit, with labels and padding; an error -> its text."""
    try:
        batches = open_it()
        rows = [
            (batch.samples, batch.valid, [sample_digest("", {k: a[row] for k, a in batch.items()}) for row in range(n)])
            for batch in batches
            for n in [len(batch.samples)]
        ]
        return rows, batches.labels, str(batches.accounting()), batches.key()
    except (TrtcalError, ValueError) as error:
        return str(error)


def words(options: Options) -> list[str]:
    """Options -> the words of a command line that say them."""
    found = []
    for name, value in options.items():
        values = value if name == "shape" else [",".join(map(str, value)) if isinstance(value, tuple) else value]
        found += [word for one in values for word in (f"--{name.replace('_', '-')}", str(one))]
    return found


@pytest.fixture
def command(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> Door:
    def door(model: Path, options: Options) -> Outcome:
        opened: list[Batches] = []

        def stop(model: Path, batches: Batches, *_: Any, **__: Any) -> None:
            opened.append(batches)
            raise DataError("opened")

        monkeypatch.setattr("trtcal.calibration.file.calibrate_to_file", stop)
        code, _, err = run("calibrate", model, *words(options))
        assert code == 2
        return outcome(lambda: opened[0]) if opened else err.splitlines()[-1].removeprefix("trtcal: error: ")

    return door


@pytest.fixture
def sweeps_judge(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> Door:
    def door(model: Path, options: Options) -> Outcome:
        opened: list[Batches] = []

        def stop(*_: Any, judged_on: Batches, **__: Any) -> None:
            opened.append(judged_on)
            raise DataError("opened")

        monkeypatch.setattr("trtcal.sweep.run.run_sweep", stop)
        said = {"eval_samples" if name == "samples" else name: value for name, value in options.items()}
        code, _, err = run("sweep", model, "--eval-data", options["data"], *words(said))
        assert code == 2
        return outcome(lambda: opened[0]) if opened else err.splitlines()[-1].removeprefix("trtcal: error: ")

    return door


def in_a_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, row: Options) -> Outcome:
    pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'trtcal[zoo]'")
    from trtcal.zoo.file import read_zoo
    from trtcal.zoo.run import run_row

    opened: list[Batches] = []

    def stop(batches: Batches, *_: Any) -> None:
        opened.append(batches)  # what is judged, which is what calibrates where there is nothing else
        raise DataError("opened")

    monkeypatch.setattr("trtcal.zoo.run.labels_of", stop)
    (tmp_path / "zoo.yaml").write_text(json.dumps({"models": [{"model": str(model), **row}]}))
    found = run_row(read_zoo(tmp_path / "zoo.yaml")[0], folder=tmp_path / "zoo")
    return outcome(lambda: opened[0]) if opened else str(found.error).partition(": ")[2]


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Door:
    return lambda model, options: in_a_zoo(tmp_path, monkeypatch, model, options)


@pytest.fixture
def zoos_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Door:
    def door(model: Path, options: Options) -> Outcome:
        said = {"eval_samples" if name == "samples" else name: value for name, value in options.items()}
        return in_a_zoo(tmp_path, monkeypatch, model, {**said, "eval_data": options["data"]})

    return door


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Door:
    from calibrators import command

    def door(model: Path, options: Options) -> Outcome:
        opened: list[Batches] = []

        def stop(*arguments: Any) -> None:
            opened.append(command._batches(*arguments))
            raise DataError("opened")

        monkeypatch.setattr(command, "_calibrator", stop)
        code = command.main(["--int8", "--onnx", str(model), "--engine", "m.engine", *words(options)])
        assert code == 2
        line = capsys.readouterr().err.splitlines()[-1]
        return outcome(lambda: opened[0]) if opened else line.partition(": error: ")[2]

    return door


DOORS = ("command", "zoo", "build", "sweeps_judge", "zoos_judge")
COMMAND_LINE = typer.main.get_command(app)


@pytest.fixture(autouse=True)
def _the_command_line_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.main.get_command", lambda _: COMMAND_LINE)


def hold_together(request: pytest.FixtureRequest, name: str, source: str, every: list[dict[str, Any]]) -> set[bool]:
    """A door, a source and sets of options -> whether some of them were refused, and whether some were not."""
    door: Door = request.getfixturevalue(name)
    folder: Path = request.getfixturevalue("folder")
    seen = set()
    for options in every:
        if name.endswith("judge") and {"order", "seed", "partial"} & options.keys():
            continue  # those are the calibration's alone
        model = folder / ("d.onnx" if "shape" in options else "m.onnx")
        said = {**options, "data": source if "://" in source else str(folder / source)}
        if "labels" in said:
            said["labels"] = str(folder / said["labels"])
        inputs = open_model(model).inputs
        calibrates = name == "command"  # what judges takes batches of any size

        def open_it(said: Options = said, inputs: Any = inputs, calibrates: bool = calibrates) -> Batches:
            return SampleOptions(**said).open(inputs, calibrating=calibrates)

        expected = outcome(open_it)
        assert door(model, said) == expected, options
        seen.add(isinstance(expected, str))
    return seen


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_opens_the_same_samples_or_refuses_them_in_the_same_words(
    door: str, source: str, request: pytest.FixtureRequest
) -> None:
    seen = hold_together(request, door, source, SOME)
    assert seen == ({True} if source in REFUSED else {True, False})


@pytest.mark.parametrize("door", DOORS)
def test_every_option_is_the_same_by_every_door(door: str, request: pytest.FixtureRequest) -> None:
    assert hold_together(request, door, "photos", OPTIONS) == {True, False}


@pytest.mark.exhaustive(reason="all sources times all options")
@pytest.mark.parametrize("source", [*SOURCES, *URLS])
@pytest.mark.parametrize("door", DOORS)
def test_every_source_with_every_option_is_the_same_by_every_door(
    door: str, source: str, request: pytest.FixtureRequest
) -> None:
    if source in URLS:
        request.getfixturevalue("urls")
    seen = hold_together(request, door, source, OPTIONS)
    assert seen == ({True} if source in REFUSED else {True, False})


@pytest.mark.parametrize(
    ("words", "patched", "expected"),
    [
        (["sensitivity", "--cache", "c.cache"], "trtcal.judging.sensitivity.sensitivity", 64),
        (["sensitivity", "--cache", "c.cache", "--samples", "10"], "trtcal.judging.sensitivity.sensitivity", 10),
        (["evaluate", "--against", "m.onnx", "--samples", "10"], "trtcal.judging.evaluation.compare", 10),
        (["calibrate", "--samples", "10"], "trtcal.calibration.file.calibrate_to_file", 10),
        (["sweep", "--samples", "10"], "trtcal.sweep.run.run_sweep", 10),
        (["sweep", "--eval-samples", "10"], "trtcal.sweep.cpu_judge.CpuJudge", 10),
        (["sweep", "--eval-data", "sorted.npz", "--eval-samples", "10"], "trtcal.sweep.cpu_judge.CpuJudge", 10),
    ],
)
def test_a_part_of_samples_sorted_by_class_has_all_classes_in_every_command(
    words: list[str],
    patched: str,
    expected: int,
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    save(conv_model(), tmp_path / "m.onnx")
    classes = np.repeat(np.arange(5), 40)
    x = np.zeros((200, 3, 8, 8), np.float32)
    np.savez(tmp_path / "sorted.npz", image=x, labels=classes)
    (tmp_path / "c.cache").write_bytes(b"TRT-8601-EntropyCalibration2\nimage: 3c010a14\n")
    found: list[Batches] = []

    def stop(*arguments: Any, **_: Any) -> None:
        found.extend(argument for argument in arguments if isinstance(argument, Batches))
        raise DataError("opened")

    monkeypatch.setattr(patched, stop)
    assert run(words[0], "m.onnx", "--data", "sorted.npz", *words[1:])[0] == 2
    labels = found[0].labels
    assert labels is not None
    assert labels == tuple(sorted(labels))
    counts = np.bincount(labels)
    assert (len(counts), counts.sum(), np.ptp(counts) <= 1) == (5, expected, True)


def test_a_contact_sheet_shows_samples_of_all_classes(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    save(conv_model(), tmp_path / "m.onnx")
    x = np.repeat(np.arange(4, dtype=np.float32), 30)[:, None, None, None] * np.ones((3, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "l.csv").write_text("".join(f"{row},{row // 30}\n" for row in range(120)))
    for more in ([], ["--labels", "l.csv"], ["--count", 4], ["--samples", 60]):
        code, _, err = run("contact-sheet", "m.onnx", "--data", "x.npy", "-o", "s.png", *more)
        assert code == 0
        assert " 0        1.5      1.118          3" in err  # least, mean, deviation and largest of 0, 1, 2 and 3


@pytest.mark.parametrize("door", DOORS)
def test_urls_are_opened_alike(door: str, urls: None, request: pytest.FixtureRequest) -> None:
    for source in URLS:
        assert hold_together(request, door, source, SOME[:4]) == ({True} if source in REFUSED else {True, False})

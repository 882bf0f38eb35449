from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import conv_model, images, make_model, save
from onnx import helper
from PIL import Image

from trtcal import cli
from trtcal.cache.cache import CalibrationCache
from trtcal.cache.formats import FORMATS
from trtcal.calibration.calibrate import calibrate
from trtcal.cli import common, tables
from trtcal.ranges.growth import GROWTH
from trtcal.ranges.thresholds import METHODS
from trtcal.samples.batches import Batches
from trtcal.samples.preprocess import PRESETS
from trtcal.samples.sources import ArraySource
from trtcal.sweep import run as sweep_run
from trtcal.sweep import trials as sweep
from trtcal.sweep.emulation import RULES
from trtcal.sweep.plan import SweepPlan

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """m.onnx, x.npy, and photos/ with six pictures."""
    save(conv_model(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", images(10))
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 256, size=(12 + i, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path


def test_arrays_become_the_cache_that_the_library_makes(run: Run, folder: Path) -> None:
    code, out, err = run("calibrate", "m.onnx", "--data", "x.npy", "-b", 4, "-o", "c.cache")
    assert (code, out) == (0, "")
    expected = calibrate(folder / "m.onnx", Batches(ArraySource({"image": images(10)}), 4)).cache
    assert CalibrationCache.load(folder / "c.cache") == expected
    assert "10 samples: 3 batches of 4, last one padded with 2 repeats" in err
    assert "c.cache: 9 tensors by entropy, TRT-8601-EntropyCalibration2" in err


def test_pictures_are_prepared_by_a_preset(run: Run, folder: Path) -> None:
    assert run("calibrate", "m.onnx", "--data", "photos", "--preset", "0-1", "--method", "minmax")[0] == 0
    assert 0.5 < CalibrationCache.load("calibration.cache").amax("image") <= 1
    knobs = ["--scale", 1, "--color", "BGR", "--mean", "0,0,0"]
    assert run("calibrate", "m.onnx", "--data", "photos", "--preset", "0-1", "--method", "minmax", *knobs)[0] == 0
    assert CalibrationCache.load("calibration.cache").amax("image") > 100


def test_a_second_run_says_that_the_cache_is_up_to_date_and_a_changed_one_why_not(run: Run, folder: Path) -> None:
    command = ["calibrate", "m.onnx", "--data", "x.npy"]
    run(*command)
    assert "up to date, 9 tensors" in run(*command)[2]
    assert "calibrating again: batch size: 8 -> 2" in run(*command, "-b", 2)[2]
    assert "calibrating again" in run(*command, "-b", 2, "--force")[2]


def test_json_goes_to_standard_output_alone(run: Run, folder: Path) -> None:
    code, out, _ = run("calibrate", "m.onnx", "--data", "x.npy", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["tensors"], report["reused"]) == (9, False)
    assert report["provenance"]["batch_size"] == 8
    assert json.loads(run("calibrate", "m.onnx", "--data", "x.npy", "--json")[1])["reused"] is True


def test_quiet_says_nothing(run: Run, folder: Path) -> None:
    assert run("-q", "calibrate", "m.onnx", "--data", "x.npy") == (0, "", "")


def test_dynamic_sizes_are_fixed_by_shape(run: Run, folder: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    save(make_model([node], {"x": ["N", 3, "H", "W"]}, ["y"]), folder / "d.onnx")
    code, _, err = run("calibrate", "d.onnx", "--data", "photos", "--preset", "0-1")
    assert code == 2
    assert "leaves its size open; fix it, for instance with --shape x:3x224x224" in err
    assert run("calibrate", "d.onnx", "--data", "photos", "--preset", "0-1", "--shape", "3x16x24")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "gone.onnx", "--data", "x.npy"], "gone.onnx: cannot be read"),
        (["calibrate", "x.npy", "--data", "x.npy"], "x.npy: is not an ONNX"),
        (["calibrate", "m.onnx", "--data", "gone"], "gone: no such file or folder"),
        (["calibrate", "m.onnx", "--data", "photos"], "imagenet, torchvision-<size>, yolo-letterbox, 0-1, -1-1, raw"),
        (["calibrate", "m.onnx", "--data", "photos", "--preset", "x"], "unknown preset 'x'"),
        (["calibrate", "m.onnx", "--data", "photos", "--preset", "0-1", "--color", "GBR"], "color is one of"),
        (["calibrate", "m.onnx", "--data", "photos", "--preset", "0-1", "--mean", "a"], "--mean a: expected numbers"),
        (["calibrate", "m.onnx", "--data", "x.npy", "--mean", "1"], "--mean changes a preset; name one"),
        (["calibrate", "m.onnx", "--data", "empty"], "empty"),
        (
            ["calibrate", "m.onnx", "--data", "x.npy", "--method", "kl"],
            f"unknown method 'kl'; choose one of {next(iter(METHODS))}, ",
        ),
        (["calibrate", "m.onnx", "--data", "x.npy", "--method", "percentile:0"], "0 < q <= 100"),
        (["calibrate", "m.onnx", "--data", "x.npy", "--growth", "x"], f"choose one of {', '.join(GROWTH)}"),
        (["calibrate", "m.onnx", "--data", "x.npy", "--order", "x"], "order"),
        (["calibrate", "m.onnx", "--data", "x.npy", "--partial", "error"], "10"),
        (["calibrate", "m.onnx", "--data", "x.npy", "--trt-version", "8"], "expected a TensorRT version"),
        (["calibrate", "m.onnx", "--data", "x.npy", "--trt-version", "11.0.0"], "TensorRT 11.0.0 has no calibrators"),
        (
            ["calibrate", "m.onnx", "--data", "x.npy", "--method", "entropy:"],
            "method entropy takes no parameter, got 'entropy:'",
        ),
        (["calibrate", "m.onnx", "--data", "x.npy", "--algorithm", "Entropy"], "algorithm must be one of"),
        (["calibrate", "m.onnx", "--data", "x.npy", "-o", "no/c.cache"], "no/c.cache: cannot be written"),
        (["calibrate", "m.onnx", "--data", "nan.npy"], "the first is nan at (1, 2, 3)"),
        (["calibrate", "m.onnx", "--data", "wide.npy"], "wide.npy"),
        (["cache", "show", "m.onnx"], "m.onnx: the model has no QuantizeLinear"),
        (["cache", "show", "gone.cache"], "gone.cache: cannot be read"),
        (["contact-sheet", "m.onnx", "--data", "photos"], "imagenet"),
        (["sweep", "m.onnx", "--data", "x.npy", "--exclude", "nope"], "nope"),
        (["sweep", "m.onnx", "--data", "x.npy", "--batch-sizes", "a"], "--batch-sizes"),
        (["sweep", "m.onnx", "--data", "x.npy", "--budget", "5"], "--budget: expected a time such as 90s, 5m or 1.5h"),
        (["sweep", "m.onnx", "--data", "x.npy", "--orders", "sideways"], "unknown order 'sideways'"),
        (["report", "empty"], "trials.json"),
    ],
)
def test_wrong_input_exits_with_2_and_one_clear_line(
    run: Run, folder: Path, arguments: list[str], message: str
) -> None:
    (folder / "empty").mkdir()
    bad = images(10)
    bad[7, 1, 2, 3] = np.nan
    np.save(folder / "nan.npy", bad)
    np.save(folder / "wide.npy", np.zeros((4, 4, 8, 8), np.float32))
    before = set(folder.iterdir())
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize("output", ["m.onnx", "x.npy", "photos/0.png"])
def test_nothing_of_the_user_s_is_replaced_by_a_cache_or_a_picture(run: Run, folder: Path, output: str) -> None:
    before = (folder / output).read_bytes()
    images = ["--data", "photos", "--preset", "0-1"]
    for command in (["calibrate", "m.onnx"], ["calibrate", "m.onnx", "--force"], ["contact-sheet", "m.onnx"]):
        code, _, err = run(*command, *images, "-o", output)
        assert code == 2
        assert output in err.splitlines()[-1]
    assert run("calibrate", "m.onnx", *images, "--stats", output)[0] == 2
    assert (folder / output).read_bytes() == before
    assert not (folder / "calibration.cache").exists()


def test_what_a_script_prints_does_not_spoil_the_json(run: Run, folder: Path) -> None:
    body = "    print('hello')\n    yield {'image': np.ones((2, 3, 8, 8), np.float32)}\n"
    (folder / "loader.py").write_text(f"import numpy as np\ndef load_data():\n{body}")
    code, out, err = run("calibrate", "m.onnx", "--data", "loader.py", "-b", 2, "--json")
    assert code == 0
    assert json.loads(out)["tensors"] == 9
    assert "hello" in err


def test_a_script_that_exits_and_a_name_too_long_are_errors_of_one_line(run: Run, folder: Path) -> None:
    (folder / "quits.py").write_text("import sys\ndef load_data():\n    sys.exit(3)\n")
    for data in ("quits.py", "x" * 300):
        code, _, err = run("calibrate", "m.onnx", "--data", data)
        assert code == 2
        assert err.splitlines()[-1].startswith("trtcal: error: ")
        assert "Traceback" not in err


def test_a_fresh_calibration_is_compared_with_another_cache(run: Run, folder: Path) -> None:
    run("calibrate", "m.onnx", "--data", "x.npy", "-o", "old.cache", "--method", "minmax")
    code, _, err = run("calibrate", "m.onnx", "--data", "x.npy", "-o", "new.cache", "--against", "old.cache")
    assert code == 0
    assert "of 9 common tensors differ" in err
    assert "B / A" in err
    assert run("calibrate", "m.onnx", "--data", "x.npy", "-o", "c.cache", "--against", "gone.cache")[0] == 2
    assert not (folder / "c.cache").exists()


def test_the_cache_that_is_compared_with_is_not_replaced(run: Run, folder: Path) -> None:
    run("calibrate", "m.onnx", "--data", "x.npy", "-o", "c.cache", "--method", "minmax", "--stats", "s.npz")
    before = (folder / "c.cache").read_bytes()
    os.link(folder / "c.cache", folder / "hard")
    for against in ("c.cache", "./c.cache", "hard"):
        options = ("--against", against, "--force")
        code, _, err = run("calibrate", "m.onnx", "--data", "x.npy", "-o", "c.cache", *options)
        assert code == 2
        assert "an input of this command, which would be lost" in err
    assert (folder / "c.cache").read_bytes() == before
    assert run("calibrate", "m.onnx", "--data", "s.npz", "-o", "n.cache", "--stats", "s.npz")[0] == 2


def test_show_says_where_a_cache_comes_from(run: Run, folder: Path) -> None:
    run("calibrate", "m.onnx", "--data", "x.npy")
    out = run("cache", "show", "calibration.cache")[1]
    assert "origin: m.onnx, 10 samples of 10 samples of x.npy" in out
    assert "entropy, batches of 8, order given, growth double" in out
    report = json.loads(run("cache", "show", "calibration.cache", "--json")[1])
    assert [report["origin"][key] for key in ("method", "growth")] == ["entropy", "double"]
    assert len(report["tensors"]["image"]["hex"]) == 8


def test_a_missing_option_and_an_unknown_command_exit_with_2(run: Run, folder: Path) -> None:
    assert run("calibrate", "m.onnx")[0] == 2
    assert run("calibrat")[0] == 2


def test_interrupting_exits_with_130_and_leaves_no_cache(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trtcal.passes.executor.Here.run_pass", interrupt)
    code, _, err = run("calibrate", "m.onnx", "--data", "x.npy")
    assert code == 130
    assert "interrupted" in err
    assert not (folder / "calibration.cache").exists()


def test_a_cache_is_shown_as_a_table_and_as_json(run: Run, folder: Path) -> None:
    (folder / "c.cache").write_bytes(b"TRT-8601-EntropyCalibration2\r\na: b: 3c010a14\nc: 7f800000\n")
    code, out, _ = run("cache", "show", "c.cache")
    assert code == 0
    assert "tolerated: " in out
    assert "3c010a14" in out
    report = json.loads(run("cache", "show", "c.cache", "--json")[1])
    assert report["tensors"]["a: b"]["amax"] == pytest.approx(1.0, rel=1e-3)
    assert report["tensors"]["c"]["scale"] == "inf"


def test_a_contact_sheet_is_a_picture_with_statistics(run: Run, folder: Path) -> None:
    code, _, err = run("contact-sheet", "m.onnx", "--data", "photos", "--preset", "imagenet", "-o", "s.png")
    assert code == 0
    assert "s.png: 6 samples" in err
    with Image.open(folder / "s.png") as sheet:
        assert min(sheet.size) > 8
    assert run("contact-sheet", "m.onnx", "--data", "x.npy", "-o", "a.png")[0] == 0


def test_a_contact_sheet_replaces_no_sample_and_nothing_but_a_picture(run: Run, folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "photos" / "own.png")
    (folder / "text.png").write_text("mine")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for output, why in (("photos/own.png", "is an input of this command"), ("text.png", "exists and is no PNG")):
        code, _, err = run("contact-sheet", "m.onnx", "--data", "photos", "--preset", "imagenet", "-o", output)
        assert code == 2
        assert f"{output}: {why}" in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_doctor_reports_and_succeeds(run: Run) -> None:
    assert "numpy" in run("doctor")[1]
    assert "packages" in json.loads(run("doctor", "--json")[1])


def test_the_version_is_the_packages(run: Run) -> None:
    import trtcal

    assert run("--version")[1] == f"trtcal {trtcal.__version__}\n"


@pytest.mark.parametrize("command", ["calibrate", "demo", "contact-sheet", "doctor", "cache"])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Usage" in out


def test_build_is_the_command_of_the_calibrators(run: Run, folder: Path) -> None:
    code, out, _ = run("build", "--help")
    assert code == 0
    assert "--calib_input" in out
    code, _, err = run("build", "--onnx", "gone.onnx", "--engine", "e.engine")
    assert code == 2
    assert err.strip()


def test_help_names_every_choice_that_the_library_has(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = run("calibrate", "--help")[1]
    for row in (*METHODS.values(), *GROWTH.values()):
        assert " ".join(row.description.split()[:3]) in " ".join(text.replace("│", " ").split())
    for name in (*METHODS, *GROWTH, *PRESETS, "given", "sorted", "shuffled", "pad", "wrap", "drop", "error"):
        assert name.replace("<size>", "SIZE") in text


def test_a_command_is_understood_without_the_tables_of_its_help(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "fill", lambda command: pytest.fail("nobody asked for help"))
    assert run("cache", "convert", "gone.cache", "-o", "m.json", "--to", "tao")[0] == 2


def test_the_help_of_converting_names_every_format(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = run("cache", "convert", "--help")[1]
    assert [name for name, row in FORMATS.items() if text.count(name) < 1 + (row.format is not None)] == []


def test_the_sweep_s_help_has_the_library_s_defaults_and_choices(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = run("sweep", "--help")[1]
    assert [name for name in (*sweep.ORDERS, *RULES) if name not in text] == []
    command = inspect.signature(cli.sweep.sweep).parameters
    given = {item.name: command[item.name].default for item in fields(SweepPlan)}
    assert SweepPlan(**{**given, "methods": given["methods"] or (), "exclude": given["exclude"] or ()}) == SweepPlan()


def test_an_input_that_looks_wrong_is_remarked(run: Run, folder: Path) -> None:
    np.save(folder / "pixels.npy", np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8)).astype(np.float32))
    remark = "image reaches 255: if these are pixels, most models want them normalised first"
    assert remark in run("calibrate", "m.onnx", "--data", "pixels.npy", "--method", "minmax", "-o", "p.cache")[2]
    assert "are pixels" not in run("calibrate", "m.onnx", "--data", "x.npy", "--method", "minmax", "-o", "x.cache")[2]
    np.save(folder / "odd.npy", np.where(np.arange(8 * 192).reshape(8, 3, 8, 8) % 50, 0.01, 30).astype(np.float32))
    err = run("calibrate", "m.onnx", "--data", "odd.npy", "--method", "percentile:90", "-o", "o.cache")[2]
    assert "image is what the model is fed: trtcal contact-sheet shows whether it looks as it should" in err


@pytest.mark.parametrize(
    ("options", "served"),
    [
        (("--method", "mse"), True),
        (("--method", "entropy", "--growth", "power-of-two"), True),
        (("--method", "entropy", "--batch-size", "4"), True),
        (("--method", "entropy", "--batch-size", "2"), False),
    ],
)
def test_what_a_sweep_advises_takes_its_statistics_where_they_serve(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], served: bool
) -> None:
    advise = sweep_run.recommend
    monkeypatch.setattr(sweep_run, "recommend", lambda *given: replace(advise(*given), options=options))
    grid = ("--batch-sizes", "2,4", "--orders", "given", "--no-accuracy", "-o", "s")
    err = run("sweep", "m.onnx", "--data", "x.npy", "-b", "4", *grid)[2]
    (line,) = (line for line in err.splitlines() if line.startswith("next: "))
    trtcal, *command = shlex.split(line.removeprefix("next: "))
    assert (trtcal, "s/stats.npz" in command) == ("trtcal", served)
    before = (folder / "s" / "stats.npz").read_bytes()
    code, _, err = run(*command)
    assert code == 0, err
    assert ("the model need not run" in err) == served
    assert (folder / "s" / "stats.npz").read_bytes() == before
    made = CalibrationCache.load(folder / "model.cache")
    assert run(*(word for word in command if word not in ("--stats", "s/stats.npz", "-o", "model.cache")))[0] == 0
    assert CalibrationCache.load(folder / "calibration.cache") == made


def test_a_sweep_is_judged_on_samples_of_the_shape_that_calibrates(run: Run, folder: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    save(make_model([node], {"x": ["N", 3, "H", "W"]}, ["y"]), folder / "d.onnx")
    np.save(folder / "larger.npy", images(10, size=9))
    command = ["sweep", "d.onnx", "--data", "x.npy", "--shape", "3x8x8", "--batch-sizes", 4, "--orders", "given"]
    code, _, err = run(*command, "--eval-data", "larger.npy", "-o", "s")
    assert code == 2
    assert "'larger.npy[0]', input 'x': shape (3, 9, 9), expected (3, 8, 8)" in err.splitlines()[-1]


def test_eval_data_have_the_options_and_the_labels_that_are_given(run: Run, folder: Path) -> None:
    (folder / "few").mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (9, 9)).save(folder / "few" / f"{name}.png")
    (folder / "l.csv").write_text("a.png,0\nb.png,1\nc.png,0\n")
    command = ["sweep", "m.onnx", "--data", "photos", "--preset", "0-1", "--batch-sizes", 4, "--orders", "given"]
    code, _, err = run(*command, "--methods", "minmax", "--eval-data", "few", "--labels", "l.csv", "-o", "s")
    assert code == 0, err
    assert "Judged on 3 pictures in few." in err
    assert run(*command, "--eval-data", "few", "--eval-samples", 2, "--labels", "l.csv", "-o", "t")[0] == 0
    code, _, err = run(*command, "--labels", "l.csv", "-o", "u")
    assert code == 2
    assert "l.csv:1: there is no sample 'a.png'" in err


def test_the_command_that_a_sweep_names_does_what_its_headline_says(run: Run, folder: Path) -> None:
    command = ["sweep", "m.onnx", "--data", "x.npy", "-o", "s", "--batch-sizes", "1,4", "--orders", "given"]
    code, _, err = run(*command, "--growths", "double")
    assert code == 0
    (line,) = (line for line in err.splitlines() if line.startswith("next: trtcal "))
    assert line.endswith(" -o model.cache")
    words = line.removeprefix("next: trtcal ").split()
    assert run(*words)[0] == 0
    advice = json.loads((folder / "s" / "trials.json").read_bytes())["recommendation"]
    assert json.loads((folder / "model.cache.json").read_bytes())["provenance"]["method"] == advice["method"]
    assert advice["method"] in advice["headline"]


def test_a_sweep_judged_by_something_else_is_not_resumed(run: Run, folder: Path) -> None:
    def sweep(*more: object) -> bool:
        command = ["sweep", "m.onnx", "--data", "x.npy", "-o", "s", "--batch-sizes", 4, "--orders", "given"]
        code, _, err = run(*command, "--methods", "minmax", *more)
        if code:
            assert "s: holds a sweep with other settings (judged by); " in err.splitlines()[-1]
        return code == 0

    def labels(name: str, first: int) -> Path:
        (folder / name).write_text("".join(f"{row},{label}\n" for row, label in enumerate([first, 4, *[0] * 8])))
        return folder / name

    def metric(value: float) -> str:
        (folder / "m.py").write_text(f"def score(outputs, labels):\n    return {value}\n")
        return "m.py:score"

    for more in ([], ["--metric", metric(1.0)]):
        assert sweep("--labels", labels("a.csv", 3), *more, "--force")
        assert sweep("--labels", labels("b.csv", 3), *more, "--resume")  # lies elsewhere, says the same
        if more:
            assert sweep("--labels", "b.csv", "--metric", "./m.py:score", "--resume")
        assert not sweep("--labels", labels("a.csv", 2), *more, "--resume")
    assert sweep("--labels", "b.csv", "--metric", metric(1.0), "--resume")
    assert not sweep("--labels", "b.csv", "--metric", metric(0.5), "--resume")
    for label, how in ((1, "--force"), (1, "--resume"), (2, "--resume")):
        np.savez(folder / "x.npz", image=images(10), labels=np.full(10, label))
        assert sweep("--data", "x.npz", how) == (label == 1)


def test_help_comes_without_numpy() -> None:
    script = (
        "import sys\n"
        "from trtcal import cli\n"
        "sys.argv = ['trtcal', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'onnx', 'numba', 'PIL', 'onnxruntime'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "command", [("cache", "show", "c.cache"), ("cache", "show", "c.cache", "--json"), ("doctor",)], ids=" ".join
)
@pytest.mark.parametrize("tensors", [1, 5000])  # less and more than a pipe holds
def test_a_reader_that_has_seen_enough_ends_a_command_in_silence(
    tmp_path: Path, command: tuple[str, ...], tensors: int
) -> None:
    scales = {f"tensor {number}": np.float32(1) for number in range(tensors)}
    CalibrationCache("8601", "EntropyCalibration2", scales).save(tmp_path / "c.cache")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "trtcal", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_installed_command_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trtcal", "--version"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("trtcal ")


def test_a_sweep_says_before_it_starts_what_it_does_and_for_how_long(run: Run, folder: Path) -> None:
    grid = ("--batch-sizes", "1,4", "--orders", "given")
    code, out, err = run("sweep", "m.onnx", "--data", "x.npy", "-o", "s", *grid, "--json")
    assert code == 0
    json.loads(out)
    assert re.search(r"about \d+ seconds?: 1 pass over 10 samples, at most \d+ sets of ranges on 10", err)


def test_quick_is_a_smaller_grid_on_fewer_samples_unless_it_is_told(run: Run, folder: Path) -> None:
    np.save(folder / "many.npy", images(70))

    def quick(name: str, *more: object) -> dict[str, Any]:
        code, _, err = run("sweep", "m.onnx", "--data", "many.npy", "-o", name, "--quick", *more)
        assert code == 0, err
        found: dict[str, Any] = json.loads((folder / name / "trials.json").read_bytes())
        return found

    def grid(content: dict[str, Any]) -> tuple[set[int], set[str], int, int]:
        rows = content["arrangements"]
        judged = max(trial["judged_samples"] for trial in content["trials"])
        return {row["batch_size"] for row in rows}, {row["order"] for row in rows}, len(content["samples"]), judged

    assert grid(quick("a")) == ({1, 8, 32}, {"given"}, 32, 32)
    assert grid(quick("b", "--batch-sizes", "1,2,4,8,16,32,64", "--samples", 64)) == (
        {1, 2, 4, 8, 16, 32, 64},
        {"given"},
        64,
        64,
    )
    assert grid(quick("c", "--orders", "given,largest-last", "--eval-samples", 16))[1:] == (
        {"given", "largest-last"},
        32,
        16,
    )
    assert json.loads((folder / "a" / "settings.json").read_bytes())["plan"]["batch_sizes"] == [1, 8, 32]


def test_a_budget_ends_the_judging_says_so_and_is_resumed(run: Run, folder: Path) -> None:
    np.save(folder / "many.npy", images(40))
    command = ["sweep", "m.onnx", "--data", "many.npy", "-o", "s", "--batch-sizes", "1,4"]
    code, _, err = run(*command, "--budget", "0.001s")
    assert code == 0, err
    assert re.search(r"The time given ended: of \d+ sets of ranges 0 are judged on all 40 samples", err)
    assert (folder / "s" / "judgements.jsonl").exists()
    code, _, err = run(*command, "--resume")
    assert code == 0, err
    assert "The time given ended" not in err
    assert not (folder / "s" / "judgements.jsonl").exists()
    assert run(*command[:-4], "-o", "t", *command[-2:])[0] == 0
    assert (folder / "s" / "trials.csv").read_bytes() == (folder / "t" / "trials.csv").read_bytes()


def test_progress_is_a_line_every_30_seconds_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    tell = common.Output()._lines("sweeping", clock=lambda: now)
    for step in range(100):
        now = 1.0 * step
        tell(step, 100, "judging")
    assert capsys.readouterr().err.splitlines() == [
        "judging: 30 of 100 (30%), 30 s so far",
        "judging: 60 of 100 (60%), 60 s so far",
        "judging: 90 of 100 (90%), 90 s so far",
    ]

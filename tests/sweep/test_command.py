"""The command that a sweep prints is run as it is printed, and leaves the thresholds of the trial that it names."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import conv_model, images, make_model, save
from onnx import helper
from PIL import Image
from sequences import lstm, steps

from trtcal.cache.cache import CalibrationCache
from trtcal.ranges.thresholds import method
from trtcal.samples.options import SampleOptions
from trtcal.sweep import run as sweep_run
from trtcal.sweep.command import calibrate_command
from trtcal.sweep.run import SweepRun

Run = Callable[..., tuple[int, str, str]]

GIVEN = ("--batch-sizes", "1,3", "--orders", "given", "--growths", "double", "--exact")
ENTROPY = (*GIVEN, "--methods", "entropy")
PICTURES = ("--data", "my pictures; $(no)", "--preset")
PIXELS = ("imagenet", "--resize", "stretch", "--interpolation", "nearest", "--color", "BGR", "--mean", "-0.5,0.4,0.25")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models and data of every kind, some of them with names that a shell would take apart."""
    save(conv_model(), tmp_path / "m.onnx")
    save(conv_model(), tmp_path / "it's a model.onnx")
    save(conv_model(4), tmp_path / "fours.onnx")
    free = conv_model()
    for dimension in free.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_param = "size"
    save(free, tmp_path / "free.onnx")
    save(lstm("steps", "batch"), tmp_path / "lstm.onnx")
    np.save(tmp_path / "x.npy", images(10))
    np.save(tmp_path / "many.npy", images(35))
    times = [helper.make_node("Mul", ["image", "factor"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    inputs: dict[str, list[int | str]] = {"image": ["N", 3, 8, 8], "factor": []}
    save(make_model(times, inputs, ["y"]), tmp_path / "times.onnx")
    np.save(tmp_path / "-x.npy", images(7))
    np.save(tmp_path / "seen.npy", images(5, seed=7))
    np.save(tmp_path / "steps.npy", steps(6))
    np.savez(tmp_path / "few.npz", image=images(10), labels=np.arange(10) % 5)
    (tmp_path / "labels.csv").write_text("".join(f"{row},{row % 3}\n" for row in range(10)))
    (tmp_path / "seen.csv").write_text("".join(f"{row},{row % 3}\n" for row in range(5)))
    feed = "def feed():\n    for i in 0, 2, 4:\n        yield {'image': np.load('x.npy')[i : i + 2]}\n"
    (tmp_path / "load.py").write_text(f"import numpy as np\n\n{feed}")
    (tmp_path / "my pictures; $(no)").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 256, size=(12 + i, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "my pictures; $(no)" / f"{i}.png")
    return tmp_path


SETS: dict[str, tuple[str, ...]] = {
    "judged": ("m.onnx", "--data", "x.npy", *GIVEN),
    "the pass's own batches": ("m.onnx", "--data", "x.npy", "--batch-size", "3", *ENTROPY, "--batch-sizes", "3"),
    "pictures": ("m.onnx", *PICTURES, *PIXELS, "--std", "1,2,0.3", *ENTROPY),
    "letterbox": ("m.onnx", *PICTURES, "yolo-letterbox", "--pad-value", "7", *GIVEN, "--methods", "mse,minmax"),
    "scaled": ("it's a model.onnx", *PICTURES, "raw", "--scale", "0.0123456789", *ENTROPY),
    "a part by classes": ("m.onnx", "--data", "x.npy", "--labels", "labels.csv", "--samples", "5", *ENTROPY),
    "a part of labelled ones": ("m.onnx", "--data", "few.npz", "--samples", "4", *GIVEN, "--methods", "mse,minmax"),
    "labels of others": ("m.onnx", "--data", "x.npy", "--eval-data", "seen.npy", "--labels", "seen.csv", *ENTROPY),
    "minus": ("m.onnx", "--data=-x.npy", "-o", "-s", *GIVEN, "--methods", "percentile:99.9"),
    "a shape": ("free.onnx", "--data", "x.npy", "--shape", "image:3x8x8", *ENTROPY),
    "an axis": ("lstm.onnx", "--data", "steps.npy", "--batch-axis", "x=1", *ENTROPY),
    "wrapped": ("m.onnx", "--data", "x.npy", "--partial", "wrap", *ENTROPY),
    "dropped": ("m.onnx", "--data", "x.npy", "--partial", "drop", "--batch-size", "4", *GIVEN, "--methods", "minmax"),
    "a script": ("m.onnx", "--data", "load.py:feed", *ENTROPY),
    "a built-in batch": ("fours.onnx", "--data", "x.npy", *GIVEN, "--methods", "mse"),
    "shuffled": ("m.onnx", "--data", "x.npy", *ENTROPY, "--orders", "shuffled", "--seeds", "2"),
    "quick": ("m.onnx", "--data", "many.npy", "--quick", "--exact", "--methods", "mse"),
    "an input that is fixed": ("times.onnx", "--data", "x.npy", "--input", "factor=-2.5", *GIVEN, "--methods", "mse"),
    "batch-invariant": ("m.onnx", "--data", "x.npy", *ENTROPY, "--growths", "power-of-two"),
}


def its_trial(run: SweepRun, options: dict[str, str]) -> np.ndarray:
    """The thresholds of the trial that a calibration with these options repeats."""
    by = method(options["--method"])
    rows = [trial for trial in run.sweep.trials if trial.method == by.name]
    if by.depends_on_batches and "--growth" not in options:
        where = int(options["--batch-size"]), options.get("--order", "given"), options.get("--seed")
        rows = [
            trial
            for trial in rows
            if (a := trial.configuration).growth == "double"
            and (a.batch_size, a.order, None if a.seed is None else str(a.seed)) == where
        ]
        assert len(rows) == 1
        return rows[0].amax
    found = run.sweep.invariant[by.name]
    assert any(np.array_equal(trial.amax, found) for trial in rows)
    return found


@pytest.mark.parametrize("given", SETS.values(), ids=SETS)
def test_the_printed_command_leaves_the_thresholds_of_its_trial(
    given: tuple[str, ...], run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SweepRun] = []
    real = sweep_run.run_sweep
    monkeypatch.setattr(sweep_run, "run_sweep", lambda *a, **k: made.append(real(*a, **k)) or made[-1])
    output = () if "-o" in given else ("-o", "my sweep")
    code, _, err = run("sweep", *given, *output)
    assert code == 0, err
    (line,) = (line for line in err.splitlines() if line.startswith("next: "))
    command = line.removeprefix("next: ")
    content = json.loads((made[0].folder / "trials.json").read_bytes())
    assert content["recommendation"]["command"] == made[0].recommendation.command == command
    name, *words = shlex.split(command)
    assert name == "trtcal"
    code, _, err = run(*words)
    assert code == 0, (command, err)
    cache = CalibrationCache.load("model.cache")
    options = dict(zip(made[0].recommendation.options[::2], made[0].recommendation.options[1::2], strict=True))
    for tensor, amax in zip(made[0].sweep.tensors, its_trial(made[0], options), strict=True):
        assert cache.scales[tensor] == amax / np.float32(127), (command, tensor)
    if "--stats" in words:
        assert "statistics of these samples are already there" in err, command
    assert ("--labels" in words) == (given is SETS["a part by classes"])


def test_a_shell_takes_the_line_as_it_is(run: Run, folder: Path) -> None:
    data = ["--data", "my pictures; $(no)", "--preset", "0-1"]
    code, _, err = run("sweep", "it's a model.onnx", *data, *GIVEN, "--methods", "mse", "-o", "a 'sweep'")
    assert code == 0, err
    (line,) = (line for line in err.splitlines() if line.startswith("next: "))
    with_trtcal = f'trtcal() {{ {shlex.quote(sys.executable)} -m trtcal "$@"; }}; {line.removeprefix("next: ")}'
    done = subprocess.run(["sh", "-c", with_trtcal], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "statistics of these samples are already there" in done.stderr
    assert (folder / "model.cache").exists()


def test_a_cache_of_somebody_else_is_left_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = SampleOptions(data="x.npy")
    command = calibrate_command("m.onnx", options, ("--method", "mse"), Path("s"), 8)
    assert command.startswith("trtcal calibrate m.onnx --data x.npy --batch-size 8 --method mse --stats s/stats.npz ")
    assert command.endswith(" -o model.cache")
    Path("model.cache").write_bytes(CalibrationCache("8601", "MinMaxCalibration", {"x": np.float32(1)}).format())
    assert calibrate_command("m.onnx", options, ("--method", "mse"), Path("s"), 8).endswith(" -o s/model.cache")


def test_there_is_no_command_where_none_repeats_the_trial_and_no_secret_in_one(tmp_path: Path) -> None:
    url = SampleOptions(data="https://me:cret@host/d.npz?sig=cret", labels="s3://a:cret@host/l.csv")
    command = calibrate_command("m.onnx", url, ("--method", "mse"), tmp_path, 8)
    assert "cret" not in command
    assert "--data https://host/d.npz --batch-size 8 --labels s3://host/l.csv " in command
    shuffled = ("--method", "entropy", "--batch-size", "4", "--order", "shuffled", "--seed", "3")
    assert "--order shuffled --seed 3 --method entropy -o" in calibrate_command("m.onnx", url, shuffled, tmp_path, 4)
    assert calibrate_command("m.onnx", url, shuffled, tmp_path, 4, can_shuffle=False) == ""
    assert calibrate_command("m.onnx", url, (), tmp_path, 4) == ""

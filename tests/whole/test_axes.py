"""Models whose samples do not lie on the first axis, through every command that runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import save
from sequences import batch_first, cloud, clouds, detector, heard, lstm, steps

from trtcal.cache.cache import CalibrationCache
from trtcal.calibration.calibrate import calibrate
from trtcal.judging.accuracy import agreement
from trtcal.judging.evaluation import open_runner
from trtcal.model.open import open_model
from trtcal.model.runner import OrtRunner
from trtcal.ranges.thresholds import METHODS
from trtcal.samples.options import SampleOptions

Run = Callable[..., tuple[int, str, str]]


def ranges(model: onnx.ModelProto, x: np.ndarray, method: str = "minmax", *said: str) -> dict[str, np.float32]:
    """Samples first -> what calibration finds, from batches as the model takes them."""
    opened = open_model(model).asked(said)
    batches = [opened.fed({"x": x[i : i + 4]}) for i in range(0, len(x), 4)]
    return dict(calibrate(opened, batches, method).cache.scales)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_time_major_model_has_the_ranges_of_its_twin_whose_batch_comes_first(method: str, direction: str) -> None:
    if direction == "bidirectional":
        expected = ranges(lstm("T", "batch", direction=direction), steps(), method, "x=1")
    else:
        expected = ranges(batch_first(), steps(), method)
    for sizes in (("T", "batch"), ("T", "N"), (10, "batch"), (10, 4), (10, 1)):
        said = () if "batch" in sizes or "N" in sizes else ("x=1",)
        found = ranges(lstm(*sizes, direction=direction), steps(), method, *said)
        assert {name: expected[name] for name in ("x", "all", "seen", "y")} == {
            name: found[name] for name in ("x", "all", "seen", "y")
        }, sizes


def test_ranges_of_a_recurrent_state_are_those_of_its_own_samples(tmp_path: Path) -> None:
    data = heard()
    np.savez(tmp_path / "d.npz", **data)
    model = open_model(detector()).asked(inputs=["sr=16000"])
    batches = SampleOptions(data=str(tmp_path / "d.npz")).open(model.inputs)
    found = calibrate(model, batches, "minmax")
    h, c = data["state"][:, 0], data["state"][:, 1]
    assert found.cache.amax("h") == pytest.approx(np.abs(h).max())
    assert found.cache.amax("c") == pytest.approx(np.abs(c).max())
    assert found.cache.amax("a") == pytest.approx(np.abs(data["x"] + h).max())
    assert found.cache.amax("g") == pytest.approx(np.abs((data["x"] + h) * c).max())
    assert found.cache.amax("rate") == 16000
    assert np.allclose(found.stats.tensors["a"].sample_amax, np.abs(data["x"] + h).max(axis=1))


def test_a_scalar_may_be_an_array_of_the_data_or_said_once(tmp_path: Path) -> None:
    data = heard()
    np.savez(tmp_path / "once.npz", **data)
    np.savez(tmp_path / "each.npz", **data, sr=np.full(16, 8000))
    made = []
    for file, said in (("once.npz", ["sr=8000"]), ("each.npz", [])):
        model = open_model(detector()).asked(inputs=said)
        made.append(calibrate(model, SampleOptions(data=str(tmp_path / file)).open(model.inputs), "minmax").cache)
    assert made[0] == made[1]


def test_whole_inputs_are_run_as_they_are() -> None:
    x = clouds()
    found = calibrate(cloud(32, [1, 5]), [{"x": sample} for sample in x], "minmax").cache
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in cloud(32, [1, 5]).graph.initializer}
    assert found.amax("g") == pytest.approx(np.maximum(x @ weights["w"], 0).max(), rel=1e-6)
    largest = np.abs(np.maximum(x @ weights["w"], 0).max(axis=1) @ weights["v"]).max()
    assert found.amax("y") == pytest.approx(largest, rel=1e-5)


def test_outputs_come_with_their_samples_first(tmp_path: Path) -> None:
    x = steps(6)
    np.save(tmp_path / "x.npy", x)
    with OrtRunner(batch_first()) as runner:
        expected = runner({"x": x})["y"]
    for sizes, said in ((("T", "batch"), []), (("d0", "d1"), []), ((10, 1), ["x=1"])):
        model = open_model(lstm(*sizes)).asked(said)
        batches = SampleOptions(data=str(tmp_path / "x.npy"), batch_size=4).open(model.inputs)
        with open_runner(model, batches).runner as runner:
            found = np.concatenate([runner(batch)["y"][: batch.valid] for batch in batches])
        np.testing.assert_allclose(found, expected, atol=1e-5)
        with open_runner(model, batches).runner as one, open_runner(model, batches).runner as two:
            assert agreement(one, two, batches).outputs["y"].max_abs_error == 0


CASES: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, np.ndarray], list[str]]] = {
    "state and scalar": (detector, heard(), ["--input", "sr=16000"]),
    "state and scalar, static": (lambda: detector(1), heard(), ["--input", "sr=16000", "--batch-axis", "state=1"]),
    "time first": (lambda: lstm("T", "batch"), {"x": steps()}, []),
    "time first, without names": (lambda: lstm("d0", "d1"), {"x": steps()}, []),
    "time first, static": (lambda: lstm(10, 1), {"x": steps()}, ["--batch-axis", "1"]),
    "points": (lambda: cloud("P", ["P", 5]), {"x": clouds()}, ["--batch-axis", "x=none"]),
    "points, static": (lambda: cloud(32, [1, 5]), {"x": clouds()}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_every_command_takes_them(case: str, tmp_path: Path, run: Run) -> None:
    made, data, options = CASES[case]
    save(made(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **data)
    shared = ["--data", "d.npz", "--batch-size", 4, *options]
    commands = [
        ["calibrate", "m.onnx", *shared, "--method", "minmax", "-o", "m.cache"],
        ["qdq", "m.onnx", "--cache", "m.cache", "-o", "q.onnx"],
        ["evaluate", "m.onnx", *shared, "--cache", "m.cache"],
        ["evaluate", "q.onnx", *shared, "--against", "m.onnx"],
        ["sensitivity", "m.onnx", "--cache", "m.cache", *shared],
        ["sweep", "m.onnx", *shared, "--batch-sizes", "1,4", "-o", "sweep"],
    ]
    told = {}
    for command in commands:
        code, out, err = run(*command)
        assert code == 0, (command, err)
        told[command[0]] = out
    assert "SQNR" in told["evaluate"]
    code, _, err = run(*commands[0])
    assert code == 0
    assert "up to date" in err


def test_a_zoo_s_row_has_the_same_options(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'trtcal[zoo]'")
    save(detector(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **heard())
    fed = "input: [sr=16000], batch_axis: [state=1]"
    row = f"{{name: v, model: m.onnx, data: d.npz, {fed}, batch_sizes: [1], method: minmax}}"
    (tmp_path / "zoo.yaml").write_text(f"models:\n- {row}\n")
    code, _, err = run("zoo", "zoo.yaml", "-o", "zoo")
    assert code == 0, err
    command = ["calibrate", "m.onnx", "--data", "d.npz", "--input", "sr=16000", "--method", "minmax", "-o", "m.cache"]
    assert run(*command)[0] == 0
    assert CalibrationCache.load(tmp_path / "zoo/v/model.cache") == CalibrationCache.load(tmp_path / "m.cache")


def test_another_constant_or_axis_is_another_calibration(tmp_path: Path, run: Run) -> None:
    save(detector(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **heard())
    command = ["calibrate", "m.onnx", "--data", "d.npz", "--method", "minmax", "-o", "m.cache"]
    assert run(*command, "--input", "sr=16000")[0] == 0
    code, _, err = run(*command, "--input", "sr=8000")
    assert code == 0
    assert "calibrating again: shape of sr: = 16000 -> = 8000" in err
    code, _, err = run(*command, "--input", "sr=8000", "--batch-axis", "state=1")
    assert code == 0
    assert "up to date" in err  # which the file says as well


@pytest.mark.parametrize(
    ("made", "data", "options", "message"),
    [
        (detector, heard(), [], "no array 'sr', it holds 'x', 'state'; save it under this name, or say what"),
        (lambda: detector(1), heard(), ["--input", "sr=1"], "if axis 1 of the input counts samples, say --batch-axis"),
        (lambda: lstm(10, 8), {"x": steps()}, [], "if axis 1 of the input counts samples, say --batch-axis x=1"),
        (lambda: cloud("P", ["P", 5]), {"x": clouds()}, [], "if a sample is one whole input, say --batch-axis x=none"),
        (lambda: cloud("P", ["P", 5]), {"x": clouds()[0]}, [], "would depend on which samples share a run"),
        (detector, heard(), ["--input", "sr=fast"], "--input sr=fast: expected a number"),
        (detector, heard(), ["--batch-axis", "state=7"], "give the number of the one that counts samples"),
        (detector, {**heard(), "sr": np.zeros(16)}, ["--input", "sr=1"], "array 'sr' is no input of the model"),
    ],
)
def test_where_it_cannot_be_known_the_option_that_decides_is_named(
    made: Callable[[], onnx.ModelProto],
    data: dict[str, np.ndarray],
    options: list[str],
    message: str,
    tmp_path: Path,
    run: Run,
) -> None:
    save(made(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **data)
    code, _, err = run("calibrate", "m.onnx", "--data", "d.npz", "-o", "m.cache", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "m.cache").exists()

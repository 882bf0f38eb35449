from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from bypassing import beside_int8, both_inputs
from models import conv_model, images, make_model, save

from calibrators.runner import Latency
from trtcal.cache.cache import CalibrationCache
from trtcal.calibration.calibrate import calibrate
from trtcal.judging.sensitivity import section, sensitivity
from trtcal.model.file import save_model
from trtcal.model.open import Model
from trtcal.model.opset import opset_of, rewritten
from trtcal.model.runner import OrtRunner
from trtcal.qdq.insert import insert_qdq
from trtcal.qdq.placement import PLACEMENTS
from trtcal.qdq.weights import WEIGHT_METHODS
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.spec import InputSpec

Run = Callable[..., tuple[int, str, str]]
node = onnx.helper.make_node
LABELS = np.arange(10) % 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """m.onnx, c.cache, x.npy without labels, l.npz with labels."""
    save(conv_model(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", images(10))
    np.savez(tmp_path / "l.npz", image=images(10), labels=LABELS)
    calibrate(tmp_path / "m.onnx", Batches(ArraySource({"image": images(10)}), 4)).cache.save(tmp_path / "c.cache")
    return tmp_path


# --- qdq


def test_qdq_writes_what_the_library_makes(run: Run, folder: Path) -> None:
    code, out, err = run("qdq", "m.onnx", "--cache", "c.cache", "-o", "q.onnx")
    assert (code, out) == (0, "")
    scales = CalibrationCache.load(folder / "c.cache").scales
    assert onnx.load(folder / "q.onnx") == insert_qdq(conv_model(), scales).model
    assert "q.onnx: 2 layers in INT8 (1 Conv, 1 Gemm)" in err
    assert "2 activations and 2 weight tensors are quantized; opset 13" in err
    assert err.endswith("\n2 ranges are of constants, not used\n")


def test_qdq_takes_placement_exclusions_and_a_method_for_weights(run: Run, folder: Path) -> None:
    options = ["--placement", "all", "--exclude", "Gemm", "--exclude", "poo*", "--weights", "percentile:90"]
    code, out, _ = run("qdq", "m.onnx", "--cache", "c.cache", "-o", "q.onnx", *options, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["files"] == ["q.onnx"]
    assert report["layers"] == {"conv": "Conv", "sum": "Add"}
    assert set(report["tensors"]) == {"image", "pool"}
    assert report["weights"] == ["w"]
    assert report["skipped"]["gw_output"] == "a constant, which is computed as it is"


def test_a_cache_of_another_model_does_not_pass_for_a_good_one(
    run: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("calibrate", "m.onnx", "--data", "x.npy", "-o", "m.cache")[0] == 0
    assert run("evaluate", "m.onnx", "--cache", "m.cache", "--data", "x.npy")[0] == 0
    assert not caplog.records
    lines = (folder / "m.cache").read_text().splitlines()
    few = [lines[0], *(line for line in lines if line.startswith("image:")), ""]
    (folder / "part.cache").write_text("\n".join(few))
    code, out, _ = run("evaluate", "m.onnx", "--cache", "part.cache", "--data", "x.npy")
    assert code == 0
    assert "m.onnx as INT8 with part.cache (1 of 4 layers)" in out
    assert "part.cache: 3 of 4 layers stay in float: relu: it has no scale" in caplog.text
    model = onnx.load(folder / "m.onnx")
    model.doc_string = "another version"
    onnx.save(model, folder / "m2.onnx")
    for command in (["evaluate"], ["sensitivity", "--layers", "1"]):
        caplog.clear()
        assert run(*command, "m2.onnx", "--cache", "m.cache", "--data", "x.npy")[0] == 0
        assert "m.cache: was made from another model, or another version of it: m.onnx" in caplog.text


def test_qdq_keeps_weights_outside_where_they_were_outside(run: Run, folder: Path) -> None:
    save_model(conv_model(size=16), folder / "e.onnx", external=True)
    run("calibrate", "e.onnx", "--data", "big.npy", "-o", "e.cache")
    np.save(folder / "big.npy", images(4, 16))
    run("calibrate", "e.onnx", "--data", "big.npy", "-o", "e.cache")
    code, _, err = run("qdq", "e.onnx", "--cache", "e.cache", "-o", "q.onnx")
    assert code == 0
    assert "q.onnx and q.onnx.data: 2 layers in INT8" in err
    with OrtRunner(folder / "q.onnx") as runner:
        assert runner({"image": images(2, 16)})["logits"].shape == (2, 5)


def test_neither_a_model_s_weights_nor_a_stranger_s_file_are_overwritten(run: Run, folder: Path) -> None:
    save_model(conv_model(), folder / "e.onnx", external=True)  # flat is too small to lie outside, gw is not
    (folder / "q.onnx.data").write_text("mine")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for output, why in (
        ("e.onnx.data", "is an input"),
        ("q.onnx", "q.onnx.data: exists and is no file of the weights"),
    ):
        code, _, err = run("qdq", "e.onnx", "--cache", "c.cache", "-o", output)
        assert code == 2
        assert why in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_excluded_name_is_checked_before_the_model_runs(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*_: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(OrtRunner, "__call__", called)
    for command in ("evaluate", "sensitivity"):
        code, _, err = run(command, "m.onnx", "--cache", "c.cache", "--data", "x.npy", "--exclude", "nope")
        assert code == 2
        assert "no node has the name, op type or output 'nope'" in err


@pytest.mark.parametrize("body", ["raise KeyError('scores')", "return ['x'] * len(labels)", "return outputs['a\\nb']"])
def test_a_metric_that_fails_is_one_line_that_names_it(run: Run, folder: Path, body: str) -> None:
    (folder / "m.py").write_text(f"def bad(outputs, labels):\n    {body}\n")
    for command in (["evaluate"], ["sensitivity", "--cache", "c.cache"]):
        code, out, err = run(command[0], "m.onnx", *command[1:], "--data", "l.npz", "--metric", "m.py:bad")
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert "metric m.py:bad: failed on" in err


def test_labels_go_by_the_row_s_number(run: Run, folder: Path) -> None:
    (folder / "l.csv").write_text("row,label\n" + "".join(f"{row},{row % 5}\n" for row in range(10)))
    by_file = json.loads(run("evaluate", "m.onnx", "--data", "x.npy", "--labels", "l.csv", "--json")[1])
    in_data = json.loads(run("evaluate", "m.onnx", "--data", "l.npz", "--json")[1])
    assert by_file["scores"] == in_data["scores"]
    (folder / "l.csv").write_text("10,0\n")
    code, _, err = run("evaluate", "m.onnx", "--data", "x.npy", "--labels", "l.csv")
    assert code == 2
    assert "l.csv:1: there is no sample '10'; the samples are x.npy[0] to x.npy[9], or 0 to 9" in err


def test_help_names_every_placement_and_method_for_weights(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = run("qdq", "--help")[1]
    for name in (*PLACEMENTS, *(name.split(":")[0] for name in WEIGHT_METHODS)):
        assert name in text


# --- weights


def test_weights_shows_every_method_for_every_weight(run: Run, folder: Path) -> None:
    code, out, _ = run("weights", "m.onnx")
    assert code == 0
    title, head, *rows = out.splitlines()
    assert "SQNR in dB" in title
    assert head.split() == ["tensor", "shape", *WEIGHT_METHODS]
    assert [row.split()[:2] for row in rows] == [["w", "4x3x3x3"], ["gw", "5x64"]]
    report = json.loads(run("weights", "m.onnx", "--json")[1])
    assert [row["layer"] for row in report] == ["conv", "logits"]
    assert report[0]["sqnr_db"].keys() == WEIGHT_METHODS.keys()


# --- evaluate


def test_a_model_and_a_cache_are_scored_beside_fp32(run: Run, folder: Path) -> None:
    code, out, _ = run(
        "evaluate", "m.onnx", "--cache", "c.cache", "--data", "l.npz", "--metric", "top1", "--metric", "top5"
    )
    assert code == 0
    assert out.startswith("m.onnx as INT8 with c.cache (4 of 4 layers): 10 samples\n")
    assert "top5  1.0000 (1.0000 to 1.0000)   FP32 1.0000" in out
    assert "change +0.0000 (+0.0000 to +0.0000)" in out
    assert "agreement with m.onnx" in out
    assert "logits  SQNR " in out
    assert "same top-1" in out


def test_outputs_that_no_int8_layer_leads_to_come_last_and_say_so(run: Run, tmp_path: Path) -> None:
    save(beside_int8(), tmp_path / "b.onnx")
    source = both_inputs(12)
    rows = [source.load(row) for row in range(12)]
    np.savez(tmp_path / "b.npz", **{name: np.stack([row[name] for row in rows]) for name in rows[0]})
    assert run("calibrate", "b.onnx", "--data", "b.npz", "--method", "minmax", "-o", "b.cache")[0] == 0
    code, out, _ = run("evaluate", "b.onnx", "--cache", "b.cache", "--data", "b.npz")
    assert code == 0
    lines = out.partition("agreement with b.onnx\n")[2].splitlines()
    names, ends = [line.split()[0] for line in lines], [line.split("   ")[-1] for line in lines]
    assert names == ["best", "y", "ids_out", "neg"]
    assert (ends[0], ends[2:]) == ("integers", ["no layer in INT8 leads to it"] * 2)
    assert "leads to it" not in lines[1]
    nothing = ["--exclude", "MatMul", "--exclude", "Relu"]
    out = run("evaluate", "b.onnx", "--cache", "b.cache", "--data", "b.npz", *nothing)[1]
    assert out.endswith("no output depends on a layer in INT8: this says nothing about it\n")


def test_a_qdq_model_scores_as_its_model_and_cache_do(run: Run, folder: Path) -> None:
    run("qdq", "m.onnx", "--cache", "c.cache", "-o", "q.onnx", "--placement", "all")
    options = ["--data", "l.npz", "--json"]
    by_cache = json.loads(run("evaluate", "m.onnx", "--cache", "c.cache", *options)[1])
    by_qdq = json.loads(run("evaluate", "q.onnx", "--against", "m.onnx", *options)[1])
    assert by_qdq["scores"] == by_cache["scores"]
    assert by_qdq["agreement"] == by_cache["agreement"]
    assert (by_cache["cache"], by_cache["against"]) == ("c.cache", "m.onnx")
    alone = json.loads(run("evaluate", "q.onnx", *options)[1])
    assert alone["scores"] == by_qdq["scores"]
    assert (alone["agreement"], alone["reference_scores"]) == ({}, {})


def test_leaving_everything_out_of_int8_gives_fp32(run: Run, folder: Path) -> None:
    options = ["--cache", "c.cache", "--data", "x.npy", "--exclude", "*", "--json"]
    report = json.loads(run("evaluate", "m.onnx", *options)[1])
    assert report["agreement"]["logits"]["sqnr_db"] == "inf"


def test_without_labels_there_is_agreement_alone(run: Run, folder: Path) -> None:
    code, out, _ = run("evaluate", "m.onnx", "--cache", "c.cache", "--data", "x.npy")
    assert code == 0
    assert "no labels, so no scores" in out
    assert "SQNR" in out


def test_a_metric_of_the_user_s_gets_the_labels_of_a_file_as_text(run: Run, folder: Path) -> None:
    (folder / "m.py").write_text("def length(outputs, labels):\n    return [len(text) for text in labels]\n")
    rows = [f"x.npy[{row}],{'ab' * row}{row}\n" for row in range(10)]
    (folder / "l.csv").write_text("sample,label\n" + "".join(rows).replace(",0\n", ",zero\n"))
    options = ["--data", "x.npy", "--labels", "l.csv", "--metric", "m.py:length", "--json"]
    code, out, _ = run("evaluate", "m.onnx", *options)
    assert code == 0
    assert json.loads(out)["scores"]["m.py:length"]["value"] == (4 + sum(2 * row + 1 for row in range(1, 10))) / 10


class FakeEngine:
    """calibrators.Engine, as far as the command knows it, around the FP32 model."""

    def __init__(self, path: Path) -> None:
        self.inputs = (InputSpec("image", np.dtype(np.float32), (3, 8, 8)),)
        self._runner = OrtRunner(conv_model())

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._runner(batch)

    def latency(self, batch: Mapping[str, np.ndarray]) -> Latency:
        return Latency(1.0, 2.0, 3.0, 1.5, len(batch["image"]), 100)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()


def test_an_engine_is_run_by_calibrators(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "m.engine").write_bytes(b"")
    monkeypatch.setattr("calibrators.Engine", FakeEngine, raising=False)
    code, out, _ = run("evaluate", "m.engine", "--data", "l.npz", "--against", "m.onnx", "--json")
    assert code == 0
    assert json.loads(out)["agreement"]["logits"]["sqnr_db"] == "inf"
    assert "top1" in json.loads(out)["scores"]
    assert json.loads(out)["latency"]["m.engine"]["p90_ms"] == 2.0
    code, _, err = run("evaluate", "m.engine", "--data", "l.npz", "--cache", "c.cache")
    assert code == 2
    assert "an engine has its ranges inside" in err


def test_an_engine_without_something_to_run_it_is_one_clear_line(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "m.engine").write_bytes(b"")
    for name in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    for absent in ({}, {"calibrators": None}):
        for name in absent:
            monkeypatch.setitem(sys.modules, name, None)
        code, _, err = run("evaluate", "m.engine", "--data", "l.npz")
        assert code == 2
        assert "m.engine: an engine runs only where TensorRT" in err


# --- sensitivity


def test_where_int8_loses_nothing_no_layer_recovers_nan(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtcal.judging.sensitivity._recovered", lambda *trials: float("nan"))  # as it is without noise
    code, out, err = run("sensitivity", "m.onnx", "--cache", "c.cache", "--data", "x.npy", "-o", "r.json")
    assert (code, err) == (0, "")
    assert "nan" not in out
    assert "nothing lost" in out


def test_sensitivity_prints_ranks_and_names_and_writes_the_report(run: Run, folder: Path) -> None:
    options = ["--cache", "c.cache", "--data", "x.npy", "-o", "r.json"]
    code, out, err = run("sensitivity", "m.onnx", *options)
    assert (code, err) == (0, "")
    for text in (
        "INT8 against FP32 on 10 samples: ",
        "tensors by the SQNR of their own rounding",
        "layers by what leaving each one out of INT8 recovers",
        "leave out of INT8, one after the other",
        "trtcal:\n  --exclude ",
        "trtexec:\n  --precisionConstraints=obey --layerPrecisions=",
        "polygraphy:\n  --precision-constraints obey --layer-precisions ",
    ):
        assert text in out
    scales = CalibrationCache.load(folder / "c.cache").scales
    expected = section(sensitivity(folder / "m.onnx", scales, Batches(ArraySource({"image": images(10)}), 8)))
    assert json.loads((folder / "r.json").read_text()) == expected
    assert json.loads(run("sensitivity", "m.onnx", *options, "--json")[1]) == expected


def test_sensitivity_takes_a_metric_a_number_of_layers_and_of_samples(run: Run, folder: Path) -> None:
    options = ["--cache", "c.cache", "--data", "l.npz", "--metric", "top1", "--layers", 1, "--samples", 6, "--json"]
    report = json.loads(run("sensitivity", "m.onnx", *options)[1])
    assert (report["samples"], report["metric"]) == (6, "top1")
    assert sum(layer["without"] is not None for layer in report["layers"]) == 1
    assert report["int8"]["metric"] is not None


def test_sensitivity_ends_with_its_budget(run: Run, folder: Path) -> None:
    code, out, _ = run("sensitivity", "m.onnx", "--cache", "c.cache", "--data", "x.npy", "--budget", 1e-9)
    assert code == 0
    assert "not measured; what it reads has" in out
    assert "no layers to leave out: " in out


def test_the_layers_named_recover_what_is_promised(run: Run, folder: Path) -> None:
    scales = dict(CalibrationCache.load(folder / "c.cache").scales)
    scales["image"] *= np.float32(20)
    CalibrationCache("8601", "EntropyCalibration2", scales).save(folder / "bad.cache")
    common = ["m.onnx", "--cache", "bad.cache", "--data", "x.npy", "--json"]
    report = json.loads(run("sensitivity", *common)[1])
    words = report["options"]["trtcal"].split()
    after = json.loads(run("evaluate", *common, *words)[1])
    assert after["agreement"]["logits"]["sqnr_db"] == pytest.approx(report["curve"][-1]["sqnr_db"], abs=0.5)
    assert report["curve"][-1]["recovered"] >= 0.9


# --- older opsets


def upsampling_model(opset: int, mode: str) -> onnx.ModelProto:
    """The same network in three opsets: a convolution, twice the size, a convolution."""
    spelt = {"coordinate_transformation_mode": "asymmetric"} if opset > 10 else {}
    spelt |= {"nearest_mode": "floor"} if opset > 10 and mode == "nearest" else {}
    scales = ["f", "", "scales"] if opset > 10 else ["f", "scales"]
    rng = np.random.default_rng(5)
    return make_model(
        [
            node("Conv", ["x", "w"], ["c"], name="encode", pads=[1] * 4, strides=[2, 2]),
            node("Relu", ["c"], ["f"], name="act"),
            node("Upsample" if opset == 9 else "Resize", scales, ["u"], name="up", mode=mode, **spelt),
            node("Conv", ["u", "w2"], ["y"], name="head"),
        ],
        {"x": ["N", 3, 16, 16]},
        ["y"],
        {
            "w": (rng.normal(size=(8, 3, 3, 3)) / 5).astype(np.float32),
            "w2": (rng.normal(size=(4, 8, 1, 1)) / 3).astype(np.float32),
            "scales": np.array([1, 1, 2, 2], np.float32),
        },
        opset=opset,
    )


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_a_network_is_as_good_in_int8_whichever_opset_it_is_written_in(
    run: Run, tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(16, 3, 16, 16)).astype(np.float32))
    found = []
    for opset in (9, 10, 13):
        name = f"m{opset}"
        save(upsampling_model(opset, mode), tmp_path / f"{name}.onnx")
        options = ["--data", "x.npy", "--method", "minmax"]
        assert run("calibrate", f"{name}.onnx", *options, "-o", f"{name}.cache")[0] == 0
        code, out, _ = run("qdq", f"{name}.onnx", "--cache", f"{name}.cache", "-o", f"{name}.qdq.onnx", "--json")
        assert code == 0
        assert json.loads(out)["layers"] == {"encode": "Conv", "head": "Conv"}
        code, out, _ = run("evaluate", f"{name}.onnx", "--cache", f"{name}.cache", "--data", "x.npy", "--json")
        assert code == 0
        of_the_cache = json.loads(out)["agreement"]["y"]["sqnr_db"]
        _, out, _ = run("evaluate", f"{name}.qdq.onnx", "--against", f"{name}.onnx", "--data", "x.npy", "--json")
        of_the_file = json.loads(out)["agreement"]["y"]["sqnr_db"]
        options = ["--cache", f"{name}.cache", "--data", "x.npy", "--layers", "1"]
        code, _, err = run("sensitivity", f"{name}.onnx", *options, "-o", f"{name}.json")
        assert code == 0, err
        of_the_search = json.loads((tmp_path / f"{name}.json").read_text())["int8"]["sqnr_db"]
        found.append((of_the_cache, of_the_file, of_the_search))
    assert found[0] == found[1] == found[2]
    assert all(30 < value < 45 for value in found[0])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_sensitivity_is_measured_against_the_model_as_it_was_given(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not against what raising its opset made of it: what that changes is a loss like any other."""

    def halved(model: Model, opset: int, samples: object = None) -> Model:
        if opset_of(model.proto) >= opset:
            return model
        copy = rewritten(model.proto, opset)[0]
        tensor = next(tensor for tensor in copy.graph.initializer if tensor.name == "w2")
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) / 2, "w2"))
        return replace(model, proto=copy)

    monkeypatch.setattr(Model, "with_opset", halved)
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(4, 3, 16, 16)).astype(np.float32))
    save(upsampling_model(9, "linear"), tmp_path / "m.onnx")
    assert run("calibrate", "m.onnx", "--data", "x.npy", "--method", "minmax", "-o", "m.cache")[0] == 0
    assert run("sensitivity", "m.onnx", "--cache", "m.cache", "--data", "x.npy", "-o", "s.json")[0] == 0
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["int8"]["sqnr_db"] == pytest.approx(6, abs=0.2), "the outputs are half of what they should be"


# --- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qdq", "gone.onnx", "--cache", "c.cache", "-o", "q.onnx"], "gone.onnx: cannot be read"),
        (["qdq", "m.onnx", "--cache", "gone.cache", "-o", "q.onnx"], "gone.cache: cannot be read"),
        (["qdq", "m.onnx", "--cache", "c.cache", "-o", "m.onnx"], "m.onnx: is an input of this command"),
        (["qdq", "m.onnx", "--cache", "c.cache", "-o", "c.cache"], "c.cache: is an input of this command"),
        (["qdq", "m.onnx", "--cache", "c.cache", "-o", "l.npz"], "l.npz: exists and is no ONNX model"),
        (["qdq", "m.onnx", "--cache", "c.cache", "-o", "no/q.onnx"], "no/q.onnx: cannot be written"),
        (["qdq", "m.onnx", "--cache", "c.cache", "-o", "q.onnx", "--placement", "x"], "choose one of tensorrt, all"),
        (["qdq", "m.onnx", "--cache", "c.cache", "-o", "q.onnx", "--exclude", "Convv"], "did you mean 'Conv'?"),
        (["qdq", "m.onnx", "--cache", "c.cache", "-o", "q.onnx", "--exclude", "*"], "nothing becomes INT8"),
        (["qdq", "m.onnx", "--cache", "c.cache", "-o", "q.onnx", "--weights", "kl"], "choose max, entropy or perc"),
        (["qdq", "m.onnx", "--cache", "other.cache", "-o", "q.onnx"], "other.cache: is of another model, or of an"),
        (["weights", "x.npy"], "x.npy: is not an ONNX"),
        (["evaluate", "m.onnx", "--data", "x.npy"], "nothing to measure: the samples have no labels"),
        (["evaluate", "m.onnx", "--data", "x.npy", "--metric", "top1"], "--metric top1 needs labels"),
        (["evaluate", "m.onnx", "--data", "l.npz", "--metric", "mAP"], "unknown metric 'mAP'"),
        (["evaluate", "m.onnx", "--data", "l.npz", "--metric", "gone.py:f"], "gone.py: no such file"),
        (["evaluate", "m.onnx", "--data", "l.npz", "--exclude", "Conv"], "--exclude goes with --cache"),
        (["evaluate", "m.onnx", "--data", "x.npy", "--labels", "gone.csv"], "gone.csv: the labels cannot be read"),
        (["evaluate", "m.onnx", "--data", "l.npz", "--against", "gone.onnx"], "gone.onnx: cannot be read"),
        (["evaluate", "m.onnx", "--data", "l.npz", "--cache", "c.cache", "--placement", "x"], "choose one of"),
        (["sensitivity", "m.onnx", "--cache", "c.cache", "--data", "x.npy", "--metric", "top1"], "needs labels"),
        (["sensitivity", "m.onnx", "--cache", "c.cache", "--data", "x.npy", "--budget", "-1"], "seconds > 0"),
        (["evaluate", "m.onnx", "--data", "x.npy", "--cache", "c.cache", "--exclude", "Con"], "did you mean 'Conv'?"),
        (
            ["sensitivity", "m.onnx", "--cache", "c.cache", "--data", "x.npy", "--exclude", "Con"],
            "did you mean 'Conv'?",
        ),
        (["sensitivity", "m.onnx", "--cache", "c.cache", "--data", "x.npy", "-o", "c.cache"], "is an input of this"),
        (["sensitivity", "m.onnx", "--cache", "c.cache", "--data", "x.npy", "-o", "x.npy"], "is an input of this"),
        (["sensitivity", "m.onnx", "--cache", "c.cache", "--data", "x.npy", "-o", "m.onnx"], "is an input of this"),
        (["sensitivity", "m.onnx", "--cache", "c.cache", "--data", "x.npy", "-o", "l.npz"], "exists and is no report"),
        (["sensitivity", "m.onnx", "--cache", "c.cache", "--data", "x.npy", "-o", "no/s.json"], "no does not exist"),
        (["sensitivity", "m.onnx", "--cache", "other.cache", "--data", "x.npy"], "m.onnx lacks 1 of its 1 tensor: "),
    ],
)
def test_wrong_input_exits_with_2_and_one_clear_line(
    run: Run, folder: Path, arguments: list[str], message: str
) -> None:
    (folder / "other.cache").write_bytes(b"TRT-8601-EntropyCalibration2\nother: 3c010a14\n")
    before = set(folder.iterdir())
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert set(folder.iterdir()) == before
    assert onnx.load(folder / "m.onnx") == conv_model()


@pytest.mark.parametrize("command", ["qdq", "weights", "evaluate", "sensitivity"])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Usage" in out

"""Models with operators that ONNX Runtime does not know, through every command that runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import save
from plugins import detector, doubled, images, library, twice

from trtcal.cache.provenance import read_sidecar
from trtcal.calibration.calibrate import calibrate
from trtcal.errors import ModelError, SettingError
from trtcal.judging.evaluation import open_runner
from trtcal.judging.sensitivity import sensitivity
from trtcal.model.open import open_model
from trtcal.qdq.insert import insert_qdq
from trtcal.refine.whole import refine
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.sweep.cpu_judge import CpuJudge

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """whole.onnx, cut.onnx (by hand), twice.onnx, same.onnx (in ONNX's own operators), x.npy, labelled.npz."""
    models = {"whole": detector(), "cut": detector(whole=False), "twice": twice(), "same": doubled()}
    for name, model in models.items():
        save(model, tmp_path / f"{name}.onnx")
    np.save(tmp_path / "x.npy", images(12))
    np.savez(tmp_path / "labelled.npz", image=images(12), labels=np.arange(12) % 4)
    return tmp_path


def batches(number: int = 12, size: int = 4) -> Batches:
    return Batches(ArraySource({"image": images(number)}), size)


def scales(model: onnx.ModelProto) -> dict[str, np.float32]:
    return dict(calibrate(model, batches(), "minmax").cache.scales)


def test_calibrate_writes_the_cache_of_the_model_cut_by_hand_and_names_what_is_missing(
    run: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, err = run("calibrate", "whole.onnx", "--data", "x.npy", "-o", "w.cache", "--json")
    assert code == 0
    assert run("calibrate", "cut.onnx", "--data", "x.npy", "-o", "c.cache")[0] == 0
    assert (folder / "w.cache").read_bytes() == (folder / "c.cache").read_bytes()
    why = "depends on TRT::EfficientNMS_TRT, an operator that ONNX Runtime does not know"
    assert json.loads(out)["unusable"] == {"dets": why}
    kept = read_sidecar(folder / "w.cache")
    assert kept is not None
    assert kept[1]["unusable"] == {"dets": why}
    warning = "does not know TRT::EfficientNMS_TRT (by its name a plugin of TensorRT); 1 tensor that depends on it"
    assert caplog.text.count(warning) == 1
    assert f"dets: {why}" not in err  # which --json has


def test_a_model_of_which_nothing_can_be_reached_ends_with_exit_code_2(run: Run, folder: Path) -> None:
    model = twice()
    model.graph.node[0].CopyFrom(onnx.helper.make_node("Strange", ["image"], ["c"], domain="test.ops"))
    save(model, folder / "none.onnx")
    code, _, err = run("calibrate", "none.onnx", "--data", "x.npy", "-o", "n.cache")
    assert code == 2
    assert "none.onnx: no floating-point tensor can be computed from its inputs without operators" in err
    assert "does not know: test.ops::Strange" in err
    assert not (folder / "n.cache").exists()


def test_the_q_dq_model_is_that_of_the_model_cut_by_hand_and_the_plugin() -> None:
    ranges = scales(detector())
    assert ranges == scales(detector(whole=False))
    for placement in ("tensorrt", "all"):
        whole = insert_qdq(detector(), ranges, placement=placement)
        cut = insert_qdq(detector(whole=False), ranges, placement=placement)
        assert list(whole.model.graph.node) == [*cut.model.graph.node, detector().graph.node[-1]]
        assert list(whole.model.graph.initializer) == list(cut.model.graph.initializer)
        assert (whole.quantized, whole.layers, whole.weights) == (cut.quantized, cut.layers, cut.weights)


def test_qdq_writes_it_loads_what_can_be_loaded_and_says_so(
    run: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("calibrate", "whole.onnx", "--data", "x.npy", "-o", "w.cache")[0] == 0
    assert run("qdq", "whole.onnx", "--cache", "w.cache", "-o", "q.onnx")[0] == 0
    assert "ONNX Runtime does not know TRT::EfficientNMS_TRT, and has loaded" in caplog.text
    written = onnx.load(folder / "q.onnx")
    assert written.graph.node[-1].op_type == "EfficientNMS_TRT"
    code, out, _ = run("evaluate", "q.onnx", "--against", "whole.onnx", "--data", "x.npy")
    assert code == 0
    assert "boxes" in out
    assert "scores" in out


def test_weights_in_a_file_of_their_own_stay_there(run: Run, folder: Path) -> None:
    onnx.save_model(detector(), folder / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=16)
    assert run("calibrate", "e.onnx", "--data", "x.npy", "-o", "e.cache")[0] == 0
    assert run("calibrate", "cut.onnx", "--data", "x.npy", "-o", "c.cache")[0] == 0
    assert (folder / "e.cache").read_bytes() == (folder / "c.cache").read_bytes()
    assert run("qdq", "e.onnx", "--cache", "e.cache", "-o", "q.onnx")[0] == 0
    code, out, _ = run("evaluate", "q.onnx", "--against", "e.onnx", "--data", "x.npy", "--json")
    assert (code, list(json.loads(out)["agreement"])) == (0, ["boxes", "scores"])


def test_layers_behind_a_plugin_stay_in_float_for_its_sake() -> None:
    found = insert_qdq(twice(), scales(twice()))
    assert found.layers == ("conv",)
    assert dict(found.skipped)["r"] == (
        "it depends on test.ops::Twice, an operator that ONNX Runtime does not know; Conv 'head' stays in float"
    )


def test_a_misspelt_operator_is_no_plugin_for_qdq(run: Run, folder: Path) -> None:
    model = detector("relu", "")
    save(model, folder / "m.onnx")
    assert run("calibrate", "cut.onnx", "--data", "x.npy", "-o", "c.cache")[0] == 0
    code, _, err = run("qdq", "m.onnx", "--cache", "c.cache", "-o", "q.onnx")
    assert code == 2
    assert "m.onnx: relu nms: ONNX has no operator relu, but Relu" in err.replace("'", "")


def test_int8_is_compared_on_what_goes_into_the_plugin() -> None:
    ranges = scales(detector())
    with open_runner(detector(), batches()).runner as fp32, open_runner(detector(whole=False), batches()).runner as cut:
        for batch in batches():
            found, expected = fp32(batch), cut(batch)
            assert list(found) == ["boxes", "scores"]
            assert all((found[name] == expected[name]).all() for name in expected)
    whole = open_runner(detector(), batches(), scales={**ranges, "dets": np.float32(1)}, exclude=["nms"])
    cut8 = open_runner(detector(whole=False), batches(), scales=ranges)
    assert (whole.int8, whole.candidates, whole.skipped) == (cut8.int8, cut8.candidates, cut8.skipped)
    with whole.runner as first, cut8.runner as second:
        for batch in batches():
            found, expected = first(batch), second(batch)
            assert all((found[name] == expected[name]).all() for name in expected)


def test_evaluate_says_what_is_compared(run: Run, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run("calibrate", "whole.onnx", "--data", "x.npy", "-o", "w.cache")[0] == 0
    code, out, _ = run("evaluate", "whole.onnx", "--cache", "w.cache", "--data", "x.npy", "--json")
    assert code == 0
    assert list(json.loads(out)["agreement"]) == ["boxes", "scores"]
    assert "cannot compute 'num', 'dets'; compared is what goes in there: 'boxes', 'scores'" in caplog.text


@pytest.mark.parametrize("more", [["--metric", "top1"], ["--labels", "l.csv"]])
def test_a_metric_that_is_asked_for_needs_all_outputs(run: Run, folder: Path, more: list[str]) -> None:
    (folder / "l.csv").write_text("sample,label\n" + "".join(f"{i},1\n" for i in range(12)))
    assert run("calibrate", "whole.onnx", "--data", "x.npy", "-o", "w.cache")[0] == 0
    data = ["--data", "labelled.npz" if "--metric" in more else "x.npy"]
    code, _, err = run("evaluate", "whole.onnx", "--cache", "w.cache", *data, *more)
    assert code == 2
    assert "a metric needs all outputs of the model, and ONNX Runtime cannot compute 'num', 'dets'" in err


def test_labels_that_nobody_asked_for_are_left_out_with_a_warning(
    run: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("calibrate", "whole.onnx", "--data", "x.npy", "-o", "w.cache")[0] == 0
    code, out, _ = run("evaluate", "whole.onnx", "--cache", "w.cache", "--data", "labelled.npz", "--json")
    assert code == 0
    assert json.loads(out)["scores"] == {}
    assert "the labels of the samples are not used" in caplog.text


def test_sensitivity_measures_the_model_cut_by_hand() -> None:
    ranges = scales(detector())
    whole = sensitivity(detector(), {**ranges, "dets": np.float32(1)}, batches(), layers=1)
    cut = sensitivity(detector(whole=False), ranges, batches(), layers=1)
    assert (whole.int8, whole.tensors, whole.layers) == (cut.int8, cut.tensors, cut.layers)
    with pytest.raises(ModelError, match="a metric needs all outputs of the model"):
        sensitivity(detector(), ranges, batches(), labels=np.zeros(12), metric=("m", lambda outputs, labels: 1.0))


def test_a_sweep_judges_the_model_cut_by_hand_and_its_page_says_so(run: Run, folder: Path) -> None:
    amax = dict(calibrate(detector(), batches(), "minmax").cache.scales)
    whole, cut = CpuJudge(detector(), batches()), CpuJudge(detector(whole=False), batches())
    assert whole(amax).sqnr_db == cut(amax).sqnr_db
    assert cut.notes == ()
    arguments = ["--batch-sizes", "1,4", "--seeds", 1, "--orders", "given", "--methods", "minmax", "--data", "x.npy"]
    assert run("sweep", "whole.onnx", *arguments, "-o", "s")[0] == 0
    assert "compared is what goes in there" in (folder / "s" / "report.html").read_text()


def test_refine_changes_the_weights_that_it_would_change_in_the_model_cut_by_hand() -> None:
    whole, cut = refine(detector(), batches()), refine(detector(whole=False), batches())
    assert list(whole.model.graph.initializer) == list(cut.model.graph.initializer)
    assert list(whole.model.graph.node) == [*cut.model.graph.node, detector().graph.node[-1]]
    assert [value.name for value in whole.model.graph.output] == ["num", "dets"]
    assert refine(twice(), batches()).left == {
        "head": "depends on test.ops::Twice, an operator that ONNX Runtime does not know"
    }


def test_with_a_library_commands_do_what_they_do_with_the_model_in_onnx_s_own_operators(
    run: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    option = ["--ort-library", library()]
    assert run("calibrate", "twice.onnx", "--data", "x.npy", "-o", "t.cache", *option)[0] == 0
    assert run("calibrate", "same.onnx", "--data", "x.npy", "-o", "s.cache")[0] == 0
    assert (folder / "t.cache").read_bytes() == (folder / "s.cache").read_bytes()
    assert run("qdq", "twice.onnx", "--cache", "t.cache", "-o", "q.onnx", *option)[0] == 0
    answers = []
    layers = ["--exclude", "twice", "--placement", "tensorrt"]  # in both, the convolutions alone
    for model, cache, more in (("twice.onnx", "t.cache", option), ("same.onnx", "s.cache", [])):
        common = [model, "--cache", cache, "--data", "x.npy", "--json", *layers, *more]
        answers += [run("evaluate", *common), run("sensitivity", *common, "--layers", 1)]
    assert [code for code, *_ in answers] == [0] * 4
    assert json.loads(answers[0][1])["agreement"] == json.loads(answers[2][1])["agreement"]
    assert json.loads(answers[1][1])["int8"] == json.loads(answers[3][1])["int8"]
    code, out, _ = run("evaluate", "q.onnx", "--against", "twice.onnx", "--data", "x.npy", "--json", *option)
    assert (code, list(json.loads(out)["agreement"])) == (0, ["y"])
    assert run("refine", "twice.onnx", "--data", "x.npy", "-o", "r.onnx", *option)[0] == 0
    assert "does not know" not in caplog.text


def test_results_belong_to_the_content_of_the_library_and_have_the_key_they_had_without(run: Run, folder: Path) -> None:
    assert run("calibrate", "twice.onnx", "--data", "x.npy", "-o", "t.cache")[0] == 0
    made = read_sidecar(folder / "t.cache")
    assert made is not None
    assert "ort-library" not in made[0].versions
    assert "ort-library" not in made[0].statistics_key()
    code, _, err = run("calibrate", "twice.onnx", "--data", "x.npy", "-o", "t.cache", "--ort-library", library())
    assert code == 0
    assert "calibrating again" in err
    assert "ort-library: none ->" in err
    kept = read_sidecar(folder / "t.cache")
    assert kept is not None
    assert "ort-library" in json.loads(kept[0].statistics_key())["versions"]
    _, _, err = run("calibrate", "twice.onnx", "--data", "x.npy", "-o", "t.cache", "--ort-library", library())
    assert "up to date" in err


def test_a_zoo_registers_the_libraries_of_a_row(run: Run, folder: Path) -> None:
    pytest.importorskip("yaml")
    row = {"model": "twice.onnx", "data": "x.npy", "batch_sizes": [], "ort_library": [str(library())]}
    (folder / "zoo.yaml").write_text(json.dumps({"models": [row]}))
    assert run("zoo", "zoo.yaml", "-o", "z")[0] == 0
    (found,) = json.loads((folder / "z" / "zoo.json").read_text())["models"]
    assert (found["error"], found["unusable"]) == (None, 0)


@pytest.mark.parametrize(
    "command",
    [
        ["calibrate", "twice.onnx", "--data", "x.npy"],
        ["sweep", "twice.onnx", "--data", "x.npy"],
        ["evaluate", "twice.onnx", "--data", "x.npy"],
        ["sensitivity", "twice.onnx", "--data", "x.npy", "--cache", "t.cache"],
        ["refine", "twice.onnx", "--data", "x.npy", "-o", "r.onnx"],
        ["contact-sheet", "twice.onnx", "--data", "x.npy"],
        ["qdq", "twice.onnx", "--cache", "t.cache", "-o", "q.onnx"],
        ["weights", "twice.onnx"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_refuses_a_file_that_is_no_library_and_names_it(
    run: Run, folder: Path, command: list[str]
) -> None:
    (folder / "t.cache").write_text("TRT-8601-EntropyCalibration2\nimage: 3c010a14\n")
    (folder / "ops.so").write_text("no library")
    for name, why in (("ops.so", "cannot load it as a library of custom operators"), ("none.so", "no such file")):
        code, _, err = run(*command, "--ort-library", name)
        assert code == 2, command
        assert name in err
        assert why in err


def test_an_engine_has_no_use_for_a_library(run: Run, folder: Path) -> None:
    (folder / "m.engine").write_text("")
    for command in ("evaluate", "contact-sheet"):
        assert run(command, "m.engine", "--data", "x.npy", "--ort-library", "ops.so")[0] == 2


def test_the_door_for_judging_gives_a_model_that_is_whole_again() -> None:
    cut = open_model(detector()).for_judging()
    assert [spec.name for spec in cut.outputs] == ["boxes", "scores"]
    assert not cut.unknown
    assert cut.inputs == open_model(detector()).inputs


def test_a_build_feeds_a_model_with_a_plugin_and_checks_which_axis_counts_samples(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT gets the file; what the axes mean is asked of the part that ONNX Runtime can compute."""
    from calibrators.command import _batches
    from calibrators.options import parser

    def fed(model: str, *more: str) -> Batches:
        flags = ["--onnx", str(folder / model), "--engine", "m.engine", "--calib_input", str(folder / "x.npy")]
        return _batches(parser().parse_args([*flags, "--calib_batch_size", "4", *more]), {"image": (4, 3, 8, 8)})

    for model, more in (("whole.onnx", ()), ("twice.onnx", ("--ort-library", str(library())))):
        assert [batch["image"].shape for batch in fed(model, *more)] == [(4, 3, 8, 8)] * 3
    with pytest.raises(SettingError, match=r"none\.so: there is no such file"):
        fed("twice.onnx", "--ort-library", "none.so")
    assert not caplog.records

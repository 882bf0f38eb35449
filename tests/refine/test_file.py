from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, images, save

from trtcal.errors import OutputError
from trtcal.refine.file import MARK, partial_path, refine_to_file
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(conv_model(), tmp_path / "m.onnx")


def batches(number: int = 24) -> Batches:
    return Batches(ArraySource({"image": images(number)}), 4)


def test_the_file_says_what_it_was_refined_from_and_calibrates_as_any_other(
    model: Path, tmp_path: Path, run: Run
) -> None:
    np.savez(tmp_path / "x.npz", image=images(24))
    code, _, err = run("refine", model, "--data", "x.npz", "-o", "refined.onnx", "--report", "page.html")
    assert code == 0
    assert "dB" in err
    made = onnx.load(tmp_path / "refined.onnx")
    assert json.loads({p.key: p.value for p in made.metadata_props}[MARK]).keys() == {
        "from_sha256",
        "chosen",
        "version",
    }
    assert "What was compared" in (tmp_path / "page.html").read_text()
    assert run("calibrate", "refined.onnx", "--data", "x.npz", "-o", "r.cache")[0] == 0
    assert json.loads((tmp_path / "r.cache.json").read_text())["provenance"]["model"] == "refined.onnx"
    assert not list(tmp_path.glob("*.partial.npz"))


def test_json_has_every_layer_variant_and_number(model: Path, tmp_path: Path, run: Run) -> None:
    np.savez(tmp_path / "x.npz", image=images(24))
    code, out, _ = run("refine", model, "--data", "x.npz", "-o", "refined.onnx", "--json")
    found = json.loads(out)
    assert code == 0
    assert [row["layer"] for row in found["layers"]] == ["conv", "logits"]
    assert {"biases", "weights", "weights and biases"} <= found["variants"].keys()
    assert found["int8_sqnr_db"].keys() == {"before", "after", "change", "activations_alone"}
    assert found["scores"] == {}


def test_labels_are_scored_and_said(model: Path, tmp_path: Path, run: Run) -> None:
    np.savez(tmp_path / "x.npz", image=images(24), labels=np.zeros(24, np.int64))
    code, out, _ = run("refine", model, "--data", "x.npz", "-o", "refined.onnx", "--json", "--metric", "top5")
    assert code == 0
    assert json.loads(out)["scores"].keys() == {"top5"}
    code, _, err = run("refine", model, "--data", "x.npz", "-o", "refined.onnx", "--report", "page.html")
    assert code == 0
    assert "top1: " in err
    assert "as INT8" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "much"], "--memory much: expected a size of at least 1M"),
        (["--memory", "1K"], "expected a size of at least 1M"),
        (["--method", "kl"], "unknown method 'kl'"),
        (["--metric", "top1"], "--metric top1 needs labels"),
        (["--samples", "4"], "refining needs 8 samples or more, got 4"),
        (["-o", "m.onnx"], "m.onnx, an input of this command"),
        (["-o", "notes.txt"], "notes.txt: exists and is no ONNX model"),
        (["--report", "refined.onnx"], "is to become both"),
    ],
)
def test_a_mistake_is_one_line_exit_code_2_and_nothing_written(
    model: Path, tmp_path: Path, run: Run, arguments: list[str], message: str
) -> None:
    np.savez(tmp_path / "x.npz", image=images(24))
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given = arguments if "-o" in arguments else ["-o", "refined.onnx", *arguments]
    code, _, err = run("refine", model, "--data", "x.npz", *given)
    assert code == 2
    assert message in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = refine_to_file(model, batches(), tmp_path / "whole.onnx").files[0].read_bytes()
    output = tmp_path / "refined.onnx"
    with monkeypatch.context() as patch:

        def interrupt(*arguments: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("trtcal.refine.whole.shifts", interrupt)
        with pytest.raises(KeyboardInterrupt):
            refine_to_file(model, batches(), output)
    assert not output.exists()
    assert partial_path(output).exists()
    said: list[str] = []
    stages: list[str] = []
    refine_to_file(
        model, batches(), output, announce=said.append, progress=lambda stage, done, total: stages.append(stage)
    )
    assert "going on after the weights of 2 layers" in said[0]
    assert "second moments" not in stages
    assert output.read_bytes() == whole
    assert not partial_path(output).exists()


def test_a_checkpoint_of_other_samples_or_a_damaged_one_is_not_used(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "refined.onnx"
    whole = refine_to_file(model, batches(), output).files[0].read_bytes()
    for content in (b"", b"PK\x03\x04 cut off", b"\x93NUMPY"):
        partial_path(output).write_bytes(content)
        assert refine_to_file(model, batches(), output).files[0].read_bytes() == whole


def test_weights_beside_a_model_stay_beside_it_and_no_file_is_lost(tmp_path: Path) -> None:
    proto = conv_model()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=1000)
    made = refine_to_file(tmp_path / "m.onnx", batches(), tmp_path / "refined.onnx")
    assert made.files[0].name == "refined.onnx"
    (tmp_path / "other.onnx.data").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"other\.onnx\.data"):
        refine_to_file(tmp_path / "m.onnx", batches(), tmp_path / "other.onnx")

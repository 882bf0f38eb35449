from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from fakecuda.models import onnx_model
from PIL import Image

from calibrators.overwriting import ENGINE, TIMING_CACHE, check_build_outputs, known_as_another_kind
from trtcal.errors import OutputError
from trtcal.model.overwriting import check_output


def check(inputs: list[Path], **outputs: Path | str) -> None:
    check_build_outputs(inputs, **{"engine": None, "timing_cache": None, "cache": None, **outputs})  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["engine", "timing_cache", "cache"])
def test_an_input_is_known_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "m.onnx"
    model.write_bytes(onnx_model())
    (tmp_path / "link").symlink_to("m.onnx")
    os.link(model, tmp_path / "hard")
    for name in ("m.onnx", "./m.onnx", tmp_path / "link", tmp_path / "hard"):
        with pytest.raises(OutputError, match="an input of this command, which would be lost"):
            check([model], **{option: name})
    check([model], **{option: "other"})


def test_a_sidecar_is_a_result_too(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b"{}")
    with pytest.raises(OutputError, match=r"c\.json: is an input of this command"):
        check([tmp_path / "c.json"], cache=tmp_path / "c")
    with pytest.raises(OutputError, match="is to become both the engine and its sidecar"):
        check([], engine=tmp_path / "e.json", cache=tmp_path / "e")


def test_two_results_need_two_files_even_where_neither_exists(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is to become both the engine and the timing cache"):
        check([], engine=tmp_path / "a", timing_cache=f"{tmp_path}/./a")
    with pytest.raises(OutputError, match="is to become both the timing cache and the calibration cache"):
        check([], timing_cache=tmp_path / "a", cache=tmp_path / "a")


def test_other_kinds_of_files_are_known(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(onnx_model())
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    np.save(tmp_path / "a.npy", np.zeros(3))
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    for suffix in ("png", "jpg", "bmp", "gif"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"a.{suffix}")
    (tmp_path / "cache").write_bytes(b"TRT-8601-EntropyCalibration2\nx: 3c010a14\n")
    (tmp_path / "sidecar").write_text("{}")
    for path in tmp_path.iterdir():
        assert known_as_another_kind(path), path
        with pytest.raises(OutputError, match="exists and is no TensorRT engine, so it is not replaced"):
            check_output(path, ENGINE)


@pytest.mark.parametrize("content", [b"", b"ftrt and so on", b"TRTFAKE-PLAN", bytes(64), b"TRT-"])
def test_an_engine_and_what_is_not_known_may_be_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.engine").write_bytes(content)
    for kind in (ENGINE, TIMING_CACHE):
        check_output(tmp_path / "m.engine", kind)
        check_output(tmp_path / "absent.engine", kind)


def test_a_result_needs_a_folder_and_may_not_be_one(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder"):
        check([], engine=tmp_path)
    with pytest.raises(OutputError, match=r"the folder .* does not exist"):
        check([], timing_cache=tmp_path / "nowhere" / "x")

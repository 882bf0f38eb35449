from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from fakecuda.models import onnx_model
from PIL import Image

from calibrators.overwriting import other_kind, refuse_clashes, refuse_replacing, refuse_unwritable
from trtcal.errors import OutputError


def test_the_same_file_is_known_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "m.onnx"
    model.write_bytes(b"x")
    (tmp_path / "link").symlink_to("m.onnx")
    os.link(model, tmp_path / "hard")
    for name in ("m.onnx", "./m.onnx", tmp_path / "link", tmp_path / "hard"):
        with pytest.raises(OutputError, match="cannot hold the engine, it is the model as well"):
            refuse_clashes([("the model", model)], [("the engine", name)])
    refuse_clashes([("the model", model), ("the data", None)], [("the engine", "other"), ("the timing cache", None)])


def test_two_results_need_two_files_even_where_neither_exists(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot hold the timing cache, it is the engine as well"):
        refuse_clashes([], [("the engine", tmp_path / "a"), ("the timing cache", f"{tmp_path}/./a")])


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
        assert other_kind(path) is not None, path
        with pytest.raises(OutputError, match="not an engine; choose another name"):
            refuse_replacing(path, "an engine")


@pytest.mark.parametrize("content", [b"", b"ftrt and so on", b"TRTFAKE-PLAN", bytes(64), b"TRT-"])
def test_an_engine_and_what_is_not_known_may_be_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.engine").write_bytes(content)
    refuse_replacing(tmp_path / "m.engine", "an engine")
    refuse_replacing(tmp_path / "absent.engine", "an engine")


def test_a_result_needs_a_folder_and_may_not_be_one(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder"):
        refuse_unwritable(tmp_path)
    with pytest.raises(OutputError, match=r"the folder .* does not exist"):
        refuse_unwritable(tmp_path / "nowhere" / "x")

"""Each command reads a model's file once: what it works on is then one model, and a large file is not parsed again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, images

Run = Callable[..., tuple[int, str, str]]

SAMPLES = ("--data", "x.npy")
COMMANDS = {
    "calibrate": ("calibrate", "m.onnx", *SAMPLES, "-o", "new.cache"),
    "calibrate again": ("calibrate", "m.onnx", *SAMPLES, "-o", "m.cache"),
    "calibrate by force": ("calibrate", "m.onnx", *SAMPLES, "-o", "m.cache", "--force"),
    "qdq": ("qdq", "m.onnx", "--cache", "m.cache", "-o", "q.onnx"),
    "evaluate": ("evaluate", "m.onnx", "--cache", "m.cache", *SAMPLES),
    "sensitivity": ("sensitivity", "m.onnx", "--cache", "m.cache", *SAMPLES, "--layers", 1, "-o", "s.json"),
    "sweep": ("sweep", "m.onnx", *SAMPLES, "--batch-sizes", "1,2", "--orders", "given", "-o", "swept", "--force"),
    "zoo": ("zoo", "zoo.yaml", "-o", "zoo", "--force"),
    "check": ("cache", "check", "m.cache", "--model", "m.onnx"),
    "contact sheet": ("contact-sheet", "m.onnx", *SAMPLES),
    "weights": ("weights", "m.onnx"),
    "refine": ("refine", "m.onnx", *SAMPLES, "--cache", "m.cache", "-o", "refined.onnx"),
}


@pytest.fixture(params=["inside", "beside"])
def folder(tmp_path: Path, run: Run, request: pytest.FixtureRequest) -> Path:
    """m.onnx, with weights inside or beside it, data, and results of earlier runs to be replaced."""
    beside = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 64}
    onnx.save(conv_model(4), tmp_path / "m.onnx", **(beside if request.param == "beside" else {}))
    np.save(tmp_path / "x.npy", images(8))
    row = {"name": "one", "model": "m.onnx", "data": "x.npy", "batch_sizes": [1, 2], "orders": ["given"]}
    (tmp_path / "zoo.yaml").write_text(json.dumps({"models": [row]}))
    assert run(*COMMANDS["calibrate"][:-1], "m.cache")[0] == 0
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_parses_the_model_once(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    if command[0] == "zoo":
        pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'trtcal[zoo]'")
    parsed: Counter[str] = Counter()
    file = (folder / "m.onnx").read_bytes()
    load, from_string = onnx.load, onnx.load_model_from_string

    def counted(f: str | Path, *args: object, **options: object) -> onnx.ModelProto:
        parsed[Path(f).name] += 1
        return load(f, *args, **options)

    def in_memory(content: bytes, *args: object, **options: object) -> onnx.ModelProto:
        parsed["m.onnx"] += content == file  # and not what ONNX itself puts into bytes, to infer shapes
        return from_string(content, *args, **options)

    assert run(*command)[0] == 0  # so that there are outputs to be replaced
    for name in ("load", "load_model"):
        monkeypatch.setattr(onnx, name, counted)
    for name in ("load_from_string", "load_model_from_string"):
        monkeypatch.setattr(onnx, name, in_memory)
    code, _, err = run(*command)
    assert code == 0, err
    assert parsed["m.onnx"] == 1

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import conv_model, images, save

from trtcal.cache.cache import CalibrationCache
from trtcal.files.terminal import LineFormatter, line, lines

Run = Callable[..., tuple[int, str, str]]

EVIL = "a\x1b[2J\x1b]0;title\x07\r\nfake: line\x9b31m\u202egnp\u2028\x00\ud800"


def obeyed(text: str) -> list[str]:
    """Characters by which a text does something to a terminal, its line ends left out."""
    return [c for c in text if c != "\n" and (not c.isprintable() or 0xD800 <= ord(c) <= 0xDFFF)]


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    shown = line(EVIL)
    assert obeyed(shown) == []
    assert "\n" not in shown
    assert shown.startswith(r"a\x1b[2J\x1b]0;title\x07\r\nfake: line\x9b31m\u202egnp\u2028\x00\ud800")
    assert lines(["a\nb", "c"]) == "a\\nb\nc"


@pytest.mark.parametrize("text", ["", "plain", "größe 画像 🙂", "back\\slash", "/layer/Conv_output_0 [1]", "a\u0301"])
def test_text_of_any_language_stays_as_it_is(text: str) -> None:
    assert line(text) == text


@given(st.text(st.characters(codec=None)))
def test_any_text_is_one_line_that_can_be_written(text: str) -> None:
    shown = line(text)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert line(shown) == shown


def test_a_log_s_message_is_a_line_and_its_traceback_stays() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("%(levelname)s: %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("about %s", EVIL)
    message, *rest = stream.getvalue().split("\n")
    assert message == f"ERROR: about {line(EVIL)}"
    assert rest[0].startswith("Traceback")


# --- the commands, with hostile names in every file that they read


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    """m.onnx with hostile tensor names, x.npy, and c.cache of other such names -> a name without a line end."""
    name = EVIL.replace("\r\n", "").replace("\ud800", "")  # what both a cache and a model can hold
    model = conv_model()
    names = {"relu": f"relu{name}", "conv": f"conv{name}", "logits": f"logits{name}"}
    names["w"] = "w" + EVIL.replace("\ud800", "")
    for node in model.graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(text, text) for text in field]
        node.name = f"{node.op_type}{name}\n"
    for value in (*model.graph.output, *model.graph.initializer):
        value.name = names.get(value.name, value.name)
    save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", images(4))
    CalibrationCache("8601", f"Odd{name}", {f"only here{name}": np.float32(1), "image": np.float32(np.inf)}).save(
        tmp_path / "c.cache"
    )
    return name


@pytest.mark.parametrize(
    "command",
    [
        ("calibrate", "m.onnx", "--data", "x.npy", "-o", "new.cache", "--against", "c.cache"),
        ("calibrate", "m.onnx", "--data", "x.npy", "-o", "new.cache", "--method", "entropy", "-b", "1"),
        ("cache", "show", "c.cache"),
        ("cache", "show", "new.cache"),
        ("cache", "check", "c.cache", "--model", "m.onnx"),
        ("cache", "diff", "c.cache", "new.cache"),
        ("cache", "convert", "c.cache", "-o", "c.txt"),
        ("weights", "m.onnx"),
        ("qdq", "m.onnx", "--cache", "new.cache", "-o", "q.onnx"),
        ("evaluate", "m.onnx", "--cache", "new.cache", "--data", "x.npy"),
        ("sensitivity", "m.onnx", "--cache", "new.cache", "--data", "x.npy"),
        ("evaluate", "m.onnx", "--cache", "c.cache", "--data", "x.npy"),
        ("cache", "show", "gone\x1b[2J.cache"),
        ("-v", "calibrate", "m.onnx", "--data", "x\x1b[2J.npy", "-o", "n.cache"),
    ],
    ids=lambda command: " ".join(command[:3]).replace("\x1b", ""),
)
def test_no_command_hands_a_name_s_escapes_to_the_terminal(
    run: Run, hostile: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    if "new.cache" in command and "-o" not in command[:6]:
        assert run("-q", "calibrate", "m.onnx", "--data", "x.npy", "-o", "new.cache")[0] == 0
    np.save(tmp_path / "x\x1b[2J.npy", images(2))
    _, out, err = run(*command)
    assert obeyed(out) == []
    assert obeyed(err) == []
    assert out + err
    assert not [shown for shown in (out + err).splitlines() if shown.startswith("fake")]


def test_the_log_of_a_command_is_lines(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own, beside which none is set up
    CalibrationCache("8601", "EntropyCalibration2", {"x": np.float32(1)}).save(tmp_path / "c.cache")
    assert run("cache", "show", "c.cache")[0] == 0
    logging.getLogger("trtcal.some.part").warning("%s: starting over", EVIL)
    assert capsys.readouterr().err == f"WARNING: {line(EVIL)}: starting over\n"

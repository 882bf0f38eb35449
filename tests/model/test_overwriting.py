from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from models import conv_model, save
from PIL import Image

from trtcal.cache.formats import CACHE, RANGES
from trtcal.errors import DataError, OutputError
from trtcal.files.html import HTML_MARK
from trtcal.model.file import save_model
from trtcal.model.overwriting import (
    HTML,
    ONNX,
    PNG,
    Kind,
    check_distinct,
    check_output,
    json_of,
    only_writer,
    weights_beside,
)

HEADER = "TRT-8601-EntropyCalibration2"
REPORT = json_of("report", "r-1")
CONTENTS = {
    "cache": f"{HEADER}\nx: 3c010204\n".encode(),
    "empty cache": f"{HEADER}\n".encode(),
    "tao": b'{"tensor_scales": {"x": 1}}',
    "page": f"<html><head>{HTML_MARK}".encode(),
    "other page": b"<html><head><title>trtcal</title>",
    "png": b"\x89PNG\r\n\x1a\n...",
    "report": b'{"format": "r-1"}',
    "other json": b'{"format": "r-2"}',
    "list": b"[1]",
    "text": b"hello\n",
    "number": b"42\n",
    "npz": b"PK\x03\x04",
    "noise": bytes(range(256)),
    "onnx": conv_model().SerializeToString(),
}


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (CACHE, {"cache", "empty cache"}),
        (RANGES, {"cache", "empty cache", "tao"}),
        (ONNX, {"onnx"}),
        (HTML, {"page"}),
        (PNG, {"png"}),
        (REPORT, {"report"}),
    ],
)
def test_a_file_is_replaced_by_one_of_its_kind_alone(tmp_path: Path, kind: Kind, own: set[str]) -> None:
    replaced = set()
    for name, content in CONTENTS.items():
        (tmp_path / "o").write_bytes(content)
        try:
            check_output(tmp_path / "o", kind)
            replaced.add(name)
        except OutputError as error:
            assert f"o: exists and is no {kind.name}" in str(error)  # noqa: PT017
    assert replaced == own


def test_what_is_not_there_or_empty_may_be_written(tmp_path: Path) -> None:
    check_output(tmp_path / "o", ONNX)
    (tmp_path / "o").touch()
    check_output(tmp_path / "o", ONNX, [tmp_path / "i"])
    assert os.listdir(tmp_path) == ["o"]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_input_is_refused_under_whatever_name(tmp_path: Path, link: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c").write_bytes(CONTENTS["cache"])
    link(tmp_path / "c", tmp_path / "l")  # type: ignore[operator]
    for output in ("c", "./c", tmp_path / "c", "l"):
        for path in ("c", "l"):
            with pytest.raises(OutputError, match="an input of this command, which would be lost"):
                check_output(output, CACHE, [None, "gone", path])


def test_weights_beside_a_model_are_an_input_too(tmp_path: Path) -> None:
    save_model(conv_model(size=16), tmp_path / "m.onnx", external=True)
    with pytest.raises(OutputError, match=r"m\.onnx\.data: is an input of this command"):
        check_output(tmp_path / "m.onnx.data", Kind("x", lambda path: True), [tmp_path / "m.onnx"])
    (tmp_path / "m.onnx").rename(tmp_path / "model")
    with pytest.raises(OutputError, match=r"m\.onnx\.data: is an input of this command"):
        check_output(tmp_path / "m.onnx.data", Kind("x", lambda path: True), [tmp_path / "model"])


def test_weights_give_way_to_those_of_the_same_model_alone(tmp_path: Path) -> None:
    save_model(conv_model(size=16), tmp_path / "m.onnx", external=True)
    check_output(tmp_path / "m.onnx.data", weights_beside(tmp_path / "m.onnx"))
    with pytest.raises(OutputError, match=r"m\.onnx\.data: exists and is no file of the weights of other\.onnx"):
        check_output(tmp_path / "m.onnx.data", weights_beside(tmp_path / "other.onnx"))


def test_scripts_and_samples_are_inputs(tmp_path: Path) -> None:
    anything = Kind("x", lambda path: True)
    (tmp_path / "f.py").write_text("")
    (tmp_path / "d" / "e").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "d" / "e" / "a.png")
    np.save(tmp_path / "d" / "b.npy", np.zeros(1))
    (tmp_path / "d" / "note.json").write_text("{}")
    for output in ("f.py", "d/e/a.png", "d/b.npy"):
        with pytest.raises(OutputError, match="an input of this command"):
            check_output(tmp_path / output, anything, [f"{tmp_path / 'f.py'}:metric", tmp_path / "d"])
    check_output(tmp_path / "d" / "note.json", anything, [tmp_path / "d"])
    check_output(tmp_path / "d" / "new.png", anything, [tmp_path / "d"])


def test_what_cannot_be_written_is_said_before(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OutputError, match=r"no/o: cannot be written: the folder .*no does not exist"):
        check_output(tmp_path / "no" / "o", ONNX)
    with pytest.raises(OutputError, match="cannot be written: it is a folder"):
        check_output(tmp_path, ONNX)
    with pytest.raises(OutputError, match="fifo: cannot be written: it is no regular file"):
        check_output(tmp_path / "fifo", ONNX)


def test_deep_json_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "o").write_text("[" * 100_000)
    with pytest.raises(OutputError, match="is no report"):
        check_output(tmp_path / "o", REPORT)
    (tmp_path / "o").write_text(json.dumps({"format": "r-1", "more": 1}))
    check_output(tmp_path / "o", REPORT)


def test_a_model_that_is_there_may_be_written_again(tmp_path: Path) -> None:
    check_output(save(conv_model(), tmp_path / "q.onnx"), ONNX, [save(conv_model(), tmp_path / "m.onnx")])


def test_a_model_without_its_weights_may_be_written_again(tmp_path: Path) -> None:
    """A run that was killed between the two left it so."""
    save_model(conv_model(size=16), tmp_path / "m.onnx", external=True)
    (tmp_path / "m.onnx.data").unlink()
    check_output(tmp_path / "m.onnx", ONNX)
    check_output(tmp_path / "m.onnx.data", weights_beside(tmp_path / "m.onnx"))


def test_two_outputs_need_two_files_by_whatever_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").touch()
    os.link("a", "hard")
    for other in ("a", "./a", tmp_path / "a", "hard"):
        with pytest.raises(OutputError, match="is to become both the first and the second; choose two names"):
            check_distinct([("the first", "a"), ("none", None), ("the second", other)])
    check_distinct([("the first", "a"), ("the second", "b"), ("none", None), ("none", None)])


def test_one_writes_at_a_time_and_leaves_no_lock(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("o")
    with only_writer(tmp_path / "o"):
        for name in ("o", "link"):
            with pytest.raises(OutputError, match=f"{name}: another run is writing it"), only_writer(tmp_path / name):
                pass
        with only_writer(tmp_path / "other"):
            pass
    with only_writer(tmp_path / "o"):
        pass
    assert os.listdir(tmp_path) == ["link"]


def test_who_opened_the_lock_of_a_run_that_ends_does_not_write_beside_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, first, third = fcntl.flock, only_writer(tmp_path / "o"), only_writer(tmp_path / "o")

    def late(file: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.__exit__(None, None, None)
        third.__enter__()
        flock(file, operation)

    first.__enter__()
    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(OutputError, match="another run is writing it"), only_writer(tmp_path / "o"):
        pass
    third.__exit__(None, None, None)
    assert os.listdir(tmp_path) == []


def test_a_run_that_ends_leaves_the_lock_of_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, second = FileLock.release, only_writer(tmp_path / "o")

    def late(lock: FileLock) -> None:
        monkeypatch.setattr(FileLock, "release", release)
        second.__enter__()
        release(lock)

    with only_writer(tmp_path / "o"):
        monkeypatch.setattr(FileLock, "release", late)
    with pytest.raises(OutputError, match="another run is writing it"), only_writer(tmp_path / "o"):
        pass
    second.__exit__(None, None, None)
    assert os.listdir(tmp_path) == []


def test_where_no_lock_can_be_the_output_is_named(tmp_path: Path) -> None:
    name = "n" * 255
    with (
        pytest.raises(OutputError, match=f"{name}: cannot be written: no lock beside it"),
        only_writer(tmp_path / name),
    ):
        pass


def test_an_input_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "o").write_bytes(CONTENTS["cache"])
    (tmp_path / "i").write_bytes(b"x")

    def broken(path: Path, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("trtcal.model.overwriting._begins", broken)
    with pytest.raises(DataError, match="i: cannot be read: Input/output error"):
        check_output(tmp_path / "o", CACHE, [tmp_path / "i"])

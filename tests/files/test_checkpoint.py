from __future__ import annotations

from pathlib import Path

import pytest

from trtcal.errors import DataError
from trtcal.files import checkpoint


def parsed(data: bytes) -> tuple[str, object]:
    if not data:
        raise DataError("left.bin: is damaged")
    key, content = data.decode().split(":")
    return content, key


def test_what_was_left_under_the_key_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "left.bin"
    assert checkpoint.load(path, "a", parsed) is None
    checkpoint.save(path, b"a:half")
    assert checkpoint.load(path, "a", parsed) == "half"


def test_another_runs_and_a_damaged_one_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "left.bin"
    path.write_bytes(b"a:half")
    with caplog.at_level("INFO"):
        assert checkpoint.load(path, "b", parsed) is None
    assert "left by a run over something else" in caplog.text
    path.write_bytes(b"")
    assert checkpoint.load(path, "a", parsed) is None
    assert "left.bin: is damaged; starting over" in caplog.text


def test_one_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint.save(tmp_path / "no such folder" / "left.bin", b"a:half")
    assert "an interruption will cost what was done so far" in caplog.text

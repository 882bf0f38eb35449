from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trtcal.errors import DataError
from trtcal.files import scripts
from trtcal.files.scripts import load_function


def test_a_function_comes_by_name_or_by_default_and_sees_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    script = tmp_path / "script.py"
    script.write_text("from beside import VALUE\ndef one(): return VALUE\ndef two(): return 2\n")
    before = list(sys.path)
    assert load_function(f"{script}:one")() == 7
    assert load_function(str(script), "two")() == 2
    assert load_function(f"{script}:one", "two")() == 7
    assert sys.path == before


def test_the_modules_of_scripts_are_known(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text("def f(): return 1\n")
        load_function(f"{tmp_path / name}.py:f")
    files = {Path(str(module.__file__)) for module in scripts.loaded()}
    assert {tmp_path / "first.py", tmp_path / "second.py"} <= files
    assert Path(scripts.__file__) not in files


def test_a_script_shadows_no_module_of_its_name(tmp_path: Path) -> None:
    import random

    script = tmp_path / "random.py"
    script.write_text("def f(): return 'mine'\n")
    assert load_function(f"{script}:f")() == "mine"
    assert sys.modules["random"] is random


@pytest.mark.parametrize("spec", ["metric", "metric.py", "metric.txt:f", "metric.py:", ":f", "metric.py:not a name"])
def test_another_form_is_refused_with_the_right_one(spec: str) -> None:
    with pytest.raises(ValueError, match=r"expected file.py:function"):
        load_function(spec)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.py: no such file"):
        load_function(f"{tmp_path / 'none.py'}:f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", "raised SyntaxError"),
        ("import not_there_at_all", "raised ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        ("def g(): pass\ndef _h(): pass\nf = 3", "no function 'f'; it has g"),
        ("", "no function 'f'; it has none"),
    ],
)
def test_a_script_that_fails_says_how_and_leaves_nothing_behind(tmp_path: Path, text: str, message: str) -> None:
    script = tmp_path / "broken_script.py"
    script.write_text(text)
    before = list(sys.path)
    with pytest.raises(DataError, match=message):
        load_function(f"{script}:f")
    assert sys.path == before
    if message.startswith("raised"):
        assert "trtcal_script_broken_script" not in sys.modules

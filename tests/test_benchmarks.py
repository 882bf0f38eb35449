"""Each benchmark runs end to end on something tiny, and says what it leaves out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ppocr import recogniser

ROOT = Path(__file__).parents[1]
SCRIPTS = ("calibrate", "histogram", "scale", "startup", "sweep", "threshold")

pytestmark = pytest.mark.slow(reason="runs every benchmark once")


def bench(name: str, *arguments: object) -> str:
    """Run a benchmark quickly -> its page."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/bench_{name}.py", "--quick", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.exhaustive(reason="starts Ray")] * (n == "scale")) for n in SCRIPTS],
)
def test_a_benchmark_prints_a_page_and_writes_it_only_where_it_is_told_to(name: str, tmp_path: Path) -> None:
    results = ROOT / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.glob("*")}
    page = bench(name, "-o", tmp_path / "page.md")
    assert page.startswith(f"# {name}\n")
    assert (tmp_path / "page.md").read_text(encoding="utf-8").strip() == page.strip()
    assert "trtcal" in page
    assert "|---" in page
    assert str(tmp_path) not in page
    assert {path: path.stat().st_mtime_ns for path in results.glob("*")} == before


def test_a_judged_sweep_is_a_page_of_its_own(tmp_path: Path) -> None:
    page = bench("sweep", "--judged", "-o", tmp_path / "page.md")
    assert page.startswith("# sweep_judged\n")
    assert "| demo | 18 |" in page
    assert page.count("--method") == 2


def test_a_peer_that_is_not_there_is_left_out_and_named() -> None:
    page = bench("calibrate", "--modelopt-python", sys.executable)
    if "| Model-Optimizer max |" in page:
        pytest.skip("this Python has Model-Optimizer")
    assert "Model-Optimizer max is left out: ModuleNotFoundError: No module named 'modelopt'" in page
    assert "| trtcal, four methods |" in page


@pytest.mark.exhaustive(reason="types nine commands")
def test_a_real_model_goes_through_the_commands_of_a_user(tmp_path: Path) -> None:
    page = bench("real_models", Path(recogniser()).parent, "--only", "ch_ppocr", "--keep", tmp_path)
    (row,) = [line for line in page.splitlines() if line.startswith("| PP-OCR line direction |")]
    assert "| x 1x3x48x192 | 4, drawn lines |" in row
    assert " of 4 keep the class |" in row
    (kept,) = tmp_path.iterdir()
    assert kept.name == "ch_ppocr_mobile_v2.0_cls_mobile.onnx.json"


def test_a_real_model_that_is_not_there_is_left_out_and_named(tmp_path: Path) -> None:
    page = bench("real_models", tmp_path, "--only", "320n")
    assert "(320n.onnx) is left out: 320n.onnx is not under" in page


def test_the_latest_results_of_every_benchmark_are_there() -> None:
    for name in (*SCRIPTS, "sweep_judged"):
        page = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {name}\n")

"""What a stranger adds, a function and a row each, is there by itself: in help, calibration, sweep, report and docs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import make_cli_docs
import numpy as np
import pytest
from models import conv_model, images, save

from calibrators.options import method as build_method
from calibrators.options import parser
from trtcal.cache.cache import CalibrationCache
from trtcal.cache.formats import FORMATS, load
from trtcal.cache.formats.row import Format
from trtcal.ranges.growth import GROWTH, Rule
from trtcal.ranges.histogram import Histogram
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import METHODS, Method, Parameter
from trtcal.zoo.file import Row

Run = Callable[..., tuple[int, str, str]]


def share(hist: Histogram, s: float = 50) -> np.float32:
    """So many percent of the largest |x|."""
    return np.float32(hist.amax * s / 100)


def half_range(hist: Histogram) -> np.float32:
    """Half of the range over which the batches were counted."""
    return np.float32(hist.limit / 2)


def quadruple(limit: float, amax: float) -> float:
    while limit and amax > limit:
        limit *= 4
    return limit or float(np.float32(amax))


def parse(data: bytes, name: str) -> CalibrationCache:
    table = json.loads(data)["stranger"]
    return CalibrationCache("8601", "EntropyCalibration2", {tensor: np.float32(scale) for tensor, scale in table})


def formatted(cache: CalibrationCache) -> bytes:
    return json.dumps({"stranger": [[name, float(scale)] for name, scale in cache.scales.items()]}).encode()


WORDS = (
    "S % of the largest |x| there is",
    "half of what the batches grew",
    "by four: the range times four until the value fits",
    "a stranger's table",
)


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods, a growth rule and a format of ranges, one row each."""
    parameter = Parameter("s", 50.0, (25.0, 50.0), lambda number, text: None)
    monkeypatch.setitem(METHODS, "share", Method(share, WORDS[0], parameter=parameter))
    monkeypatch.setitem(METHODS, "half-range", Method(half_range, WORDS[1], depends_on_batches=True))
    monkeypatch.setitem(GROWTH, "quadruple", Rule(quadruple, *WORDS[2].split(": ")))
    found = Format(parse, formatted, lambda data, tree: isinstance(tree, dict) and "stranger" in tree, WORDS[3])
    monkeypatch.setitem(FORMATS, "strange", found)


class Folder(NamedTuple):
    path: Path
    run: Run

    def cache(self, *options: object) -> CalibrationCache:
        """What ``trtcal calibrate`` makes of x.npy with these options."""
        code, _, err = self.run("calibrate", "m.onnx", "--data", "x.npy", "-b", 4, *options, "-o", "c.cache", "--force")
        assert code == 0, err
        return CalibrationCache.load(self.path / "c.cache")


@pytest.fixture
def folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    save(conv_model(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", images(12) * np.arange(1, 13, dtype=np.float32).reshape(-1, 1, 1, 1))
    monkeypatch.setenv("COLUMNS", "400")
    return Folder(tmp_path, run)


def test_help_names_what_was_added(folder: Folder) -> None:
    def text(*command: str) -> str:
        return " ".join(folder.run(*command, "--help")[1].replace("│", " ").split())

    for command in ("calibrate", "sweep"):
        assert f"share:S ({WORDS[0]})" in text(command)
        assert f"half-range ({WORDS[1]})" in text(command)
        assert f"quadruple ({WORDS[2]})" in text(command)
    assert "share:25,share:50,half-range" in text("sweep")
    assert text("cache", "convert").count("strange") == 2
    help_of_build = " ".join(text("build").split())
    assert "share:S, half-range, legacy" in help_of_build
    assert f"--share S method share: {WORDS[0]}" in help_of_build


def test_what_was_added_calibrates(folder: Folder) -> None:
    largest, shared = folder.cache("--method", "minmax"), folder.cache("--method", "share:25")
    assert {name: shared.amax(name) for name in shared.scales} == {
        name: pytest.approx(largest.amax(name) / 4) for name in largest.scales
    }
    assert json.loads((folder.path / "c.cache.json").read_bytes())["provenance"]["method"] == "share:25"
    grown = folder.cache("--method", "half-range", "--growth", "quadruple", "--stats", "s.npz")
    batch_grid = ActivationStats.load(folder.path / "s.npz").tensors["image"].batch_grid
    assert batch_grid is not None
    x = np.abs(np.load(folder.path / "x.npy"))
    limit = quadruple(float(x[:4].max()), float(x.max()))
    assert batch_grid.limit == limit == x[:4].max() * 16
    assert grown.amax("image") == pytest.approx(limit / 2)
    assert folder.cache("--method", "entropy", "--growth", "quadruple") != folder.cache("--method", "entropy")


def test_what_was_added_converts(folder: Folder) -> None:
    folder.cache()
    assert folder.run("cache", "convert", "c.cache", "--to", "strange", "-o", "c.json")[0] == 0
    found, name = load(folder.path / "c.json")
    assert (name, found.scales) == ("strange", CalibrationCache.load(folder.path / "c.cache").scales)
    assert folder.run("cache", "convert", "c.json", "-o", "back.cache")[0] == 0


def embedded(folder: Path) -> Mapping[str, Any]:
    """The numbers in a report's page."""
    found = re.search(r'<script[^>]* id="data">(.*?)</script>', (folder / "report.html").read_text(), re.DOTALL)
    assert found is not None
    data: Mapping[str, Any] = json.loads(found[1])
    return data


def test_a_sweep_compares_what_was_added_and_its_report_says_what_it_is(folder: Folder) -> None:
    grid = ["--batch-sizes", "1,4", "--orders", "given", "--growths", "double,quadruple,exact"]
    code, _, err = folder.run("sweep", "m.onnx", "--data", "x.npy", "-b", 4, *grid, "--no-accuracy", "-o", "s")
    assert code == 0, err
    content = json.loads((folder.path / "s" / "trials.json").read_bytes())
    page = embedded(folder.path / "s")
    for data in (content, page):
        assert data["methods"]["share:25"] == {"description": WORDS[0], "depends_on_batches": False, "clips": True}
        assert data["methods"]["half-range"]["depends_on_batches"]
        rule = data["growth_rules"]["quadruple"]
        assert f"{rule['label']}: {rule['description']}" == WORDS[2]
    at = {(row["batch_size"], row["growth"]): row for row in content["arrangements"]}
    assert at[4, "quadruple"]["limit"][0] == pytest.approx(at[4, "quadruple"]["first_amax"][0] * 16)
    rows = [{**content["arrangements"][row["arrangement"]], **row} for row in content["trials"]]
    approximate = {(row["method"], row["growth"]) for row in rows if row["approximate"]}
    rules = ("double", "quadruple", "exact")
    assert approximate == {(name, rule) for name in ("entropy", "half-range") for rule in rules}
    assert not any(row["error"] for row in rows)
    assert {"share:50", "half-range"} <= content["drift"].keys()
    assert folder.run("report", "s")[0] == 0  # again, from the file


def test_the_build_and_a_zoo_s_row_know_what_was_added() -> None:
    required = ["--onnx", "m.onnx", "--engine", "m.engine"]
    assert build_method(parser().parse_args([*required, "--share", "25"])) == ("share:25", {})
    assert build_method(parser().parse_args([*required, "--method", "half-range"])) == ("half-range", {})
    assert {"share:50", "half-range"} <= set(Row(name="m", model="m.onnx", data="x.npy").methods)


def test_the_generated_docs_hold_what_was_added() -> None:
    pages = {path.name: text for path, text in make_cli_docs.pages().items()}
    escaped = [words.replace("|", "\\|") for words in WORDS]
    assert f"| `share:S` | {escaped[0]} | no | EntropyCalibration2 |" in pages["README.md"]
    assert f"| `half-range` | {escaped[1]} | yes; " in pages["README.md"]
    assert f"| `quadruple` | {escaped[2]} | yes | calibration, sweep |" in pages["batch-size.md"]
    assert f"| `strange` | {escaped[3]} | amax |" in pages["cache-format.md"]
    for words in escaped[:3]:
        assert pages["cli.md"].count(words) == 2  # calibrate and sweep

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser, Page, address
from models import conv_model, images, save
from PIL import Image
from sweeps import STATS

from trtcal.errors import OutputError, StatsError
from trtcal.judging import sensitivity
from trtcal.ranges.measuring import MEASURED
from trtcal.sweep import store as sweepfile
from trtcal.sweep.judge import judged
from trtcal.sweep.recommend import recommend
from trtcal.sweep.report import render, write
from trtcal.sweep.trials import ORDERS, Judgement, configurations, sweep

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on PATH; Debian's package is chromium")
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)
HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "<!--<script>",
    "</style><style>main { display: none }</style>",
    "line\u2028separator\u2029\n\0",
    "exe.gnp\u202e",
    "x" * 3000,
    "\ud800",
    "$data ${window.hacked = 1} `",
    "",
]


def swept(growths: tuple[str, ...] = ("double", "power-of-two"), accuracy: bool = True) -> dict[str, Any]:
    """The object in the trials.json of a sweep over three tensors, 24 samples and batches of 1, 4 and 24."""

    def judge(amax: Any) -> Judgement:
        right = np.arange(50) < 20 + round(float(amax["x"]) * 1000) % 25
        return Judgement(right.astype(float), np.ones(50), 20.0)

    grid, notes = configurations((1, 4, 24, 100), tuple(ORDERS), 2, growths, 24)
    result = sweep(STATS, grid, streamed_batch_size=4, notes=notes)
    if accuracy:
        result = judged(result, judge)
    curve = {"samples": [6, 12, 24], "change_median": [0.2, 0.1, 0.0], "change_max": [0.5, 0.2, 0.0]}
    content = sweepfile.content(
        result,
        sweepfile.rows(result),
        STATS,
        recommend(result, STATS),
        model="m.onnx",
        data="24 samples",
        provenance={"trtcal": "0"},
        drift={"entropy": curve},
    )
    found: dict[str, Any] = json.loads(sweepfile.to_json(content))
    return found


CONTENT = swept()


def trial(sqnr_db: float | str, recovered: float | None = None) -> dict[str, Any]:
    return {"sqnr_db": sqnr_db, "metric": None, "recovered": recovered}


SENSITIVITY: dict[str, Any] = {
    "format": sensitivity.FORMAT,
    "samples": 64,
    "placement": "all",
    "metric": None,
    "fp32": None,
    "int8": trial(8.25, 0.0),
    "tensors": [
        {"tensor": "x", "amax": 3.5, "sqnr_db": 20.5, "layers": ["conv", "skip"]},
        {"tensor": "relu", "amax": 6.0, "sqnr_db": "inf", "layers": ["gemm"]},
    ],
    "layers": [
        {
            "layer": name,
            "op_type": op_type,
            "tensors": ["x"],
            "weights": [],
            "estimate_db": 10.0 + number,
            "only": None if number == 2 else trial(12.0, 0.6),
            "without": None if number == 2 else trial(9.0 + number, 0.7 - 0.5 * number),
            "exclude": [name],
            "tensorrt": [name],
        }
        for number, (name, op_type) in enumerate((("conv", "Conv"), ("gemm", "Gemm"), ("skip", "Add")))
    ],
    "curve": [{"layer": "conv", **trial(9.0, 0.7)}, {"layer": "gemm", **trial("inf", 0.95)}],
    "ended": "90% of the loss is recovered",
    "options": {
        "trtcal": "--exclude conv --exclude 'a b'",
        "trtexec": "--precisionConstraints=obey '--layerPrecisions=conv:fp16,a b:fp16'",
        "trtexec_cannot_name": [],
        "polygraphy": "--precision-constraints obey --layer-precisions conv:float16 'a b:float16'",
    },
}


@pytest.fixture
def content() -> dict[str, Any]:
    return copy.deepcopy(CONTENT)


def wide(content: dict[str, Any], tensors: int, samples: int) -> dict[str, Any]:
    """The same sweep of so many tensors and samples."""
    rows = [i % len(content["tensors"]) for i in range(tensors)]
    content["histograms"] = [content["histograms"][row] for row in rows]
    content["tensors"] = [f"/blocks.{i}/conv/Conv_output_0" for i in range(tensors)]
    content["samples"] = [f"images/validation/{i:08}.jpg" for i in range(samples)]
    content["sample_amax"] = [np.random.default_rng(i).uniform(size=samples).round(6).tolist() for i in range(tensors)]
    content["off"] = [content["off"][row] for row in rows]
    content["invariant"] = {name: [amax[row] for row in rows] for name, amax in content["invariant"].items()}
    for configuration in content["arrangements"]:
        for name, values in configuration.items():
            if isinstance(values, list):
                configuration[name] = [values[row] for row in rows]
    return content


def hostile(content: dict[str, Any]) -> dict[str, Any]:
    """The same sweep with names that try to be something else."""
    content = wide(content, len(HOSTILE), 24)
    content["tensors"] = list(HOSTILE)
    content["samples"][: len(HOSTILE)] = HOSTILE
    for maxima in content["sample_amax"]:
        maxima[: len(HOSTILE)] = [9.0 + i for i in range(len(HOSTILE))]
    content.update(model=HOSTILE[0], data=HOSTILE[1], notes=HOSTILE, provenance={name: name for name in HOSTILE})
    advice = content["recommendation"]
    advice["headline"] += HOSTILE[0] + HOSTILE[6]
    advice["evidence"] += HOSTILE
    advice["outliers"] = [{"sample": n, "tensor": n, "factor": 3.04, "tensors": 2} for n in HOSTILE]
    content["trials"][0].update(error=HOSTILE[0], method=HOSTILE[0])
    content["invariant"][HOSTILE[0]] = content["invariant"]["minmax"]
    content["drift"] = {HOSTILE[1]: content["drift"]["entropy"], **content["drift"]}
    content["arrangements"][0].update(order=HOSTILE[0], growth=HOSTILE[1])
    content.update(metric=HOSTILE[1], partial=HOSTILE[0])
    found = copy.deepcopy(SENSITIVITY)
    found.update(ended=HOSTILE[0], metric=HOSTILE[1], options=dict.fromkeys(SENSITIVITY["options"], "".join(HOSTILE)))
    found["tensors"] = [{**SENSITIVITY["tensors"][0], "tensor": name, "layers": HOSTILE} for name in HOSTILE]
    found["layers"] = [{**SENSITIVITY["layers"][0], "layer": name, "op_type": name} for name in HOSTILE]
    found["curve"] = [{**SENSITIVITY["curve"][0], "layer": name} for name in HOSTILE]
    content["sensitivity"] = found
    content["thumbnails"] = {
        HOSTILE[0]: PIXEL,
        HOSTILE[1]: "javascript:alert(1)",
        HOSTILE[2]: "https://x.invalid/a.png",
    }
    return content


# --- the file


def test_the_page_lies_beside_the_trials_and_is_replaced_whole(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "trials.json").write_text(json.dumps(content))
    (tmp_path / "report.html").write_text("old")
    assert write(tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_bytes() == render(content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "trials.json"]


def test_the_command_draws_the_page_again(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, content: dict[str, Any]
) -> None:
    (tmp_path / "trials.json").write_text(json.dumps(content))
    code, out, err = run("report", ".")
    assert (code, out, err.strip()) == (0, "", "report.html")
    assert (tmp_path / "report.html").read_bytes() == render(content)
    code, _, err = run("report", "nowhere")
    assert code == 2
    assert "trials.json: cannot be read" in err


def test_a_page_that_is_not_trtcal_s_is_not_replaced(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, content: dict[str, Any]
) -> None:
    (tmp_path / "trials.json").write_text(json.dumps(content))
    (tmp_path / "report.html").write_text("<html>mine")
    code, _, err = run("report", ".")
    assert code == 2
    assert "report.html: exists and is no page of trtcal's, so it is not replaced" in err
    assert (tmp_path / "report.html").read_text() == "<html>mine"
    (tmp_path / "report.html").unlink()
    assert [run("report", ".")[0] for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("missing", ["tensors", "arrangements", "recommendation", "histograms", "off"])
def test_trials_that_lack_something_are_refused_by_name(tmp_path: Path, content: dict[str, Any], missing: str) -> None:
    del content[missing]
    (tmp_path / "trials.json").write_text(json.dumps(content))
    with pytest.raises(StatsError, match=rf"trials\.json: is not a whole sweep .*{missing}.*run the sweep again"):
        write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_trials_of_another_shape_are_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    for name, value in (("arrangements", [1]), ("sample_amax", None), ("recommendation", "x"), ("thumbnails", [1])):
        (tmp_path / "trials.json").write_text(json.dumps({**content, name: value}))
        with pytest.raises(StatsError, match="is not a whole sweep"):
            write(tmp_path)


def test_a_report_of_sensitivity_beside_the_trials_is_drawn_too(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "trials.json").write_text(json.dumps(content))
    (tmp_path / "sensitivity.json").write_text(json.dumps(SENSITIVITY))
    assert write(tmp_path).read_bytes() == render({**content, "sensitivity": SENSITIVITY}) != render(content)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "trtcal-sweep-1"},
        {"tensors": 1},
        {"layers": [{"layer": "x"}]},
        {"samples": "many"},
        {"int8": trial("much")},
        {"fp32": [1]},
        {"options": {"trtcal": "--exclude x"}},
        {"fp32": float("nan")},
    ],
)
def test_what_is_no_report_of_sensitivity_is_refused_by_name(
    tmp_path: Path, content: dict[str, Any], change: dict[str, Any]
) -> None:
    (tmp_path / "trials.json").write_text(json.dumps(content))
    (tmp_path / "sensitivity.json").write_text(json.dumps({**SENSITIVITY, **change}))
    with pytest.raises(StatsError, match=r"sensitivity\.json: is no report of trtcal sensitivity"):
        write(tmp_path)
    (tmp_path / "sensitivity.json").write_text("{")
    with pytest.raises(StatsError, match=r"sensitivity\.json: is no report of trtcal sensitivity"):
        write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_report_that_the_command_writes_is_one_that_the_page_takes(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, content: dict[str, Any]
) -> None:
    save(conv_model(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", images(4))
    (tmp_path / "trials.json").write_text(json.dumps(content))
    assert run("calibrate", "m.onnx", "--data", "x.npy", "-o", "c.cache")[0] == 0
    for _ in range(2):  # its own report may be written again
        command = ["sensitivity", "m.onnx", "--cache", "c.cache", "--data", "x.npy", "-o", "sensitivity.json"]
        assert run(*command)[0] == 0
    assert run("report", ".")[0] == 0
    assert "--exclude" in (tmp_path / "report.html").read_text()
    command[-1] = "trials.json"
    assert run(*command)[0] == 2
    assert json.loads((tmp_path / "trials.json").read_text()) == content


def test_a_page_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "trials.json").write_text(json.dumps(content))
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"report\.html"):
        write(tmp_path)


def test_no_name_becomes_markup(content: dict[str, Any]) -> None:
    plain, page = render(content).decode(), render(hostile(content)).decode()
    assert page.isascii() or not set(page) & set("\u2028\u2029\u202e\0")
    for tag in ("<script", "</script", "<style", "</style", "<img", "<!--"):
        assert page.count(tag) == plain.count(tag), tag


def test_the_page_names_no_place_on_the_network(content: dict[str, Any]) -> None:
    places = set(re.findall(r"\w+://[^\s\"'<>]+", render(content).decode()))
    assert places == {"http://www.w3.org/2000/svg"}  # the name of a kind of element


def test_only_pictures_that_the_page_carries_are_shown(content: dict[str, Any]) -> None:
    page = render(hostile(content)).decode()
    assert PIXEL in page
    assert "javascript:alert" not in page
    assert "x.invalid" not in page


def test_a_large_sweep_stays_a_small_page(content: dict[str, Any]) -> None:
    many = len(content["arrangements"])
    assert many >= 30
    pages = [len(render(wide(copy.deepcopy(content), 300, samples))) for samples in (24, 2000)]
    assert max(pages) < 15e6
    assert pages[1] - pages[0] < 300 * 6 * 50  # of samples, only those that are named


# --- in a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


Show = Callable[..., Page]


@pytest.fixture
def show(chromium: Browser, tmp_path: Path) -> Show:
    """Content -> its page, open."""

    def show(content: dict[str, Any], fragment: str = "", **view: Any) -> Page:
        (tmp_path / "report.html").write_bytes(render(content))
        page = Page(chromium, address(tmp_path / "report.html", fragment), **view)
        page.wait("'ready' in document.documentElement.dataset")
        return page

    return show


def text(page: Page, selector: str) -> str:
    found = page.run(f"document.querySelector({json.dumps(selector)}).innerText")
    assert isinstance(found, str), f"{selector} has no text"
    return found


def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)")
    return found


def choose(page: Page, section: str, label: str, value: str) -> None:
    """Pick an option of the select with this label."""
    page.run(
        f"""(() => {{
            const labels = [...document.querySelectorAll("#{section} label")];
            const field = labels.find((one) => one.innerText.startsWith({json.dumps(label)})).querySelector("select");
            field.value = {json.dumps(value)};
            field.dispatchEvent(new Event("change", {{ bubbles: true }}));
        }})()"""
    )


def drawn_limit(page: Page) -> str:
    """The limit, as the histogram's own description has it."""
    label: str = page.run("document.querySelector('#explorer .chart svg').ariaLabel")
    return label.split("limit ")[1].split(",")[0]


def limit_of(content: dict[str, Any], tensor: str, **wanted: Any) -> str:
    configuration = next(a for a in content["arrangements"] if all(a[key] == value for key, value in wanted.items()))
    return f"{configuration['limit'][content['tensors'].index(tensor)]:.4g}"


@in_browser
def test_the_page_shows_the_very_command_and_none_where_there_is_none(show: Show, content: dict[str, Any]) -> None:
    command = (
        "trtcal calibrate 'a <b>.onnx' --data '$(x)' --method mse --stats s/stats.npz -o model.cache" + " --x y" * 99
    )
    content["recommendation"]["command"] = command
    page = show(content)
    assert text(page, ".next") == f"Next: {command}"
    assert text(page, ".next code") == command
    content["recommendation"] |= {"command": "", "options": []}
    assert texts(show(content), ".next") == []
    for key in ("command", "options", "method", "decided_by"):  # which an older file has not
        del content["recommendation"][key]
    page = show(content)
    assert texts(page, ".next") == []
    assert page.complaints() == []
    assert "undefined" not in text(page, ".tiles")


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_without_a_complaint_and_asks_for_nothing(
    show: Show, content: dict[str, Any], scheme: str
) -> None:
    page = show(content, scheme=scheme)
    assert page.complaints() == []
    assert len(page.requests()) == 1  # itself
    assert page.requests()[0].startswith("file:")
    assert text(page, "h1") == content["recommendation"]["headline"]
    options = content["recommendation"]["options"]
    assert text(page, ".next code") == f"trtcal calibrate m.onnx --data … {' '.join(options)} -o model.cache"
    assert "flat" in text(page, ".tile.good")
    assert len(texts(page, ".evidence li")) == len(content["recommendation"]["evidence"])
    assert texts(page, ".notes li") == content["notes"] != []


@in_browser
def test_what_a_stranger_sees_first_is_drawn(show: Show, content: dict[str, Any]) -> None:
    pictures = {scheme: show(content, scheme=scheme).screenshot() for scheme in ("light", "dark")}
    for scheme, picture in pictures.items():
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
        assert pixels.shape == (900, 1240)
        assert (np.median(pixels) > 128) == (scheme == "light")
        assert pixels.std() > 10


@in_browser
def test_a_broken_control_arm_is_the_first_thing_said(show: Show, content: dict[str, Any]) -> None:
    content["recommendation"]["control_flat"] = False
    page = show(content)
    assert text(page, "[role=alert]").startswith("The control failed. minmax cannot depend on batch size or order")
    assert "BROKEN" in text(page, ".tile.bad")


@in_browser
def test_without_a_control_arm_the_page_does_not_claim_one(show: Show, content: dict[str, Any]) -> None:
    kept = [trial for trial in content["trials"] if trial["method"] != "minmax"]
    page = show({**content, "trials": kept})
    assert "not run" in text(page, ".tile:last-child")
    assert "add minmax to the methods" in text(page, ".tile:last-child")
    assert "not checked" in text(show({**content, "partial": "drop"}), ".tile:last-child")


@in_browser
def test_scores_are_drawn_with_their_intervals_and_in_words(show: Show, content: dict[str, Any]) -> None:
    page = show(content)
    assert page.run("document.querySelectorAll('#scores .whisker').length") > len(ORDERS)
    page.run("document.querySelector('#scores details').open = true")
    rows = texts(page, "#scores tbody tr")
    first = next(t for t in content["trials"] if t["method"] == MEASURED)
    shown = rows[0].split("\t")
    assert shown[0].startswith("entropy, given")
    assert shown[1].startswith(f"{first['accuracy']:.1%} ({first['accuracy_low']:.1%} to ")
    assert any(row.startswith("minmax\t") for row in rows)
    choose(page, "scores", "Measure", "amax_change_max")
    assert page.run("document.querySelector('#scores .chart').ariaLabel").startswith("Change of thresholds, worst")
    lines = page.run("document.querySelectorAll('#scores .series').length")
    page.run("document.querySelector('#scores .chip').click()")
    assert page.run("document.querySelectorAll('#scores .series').length") < lines
    assert page.complaints() == []


@in_browser
def test_growth_rules_are_drawn_apart(show: Show) -> None:
    page = show(swept(("double", "square-max", "square-range", "exact")))
    drawn = [caption.split(" ")[0] for caption in texts(page, "#scores figcaption")]
    assert drawn[0] == "double"
    assert {"square-max", "square-range"} <= set(drawn)
    choose(page, "heatmap", "Growth rule", "square-range")
    assert "square-range" in text(page, ".heat caption")
    assert page.complaints() == []


@in_browser
def test_the_words_of_a_growth_rule_are_those_of_the_file(show: Show, content: dict[str, Any]) -> None:
    of_today = "double – TensorRT as measured: the limit doubles until the value fits"
    assert text(show(content), "#scores figcaption").startswith(of_today)
    content["growth_rules"]["double"].update(label="as seen", description="words of the file")
    assert text(show(content), "#scores figcaption").startswith("double – as seen: words of the file")
    for key in ("growth_rules", "methods", "measured_by"):  # as in a file from before it had any
        del content[key]
    page = show(content)
    assert text(page, "#scores figcaption").startswith(of_today)
    assert "Batch size for entropy" in text(page, ".tiles")
    content["arrangements"] = [{**row, "growth": "of old"} for row in content["arrangements"]]
    assert text(show(content), "#scores figcaption").startswith("of old – a growth rule")
    assert page.complaints() == []


@in_browser
@pytest.mark.parametrize("growth", ["exact", "power-of-two"])
def test_thresholds_read_off_the_fine_histogram_are_marked(show: Show, growth: str) -> None:
    content = swept(("double", growth))
    content["off"] = [0.5] * len(content["tensors"])
    page = show(content)
    choose(page, "heatmap", "Growth rule", growth)
    marks = texts(page, ".heat .badge")
    assert len(marks) == (len(content["tensors"]) if growth == "exact" else 0)


@in_browser
def test_what_is_measured_and_controlled_is_what_the_file_says(show: Show, content: dict[str, Any]) -> None:
    """The page knows no method by its name."""
    names = {"entropy": "kl", "minmax": "largest"}
    for key in ("invariant", "methods"):
        content[key] = {names.get(name, name): value for name, value in content[key].items()}
    content["trials"] = [{**row, "method": names.get(row["method"], row["method"])} for row in content["trials"]]
    content["measured_by"] = "kl"
    advised = content["recommendation"]["method"]
    content["recommendation"]["method"] = names.get(advised, advised)
    page = show(content, "#tensor=0&batch=1&order=given&growth=double")
    assert "Batch size for kl" in text(page, ".tiles")
    assert "Accuracy, kl" in text(page, ".tiles")
    assert f"decided by {content['recommendation']['decided_by']}" in text(page, ".tile:first-child")
    assert content["recommendation"]["method"] in text(page, ".tile:first-child")
    assert "largest is the same everywhere" in text(page, ".tile:last-child")
    lines = page.run("[...document.querySelectorAll('#explorer .cut-label')].map((label) => label.textContent)")
    assert {"kl", "kl, batch-invariant"} <= set(lines)
    for part in texts(page, ".tiles, #explorer, #scores, #heatmap"):
        assert "entropy" not in part.lower()
        assert "minmax" not in part.lower()
    assert page.complaints() == []


@in_browser
def test_without_accuracy_thresholds_are_compared(show: Show) -> None:
    content = swept(accuracy=False)
    content.update(off=None, drift={})
    page = show(content)
    assert "Change of thresholds, median" in texts(page, "#scores option")
    assert "Accuracy" not in texts(page, "#scores option")
    assert "were not checked" in text(page, "#worst")
    assert page.complaints() == []


@in_browser
def test_the_slider_moves_the_limit(show: Show, content: dict[str, Any]) -> None:
    page = show(content, "#tensor=0&batch=1&order=given&growth=double")
    wanted = {"order": "given", "growth": "double", "tensor": "x"}
    assert drawn_limit(page) == limit_of(content, batch_size=1, **wanted)
    page.run("document.querySelector('#explorer input[type=range]').focus()")
    for size in (4, 24):
        page.press("ArrowRight")
        assert drawn_limit(page) == limit_of(content, batch_size=size, **wanted)
        assert f"batch={size}" in page.run("location.hash")
        assert page.run("document.activeElement.getAttribute('aria-valuetext')") == f"batches of {size}"
    assert page.complaints() == []


@in_browser
def test_order_seed_growth_and_tensor_can_be_chosen(show: Show, content: dict[str, Any]) -> None:
    page = show(content, "#tensor=0&batch=1&order=given&growth=double")
    choose(page, "explorer", "Order", "shuffled")
    choose(page, "explorer", "Seed", "1")
    assert drawn_limit(page) == limit_of(content, "x", batch_size=1, order="shuffled", seed=1, growth="double")
    choose(page, "explorer", "Growth rule", "power-of-two")
    assert drawn_limit(page) == limit_of(content, "x", batch_size=1, order="shuffled", seed=1, growth="power-of-two")
    choose(page, "explorer", "Tensor", "1")
    assert text(page, "#explorer h3") == "relu"
    facts = dict(entry.split("\n")[:2] for entry in texts(page, "#explorer dl div"))
    found = next(a for a in content["arrangements"] if (a["seed"], a["growth"]) == (1, "power-of-two"))
    assert facts["First batch's maximum"] == f"{found['first_amax'][1]:.4g}"
    assert facts["Bins kept, m"] == str(found["m"][1])
    dead = content["tensors"].index("dead")
    choose(page, "explorer", "Tensor", str(dead))
    assert "Nothing but zeros" in text(page, "#explorer .chart")
    assert page.complaints() == []


@in_browser
def test_an_address_opens_the_view_it_was_taken_from(show: Show, content: dict[str, Any]) -> None:
    page = show(content, "#tensor=1&batch=4&order=shuffled&seed=1&growth=power-of-two")
    assert text(page, "#explorer h3") == "relu"
    assert text(page, "#explorer .size") == "4"
    page.run("location.hash = '#tensor=999&batch=7&order=nonsense&seed=x'")
    page.wait("document.querySelector('#explorer h3').innerText === 'x'")  # the nearest there is
    assert page.complaints() == []


@in_browser
def test_a_cell_of_the_heat_map_opens_its_tensor_by_keyboard(show: Show, content: dict[str, Any]) -> None:
    page = show(content)
    rows = texts(page, ".heat tbody th")
    page.run("document.querySelector('.heat td').focus()")
    page.press("ArrowDown")
    page.press("ArrowRight")
    page.press("Enter")
    assert text(page, "#explorer h3") == rows[1].split("approximate")[0]
    assert text(page, "#explorer .size") == "4"
    changes = [texts(page, f".heat tbody tr:nth-child({i + 1}) td") for i in range(len(rows))]
    largest = [max(abs(float(c.strip("+−%<"))) for c in row) for row in changes]
    assert largest == sorted(largest, reverse=True)
    choose(page, "heatmap", "Order", "given")
    given = [a for a in content["arrangements"] if (a["order"], a["growth"]) == ("given", "double")]
    x = next(i for i, name in enumerate(texts(page, ".heat tbody th")) if name.startswith("x"))
    cells = texts(page, f".heat tbody tr:nth-child({x + 1}) td")
    assert len(cells) == len(given)
    assert all((cell[0] == "−") == (a["change"][0] < 0) for cell, a in zip(cells, given, strict=True))


@in_browser
def test_tables_search_sort_and_lead_to_tensors(show: Show, content: dict[str, Any]) -> None:
    page = show(wide(content, 30, 24))
    names = "#worst tbody th a"
    assert len(texts(page, names)) == 30
    page.run("document.getElementById('worst-search').focus()")
    page.call("Input.insertText", text="BLOCKS.1 conv")
    assert sorted(texts(page, names)) == sorted(n for n in content["tensors"] if "blocks.1" in n)
    assert text(page, "#worst .said") == "11 of 30"
    page.run("document.getElementById('worst-search').select()")
    page.call("Input.insertText", text="nothing like it")
    assert text(page, "#worst .said") == "0 of 30"
    page.run("document.getElementById('worst-search').value = ''")
    page.run("document.getElementById('worst-search').dispatchEvent(new Event('input'))")
    for direction in ("descending", "ascending"):
        page.run("document.querySelector('#worst thead button').click()")
        assert page.run("document.querySelector('#worst thead th').ariaSort") == direction
        assert texts(page, names) == sorted(content["tensors"], reverse=direction == "descending")
    for _ in range(2):  # the second time the address is already that of the link
        page.run("document.querySelector('#worst tbody th a').click()")
        assert text(page, "#explorer h3") == sorted(content["tensors"])[0]
        page.run("document.querySelector('#explorer .pair button').click()")
    assert page.complaints() == []


@in_browser
def test_trials_with_unusable_thresholds_are_marked(show: Show, content: dict[str, Any]) -> None:
    marked = [trial for trial in content["trials"] if trial["method"] == "entropy"]
    for trial in marked:
        trial["unusable"] = "the threshold of x clips 83.3% of its values <b>"
    page = show(content)
    said = text(page, ".banner.bad")
    assert said.startswith(
        f"Unusable thresholds. In {len(marked)} of {len(content['trials'])} trials, of entropy: the "
    )
    assert "clips 83.3% of its values <b>" in said
    page.wait("document.querySelectorAll('#trials tbody tr').length > 0")
    assert "unusable: the threshold of x" in text(page, "#trials")
    assert page.complaints() == []


@in_browser
def test_all_trials_are_a_table_and_failures_say_why(show: Show, content: dict[str, Any]) -> None:
    content["trials"][5].update(error="RuntimeError: no memory", accuracy=None, accuracy_low=None, accuracy_high=None)
    content["arrangements"][0]["fell_back"][0] = True
    content["trials"][5] |= {"judged_samples": 16, "dropped": "worse than mse", "judged_as": "minmax, given"}
    page = show(content)
    assert "1 of" in text(page, ".banner.warn")
    page.wait("document.querySelectorAll('#trials tbody tr').length > 0")
    page.run("document.getElementById('trials-search').focus()")
    page.call("Input.insertText", text="no memory")
    (row,) = texts(page, "#trials tbody tr")
    assert "RuntimeError: no memory" in row
    assert "rule undefined for 1 tensor, doubled instead" in row
    assert "judged on 16 samples: worse than mse; judged as minmax, given" in row
    choose(page, "explorer", "Tensor", "0")
    page.run("location.hash = '#tensor=0&batch=1&order=given&growth=double'")
    page.wait("document.querySelector('#explorer .warning').innerText !== ''")


@in_browser
def test_layers_that_cost_accuracy_have_a_section_where_they_are_known(show: Show, content: dict[str, Any]) -> None:
    page = show(content)
    assert page.run("document.querySelector('#sensitivity, nav a[href=\"#sensitivity\"]')") is None
    page = show({**content, "sensitivity": SENSITIVITY})
    assert "64 samples by the outputs' SQNR to FP32; all of INT8: 8.25 dB" in text(page, "#sensitivity .lead")
    assert [row.split("\t")[0] for row in texts(page, "#sensitivity tbody tr")] == ["conv", "gemm", "skip", "x", "relu"]
    rows = [row.split("\t") for row in texts(page, "#sensitivity tbody tr")]
    assert rows[0][1:] == ["Conv", "70.0%", "12 dB", "10 dB"]
    assert rows[2][1:] == ["Add", "–", "–", "12 dB"]
    assert rows[3][1:] == ["20.5 dB", "3.5", "conv, skip"]
    assert rows[4][1] == "inf dB"
    assert texts(page, "#sensitivity .steps li") == ["conv – 70.0% recovered, 9 dB", "gemm – 95.0% recovered, inf dB"]
    assert page.run("document.querySelectorAll('#sensitivity .marker').length") == 2
    options = SENSITIVITY["options"]
    assert texts(page, "#sensitivity pre") == [options[name] for name in ("trtcal", "trtexec", "polygraphy")]
    assert page.complaints() == []


@in_browser
def test_without_layers_to_leave_out_the_section_says_why(show: Show, content: dict[str, Any]) -> None:
    nothing = {**SENSITIVITY, "curve": [], "options": {}, "ended": "INT8 loses nothing here", "int8": trial("inf")}
    scored = {"metric": "top1", "fp32": 0.875, "int8": {"sqnr_db": 8.0, "metric": 0.75, "recovered": None}}
    page = show({**content, "sensitivity": {**nothing, **scored}})
    assert "by top1; all of INT8: 0.75, 8 dB, FP32 0.875." in text(page, "#sensitivity .lead")
    assert "The list ends: INT8 loses nothing here." in text(page, "#sensitivity .steps + .lead")
    assert texts(page, "#sensitivity pre, #sensitivity svg") == []
    assert page.complaints() == []


@in_browser
def test_approximate_tensors_say_so_unless_counted_exactly(show: Show, content: dict[str, Any]) -> None:
    content["off"] = [0.02, 0.001, 0.0]
    page = show(content)
    marked = [row for row in texts(page, ".heat tbody th") if "run with --exact" in row]
    assert [row[0] for row in marked] == ["x"]
    assert "1 tensor of 3 is more than 1% off, 2.00% at most" in text(page, "#worst")
    page = show({**content, "exact": True})
    assert not texts(page, ".badge")
    assert "counted on its own limit" in text(page, "#worst")


@in_browser
@pytest.mark.parametrize("width", [400, 1240])
def test_hostile_names_are_harmless_and_legible(show: Show, content: dict[str, Any], width: int) -> None:
    page = show(hostile(content), width=width)
    page.run("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    for tensor in range(len(HOSTILE)):
        choose(page, "explorer", "Tensor", str(tensor))
    assert page.complaints() == []
    assert len(page.requests()) == 1
    assert page.run("window.hacked") is None
    assert page.run("document.scripts.length + document.styleSheets.length") == 3
    assert page.run("document.documentElement.scrollWidth") <= width
    cards = texts(page, ".card")
    assert HOSTILE[0] in cards[0]
    assert "line\\u2028separator\\u2029\\u000a\\u0000" in cards[4].replace("\n", "")
    assert "exe.gnp\\u202e" in cards[5]
    assert "(no name)" in cards[-1]
    assert max(len(card) for card in cards) < 300
    spelled = texts(page, "#sensitivity .spelling")
    assert all("exe.gnp\\u202e" in one and "holds invisible characters" in one for one in spelled)
    assert max(map(len, texts(page, "#sensitivity li, #sensitivity tbody th"))) < 300
    shown = page.run("[...document.images].map((one) => [one.src.slice(0, 22), one.naturalWidth])")
    assert {tuple(one) for one in shown} == {("data:image/png;base64,", 1)}


@in_browser
def test_the_policy_stops_what_the_page_did_not_bring(show: Show, content: dict[str, Any]) -> None:
    page = show(content)
    page.run("document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 1'}))")
    assert page.run("window.hacked") is None
    assert page.run("fetch('https://x.invalid/').then(() => 'sent', () => 'stopped')") == "stopped"
    page.run("document.body.append(Object.assign(new Image(), {src: 'https://x.invalid/a.png'}))")
    assert all("Content Security Policy" in said for said in page.complaints())
    assert len(page.complaints()) >= 3


@in_browser
def test_everything_that_can_be_used_has_a_name(show: Show, content: dict[str, Any]) -> None:
    content["trials"][0]["error"] = "x"  # opens the table of trials
    page = show({**content, "sensitivity": SENSITIVITY})
    page.wait("document.querySelectorAll('#trials tbody tr').length > 0")
    nameless = page.run(
        """[...document.querySelectorAll("select, input, button, a, svg[role], section, [role=region]")]
            .filter((one) => {
                const by = one.getAttribute("aria-labelledby");
                const named = one.getAttribute("aria-label") || one.innerText?.trim();
                const labelled = [...(one.labels ?? [])].some((label) => label.innerText.trim());
                return !named && !labelled && !(by && document.getElementById(by));
            })
            .map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    names = page.run("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(names) == len(set(names))


@in_browser
def test_paper_is_white_and_shows_what_is_folded_on_screen(show: Show, content: dict[str, Any]) -> None:
    page = show(content, scheme="dark")
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 10_000
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("getComputedStyle(document.querySelector('.scroll.tall')).maxHeight") == "none"


@in_browser
def test_three_hundred_tensors_open_and_react(show: Show) -> None:
    page = show(wide(swept(), 300, 200))
    assert page.run("document.querySelectorAll('.heat tbody tr').length") == 300
    page.run("document.querySelectorAll('#explorer .pair button')[1].click()")
    assert page.complaints() == []

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import conv_model, images, save

from trtcal.errors import OutputError
from trtcal.model.overwriting import only_writer
from trtcal.model.runner import OrtRunner
from trtcal.zoo import page as zoopage
from trtcal.zoo.run import Row, run_zoo

ROOT = Path(__file__).parents[2]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models and their data, in a folder of their own."""
    folder = tmp_path / "models"
    folder.mkdir()
    save(conv_model(), folder / "a.onnx")
    save(conv_model(), folder / "b.onnx")
    np.savez(folder / "d.npz", image=images(12), labels=np.arange(12) % 5)
    return folder


def row(models: Path, name: str, **more: Any) -> Row:
    values: dict[str, Any] = {"batch_sizes": (1, 4), "seeds": 1, "methods": ("entropy", "minmax")}
    values |= {"data": str(models / "d.npz"), **more}
    return Row(name=name, model=str(models / f"{name}.onnx"), **values)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# --- the run


def test_every_row_has_its_cache_and_sweep_and_the_page_all_of_them(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done: list[tuple[str, int, int]] = []
    outcomes = run_zoo(
        [row(models, "a"), row(models, "b", batch_sizes=(), accuracy=False)],
        folder,
        progress=lambda *said: done.append(said),
    )
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert done == [("a", 1, 2), ("b", 2, 2)]
    assert (folder / "a/model.cache").is_file()
    assert (folder / "a/sweep/report.html").is_file()
    assert not (folder / "b/sweep").exists()
    content = json.loads((folder / "zoo.json").read_bytes())
    assert content["models"][0]["evaluation"]["scores"]["top1"]["value"] <= 1
    with open(folder / "zoo.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["name"] for line in table] == ["a", "b"]
    assert float(table[0]["int8"]) == content["models"][0]["evaluation"]["scores"]["top1"]["value"]
    assert table[1]["int8"] == ""


def test_a_row_that_fails_costs_no_other(models: Path, tmp_path: Path) -> None:
    outcomes = run_zoo([row(models, "missing"), row(models, "a", batch_sizes=())], tmp_path / "out")
    assert outcomes[0].error is not None
    assert "missing.onnx" in outcomes[0].error
    assert outcomes[1].error is None
    assert "missing.onnx" in (tmp_path / "out/index.html").read_text()


def test_what_is_finished_is_kept_until_something_changes(models: Path, tmp_path: Path) -> None:
    rows = [row(models, "a"), row(models, "b", batch_sizes=())]

    def reused(rows: list[Row], **options: Any) -> list[bool]:
        return [outcome.reused and outcome.error is None for outcome in run_zoo(rows, tmp_path / "out", **options)]

    assert reused(rows) == [False, False]
    assert reused(rows) == [True, True]
    assert reused([row(models, "a", seeds=2), rows[1]]) == [False, True]
    assert reused(rows[1:], force=True) == [False]
    np.savez(models / "d.npz", image=images(12, seed=5), labels=np.arange(12) % 5)
    assert reused(rows) == [False, False]


@pytest.mark.parametrize("where", ["in the data", "in a file", "in the data to judge by"])
def test_other_labels_are_other_scores(models: Path, tmp_path: Path, where: str) -> None:
    more: dict[str, Any] = {"in a file": {"labels": str(models / "l.csv")}, "in the data": {}}.get(
        where, {"eval_data": str(models / "e.npz")}
    )
    with OrtRunner(conv_model()) as fp32:
        right = fp32({"image": images(12)})["logits"].argmax(axis=1)

    def scores(labels: np.ndarray) -> tuple[bool, float, float]:
        write(models / "l.csv", "".join(f"{row:02},{label}\n" for row, label in enumerate(labels)))
        np.savez(models / ("e.npz" if "judge" in where else "d.npz"), image=images(12), labels=labels)
        (outcome,) = run_zoo([row(models, "a", batch_sizes=(4,), **more)], tmp_path / "out")
        assert outcome.error is None
        found = outcome.result["evaluation"]["reference_scores"]["top1"]["value"]
        with open(tmp_path / "out/a/sweep/trials.csv", newline="") as file:
            swept = [float(line["accuracy"]) for line in csv.DictReader(file)]
        return outcome.reused, found, max(swept)

    assert scores(right)[:2] == (False, 1)
    assert scores(right)[:2] == (True, 1)
    assert scores((right + 1) % 5)[:2] == (False, 0)
    assert scores((right + 1) % 5)[2] < 1


def test_what_the_page_links_to_is_made_again_where_it_is_gone(models: Path, tmp_path: Path) -> None:
    (first,) = run_zoo([row(models, "a")], tmp_path / "out")
    for name in (first.result["cache"], first.result["sweep"]["report"]):
        (tmp_path / "out" / name).unlink()
        (outcome,) = run_zoo([row(models, "a")], tmp_path / "out")
        assert not outcome.reused
        assert (tmp_path / "out" / name).is_file()


def test_a_file_that_no_sample_is_of_is_no_reason_to_run_again(models: Path, tmp_path: Path) -> None:
    (models / "many").mkdir()
    for number in range(6):
        np.save(models / "many" / f"{number}.npy", images(1, seed=number)[0])
    rows = [row(models, "a", data=str(models / "many"), samples=4, batch_sizes=(2,))]
    (outcome,) = run_zoo(rows, tmp_path / "out")
    assert outcome.error is None
    write(models / "many" / "notes.txt", "mine")
    (models / "many" / "unread.heic").write_bytes(b"x")
    (models / "many").rename(models / "moved")
    (outcome,) = run_zoo([replace(rows[0], data=str(models / "moved"))], tmp_path / "out")
    assert outcome.reused


def test_a_metric_that_says_something_else_is_asked_again(models: Path, tmp_path: Path) -> None:
    rows = [row(models, "a", batch_sizes=(), metric=f"{models / 'score.py'}:score")]
    scores = []
    for number in ("1.0", "0.0"):
        write(models / "score.py", f"def score(outputs, labels):\n    return {number}\n")
        (outcome,) = run_zoo(rows, tmp_path / "out")
        assert outcome.error is None
        scores.append(outcome.result["evaluation"]["scores"][rows[0].metric]["value"])
    assert scores == [1, 0]


def test_where_models_and_data_lie_is_no_reason_to_run_again(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_zoo([row(models, "a", batch_sizes=())], tmp_path / "out")
    monkeypatch.chdir(models)
    (outcome,) = run_zoo([row(Path(), "a", batch_sizes=())], tmp_path / "out")
    assert outcome.reused


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), OverflowError("x"), MemoryError("x")])
def test_whatever_goes_wrong_in_a_row_costs_no_other(
    error: Exception, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("trtcal.zoo.run.compare", fail)
    rows = [row(models, "a", batch_sizes=()), row(models, "b", batch_sizes=(), accuracy=False)]
    outcomes = run_zoo(rows, tmp_path / "out")
    assert [outcome.error is None for outcome in outcomes] == [False, True]
    assert str(outcomes[0].error).startswith(type(error).__name__)


def test_passwords_and_signatures_in_urls_are_in_none_of_the_files(models: Path, tmp_path: Path) -> None:
    url = "https://user:cretA@host.invalid/d.npz?sig=cretB:cretC"
    outcomes = run_zoo([row(models, "a", eval_data=url), Row(name="b", model="b.onnx", data=url)], tmp_path / "out")
    assert all(outcome.error for outcome in outcomes)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert [path for path in files if b"cret" in path.read_bytes()] == []
    assert "https://host.invalid/d.npz" in (tmp_path / "out" / "zoo.json").read_text()


def test_an_interrupted_zoo_goes_on(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(models, "a", batch_sizes=()), row(models, "b")]

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trtcal.sweep.run.report.write", interrupt)  # the last step of the second row
        with pytest.raises(KeyboardInterrupt):
            run_zoo(rows, tmp_path / "out")
    content = json.loads((tmp_path / "out/zoo.json").read_bytes())
    assert [model["error"] for model in content["models"]] == [None, "not run yet"]
    kept = os.stat(tmp_path / "out/b/sweep/stats.npz").st_mtime_ns
    outcomes = run_zoo(rows, tmp_path / "out")
    assert [(outcome.error, outcome.reused) for outcome in outcomes] == [(None, True), (None, False)]
    assert os.stat(tmp_path / "out/b/sweep/stats.npz").st_mtime_ns == kept


def test_what_somebody_else_left_in_the_folder_is_not_replaced(models: Path, tmp_path: Path) -> None:
    for name in ("index.html", "zoo.json", "zoo.csv"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        write(folder / name, "mine")
        with pytest.raises(OutputError, match=f"{name}: exists and is no"):
            run_zoo([row(models, "a")], folder)
    folder = tmp_path / "row"
    (folder / "a").mkdir(parents=True)
    write(folder / "a" / "row.json", "mine")
    (outcome,) = run_zoo([row(models, "a")], folder)
    assert outcome.error is not None
    assert "row.json: exists and is no outcome" in outcome.error


def test_of_two_zoos_in_one_folder_the_second_says_so(models: Path, tmp_path: Path) -> None:
    rows = [row(models, "a", batch_sizes=())]
    refused: list[str] = []

    def second(*_: Any) -> None:
        with pytest.raises(OutputError, match=r"zoo\.json: another run is writing it"):
            run_zoo([row(models, "b", batch_sizes=())], tmp_path / "out")
        refused.append("b")

    run_zoo(rows, tmp_path / "out", progress=second)
    assert refused == ["b"]
    assert [model["name"] for model in json.loads((tmp_path / "out/zoo.json").read_bytes())["models"]] == ["a"]
    assert not list((tmp_path / "out").glob(".*"))
    with only_writer(tmp_path / "out/zoo.json"), pytest.raises(OutputError, match="another run"):
        run_zoo(rows, tmp_path / "out")


class Texts(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_every_text_and_asks_the_network_for_nothing() -> None:
    evil = "<script>alert('1')</script>\"&"
    model = {
        "name": evil,
        "error": None,
        "row": {"metric": evil, "method": evil},
        "cache": f"{evil}/c",
        "samples": 3,
        "tensors": 4,
        "unusable": 1,
        "evaluation": {
            "scores": {evil: {"value": "inf", "low": None, "high": None}},
            "reference_scores": {evil: {"value": None}},
            "changes": {},
            "agreement": {"y": {"sqnr_db": evil, "top1": None}},
        },
        "sweep": {"report": f"{evil}/r", "headline": evil, "batch_size": None},
    }
    page = zoopage.page({"title": evil, "models": [model, {**model, "error": evil}]})
    found = Texts(page)
    assert "script" not in found.tags
    assert found.text.count(evil) >= 5
    assert not [link for link in found.links if "//" in link or ":" in link]


def scored(fp32: float, int8: float) -> str:
    change = {"value": int8 - fp32, "low": int8 - fp32 - 0.25, "high": int8 - fp32 + 0.25}
    scores = {"scores": {"m": {"value": int8, "low": None, "high": None}}, "changes": {"m": change}}
    found = {**scores, "reference_scores": {"m": {"value": fp32, "low": None, "high": None}}, "agreement": {}}
    model = {"name": "a", "error": None, "row": {"metric": "m", "method": "mse"}, "cache": "a/c", "samples": 3}
    return zoopage.page({"title": "t", "models": [{**model, "tensors": 4, "unusable": 0, "evaluation": found}]})


def test_shares_are_shown_in_percent_and_other_metrics_as_they_are() -> None:
    page = scored(0.75, 0.5)
    assert "<td class=n>75.00%<td class=n>50.00%<td class=n>-25.00 pt (-50.00 pt to +0.00 pt)<" in page
    assert "mse, 3 samples; scored by m<" in page
    assert "<td class=n>1.25<td class=n>0.75<td class=n>-0.5 (-0.75 to -0.25)<" in scored(1.25, 0.75)
    assert "<td class=n>-4<td class=n>-3.5<td class=n>+0.5 (+0.25 to +0.75)<" in scored(-4.0, -3.5)


def test_outputs_that_int8_does_not_change_and_integers_are_no_cells() -> None:
    half = {"value": 0.5}
    agreement = {
        "ids": {"sqnr_db": 1.0, "top1": {"value": 1.0}, "floating": False, "depends_on_int8": True},
        "beside": {"sqnr_db": 2.0, "top1": {"value": 1.0}, "floating": True, "depends_on_int8": False},
        "y": {"sqnr_db": 30.0, "top1": half, "floating": True, "depends_on_int8": True},
        "of_older_files": {"sqnr_db": 40.0, "top1": None},
    }
    found = {"scores": {}, "reference_scores": {}, "changes": {}, "agreement": agreement}
    model = {"name": "a", "error": None, "row": {"metric": "m", "method": "mse"}, "cache": "a/c", "evaluation": found}
    (row,) = csv.DictReader(io.StringIO(zoopage.table({"title": "t", "models": [model]})))
    assert (row["sqnr_db"], row["top1_agreement"]) == ("30.0", "0.5")


def test_a_row_with_unusable_thresholds_is_marked() -> None:
    model = {"name": "a", "error": None, "row": {"metric": "m", "method": "mse"}, "cache": "a/c", "samples": 3}
    model |= {"tensors": 4, "unusable": 0, "unusable_thresholds": 2, "warning": "unusable by <mse>"}
    content = {"title": "t", "models": [model, {**model, "warning": None, "unusable_thresholds": 0}]}
    page = zoopage.page(content)
    assert "2 models, <strong class=bad>1 with unusable thresholds</strong>" in page
    assert page.count("<strong class=bad>unusable by &lt;mse&gt;</strong>") == 1
    rows = list(csv.DictReader(io.StringIO(zoopage.table(content))))
    assert [row["unusable_thresholds"] for row in rows] == ["2", "0"]


# --- the command


def test_the_command_shows_failures_and_exits_with_2(models: Path, tmp_path: Path, run: Any) -> None:
    pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'trtcal[zoo]'")
    write(
        tmp_path / "zoo.yaml",
        "defaults: {data: models/d.npz, batch_sizes: []}\nmodels: [{model: models/a.onnx}, {model: models/c.onnx}]\n",
    )
    code, out, err = run("zoo", "zoo.yaml", "-o", "out", "--json")
    assert code == 2
    assert [model["error"] is None for model in json.loads(out)] == [True, False]
    assert "a: done\nc: failed: ModelError: " in err
    write(tmp_path / "zoo.yaml", "defaults: {data: models/d.npz, batch_sizes: []}\nmodels: [{model: models/a.onnx}]\n")
    assert run("zoo", "zoo.yaml", "-o", "out")[0] == 0
    assert run("zoo", "none.yaml")[0] == 2
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<title>INT8 calibration of the models in zoo.yaml</title>" in page


@pytest.mark.slow(reason="starts a Ray cluster")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray", "ignore::DeprecationWarning:ray")
def test_on_ray_rows_run_as_tasks_with_the_same_results(models: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'trtcal[ray]'")
    from trtcal.cluster.executor import RayExecutor
    from trtcal.cluster.ray_cluster import Cluster

    rows = [row(models, "a"), row(models, "missing"), row(models, "b", batch_sizes=())]
    here = run_zoo(rows, tmp_path / "here")

    def shut_down() -> Iterator[None]:
        try:
            ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
            yield
        finally:
            ray.shutdown()

    for _ in shut_down():
        with Cluster() as cluster:
            there = run_zoo(rows, tmp_path / "there", executor=RayExecutor(cluster))
    assert there == here
    assert there[0].to_dict() == here[0].to_dict()

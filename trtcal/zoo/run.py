"""Many models in one run: each calibrated, swept and evaluated, each by itself; what came of them on one page."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trtcal.calibration.calibrate import unusable_in_words
from trtcal.calibration.file import calibrate_to_file, statistics_key
from trtcal.errors import DataError, OutputError
from trtcal.files.atomic import write_bytes
from trtcal.files.brief import brief
from trtcal.files.remote import is_url, shown
from trtcal.judging.evaluation import compare, for_metric, judged_by, labels_of, open_runner
from trtcal.judging.metrics import metric as named
from trtcal.model.open import open_model
from trtcal.model.overwriting import HTML, Kind, check_output, json_of, only_writer
from trtcal.passes.executor import Executor, Here
from trtcal.qdq.insert import check_exclude
from trtcal.samples.options import open_both
from trtcal.sweep.cpu_judge import CpuJudge
from trtcal.sweep.run import run_sweep
from trtcal.zoo import page as zoopage
from trtcal.zoo.file import PATHS, Row

logger = logging.getLogger(__name__)

FORMAT = "trtcal-zoo-1"
ROW_FORMAT = "trtcal-zoo-row-1"


@dataclass(frozen=True)
class Outcome:
    """What came of a row: ``error``, or else what is in ``result``; ``reused`` from an earlier run."""

    row: Row
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    reused: bool = False

    __repr__ = brief

    def to_dict(self) -> dict[str, Any]:
        """Nothing -> the model's object in zoo.json; URLs are without passwords and signatures."""
        row = asdict(self.row)
        row |= {name: shown(row[name]) for name in PATHS if isinstance(row[name], str) and is_url(row[name])}
        return {"name": self.row.name, "row": row, "error": self.error, "reused": self.reused, **self.result}


def run_zoo(
    rows: Sequence[Row],
    folder: str | Path,
    *,
    title: str = "INT8 calibration of many models",
    force: bool = False,
    executor: Executor | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Outcome]:
    """Rows -> a folder for each in ``folder``, with its cache and sweep, and ``index.html``, ``zoo.json``, ``zoo.csv``.

    A row that fails is an outcome with its error and costs no other. One that was finished with the same model, data
    and settings is kept, and one that was interrupted goes on, unless ``force``. Rows are tasks of the ``executor``
    (default: here, one after the other); on a cluster ``folder`` needs the same path on every node. OutputError where
    the folder holds something else, or another run is writing there.
    """
    folder = Path(folder)
    named = [getattr(row, name) for row in rows for name in PATHS]
    given = [path for one in named for path in (one if isinstance(one, tuple) else [one])]
    files = [Path(path) for path in given if path and not is_url(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be used as a folder: {error.strerror}") from error
    check_output(folder / "index.html", HTML, files)
    check_output(folder / "zoo.json", json_of("summary of a zoo", FORMAT, "models"), files)
    check_output(folder / "zoo.csv", _CSV, files)
    outcomes = [Outcome(row, error="not run yet") for row in rows]

    def save() -> None:
        content = {"format": FORMAT, "title": title, "models": [outcome.to_dict() for outcome in outcomes]}
        write_bytes(folder / "zoo.json", json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
        write_bytes(folder / "zoo.csv", zoopage.table(content).encode())
        write_bytes(folder / "index.html", zoopage.page(content).encode())

    executor = executor or Here()
    run = partial(run_row, folder=folder.resolve(), force=force, executor=executor.within_task)
    with only_writer(folder / "zoo.json"):
        for done, (number, outcome) in enumerate(executor.spread(run, rows), 1):
            if isinstance(outcome, BaseException):  # of Ray: the worker died
                outcome = Outcome(rows[number], error=f"{type(outcome).__name__}: {outcome}")
            outcomes[number] = outcome
            save()
            progress(rows[number].name, done, len(rows))
    return outcomes


def run_row(row: Row, *, folder: Path, force: bool = False, executor: Executor | None = None) -> Outcome:
    """One row -> its outcome, with its files in a folder of its name; what goes wrong is in the outcome."""
    try:
        return _run_row(row, folder / row.name, force, executor or Here())
    except Exception as error:  # whatever it is, it is this row's alone
        logger.warning("%s: %s", row.name, error)
        return Outcome(row, error=f"{type(error).__name__}: {error}")


def _run_row(row: Row, folder: Path, force: bool, executor: Executor) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "row.json"
    check_output(record, json_of("outcome of a zoo's row", ROW_FORMAT, "key"))
    model = open_model(row.model, libraries=row.ort_library).asked(row.batch_axis, row.input)
    check_exclude(model, row.exclude)
    batches, judged = open_both(row, model.inputs, row.eval_data, row.eval_samples)
    metrics = {row.metric: named(row.metric)}
    # Of files what is in them counts, and not where they lie.
    parts: list[Any] = [{name: value for name, value in asdict(row).items() if name not in PATHS}]
    labels = labels_of(judged, row.labels, metrics)
    if row.accuracy:
        labels = for_metric(model, labels, asked=row.labels is not None or row.metric != Row.metric)
    parts += [statistics_key(model, batches), judged_by(judged, labels, row.metric)]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    before = _read_record(record)
    same = before.get("key") == key and not force
    if same and "result" in before and _is_there(before["result"], folder.parent):
        return Outcome(row, before["result"], reused=True)
    write_bytes(record, json.dumps({"format": ROW_FORMAT, "key": key}).encode() + b"\n")
    made = calibrate_to_file(model, batches, folder / "model.cache", row.method, force=force, executor=executor)
    result: dict[str, Any] = {
        "cache": f"{row.name}/model.cache",
        "header": made.cache.header,
        "samples": batches.num_samples,
        "tensors": len(made.cache.scales),
        "unusable": len(made.unusable),
        "clipped": len(made.clipped),
        "unusable_thresholds": len(made.unusable_thresholds),
        "warning": unusable_in_words(row.method, made.provenance.growth, made),
    }
    if row.accuracy:
        with open_runner(model, judged).runner as float_model:
            int8 = open_runner(model, judged, scales=made.cache.scales, exclude=row.exclude)
            with int8.runner as runner:
                found = compare(
                    runner, judged, reference=float_model, labels=labels, metrics=metrics, reached=int8.reached
                )
        result["evaluation"] = found.to_dict()
        result["stay_float"] = len(int8.skipped)
    if row.batch_sizes:
        rule = metrics[row.metric] if labels is not None else None
        threads = (executor or Here()).within_task.workers
        judge = CpuJudge(model, judged, labels, rule, row.exclude, workers=threads) if row.accuracy else None
        run = run_sweep(
            model,
            batches,
            folder / "sweep",
            row,
            judge=judge,
            judge_key=key,
            judged_on=judged,
            resume=same,
            force=not same and (folder / "sweep" / "settings.json").exists(),
            executor=executor,
            options=row,
        )
        failed = [trial.error for trial in run.sweep.trials if trial.error is not None]
        if len(failed) == len(run.sweep.trials):
            raise DataError(f"every trial of the sweep failed, the first one with {failed[0]}")
        result["sweep"] = {
            "report": f"{row.name}/sweep/report.html",
            "headline": run.recommendation.headline,
            "batch_size": run.recommendation.batch_size,
            "trials": len(run.sweep.trials),
            "failed": len(failed),
        }
    content = {"format": ROW_FORMAT, "key": key, "result": result}
    write_bytes(record, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
    return Outcome(row, result)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_there(result: Mapping[str, Any], folder: Path) -> bool:
    """Are the files still there that the page links to?"""
    files = [result["cache"]] + [sweep["report"] for sweep in [result.get("sweep")] if sweep is not None]
    return all((folder / name).is_file() for name in files)


def _is_table(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.readline().decode(errors="replace").strip() == ",".join(zoopage.COLUMNS)


_CSV = Kind("table of a zoo", _is_table, plain=True)

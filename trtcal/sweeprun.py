"""A sweep from model and data to files: one pass, an exact second one if wanted, judgements, recommendation."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trtcal import report, sweepfile
from trtcal.accuracy import Distances, Labels, Scores, prediction
from trtcal.atomic import write_bytes
from trtcal.calibration import FloatRunner, carried, open_graph
from trtcal.collector import Progress, collect, load_checkpoint
from trtcal.contact_sheet import thumbnails
from trtcal.data import Batches
from trtcal.errors import DataError, OutputError
from trtcal.evaluation import with_batch_size
from trtcal.exact import ExactCounts, count_exactly
from trtcal.graph import CalibrationGraph
from trtcal.metrics import Metric, Outputs
from trtcal.modelfile import load_whole_model
from trtcal.provenance import installed_versions, model_sha256
from trtcal.qdq import insert_qdq
from trtcal.recommend import Recommendation, enough_samples, recommend
from trtcal.runners import OrtRunner
from trtcal.stats import ActivationStats
from trtcal.sweep import (
    BATCH_SIZES,
    INVARIANT,
    METHODS,
    ORDERS,
    SEEDS,
    Arrangement,
    Judge,
    Judgement,
    Sweep,
    Trial,
    arrangements,
    limits_of,
    sweep,
    uneven_samples,
    usable,
)
from trtcal.thresholds import method as threshold_method

logger = logging.getLogger(__name__)

DRIFT_METHODS = ("entropy", "minmax", "percentile:99.99", "mse")


@dataclass(frozen=True, eq=False)
class SweepRun:
    """What a sweep left in its folder, and what it says."""

    folder: Path
    sweep: Sweep
    recommendation: Recommendation


def run_sweep(
    model: str | Path,
    batches: Batches,
    folder: str | Path,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    orders: Sequence[str] = tuple(ORDERS),
    seeds: int = SEEDS,
    methods: Sequence[str] = METHODS,
    growths: Sequence[str] = ("double",),
    exact: bool = False,
    judge: Judge | None = None,
    judge_key: str = "",
    metric: str = "top1",
    resume: bool = False,
    force: bool = False,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> SweepRun:
    """ONNX file and batches -> ``trials.csv``, ``trials.json`` and ``stats.npz`` in ``folder``, and what they say.

    The order of ``batches`` is the sweep's ``given`` order; their batch size only decides against which
    arrangement the replay is checked. ``judge`` says how a set of ranges performs, ``judge_key`` what it judges
    by, ``metric`` what its accuracy is (more is better). With ``resume``, statistics and judgements of an
    interrupted run with the same settings are taken up. Raises OutputError where the folder cannot be used, holds
    something else, or a sweep that neither ``resume`` goes on with nor ``force`` replaces; and what a
    calibration raises.
    """
    folder = Path(folder)
    for name in methods:
        threshold_method(name)
    graph = open_graph(model)
    grid, notes = arrangements(batch_sizes, orders, seeds, growths, batches.num_samples)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be used as a folder: {error.strerror}") from error
    key = _key(graph, batches)
    settings = {
        "model and samples": key,
        "batch sizes": list(batch_sizes),
        "orders": list(orders),
        "seeds": seeds,
        "methods": list(methods),
        "growth rules": list(growths),
        "exact": exact,
        "judged by": judge_key,
    }
    _take(folder, settings, resume, force)
    stats, drift = _statistics(graph, batches, folder, key, resume, workers, progress)
    shapes = _exact_shapes(graph, batches, stats, grid, workers, progress) if exact else None
    journal = folder / "judgements.jsonl"
    done = _open_journal(journal, f"{key} {judge_key}", resume)
    result = sweep(
        stats,
        grid,
        methods,
        partial=batches.partial,
        streamed_batch_size=batches.batch_size,
        metric=metric,
        judge=None if judge is None else _journalled(judge, journal, usable(stats)),
        shapes=shapes,
        done=done,
        on_trial=_counting(len(grid) * len(methods), progress),
        notes=notes,
    )
    if result.off is not None and any(a.growth not in INVARIANT for a in grid):
        result = replace(result, notes=(*result.notes, _replayed(result.off)))
    advice = recommend(result, stats)
    enough = enough_samples(drift)
    if enough is not None:
        advice = replace(advice, evidence=(*advice.evidence, enough))
    undo = getattr(getattr(batches.source, "preprocess", None), "undo", None)
    content = sweepfile.to_json(
        result,
        stats,
        advice,
        model=graph.path.name,
        data=batches.source.describe(),
        provenance={"samples": str(batches.accounting()), "order": batches.order, **installed_versions()},
        drift=drift,
        thumbnails=thumbnails(batches, [outlier.sample for outlier in advice.outliers], undo=undo),
    )
    sweepfile.save(folder, result, content)
    report.write(folder)
    journal.unlink(missing_ok=True)
    return SweepRun(folder, result, advice)


def _replayed(off: np.ndarray) -> str:
    far = int((off > 0.01).sum())
    return (
        f"Entropy's thresholds are replayed from one pass, not counted. In the arrangement of that pass {far} of "
        f"{off.size} tensors are off by more than 1%, the worst by {off.max(initial=0):.1%}; in other arrangements it "
        f"may be other tensors. A second pass (--exact) counts them."
    )


OURS = ("report.html", "trials.csv", "trials.json", "stats.npz", "drift.json", "judgements.jsonl", "stats.partial.npz")


def _take(folder: Path, settings: Mapping[str, Any], resume: bool, force: bool) -> None:
    """Make sure that what is in the folder is ours to go on with or to replace; then it belongs to these settings."""
    path = folder / "settings.json"
    there = [name for name in OURS if (folder / name).exists()]
    try:
        old: Any = json.loads(path.read_bytes()) if path.is_file() else None
    except ValueError:
        old = None
    if there and not isinstance(old, dict):
        raise OutputError(f"{folder}: holds {there[0]}, which no sweep of trtcal left there; choose another folder")
    if there and not resume and not force:
        raise OutputError(f"{folder}: holds a sweep already; resume it, replace it by force, or choose another folder")
    if there and resume and not force:
        changed = [name for name, value in settings.items() if old.get(name) != value]
        if changed:
            raise OutputError(
                f"{folder}: holds a sweep with other settings ({', '.join(changed)}); replace it by force, or choose "
                f"another folder"
            )
    if force:
        for name in there:
            (folder / name).unlink()
    write_bytes(path, json.dumps(dict(settings), indent=1).encode() + b"\n")


class CpuJudge:
    """Judges a set of ranges by running the model with them as INT8 on this CPU (:func:`trtcal.accuracy.simulate`).

    ``labels`` and ``metric`` give the accuracy, if there are any; agreement is with the FP32 model, per sample
    where an output is (N, classes), and the SQNR is the lowest of all outputs'.
    """

    def __init__(
        self,
        graph: CalibrationGraph,
        batches: Batches,
        labels: Labels | None = None,
        metric: Metric | None = None,
        exclude: Iterable[str] = (),
    ) -> None:
        self.graph, self.batches, self.labels, self.metric = graph, batches, labels, metric
        self.exclude = tuple(exclude)
        self.model = with_batch_size(load_whole_model(graph.path)[0], batches.batch_size, str(graph.path))
        self._expected: list[Outputs] | None = None

    def __call__(self, amax: Mapping[str, np.float32]) -> Judgement:
        """Tensor -> amax; how the model performs with these."""
        if self._expected is None:
            with OrtRunner(self.model) as runner:
                self._expected = [prediction(runner, batch, 0)[1] for batch in self.batches]
        scales = {
            name: value / np.float32(127) for name, value in carried(self.graph, amax).items() if 0 < value < np.inf
        }
        quantized = insert_qdq(self.model, scales, placement="all", exclude=self.exclude).model
        distances = Distances()
        scores = None
        if self.labels is not None and self.metric is not None:
            scores = Scores(self.labels, {"metric": self.metric})
        with OrtRunner(quantized) as runner:
            for batch, expected in zip(self.batches, self._expected, strict=True):
                names, found = prediction(runner, batch, len(distances.samples))
                distances.add(names, expected, found)
                if scores is not None:
                    scores.add(names, found)
        outputs = distances.result().outputs.values()
        agreement = next((output.top1.values for output in outputs if output.top1 is not None), None)
        accuracy = None
        if scores is not None:
            score = scores.result().scores["metric"]
            if np.isnan(score.value):
                raise DataError("the metric is nan")
            accuracy = score.values if score.values.size else np.array([score.value])
        return Judgement(accuracy, agreement, min(output.sqnr_db for output in outputs))


def _statistics(
    graph: CalibrationGraph,
    batches: Batches,
    folder: Path,
    key: str,
    resume: bool,
    workers: int | None,
    progress: Callable[[str, int, int], None],
) -> tuple[ActivationStats, dict[str, Any]]:
    """The pass, or what an earlier one left; with it, how thresholds drift as samples come in."""
    path, drift_path, partial = folder / "stats.npz", folder / "drift.json", folder / "stats.partial.npz"
    if not resume:
        for old in (path, drift_path, partial):
            old.unlink(missing_ok=True)
    snapshots = _read_snapshots(drift_path, key)
    kept = load_checkpoint(path, key)
    if kept is not None and len(kept.samples) in snapshots:
        return kept, _drift(snapshots, len(usable(kept)))

    def look(stats: ActivationStats) -> None:
        snapshots[len(stats.samples)] = {
            name: [float(threshold_method(name)(tensor.histogram)) for tensor in usable(stats).values()]
            for name in DRIFT_METHODS
        }
        write_bytes(drift_path, json.dumps({"key": key, "snapshots": snapshots}).encode())

    with FloatRunner(graph) as runner:
        stats = collect(
            runner,
            batches,
            workers=workers or os.cpu_count() or 1,
            checkpoint=partial,
            checkpoint_key=key,
            progress=_stage("collecting", batches.num_samples, progress),
            look=look,
        )
    write_bytes(path, stats.to_bytes(key=key))
    return stats, _drift(snapshots, len(usable(stats)))


_Snapshots = dict[int, dict[str, list[float]]]
"""Number of samples -> method -> thresholds."""


def _read_snapshots(path: Path, key: str) -> _Snapshots:
    try:
        content = json.loads(path.read_bytes())
        if content["key"] == key:
            return {int(samples): dict(methods) for samples, methods in content["snapshots"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not there, of something else or broken: the pass makes it anew
    return {}


def _drift(snapshots: _Snapshots, tensors: int) -> dict[str, Any]:
    """Thresholds after so many samples -> their relative distance to those of all samples, by method."""
    if not snapshots:
        return {}
    last = {name: np.array(amax) for name, amax in snapshots[max(snapshots)].items()}
    drift: dict[str, Any] = {}
    for name, final in last.items():
        rows: dict[str, list[float]] = {"samples": [], "change_median": [], "change_max": []}
        for samples, amax in sorted(snapshots.items()):
            if len(amax[name]) != tensors:  # a mask showed itself only later
                continue
            change = np.abs(np.array(amax[name]) / np.where(final > 0, final, 1) - 1)[final > 0]
            rows["samples"].append(samples)
            rows["change_median"].append(float(np.median(change)) if change.size else 0.0)
            rows["change_max"].append(float(change.max(initial=0)))
        drift[name] = rows
    return drift


def _exact_shapes(
    graph: CalibrationGraph,
    batches: Batches,
    stats: ActivationStats,
    grid: Sequence[Arrangement],
    workers: int | None,
    progress: Callable[[str, int, int], None],
) -> dict[str, ExactCounts]:
    with FloatRunner(graph) as runner:
        return count_exactly(
            runner,
            batches,
            limits_of(stats, grid, batches.partial),
            uneven_samples(stats, grid, batches.partial),
            workers=workers or os.cpu_count() or 1,
            progress=_stage("counting exactly", batches.num_samples, progress),
        )


def _key(graph: CalibrationGraph, batches: Batches) -> str:
    """What statistics belong to."""
    preprocess = getattr(batches.source, "preprocess", None)
    parts = {
        "model": model_sha256(graph.files),
        "data": batches.key(),
        "order": [batches.order, batches.seed],
        "batch": [batches.batch_size, batches.partial],
        "preprocess": None if preprocess is None else preprocess.to_dict(),
        "versions": installed_versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _open_journal(path: Path, key: str, resume: bool) -> dict[bytes, Judgement]:
    """Judgements that are already there, and a journal that begins with them; nothing where the key differs."""
    first = json.dumps({"key": key}).encode() + b"\n"
    if resume and path.is_file():
        content = path.read_bytes()
        if content.startswith(first):
            whole = content[: content.rfind(b"\n") + 1]  # a line that was being written is not taken
            write_bytes(path, whole)
            return sweepfile.read_journal(whole[len(first) :])
    write_bytes(path, first)
    return {}


def _journalled(judge: Judge, path: Path, tensors: Mapping[str, Any]) -> Judge:
    def judged(amax: Mapping[str, np.float32]) -> Judgement:
        found = judge(amax)
        line = sweepfile.judgement_line(np.array([amax[name] for name in tensors], np.float32), found)
        with open(path, "ab") as file:
            file.write(line)
        return found

    return judged


def _stage(name: str, total: int, progress: Callable[[str, int, int], None]) -> Progress:
    return lambda done: progress(name, done, total)


def _counting(total: int, progress: Callable[[str, int, int], None]) -> Callable[[Trial], None]:
    count = iter(range(1, total + 1))
    return lambda trial: progress("judging", next(count), total)

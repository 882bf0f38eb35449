"""A sweep from model and data to files: one pass, an exact second one if wanted, judgements, recommendation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trtcal.cache.provenance import installed_versions
from trtcal.calibration.file import statistics_key
from trtcal.errors import ModelError, OutputError
from trtcal.files.atomic import write_bytes
from trtcal.files.brief import brief
from trtcal.files.remote import is_url, shown
from trtcal.model.open import FloatRunner, Model, Source, open_model
from trtcal.model.overwriting import check_output, json_of, only_writer
from trtcal.passes.collect import load_checkpoint
from trtcal.passes.collector import Progress
from trtcal.passes.executor import Executor, Here
from trtcal.passes.second_pass import ExactCounts, count_exactly
from trtcal.passes.sharing import resolved
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.batches import Batches, Samples
from trtcal.samples.options import SampleOptions
from trtcal.sweep import report
from trtcal.sweep import store as sweepfile
from trtcal.sweep.command import calibrate_command
from trtcal.sweep.cpu_judge import CpuJudge
from trtcal.sweep.drift import Looks
from trtcal.sweep.emulation import RULES
from trtcal.sweep.journal import Journal
from trtcal.sweep.judge import LATE, Judge, judged
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.race import raced
from trtcal.sweep.recommend import Recommendation, enough_samples, recommend
from trtcal.sweep.trials import Configuration, Sweep, configurations, limits_of, sweep, uneven_samples, usable


@dataclass(frozen=True, eq=False)
class SweepRun:
    """What a sweep left in its folder, and what it says."""

    folder: Path
    sweep: Sweep
    recommendation: Recommendation
    plan: SweepPlan
    model: str  # its name
    data: str
    rows: Sequence[Mapping[str, Any]]  # of trials.csv

    __repr__ = brief


def run_sweep(
    model: Source,
    batches: Batches,
    folder: str | Path,
    plan: SweepPlan | None = None,
    *,
    judge: Judge | None = None,
    judge_key: str = "",
    judged_on: Batches | None = None,
    resume: bool = False,
    force: bool = False,
    executor: Executor | None = None,
    budget: float | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    options: SampleOptions | None = None,
) -> SweepRun:
    """Model and batches -> ``trials.csv``, ``trials.json`` and ``stats.npz`` in ``folder``, and what they say.

    The order of ``batches`` is the sweep's ``given`` order; their batch size only decides against which
    configuration the replay is checked. ``judge`` says how a set of ranges performs, ``judge_key`` what it judges by,
    ``judged_on`` on which samples (said to people), and the plan's metric what its accuracy is (more is better). With
    ``resume``, statistics and judgements of an interrupted run with the same settings are taken up. The pass and the
    judgements run on the ``executor`` (default: here, one sample per core at once), the second pass of ``exact`` here.
    When ``budget`` seconds have passed no judgement is begun any more; what there is until then is told, and ``resume``
    goes on with it.
    With the ``options`` that the batches are made by, and a model from a file, the recommendation has its command.

    Raises OutputError where the folder cannot be used, holds something else, or a sweep that neither ``resume`` goes
    on with nor ``force`` replaces, or one that is under way; ModelError where no tensor has a range to compare; and
    what a calibration raises.
    """
    start = time.monotonic()
    folder = Path(folder)
    executor = executor or Here()
    plan = plan or SweepPlan()
    model = open_model(model)
    grid, notes = configurations(plan.batch_sizes, plan.orders, plan.seeds, plan.growths, batches.num_samples)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be used as a folder: {error.strerror}") from error
    with only_writer(folder / "settings.json"):
        key = statistics_key(model, batches)
        _take(folder, plan, {"model and samples": json.loads(key), "judged by": judge_key}, resume, force)
        model = resolved(model, batches)
        pass_ = _collected(model, batches, folder, key, resume, executor, progress)
        stats = pass_.stats
        if not usable(stats):
            raise ModelError(
                f"{model.name}: none of its {len(stats.tensors)} float tensors has a finite range, and so nothing "
                f"depends on the batch size; leave out the sweep: trtcal calibrate is enough"
            )
        journal = Journal(folder / "judgements.jsonl", f"{key} {judge_key} {JUDGED}", resume=resume)
        with ThreadPoolExecutor(1, thread_name_prefix="trtcal-write") as beside:  # compressing takes a while
            written = beside.submit(pass_.write)
            shapes = None
            if plan.exact:
                written.result()  # a full disk is not worth a second pass
                shapes = _exact_shapes(model, batches, stats, grid, executor.workers, progress)
            result = sweep(
                stats,
                grid,
                plan.methods,
                partial=batches.partial,
                streamed_batch_size=batches.batch_size,
                metric=plan.metric,
                shapes=shapes,
                notes=notes,
                known=pass_.thresholds,
                workers=executor.workers,
                inputs={spec.name for spec in model.inputs},
            )
            written.result()
        if judge is not None:
            deadline = None if budget is None else start + budget
            result = _judged(result, judge, plan, journal, executor, deadline, progress)
        if isinstance(judge, CpuJudge) and result.trials:
            said = judge.account(dict(zip(result.tensors, result.trials[0].amax, strict=True)))
            result = replace(result, notes=(*filter(None, [said]), *result.notes))
        if judge is not None and judged_on is not None:
            compared: tuple[str, ...] = getattr(judge, "notes", ())
            result = replace(result, notes=(_judged_on(batches, judged_on), *compared, *result.notes))
        if result.off is not None and not all(RULES[a.growth].fine for a in grid):
            result = replace(result, notes=(*result.notes, _replayed(result.off)))
        advice = recommend(result, stats)
        enough = enough_samples(pass_.drift)
        if enough is not None:
            advice = replace(advice, evidence=(*advice.evidence, enough))
        if options is not None and model.path is not None:
            advice = _with_command(advice, model.path, options, batches, folder, plan)
        from trtcal.samples.contact_sheet import thumbnails  # Pillow loads slowly

        undo = getattr(getattr(batches.source, "preprocess", None), "undo", None)
        rows = sweepfile.rows(result)
        named = {"model": model.short_name, "data": batches.source.describe()}
        content = sweepfile.content(
            result,
            rows,
            stats,
            advice,
            **named,
            provenance={"samples": str(batches.accounting()), "order": batches.order, **installed_versions()},
            drift=pass_.drift,
            thumbnails=thumbnails(batches, [outlier.sample for outlier in advice.outliers], undo=undo),
        )
        sweepfile.save(folder, rows, content)
        report.write(folder, content)
        if not any(trial.dropped == LATE for trial in result.trials):  # else --resume goes on with it
            journal.path.unlink(missing_ok=True)
    return SweepRun(folder, result, advice, plan, **named, rows=rows)


def _with_command(
    advice: Recommendation, model: Path, options: SampleOptions, batches: Batches, folder: Path, plan: SweepPlan
) -> Recommendation:
    command = calibrate_command(
        model,
        options,
        advice.options,
        folder,
        batches.batch_size,
        labelled_apart=plan.eval_data is not None,
        can_shuffle=options.samples is None and isinstance(batches.source, Samples),
    )
    said, repeats = advice.evidence, advice.options
    if repeats and not command:
        repeats = ()
        said += (
            "No command repeats that: a calibration shuffles all samples of a folder or file, and no part of them.",
        )
    if command and any(is_url(value) and shown(value) != value for value in (options.data, options.labels or "")):
        said += ("The command leaves out the secrets in the URL of the data; give the whole URL.",)
    return replace(advice, command=command, options=repeats, evidence=said)


def _judged(
    result: Sweep,
    judge: Judge,
    plan: SweepPlan,
    journal: Journal,
    executor: Executor,
    deadline: float | None,
    progress: Callable[[str, int, int], None],
) -> Sweep:
    """The sweep with its judgements: in a race where the judge can stop after a part of the samples."""

    def told(done: int, total: int) -> None:
        progress("judging", done, total)

    if getattr(judge, "stepwise", False):
        steps: Any = judge
        return raced(
            result,
            steps,
            race=plan.race,
            known=journal.known,
            note=journal.note,
            spread=executor.spread,
            progress=told,
            deadline=deadline,
        )
    return judged(
        result,
        judge,
        done=journal.done,
        note=journal.note,
        spread=executor.spread,
        progress=told,
        deadline=deadline,
    )


def _judged_on(batches: Batches, judged: Batches) -> str:
    if judged.source is not batches.source:
        whole = judged.num_samples == judged.accounting().available
        return f"Judged on {'' if whole else f'{judged.num_samples} of '}{judged.source.describe()}."
    return (
        f"Judged on {judged.num_samples} of the samples that calibrate, as no others were given (--eval-data): on "
        f"samples it has not seen INT8 may do worse."
    )


def _replayed(off: np.ndarray) -> str:
    far = int((off > 0.01).sum())
    return (
        f"Entropy's thresholds are replayed from one pass, not counted. In the arrangement of that pass {far} of "
        f"{off.size} tensors are off by more than 1%, the worst by {off.max(initial=0):.1%}; in other arrangements it "
        f"may be other tensors. A second pass (--exact) counts them."
    )


JUDGED = "outputs that depend on INT8"  # what the judge looks at: by another rule, a kept judgement is none of these
FORMAT = "trtcal-sweep-settings-1"
SETTINGS = json_of("record of a sweep's settings", FORMAT)
OURS = ("report.html", "trials.csv", "trials.json", "stats.npz", "drift.json", "judgements.jsonl", "stats.partial.npz")


def _take(folder: Path, plan: SweepPlan, keys: Mapping[str, Any], resume: bool, force: bool) -> None:
    """Make sure that what is in the folder is ours to go on with or to replace; then it belongs to this sweep.

    That is its plan and, by ``keys``, the content of all that it is made from.
    """
    path = folder / "settings.json"
    check_output(path, SETTINGS)
    there = [name for name in OURS if (folder / name).exists()]
    try:
        old: Any = json.loads(path.read_bytes() or b"null") if path.exists() else None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
    if there and old is None:
        raise OutputError(f"{folder}: holds {there[0]}, which no sweep of trtcal left there; choose another folder")
    if there and not resume and not force:
        raise OutputError(
            f"{folder}: holds a sweep already; resume it (--resume), replace it (--force), or choose another folder"
        )
    if there and resume and not force:
        changed = [name for name, key in keys.items() if old.get(name) != key]
        changed += [name.replace("_", " ") for name in plan.changed(old.get("plan"))]
        if changed:
            raise OutputError(
                f"{folder}: holds a sweep with other settings ({', '.join(changed)}); replace it (--force), or choose "
                f"another folder"
            )
    write_bytes(path, json.dumps({"format": FORMAT, **keys, "plan": plan.settings()}, indent=1).encode() + b"\n")
    if force:  # now that there is room for at least that much
        for name in there:
            (folder / name).unlink()


class _Pass(NamedTuple):
    """The statistics of all samples, how thresholds drift as samples come in, and those of all that are known."""

    stats: ActivationStats
    drift: Mapping[str, Any]
    thresholds: Mapping[str, np.ndarray]
    path: Path
    key: str
    kept: bool  # from an interrupted run: its file is there

    def write(self) -> None:
        if not self.kept:
            write_bytes(self.path, self.stats.to_bytes(key=self.key))


def _collected(
    model: Model,
    batches: Batches,
    folder: Path,
    key: str,
    resume: bool,
    executor: Executor,
    progress: Callable[[str, int, int], None],
) -> _Pass:
    """The pass, or what an earlier one left."""
    path, drift_path, checkpoint = folder / "stats.npz", folder / "drift.json", folder / "stats.partial.npz"
    if not resume:
        for old in (path, drift_path, checkpoint):
            old.unlink(missing_ok=True)
    looks = Looks(drift_path, key)
    kept = load_checkpoint(path, key)
    if kept is not None and len(kept.samples) in looks:
        return _Pass(kept, looks.drift(len(usable(kept))), {}, path, key, True)

    found: dict[str, np.ndarray] = {}

    def look(stats: ActivationStats) -> None:
        nonlocal found
        found = looks.take(stats, executor.workers)

    stats = executor.run_pass(
        partial(FloatRunner, model),
        batches,
        checkpoint=checkpoint,
        checkpoint_key=key,
        progress=_stage("collecting", batches.num_samples, progress),
        look=look,
    )
    return _Pass(stats, looks.drift(len(usable(stats))), found, path, key, False)


def _exact_shapes(
    model: Model,
    batches: Batches,
    stats: ActivationStats,
    grid: Sequence[Configuration],
    workers: int,
    progress: Callable[[str, int, int], None],
) -> dict[str, ExactCounts]:
    with FloatRunner(model) as runner:
        return count_exactly(
            runner,
            batches,
            limits_of(stats, grid, batches.partial),
            uneven_samples(stats, grid, batches.partial),
            workers=workers,
            progress=_stage("counting exactly", batches.num_samples, progress),
        )


def _stage(name: str, total: int, progress: Callable[[str, int, int], None]) -> Progress:
    return lambda done: progress(name, done, total)

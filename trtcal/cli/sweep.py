"""trtcal sweep."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtcal.cli.common import (
    AsJson,
    Model,
    OnRay,
    Output,
    RayAddress,
    RayCpus,
    Workers,
    executor_for,
    print_out,
    takes_samples,
)
from trtcal.cli.tables import Command
from trtcal.errors import SettingError, TrtcalError
from trtcal.files import terminal
from trtcal.files.settings import duration
from trtcal.sweep.plan import QUICK, QUICK_SAMPLES

if TYPE_CHECKING:
    from trtcal.model.open import Model as OpenModel
    from trtcal.samples.batches import Batches
    from trtcal.samples.options import SampleOptions
    from trtcal.sweep.judge import Judge
    from trtcal.sweep.plan import SweepPlan


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(cls=Command)(sweep)


@takes_samples(order="given", seed=0)
def sweep(
    context: typer.Context,
    model: Model,
    data: str,
    onnx: OpenModel,
    options: SampleOptions,
    plan: SweepPlan,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the report and the trials.")
    ] = Path("sweep"),
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"A first look: {QUICK_SAMPLES} samples, one order, batch sizes {QUICK['batch_sizes']}, unless given.",
        ),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Begin no judgement after this time, such as 90s, 5m or 1h, and say what is judged; --resume goes on.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        bool,
        typer.Option("--engine", help="Judge by TensorRT engines, one built for every distinct set of ranges."),
    ] = False,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="Log settings, numbers and the page to an MLflow store (extra mlflow).")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted sweep in this folder.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the sweep that is in this folder.")] = False,
    workers: Workers = None,
    ray: OnRay = False,
    ray_address: RayAddress = None,
    ray_cpus: RayCpus = None,
    as_json: AsJson = False,
) -> None:
    """Show what the calibration batch size and the order of the samples do to histograms and accuracy."""
    from trtcal.samples.options import open_both
    from trtcal.sweep import tracking
    from trtcal.sweep.cpu_judge import CpuJudge
    from trtcal.sweep.run import run_sweep

    if mlflow:
        tracking.require()
    time_given = None if budget is None else _duration(budget)
    at_most = QUICK_SAMPLES if quick else None
    batches, judged = open_both(options, onnx.inputs, plan.eval_data, plan.eval_samples, at_most=at_most)
    if quick and options.samples is None and batches.num_samples < batches.accounting().available:
        options = replace(options, samples=batches.num_samples)  # for the command that is advised
    say = Output()
    say(f"{batches.source.describe()}\n{batches.accounting()}")
    judge, judge_key = None, ""
    if engine and (plan.exclude or not plan.accuracy):
        other = "--exclude, which engines built from ranges cannot follow" if plan.exclude else "--no-accuracy"
        raise ValueError(f"--engine does not go with {other}; leave one of them out")
    if engine and (ray or ray_address):
        raise ValueError("--engine builds and judges on this machine; leave out --ray")
    if plan.accuracy:
        timings = output / "timing.cache" if engine else None
        judge, judge_key = _judge(onnx, judged, options.labels, plan, timings)
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(executor_for(workers, ray, ray_address, ray_cpus))
        if isinstance(judge, CpuJudge) and judge.stepwise:
            judge.workers = executor.within_task.workers
        here = not engine and executor.within_task is executor
        say(_estimate(onnx, batches, judged if plan.accuracy else None, plan, executor.workers if here else None))
        bar = stack.enter_context(say.progress("sweeping", 1, lines=True))

        def progress(stage: str, done: int, total: int) -> None:
            if bar is not None:
                bar(done, total, stage)

        run = run_sweep(
            onnx,
            batches,
            output,
            plan,
            judge=judge,
            judge_key=judge_key,
            judged_on=judged if plan.accuracy else None,
            resume=resume,
            force=force,
            executor=executor,
            budget=time_given,
            progress=progress,
            options=options,
        )
    if mlflow:
        say(f"MLflow run {tracking.log_sweep(run)}")
    advice = run.recommendation
    if as_json:
        failed = sum(trial.error is not None for trial in run.sweep.trials)
        summary: dict[str, Any] = {
            "folder": str(run.folder),
            "trials": len(run.sweep.trials),
            "failed": failed,
            "headline": advice.headline,
            "batch_size": advice.batch_size,
            "order_matters": advice.order_matters,
            "control_flat": advice.control_flat,
            "evidence": list(advice.evidence),
            "method": advice.method,
            "decided_by": advice.decided_by,
            "options": list(advice.options),
            "command": advice.command,
        }
        print_out(json.dumps(summary, indent=2))
        return
    say(terminal.lines([advice.headline, *(f"- {sentence}" for sentence in (*advice.evidence, *run.sweep.notes))]))
    if advice.command:
        say(terminal.line(f"next: {advice.command}"))
    say(f"{run.folder}: report.html, trials.csv, trials.json, stats.npz")
    if all(trial.error is not None for trial in run.sweep.trials):
        say(f"every trial failed, the first one with {run.sweep.trials[0].error}")
        raise typer.Exit(1)


def _duration(text: str) -> float:
    try:
        return duration(text)
    except ValueError as error:
        raise SettingError(f"--budget: {error}") from error


def _estimate(model: OpenModel, batches: Batches, judged: Batches | None, plan: SweepPlan, workers: int | None) -> str:
    """What the sweep is going to do, and about how long that takes with so many ``workers``; None: nobody knows."""
    from trtcal.sweep import estimate

    doing = estimate.work(plan, batches, judged)
    if workers is None:
        return estimate.said(doing, None)
    try:
        cost = estimate.probe(model, batches, judged=judged is not None)
    except TrtcalError:  # the sweep itself says what is wrong, if that stands in its way at all
        return estimate.said(doing, None)
    return estimate.said(doing, estimate.seconds(plan, batches, doing, cost, workers))


def _judge(
    model: OpenModel, judged: Batches, labels: str | None, plan: SweepPlan, timings: Path | None
) -> tuple[Judge, str]:
    """The judge, of engines where their ``timings`` have a file, and what tells its judgements apart."""
    from trtcal.judging.evaluation import for_metric, judged_by, labels_of
    from trtcal.judging.metrics import metric as named
    from trtcal.qdq.insert import check_exclude
    from trtcal.sweep import plan as plans
    from trtcal.sweep.cpu_judge import CpuJudge

    check_exclude(model, plan.exclude)
    known = labels_of(judged, labels, [plan.metric])
    if timings is None:
        known = for_metric(model, known, asked=labels is not None or plan.metric != plans.SweepPlan.metric)
    key = f"{judged_by(judged, known, plan.metric)} {list(plan.exclude)}"
    rule = named(plan.metric) if known is not None else None
    if timings is None:
        return CpuJudge(model, judged, known, rule, plan.exclude), key
    from calibrators.judging import EngineJudge, identity

    return EngineJudge(model, judged, known, rule, timing_cache=timings), f"{key} {identity()}"

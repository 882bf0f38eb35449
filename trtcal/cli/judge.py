"""trtcal evaluate, trtcal sensitivity."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtcal.cli.common import (
    AsJson,
    Cache,
    Exclude,
    Model,
    OnRay,
    Output,
    Placement,
    RayAddress,
    RayCpus,
    executor_for,
    is_engine,
    open_engine,
    print_out,
    scoring,
    takes_samples,
)
from trtcal.files import terminal

if TYPE_CHECKING:
    from trtcal.judging.accuracy import Score
    from trtcal.judging.evaluation import Evaluation
    from trtcal.judging.quantization_error import Trial
    from trtcal.judging.sensitivity import Sensitivity
    from trtcal.model.open import Model as OpenModel
    from trtcal.samples.batches import Batches
    from trtcal.samples.options import SampleOptions

logger = logging.getLogger(__name__)

_ROWS = 20  # tensors, and layers that were not measured, printed; --json has all


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(evaluate)
    app.command()(sensitivity)


@takes_samples()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX, float or Q/DQ, or a TensorRT engine.")],
    batches: Batches,
    options: SampleOptions,
    opened: Any,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Run MODEL.onnx as INT8 with the ranges of this cache.", show_default="run it as it is"
        ),
    ] = None,
    placement: Placement = "all",
    exclude: Exclude = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FP32.onnx",
            help="The model to agree with, or another engine.",
            show_default="MODEL itself where --cache is given",
        ),
    ] = None,
    labels: str | None = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="top1|top5|FILE.py:FUNCTION",
            help="What to score by; a function takes (outputs, labels). Repeatable.",
            show_default="top1",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on data: accuracy with intervals, and agreement with FP32. INT8 needs no GPU here.

    An engine runs on this machine's GPU, and is timed as well.
    """
    from trtcal.judging.evaluation import compare

    if cache is not None and is_engine(model):
        raise ValueError(f"--cache {cache}: an engine has its ranges inside; give the ONNX model, or leave --cache out")
    if cache is None and exclude:
        raise ValueError("--exclude goes with --cache; what is INT8 in an engine or a Q/DQ model is settled")
    metrics, truth = scoring(metric, labels, batches, None if is_engine(model) else opened)
    if against is None and cache is not None:
        against = model
    libraries = options.ort_library
    if libraries and is_engine(model) and (against is None or is_engine(against)):
        raise ValueError("--ort-library is for ONNX Runtime, which runs no engine; leave it out")
    with ExitStack() as stack:
        runner, int8 = opened, ""
        skipped: tuple[tuple[str, str], ...] = ()
        reached: frozenset[str] | None = None
        if not is_engine(model):
            runner, int8, skipped, reached = _open(
                opened, batches, stack, cache, placement=placement, exclude=exclude or ()
            )
        reference = None
        if against is not None:
            reference = _open(
                opened if against == model else against, batches, stack, like=opened, libraries=libraries
            )[0]
        result = compare(runner, batches, reference=reference, labels=truth, metrics=metrics, reached=reached)
        runners: dict[Path | None, Any] = {against: reference, model: runner}
        engines = {str(path): found for path, found in runners.items() if path is not None and is_engine(path)}
        latency = {name: asdict(engine.latency(next(iter(batches)))) for name, engine in engines.items()}
    what = str(model) if cache is None else f"{model} as INT8 with {cache} ({int8})"
    if as_json:
        report = {"model": str(model), "cache": cache and str(cache), "against": against and str(against)}
        print_out(json.dumps({**report, **result.to_dict(), "latency": latency, "skipped": dict(skipped)}, indent=2))
    else:
        print_out(_evaluation(result, what, against, latency))


@takes_samples(at_most=64)
def sensitivity(
    model: Model,
    data: str,
    batches: Batches,
    onnx: OpenModel,
    cache: Cache,
    layers: Annotated[int, typer.Option(min=0, help="Measure so many layers one at a time, the worst first.")] = 16,
    budget: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Begin no measurement after so long.", show_default="none")
    ] = None,
    recover: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave layers out until so much of the loss is recovered.")
    ] = 0.9,
    placement: Placement = "all",
    exclude: Exclude = None,
    labels: str | None = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="top1|top5|FILE.py:FUNCTION", help="What to judge by.", show_default="the outputs' SQNR to FP32"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.json", help="Write the whole report here.")
    ] = None,
    ray: OnRay = False,
    ray_address: RayAddress = None,
    ray_cpus: RayCpus = None,
    as_json: AsJson = False,
) -> None:
    """Find the tensors and layers that INT8 hurts, and the few to leave in FP16; names for every builder."""
    import math

    from trtcal.calibration.file import ranges_for
    from trtcal.files.atomic import write_bytes
    from trtcal.judging.evaluation import labels_of
    from trtcal.judging.metrics import metric as named
    from trtcal.judging.sensitivity import REPORT, section
    from trtcal.judging.sensitivity import sensitivity as measure
    from trtcal.model.overwriting import check_output

    if output is not None:
        check_output(output, REPORT, [onnx, cache, data, labels, metric])
    say = Output()
    scales = ranges_for(onnx, cache)
    judged_by = None if metric is None else (metric, named(metric))
    truth = None if metric is None else labels_of(batches, labels, [metric])
    with executor_for(None, ray, ray_address, ray_cpus) as executor, say.progress("measuring", layers) as progress:
        result = measure(
            onnx,
            scales,
            batches,
            placement=placement,
            exclude=exclude or (),
            labels=truth,
            metric=judged_by,
            layers=layers,
            seconds=math.inf if budget is None else budget,
            recover=recover,
            executor=executor,
            progress=progress,
        )
    text = json.dumps(section(result), indent=2, allow_nan=False)
    if output is not None:
        write_bytes(output, f"{text}\n".encode())
    print_out(text if as_json else _sensitivity(result))


def _open(
    source: Any,
    batches: Batches,
    stack: ExitStack,
    cache: Path | None = None,
    like: Any = None,
    libraries: Sequence[str] = (),
    **how: Any,
) -> tuple[Any, str, tuple[tuple[str, str], ...], frozenset[str] | None]:
    """Model, its file or an engine's, until the stack is closed -> what is called with a batch, how much is INT8, what
    is not, and which outputs INT8 reaches, None where that is not known. A model is fed ``like`` another.
    """
    from trtcal.calibration.file import ranges_for
    from trtcal.judging.evaluation import fed_as, open_runner
    from trtcal.model.open import Model, open_model
    from trtcal.qdq.insert import CONSTANT

    if isinstance(source, Path) and is_engine(source):
        return stack.enter_context(open_engine(source)), "", (), None
    model = open_model(source, libraries=() if isinstance(source, Model) else libraries)
    if isinstance(like, Model) and like is not model:
        model = model.fed_like(like)
    found = open_runner(model, batches, scales=None if cache is None else ranges_for(model, cache), **how)
    predict = fed_as(stack.enter_context(found.runner), model.inputs)
    if found.int8 is None or found.candidates is None:
        return predict, "", (), found.reached
    if found.int8 < found.candidates:
        reasons = [f"{tensor}: {why}" for tensor, why in found.skipped if why != CONSTANT]
        first = "; ".join(reasons[:2]) + (f"; and {len(reasons) - 2} more" if len(reasons) > 2 else "")
        missing = found.candidates - found.int8
        logger.warning("%s: %d of %d layers stay in float: %s", cache, missing, found.candidates, first)
    return predict, f"{found.int8} of {found.candidates} layers", found.skipped, found.reached


def _evaluation(result: Evaluation, what: str, against: Path | None, latency: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"{what}: {len(result.samples)} samples"]
    reference = against.name if against is not None and is_engine(against) else "FP32"
    if result.scores:
        lines.append("score, with its 95% interval")
        width = max(map(len, result.scores))
        for name, score in result.scores.items():
            line = f"  {name:{width}}  {_interval(score)}"
            if name in result.reference:
                line += f"   {reference} {_interval(result.reference[name])}"
            if name in result.changes:
                line += f"   change {_interval(result.changes[name], '+')}"
            lines.append(line)
    else:
        lines.append("no labels, so no scores")
    if result.agreement is not None:
        lines.append(f"agreement with {against}")
        width = max(map(len, result.agreement.outputs))
        outputs = result.agreement.outputs.items()
        beside = {name for name, _ in outputs if result.reached is not None and name not in result.reached}
        for name, output in sorted(outputs, key=lambda item: item[0] in beside):
            line = f"  {name:{width}}  SQNR {output.sqnr_db:.1f} dB   cosine {output.cosine:.5f}"
            line += f"   largest error {output.max_abs_error:.3g}"
            if output.top1 is not None:
                line += f"   same top-1 {_interval(output.top1)}"
            line += "" if output.floating else "   integers"
            lines.append(f"{line}   no layer in INT8 leads to it" if name in beside else line)
        if len(beside) == len(outputs):
            lines.append("no output depends on a layer in INT8: this says nothing about it")
    if latency:
        lines.append("latency on the GPU, copies left out")
    times = "{p50_ms:.3f} ms (p90 {p90_ms:.3f}, p99 {p99_ms:.3f}, mean {mean_ms:.3f}), batch {batch_size}, {runs} runs"
    lines += [f"  {name}: {times.format(**found)}" for name, found in latency.items()]
    return terminal.lines(lines)


def _interval(score: Score, sign: str = "") -> str:
    text = f"{score.value:{sign}.4f}"
    return text if score.low != score.low else f"{text} ({score.low:{sign}.4f} to {score.high:{sign}.4f})"


def _sensitivity(result: Sensitivity) -> str:
    lines = [f"INT8 against FP32 on {result.samples} samples: {_trial(result, result.int8)}"]
    if result.metric is not None:
        lines[0] += f" (FP32 {result.fp32:.4f})"
    lines += ["", "tensors by the SQNR of their own rounding"]
    width = max(len(tensor.tensor) for tensor in result.tensors[:_ROWS])
    lines += [
        f"  {tensor.tensor:{width}}  {tensor.sqnr_db:6.1f} dB  amax {tensor.amax:<10.4g} "
        f"read by {', '.join(tensor.layers)}"
        for tensor in result.tensors[:_ROWS]
    ]
    lines += _more(len(result.tensors) - _ROWS)
    lines += ["", "layers by what leaving each one out of INT8 recovers"]
    measured = [layer for layer in result.layers if layer.without is not None]
    others = [layer for layer in result.layers if layer.without is None]
    shown = [*measured, *others[: max(0, _ROWS - len(measured))]]
    width = max(len(layer.layer) for layer in shown)
    for layer in shown:
        line = f"  {layer.layer:{width}}  {layer.op_type:17}"
        if layer.without is not None and layer.only is not None:
            share = result.recovered(layer.without)
            recovers = "nothing lost   " if share != share else f"recovers {share:6.1%}"
            line += f"  {recovers}   alone in INT8: {_trial(result, layer.only)}"
        else:
            line += f"  not measured; what it reads has {layer.estimate_db:.1f} dB"
        lines.append(line)
    lines += _more(len(result.layers) - len(shown))
    lines.append("")
    if not result.curve:
        return terminal.lines([*lines, f"no layers to leave out: {result.ended}"])
    lines.append("leave out of INT8, one after the other")
    for number, step in enumerate(result.curve, 1):
        lines.append(f"  {number:2}. {step.layer.layer}: {step.recovered:.1%} recovered, {_trial(result, step.trial)}")
    lines += [f"  ended: {result.ended}", ""]
    options = _options(result)
    return terminal.lines([*lines, *options])


def _options(result: Sensitivity) -> list[str]:
    from trtcal.judging.sensitivity import section

    options = section(result)["options"]
    found = {name: options[name] for name in ("trtcal", "trtexec", "polygraphy") if options[name]}
    lines = [line for name, option in found.items() for line in (f"{name}:", f"  {option}")]
    unsaid = options["trtexec_cannot_name"]
    if unsaid:
        lines.append(
            f"trtexec cannot name {', '.join(unsaid)}: give nodes names of their own, without commas and quotes"
        )
    return lines


def _trial(result: Sensitivity, trial: Trial) -> str:
    text = f"{trial.sqnr_db:.1f} dB"
    return text if trial.metric is None else f"{result.metric} {trial.metric:.4f}, {text}"


def _more(count: int) -> list[str]:
    return [f"  ... and {count} more (--json lists all)"] * (count > 0)

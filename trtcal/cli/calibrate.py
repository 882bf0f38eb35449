"""trtcal calibrate, trtcal demo."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from trtcal.files import terminal
from trtcal.files.brief import few

if TYPE_CHECKING:
    from trtcal.calibration.file import CacheFile
    from trtcal.model.open import Model as OpenModel
    from trtcal.passes.executor import Executor
    from trtcal.samples.batches import Batches


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(cls=Command)(calibrate)
    app.command()(demo)


@takes_samples(calibrating=True)
def calibrate(
    model: Model,
    data: str,
    labels: str | None,
    batches: Batches,
    onnx: OpenModel,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The cache to write.")] = Path(
        "calibration.cache"
    ),
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How thresholds are chosen: {methods}; or auto, which judges all of them as INT8 on up to 64 samples, "
            "others than those that calibrate if there are any, and takes the best.",
        ),
    ] = "entropy",
    growth: Annotated[
        str,
        typer.Option(metavar="NAME", help="How the histogram of {methods that depend on batches} grows: {growths}."),
    ] = "double",
    trt_version: Annotated[str, typer.Option(metavar="X.Y.Z", help="TensorRT version named in the header.")] = "8.6.1",
    algorithm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Calibrator named in the header, e.g. EntropyCalibration2.",
            show_default="the one TensorRT would name for the method",
        ),
    ] = None,
    stats: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Keep the statistics of the pass; a later run by another method starts from them. "
            "Those of other settings for the same samples are replaced with --force alone.",
            show_default=False,
        ),
    ] = None,
    workers: Workers = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Compare the result with another cache, or ranges in another format.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Calibrate even where the cache is up to date; replace a cache or statistics of unknown origin, and "
            "statistics of other settings.",
        ),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Write no cache, and end with exit code 2, where thresholds are unusable: one clips a quarter of a "
            "tensor, or a hundredth of an input.",
        ),
    ] = False,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="Compare INT8 by the cache with FP32 on 16 samples at the end.",
            show_default="where that costs less than the calibration",
        ),
    ] = None,
    select: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Also find few samples, at most N, whose thresholds stay within 1% of those of all, and list them in "
            "a file that --data takes. Calibrates such sets until one is found.",
            show_default=False,
        ),
    ] = None,
    select_list: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.txt",
            help="The list that --select writes.",
            show_default="the cache's name and .samples.txt",
        ),
    ] = None,
    ray: OnRay = False,
    ray_address: RayAddress = None,
    ray_cpus: RayCpus = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate a model into a cache that TensorRT, DeepStream and DLA read."""
    from trtcal.cache.formats import load
    from trtcal.cache.provenance import sidecar_path
    from trtcal.calibration.file import calibrate_to_file
    from trtcal.model.overwriting import refuse_input
    from trtcal.sweep.auto import AUTO, Auto
    from trtcal.sweep.closing import Closing

    for written in (output, sidecar_path(output), stats):
        if written is not None:
            refuse_input(written, [onnx, data, labels, against])
    if method != AUTO:
        _known(method)
    listed = select_list or output.with_name(f"{output.name}.samples.txt")
    if select is not None:
        _check_selecting(listed, select, batches, [onnx, data, labels, against], output, stats)
    elif select_list is not None:
        raise ValueError(f"--select-list {select_list}: is what --select writes; say how many samples, --select 128")
    other = None if against is None else load(against)[0]
    say = Output()
    say(f"{batches.source.describe()}\n{batches.accounting()}")
    with (
        executor_for(workers, ray, ray_address, ray_cpus) as executor,
        say.progress("calibrating", batches.num_samples) as progress,
    ):
        choosing = Auto(onnx, batches, progress=_judging(progress)) if method == AUTO else None
        result = calibrate_to_file(
            onnx,
            batches,
            output,
            choosing or method,
            growth=growth,
            trt_version=trt_version,
            algorithm=algorithm,
            force=force,
            strict=strict,
            stats=stats,
            executor=executor,
            progress=progress,
            announce=say,
            closing=None if check is False else Closing(onnx, batches, always=check is True),
            with_stats=select is not None,
        )
        selected = None
        if select is not None:
            selected = _selected(result, onnx, batches, select, listed, data, executor, progress)
    if as_json:
        print_out(json.dumps({**_as_json(result), **({"selected": selected} if selected else {})}, indent=2))
    else:
        say(_summary(result, check))
        if selected is not None:
            say(_selection_line(selected, batches))
    if other is not None:
        from trtcal.cache.doctor import diff
        from trtcal.cli.cache import difference_lines

        say(terminal.lines(difference_lines(diff(other, result.cache), str(against), str(result.path))))


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The cache to write.")] = Path(
        "demo.cache"
    ),
) -> None:
    """Calibrate the small classifier that comes with trtcal, and judge the result."""
    from trtcal.demo.tour import tour

    say = Output()
    with say.progress("calibrating", 512) as progress:
        result = tour(output, progress)
    say(str(result))


def _check_selecting(
    listed: Path, most: int, batches: Batches, inputs: list[Any], output: Path, stats: Path | None
) -> None:
    """What keeps a list from being written is found out before a long pass."""
    from trtcal.cache.provenance import sidecar_path
    from trtcal.calibration.selection import check_list_output, check_selectable
    from trtcal.model.overwriting import check_distinct

    if listed.suffix.lower() != ".txt":
        raise ValueError(f"--select-list {listed}: a list is told by its name; call it {listed}.txt")
    check_selectable(batches, most)
    check_list_output(listed, inputs)
    outputs = [("the cache", output), ("its sidecar", sidecar_path(output)), ("the statistics", stats)]
    check_distinct([*outputs, ("the list of samples", listed)])


def _selected(
    result: CacheFile,
    onnx: OpenModel,
    batches: Batches,
    most: int,
    listed: Path,
    data: str,
    executor: Executor,
    bar: Any,
) -> dict[str, Any]:
    """Select samples and write their list -> what came of it, for JSON."""
    import math

    from trtcal.calibration.selection import select, write_selection

    assert result.stats is not None
    made = result.provenance
    progress = None if bar is None else lambda done, total: bar(done, total, "selecting samples")
    chosen = select(
        onnx, result.stats, batches, most, made.method, growth=made.growth, executor=executor, progress=progress
    )
    by = f"{made.method} in batches of {batches.batch_size}, growth {made.growth}"
    write_selection(listed, chosen, data, f"in the order in which all were taken, for {by}")
    return {
        "list": str(listed),
        "samples": len(chosen.samples),
        "of": chosen.of,
        "asked": most,
        "within": chosen.within,
        "difference": chosen.difference if math.isfinite(chosen.difference) else None,
        "tensor": chosen.tensor,
    }


def _selection_line(selected: dict[str, Any], batches: Batches) -> str:
    """What was selected, for people."""
    number, of, name = selected["samples"], selected["of"], selected["list"]
    order = " --order given" if batches.order == "shuffled" else ""
    take = f"{name}: take them with --data {name} --batch-size {batches.batch_size}{order}"
    if not selected["within"]:  # a warning says how far they are
        return f"{number} of {of} samples are the nearest found; {take}"
    worst = (
        f"{selected['difference']:.2%} off at most, in {selected['tensor']}" if selected["tensor"] else "none is off"
    )
    return f"{number} of {of} samples keep every threshold within 1% ({worst}); {take}"


def _known(method: str) -> None:
    """SettingError for a method that there is not; auto is among the choices here."""
    from trtcal.errors import SettingError
    from trtcal.ranges.thresholds import METHODS
    from trtcal.ranges.thresholds import method as threshold_method

    try:
        threshold_method(method)
    except SettingError as error:
        if method.partition(":")[0] in METHODS:
            raise
        raise SettingError(f"{error}, or auto") from None


def _judging(bar: Any) -> Callable[[int, int], None]:
    """The bar of a pass -> what shows on it how many methods are judged."""
    return lambda done, total: None if bar is None else bar(done, total, "judging methods")


def _summary(result: CacheFile, check: bool | None = None) -> str:
    from trtcal.ranges.thresholds import method as threshold_method
    from trtcal.sweep.auto import lines as method_lines
    from trtcal.sweep.closing import in_words

    tensors = f"{len(result.cache.scales)} tensors by {result.provenance.method}, {result.cache.header}"
    if result.reused:
        lines = [f"{result.path}: up to date, {tensors}; made from the same model, data and settings"]
    else:
        lines = [f"{result.path}: {tensors}"]
    lines += method_lines(result.chosen)
    if result.unusable:
        verb = "tensor has no range and stays" if len(result.unusable) == 1 else "tensors have no range and stay"
        lines.append(f"{len(result.unusable)} {verb} in floating point:")
        lines += [f"  {name}: {reason}" for name, reason in list(result.unusable.items())[:5]]
        lines += [f"  ... and {len(result.unusable) - 5} more (--json lists all)"] * (len(result.unusable) > 5)
    zero = _zero(result)
    if zero:
        verb = "tensor is" if len(zero) == 1 else "tensors are"
        shown = few(zero, more=" (--json lists all)")
        lines.append(f"{len(zero)} {verb} zero in every sample, with scale 0 as TensorRT has it: {shown}")
    if result.hidden:
        where = "If, Loop, Scan or a function for another opset"
        inside = "tensor" if result.hidden == 1 else "tensors"
        lines.append(f"{result.hidden} {inside} inside {where} cannot be seen and get no range")
    lines += _pixels(result)
    if result.clipped:
        noun = "tensor is" if len(result.clipped) == 1 else "tensors are"
        lines.append(f"{len(result.clipped)} {noun} clipped by more than 1%, which may cost accuracy:")
        worst = sorted(result.clipped.items(), key=lambda item: -item[1])[:5]
        lines += [f"  {name}: {share:.1%}" for name, share in worst]
        lines += [f"  ... and {len(result.clipped) - 5} more (--json lists all)"] * (len(result.clipped) > 5)
        lines += [
            f"{name} is what the model is fed: trtcal contact-sheet shows whether it looks as it should"
            for name in result.provenance.shapes
            if name in result.clipped
        ]
        lines += filter(None, [threshold_method(result.provenance.method).warning])
    lines += filter(None, [in_words(result.closing, chosen=bool(result.chosen))])
    if result.reused and not result.closing and check is None:
        lines.append("INT8 by this cache is not compared with FP32 again; --check does it")
    return terminal.lines(lines)


def _pixels(result: CacheFile) -> list[str]:
    """A line for each input that may be pictures nobody normalised; presets do that, and arrays are fed as they are."""
    return [
        f"{name} reaches {result.cache.amax(name):.4g}: if these are pixels, most models want them normalised first"
        for name, shape in result.provenance.shapes.items()
        if not result.provenance.preprocess and len(shape) == 3 and {shape[0], shape[-1]} & {1, 3}
        if name in result.cache.scales and 32 < result.cache.amax(name) < 300
    ]


def _as_json(result: CacheFile) -> dict[str, Any]:
    return {
        "cache": str(result.path),
        "header": result.cache.header,
        "tensors": len(result.cache.scales),
        "reused": result.reused,
        "reasons": list(result.reasons),
        "unusable": dict(result.unusable),
        "clipped": dict(result.clipped),
        "unusable_thresholds": dict(result.unusable_thresholds),
        "usable_methods": list(result.usable_methods),
        "closing": dict(result.closing),
        "chosen": dict(result.chosen),
        "zero": _zero(result),
        "hidden": result.hidden,
        "provenance": json.loads(result.provenance.to_json()),
    }


def _zero(result: CacheFile) -> list[str]:
    """Tensors that were zero throughout."""
    return [name for name, scale in result.cache.scales.items() if scale == 0]

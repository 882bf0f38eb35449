"""trtcal refine."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtcal.cli.common import AsJson, Model, Output, Placement, print_out, scoring, takes_samples
from trtcal.files import terminal
from trtcal.files.settings import size_in_bytes

if TYPE_CHECKING:
    from trtcal.model.open import Model as OpenModel
    from trtcal.refine.file import RefinedFile
    from trtcal.samples.batches import Batches

_SHOWN = 6  # layers left alone; --json has all


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(refine)


@takes_samples()
def refine(
    model: Model,
    onnx: OpenModel,
    data: str,
    batches: Batches,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="REFINED.onnx", help="The float model to write.")],
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="FILE",
            help="Ranges of the activations: a calibration cache, or another format.",
            show_default="found by --method on these samples",
        ),
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help="Threshold method, where there is no cache.")] = "mse",
    placement: Placement = "all",
    for_qdq: Annotated[
        bool,
        typer.Option("--for-qdq", help="Refine ConvTranspose as well: right for a Q/DQ model, wrong for a cache."),
    ] = False,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory for second moments and tensors, such as 512M or 2G.")
    ] = "2G",
    labels: str | None = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="top1|top5|FILE.py:FUNCTION",
            help="What to report besides SQNR, where labels are known. Repeatable.",
            show_default="top1",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="Write a page with all that was done.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Round weights for INT8 and correct biases: a float model that TensorRT quantizes with less loss."""
    from trtcal.calibration.file import ranges_for
    from trtcal.model.overwriting import refuse_input
    from trtcal.ranges.thresholds import method as threshold_method
    from trtcal.refine.file import headline, reach, refine_to_file, scored

    threshold_method(method)
    for written in (output, page):
        if written is not None:
            refuse_input(written, [onnx, cache, data])
    metrics, truth = scoring(metric, labels, batches, onnx)
    say = Output()
    say(f"{batches.source.describe()}\n{batches.accounting()}")
    scales = None if cache is None else ranges_for(onnx, cache)
    with say.progress("refining", 1) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            if bar is not None:
                bar(done, total, stage)

        made = refine_to_file(
            onnx,
            batches,
            output,
            scales=scales,
            method=method,
            placement=placement,
            transposed=for_qdq,
            memory=_bytes(memory),
            labels=truth,
            metrics=metrics,
            page=page,
            progress=progress,
            announce=say,
        )
    if as_json:
        print_out(json.dumps(made.to_dict(), indent=2))
        return
    say(terminal.lines([headline(made.found), reach(made.found), *scored(made.found), *_details(made)]))


def _details(made: RefinedFile) -> list[str]:
    found = made.found
    refined = sum(row.refined for row in found.layers)
    lines = [f"{made.files[0]}: weights of {refined} of {len(found.layers)} layers and {found.biases} biases changed"]
    if found.left:
        lines.append(f"{len(found.left)} {'layer is' if len(found.left) == 1 else 'layers are'} left alone:")
        lines += [f"  {layer}: {reason}" for layer, reason in list(found.left.items())[:_SHOWN]]
        more = len(found.left) - _SHOWN
        lines += [f"  ... and {more} more (--json lists all)"] * (more > 0)
    return lines


def _bytes(text: str) -> int:
    with suppress(ValueError):
        if (size := size_in_bytes(text)) >= 1 << 20:
            return size
    raise ValueError(f"--memory {text}: expected a size of at least 1M, such as 512M or 2G")

"""trtcal contact-sheet, trtcal doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtcal.cli.common import AsJson, Model, Output, is_engine, print_out, takes_samples

if TYPE_CHECKING:
    from trtcal.samples.batches import Batches
    from trtcal.samples.options import SampleOptions


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("contact-sheet")(contact_sheet)
    app.command()(doctor)


@takes_samples(batch_size=1, partial="pad")  # a sheet shows samples of any size beside each other
def contact_sheet(
    model: Model,
    data: str,
    labels: str | None,
    batches: Batches,
    options: SampleOptions,
    opened: Any,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.png", help="The picture to write.")] = Path(
        "contact-sheet.png"
    ),
    count: Annotated[int, typer.Option(min=1, help="Samples to show.")] = 16,
) -> None:
    """Draw what the network really sees, de-normalised, with the statistics of its input."""
    from trtcal.model.overwriting import PNG, check_output
    from trtcal.samples.contact_sheet import contact_sheet as draw

    if options.ort_library and is_engine(model):
        raise ValueError("--ort-library is for ONNX Runtime, which runs no engine; leave it out")
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output {output}: the contact sheet is a PNG; give it a name that ends in .png")
    check_output(output, PNG, [model if is_engine(model) else opened, data, labels])
    undo = getattr(getattr(batches.source, "preprocess", None), "undo", None)
    statistics = draw(batches, output, undo=undo, count=count)
    color = getattr(getattr(batches.source, "preprocess", None), "color", None)
    fed = f", channels shown in the order they are fed, {color}" if color else ""
    Output()(f"{output}: {min(count, batches.num_samples)} samples{fed}\n{statistics}")


def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what works here, and what to do about what does not."""
    from trtcal.doctor import examine

    report = examine()
    print_out(json.dumps(report.to_dict(), indent=2) if as_json else str(report))

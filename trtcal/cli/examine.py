"""trtcal contact-sheet, trtcal doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtcal.cli.common import AsJson, Model, Output, takes_samples

if TYPE_CHECKING:
    from trtcal.data import Batches


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("contact-sheet")(contact_sheet)
    app.command()(doctor)


@takes_samples("batch_size", "partial", "labels", "samples")
def contact_sheet(
    model: Model,
    batches: Batches,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.png", help="The picture to write.")] = Path(
        "contact-sheet.png"
    ),
    count: Annotated[int, typer.Option(min=1, help="Samples to show.")] = 16,
) -> None:
    """Draw what the network really sees, de-normalised, with the statistics of its input."""
    from trtcal.contact_sheet import contact_sheet as draw

    _refuse_to_replace(output, batches)
    undo = getattr(getattr(batches.source, "preprocess", None), "undo", None)
    statistics = draw(batches, output, undo=undo, count=count)
    color = getattr(getattr(batches.source, "preprocess", None), "color", None)
    fed = f", channels shown in the order they are fed, {color}" if color else ""
    Output()(f"{output}: {min(count, batches.num_samples)} samples{fed}\n{statistics}")


def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what works here, and what to do about what does not."""
    from trtcal.doctor import examine

    report = examine()
    print(json.dumps(report.to_dict(), indent=2) if as_json else str(report))


def _refuse_to_replace(output: Path, batches: Batches) -> None:
    """A picture may replace a picture, but none of the samples and nothing else."""
    from trtcal.errors import OutputError

    if output.suffix.lower() != ".png":
        raise ValueError(f"--output {output}: the contact sheet is a PNG; give it a name that ends in .png")
    if not output.exists():
        return
    folder = getattr(batches.source, "folder", None)
    if folder is not None and output.resolve().is_relative_to(Path(folder).resolve()):
        raise OutputError(f"{output}: exists among the samples; choose another file")
    with open(output, "rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            raise OutputError(f"{output}: exists and is no PNG; choose another file")

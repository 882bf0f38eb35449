"""trtcal report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtcal.cli.common import Output


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(report)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep, with its trials.json.")],
) -> None:
    """Draw the page of a sweep again: DIR/report.html from DIR/trials.json."""
    from trtcal.model.overwriting import HTML, check_output
    from trtcal.sweep.report import write

    if (folder / "trials.json").exists():
        check_output(folder / "report.html", HTML, [folder / "trials.json", folder / "sensitivity.json"])
    Output()(str(write(folder)))

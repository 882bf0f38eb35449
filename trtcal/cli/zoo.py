"""trtcal zoo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trtcal.cli.common import AsJson, OnRay, Output, RayAddress, RayCpus, Workers, executor_for, print_out


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(zoo)


def zoo(
    models: Annotated[Path, typer.Argument(metavar="MODELS.yaml", help="Rows of models, data and settings.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the page and a folder for each model.")
    ] = Path("zoo"),
    force: Annotated[bool, typer.Option("--force", help="Run every row again, finished or not.")] = False,
    workers: Workers = None,
    ray: OnRay = False,
    ray_address: RayAddress = None,
    ray_cpus: RayCpus = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate, sweep and evaluate many models, with one page of what came of them.

    MODELS.yaml holds `models`, a list of rows with `model`, `data` and what else differs, and `defaults` for all rows;
    docs/scale.md lists the keys. The same command goes on where it was interrupted and keeps what is finished. A row
    that fails is on the page with its error, costs no other, and makes the exit code 2. On Ray, rows run in parallel.
    """
    from trtcal.zoo.file import read_zoo
    from trtcal.zoo.run import run_zoo

    rows = read_zoo(models)
    say = Output()
    with executor_for(workers, ray, ray_address, ray_cpus) as executor, say.progress("models", len(rows)) as bar:

        def progress(name: str, done: int, total: int) -> None:
            if bar is not None:
                bar(done, total, name)

        title = f"INT8 calibration of the models in {models.name}"
        outcomes = run_zoo(rows, output, title=title, force=force, executor=executor, progress=progress)
    if as_json:
        print_out(json.dumps([outcome.to_dict() for outcome in outcomes], indent=2))
    for outcome in outcomes:
        state = f"failed: {outcome.error}" if outcome.error else "kept from before" if outcome.reused else "done"
        if outcome.result.get("warning"):
            state += f", {outcome.result['warning']}" if outcome.reused else ", with unusable thresholds"
        say(f"{outcome.row.name}: {state}")
    say(f"{output}: index.html, zoo.json, zoo.csv")
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(2)

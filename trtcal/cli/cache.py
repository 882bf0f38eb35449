"""trtcal cache."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from trtcal.cli.common import AsJson

app = typer.Typer(help="Look into calibration caches.", no_args_is_help=True)


@app.command("show")
def cache_show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A calibration cache.")],
    as_json: AsJson = False,
) -> None:
    """Show what a cache holds: header, origin, and the range of every tensor."""
    from trtcal.cache import CalibrationCache

    cache = CalibrationCache.load(file)
    if as_json:
        tensors = {
            name: {"scale": float(scale), "amax": float(cache.amax(name))} for name, scale in cache.scales.items()
        }
        print(
            json.dumps(
                {"header": cache.header, "tensors": _finite(tensors), "tolerated": list(cache.tolerated)},
                indent=2,
                allow_nan=False,
            )
        )
        return
    width = max(map(len, cache.scales), default=6)
    print(f"{cache.header}, {len(cache.scales)} tensors")
    for note in cache.tolerated:
        print(f"tolerated: {note}")
    print(f"{'tensor':{width}}  {'amax':>13}  {'scale':>13}  hex")
    lines = cache.format().decode().splitlines()[1:]
    for (name, scale), line in zip(cache.scales.items(), lines, strict=True):
        print(f"{name:{width}}  {cache.amax(name):13.6g}  {scale:13.6g}  {line.rsplit(' ', 1)[1]}")


def _finite(tensors: dict[str, dict[str, float]]) -> dict[str, dict[str, float | str]]:
    """JSON knows no inf and no nan: they become text."""
    return {
        name: {key: value if math.isfinite(value) else str(value) for key, value in entry.items()}
        for name, entry in tensors.items()
    }

"""What a sweep advises as a command that runs as it is printed, with every option of the sweep that concerns it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trtcal.calibration.calibrate import on_fine_grid
from trtcal.calibration.file import check_cache_output
from trtcal.errors import OutputError
from trtcal.ranges.growth import growth_rule
from trtcal.samples.options import SampleOptions

CACHE = "model.cache"


def calibrate_command(
    model: str | Path,
    samples: SampleOptions,
    advised: Sequence[str],
    folder: Path,
    batch_size: int,
    *,
    labelled_apart: bool = False,
    can_shuffle: bool = True,
) -> str:
    """Model's file, options of the samples, and of a calibration that is advised -> ``trtcal calibrate``, quoted.

    ``batch_size`` is that of the sweep's pass, whose statistics in ``folder`` are taken up where they serve. Labels
    that are of samples to judge by, which lie ``labelled_apart``, do not concern a calibration. "" where no command
    repeats what is advised: nothing is, or a shuffled order of samples that a calibration cannot shuffle alike.
    """
    given = dict(zip(advised[::2], advised[1::2], strict=True))
    if not given or ("--order" in given and not can_shuffle):
        return ""
    options = replace(
        samples,
        labels=None if labelled_apart else samples.labels,
        batch_size=int(given.get("--batch-size", batch_size)),
        order=given.get("--order", samples.order),
        seed=int(given.get("--seed", samples.seed)),
    )
    method, growth = given["--method"], given.get("--growth", "double")
    arguments = ["--method", method, *(["--growth", growth] if "--growth" in given else [])]
    same = options.batch_size == batch_size and options.order == samples.order and growth_rule(growth).tensorrt
    if same or on_fine_grid(method, growth):
        arguments += _option("--stats", folder / "stats.npz")
    arguments += _option("-o", _free(folder))
    file = f"./{model}" if str(model).startswith("-") else str(model)
    return shlex.join(["trtcal", "calibrate", file, *options.arguments(), *arguments])


def _option(name: str, value: str | Path) -> list[str]:
    """A path that begins with a dash is no option of its own."""
    return [name, f"./{value}" if str(value).startswith("-") else str(value)]


def _free(folder: Path) -> Path:
    """Where a calibration may write; not in the place of a cache that somebody else made."""
    try:
        check_cache_output(CACHE, force=False)
    except OutputError:
        return folder / CACHE
    return Path(CACHE)

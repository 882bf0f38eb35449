"""What the benchmarks share: the machine in words, tables, and where a page goes."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A script's docstring -> a parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a small case, once: does it run at all?")
    made.add_argument(
        "-o", "--output", type=Path, metavar="FILE.md", help="default: results/NAME.md beside the script; none if quick"
    )
    return made


def publish(
    script: str, lines: Iterable[str], options: argparse.Namespace, packages: Sequence[str], *, suffix: str = ""
) -> None:
    """A benchmark's lines -> standard output, and its page, with the ``suffix``, with the machine above them."""
    name = Path(script).stem.removeprefix("bench_") + suffix
    text = "\n".join([f"# {name}\n", *head(script, packages), *lines]) + "\n"
    print(text)
    output = options.output or (None if options.quick else RESULTS / f"{name}.md")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")


def head(script: str, packages: Sequence[str]) -> list[str]:
    """Names of packages -> lines that say where, when and with what a page was made."""
    # A path is a matter of somebody's machine; its last part says enough.
    arguments = [argument.rpartition("/")[2] or argument for argument in sys.argv[1:]]
    command = shlex.join(["python", f"benchmarks/{Path(script).name}", *arguments])
    versions = [f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in packages)]
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return [
        f"    {command}\n",
        f"{datetime.date.today()}, {_processor()}, {os.cpu_count()} cores, {platform.system()}; {', '.join(versions)}.",
        f"Load average at the end, this benchmark included: {load}.\n",
    ]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Cells -> lines of a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def verdict(value: float, must: float, aim: float, *, more: bool = False) -> str:
    """A measured value and its two bounds, upper ones unless ``more``, -> which of them it keeps."""
    for bound, word in ((aim, "aim reached"), (must, "must reached")):
        if value >= bound if more else value <= bound:
            return word
    return "**missed**"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())

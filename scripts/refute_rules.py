#!/usr/bin/env python3
"""By how many tensors that TensorRT calibrated each other rule is refuted: the table in docs/parity.md.

    python scripts/refute_rules.py            write the table
    python scripts/refute_rules.py --check    fail if it is another one

Of the histograms in tests/data, by the slow rules of scripts/acceptance/rules.py; three minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from acceptance.rules import Rules  # noqa: E402
from acceptance.truth import VERSIONS, Tensor, answers, load  # noqa: E402

PAGE = ROOT / "docs" / "parity.md"
BEGIN, END = "<!-- refuted: made by scripts/refute_rules.py -->\n", "<!-- end -->\n"

BELIEVED = Rules()
CHANGED: dict[str, Rules] = {
    "zeros counted as they are": replace(BELIEVED, zero_bin="kept"),
    "bin 0 empty": replace(BELIEVED, zero_bin="empty"),
    "bin 0 the greater of itself and bin 1": replace(BELIEVED, zero_bin="the greater of both"),
    "bin 0 the lesser of itself and bin 1": replace(BELIEVED, zero_bin="the lesser of both"),
    "the search starts at 64": replace(BELIEVED, start=64),
    "it starts at 127": replace(BELIEVED, start=127),
    "it starts at 129": replace(BELIEVED, start=129),
    "it stops at 2047": replace(BELIEVED, stop=2047),
    "bins merge by i // (m // 128), as in MXNet and ONNX Runtime": replace(BELIEVED, levels="whole bins"),
    "outliers in Q as well": replace(BELIEVED, outliers="in P and Q"),
    "outliers dropped": replace(BELIEVED, outliers="dropped"),
    "terms with Q = 0 skipped": replace(BELIEVED, empty_bins="skipped"),
    "windows of one bin allowed": replace(BELIEVED, least_bins=1),
    "the same, and the first of equal minima": replace(BELIEVED, least_bins=1, ties="first"),
    "the first of equal minima": replace(BELIEVED, ties="first"),
    "windows of at least 3 bins": replace(BELIEVED, least_bins=3),
    "windows of at least 8 bins": replace(BELIEVED, least_bins=8),
    "windows of at least 9 bins": replace(BELIEVED, least_bins=9),
    "divergences in float32, one sum after the other": replace(BELIEVED, divergence="float32"),
    "the threshold at the edge of bin m": replace(BELIEVED, threshold="edge of the bin"),
    "the threshold at the edge of bin m + 1": replace(BELIEVED, threshold="edge of the next bin"),
    "ranges grow by 4": replace(BELIEVED, growth="times 4"),
    "the range of all batches *": replace(BELIEVED, growth="whole data"),
    "ranges are squared *": replace(BELIEVED, growth="square-range"),
    "ranges are powers of two *": replace(BELIEVED, growth="next power of two"),
}


def main() -> None:
    """Write the table into the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the page instead of writing it")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    old, after = rest.split(END, 1)
    new = table(load())
    if not options.check:
        PAGE.write_text(f"{before}{BEGIN}{new}{END}{after}", encoding="utf-8")
    elif new != old:
        sys.exit(f"docs/parity.md: another table than these rules make; run python scripts/refute_rules.py\n{new}")


def table(tensors: Sequence[Tensor]) -> str:
    """Tensors -> a line for each changed rule, as Markdown."""
    found = answers(tensors, [("", BELIEVED), *CHANGED.items()], os.cpu_count() or 1)
    believed = found.pop("")
    right = [sum(a for a, t in zip(believed, tensors, strict=True) if t.version == version) for version in VERSIONS]
    columns = [f"of {count} by {version}" for version, count in zip(VERSIONS, right, strict=True)]
    lines = [f"| if it were so | refuted by, {' | '.join(columns)} |", f"|---|{'---|' * len(VERSIONS)}"]
    for name, agree in found.items():
        lost = [
            sum(was and not now for was, now, t in zip(believed, agree, tensors, strict=True) if t.version == version)
            for version in VERSIONS
        ]
        lines.append(f"| {name} | {' | '.join(map(str, lost))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

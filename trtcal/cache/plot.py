"""Two caches against each other, as one page that needs no network and runs no script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from trtcal.cache.doctor import Difference
from trtcal.files.html import document

SIDE, MARGIN = 640, 70  # of the drawing, and of what stands beside it, in pixels
TICKS = 8  # on an axis, at most

_STYLE = """
svg { display: block; margin: 0 auto; max-width: 100%; max-height: 90vh; }
.frame { fill: none; } .frame, .grid { stroke: var(--line); } .same { stroke: var(--soft); stroke-dasharray: 4 4; }
text { fill: var(--soft); font-size: 12px; } .name { fill: var(--ink); font-size: 14px; }
circle { fill: var(--accent); fill-opacity: .6; } circle:hover { fill: var(--bad); fill-opacity: 1; }
"""


def plot_difference(rows: Iterable[Difference], first: str, second: str) -> bytes:
    """Rows of ``diff`` and what to call the two caches -> HTML with a point per tensor, its amax in both.

    The axes are logarithmic, so tensors without a positive, finite range in both caches are only counted. A point says
    its tensor where the pointer rests on it. Equal input gives equal bytes.
    """
    rows = list(rows)
    points = [(row, *_amax(row)) for row in rows if row.ratio is not None and 0 < row.ratio < np.inf]
    points = [(row, x, y) for row, x, y in points if min(x, y) > 0 and max(x, y) < np.inf]
    left_out = len(rows) - len(points)
    tensors = "1 tensor" if len(points) == 1 else f"{len(points)} tensors"
    title = f"Range (amax) of {tensors}" + (f"; {left_out} without one in both" if left_out else "")
    low, high = _ends([value for _, x, y in points for value in (x, y)])

    def along(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * SIDE

    def text(x: float, y: float, content: str, more: str = "") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle"{more}>{escape(content, quote=False)}</text>'

    drawn = [
        f'<rect class="frame" width="{SIDE}" height="{SIDE}"/>',
        f'<line class="same" x1="0" y1="{SIDE}" x2="{SIDE}" y2="0"/>',
    ]
    for value in _ticks(low, high):
        at = along(value)
        drawn += [
            f'<line class="grid" x1="{at:.1f}" y1="0" x2="{at:.1f}" y2="{SIDE}"/>',
            f'<line class="grid" x1="0" y1="{SIDE - at:.1f}" x2="{SIDE}" y2="{SIDE - at:.1f}"/>',
            text(at, SIDE + 18, f"{value:g}"),
            text(-30, SIDE - at + 4, f"{value:g}"),
        ]
    for row, x, y in points:
        said = f"{row.tensor}\nratio {row.ratio:.4g}\n{x:.4g} and {y:.4g}"
        drawn.append(
            f'<circle cx="{along(x):.1f}" cy="{SIDE - along(y):.1f}" r="4"><title>{escape(said, quote=False)}</title>'
            "</circle>"
        )
    drawn.append(text(SIDE / 2, SIDE + 45, first, ' class="name" id="first"'))
    turned = f' class="name" id="second" transform="rotate(-90 {-55} {SIDE / 2:.0f})"'
    drawn.append(text(-55, SIDE / 2, second, turned))
    width = SIDE + 2 * MARGIN
    picture = f'<svg viewBox="{-MARGIN} {-10} {width} {SIDE + MARGIN}" role="img">\n' + "\n".join(drawn) + "\n</svg>\n"
    return document(title, f'<div class="wide">{picture}</div>\n', _STYLE).encode(errors="backslashreplace")


def _amax(row: Difference) -> tuple[float, float]:
    assert row.first is not None
    assert row.second is not None
    return float(row.first) * 127, float(row.second) * 127


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Positive numbers -> the ends of an axis that shows them all, as powers of ten, a twentieth of it free."""
    powers = [math.log10(value) for value in values] or [0.0]
    low, high = min(powers), max(powers)
    free = max((high - low) / 18, 0.1)
    return low - free, high + free


def _ticks(low: float, high: float) -> list[float]:
    """Ends of an axis as powers of ten -> round numbers on it."""
    first, last = math.ceil(low), math.floor(high)
    if last - first >= 2:
        step = -(-(last - first) // TICKS)
        return [10.0**power for power in range(first, last + 1, step)]
    steps = (1, 2, 5) if high - low > 0.5 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    every = [step * 10.0**power for power in range(first - 1, last + 2) for step in steps]
    return [value for value in every if low <= math.log10(value) <= high]

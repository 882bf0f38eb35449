"""Two caches against each other, as one page that needs no network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import numpy as np

from trtcal.cache.doctor import Difference
from trtcal.model.overwriting import HTML_MARK


def plot_difference(rows: Iterable[Difference], first: str, second: str) -> bytes:
    """Rows of ``diff`` and what to call the two caches -> HTML with a point per tensor, its amax in both.

    The axes are logarithmic, so tensors without a positive, finite range in both caches are only counted.
    """
    import plotly.graph_objects as go

    rows = list(rows)
    points = [(row, *_amax(row)) for row in rows if row.ratio is not None and 0 < row.ratio < np.inf]
    points = [(row, x, y) for row, x, y in points if min(x, y) > 0 and max(x, y) < np.inf]
    ends = [min((min(x, y) for _, x, y in points), default=1), max((max(x, y) for _, x, y in points), default=1)]
    figure = go.Figure(
        [
            go.Scattergl(x=ends, y=ends, mode="lines", line={"color": "#bbb"}, hoverinfo="skip"),
            go.Scattergl(
                x=[x for _, x, _ in points],
                y=[y for _, _, y in points],
                mode="markers",
                text=[f"{escape(row.tensor, quote=False)}<br>ratio {row.ratio:.4g}" for row, _, _ in points],
                hovertemplate="%{text}<br>%{x:.4g} and %{y:.4g}<extra></extra>",
            ),
        ]
    )
    left_out = len(rows) - len(points)
    figure.update_layout(
        title=f"Range (amax) of {len(points)} tensors" + (f"; {left_out} without one in both" if left_out else ""),
        xaxis={"type": "log", "title": escape(first, quote=False)},
        yaxis={"type": "log", "title": escape(second, quote=False)},
        showlegend=False,
    )
    page: str = figure.to_html(include_plotlyjs=True, div_id="ranges")  # not a random one: equal input, equal bytes
    return page.replace("<head>", f"<head>{HTML_MARK}", 1).encode()


def _amax(row: Difference) -> tuple[float, float]:
    assert row.first is not None
    assert row.second is not None
    return float(row.first) * 127, float(row.second) * 127

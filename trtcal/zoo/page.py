"""What came of a zoo -> one self-contained page, and a table in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from trtcal.files.html import TABLE_STYLE, document, framed
from trtcal.files.terminal import cell

COLUMNS = (
    *("name", "error", "method", "samples", "tensors", "unusable", "clipped", "unusable_thresholds", "metric"),
    *("fp32", "int8"),
    *("change", "change_low", "change_high", "top1_agreement", "sqnr_db", "batch_size", "headline"),
)

_STYLE = """td.n, th.n { text-align: right; white-space: nowrap; }
.bad { color: var(--bad); } .soft { color: var(--soft); font-weight: normal; }
"""


def table(content: Mapping[str, Any]) -> str:
    """The object in zoo.json -> CSV with a row for each model, in the columns of :data:`COLUMNS`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: cell(value) for key, value in _numbers(model).items()} for model in content["models"])
    return text.getvalue()


def page(content: Mapping[str, Any]) -> str:
    """The object in zoo.json -> HTML that asks the network for nothing and runs no script; every text is escaped."""
    models = content["models"]
    failed = sum(model["error"] is not None for model in models)
    unusable = sum(bool(model.get("warning")) for model in models)
    summary = f"{len(models)} models" + (f", <strong class=bad>{failed} without a result</strong>" if failed else "")
    summary += f", <strong class=bad>{unusable} with unusable thresholds</strong>" if unusable else ""
    heads = "".join(
        f"<th scope=col{' class=n' if number else ''}>{name}"
        for name, number in (
            *(("Model", 0), ("Tensors", 1), ("FP32", 1), ("INT8", 1), ("Change (95% interval)", 1), ("Same top-1", 1)),
            *(("SQNR, dB", 1), ("Sweep", 0)),
        )
    )
    rows = "".join(f"{_row(model)}\n" for model in models)
    return document(str(content["title"]), f"<p>{summary}</p>\n{framed(f'<tr>{heads}', rows)}", TABLE_STYLE + _STYLE)


def _row(model: Mapping[str, Any]) -> str:
    numbers = _numbers(model)
    name = escape(str(model["name"]))
    if model["error"] is not None:
        return f"<tr><th scope=row>{name}<td colspan=7 class=bad>{escape(str(model['error']))}"
    scores = numbers["fp32"], numbers["int8"]
    percent = all(_is_share(score) for score in scores)
    low, high = (_change(numbers[key], percent) for key in ("change_low", "change_high"))
    cells = [
        *(_score(score, percent) for score in scores),
        "" if numbers["change"] == "" else f"{_change(numbers['change'], percent)} ({low} to {high})",
        _score(numbers["top1_agreement"], _is_share(numbers["top1_agreement"])),
        ""
        if numbers["sqnr_db"] == ""
        else f"{numbers['sqnr_db']:.1f}"
        if isinstance(numbers["sqnr_db"], float)
        else escape(str(numbers["sqnr_db"])),
    ]
    scored = "" if scores == ("", "") else f"; scored by {numbers['metric']}"
    method = escape(f"{numbers['method']}, {model['samples']} samples{scored}")
    notes = f"{model['tensors']}"
    if model["unusable"]:
        notes += f"<br><span class=soft>{model['unusable']} without a range</span>"
    warning = f"<br><strong class=bad>{escape(str(model['warning']))}</strong>" if model.get("warning") else ""
    sweep = model.get("sweep")
    found = ""
    if sweep is not None:
        found = f'<a href="{escape(quote(sweep["report"]))}">{escape(str(sweep["headline"]))}</a>'
    return (
        f'<tr><th scope=row><a href="{escape(quote(model["cache"]))}">{name}</a>'
        f"<br><span class=soft>{method}</span>{warning}<td class=n>{notes}"
        + "".join(f"<td class=n>{cell}" for cell in cells)
        + f"<td>{found}"
    )


def _numbers(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model of the zoo -> its cells; "" where there is nothing to say."""
    metric = model["row"]["metric"]
    cells: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    cells |= {"name": model["name"], "error": model["error"] or "", "method": model["row"]["method"], "metric": metric}
    counted = "samples", "tensors", "unusable", "clipped", "unusable_thresholds"
    cells |= {key: model[key] for key in counted if key in model}
    found = model.get("evaluation")
    if found is not None:
        for key, column in (("scores", "int8"), ("reference_scores", "fp32"), ("changes", "change")):
            score = found[key].get(metric)
            if score is not None:
                cells[column] = _cell(score["value"])
                if column == "change":
                    cells["change_low"], cells["change_high"] = _cell(score["low"]), _cell(score["high"])
        outputs = [
            output
            for output in found["agreement"].values()
            if output.get("floating", True) and output.get("depends_on_int8") is not False
        ]
        same = next((output["top1"] for output in outputs if output["top1"] is not None), None)
        cells["top1_agreement"] = "" if same is None else _cell(same["value"])
        ratios = [output["sqnr_db"] for output in outputs]
        finite = [ratio for ratio in ratios if isinstance(ratio, (int, float))]
        cells["sqnr_db"] = float(min(finite)) if finite else _cell(ratios[0]) if ratios else ""
    sweep = model.get("sweep")
    if sweep is not None:
        cells["batch_size"], cells["headline"] = _cell(sweep["batch_size"]), sweep["headline"]
    return cells


def _cell(value: Any) -> Any:
    return "" if value is None else value


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _score(value: Any, percent: bool) -> str:
    """A share from 0 to 1 in percent; what any other metric says as it is."""
    if isinstance(value, (int, float)):
        return f"{value:.2%}" if percent else f"{value:.5g}"
    return escape(str(value))


def _change(value: Any, percent: bool) -> str:
    if isinstance(value, (int, float)):
        return f"{100 * value:+.2f} pt" if percent else f"{value:+.5g}"
    return escape(str(value))

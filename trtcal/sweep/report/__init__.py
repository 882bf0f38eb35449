"""A sweep as one page: HTML that carries its data, draws it by itself and asks the network for nothing.

The page is ``template.html`` with ``style.css``, the scripts of ``SCRIPTS`` and the sweep's numbers inside.
Charts are drawn by the scripts themselves: a plotting library would weigh more than all numbers of a sweep,
and reads markup in the names of tensors. A Content-Security-Policy admits these very scripts and no other.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from trtcal.errors import StatsError
from trtcal.files.atomic import write_bytes
from trtcal.ranges.measuring import MEASURED
from trtcal.ranges.thresholds import METHODS
from trtcal.sweep.store import describe_growth_rules, describe_methods, load_json

SCRIPTS = (
    *("base.js", "charts.js", "summary.js", "scores.js", "heatmap.js", "explorer.js"),
    *("tables.js", "samples.js", "sensitivity.js", "page.js"),
)
"""In the order in which they run; they share one scope."""

LOUDEST = 6  # samples named per tensor
_ARRANGEMENT = ("batch_size", "order", "seed", "growth")
_WHOLE = ("doublings", "last_growth", "fell_back", "m")
# What wrong types, missing values, huge numbers and deep nesting raise.
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
_PICTURE = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/=]*")


def write(folder: str | Path, trials: Mapping[str, Any] | None = None) -> Path:
    """Folder of a sweep -> the path of its ``report.html``, drawn from ``trials.json`` and replaced in one step.

    ``trials`` is what that file holds, where it is at hand (:func:`trtcal.sweep.store.content`).
    Where ``sensitivity.json`` lies beside it, a report of ``trtcal sensitivity -o``, the page says which layers cost
    accuracy. Raises StatsError where ``trials.json`` is not there or not that of a whole sweep, or
    ``sensitivity.json`` is something else; OutputError where the page cannot be written.
    """
    path, page = Path(folder) / "trials.json", Path(folder) / "report.html"
    known = load_json(path) if trials is None else trials
    content = {**known, "sensitivity": _sensitivity(Path(folder) / "sensitivity.json")}
    try:
        drawn = render(content)
    except _DAMAGE as error:
        raise StatsError(
            f"{path}: is not a whole sweep ({type(error).__name__}: {error}); run the sweep again"
        ) from error
    write_bytes(page, drawn)
    return page


def render(content: Mapping[str, Any]) -> bytes:
    """The object in trials.json (:mod:`trtcal.sweep.store`) -> HTML, UTF-8.

    ``content["thumbnails"]``, if it is there, holds a ``data:`` URL of a picture by sample name;
    ``content["sensitivity"]`` what :func:`trtcal.judging.sensitivity.section` gives.
    """
    style, script = _file("style.css"), "".join(_file(name) for name in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = Template(_file("template.html")).substitute(
        policy=policy,
        title=escape(f"Calibration sweep of {content['model']}"),
        headline=escape(content["recommendation"]["headline"]),
        style=style,
        script=script,
        data=_embedded(_drawn(content)),
    )
    return page.encode(errors="xmlcharrefreplace")


def _drawn(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the page needs of a sweep: fewer digits, and of all samples only the loudest of each tensor."""
    names: dict[str, int] = {}
    samples = content["samples"]
    loudest = [
        [[names.setdefault(samples[row], len(names)), _short(maxima[row], 5)] for row in _largest(maxima)]
        for maxima in content["sample_amax"]
    ]
    pictures = content.get("thumbnails") or {}
    return {
        **{key: content[key] for key in ("model", "data", "provenance", "tensors", "exact", "histograms")},
        **{key: content[key] for key in ("invariant", "trials", "drift", "recommendation", "notes", "partial")},
        "methods": _described(content, "methods", describe_methods, [trial["method"] for trial in content["trials"]]),
        "growth_rules": _described(
            content, "growth_rules", describe_growth_rules, [row["growth"] for row in content["arrangements"]]
        ),
        "measured_by": str(content.get("measured_by", MEASURED)),
        "control": next((name for name, row in METHODS.items() if not row.clips), None),
        "off": content["off"],
        "sample_count": len(samples),
        "loudest": loudest,
        "sample_names": list(names),
        "arrangements": [_shortened(configuration) for configuration in content["arrangements"]],
        "sensitivity": _layers(content["sensitivity"]) if content.get("sensitivity") else None,
        "thumbnails": {name: url for name, url in pictures.items() if _PICTURE.fullmatch(url)},
    }


def _described(
    content: Mapping[str, Any],
    key: str,
    describe: Callable[[Iterable[str]], dict[str, dict[str, Any]]],
    names: Iterable[str],
) -> dict[str, dict[str, str | bool]]:
    """The words of each name: those of the file, or, where an older one has none, those of today's tables."""
    words = describe(names)
    for name, given in (content.get(key) or {}).items():
        if name in words:
            words[name] = {
                part: str(given[part]) if isinstance(known, str) else bool(given[part])
                for part, known in words[name].items()
            }
    return words


def _sensitivity(path: Path) -> dict[str, Any] | None:
    """File -> the report it holds; None where there is no such file, StatsError where it holds none."""
    if not path.exists():
        return None
    from trtcal.judging.sensitivity import FORMAT  # which needs more than a page does

    try:
        content = json.loads(path.read_bytes())
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        if found != FORMAT:
            raise ValueError(f"expected {FORMAT!r}, got {found!r}")
        _layers(content)
    except OSError as error:
        raise StatsError(f"{path}: cannot be read: {error.strerror}") from error
    except _DAMAGE as error:
        raise StatsError(
            f"{path}: is no report of trtcal sensitivity ({type(error).__name__}: {error}); run it again or remove it"
        ) from error
    return dict(content)


def _layers(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the page needs of a report of trtcal sensitivity, each value of the type that the page expects."""

    def trial(one: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return None if one is None else {key: _measured(one[key]) for key in ("sqnr_db", "metric", "recovered")}

    def texts(table: Mapping[str, Any], *keys: str) -> dict[str, str]:
        return {key: str(table[key]) for key in keys}

    return {
        "samples": int(report["samples"]),
        "metric": None if report["metric"] is None else str(report["metric"]),
        "fp32": _measured(report["fp32"]),
        "int8": {**(trial(report["int8"]) or {})},
        "tensors": [
            {
                **texts(row, "tensor"),
                "amax": _measured(row["amax"]),
                "sqnr_db": _measured(row["sqnr_db"]),
                "layers": [str(layer) for layer in row["layers"]],
            }
            for row in report["tensors"]
        ],
        "layers": [
            {
                **texts(row, "layer", "op_type"),
                "estimate_db": _measured(row["estimate_db"]),
                "only": trial(row["only"]),
                "without": trial(row["without"]),
            }
            for row in report["layers"]
        ],
        "curve": [{**texts(row, "layer"), **(trial(row) or {})} for row in report["curve"]],
        "ended": str(report["ended"]),
        "options": texts(report["options"], "trtcal", "trtexec", "polygraphy") if report["options"] else {},
    }


def _measured(value: Any) -> float | str | None:
    """A number as JSON has it: itself, "inf", "-inf" or None; ValueError for anything else."""
    if value is None or value in ("inf", "-inf"):
        return value  # type: ignore[no-any-return]
    number = _short(float(value), 6)
    if number is None or not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {value}")
    return number


def _largest(maxima: Sequence[float | None]) -> list[int]:
    return sorted(range(len(maxima)), key=lambda row: -(maxima[row] or 0.0))[:LOUDEST]


def _shortened(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Limits place the bins that are drawn and keep float32's digits; the rest is read by people."""

    def shortened(
        values: Sequence[float | None], form: str
    ) -> list[float | None]:  # of numbers by the hundred thousand
        return [None if value is None else float(format(value, form)) for value in values]

    return {
        key: values if key in _ARRANGEMENT or key in _WHOLE else shortened(values, ".7g" if key == "limit" else ".4g")
        for key, values in configuration.items()
    }


def _short(value: float | None, digits: int) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


def _embedded(content: Mapping[str, Any]) -> str:
    """JSON that ends no element and no line wherever it stands: ASCII, without <, > and &."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")

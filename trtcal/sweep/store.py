"""A sweep on disk: trials.csv for a spreadsheet, trials.json for a program or the report, and back.

``trials.json`` is one object; arrays over tensors are in the order of ``tensors``:

* ``format``: "trtcal-sweep-1"; ``model``, ``data``: names for people; ``provenance``: strings by name
* ``tensors``, ``samples``: names; ``metric``: what accuracy is
* ``partial``: what became of a last batch that was not full
* ``exact``: whether histograms were counted or replayed; ``off``: per tensor, how far the replay is from the pass
* ``histograms``: per tensor ``{"limit", "amax", "counts"}`` of all elements on 512 bins over [0, limit)
* ``sample_amax``: per tensor, per sample; ``invariant``: method -> amax per tensor
* ``methods``: method -> ``{"description", "depends_on_batches", "clips"}``; ``measured_by``: the one whose thresholds
  the configurations have
* ``growth_rules``: rule -> ``{"label", "description", "fine", "tensorrt"}``, see :class:`trtcal.ranges.growth.Rule`
* ``arrangements``: ``{"batch_size", "order", "seed", "growth", <measure>: per tensor, ...}``
* ``trials``: ``{"arrangement": index, "method", "amax_change_max", "amax_change_median", "accuracy",
  "accuracy_low", "accuracy_high", "agreement", "agreement_low", "agreement_high", "sqnr_db", "fell_back",
  "approximate", "unusable", "error", "sqnr_db_low", "sqnr_db_high", "judged_samples", "dropped",
  "judged_as"}``; approximate is what was replayed and not counted, unusable says of which tensors the threshold is no
  range, dropped why a trial was judged on no more samples, judged_as which trial's judgement it has
* ``drift``: method -> ``{"samples": [...], "change_median": [...], "change_max": [...]}``
* ``thumbnails``: sample -> ``data:`` URL of a small picture, where samples are pictures
* ``recommendation``: the fields of ``Recommendation``; ``notes``: sentences
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from trtcal.errors import SettingError, StatsError
from trtcal.files.atomic import write_bytes
from trtcal.files.terminal import cell
from trtcal.judging.accuracy import bootstraps
from trtcal.qdq.weights import decibels
from trtcal.ranges.measuring import MEASURED
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import method
from trtcal.sweep.choosing import HUGE
from trtcal.sweep.emulation import RULES
from trtcal.sweep.recommend import Recommendation
from trtcal.sweep.trials import Configuration, Judgement, Measures, Sweep, Trial, relative_change, usable

FORMAT = "trtcal-sweep-1"
DRAWN_BINS = 512
COLUMNS = (
    *("batch_size", "order", "seed", "method", "growth", "amax_change_max", "amax_change_median"),
    *("accuracy", "accuracy_low", "accuracy_high", "agreement", "agreement_low", "agreement_high", "sqnr_db"),
    *("doublings_max", "doublings_mean", "fell_back", "approximate", "unusable", "error"),
    *("sqnr_db_low", "sqnr_db_high"),
    *("judged_samples", "dropped", "judged_as"),
)


def rows(sweep: Sweep) -> list[dict[str, Any]]:
    """A dict per trial, with the columns of trials.csv; None where nothing was measured."""
    table, intervals = [], _intervals(sweep)
    for trial in sweep.trials:
        configuration, measures = trial.configuration, sweep.measures[trial.configuration]
        moved = relative_change(sweep, trial)
        judged = trial.judgement or Judgement()
        table.append(
            {
                **asdict(configuration),
                "method": trial.method,
                "amax_change_max": float(moved.max(initial=0)),
                "amax_change_median": float(np.median(moved)) if moved.size else 0.0,
                **_scored("accuracy", judged.accuracy, intervals),
                **_scored("agreement", judged.agreement, intervals),
                "sqnr_db": judged.sqnr_db,
                "doublings_max": float(measures.doublings.max(initial=0)),
                "doublings_mean": float(measures.doublings.mean()) if measures.doublings.size else 0.0,
                "fell_back": bool(measures.fell_back.any()),
                "approximate": _approximate(sweep, trial),
                "unusable": trial.unusable,
                "error": trial.error,
                **_in_decibels(judged.noise, intervals),
                "judged_samples": judged.samples,
                "dropped": trial.dropped,
                "judged_as": trial.judged_as,
            }
        )
    return table


def _approximate(sweep: Sweep, trial: Trial) -> bool:
    """Is a trial replayed and not counted, or from statistics that know samples which its batches leave out?"""
    by = method(trial.method)
    if not by.clips:
        return False
    if by.depends_on_batches and (sweep.exact or not RULES[trial.configuration.growth].fine):
        return not sweep.exact
    return sweep.partial == "drop" and len(sweep.samples) % trial.configuration.batch_size > 0


def to_csv(table: Iterable[Mapping[str, Any]]) -> bytes:
    """What :func:`rows` gives -> trials.csv; text that a spreadsheet would take for a formula is made harmless."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({key: cell(value) for key, value in row.items()})
    return buffer.getvalue().encode(errors="backslashreplace")


def content(
    sweep: Sweep,
    table: Iterable[Mapping[str, Any]],
    stats: ActivationStats,
    recommendation: Recommendation,
    *,
    model: str,
    data: str,
    provenance: Mapping[str, Any],
    drift: Mapping[str, Any] | None = None,
    thumbnails: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Sweep and what belongs to it -> the object in trials.json, as it is read back; inf and nan become null.

    ``table`` is what :func:`rows` gives, which takes a while.
    """
    tensors = usable(stats)
    index = {configuration: number for number, configuration in enumerate(sweep.measures)}
    trials = [
        {"arrangement": index[trial.configuration], **{k: v for k, v in row.items() if k not in _CONFIGURATION}}
        for trial, row in zip(sweep.trials, table, strict=True)
    ]
    return {
        "format": FORMAT,
        "model": model,
        "data": data,
        "provenance": _plain(provenance),
        "tensors": list(sweep.tensors),
        "samples": list(sweep.samples),
        "exact": sweep.exact,
        "partial": sweep.partial,
        "metric": sweep.metric,
        "off": None if sweep.off is None else _numbers(sweep.off),
        "histograms": [
            {
                "limit": tensor.histogram.limit,
                "amax": float(tensor.histogram.amax),
                "counts": tensor.histogram.coarse(DRAWN_BINS).counts.tolist(),
            }
            for tensor in tensors.values()
        ],
        "sample_amax": [_numbers(tensor.sample_amax) for tensor in tensors.values()],
        "invariant": {name: _numbers(amax) for name, amax in sweep.invariant.items()},
        "methods": describe_methods(sweep.invariant),
        "measured_by": MEASURED,
        "growth_rules": describe_growth_rules(configuration.growth for configuration in sweep.measures),
        "arrangements": [
            {
                **asdict(configuration),
                **{field.name: _numbers(getattr(measures, field.name)) for field in fields(Measures)},
            }
            for configuration, measures in sweep.measures.items()
        ],
        "trials": _plain(trials),
        "drift": _plain(drift or {}),
        "thumbnails": dict(thumbnails or {}),
        "recommendation": _plain(asdict(recommendation)),
        "notes": list(sweep.notes),
    }


def describe_methods(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Names of methods -> what people and the report are told of each; one that there is not has no words."""
    found = {}
    for name in names:
        try:
            by = method(name)
            words = {"description": by.description, "depends_on_batches": by.depends_on_batches, "clips": by.clips}
        except SettingError:
            words = {"description": "", "depends_on_batches": False, "clips": True}
        found[name] = words
    return found


def describe_growth_rules(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Names of growth rules -> what people and the report are told of each; one that there is not has no words."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        rule = RULES.get(name)
        found[name] = {
            "label": rule.label if rule else "a growth rule",
            "description": rule.description if rule else "",
            "fine": rule is not None and rule.fine,
            "tensorrt": rule is not None and rule.tensorrt,
        }
    return found


def to_json(content: Mapping[str, Any]) -> bytes:
    """What :func:`content` makes -> trials.json."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace")  # JSON's escapes for what is no text in a file's name


def load_json(path: str | Path) -> dict[str, Any]:
    """File -> the object it holds; StatsError where it is not the trials.json of a sweep."""
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise StatsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StatsError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise StatsError(f"{path}: expected the trials of a sweep in format {FORMAT!r}, got {found!r}")
    return content


def save(folder: str | Path, table: Iterable[Mapping[str, Any]], content: Mapping[str, Any]) -> None:
    """Write trials.csv (:func:`rows`) and trials.json (:func:`content`), each replaced in one step."""
    write_bytes(Path(folder) / "trials.json", to_json(content))
    write_bytes(Path(folder) / "trials.csv", to_csv(table))


# --- judgements of an interrupted sweep


def judgement_line(amax: np.ndarray, judged: Judgement) -> bytes:
    """Ranges and what was found of them -> one line of the journal that a resumed sweep reads."""
    value = {
        "amax": np.asarray(amax, np.float32).tobytes().hex(),
        "accuracy": None if judged.accuracy is None else np.asarray(judged.accuracy, np.float64).tolist(),
        "agreement": None if judged.agreement is None else np.asarray(judged.agreement, np.float64).tolist(),
        "sqnr_db": judged.sqnr_db,
        "samples": judged.samples,
        "noise": None if judged.noise is None else np.asarray(judged.noise, np.float64).tolist(),
    }
    return json.dumps(value).encode() + b"\n"


def read_journal(data: bytes) -> dict[bytes, Judgement]:
    """Journal -> the last judgement by the bytes of the ranges; whatever follows a broken line is not used."""
    return dict(read_judgements(data))


def read_judgements(data: bytes) -> list[tuple[bytes, Judgement]]:
    """Journal -> bytes of ranges and a judgement of them, as they came; whatever follows a broken line is not used."""
    found: list[tuple[bytes, Judgement]] = []
    for line in data.splitlines():
        try:
            value = json.loads(line)
            accuracy, agreement, noise = (
                None if per_sample is None else np.array(per_sample, np.float64)
                for per_sample in (value["accuracy"], value["agreement"], value.get("noise"))
            )
            sqnr_db = None if value["sqnr_db"] is None else float(value["sqnr_db"])
            samples = None if value.get("samples") is None else int(value["samples"])
            found.append((bytes.fromhex(value["amax"]), Judgement(accuracy, agreement, sqnr_db, noise, samples)))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            break
    return found


_CONFIGURATION = {field.name for field in fields(Configuration)}


def _intervals(sweep: Sweep) -> dict[bytes, tuple[float, float]]:
    """The values of all trials by their bytes -> intervals of their means; those of equal size are found together."""
    found: dict[int, dict[bytes, np.ndarray]] = {}
    for trial in sweep.trials:
        judged = trial.judgement or Judgement()
        noise = None if judged.noise is None else _finite(judged.noise)
        for values in (judged.accuracy, judged.agreement, noise):
            if values is not None and values.size > 1:  # one value for the whole set has no interval
                found.setdefault(values.size, {})[_key(values)] = np.asarray(values, np.float64)
    return {
        key: interval
        for distinct in found.values()
        for key, interval in zip(distinct, bootstraps(np.array(list(distinct.values()))), strict=True)
    }


def _scored(
    name: str, values: np.ndarray | None, intervals: Mapping[bytes, tuple[float, float]]
) -> dict[str, float | None]:
    if values is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    low, high = intervals[_key(values)] if values.size > 1 else (None, None)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def _in_decibels(noise: np.ndarray | None, intervals: Mapping[bytes, tuple[float, float]]) -> dict[str, float | None]:
    """Noise per sample -> the interval of the SQNR."""
    low, high = (None, None) if noise is None or noise.size < 2 else intervals[_key(_finite(noise))]
    return {
        "sqnr_db_low": None if high is None else decibels(1, high),
        "sqnr_db_high": None if low is None else decibels(1, low),
    }


def _finite(noise: np.ndarray) -> np.ndarray:
    return np.minimum(np.asarray(noise, np.float64), HUGE)


def _key(values: np.ndarray) -> bytes:
    return np.asarray(values, np.float64).tobytes()


def _numbers(values: np.ndarray) -> list[Any]:
    """Seven significant digits, as many as float32 has: the page stays small. inf and nan become None."""
    if values.dtype.kind != "f":
        return list(values.tolist())
    if np.isfinite(values).all():
        return [float(f"{value:.7g}") for value in values.tolist()]
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in values.tolist()]


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no place in trials.json")

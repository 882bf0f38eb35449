"""``--method auto``: all methods from the statistics of one pass, judged as INT8, and the best of them taken.

Half of the samples choose, the other half says how good the choice is: what is best of six on some samples is a little
worse on others. Methods are compared as a sweep compares them (:mod:`trtcal.sweep.choosing`), by agreement with FP32
and then by SQNR; one with unusable thresholds is not judged.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trtcal.calibration.calibrate import Calibration, from_stats
from trtcal.calibration.file import Choice
from trtcal.errors import DataError, ModelError, TrtcalError
from trtcal.judging.evaluation import plain
from trtcal.model.open import Model, Source, open_model
from trtcal.qdq.weights import decibels
from trtcal.ranges.clipping import in_words
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import spelt
from trtcal.samples.batches import Batches
from trtcal.spec import built_in_batch_size
from trtcal.sweep import choosing
from trtcal.sweep.choosing import Measure
from trtcal.sweep.closing import BATCH_SIZE
from trtcal.sweep.cpu_judge import CpuJudge
from trtcal.sweep.trials import Configuration, Judgement, Trial

AUTO = "auto"
SAMPLES = 64  # that judge, at most
MEASURES = (
    Measure("agreement with FP32", "agreement", share=True),
    Measure("SQNR", "noise", decibels=True),
)

Progress = Callable[[int, int], None]
"""(methods judged, methods in all) -> nothing."""


@dataclass(frozen=True)
class Auto:
    """Chooses a model's calibration method; a `trtcal.calibration.file.Choosing`.

    ``batches`` are those that calibrate. Up to 64 samples that are not among them judge, or where there are none such,
    as of a script, up to 64 of these.
    """

    model: Source
    batches: Batches
    methods: tuple[str, ...] = ()
    progress: Progress = lambda done, total: None

    @cached_property
    def judged(self) -> Batches:
        """The samples that judge."""
        others = self.batches.others()
        size = built_in_batch_size(open_model(self.model).inputs) or BATCH_SIZE
        return (self.batches if others is None else others).part(SAMPLES).in_batches_of(size)

    @property
    def held_out(self) -> bool:
        """Are they others than those that calibrate?"""
        return self.batches.others() is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The methods that are compared."""
        return self.methods or spelt(swept=True)

    @cached_property
    def key(self) -> str:
        """Equal for the same methods, judged by the same samples."""
        return hashlib.sha256(json.dumps([self.judged.key(), self.names]).encode()).hexdigest()

    def __call__(self, model: Model, stats: ActivationStats, growth: str = "double") -> Choice:
        """Model and statistics of a pass -> the method to take, and how each did.

        ModelError where none can be judged, as where no floating-point output depends on a layer in INT8; DataError for
        a single sample.
        """
        samples = self.judged.num_samples
        if samples < 2:
            raise DataError(
                f"{self.judged.source.describe()}: method auto judges by two samples at least; name a method"
            )
        made = {name: from_stats(model, stats, name) for name in self.names}
        usable = {name: one for name, one in made.items() if not one.unusable_thresholds}
        judge, found, failed = CpuJudge(self.model, self.judged), dict[str, Judgement](), dict[str, str]()
        for done, (name, one) in enumerate(usable.items(), 1):
            try:
                found[name] = judge({tensor: one.cache.amax(tensor) for tensor in one.cache})
            except TrtcalError as error:
                failed[name] = str(error)
            self.progress(done, len(usable))
        judged = {name: one for name, one in found.items() if one.noise is not None}
        if not judged:
            why = next(iter(failed.values()), "no floating-point output depends on a layer in INT8, or all are zero")
            raise ModelError(f"{model.name}: method auto cannot judge any method: {why}; name one instead")
        first, second = np.arange(0, samples, 2), np.arange(1, samples, 2)
        best = chosen_of({name: _half(one, first) for name, one in judged.items()}, growth)
        methods: dict[str, Any] = {}
        for name, one in made.items():
            if name in judged:
                methods[name] = {
                    "chosen_by": _numbers(_half(judged[name], first)),
                    "reported": _numbers(_half(judged[name], second)),
                }
            else:
                methods[name] = {"left_out": _left_out(one, failed.get(name))}
        account = {
            "by": self.key,
            "method": best,
            "held_out": self.held_out,
            "samples": {"chosen_by": int(first.size), "reported": int(second.size)},
            "methods": methods,
        }
        reported = methods[best]["reported"]
        closing = {key: reported[key] for key in ("sqnr_db", "agreement")}
        return Choice(best, account, {"samples": int(second.size), **closing})


def chosen_of(judged: Mapping[str, Judgement], growth: str = "double") -> str:
    """Methods and how each did on the same samples -> the one that a sweep would advise."""
    arranged = Configuration(1, "given", None, growth)
    trials = [Trial(arranged, name, np.empty(0, np.float32), one) for name, one in judged.items()]
    candidates = [choosing.Choice(trial.method, None, None, trial, (trial,)) for trial in trials]
    measures = [measure for measure in MEASURES if all(measure.of(trial) is not None for trial in trials)]
    chosen = choosing.choose(candidates, measures)
    assert chosen is not None  # there is one, and SQNR is known of each
    return chosen.best.method


def lines(chosen: Mapping[str, Any]) -> list[str]:
    """What an :class:`Auto` found, as its sidecar has it -> lines for people; none for anything else."""
    try:
        return _lines(chosen) if chosen else []
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # of a sidecar that somebody changed
        return []


def _lines(chosen: Mapping[str, Any]) -> list[str]:
    few, more = chosen["samples"]["chosen_by"], chosen["samples"]["reported"]
    which = "samples that did not calibrate"
    if not chosen["held_out"]:
        which = "of the samples that calibrate, since there are no others"
    rows = []
    for name, one in chosen["methods"].items():
        if "left_out" in one:
            rows.append((name, math.inf, f"left out: {one['left_out']}"))
            continue
        sqnr_db, before = (float(one[half]["sqnr_db"]) for half in ("reported", "chosen_by"))
        low, high = (float(one["reported"][end]) for end in ("low", "high"))
        agreement = one["reported"]["agreement"]
        same = "" if agreement is None else f"   same class {agreement:.1%}"
        taken = "   <- taken" if name == chosen["method"] else ""
        text = f"SQNR {sqnr_db:.1f} dB ({low:.1f} to {high:.1f}; {before:.1f} where chosen){same}{taken}"
        rows.append((name, -sqnr_db, text))
    width = max(len(name) for name, *_ in rows)
    rows.sort(key=lambda row: row[1])
    return [
        f"auto took {chosen['method']}: chosen on {few} {which}, and below on {more} more, with 95% intervals:",
        *(f"  {name:{width}}  {text}" for name, _, text in rows),
    ]


def _half(judged: Judgement, places: np.ndarray) -> Judgement:
    """What is known of some of the samples."""
    assert judged.noise is not None
    agreement = None if judged.agreement is None else judged.agreement[places]
    return Judgement(agreement=agreement, noise=judged.noise[places], samples=len(places))


def _numbers(judged: Judgement) -> dict[str, Any]:
    """As plain data: SQNR with its interval, and the share of the same classes."""
    assert judged.noise is not None
    resampled = -choosing.means([-np.clip(judged.noise, 0, choosing.HUGE)[None]])[0]
    high, low = np.quantile(resampled, [(1 - choosing.CONFIDENCE) / 2, (1 + choosing.CONFIDENCE) / 2])
    return {
        "sqnr_db": plain(decibels(1.0, float(judged.noise.mean()))),
        "low": plain(decibels(1.0, float(low))),
        "high": plain(decibels(1.0, float(high))),
        "agreement": None if judged.agreement is None else float(judged.agreement.mean()),
    }


def _left_out(made: Calibration, failed: str | None) -> str:
    if made.unusable_thresholds:
        return f"unusable, {in_words(made.unusable_thresholds)}"
    return failed or "no floating-point output depends on a layer in INT8"

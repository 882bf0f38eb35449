"""Which of a sweep's choices to take: by the first measure that can tell them apart, metric, agreement, then SQNR.

A choice is what one calibration can be told to do. It is taken for the lesser of two things: what its batch size gives
in orders that come by chance, and what the very trial gave that the calibration would repeat. So neither a lucky
arrangement is advised for its luck, nor an unlucky one for the luck of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from trtcal.judging.accuracy import AT_ONCE
from trtcal.judging.metrics import METRICS
from trtcal.ranges.growth import GROWTH
from trtcal.ranges.thresholds import method
from trtcal.sweep.trials import Sweep, Trial

CONFIDENCE = 0.95
RESAMPLES = 1000
BY_CHANCE = ("given", "shuffled")  # orders that nobody chose for what is in the samples
HUGE = 1e30  # in the place of inf, of which there is no mean


@dataclass(frozen=True)
class Measure:
    """What trials are compared by, sample by sample; more of its values is better.

    ``field`` is that of :class:`Judgement`. Where ``single``, there is one value for all samples together and so no
    interval: a difference of less than ``least`` then counts as none, in decibels of a power, else in shares of the
    value.
    """

    name: str
    field: str
    share: bool = False
    decibels: bool = False
    single: bool = False

    def of(self, trial: Trial) -> np.ndarray | None:
        """The values of a trial, (samples,)."""
        values = None if trial.judgement is None else getattr(trial.judgement, self.field)
        if values is None:
            return None
        if self.decibels:
            values = -(10 ** (-np.array([values], np.float64) / 10) if self.single else values)
        return np.clip(np.asarray(values, np.float64), -HUGE, HUGE)

    def scale(self, means: np.ndarray) -> np.ndarray:
        """Means of values -> what people read: dB, or the means themselves."""
        return -10 * np.log10(np.maximum(-means, 1 / HUGE)) if self.decibels else means

    def least(self, value: float) -> float:
        """A difference from this value, as people read it, below which nobody need care."""
        return 0.5 if self.decibels else 0.01 * abs(value) if self.single else 0.0

    def show(self, value: float, sign: bool = False) -> str:
        """What :meth:`scale` gives, or a difference of it, for people."""
        if self.decibels:
            return "inf dB" if value >= 299 else f"{round(value, 1) + 0.0:{'+' if sign else ''}.1f} dB"
        if self.share:
            return f"{value:+.2%}" if sign else f"{value:.2%}"
        return f"{value:+.4g}" if sign else f"{value:.4g}"

    def interval(self, low: float, high: float) -> str:
        """The interval of a difference."""
        first = self.show(low, True)
        return f"{first.removesuffix(' dB')} to {self.show(high, True)}"


def measures_of(sweep: Sweep) -> tuple[Measure, ...]:
    """What every trial was measured by that did not fail and saw all samples: metric, agreement, SQNR."""
    share = sweep.metric in METRICS
    known = [
        Measure("accuracy" if share else sweep.metric, "accuracy", share=share),
        Measure("agreement with FP32", "agreement", share=True),
        Measure("SQNR", "noise", decibels=True),
    ]
    seen = whole_trials(sweep)
    found = [measure for measure in known if seen and all(measure.of(trial) is not None for trial in seen)]
    found = [Measure(m.name, m.field, m.share, m.decibels, single=True) if _size(m, seen[0]) == 1 else m for m in found]
    if (
        not any(m.decibels for m in found)
        and seen
        and all(t.judgement and t.judgement.sqnr_db is not None for t in seen)
    ):
        found.append(Measure("SQNR", "sqnr_db", decibels=True, single=True))
    return tuple(found)


def whole_trials(sweep: Sweep) -> list[Trial]:
    """Trials that were judged on all samples: not those that failed, or that a few samples were enough to drop."""
    sizes = {id(trial): samples_of(trial) for trial in sweep.trials if trial.judgement is not None}
    most = max(sizes.values(), default=0)
    return [trial for trial in sweep.trials if sizes.get(id(trial)) == most]


def samples_of(trial: Trial) -> int:
    """On how many samples was it judged?"""
    judged = trial.judgement
    if judged is None or judged.samples is not None:
        return 0 if judged is None else judged.samples or 0
    values = judged.accuracy, judged.agreement, judged.noise
    return max((value.size for value in values if value is not None), default=0)


def _size(measure: Measure, trial: Trial) -> int:
    values = measure.of(trial)
    return 0 if values is None else values.size


@dataclass(frozen=True, eq=False)
class Choice:
    """What a calibration can be told to do, and its trials: the one that it repeats, and those of usual orders.

    ``growth`` and ``batch_size`` are None where the method, or the growth rule, makes nothing of them.
    """

    method: str
    growth: str | None
    batch_size: int | None
    own: Trial
    usual: tuple[Trial, ...]

    @property
    def group(self) -> tuple[str, str | None]:
        """What it shares with other batch sizes."""
        return self.method, self.growth

    @property
    def family(self) -> str:
        """Its group in words."""
        invariant = self.growth is not None and GROWTH[self.growth].invariant
        return f"{self.method} on the batch-invariant histogram" if invariant else self.method

    def __str__(self) -> str:
        return self.family if self.batch_size is None else f"{self.family} in batches of {self.batch_size}"

    @property
    def options(self) -> tuple[str, ...]:
        """Those of ``trtcal calibrate`` that do it; none where no order of its samples is that of the trial."""
        order, seed = self.own.configuration.order, self.own.configuration.seed
        if self.batch_size is not None and order not in BY_CHANCE:
            return ()
        found = ["--method", self.method]
        if self.batch_size is not None:
            found += ["--batch-size", str(self.batch_size)]
            found += ["--order", order, "--seed", str(seed)] if order != "given" else []
        if self.growth is not None and not GROWTH[self.growth].tensorrt:
            found += ["--growth", self.growth]
        return tuple(found)


def choices(sweep: Sweep) -> list[Choice]:
    """What the judged trials of a sweep leave to choose, in their order, small batches first.

    Growth rules that only a replay knows are nothing to choose.
    """
    whole = {id(trial) for trial in whole_trials(sweep)}
    groups: dict[tuple[str, str | None, int | None], list[Trial]] = {}
    for trial in sweep.trials:
        growth, size = trial.configuration.growth, trial.configuration.batch_size
        if not method(trial.method).depends_on_batches:
            groups.setdefault((trial.method, None, None), []).append(trial)
        elif growth in GROWTH:
            groups.setdefault((trial.method, growth, None if GROWTH[growth].invariant else size), []).append(trial)
    found = []
    for (name, rule, batch_size), trials in groups.items():
        if batch_size is None:  # all are alike, but for those whose last batch leaves samples out
            invariant = sweep.invariant[name]
            same = [trial for trial in trials if np.array_equal(trial.amax, invariant)] or trials
            own: Trial = next((trial for trial in same if id(trial) in whole), same[0])
            usual = [own]
        else:
            usual = [trial for trial in trials if trial.configuration.order in BY_CHANCE] or trials
            own = next((trial for trial in usual if trial.configuration.order == "given"), usual[0])
            usual = [trial for trial in usual if id(trial) in whole]
        if id(own) in whole:
            found.append(Choice(name, rule, batch_size, own, tuple(usual)))
    rank: dict[tuple[str, str | None], int] = {}
    for choice in found:
        rank.setdefault(choice.group, len(rank))
    return sorted(found, key=lambda choice: (rank[choice.group], choice.batch_size or 0))


def means(sets: Sequence[np.ndarray], resamples: int = RESAMPLES) -> np.ndarray:
    """Sets of trials on the same samples, (trials, samples) each -> their means over resampled ones, (sets, resamples).

    Samples are the same for all sets in each column, so that differences are paired; the trials of each set are
    resampled as well: what one lucky configuration does is not taken for what its batch size does.
    """
    rows = np.concatenate(sets)
    places: dict[bytes, int] = {}  # many arrangements lead to the same thresholds
    which = [places.setdefault(row.tobytes(), len(places)) for row in rows]
    distinct = rows[[which.index(place) for place in range(len(places))]]
    step = max(1, AT_ONCE // rows.shape[1])
    starts = range(0, resamples, step)
    parts = [distinct @ _shares(rows.shape[1], min(step, resamples - first), first) for first in starts]
    each = np.concatenate(parts, axis=1)[which]
    ends = np.cumsum([len(values) for values in sets])
    found = [
        (part * _shares(len(part), resamples, 0)).sum(axis=0) if len(part) > 1 else part[0]
        for part in np.split(each, ends[:-1])
    ]
    return np.array(found)


@lru_cache(maxsize=8)
def _shares(number: int, resamples: int, first: int) -> np.ndarray:
    """So many things, drawn with replacement as often as there are of them -> the share of each, (number, resamples).

    Different for another ``first``.
    """
    drawn = np.random.default_rng((first, number)).integers(number, size=(resamples, number))
    drawn += number * np.arange(resamples)[:, None]
    return np.ascontiguousarray(np.bincount(drawn.reshape(-1), minlength=drawn.size).reshape(drawn.shape).T) / number


class Values(NamedTuple):
    """Of choices, by one measure: how each is read, (choices,), and which is significantly worse than which.

    ``below`` [a, b]: a is worse than b; ``low`` and ``high`` are the interval of a - b.
    """

    value: np.ndarray
    below: np.ndarray
    low: np.ndarray
    high: np.ndarray


def compared(found: Sequence[Choice], measure: Measure) -> Values:
    """Choices -> how they compare by a measure; both readings of each, as the head of this file says."""
    usual = [matrix(choice.usual, measure) for choice in found]
    own = [matrix([choice.own], measure) for choice in found]
    both = measure.scale(np.array([[part.mean() for part in pair] for pair in zip(usual, own, strict=True)]))
    value = both.min(axis=1)
    if measure.single:
        difference = value[:, None] - value[None, :]
        least = np.array([measure.least(one) for one in value])
        return Values(value, difference < -np.maximum(least[:, None], least[None, :]), difference, difference)
    resampled = measure.scale(means([*usual, *own])).reshape(2, len(found), -1)
    lesser = resampled[both.argmin(axis=1), np.arange(len(found))]
    below = np.zeros((len(found), len(found)), bool)
    low, high = np.zeros(below.shape), np.zeros(below.shape)
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    for a in range(len(found)):
        for reading in resampled[:, a]:
            _, ends = np.quantile(reading - lesser, tails, axis=1)
            below[a] |= ends < -1e-9 * np.maximum(1, np.abs(value[a]))  # and not by the rounding of a sum
        low[a], high[a] = np.quantile(lesser[a] - lesser, tails, axis=1)
    return Values(value, below, low, high)


def matrix(trials: Iterable[Trial], measure: Measure) -> np.ndarray:
    """Values of the trials that have some, (trials, samples)."""
    return np.array([values for trial in trials if (values := measure.of(trial)) is not None])


@dataclass(frozen=True, eq=False)
class Chosen:
    """Of choices, the ``best``, and how it came to be that.

    ``left`` has what was still standing after each measure, in the order of ``measures``, as far as these were needed.
    """

    best: Choice
    choices: tuple[Choice, ...]
    measures: tuple[Measure, ...]
    values: Mapping[str, Values]  # by name of the measure
    left: tuple[tuple[Choice, ...], ...]

    def value(self, choice: Choice, measure: Measure) -> float:
        """How a choice is read by a measure."""
        return float(self.values[measure.name].value[self.choices.index(choice)])

    def difference(self, one: Choice, two: Choice, measure: Measure) -> tuple[float, float, float]:
        """Two choices -> the difference between them, one - two, and its interval."""
        a, b = self.choices.index(one), self.choices.index(two)
        found = self.values[measure.name]
        return float(found.value[a] - found.value[b]), float(found.low[a, b]), float(found.high[a, b])


def choose(found: Sequence[Choice], measures: Sequence[Measure]) -> Chosen | None:
    """Choices -> the best; None where there is none, or nothing to compare by.

    One measure after the other: what is significantly worse than another that still stands falls, and with it whatever
    it beats on all measures. Of those that no measure tells apart the one with the best mean by the last is taken. So
    nothing is advised that is significantly worse than another on the measure that decides between them, or that
    another beats on all measures.
    """
    if not found or not measures:
        return None
    values = {measure.name: compared(found, measure) for measure in measures}
    table = np.array([values[measure.name].value for measure in measures])  # (measures, choices)
    one, two = table[:, :, None], table[:, None, :]
    beats = np.all(one >= two, axis=0) & np.any(one > two, axis=0)  # [a, b]: a is better than b, on no measure worse
    standing = np.ones(len(found), bool)
    left = []
    for number, measure in enumerate(measures):
        top = _first_best(np.roll(table, -number, axis=0), standing)
        falls = standing & (values[measure.name].below & standing[None, :]).any(axis=1)
        falls[top] = False
        standing &= ~falls
        beaten = standing & beats[~standing].any(axis=0)
        beaten[top] = False
        standing &= ~beaten
        left.append(tuple(choice for choice, stands in zip(found, standing, strict=True) if stands))
        if standing.sum() == 1:
            break
    best = found[_first_best(table[::-1], standing)]
    return Chosen(best, tuple(found), tuple(measures), values, tuple(left))


def _first_best(table: np.ndarray, standing: np.ndarray) -> int:
    """Values (measures, choices), the measures from most to least important -> the first choice that none excels."""
    return max(np.flatnonzero(standing).tolist(), key=lambda column: (*table[:, column].tolist(), -column))

"""Who of a sweep is judged on all samples: a few samples first, and who is worse on these by then goes no further.

What :func:`trtcal.sweep.choosing.choose` would choose between is what competes: batch sizes of one method among
themselves, so that the sweep can say what batches do to it, and methods that know no batches against everything. A
choice is dropped where another is better by a measure, by more than the interval of the paired difference, and by every
measure before that at least as good on the same samples; of the two readings of each that `choosing` knows, the better
one of what falls and the lesser one of what it falls to. The interval is widened for the number of choices, as whoever
leads is compared with all. So the winner, and whatever cannot be told from it, are judged on all samples, and are
judged as they would have been without a race.

Sets whose thresholds differ by less than a step of the INT8 interval, 1/127 of it, are judged once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trtcal.passes.executor import one_by_one
from trtcal.ranges.growth import GROWTH
from trtcal.ranges.thresholds import method
from trtcal.sweep.choosing import BY_CHANCE, Choice, Measure, choices, matrix, means, measures_of
from trtcal.sweep.judge import LATE, Step, StepSpread, Stepwise
from trtcal.sweep.trials import Judgement, Sweep, Trial

logger = logging.getLogger(__name__)

STEP = 1 / 127  # of the INT8 interval: thresholds that differ by less round hardly a value to another level
CONFIDENCE = 0.95
RESAMPLES = 4000  # for the far ends of intervals


@dataclass(eq=False)
class _Set:
    """One distinct set of ranges on its way."""

    trial: Trial  # the first that has it
    judgement: Judgement | None = None
    state: Any = None
    anew: bool = False  # the judge cannot go on with it, and begins again
    error: str | None = None
    dropped: str | None = None
    known: dict[int, Judgement] = field(default_factory=dict)  # by samples, out of an interrupted run

    @property
    def samples(self) -> int:
        return (self.judgement.samples or 0) if self.judgement is not None else 0


def raced(
    sweep: Sweep,
    judge: Stepwise,
    *,
    race: bool = True,
    known: Mapping[bytes, Sequence[Judgement]] | None = None,
    note: Callable[[np.ndarray, Judgement], None] = lambda amax, judgement: None,
    spread: StepSpread = one_by_one,
    progress: Callable[[int, int], None] = lambda done, total: None,
    deadline: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Sweep:
    """A sweep -> the same, every trial with its judgement, on how many samples, and why on no more.

    Without ``race`` every distinct set is judged on all samples. ``known`` holds judgements that an interrupted sweep
    left, by the bytes of the thresholds, and ``note`` is told of each new one. ``progress`` is called with what is
    done and what there is to do, in samples of all sets, as far as that is known. When the ``clock`` has passed the
    ``deadline`` nothing more is begun: what is judged stands, and a note says how far that went. An error of the judge
    is a row, not the end of the others, but for MemoryError.
    """
    stands = alike(sweep) if race else {trial.amax.tobytes(): trial.amax.tobytes() for trial in sweep.trials}
    first: dict[bytes, Trial] = {}
    for trial in sweep.trials:
        first.setdefault(trial.amax.tobytes(), trial)
    sets = {key: _Set(first[key]) for key in dict.fromkeys(stands.values())}
    for key, made in sets.items():
        made.known = {one.samples: one for one in (known or {}).get(key, ()) if one.samples}
    run = _Race(sweep, sets, stands, judge, spread, note, progress, deadline, clock)
    steps = list(judge.steps()) if race else [judge.steps()[-1]]
    total, late = steps.pop(), False
    for samples in steps:
        late = run.judge(samples, total)
        if late:
            break
        run.drop(samples)
        if any(made.anew for made in run.alive()):  # once is enough
            break
    late = late or run.judge(total, total)
    return run.result(total, late)


class _Race:
    def __init__(
        self,
        sweep: Sweep,
        sets: Mapping[bytes, _Set],
        stands: Mapping[bytes, bytes],
        judge: Stepwise,
        spread: StepSpread,
        note: Callable[[np.ndarray, Judgement], None],
        progress: Callable[[int, int], None],
        deadline: float | None,
        clock: Callable[[], float],
    ) -> None:
        self.sweep, self.sets, self.stands = sweep, sets, stands
        self.go_on, self.as_given = judge.go_on, judge.as_given
        self.spread, self.note, self.progress = spread, note, progress
        self.deadline, self.clock = deadline, clock
        # Where time runs out, something of everything is known: the orders that come by chance first.
        self.order = sorted(sets.values(), key=lambda made: _rank(made.trial))

    def alive(self) -> list[_Set]:
        return [made for made in self.order if made.dropped is None and made.error is None]

    def judge(self, samples: int, total: int) -> bool:
        """Judge what is still in the race on so many samples; did time run out?"""
        asked = []
        for made in self.alive():
            kept = made.known.get(samples) or made.known.get(total)
            if kept is not None and (kept.samples or 0) >= samples:
                made.judgement = kept
            if made.samples < samples:
                asked.append(made)
        done = sum(made.samples for made in self.sets.values())
        left = sum(total - made.samples for made in self.alive())
        items = [
            Step(dict(zip(self.sweep.tensors, made.trial.amax, strict=True)), made.state, samples) for made in asked
        ]
        if items and self._late():
            return True
        ended = iter(self.spread(self.go_on, items))
        for count, (number, found) in enumerate(ended, 1):
            made, before = asked[number], asked[number].samples
            if isinstance(found, MemoryError):
                raise found
            if isinstance(found, Exception):
                trial = made.trial
                logger.warning("%s in batches of %d: %s", trial.method, trial.configuration.batch_size, found)
                made.error = f"{type(found).__name__}: {found}"
                left -= total - before
            else:
                made.judgement, made.state = found
                made.anew = made.state is None
                self.note(made.trial.amax, made.judgement)
                done += made.samples - before
                left -= made.samples - before
            self.progress(done, done + left)
            if count < len(items) and self._late():
                close = getattr(ended, "close", None)
                if close is not None:
                    close()
                return True
        return False

    def _late(self) -> bool:
        return self.deadline is not None and self.clock() >= self.deadline

    def drop(self, samples: int) -> None:
        """Take out of the race what these samples show to be worse."""
        view = self._view(samples)
        standing = choices(view)
        why = fallen(standing, measures_of(view), samples)
        judged = {_arm(choice.own): choice for choice in standing}
        staying: set[bytes] = set()
        reasons: dict[bytes, str] = {}
        for trial in self.sweep.trials:
            key, arm = self.stands[trial.amax.tobytes()], _arm(trial)
            if trial.unusable is not None:
                reasons.setdefault(key, "unusable thresholds, which are never advised")
            elif arm in judged and judged[arm] in why:
                reasons[key] = why[judged[arm]]
            else:
                staying.add(key)
        for key, reason in reasons.items():
            if key not in staying and self.sets[key].dropped is None:
                self.sets[key].dropped, self.sets[key].state = reason, None

    def _view(self, samples: int) -> Sweep:
        """The sweep as these samples show it: what is still in the race, and may be advised."""
        trials = []
        for trial in self.sweep.trials:
            made = self.sets[self.stands[trial.amax.tobytes()]]
            if trial.unusable is None and made.dropped is None and made.judgement is not None and made.error is None:
                trials.append(replace(trial, judgement=_first(made.judgement, samples)))
        return replace(self.sweep, trials=tuple(trials))

    def result(self, total: int, late: bool) -> Sweep:
        trials, sweep = [], self.sweep
        for made in self.sets.values():
            if made.judgement is not None and made.samples == total:
                made.judgement = self.as_given(made.judgement)
        for trial in sweep.trials:
            made = self.sets[self.stands[trial.amax.tobytes()]]
            if made.error is not None:
                trials.append(replace(trial, error=made.error))
                continue
            dropped = made.dropped
            if dropped is None and made.samples < total:
                dropped = LATE
            other = made.trial if made.trial.amax.tobytes() != trial.amax.tobytes() else None
            trials.append(
                replace(
                    trial, judgement=made.judgement, dropped=dropped, judged_as=None if other is None else _said(other)
                )
            )
        return replace(sweep, trials=tuple(trials), notes=(*sweep.notes, *self._notes(total, late)))

    def _notes(self, total: int, late: bool) -> list[str]:
        notes = []
        whole = sum(made.samples == total for made in self.sets.values())
        out = [made for made in self.sets.values() if made.dropped is not None]
        count = len(self.sets)
        if out:
            few = " or ".join(map(str, sorted({made.samples for made in out})))
            notes.append(
                f"Of {count} distinct sets of ranges {whole} {'was' if whole == 1 else 'were'} judged on all {total} "
                f"samples, and {len(out)} on {few}: trials.csv says why those were dropped (--no-race judges all)."
            )
        merged = sum(key != leader for key, leader in self.stands.items())
        if merged:
            notes.append(
                f"{merged} set{'s' if merged > 1 else ''} of ranges differ{'' if merged > 1 else 's'} from another by "
                f"less than 1/127 in every tensor, and {'are' if merged > 1 else 'is'} judged with it."
            )
        if late:
            none = sum(not made.samples and made.error is None for made in self.sets.values())
            some = count - whole - none - len(out) - sum(made.error is not None for made in self.sets.values())
            notes.append(
                f"The time given ended: of {count} sets of ranges {whole} are judged on all {total} samples, {some} on "
                f"fewer, {none} on none; --resume goes on."
            )
        return notes


def alike(sweep: Sweep) -> dict[bytes, bytes]:
    """The distinct sets of ranges of a sweep by their bytes -> the first whose thresholds are all within a step."""
    leaders = np.empty((0, len(sweep.tensors)), np.float64)
    found: dict[bytes, bytes] = {}
    names: list[bytes] = []
    for trial in sweep.trials:
        key = trial.amax.tobytes()
        if key in found:
            continue
        amax = trial.amax.astype(np.float64)
        with np.errstate(invalid="ignore"):  # inf - inf, which are equal
            near = (np.abs(leaders - amax) < STEP * np.maximum(leaders, amax)) | (leaders == amax)
        with_all = np.flatnonzero(near.all(axis=1))
        if with_all.size:
            found[key] = names[with_all[0]]
        else:
            found[key] = key
            names.append(key)
            leaders = np.concatenate([leaders, amax[None]])
    return found


def fallen(found: Sequence[Choice], measures: Sequence[Measure], samples: int) -> dict[Choice, str]:
    """Choices and what they are compared by -> those that another is better than, and in words by how much."""
    why: dict[Choice, str] = {}
    if len(found) < 2:
        return why
    known = [measure for measure in measures if not measure.single]  # what has no interval decides nothing early
    ahead = np.ones((len(found), len(found)), bool)  # [a, b]: b is at least as good by every measure so far
    tail = (1 - CONFIDENCE) / (2 * (len(found) - 1))
    rivals = np.array([[_compete(one, two) for two in found] for one in found])
    for measure in known:
        sets = [matrix(choice.usual, measure) for choice in found] + [matrix([c.own], measure) for c in found]
        readings = measure.scale(np.array([part.mean() for part in sets])).reshape(2, -1)
        resampled = measure.scale(means(sets, RESAMPLES)).reshape(2, len(found), -1)
        each = np.arange(len(found))
        better, lesser = readings.max(axis=0), readings.min(axis=0)  # of what might fall, and of what it falls to
        falling, standing = resampled[readings.argmax(axis=0), each], resampled[readings.argmin(axis=0), each]
        for a, choice in enumerate(found):
            if choice in why:
                continue
            low, high = np.quantile(falling[a] - standing, [tail, 1 - tail], axis=1)
            worse = rivals[a] & ahead[a] & (high < -measure.least(float(better[a])))
            if worse.any():
                b = int(np.where(worse, lesser, -np.inf).argmax())
                difference = measure.show(float(better[a] - lesser[b]), True)
                interval = measure.interval(float(low[b]), float(high[b]))
                why[choice] = f"worse than {found[b]} by {measure.name}: {difference} ({interval}) on {samples} samples"
        ahead &= lesser[None, :] >= better[:, None]
    return why


def _compete(one: Choice, two: Choice) -> bool:
    """May the second drop the first? Batch sizes of a method answer to each other alone."""
    return one is not two and (one.batch_size is None or one.group == two.group)


def _arm(trial: Trial) -> tuple[str, str | None, int | None] | None:
    """What `choices` puts a trial into; None for what nobody can choose."""
    growth, size = trial.configuration.growth, trial.configuration.batch_size
    if not method(trial.method).depends_on_batches:
        return trial.method, None, None
    if growth not in GROWTH:
        return None
    return trial.method, growth, None if GROWTH[growth].invariant else size


def _first(judgement: Judgement, samples: int) -> Judgement:
    """A judgement -> what of it is about the first samples."""
    if judgement.samples is None or judgement.samples <= samples:
        return judgement

    def cut(values: np.ndarray | None) -> np.ndarray | None:
        return values if values is None or values.size != judgement.samples else values[:samples]

    return replace(
        judgement,
        accuracy=cut(judgement.accuracy),
        agreement=cut(judgement.agreement),
        noise=cut(judgement.noise),
        samples=samples,
    )


def _rank(trial: Trial) -> tuple[bool, int]:
    return trial.configuration.order not in BY_CHANCE, trial.configuration.seed or 0


def _said(trial: Trial) -> str:
    seed = "" if trial.configuration.seed is None else f" {trial.configuration.seed}"
    return f"{trial.method}, {trial.configuration.growth}, batches of {trial.configuration.batch_size}, " + (
        f"{trial.configuration.order}{seed}"
    )

"""How a sweep's ranges perform: each distinct set of them is judged once, here or on other machines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from trtcal.passes.executor import one_by_one
from trtcal.sweep.trials import Judgement, Sweep, Trial

logger = logging.getLogger(__name__)

LATE = "the time that was given had passed"
"""Why a trial was judged on no more samples, or on none, where that is all."""

Judge = Callable[[Mapping[str, np.float32]], Judgement]
"""Tensor -> amax; how the model performs with these ranges."""

Spread = Callable[[Judge, Sequence[Mapping[str, np.float32]]], Iterable[tuple[int, Judgement | Exception]]]
"""Judge and sets of ranges -> the number of each and what came of it, as they end: an executor's ``spread``."""


@dataclass(frozen=True)
class Step:
    """A set of ranges, what is known of it from fewer samples, and on how many to judge it in all."""

    amax: Mapping[str, np.float32]
    so_far: Any
    samples: int


class Stepwise(Protocol):
    """A judge that can stop after a part of the samples, and go on."""

    def steps(self) -> Sequence[int]:
        """Nothing -> after how many samples sets of ranges are to be compared; the last is all of them."""

    def go_on(self, step: Step) -> tuple[Judgement, Any]:
        """A set of ranges -> how the model performs with it on the first samples, and with what to go on."""

    def as_given(self, judgement: Judgement) -> Judgement:
        """A judgement on all samples, in the order in which they were taken -> in the order that they have."""


StepSpread = Callable[[Callable[[Step], Any], Sequence[Step]], Iterable[tuple[int, Any]]]
"""As :data:`Spread`, of a `Stepwise` judge's steps."""


def judged(
    sweep: Sweep,
    judge: Judge,
    *,
    done: Mapping[bytes, Judgement] | None = None,
    note: Callable[[np.ndarray, Judgement], None] = lambda amax, judgement: None,
    spread: Spread = one_by_one,
    progress: Callable[[int, int], None] = lambda done, total: None,
    deadline: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Sweep:
    """A sweep -> the same, every trial with its judgement, or with the error that the judge raised.

    ``done`` holds judgements that an interrupted sweep left, by the bytes of the thresholds, (tensors,) float32, and
    ``note`` is told of each new one. ``progress`` is called with how many of so many distinct sets are judged. When
    the ``clock`` has passed the ``deadline`` no judgement is begun, and a note says how many there are. Raises
    MemoryError, which is no failure of one configuration.
    """
    first: dict[bytes, Trial] = {}
    for trial in sweep.trials:
        first.setdefault(trial.amax.tobytes(), trial)
    found: dict[bytes, Judgement | str] = dict(done or {})
    asked = [trial for key, trial in first.items() if key not in found]
    items = [dict(zip(sweep.tensors, trial.amax, strict=True)) for trial in asked]
    late = bool(items) and deadline is not None and clock() >= deadline
    for count, (number, made) in enumerate([] if late else spread(judge, items), 1 + len(first) - len(asked)):
        trial = asked[number]
        if isinstance(made, MemoryError):
            raise made
        if isinstance(made, Exception):  # a row, not the end of the others
            logger.warning("%s in batches of %d: %s", trial.method, trial.configuration.batch_size, made)
            found[trial.amax.tobytes()] = f"{type(made).__name__}: {made}"
        else:
            found[trial.amax.tobytes()] = made
            note(trial.amax, made)
        progress(count, len(first))
        late = count < len(first) and deadline is not None and clock() >= deadline
        if late:
            break
    trials = []
    for trial in sweep.trials:
        what = found.get(trial.amax.tobytes())
        if what is None:
            trials.append(replace(trial, dropped=LATE))
        else:
            trials.append(replace(trial, error=what) if isinstance(what, str) else replace(trial, judgement=what))
    told = f"The time given ended: {len(found)} of {len(first)} sets of ranges are judged; --resume goes on."
    return replace(sweep, trials=tuple(trials), notes=(*sweep.notes, told) if late else sweep.notes)

"""What a sweep is going to do, and for about how long, said before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from trtcal.model.open import FloatRunner, Model, single_rows
from trtcal.passes.sharing import resolved
from trtcal.ranges.growth import GROWTH
from trtcal.ranges.thresholds import method
from trtcal.samples.batches import Batches
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.trials import Configuration, configurations

# Of one core, where benchmarks/results/sweep.md was made; a machine differs by less than models do.
PER_ELEMENT = 1e-9  # seconds for counting it
PER_TENSOR = 50e-6  # for one sample's tensor
PER_REPLAY = 120e-6  # for one tensor's histogram in one arrangement
INT8 = 1.3  # runs of the float model that one with Q/DQ takes
RACED = 0.75  # of all samples of all sets, what is judged in a race
REST = 1.0  # seconds for the report and the first call of compiled loops


class Work(NamedTuple):
    """What there is to do at most: passes over the data, samples of one, sets of ranges, samples for each of them."""

    passes: int
    samples: int
    sets: int
    judged: int


class Cost(NamedTuple):
    """Seconds of one core for a sample: to load it, in the pass, and as INT8; and how many tensors are calibrated."""

    load: float
    collect: float
    judge: float
    tensors: int


def work(plan: SweepPlan, batches: Batches, judged: Batches | None) -> Work:
    """Plan and samples -> what there is to do; ``judged`` is None where nothing is."""
    grid, _ = _grid(plan, batches)
    sets = 0
    for choice in map(method, plan.methods):
        if not choice.clips or not choice.depends_on_batches:
            sets += 1
        else:
            sets += len({_makes(one) for one in grid})
    number = 0 if judged is None else judged.num_samples
    return Work(2 if plan.exact else 1, batches.num_samples, 0 if judged is None else sets, number)


def probe(
    model: Model, batches: Batches, *, judged: bool = True, clock: Callable[[], float] = time.perf_counter
) -> Cost:
    """Model and samples -> what one sample costs, of the first batch, by running it. Raises what a pass raises.

    Not ``judged``, it is not run as a judge does, which costs nothing then.
    """
    model = resolved(model, batches)
    start = clock()
    batch = next(iter(batches))
    load = (clock() - start) / len(batch.samples)
    row = next(single_rows(batch))

    def least(run: Callable[[], object]) -> float:
        """The second time: the first one allocates."""
        run()
        begun = clock()
        run()
        return clock() - begun

    with FloatRunner(model) as runner:
        found = runner(row)
        collect = least(lambda: runner(row))
    elements = sum(np.size(array) for array in found.values())
    judge = 0.0
    if judged:
        single = model.with_batch_size(1)
        with single.runner(single.reached(single.whole), threads=1) as plain:
            judge = least(lambda: plain(row))
    collect += elements * PER_ELEMENT + len(found) * PER_TENSOR
    return Cost(load, collect, INT8 * judge, len(found))


def seconds(plan: SweepPlan, batches: Batches, doing: Work, cost: Cost, workers: int) -> float:
    """Plan, what there is to do and what a sample costs -> about how many seconds that takes so many at once."""
    grid, _ = _grid(plan, batches)
    collecting = doing.passes * doing.samples * (cost.load + cost.collect)
    replaying = len(grid) * cost.tensors * PER_REPLAY
    share = RACED if plan.race else 1.0
    judging = doing.judged * (cost.load + cost.judge * (1 + share * doing.sets)) if doing.sets else 0.0
    return REST + (collecting + replaying + judging) / workers


def said(doing: Work, about: float | None) -> str:
    """What there is to do, and about how long it takes, None if nobody knows -> one line."""
    passes = "1 pass" if doing.passes == 1 else f"{doing.passes} passes"
    text = f"{passes} over {doing.samples} sample{'s' if doing.samples > 1 else ''}"
    if doing.sets:
        text += f", at most {doing.sets} set{'s' if doing.sets > 1 else ''} of ranges on {doing.judged}"
    return text if about is None else f"about {in_words(about)}: {text}"


def in_words(about: float) -> str:
    """Seconds -> a rough duration for people."""
    for limit, unit, name in ((90, 1, "second"), (5400, 60, "minute"), (float("inf"), 3600, "hour")):
        if about < limit:
            count = max(1, round(about / unit))
            if count > 20:
                count = 5 * round(count / 5)
            return f"{count} {name}{'s' if count > 1 else ''}"
    raise ValueError(f"expected seconds, got {about}")


def _grid(plan: SweepPlan, batches: Batches) -> tuple[list[Configuration], list[str]]:
    return configurations(plan.batch_sizes, plan.orders, plan.seeds, plan.growths, batches.num_samples)


def _makes(one: Configuration) -> tuple[object, ...]:
    """A configuration -> what of it a method that depends on batches sees."""
    rule = GROWTH.get(one.growth)
    return (one.growth,) if rule is not None and rule.invariant else (one.growth, one.batch_size, one.order, one.seed)

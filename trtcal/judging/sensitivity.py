"""Which tensors and layers INT8 hurts, and which few of them to leave in FP16 to get most of it back.

Three looks, from cheap to dear. One FP32 pass tells the SQNR of every tensor's own rounding. Then layers are
measured one at a time in the model as a whole: alone in INT8, and alone *not* in INT8; which ones, a sum of the
roundings that each layer reads decides. Last, layers are taken out of INT8 one after the other, at each step
the one that brings most back, until enough is recovered.

The measure is the relative noise at the model's outputs (1 / SQNR as a power ratio, mean over the float outputs that
depend on a layer in INT8), or what a metric loses against FP32. Noise powers of single layers add up roughly, so shares
of it mean something; a metric moves in steps of one sample, and needs many.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from trtcal.errors import DataError
from trtcal.files.brief import brief
from trtcal.judging.accuracy import Labels, Reference, Score
from trtcal.judging.evaluation import blaming_batch_size, for_batches, for_metric, plain
from trtcal.judging.metrics import Metric
from trtcal.judging.quantization_error import (
    LayerDamage,
    TensorDamage,
    Trial,
    layer_damage,
    noise_ratio,
    rounding_sqnr,
    tensor_damage,
)
from trtcal.model.open import Model, Source, open_model
from trtcal.model.overwriting import json_of
from trtcal.model.runner import Runner
from trtcal.passes.executor import Executor, Here
from trtcal.passes.sharing import resolved
from trtcal.qdq.insert import MIN_OPSET, check_exclude, check_int8, fitting, insert_qdq, quantizable
from trtcal.qdq.layer_names import beyond_trtexec, for_exclude, for_polygraphy, for_trtexec
from trtcal.qdq.placement import PLACEMENTS, place
from trtcal.qdq.reached import int8_outputs
from trtcal.samples.batches import Batches

if TYPE_CHECKING:
    pass

FORMAT = "trtcal-sensitivity-1"
REPORT = json_of("report of trtcal sensitivity", FORMAT)
LAYERS = 16  # measured one at a time, unless told otherwise
RECOVER = 0.9  # share of the loss at which the list of layers to leave out is long enough
TRIES = 3  # candidates measured for each place on that list

Progress = Callable[[int, int], None]
"""(trials done, trials in all, as far as known) -> nothing."""


@dataclass(frozen=True)
class Step:
    """One more layer out of INT8, together with those of the steps before: the trial, the share recovered."""

    layer: LayerDamage
    trial: Trial
    recovered: float


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What :func:`sensitivity` found.

    ``tensors`` from worst to best SQNR; ``layers`` by what leaving each one out recovers, then those not
    measured by their estimate; ``curve`` the list of layers to leave out; ``ended`` why it is no longer.
    """

    samples: int
    placement: str
    metric: str | None
    fp32: float | None
    int8: Trial
    tensors: tuple[TensorDamage, ...]
    layers: tuple[LayerDamage, ...]
    curve: tuple[Step, ...]
    ended: str

    __repr__ = brief

    def recovered(self, trial: Trial) -> float:
        """A trial -> the share of INT8's loss that it does not have; nan where INT8 loses nothing."""
        return _recovered(trial, self.int8, self.fp32)


def sensitivity(
    model: Source,
    scales: Mapping[str, np.float32],
    batches: Batches,
    *,
    placement: str = "all",
    exclude: Sequence[str] = (),
    labels: Labels | None = None,
    metric: tuple[str, Metric] | None = None,
    layers: int = LAYERS,
    seconds: float = math.inf,
    recover: float = RECOVER,
    executor: Executor | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Sensitivity:
    """FP32 model, scales and samples -> :class:`Sensitivity`. Batches and FP32 outputs are held in memory.

    ``placement`` and ``exclude`` are those of :func:`trtcal.qdq.insert.insert_qdq`. ``metric``, a name and a function,
    is measured with ``labels`` and may be better high or low; where it loses nothing, noise counts. At most
    ``layers`` layers are measured one at a time, those with the worst estimates. No trial begins after
    ``seconds``, half of which the first two looks may use; what was measured until then is as without a limit.
    The list of layers ends where ``recover`` of the loss is recovered. Layers that are measured one at a time are tasks
    of the ``executor`` (default: here, one after the other).

    ValueError for options out of range or a metric without labels; ModelError where nothing becomes INT8.
    """
    if layers < 0 or seconds <= 0 or not 0 < recover <= 1:
        raise ValueError(f"needs layers >= 0, seconds > 0, 0 < recover <= 1; got {layers}, {seconds}, {recover}")
    if metric is not None and labels is None:
        raise ValueError(f"metric {metric[0]!r} needs labels, and the samples have none")
    if placement not in PLACEMENTS:
        raise ValueError(f"unknown placement {placement!r}; choose one of {', '.join(PLACEMENTS)}")
    start = clock()
    model = open_model(model)
    model.calibrated  # noqa: B018  refuses a model that is quantized, before anything else finds fault with it
    check_exclude(model, exclude)
    for_metric(model, labels, asked=metric is not None)
    if model.unknown:
        scales = {name: scale for name, scale in scales.items() if name not in model.unknown.tensors}
        model = model.for_judging()
        exclude = fitting(model, exclude)
    model = resolved(model, batches)
    kept = list(batches)
    with blaming_batch_size(model, batches.batch_size):
        ready = for_batches(model, batches.batch_size).with_weights()
        with ready.runner() as runner:
            reference = Reference(runner, kept, labels, metric)
        ready = ready.with_opset(MIN_OPSET, kept)
        graph = quantizable(ready)
    fp32 = _value(reference.score())
    plan = place(graph, scales, PLACEMENTS[placement], exclude)
    check_int8(plan.reads, plan.skipped.items(), model.name)
    compared = (
        reference.floating.intersection(int8_outputs(ready, scales, placement=placement, exclude=exclude)) or None
    )
    sqnr_db = rounding_sqnr(model, plan, kept)
    ranked = list(layer_damage(graph, plan, sqnr_db))
    everything = dict.fromkeys(pattern for damage in ranked for pattern in damage.exclude)
    count = min(layers, len(ranked))
    total, done = 1 + 2 * count + count, 0

    quantized = partial(_quantized, ready, scales, placement, tuple(exclude), reference, compared)

    def told(trial: Trial) -> Trial:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, max(total, done))
        return trial

    def measure(left_out: Iterable[str]) -> Trial:
        return told(quantized(tuple(left_out)))

    int8 = measure([])
    pairs = [(damage.exclude, tuple(p for p in everything if p not in damage.exclude)) for damage in ranked[:count]]
    trials = (executor or Here()).spread(quantized, [left_out for pair in pairs for left_out in pair])
    found: dict[int, Trial] = {}
    while len(found) < 2 * count and (len(found) % 2 or clock() - start <= seconds / 2):
        number, trial = next(trials)
        if isinstance(trial, Exception):
            raise trial
        found[number] = told(trial)
    trials.close()
    for position, damage in enumerate(ranked[:count]):
        if {2 * position, 2 * position + 1} <= found.keys():
            ranked[position] = replace(damage, without=found[2 * position], only=found[2 * position + 1])

    def recovered(trial: Trial) -> float:
        return _recovered(trial, int8, fp32)

    # The sort is stable: layers that were not measured keep the estimates' order.
    ranked.sort(key=lambda damage: math.inf if damage.without is None else -_or_zero(recovered(damage.without)))
    curve, ended = _curve(ranked, measure, recovered, recover, lambda: clock() - start > seconds)
    return Sensitivity(
        samples=reference.samples,
        placement=placement,
        metric=None if metric is None else metric[0],
        fp32=fp32,
        int8=int8,
        tensors=tensor_damage(graph, plan, sqnr_db),
        layers=tuple(ranked),
        curve=curve,
        ended=ended,
    )


def _quantized(
    model: Model,
    scales: Mapping[str, np.float32],
    placement: str,
    exclude: tuple[str, ...],
    reference: Reference,
    compared: frozenset[str] | None,
    left_out: tuple[str, ...],
) -> Trial:
    """Layers that stay in float besides those in ``exclude`` -> what the model loses with all others in INT8."""
    result = insert_qdq(model, scales, placement=placement, exclude=[*exclude, *left_out])
    with model.runner(result.model) as runner:
        return _trial(reference, runner, compared)


def section(result: Sensitivity) -> dict[str, Any]:
    """Result -> plain data for JSON and for the report; inf and nan are text and null."""
    left_out = [step.layer for step in result.curve]
    patterns = dict.fromkeys(pattern for damage in left_out for pattern in damage.exclude)
    names = tuple(dict.fromkeys(name for damage in left_out for name in damage.tensorrt))
    numbered = dict.fromkeys(name for damage in left_out for name in damage.numbered)

    def trial(one: Trial | None) -> dict[str, Any] | None:
        if one is None:
            return None
        return {
            "sqnr_db": plain(one.sqnr_db),
            "metric": None if one.metric is None else plain(one.metric),
            "recovered": plain(result.recovered(one)),
        }

    return {
        "format": FORMAT,
        "samples": result.samples,
        "placement": result.placement,
        "metric": result.metric,
        "fp32": result.fp32,
        "int8": trial(result.int8),
        "tensors": [
            {"tensor": t.tensor, "amax": t.amax, "sqnr_db": plain(t.sqnr_db), "layers": list(t.layers)}
            for t in result.tensors
        ],
        "layers": [
            {
                "layer": damage.layer,
                "op_type": damage.op_type,
                "tensors": list(damage.tensors),
                "weights": list(damage.weights),
                "estimate_db": plain(damage.estimate_db),
                "only": trial(damage.only),
                "without": trial(damage.without),
                "exclude": list(damage.exclude),
                "tensorrt": list(damage.tensorrt),
            }
            for damage in result.layers
        ],
        "curve": [{"layer": step.layer.layer, **(trial(step.trial) or {})} for step in result.curve],
        "ended": result.ended,
        "options": {
            "trtcal": for_exclude(patterns),
            "trtexec": for_trtexec(names) if names else "",
            "trtexec_cannot_name": [*beyond_trtexec(names), *numbered],
            "polygraphy": for_polygraphy(names) if names else "",
        }
        if left_out
        else {},
    }


def _recovered(trial: Trial, int8: Trial, fp32: float | None) -> float:
    if trial.metric is not None and int8.metric is not None and fp32 is not None and fp32 != int8.metric:
        return (trial.metric - int8.metric) / (fp32 - int8.metric)
    return 1 - trial.noise / int8.noise if int8.noise else math.nan


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _curve(
    ranked: Iterable[LayerDamage],
    measure: Callable[[Iterable[str]], Trial],
    recovered: Callable[[Trial], float],
    recover: float,
    late: Callable[[], bool],
) -> tuple[tuple[Step, ...], str]:
    """Layers measured one at a time -> the list of those to leave out, and why it ends.

    Greedy and lazy: what a layer brought before bounds, about, what it brings now, so a candidate that still
    beats the next one's old gain is taken unseen of the rest. Source: Minoux, Accelerated greedy algorithms for
    maximizing submodular set functions (1978).
    """
    gains = {damage: recovered(damage.without) for damage in ranked if damage.without is not None}
    waiting = list(gains)
    steps: list[Step] = []
    reached = 0.0
    if any(map(math.isnan, gains.values())):
        return (), "INT8 loses nothing here"
    while waiting:
        if reached >= recover:
            return tuple(steps), f"{recover:.0%} of the loss is recovered"
        tried: dict[LayerDamage, Trial] = {}
        for damage, after in zip(waiting[:TRIES], [*waiting[1:], None], strict=False):
            if late():
                break
            left_out = [pattern for step in steps for pattern in step.layer.exclude]
            fresh = measure([*left_out, *damage.exclude]) if steps else damage.without
            assert fresh is not None  # or it would not be among the gains
            tried[damage] = fresh
            gains[damage] = recovered(fresh) - reached
            if after is None or gains[damage] >= gains[after]:
                break
        if not tried:
            return tuple(steps), "the time is over"
        best = max(tried, key=lambda damage: gains[damage])
        if gains[best] <= 0:
            return tuple(steps), "no other layer that was measured recovers more"
        reached = recovered(tried[best])
        steps.append(Step(best, tried[best], reached))
        waiting.remove(best)
        waiting.sort(key=lambda damage: -gains[damage])
    if reached >= recover:
        return tuple(steps), f"{recover:.0%} of the loss is recovered"
    return tuple(steps), "no other layer was measured"


def _trial(reference: Reference, runner: Runner, compared: frozenset[str] | None = None) -> Trial:
    """The FP32 model and another -> what the other one lost, in these outputs (None: all)."""
    agreement, score = reference.compare(runner, compared)
    ratios = [
        noise_ratio(output.sqnr_db)
        for output in agreement.outputs.values()
        if output.sqnr_db != -math.inf  # an output of zeros has no signal to compare noise with
    ]
    if not ratios:
        raise DataError("every output of the FP32 model is zero for all samples: there is nothing to compare with")
    return Trial(math.fsum(ratios) / len(ratios), _value(score))


def _value(score: Score | None) -> float | None:
    return None if score is None else score.value

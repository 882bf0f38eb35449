"""The whole CPU path: ONNX model and batches -> calibration cache."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trtcal.cache.cache import CalibrationCache
from trtcal.files.brief import brief
from trtcal.model.open import FloatRunner, Model, Source, open_model
from trtcal.passes.collector import Progress
from trtcal.passes.executor import Executor, Here
from trtcal.passes.sharing import peeked
from trtcal.ranges.clipping import CLIPS_MUCH, in_words, why_unusable
from trtcal.ranges.growth import growth_rule, power_of_two
from trtcal.ranges.histogram import FINE_BINS, NUM_BINS, GrowthRule, Histogram, HistogramBuilder, abs_max
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import method as threshold_method
from trtcal.ranges.thresholds import spelt
from trtcal.samples.batches import Batches
from trtcal.samples.streams import batches_of

logger = logging.getLogger(__name__)

TRT_VERSION = "8.6.1"


class Unusable(Protocol):
    """What a `Calibration` and a `trtcal.calibration.file.CacheFile` know of thresholds that are no ranges."""

    @property
    def unusable_thresholds(self) -> Mapping[str, str]:
        """Tensor -> why its threshold is unusable."""

    @property
    def usable_methods(self) -> tuple[str, ...]:
        """Methods without any such threshold, from the same statistics; none where nothing is unusable."""


@dataclass(frozen=True)
class Calibration:
    """A cache and where it comes from.

    ``unusable`` maps a tensor to the reason why it has no range. ``clipped`` maps each tensor whose
    threshold cuts off more than 1% of its elements to that share. ``hidden`` counts tensors inside If, Loop
    and Scan, which nobody can see from outside. ``unusable_thresholds`` maps each tensor whose threshold is no range
    for it (:mod:`trtcal.ranges.clipping`) to the reason, and ``usable_methods`` are those that choose none like it from
    the same statistics; empty where nothing is wrong.
    """

    cache: CalibrationCache
    stats: ActivationStats
    unusable: Mapping[str, str]
    clipped: Mapping[str, float]
    hidden: int
    unusable_thresholds: Mapping[str, str] = field(default_factory=dict)
    usable_methods: tuple[str, ...] = ()

    __repr__ = brief


def calibrate(
    model: Source,
    batches: Iterable[Any],
    method: str = "entropy",
    *,
    growth: str = "double",
    trt_version: str = TRT_VERSION,
    algorithm: str | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_key: str = "",
    progress: Progress | None = None,
) -> Calibration:
    """Model and batches ``{input: (N, ...)}`` -> ranges of every tensor TensorRT would calibrate.

    The model is the path of an ONNX file, its content, a ModelProto, or what `open_model` made of one of these.

    Batches are any iterable of dicts of arrays or tensors, a torch DataLoader too; for a model of one input an
    array or a pair (array, labels) will do.

    ``method`` is a name in :data:`trtcal.METHODS`, with a parameter where it takes one: ``percentile:99.9``. With
    ``growth="double"``, entropy is TensorRT's own for these batches in this order; ``"power-of-two"`` makes it
    independent of both.
    ``algorithm`` is the one named in the cache's header (default: the one TensorRT would name for the
    method; DLA and DeepStream want EntropyCalibration2). ``workers`` samples run at once (default: one per
    core); an ``executor`` runs them elsewhere. The checkpoint arguments are those of
    :func:`trtcal.passes.collect.collect`.

    Raises ModelError for a model that cannot be calibrated and DataError for batches that do not fit it.
    """
    threshold_method(method)  # a wrong name is cheaper to hear of before the pass than after it
    growth_rule(growth)
    if executor is not None and workers is not None:
        raise ValueError("give workers, or an executor that has its own; not both")
    model, batches = peeked(open_model(model), batches)
    stats = (executor or Here(workers)).run_pass(
        partial(FloatRunner, model),
        batches if isinstance(batches, Batches) else batches_of(batches, model.inputs),
        growth=growth,
        checkpoint=checkpoint,
        checkpoint_key=checkpoint_key,
        progress=progress,
    )
    made = from_stats(model, stats, method, trt_version=trt_version, algorithm=algorithm)
    said = unusable_in_words(method, growth, made)
    if said is not None:
        logger.warning("%s: %s", model.name, said)
    return made


def unusable_in_words(method: str, growth: str, found: Unusable) -> str | None:
    """Method, growth rule, and what was found of their thresholds -> which are unusable, and what to do; or None."""
    if not found.unusable_thresholds:
        return None
    by = threshold_method(method)
    same = "; TensorRT's own calibrator does the same" if by.algorithm and growth_rule(growth).tensorrt else ""
    *some, last = found.usable_methods or ["minmax"]
    choice = f"{', '.join(some)}{' or ' if some else ''}{last}"
    words = in_words(found.unusable_thresholds)
    return f"unusable by {by.name}: {words}{same}; calibrate by {choice} instead"


def from_stats(
    model: Source,
    stats: ActivationStats,
    method: str = "entropy",
    *,
    trt_version: str = TRT_VERSION,
    algorithm: str | None = None,
) -> Calibration:
    """Statistics of a pass over the model -> ranges by any method, without running the model again."""
    threshold = threshold_method(method)
    model = open_model(model)
    unusable: dict[str, str] = {
        name: _without_range(stats.samples, tensor.sample_amax)
        for name, tensor in stats.tensors.items()
        if not np.isfinite(tensor.amax)
    }
    unusable |= {
        name: "is a constant that holds inf or nan"
        for name, value in model.calibrated.constants.items()
        if not np.isfinite(abs_max(value))
    }
    grids = _grids(model, stats, method)
    found = {name: threshold(grid) for name, grid in grids.items()}
    clipped = {
        name: share
        for name in stats.tensors
        if name in grids and (share := grids[name].clipped(float(found[name]))) > CLIPS_MUCH
    }
    amax = carried(model.calibrated.sources, found)
    for name, source in model.calibrated.carried.items():
        if source in unusable:
            unusable.setdefault(name, f"carries the range of {source!r}, which {unusable[source]}")
    unusable |= {name: model.unknown.why(name) for name in model.unknown.uncalibrated if name not in amax}
    overflowed = [name for name, value in amax.items() if not np.isfinite(value)]
    for name in overflowed:
        unusable[name] = "its histogram's limit grew past the largest float32"
        del amax[name]
    cache = CalibrationCache.from_amax(amax, trt_version=trt_version, algorithm=algorithm or threshold.header)
    lost = _unusable_thresholds(model, stats, grids, found)
    usable = _usable_methods(model, stats, threshold.name) if lost else ()
    return Calibration(cache, stats, unusable, clipped, model.calibrated.hidden, lost, usable)


def _grids(model: Model, stats: ActivationStats, method: str) -> dict[str, Histogram]:
    """The histograms of tensors and constants that the method's thresholds come from, where there are any."""
    fine = on_fine_grid(method, stats.growth)
    num_bins, grow = (FINE_BINS, power_of_two) if fine else (NUM_BINS, growth_rule(stats.growth).grow)
    found = {
        name: tensor.histogram if fine else tensor.batch_grid or tensor.histogram
        for name, tensor in stats.tensors.items()
        if np.isfinite(tensor.amax)
    }
    for name, value in model.calibrated.constants.items():
        if np.isfinite(abs_max(value)):
            found[name] = _constant_histogram(value, num_bins, grow)
    return found


def _unusable_thresholds(
    model: Model, stats: ActivationStats, grids: Mapping[str, Histogram], found: Mapping[str, np.float32]
) -> dict[str, str]:
    """Why which thresholds are unusable; those of what the model is fed first.

    Clipping is counted on the fine histograms, whose first bin holds little but zeros.
    """
    inputs = {spec.name for spec in model.inputs}
    why = {}
    for name in sorted(grids, key=lambda name: name not in inputs):
        seen = stats.tensors[name].histogram if name in stats.tensors else grids[name]
        why[name] = why_unusable(seen, float(found[name]), is_input=name in inputs)
    return {name: reason for name, reason in why.items() if reason is not None}


def _usable_methods(model: Model, stats: ActivationStats, but: str) -> tuple[str, ...]:
    """All methods but one, each with its default parameter, whose thresholds from the statistics are all usable."""
    usable = []
    for name in spelt():
        grids, by = _grids(model, stats, name), threshold_method(name)
        found = {tensor: by(grid) for tensor, grid in grids.items()}
        if name != but and not _unusable_thresholds(model, stats, grids, found):
            usable.append(name)
    return tuple(usable)


def _without_range(samples: Sequence[str], sample_amax: np.ndarray) -> str:
    """Samples, and their largest |x| in a tensor that is not finite in all -> why it has no range."""
    nan = np.isnan(sample_amax)
    held, odd = ("nan, which later nodes replace,", nan) if nan.any() else ("-inf, as masks do,", np.isinf(sample_amax))
    return f"holds {held} in {odd.sum()} of {len(odd)} samples (first: {samples[int(np.argmax(odd))]})"


def carried(sources: Mapping[str, str], found: Mapping[str, np.float32]) -> dict[str, np.float32]:
    """Ranges of the tensors that were looked at -> those of all that have one, in the order a cache lists them.

    ``sources`` are those of the model's :class:`trtcal.model.calibrated.CalibrationGraph`.
    """
    return {name: found[source] for name, source in sources.items() if source in found}


def on_fine_grid(method: str, growth: str) -> bool:
    """Do ranges by the method come from the fine histogram, which does not depend on batches, order or growth?

    Only a method that depends on batches asks for the grid that these grew by the rule.
    """
    return growth_rule(growth).fine or not threshold_method(method).depends_on_batches


def _constant_histogram(value: np.ndarray, num_bins: int, grow: GrowthRule) -> Histogram:
    builder = HistogramBuilder(num_bins, grow)
    builder.add(value, abs_max(value))
    return builder.build()

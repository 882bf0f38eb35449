"""The whole CPU path: ONNX model and batches -> calibration cache."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trtcal.cache.cache import CalibrationCache
from trtcal.model.open import FloatRunner, Source, open_model
from trtcal.passes.collector import Progress
from trtcal.passes.executor import Executor, Here
from trtcal.passes.sharing import peeked
from trtcal.ranges.growth import growth_rule, power_of_two
from trtcal.ranges.histogram import FINE_BINS, NUM_BINS, GrowthRule, Histogram, HistogramBuilder, abs_max
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import method as threshold_method
from trtcal.samples.batches import Batches
from trtcal.samples.streams import batches_of

logger = logging.getLogger(__name__)

CLIPS_MUCH = 0.01  # share of a tensor's elements; above it a threshold deserves a look
TRT_VERSION = "8.6.1"


@dataclass(frozen=True)
class Calibration:
    """A cache and where it comes from.

    ``unusable`` maps a tensor to the reason why it has no range. ``clipped`` maps each tensor whose
    threshold cuts off more than 1% of its elements to that share. ``hidden`` counts tensors inside If, Loop
    and Scan, which nobody can see from outside.
    """

    cache: CalibrationCache
    stats: ActivationStats
    unusable: Mapping[str, str]
    clipped: Mapping[str, float]
    hidden: int


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
    return from_stats(model, stats, method, trt_version=trt_version, algorithm=algorithm)


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
    fine = on_fine_grid(method, stats.growth)
    num_bins, grow = (FINE_BINS, power_of_two) if fine else (NUM_BINS, growth_rule(stats.growth).grow)
    unusable: dict[str, str] = {}
    clipped: dict[str, float] = {}
    found: dict[str, np.float32] = {}
    for name, tensor in stats.tensors.items():
        if not np.isfinite(tensor.amax):
            unusable[name] = _without_range(stats.samples, tensor.sample_amax)
            continue
        histogram = tensor.histogram if fine else tensor.batch_grid or tensor.histogram
        found[name] = threshold(histogram)
        share = histogram.clipped(float(found[name]))
        if share > CLIPS_MUCH:
            clipped[name] = share
    for name, value in model.calibrated.constants.items():
        if not np.isfinite(abs_max(value)):
            unusable[name] = "is a constant that holds inf or nan"
        else:
            found[name] = threshold(_constant_histogram(value, num_bins, grow))
    amax = carried(model.calibrated.sources, found)
    for name, source in model.calibrated.carried.items():
        if source in unusable:
            unusable.setdefault(name, f"carries the range of {source!r}, which {unusable[source]}")
    overflowed = [name for name, value in amax.items() if not np.isfinite(value)]
    for name in overflowed:
        unusable[name] = "its histogram's limit grew past the largest float32"
        del amax[name]
    cache = CalibrationCache.from_amax(amax, trt_version=trt_version, algorithm=algorithm or threshold.header)
    return Calibration(cache, stats, unusable, clipped, model.calibrated.hidden)


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

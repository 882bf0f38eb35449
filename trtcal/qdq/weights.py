"""Scales for weights: per output channel the largest |w|, and what other methods would cost.

Practice is to take weights by their largest |w| and only activations by entropy or percentile, because a
clipped weight is wrong for every input. :func:`weight_clipping_cost` shows what that rule is worth for a
given model: the SQNR of each weight tensor under every method of :data:`WEIGHT_METHODS`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from trtcal.errors import SettingError
from trtcal.model.constants import lifted
from trtcal.model.open import Source, open_model
from trtcal.model.topology import Graph
from trtcal.qdq.placement import weights_of
from trtcal.ranges.histogram import NUM_BINS, HistogramBuilder, abs_max
from trtcal.ranges.thresholds import check_range, entropy

WeightScales = Callable[[np.ndarray, "int | None"], np.ndarray]
"""(weights, axis) -> float32 scales: one per index along ``axis``, or a single one where it is None."""


def weight_scales(array: np.ndarray, axis: int | None) -> np.ndarray:
    """Weights -> float32 scales max|w| / 127 per channel along ``axis``, shape (channels,); () if it is None.

    A channel of zeros gets scale 1.0: its int8 values are 0 under any scale, and TensorRT wants a positive
    one. So does a channel so small that its scale would be a denormal number.
    """
    return _clipped(array, axis, np.inf)


def percentile_weight_scales(array: np.ndarray, axis: int | None, q: float) -> np.ndarray:
    """As :func:`weight_scales`, clipped at the smallest |w| that ``q`` percent of all weights do not exceed."""
    check_range(q, str(q))
    threshold = np.percentile(np.abs(array), q, method="inverted_cdf") if array.size else 0
    return _clipped(array, axis, threshold)


def entropy_weight_scales(array: np.ndarray, axis: int | None) -> np.ndarray:
    """As :func:`weight_scales`, clipped at TensorRT's entropy threshold for all weights together."""
    values = np.array(array, np.float32)  # a copy, since the compiled kernels refuse ONNX's read-only arrays
    builder = HistogramBuilder(NUM_BINS, lambda limit, amax: amax)
    builder.add(values, abs_max(values))
    return _clipped(array, axis, entropy(builder.build()))


# The thresholds are those of the whole tensor, as calibrators that take weights by histogram find them: a
# channel has too few weights for 2048 bins, or for a 99.9th percentile. No channel's scale exceeds max|w|.
WEIGHT_METHODS: dict[str, WeightScales] = {
    "max": weight_scales,
    "percentile:99.999": functools.partial(percentile_weight_scales, q=99.999),
    "percentile:99.99": functools.partial(percentile_weight_scales, q=99.99),
    "percentile:99.9": functools.partial(percentile_weight_scales, q=99.9),
    "entropy": entropy_weight_scales,
}
"""Columns of the table of weights; those without a number are all that there are."""

WITH_PERCENT: dict[str, Callable[..., np.ndarray]] = {"percentile": percentile_weight_scales}
"""Methods that take any number from 0 to 100 after a colon."""


def weight_method(name: str) -> WeightScales:
    """Name of :func:`weight_methods`, Q a number -> the function; SettingError, a ValueError, for anything else."""
    if name in WEIGHT_METHODS:
        return WEIGHT_METHODS[name]
    kind, _, text = name.partition(":")
    try:
        q = float(text)
    except ValueError:
        q = math.nan
    if kind not in WITH_PERCENT or math.isnan(q):
        raise SettingError(f"unknown method for weights {name!r}; choose {weight_methods()}")
    check_range(q, f"{q:g}")
    return functools.partial(WITH_PERCENT[kind], q=q)


def weight_methods() -> str:
    """Nothing -> ``max, entropy or percentile:Q``, as help and errors list them."""
    plain = [name for name in WEIGHT_METHODS if name.partition(":")[0] not in WITH_PERCENT]
    return f"{', '.join(plain)} or {', '.join(f'{name}:Q' for name in WITH_PERCENT)}"


@dataclass(frozen=True)
class WeightCost:
    """One weight tensor: who reads it, its shape, and per method the SQNR in dB of its int8 values."""

    tensor: str
    layer: str
    shape: tuple[int, ...]
    sqnr_db: Mapping[str, float]


def weight_clipping_cost(model: Source) -> tuple[WeightCost, ...]:
    """Model -> what each of :data:`WEIGHT_METHODS` would make of each weight tensor, in the order of the graph.

    A weight that several layers share comes once per axis of its channels. Weights that are not finite
    float32 are left out.
    """
    model = open_model(model)
    graph = Graph(lifted(model.whole, model.libraries))
    rows = []
    for weight, layer in weights_of(graph).items():
        array = graph.array(weight.name)
        if array.dtype != np.float32 or not np.isfinite(array).all() or (weight.axis or 0) >= max(array.ndim, 1):
            continue
        costs = {
            name: weight_sqnr_db(array, scales(array, weight.axis), weight.axis)
            for name, scales in WEIGHT_METHODS.items()
        }
        rows.append(WeightCost(weight.name, layer, array.shape, costs))
    return tuple(rows)


def weight_sqnr_db(array: np.ndarray, scales: np.ndarray, axis: int | None) -> float:
    """Signal to quantization noise ratio in dB of float32 weights rounded to int8 with these scales."""
    values = array.astype(np.float64)
    if axis is not None:
        scales = scales.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    noise = np.square(values - np.clip(np.rint(array / scales), -128, 127) * scales.astype(np.float64)).sum()
    return decibels(float(np.square(values).sum()), float(noise))


def decibels(signal: float, noise: float) -> float:
    """Two powers -> their ratio in dB; inf without noise, -inf for noise without a signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _clipped(array: np.ndarray, axis: int | None, threshold: float | np.floating) -> np.ndarray:
    """Scales from the largest |w| of each channel, or from the threshold where that is smaller."""
    others = None if axis is None else tuple(other for other in range(array.ndim) if other != axis)
    amax = np.minimum(np.abs(array).max(axis=others, initial=0), threshold)
    scales = np.asarray(amax, np.float32) / np.float32(127)
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales)

"""What is wrong with a calibration cache, how two differ, and the small repairs.

``check`` knows three kinds of trouble: values that nothing can use, values that are a scale's neighbours
(bytes in the wrong order, amax, 127 / amax), and a cache that does not fit its model or its TensorRT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trtcal.cache.cache import ALGORITHMS, CalibrationCache, dotted_version, header_number, version_number
from trtcal.cache.provenance import Provenance
from trtcal.errors import CacheError
from trtcal.files.brief import few
from trtcal.model.nodes import op_name
from trtcal.model.open import Model, Source, open_model
from trtcal.model.topology import Graph
from trtcal.qdq.insert import out_of_reach
from trtcal.qdq.placement import IMPLICIT, invalid_scale

SEVERITIES = ("error", "warning", "note")
"""An error spoils the engine or the build, a warning may cost accuracy or speed, the rest is good to know."""

# Ranges of about 1e-7 to 1e7. Constants such as the epsilon of a normalization lie outside, but never half of a
# cache.
PLAUSIBLE = (1e-9, 1e5)

# float32 ends at 3.4e38, and masks made of its lowest number reach there; nothing that a network computes does.
MASKS = 1e30

# No output of these exceeds the number; a threshold can reach double of it, since a histogram's limit doubles.
BOUNDED = {"Softmax": 1.0, "Sigmoid": 1.0, "HardSigmoid": 1.0, "Tanh": 1.0}

# Names that TensorRT and its ONNX parser make up, so no model has them.
_MADE_UP = re.compile(r"\(Unnamed Layer\* [0-9]+\) \[.*\].*|ONNXTRT_.*")


@dataclass(frozen=True)
class Finding:
    """Something to know about a cache; ``tensor`` is None where it is about the whole file."""

    severity: str
    tensor: str | None
    message: str


class Difference(NamedTuple):
    """One tensor in two caches: its scales, None where it is missing, and the second over the first."""

    tensor: str
    first: np.float32 | None
    second: np.float32 | None
    ratio: float | None
    """second / first, 1.0 where both are the same even if that is 0, inf or nan; None if one is missing."""


def check(
    cache: CalibrationCache,
    *,
    model: Source | None = None,
    trt_version: str | None = None,
    made_from: Provenance | None = None,
) -> list[Finding]:
    """Cache, its model and the TensorRT it is for, as far as known -> findings, errors first.

    That the cache is of another model, as its names tell, or what it was ``made_from``, comes before all else.
    Tensors that the model has and the cache has not are told apart: one that an INT8-capable layer reads is
    a warning, others cost nothing. Raises ValueError for a ``trt_version`` that is none.
    """
    model = None if model is None else open_model(model)
    found = [] if model is None else list(_origin(cache, model, made_from))
    of_another = any(finding.severity == "error" for finding in found)
    found += [*_header(cache, trt_version), *(Finding("warning", None, note) for note in cache.tolerated)]
    if not cache.scales:
        found.append(Finding("error", None, "holds no tensors, so nothing would be INT8; calibrate again"))
    reversed_bytes = list(_byte_order(cache))
    if reversed_bytes:  # then no single value means anything
        found += reversed_bytes
    else:
        beyond = [] if model is None or of_another else list(_beyond_bounds(cache, model))
        found += [*_values(cache), *(beyond or _large(cache))]
    if model is not None and not of_another:
        found += _fit(cache, model)
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def diff(first: CalibrationCache, second: CalibrationCache) -> list[Difference]:
    """Two caches -> a row per tensor: the largest |log ratio| first, those missing on one side last."""
    rows = []
    for name in dict.fromkeys((*first.scales, *second.scales)):
        a, b = first.scales.get(name), second.scales.get(name)
        rows.append(Difference(name, a, b, None if a is None or b is None else _ratio(float(a), float(b))))
    return sorted(rows, key=lambda row: -_distance(row.ratio))


def merge(caches: Sequence[CalibrationCache]) -> CalibrationCache:
    """Caches -> one under the first one's header; where a tensor is in several, the last has it."""
    if not caches:
        raise ValueError("merge needs at least one cache")
    scales = {name: scale for cache in caches for name, scale in cache.scales.items()}
    return CalibrationCache(caches[0].version, caches[0].algorithm, scales)


def rename(cache: CalibrationCache, mapping: Mapping[str, str]) -> CalibrationCache:
    """Cache and {old name: new name} -> the cache with all of them renamed at once, in the same order.

    Raises CacheError where the cache lacks an old name, or two tensors would get the same.
    """
    for old in mapping:
        cache.amax(old)  # raises, with the nearest name, where there is none
    scales: dict[str, np.float32] = {}
    for name, scale in cache.scales.items():
        new = mapping.get(name, name)
        if new in scales:
            raise CacheError(f"{new!r} would be the name of two tensors; rename the other one too")
        scales[new] = scale
    return CalibrationCache(cache.version, cache.algorithm, scales)


def retarget(
    cache: CalibrationCache, *, trt_version: str | None = None, algorithm: str | None = None
) -> CalibrationCache:
    """Cache -> the same scales under the header of that TensorRT and calibrator; what is not given stays.

    Raises ValueError for what is no version that reads caches, for what is no algorithm, and where the header names
    none to stay.
    """
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
    if not (algorithm or cache.algorithm):
        raise ValueError(f"the header {cache.header!r} names no calibrator; give the algorithm as well")
    number = cache.version if trt_version is None else header_number(trt_version)
    return CalibrationCache(number, algorithm or cache.algorithm, cache.scales)


# --- the header ---------------------------------------------------------------------------------------


def _header(cache: CalibrationCache, trt_version: str | None) -> Iterator[Finding]:
    if trt_version is not None:
        wanted = _major(version_number(trt_version))
        if wanted is not None and wanted >= 11:
            yield Finding(
                "error", None, "TensorRT 11 reads no calibration caches; put the ranges into the model: trtcal qdq"
            )
        elif _major(cache.version) != wanted:
            yield Finding(
                "error",
                None,
                f"the header {cache.header!r} is not of TensorRT {wanted}, which will calibrate anew, or fail "
                f"without data; trtcal cache retarget --trt-version {trt_version} makes it fit",
            )
    if cache.algorithm != "EntropyCalibration2":
        yield Finding(
            "note",
            None,
            f"the header names {cache.algorithm or 'no calibrator'}, so only that calibrator reads the cache; DLA and "
            f"DeepStream want EntropyCalibration2 (trtcal cache retarget --algorithm)",
        )


def _major(number: str) -> int | None:
    try:
        return int(dotted_version(number).split(".")[0])
    except ValueError:
        return None


# --- the values ---------------------------------------------------------------------------------------


def _values(cache: CalibrationCache) -> Iterator[Finding]:
    for name, scale in cache.scales.items():
        problem = invalid_scale(scale)
        if problem:
            usable = np.isfinite(scale) and scale >= 0  # 0 and denormals, which TensorRT itself writes
            yield Finding("warning" if usable else "error", name, problem)
        elif 127 * float(scale) > MASKS:
            yield Finding(
                "warning",
                name,
                f"its range reaches {127 * float(scale):.2g}, as masks made of the lowest float do; all its other "
                f"values round to 0 in INT8, so what reads it should stay in float",
            )


def _byte_order(cache: CalibrationCache) -> Iterator[Finding]:
    scales = np.array([scale for scale in cache.scales.values() if scale != 0], np.float32)
    if not len(scales):
        return
    swapped = scales.byteswap()
    if _plausible(scales).mean() <= 0.5 and _plausible(swapped).mean() >= 0.9:
        yield Finding(
            "error",
            None,
            f"the scales make no sense as they stand (the first is {scales[0]:g}), but do with their bytes in reverse "
            f"({swapped[0]:g}): the hex is little-endian, and TensorRT reads it big-endian",
        )


def _plausible(scales: np.ndarray) -> np.ndarray:
    low, high = PLAUSIBLE
    return (scales >= low) & (scales <= high)


def _beyond_bounds(cache: CalibrationCache, model: Model) -> Iterator[Finding]:
    for node in model.proto.graph.node:
        bound = BOUNDED.get(op_name(node))
        if bound is None or node.output[0] not in cache.scales:
            continue
        scale = float(cache.scales[node.output[0]])
        if 2.01 * bound < scale * 127 < np.inf:
            kind = "amax" if scale <= 2.01 * bound else "127 / amax" if scale >= 63 / bound else "another number"
            yield Finding(
                "error",
                node.output[0],
                f"{node.op_type} gives at most {bound:g}, but the range is far above; {kind} may stand where the "
                f"scale, amax / 127, should",
            )


def _large(cache: CalibrationCache) -> Iterator[Finding]:
    scales = [float(scale) for scale in cache.scales.values() if np.isfinite(scale) and scale > 0]
    if scales and 1 < np.median(scales) <= PLAUSIBLE[1]:
        yield Finding(
            "warning",
            None,
            "half of the ranges are above 127, which few networks have; amax or 127 / amax may stand where the scale, "
            "amax / 127, should",
        )


# --- the model ----------------------------------------------------------------------------------------


def another_model(names: Iterable[str], model: Model) -> str | None:
    """Tensors of a cache, and a model -> in words that it is of another model, where most of its names are."""
    graph, calibrated = model.proto.graph, model.calibrated
    constants = {f"{tensor.name}_output" for tensor in graph.initializer}
    known = {*calibrated.order, *constants, *(output for node in graph.node for output in node.output)}
    known |= {value.name for value in (*graph.input, *graph.initializer)}
    named = [name for name in names if not _MADE_UP.fullmatch(name)]
    unknown = [name for name in named if name not in known]
    if len(unknown) <= len(named) / 2:
        return None
    return (
        f"is of another model, or of an export with other names (trtcal cache rename): {model.short_name} lacks "
        f"{len(unknown)} of its {len(named)} tensor{'s' * (len(named) != 1)}: {few([repr(name) for name in unknown])}"
    )


def of_another_version(made_from: Provenance | None, model: Model) -> str | None:
    """What a cache was made from, if that is known, and a model -> in words that it is another one; None if not."""
    if made_from is None or made_from.model_sha256 == model.sha256:
        return None
    return f"was made from another model, or another version of it: {made_from.model}"


def _origin(cache: CalibrationCache, model: Model, made_from: Provenance | None) -> Iterator[Finding]:
    said = another_model(cache.scales, model)
    if said is not None:
        yield Finding("error", None, said)
    else:
        said = of_another_version(made_from, model)
        if said is not None:
            yield Finding("warning", None, said)


def _fit(cache: CalibrationCache, model: Model) -> Iterator[Finding]:
    calibrated, graph = model.calibrated, Graph(model.proto)
    known = graph.tensors | {f"{name}_output" for name in graph.constants} | set(calibrated.order)
    named = [name for name in cache.scales if not _MADE_UP.fullmatch(name)]
    for name in (name for name in named if name not in known):
        yield Finding("warning", name, "the model has no such tensor")
    for name in sorted(cache.scales.keys() - set(named) - known):
        yield Finding("note", name, "a name that TensorRT makes up; no model can confirm it")

    for name, why in dict(out_of_reach(graph)).items():
        yield Finding("warning", name, f"has no range: {why}")
    readers = _int8_readers(graph)
    for name in calibrated.order:
        if name in cache.scales:
            continue
        if name in readers:
            yield Finding("warning", name, f"has no range, so the {readers[name]} that reads it stays in float")
        elif name in graph.tensors and graph.dtype(name).kind != "f":
            yield Finding("note", name, "has no range and needs none: it holds integers or truth values")
        else:
            yield Finding("note", name, "has no range and needs none: no layer reads it as INT8")


def _int8_readers(graph: Graph) -> dict[str, str]:
    """Float tensor -> op type of the first layer that reads it as INT8 in a model built with a full cache."""
    readers: dict[str, str] = {}
    for index, node in enumerate(graph.nodes):
        if op_name(node) not in IMPLICIT:
            continue
        for position in IMPLICIT[op_name(node)](graph, index):
            name = node.input[position]
            if name not in graph.fixed and graph.dtype(name).kind == "f":
                readers.setdefault(name, node.op_type)
    return readers


# --- ratios ---------------------------------------------------------------------------------


def _ratio(first: float, second: float) -> float:
    if first == second or (np.isnan(first) and np.isnan(second)):
        return 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(second) / np.float64(first))


def _distance(ratio: float | None) -> float:
    """|log ratio|; endless for a ratio without one, and less than nothing where there is no ratio."""
    if ratio is None:
        return -1.0
    return abs(float(np.log(ratio))) if 0 < ratio < np.inf else np.inf

"""A cache that TensorRT wrote for a whole model against ours, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import numpy as np
from builds import LEGACY
from experiments import hexadecimal

from trtcal.cache.cache import CalibrationCache
from trtcal.calibration.calibrate import from_stats
from trtcal.model.open import Model
from trtcal.ranges.histogram import NUM_BINS, abs_max
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.streams import batches_of

TOLERANCE = 1e-3  # of a maximum: activations of a GPU differ from a CPU's in their low bits
SAME_BIN = 0.25  # bins; a threshold that is off by half a bin is another rule
MOST = 0.75  # of the tensors keep the same bin: a difference in a low bit may move the others
COLLAPSED = 256  # bins; what keeps fewer of them clips nearly everything, and shows where the search starts


class Kind(NamedTuple):
    """What is held against TensorRT: its calibrator and our method.

    A ``share`` of the tensors at least has to be ``close``, relatively. ``exact``: the scales of network inputs agree
    to the last bit. ``searched``: in bins of TensorRT's histogram, which are then compared too.
    """

    algorithm: str
    method: str
    close: float
    share: float = MOST
    exact: bool = True
    searched: bool = False


KINDS = {
    "entropy": Kind("EntropyCalibration2", "entropy", 0.05, searched=True),
    "minmax": Kind("MinMaxCalibration", "minmax", TOLERANCE, share=1.0),
    "legacy": Kind("LegacyCalibration", f"percentile:{100 * LEGACY:g}", 0.02, exact=False),
}


def differences(
    ours: CalibrationCache,
    theirs: CalibrationCache,
    kind: str,
    limits: Mapping[str, float],
    exact: frozenset[str],
    note: Callable[[str, Any], None] = lambda name, value: None,
) -> list[str]:
    """Our cache and TensorRT's -> what of them is more than a matter of a GPU's low bits; none where they agree.

    ``kind``: a key of KINDS. ``limits``: tensor -> the range of its histogram. ``exact``: tensors that nobody
    computes, network inputs, so that every bit of their scale is a matter of the algorithm alone. ``note`` is handed
    what was measured.
    """
    by = KINDS[kind]
    found = list(_coverage(ours, theirs, note))
    shared = [name for name in theirs.scales if name in ours.scales]
    known = [name for name in shared if name in exact]
    if by.exact:
        if not known:
            found.append("no network input is in both caches, and they alone have nothing but the algorithm in them")
        for name in known:
            if theirs.scales[name] != ours.scales[name]:
                pair = hexadecimal(theirs.scales[name]), hexadecimal(ours.scales[name])
                found.append(f"the input {name!r} has the scale {pair[0]}, and {pair[1]} with us")
    pairs = {name: (float(ours.scales[name]), float(theirs.scales[name])) for name in shared}
    relative = {name: abs(their / our - 1) for name, (our, their) in pairs.items() if our and np.isfinite(their)}
    odd = [name for name, (our, their) in pairs.items() if not np.isfinite(their) or (their and not our)]
    far = [name for name, value in relative.items() if value > by.close] + odd
    note("relative differences", {**_spread(relative), "worst": _worst(relative, pairs)})
    if not pairs or len(far) > (1 - by.share) * len(pairs):
        found.append(f"{len(far)} of {len(pairs)} tensors are off by more than {by.close:g}, as {far[:5]}")
    if by.searched:
        found += _bins(pairs, limits, note)
    return found


def _coverage(ours: CalibrationCache, theirs: CalibrationCache, note: Callable[[str, Any], None]) -> Iterator[str]:
    made_by_the_parser = [name for name in theirs.scales if name.startswith(("(Unnamed Layer", "ONNXTRT_"))]
    missing = [name for name in theirs.scales if name not in ours.scales and name not in made_by_the_parser]
    extra = [name for name in ours.scales if name not in theirs.scales]
    note("tensors", {"TensorRT's": len(theirs.scales), "ours": len(ours.scales)})
    for what, names in {"not in TensorRT's cache": extra, "made by TensorRT's parser": made_by_the_parser}.items():
        if names:
            note(what, names[:20])
    if missing:
        yield f"{len(missing)} tensors that TensorRT calibrates are not in our cache: {missing[:20]}"
    if not theirs.scales:
        yield "TensorRT's cache holds no tensor"


def _bins(
    pairs: Mapping[str, tuple[float, float]], limits: Mapping[str, float], note: Callable[[str, Any], None]
) -> Iterator[str]:
    """Differences in bins of the histogram, which show the rule and not the activations."""
    kept = {
        name: tuple(scale * 127 * NUM_BINS / limits[name] - 0.5 for scale in pair)
        for name, pair in pairs.items()
        if limits.get(name)
    }
    moved = {name: abs(our - their) for name, (our, their) in kept.items()}
    same = sum(value <= SAME_BIN for value in moved.values())
    note("bins", {**_spread(moved), "same": same, "of": len(moved), "worst": _worst(moved, kept)})
    if not moved or same < MOST * len(moved):
        yield f"only {same} of {len(moved)} tensors keep the same bin, to within {SAME_BIN}: {_worst(moved, kept)}"
    collapsed = [name for name, pair in kept.items() if min(pair) <= COLLAPSED]
    note(f"tensors that keep at most {COLLAPSED} bins", len(collapsed))
    for name in collapsed:
        if moved[name] > SAME_BIN:
            pair = [round(value, 3) for value in kept[name]]
            yield f"{name!r} collapses with one of both: {pair[0]} bins with us, {pair[1]} with TensorRT"


def _spread(values: Mapping[str, float]) -> dict[str, float]:
    if not values:
        return {}
    quantiles = {"median": 0.5, "75%": 0.75, "90%": 0.9, "99%": 0.99, "largest": 1.0}
    found = np.array(list(values.values()))
    return {name: float(f"{np.quantile(found, at):.3g}") for name, at in quantiles.items()}


def _worst(values: Mapping[str, float], pairs: Mapping[str, Any]) -> list[Any]:
    names = sorted(values, key=lambda name: -values[name])[:5]
    return [{"tensor": name, "by": float(f"{values[name]:.3g}"), "ours, TensorRT's": pairs[name]} for name in names]


def limits_of(model: Model, stats: ActivationStats) -> dict[str, float]:
    """Tensor -> the range of its TensorRT histogram after the pass."""
    graph = model.calibrated
    found = {name: tensor.batch_grid.limit for name, tensor in stats.tensors.items() if tensor.batch_grid is not None}
    found |= {name: abs_max(value) for name, value in graph.constants.items()}
    return {name: found[source] for name in graph.order if (source := graph.carried.get(name, name)) in found}


def inputs_of(model: Model) -> frozenset[str]:
    """The network inputs that are calibrated."""
    return frozenset(model.calibrated.visible) & {spec.name for spec in model.inputs}


def ours_for(model: Model, stats: ActivationStats, kind: str) -> CalibrationCache:
    """Our cache by one of KINDS."""
    return from_stats(model, stats, KINDS[kind].method, algorithm=KINDS[kind].algorithm).cache


@contextmanager
def collecting_on_gpu(model: Model) -> Iterator[Callable[[Iterable[Any]], ActivationStats]]:
    """Model -> what collects statistics of batches, by one engine for all of them."""
    from calibrators.device_kernels import Observer
    from calibrators.gpu_stats import observe_all
    from calibrators.memory import open_memory
    from calibrators.visible import VisibleEngine

    with closing(open_memory()) as memory, Observer(memory) as observer, VisibleEngine(model, memory) as engine:
        yield lambda batches: observe_all(engine, observer, batches_of(batches, model.inputs))

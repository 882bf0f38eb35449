"""Caches that TensorRT writes for whole models against ours, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy as np

from acceptance import building
from acceptance.findings import Context, Finding, Skip, attempt, compared, measured
from acceptance.networks import Model
from trtcal.cache.cache import CalibrationCache
from trtcal.calibration.calibrate import calibrate, from_stats
from trtcal.errors import BackendError, ModelError
from trtcal.model import open as opening
from trtcal.model.open import open_model
from trtcal.ranges.histogram import NUM_BINS, abs_max
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.streams import batches_of

ON_GPU = "entropy, ranges collected on the GPU"
LEAST = 15  # seconds; with less left no further question is asked
SAMPLES = 64
SIZES = (16, 4, 1)
LEGACY = 0.9999  # quantile, with a regression cutoff of 1
TOLERANCE = 1e-3  # of a maximum: activations of a GPU differ from a CPU's in their low bits
SAME_BIN = 0.25  # bins; a threshold that is off by half a bin is another rule
MOST = 0.75  # of the tensors keep the same bin: a difference in a low bit may move the others
COLLAPSED = 256  # bins; what keeps fewer of them clips nearly everything, and shows where the search starts

ALGORITHMS = {"entropy": "EntropyCalibration2", "minmax": "MinMaxCalibration", "legacy": "LegacyCalibration"}


def compare(
    ours: CalibrationCache,
    theirs: CalibrationCache,
    kind: str,
    limits: Mapping[str, float],
    exact: frozenset[str],
) -> Iterator[Finding]:
    """Our cache and TensorRT's -> findings.

    ``kind``: a key of ALGORITHMS. ``limits``: tensor -> the range of its histogram. ``exact``: tensors that nobody
    computes, network inputs, so that every bit of their scale is a matter of the algorithm alone.
    """
    yield _coverage(ours, theirs)
    shared = [name for name in theirs.scales if name in ours.scales]
    if kind != "legacy":
        wrong = {
            name: f"{_hex(theirs.scales[name])}, ours {_hex(ours.scales[name])}"
            for name in shared
            if name in exact and theirs.scales[name] != ours.scales[name]
        }
        known = [name for name in shared if name in exact]
        yield compared("scales of the inputs, to the last bit", wrong or "equal", "equal", not wrong and bool(known))
    pairs = {name: (float(ours.scales[name]), float(theirs.scales[name])) for name in shared}
    relative = {name: abs(their / our - 1) for name, (our, their) in pairs.items() if our and np.isfinite(their)}
    odd = [name for name, (our, their) in pairs.items() if not np.isfinite(their) or (their and not our)]
    close = {"entropy": 0.05, "minmax": TOLERANCE, "legacy": 0.02}[kind]
    far = [name for name, value in relative.items() if value > close] + odd
    share = 1.0 if kind == "minmax" else MOST
    yield compared(
        f"relative differences, {share:.0%} of the tensors within {close:g}",
        _spread(relative),
        f"{share:.0%} within {close:g}",
        bool(pairs) and len(far) <= (1 - share) * len(pairs),
        far=len(far),
        worst=_worst(relative, pairs),
    )
    if kind == "entropy":
        yield from _bins(pairs, limits)


def _coverage(ours: CalibrationCache, theirs: CalibrationCache) -> Finding:
    made_by_the_parser = [name for name in theirs.scales if name.startswith(("(Unnamed Layer", "ONNXTRT_"))]
    missing = [name for name in theirs.scales if name not in ours.scales and name not in made_by_the_parser]
    extra = [name for name in ours.scales if name not in theirs.scales]
    got = {"TensorRT's": len(theirs.scales), "ours": len(ours.scales), "missing": len(missing), "extra": len(extra)}
    return compared(
        "every tensor that TensorRT calibrates is in our cache",
        got,
        "none missing",
        not missing and bool(theirs.scales),
        missing=missing[:20],
        extra=extra[:20],
        made_by_the_parser=made_by_the_parser[:20],
    )


def _bins(pairs: Mapping[str, tuple[float, float]], limits: Mapping[str, float]) -> Iterator[Finding]:
    """Differences in bins of the histogram, which show the rule and not the activations."""
    kept = {
        name: tuple(scale * 127 * NUM_BINS / limits[name] - 0.5 for scale in pair)
        for name, pair in pairs.items()
        if limits.get(name)
    }
    moved = {name: abs(our - their) for name, (our, their) in kept.items()}
    same = sum(value <= SAME_BIN for value in moved.values())
    yield compared(
        f"|Δm| in bins, {MOST:.0%} of the tensors within {SAME_BIN}",
        {**_spread(moved), "same": same, "of": len(moved)},
        f"{MOST:.0%} within {SAME_BIN}",
        bool(moved) and same >= MOST * len(moved),
        worst=_worst(moved, kept),
    )
    collapsed = {name: pair for name, pair in kept.items() if min(pair) <= COLLAPSED}
    wrong = {name: [round(value, 3) for value in pair] for name, pair in collapsed.items() if moved[name] > SAME_BIN}
    if collapsed:
        yield compared(
            f"tensors that keep fewer than {COLLAPSED} bins with us or with TensorRT do so with both",
            {"tensors": len(collapsed), "differ": wrong},
            "none differs",
            not wrong,
        )


def _spread(values: Mapping[str, float]) -> dict[str, float]:
    if not values:
        return {}
    quantiles = {"median": 0.5, "75%": 0.75, "90%": 0.9, "99%": 0.99, "largest": 1.0}
    found = np.array(list(values.values()))
    return {name: float(f"{np.quantile(found, at):.3g}") for name, at in quantiles.items()}


def _worst(values: Mapping[str, float], pairs: Mapping[str, Any]) -> list[Any]:
    names = sorted(values, key=lambda name: -values[name])[:5]
    return [{"tensor": name, "by": float(f"{values[name]:.3g}"), "ours, TensorRT's": pairs[name]} for name in names]


def _hex(scale: np.float32) -> str:
    return f"{np.float32(scale).view(np.uint32):x}"


def limits_of(model: opening.Model, stats: ActivationStats) -> dict[str, float]:
    """Tensor -> the range of its TensorRT histogram after the pass."""
    found = {name: tensor.streamed.limit for name, tensor in stats.tensors.items() if tensor.streamed is not None}
    found |= {name: abs_max(value) for name, value in model.calibrated.constants.items()}
    graph = model.calibrated
    return {name: found[source] for name in graph.order if (source := graph.carried.get(name, name)) in found}


def ours_for(model: opening.Model, stats: ActivationStats, kind: str) -> CalibrationCache:
    """Our cache by one of ALGORITHMS."""
    method = f"percentile:{100 * LEGACY:g}" if kind == "legacy" else kind
    return from_stats(model, stats, method, algorithm=ALGORITHMS[kind]).cache


class _Questions:
    """What is asked of one model; statistics are collected once for each batch size and order."""

    def __init__(self, model: Model, context: Context) -> None:
        self.model, self.context = model, context
        self.graph = open_model(model.path)
        self.exact = frozenset(self.graph.calibrated.visible) & {spec.name for spec in self.graph.inputs}
        self.orders = model.orders(16 if context.small else SAMPLES)
        self._stats: dict[tuple[int, str], ActivationStats] = {}
        self._written: dict[tuple[int, str], CalibrationCache] = {}

    def parity(self, kind: str, size: int, order: str) -> Iterator[Finding]:
        """TensorRT's cache against ours, from activations on the CPU."""
        batches = self.model.batches(self.orders[order], size)
        if (size, order) not in self._stats:
            self._stats[size, order] = calibrate(self.graph, batches).stats
        stats = self._stats[size, order]
        theirs = calibrated(self.context, self.model, batches, ALGORITHMS[kind])
        if kind == "entropy":
            self._written[size, order] = theirs
        yield from compare(ours_for(self.graph, stats, kind), theirs, kind, limits_of(self.graph, stats), self.exact)
        yield measured("tensors in TensorRT's cache", len(theirs.scales), cache=theirs.format().decode())

    def parity_on_gpu(self) -> Iterator[Finding]:
        """The same caches against ours from activations on the GPU: what differs here as well is a matter of rules."""
        try:
            with collecting_on_gpu(self.graph) as collect:
                for (size, order), theirs in self._written.items():
                    stats = collect(self.model.batches(self.orders[order], size))
                    ours = ours_for(self.graph, stats, "entropy")
                    for finding in compare(ours, theirs, "entropy", limits_of(self.graph, stats), self.exact):
                        yield _prefixed(finding, f"{ON_GPU}, batch {size}, {order}")
        except (BackendError, ModelError) as error:
            raise Skip(f"no ranges can be collected on this GPU: {error}") from error


@contextmanager
def collecting_on_gpu(model: opening.Model) -> Iterator[Callable[[Iterable[Any]], ActivationStats]]:
    """Graph -> what collects statistics of batches, by one engine for all of them."""
    from calibrators.device_kernels import Observer
    from calibrators.gpu_stats import observe_all
    from calibrators.memory import open_memory
    from calibrators.visible import VisibleEngine

    with closing(open_memory()) as memory, Observer(memory) as observer, VisibleEngine(model, memory) as engine:
        yield lambda batches: observe_all(engine, observer, batches_of(batches, model.inputs))


def model_parity(model: Model, context: Context) -> Iterator[Finding]:
    """One model in every batch size and order, by each calibrator; what there is no time for is named."""
    questions = _Questions(model, context)
    plan = [
        (kind, size, order)
        for kind in ALGORITHMS
        for size in SIZES[: 1 if context.small else 3]
        for order in list(questions.orders)[: 1 if context.small else 2]
    ]
    for number, (kind, size, order) in enumerate(plan):
        if context.seconds_left < LEAST and number:
            yield measured("left out, for time", [f"{k}, batch {s}, order {o}" for k, s, o in plan[number:]])
            break
        where = f"{kind}, batch {size}, {order}"
        for finding in attempt(where, partial(questions.parity, kind, size, order)):
            yield _prefixed(finding, where)
    # Last of all: it builds one more engine, and what stands above is kept whatever comes of that.
    if context.seconds_left < LEAST:
        yield measured("left out, for time", ON_GPU)
    else:
        yield from attempt(ON_GPU, questions.parity_on_gpu)


def _prefixed(finding: Finding, where: str) -> Finding:
    question = finding.question if finding.question == where else f"{where}: {finding.question}"
    return Finding(question, finding.got, finding.expected, finding.verdict, finding.details)


def calibrated(
    context: Context, model: Model, batches: list[dict[str, np.ndarray]], algorithm: str
) -> CalibrationCache:
    """A model and batches -> the cache that TensorRT writes, through our calibrators.

    Where it writes one and then builds no plan, that is what was asked for all the same.
    """
    from calibrators import EntropyCalibrator, LegacyCalibrator, MinMaxCalibrator

    kinds: dict[str, Any] = {
        "EntropyCalibration2": EntropyCalibrator,
        "MinMaxCalibration": MinMaxCalibrator,
        "LegacyCalibration": partial(LegacyCalibrator, quantile=LEGACY, cutoff=1.0),
    }
    shapes = {name: array.shape for name, array in batches[0].items()}
    data, reason = model.path.read_bytes(), None
    for level in building.LEVELS:
        try:
            with kinds[algorithm](batches) as calibrator:
                building.build(
                    context, data, calibrator, profiles=[shapes], calibrate_with=shapes, level=level, expect=True
                )
        except building.BuildFailed as error:
            reason = error
        if calibrator.written is not None:
            return calibrator.written  # type: ignore[no-any-return]
    assert reason is not None, "raise_if_failed() would have raised"
    raise reason

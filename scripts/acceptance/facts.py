"""The open facts, each settled on a network of one layer whose input is known exactly.

The scale that TensorRT writes for the input is compared with ours, bit for bit. Where it is another one, the finding
names the changes of a rule that would give it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from acceptance import building, networks, rules
from acceptance.findings import Context, Finding, attempt, compared, measured
from trtcal.cache.cache import CalibrationCache
from trtcal.ranges.growth import double
from trtcal.ranges.histogram import NUM_BINS, Histogram, HistogramBuilder, abs_max
from trtcal.ranges.thresholds import entropy

WIDTH = 4096
Batches = Sequence[np.ndarray]


@dataclass(frozen=True)
class Experiment:
    """Data of one tensor and the rules that its scale tells apart."""

    question: str
    batches: Callable[[], list[np.ndarray]]
    settles: tuple[str, ...]


def _normal(seed: int, spread: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(4, 1, 1, WIDTH)) * spread).astype(np.float32)


def _uniform(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, size=(4, 1, 1, WIDTH)).astype(np.float32)


def _levels(seed: int, count: int) -> np.ndarray:
    return (np.random.default_rng(seed).integers(0, count, size=(4, 1, 1, WIDTH)) / (count - 1)).astype(np.float32)


def _peak(values: np.ndarray, amax: float, share: float = 0.0) -> np.ndarray:
    """The values below ``amax``, one element at it, and a share of the others too."""
    values = np.clip(values, -0.999 * amax, 0.999 * amax).astype(np.float32)
    values[np.random.default_rng(1).random(values.shape) < share] = amax
    values.flat[7] = amax
    return values


def _spike(seed: int, share: float) -> np.ndarray:
    """Half-normal values, a share of them in bin 1 and half as many zeros."""
    rng = np.random.default_rng(seed)
    values = np.abs(rng.normal(size=4 * WIDTH)).astype(np.float32)
    amax = values.max()
    values[rng.random(values.size) < share] = np.float32(1.5 / NUM_BINS) * amax
    values[rng.random(values.size) < share / 2] = 0
    values[7] = amax
    return values.reshape(4, 1, 1, WIDTH)


def _edges() -> np.ndarray:
    """Half-normal values, each on the lower edge of a bin, where the last bit of a division decides.

    2.9: of the ranges tried, one for which a product with the inverse moves half of them.
    """
    amax = 2.9
    bin_of = np.abs(np.random.default_rng(2).normal(size=4 * WIDTH)) * 500
    values: np.ndarray = (np.minimum(bin_of.astype(int), NUM_BINS - 1) * amax / NUM_BINS).astype(np.float32)
    values[7] = amax
    return values.reshape(4, 1, 1, WIDTH)


def _crowded() -> np.ndarray:
    """Counts made so that the search keeps the fewest bins it may: 64, 127, 128 each beat all that follow."""
    counts = np.zeros(NUM_BINS, np.int64)
    counts[:63] = np.random.default_rng(50).integers(20, 400, 63)
    counts[63], counts[64:126], counts[126], counts[127] = 2000, 1, 8, 2
    counts[[1500, 1700, 2047]] = 2, 1, 1
    counts[5] += 4 * WIDTH - counts.sum()
    values = np.repeat((np.arange(NUM_BINS) + 0.5) / NUM_BINS, counts).astype(np.float32)
    values[-1] = 1.0
    return values.reshape(4, 1, 1, WIDTH)


ZERO = np.zeros((4, 1, 1, WIDTH), np.float32)

EXPERIMENTS = (
    Experiment("plain: normal values, one batch", lambda: [_normal(0)], ("threshold", "levels", "outliers")),
    Experiment("plain: the same, another seed", lambda: [_normal(1)], ("threshold", "levels", "outliers")),
    Experiment(
        "plain: Laplace",
        lambda: [np.random.default_rng(18).laplace(size=(4, 1, 1, WIDTH)).astype(np.float32)],
        ("levels", "outliers"),
    ),
    Experiment(
        "plain: Student's t with 3 degrees of freedom",
        lambda: [np.random.default_rng(3).standard_t(3, size=(4, 1, 1, WIDTH)).astype(np.float32)],
        ("outliers", "levels"),
    ),
    Experiment("index: every value on the edge of a bin", lambda: [_edges()], ("index",)),
    Experiment("zero bin: a tenth in bin 1, some zeros", lambda: [_spike(2, 0.1)], ("zero_bin",)),
    Experiment("zero bin: a third in bin 1, more zeros", lambda: [_spike(0, 0.3)], ("zero_bin",)),
    Experiment("zero bin: ReLU of normal values", lambda: [np.maximum(_normal(5), 0)], ()),
    Experiment("start: the fewest bins are the best", lambda: [_crowded()], ("start",)),
    Experiment("start: all low but one far outlier", lambda: [_peak(_normal(6, 0.001), 50.0)], ()),
    Experiment("growth: maxima 1.54, then 2.4", lambda: [_peak(_normal(7), 1.54), _peak(_normal(8), 2.4)], ("growth",)),
    Experiment("growth: maxima 0.5, then 0.7", lambda: [_peak(_normal(7), 0.5), _peak(_normal(8), 0.7)], ()),
    Experiment("growth: maxima 2.4, then 1.54", lambda: [_peak(_normal(7), 2.4), _peak(_normal(8), 1.54)], ()),
    Experiment("growth: maxima 1, then 40", lambda: [_peak(_normal(9), 1.0), _peak(_normal(10, 9.0), 40.0)], ()),
    Experiment(
        "growth: uniform, one ulp above in the last of 4 batches",
        lambda: [
            *(_peak(_uniform(seed), 1.0) for seed in range(3)),
            _peak(_uniform(3), np.nextafter(np.float32(1), np.float32(2))),
        ],
        ("merge",),
    ),
    Experiment(
        "merge: a third of the first batch at its maximum, then doubled",
        lambda: [_peak(_uniform(11), 1.0, 0.3), _peak(_normal(12, 0.5), 1.5)],
        (),
    ),
    Experiment("first batch all zero, then maximum 0.7", lambda: [ZERO, _peak(_normal(13), 0.7)], ("zero_batch",)),
    Experiment(
        "zero batches around one with maximum 0.7", lambda: [ZERO, _peak(_normal(13), 0.7), ZERO], ("zero_batch",)
    ),
    Experiment("collapse: two values", lambda: [0.25 + 0.75 * _levels(14, 2)], ("ties",)),
    Experiment("collapse: 5 levels", lambda: [_levels(15, 5)], ("ties",)),
    Experiment("collapse: 17 grey levels", lambda: [_levels(16, 17)], ("ties",)),
    Experiment("collapse: 256 grey levels", lambda: [_levels(17, 256)], ()),
    Experiment("collapse: a constant", lambda: [np.full_like(ZERO, 0.7)], ()),
    Experiment("8 batches that grow", lambda: [_normal(20 + step, 1 + step / 4) for step in range(8)], ()),
    Experiment(
        "the same, largest first", lambda: [_normal(27 - step, 1 + (7 - step) / 4) for step in range(8)], ("levels",)
    ),
)


def our_histogram(batches: Batches) -> Histogram:
    """Batches of one tensor -> TensorRT's histogram as trtcal counts it."""
    builder = HistogramBuilder(NUM_BINS, double)
    for batch in batches:
        builder.start_batch()
        builder.add(batch, abs_max(batch))
    return builder.build()


def our_scale(batches: Batches, algorithm: str = "EntropyCalibration2") -> np.float32:
    """Batches of one tensor -> the scale that trtcal gives."""
    histogram = our_histogram(batches)
    amax = histogram.amax if algorithm == "MinMaxCalibration" else entropy(histogram)
    return np.float32(amax) / np.float32(127)


def judge(experiment: Experiment, written: bytes) -> Finding:
    """An experiment and the cache that was written for it -> whether the scale of ``x`` is ours, and if not, why."""
    batches = experiment.batches()
    got, expected = CalibrationCache.parse(written).scales.get("x"), our_scale(batches)
    histogram = our_histogram(batches)
    details: dict[str, Any] = {
        "limit": histogram.limit,
        "settles": list(experiment.settles),
        "cache": written.decode(errors="replace"),
    }
    if got is not None:
        details |= {"bins": bins(got, histogram.limit), "our_bins": bins(expected, histogram.limit)}
        if got != expected:
            broken = rules.Rules().broken()
            details["explained_by"] = [name for name, other in broken if rules.scale(batches, other) == got]
    return compared(experiment.question, _hex(got), _hex(expected), **details)


def bins(scale: np.float32, limit: float) -> float:
    """A scale -> its threshold in bins over [0, limit): m + 0.5 where m are kept."""
    return round(float(scale) * 127 * NUM_BINS / limit, 4) if limit else 0.0


def _hex(scale: np.float32 | None) -> str | None:
    return None if scale is None else f"{np.float32(scale).view(np.uint32):x}"


def _calibrated(context: Context, batches: Batches, **options: Any) -> building.Observed:
    """Batches -> what TensorRT did with a one-layer network of their shape."""
    model = networks.one_layer(len(batches[0]), batches[0].shape[-1])
    return building.observe(context, model, [{"x": batch} for batch in batches], **options)


def settle(context: Context) -> Iterator[Finding]:
    """The experiments."""
    for experiment in EXPERIMENTS[:: 7 if context.small else 1]:
        yield from attempt(experiment.question, partial(_settled, context, experiment))


def _settled(context: Context, experiment: Experiment) -> Finding:
    return judge(experiment, _calibrated(context, experiment.batches()).written_or_raise())


def batch_facts(context: Context) -> Iterator[Finding]:
    """What a batch is, where nobody says, and what the other calibrators make of the same data."""
    four = [_normal(20 + step, 1 + step / 4) for step in range(4)]

    def same(question: str, expected_from: Batches, algorithm: str = "EntropyCalibration2", **options: Any) -> Finding:
        observed = _calibrated(context, options.pop("fed", four), algorithm=algorithm, **options)
        got = CalibrationCache.parse(observed.written_or_raise()).scales.get("x")
        return compared(question, _hex(got), _hex(our_scale(expected_from, algorithm)), **observed.record())

    halves = [batch[:2] for batch in four]
    singles = [row[None] for batch in four for row in batch]
    plan: list[tuple[str, Batches, dict[str, Any]]] = [
        ("get_batch_size says 16, the network has 4: it is ignored", four, {"claimed": 16}),
        ("get_batch_size says 1, the network has 4: it is ignored", four, {"claimed": 1}),
        ("dynamic batch, calibration profile of 4", four, {"profiles": (4,), "calibrate_with": 4}),
        (
            "dynamic batch, calibration profile of 2, buffers of 4: the first rows count",
            halves,
            {"profiles": (4,), "calibrate_with": 2},
        ),
        ("the same data in batches of 1", singles, {"fed": singles}),
        ("the same data in one batch", [np.concatenate(four)], {"fed": [np.concatenate(four)]}),
        ("EntropyCalibrator (1) as EntropyCalibrator2", four, {"algorithm": "EntropyCalibration"}),
        ("MinMax: the largest magnitude", four, {"algorithm": "MinMaxCalibration"}),
    ]
    for question, expected_from, options in plan:
        yield from attempt(question, partial(same, question, expected_from, **options))
    question = "two profiles, of 4 and of 2, and none set for calibration: which counts"
    yield from attempt(question, partial(_unset_profile, context, question, {"the first": four, "the last": halves}))
    infinite, undefined = _normal(30), _normal(30)
    infinite.flat[3], undefined.flat[3] = np.inf, np.nan
    odd = {
        "one inf in the first of two batches": [infinite, _normal(31)],
        "one nan in the first of two batches": [undefined, _normal(31)],
        "nothing but zeros": [ZERO, ZERO],
    }
    for question, data in odd.items():
        yield from attempt(question, partial(_odd, context, question, data))
    for quantile, cutoff in ((0.9999, 1.0), (0.99, 1.0), (0.5, 0.5)):
        question = f"Legacy, quantile {quantile}, cutoff {cutoff}: amax"
        yield from attempt(question, partial(_legacy, context, question, quantile, cutoff))


def _unset_profile(context: Context, question: str, candidates: dict[str, list[np.ndarray]]) -> Finding:
    """NVIDIA's log says profile 0, other accounts say the last one: an open fact of which nothing is promised."""
    observed = _calibrated(context, candidates["the first"], profiles=(4, 2))
    got = CalibrationCache.parse(observed.written_or_raise()).scales.get("x")
    answer = [name for name, batches in candidates.items() if our_scale(batches) == got]
    return measured(question, answer or _hex(got), **observed.record())


def _odd(context: Context, question: str, data: Batches) -> Finding:
    """Data that nobody promises anything for."""
    observed = _calibrated(context, data)
    return measured(question, observed.record()["cache"], **observed.record())


def _legacy(context: Context, question: str, quantile: float, cutoff: float) -> Finding:
    data = [np.random.default_rng(40).laplace(size=(4, 1, 1, WIDTH)).astype(np.float32)]
    observed = _calibrated(context, data, algorithm="LegacyCalibration", quantile=quantile, cutoff=cutoff)
    got = float(CalibrationCache.parse(observed.written_or_raise()).amax("x"))
    exact, largest = float(np.quantile(np.abs(data[0]), quantile)), float(np.abs(data[0]).max())
    if cutoff != 1:
        return measured(question, got, quantile_of_the_data=exact, largest=largest, **observed.record())
    return compared(question, got, exact, abs(got / exact - 1) < 0.01, largest=largest, **observed.record())

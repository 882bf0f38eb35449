"""How good a model is, and how far its INT8 twin is from it.

:func:`simulate` runs INT8 honestly on a CPU: Q/DQ pairs in the graph, and ONNX Runtime told to compute it as
written. That means graph optimization off, where the result is the fake-quant arithmetic bit for bit (x / scale
rounded to even, clipped to -128..127, times scale; float32 kernels between), or the EXTENDED level with
``session.disable_quant_qdq=1``, where it is that to about 3e-6. Other settings answer another question: BASIC
alone also quantizes biases, and ALL fuses across the pairs; both differ by as much as INT8 itself does.
Kernels on real int8 are no better: without VNNI instructions they saturate at 16 bits.

INT8 networks are chaotic. A change in the last bit of one bias moves their output by as much as rounding to
INT8 did, so two correct implementations agree in statistics, not in bits. Hence the intervals here: compare
them, or better :func:`difference`, which pairs the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from trtcal.errors import DataError, ModelError, NonFiniteError
from trtcal.files.brief import brief
from trtcal.judging.metrics import METRICS, Metric, Outputs, class_scores
from trtcal.model.open import Source, open_model
from trtcal.model.runner import Optimization, Runner
from trtcal.qdq.insert import QdqResult, check_int8, insert_qdq
from trtcal.qdq.weights import decibels
from trtcal.samples.batches import Batch
from trtcal.samples.held import Held, in_order

if TYPE_CHECKING:
    pass

Predict = Callable[[Mapping[str, np.ndarray]], Outputs]
"""Batch -> {output: array}; what any Runner is when called."""

Labels = Mapping[str, Any] | Sequence[Any] | np.ndarray
"""By sample name, or by position in the order of the batches."""

TOP1: Mapping[str, Metric] = MappingProxyType({"top1": METRICS["top1"]})
CONFIDENCE = 0.95  # of the intervals, unless told otherwise
FEW = 4  # rows of whole numbers; fewer are resampled one by one as others are
AT_ONCE = 1 << 21  # numbers drawn, 16 MiB of them


@dataclass(frozen=True, eq=False)
class Score:
    """A metric over a set of samples, with the interval that holds its true mean with ``confidence``.

    ``values`` has one number per sample, and ``value`` is their mean. A metric that gives one number for the
    whole set has neither values nor an interval (``low`` and ``high`` are nan).
    """

    value: float
    low: float
    high: float
    confidence: float
    values: np.ndarray = field(repr=False)


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Scores by metric, and the samples they were measured on, in order and without padding."""

    scores: Mapping[str, Score]
    samples: tuple[str, ...]

    __repr__ = brief


@dataclass(frozen=True, eq=False)
class OutputAgreement:
    """How one output of two models agrees over all samples.

    ``sqnr_db`` is 10 log10 of the first model's power over the power of the difference: inf where there is
    none, -inf where the first is all zeros. ``top1`` is the share of samples whose largest value is at the
    same place; None for outputs that are no (N, classes). ``noise``, (samples,), is the power of the difference
    in each sample over the first model's mean power per sample, so that ``sqnr_db`` is -10 log10 of its mean; None
    for outputs without a row per sample. ``floating``: whether the output is floating point in the first model; of
    integers, the distance says little.
    """

    sqnr_db: float
    cosine: float
    max_abs_error: float
    top1: Score | None
    noise: np.ndarray | None = field(default=None, repr=False)
    floating: bool = True


@dataclass(frozen=True, eq=False)
class Agreement:
    """Agreement of two models, per output, and the samples it was measured on."""

    outputs: Mapping[str, OutputAgreement]
    samples: tuple[str, ...]

    __repr__ = brief


def simulate(
    model: Source,
    scales: Mapping[str, np.float32],
    *,
    placement: str = "all",
    exclude: Iterable[str] = (),
    optimization: Optimization = "disabled",
) -> Runner:
    """Float model and scales -> a Runner that computes it as INT8; close it, or use it in ``with``.

    ``placement`` and ``exclude`` are those of ``trtcal.qdq.insert.insert_qdq``; the default is what TensorRT makes
    of a calibration cache. ``optimization`` "disabled" is exact, "extended" faster; "all" would not compute
    INT8 as TensorRT does, and raises ValueError. ModelError where nothing becomes INT8, and as insert_qdq.
    """
    if optimization == "all":
        raise ValueError("optimization 'all' changes the arithmetic of Q/DQ pairs; choose 'disabled' or 'extended'")
    model = open_model(model)
    return model.runner(int8_of(model, scales, placement, exclude).model, optimization=optimization)


def int8_of(
    model: Source,
    scales: Mapping[str, np.float32],
    placement: str,
    exclude: Iterable[str],
    name: str = "the model",
    samples: Iterable[Mapping[str, np.ndarray]] | None = None,
) -> QdqResult:
    """`insert_qdq`, to be measured: a float model must not pass for INT8, which is a ModelError."""
    exclude = tuple(exclude)
    result = insert_qdq(model, scales, placement=placement, exclude=exclude, samples=samples)
    if not exclude:  # with it, all that is left may be what was asked for
        check_int8(result.layers, result.skipped, name)
    return result


def evaluate(
    predict: Predict,
    batches: Iterable[Mapping[str, np.ndarray]],
    labels: Labels,
    metrics: Mapping[str, Metric] = TOP1,
) -> Accuracy:
    """Model, batches and labels -> scores, in one pass.

    ``labels`` go by sample name, or by position in the order of the batches. Padding rows are run but not
    counted. Outputs are kept only for metrics that want the whole set. DataError where labels are missing or
    a metric gives nan; ValueError where it gives neither one number nor one per sample.
    """
    scores = Scores(labels, metrics)
    for batch in batches:
        scores.add(*prediction(predict, batch, len(scores.samples)))
    return scores.result()


def agreement(reference: Predict, other: Predict, batches: Iterable[Mapping[str, np.ndarray]]) -> Agreement:
    """Two models on the same batches -> how far the second is from the first, per output, in one pass.

    Padding rows are run but not counted. ModelError where the models do not have the same outputs in the
    same shapes, NonFiniteError where one holds inf or nan.
    """
    distances = Distances()
    for batch in batches:
        names, expected = prediction(reference, batch, len(distances.samples))
        distances.add(names, expected, prediction(other, batch, len(distances.samples))[1])
    return distances.result()


class Scores:
    """What :func:`evaluate` adds up, for callers that go through the batches themselves."""

    def __init__(self, labels: Labels, metrics: Mapping[str, Metric] = TOP1) -> None:
        self.samples: list[str] = []
        self._labels, self._metrics = labels, metrics
        self._values: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
        self._on_all: set[str] = set()
        self._kept: list[Outputs] = []
        self._kept_labels: list[np.ndarray] = []

    def add(self, names: Sequence[str], outputs: Outputs) -> None:
        """Names of the next samples and a model's outputs for them."""
        truth = _labels_of(names, self._labels, len(self.samples))
        self.samples += names
        for name in self._metrics.keys() - self._on_all:
            result = np.asarray(self._metrics[name](outputs, truth), np.float64)
            if result.ndim == 0 and not self._values[name]:
                self._on_all.add(name)
            elif result.shape != (len(names),):
                raise ValueError(
                    f"metric {name!r} gave shape {result.shape} for {len(names)} samples; expected one number per "
                    f"sample, shape ({len(names)},), or a single number"
                )
            else:
                bad = np.flatnonzero(np.isnan(result))
                if bad.size:
                    raise DataError(f"metric {name!r} is nan for sample {names[bad[0]]}")
                self._values[name].append(result)
        if self._on_all:
            self._kept.append(outputs)
            self._kept_labels.append(truth)

    @property
    def holds_outputs(self) -> bool:
        """Does a metric want all outputs at once, so that they are kept?"""
        return bool(self._on_all)

    def result(self, *, whole: bool = True) -> Accuracy:
        """Everything added -> the scores; ``whole``: that must be all that there are labels for."""
        if not self.samples:
            raise DataError("there are no samples to evaluate on")
        if whole and not isinstance(self._labels, Mapping) and len(self._labels) != len(self.samples):
            raise DataError(f"there are {len(self._labels)} labels for {len(self.samples)} samples")
        scores = {}
        for name, metric in self._metrics.items():
            if name in self._on_all:
                everything = {key: _joined(key, [outputs[key] for outputs in self._kept]) for key in self._kept[0]}
                total = float(metric(everything, np.concatenate(self._kept_labels)))
                scores[name] = Score(total, math.nan, math.nan, CONFIDENCE, np.empty(0))
            else:
                scores[name] = score_of(np.concatenate(self._values[name]))
        return Accuracy(scores, tuple(self.samples))


class Distances:
    """What :func:`agreement` adds up, for callers that go through the batches themselves."""

    def __init__(self) -> None:
        self.samples: list[str] = []
        # Powers of the reference, of the other, of the difference; inner product.
        self._sums: dict[str, np.ndarray] = {}
        self._errors: dict[str, float] = {}
        self._same: dict[str, list[np.ndarray]] = {}
        self._noise: dict[str, list[np.ndarray] | None] = {}  # per sample, of outputs that have a row for each
        self._floating: dict[str, bool] = {}

    def add(self, names: Sequence[str], expected: Outputs, found: Outputs) -> None:
        """Names of the next samples, and both models' outputs for them."""
        self.samples += names
        if expected.keys() != found.keys():
            raise ModelError(f"the models' outputs differ: {', '.join(expected)} and {', '.join(found)}")
        for name in expected:
            a, b = (_finite(name, names, outputs[name]) for outputs in (expected, found))
            if a.shape != b.shape:
                raise ModelError(
                    f"output {name!r} is {a.shape} of one model and {b.shape} of the other; where its size depends on "
                    f"the values, as behind a Loop, compare models that are cut off before (onnx.utils.extract_model)"
                )
            self._floating.setdefault(name, np.asarray(expected[name]).dtype.kind == "f")
            apart = a - b
            noise = np.square(apart)
            powers = [np.square(a).sum(), np.square(b).sum(), noise.sum(), (a * b).sum()]
            self._sums[name] = self._sums.get(name, np.zeros(4)) + powers
            self._errors[name] = max(self._errors.get(name, 0.0), float(np.abs(apart, out=apart).max(initial=0)))
            rows = self._noise.setdefault(name, [])
            if not a.ndim or len(a) != len(names):
                self._noise[name] = None
            elif rows is not None:
                rows.append(noise.reshape(len(a), -1).sum(axis=1))
            scores = class_scores(a), class_scores(b)
            if scores[0] is not None and scores[1] is not None and len(scores[0]) == len(names):
                self._same.setdefault(name, []).append(scores[0].argmax(axis=1) == scores[1].argmax(axis=1))

    def result(self) -> Agreement:
        """Everything added -> the agreement per output."""
        if not self.samples:
            raise DataError("there are no samples to compare the models on")
        outputs = {}
        for name, (power, other_power, noise, inner) in self._sums.items():
            norms = math.sqrt(power) * math.sqrt(other_power)
            cosine = inner / norms if norms else float(power == other_power)
            hits = np.concatenate(self._same[name]).astype(np.float64) if name in self._same else None
            top1 = None if hits is None else score_of(hits)
            rows = self._noise[name]
            per_sample = None if rows is None else _shares(np.concatenate(rows), power)
            sqnr_db = decibels(power, noise)
            outputs[name] = OutputAgreement(
                sqnr_db, float(cosine), self._errors[name], top1, per_sample, self._floating[name]
            )
        return Agreement(outputs, tuple(self.samples))


class Reference:
    """A model's outputs for the batches, kept: what any number of other models is measured against.

    ``batches`` are kept, as far as a `Held` keeps them. ``metric``, a name and a function, is measured with ``labels``.
    """

    def __init__(
        self,
        predict: Predict,
        batches: Iterable[Mapping[str, np.ndarray]],
        labels: Labels | None = None,
        metric: tuple[str, Metric] | None = None,
        *,
        workers: int = 1,
    ) -> None:
        self._batches = batches if isinstance(batches, Held) else list(batches)
        self._labels, self._metric = labels, metric
        self._kept: list[tuple[list[str], Outputs]] = []
        self._power: dict[tuple[str, int | None], float] = {}
        self.samples = 0
        for kept in in_order(partial(_run, predict), _numbered(self._batches, 0), workers):
            self._kept.append(kept)
            self.samples += len(kept[0])

    def score(self) -> Score | None:
        """The metric of this model itself; None without a metric or labels."""
        scores = self._scores()
        if scores is not None:
            for names, outputs in self._kept:
                scores.add(names, outputs)
        return _only(scores)

    @property
    def floating(self) -> frozenset[str]:
        """Names of the outputs that are floating point."""
        return frozenset(
            name for _, outputs in self._kept[:1] for name, array in outputs.items() if array.dtype.kind == "f"
        )

    def compare(self, predict: Predict, outputs: Collection[str] | None = None) -> tuple[Agreement, Score | None]:
        """Another model -> how far these ``outputs`` of it (None: all) are from this one's, and the other's metric."""
        comparison = self.begin()
        self.go_on(comparison, predict, len(self._kept), outputs=outputs)
        return comparison.result()

    def begin(self) -> Comparison:
        """Nothing -> what :meth:`go_on` adds to."""
        return Comparison(Distances(), self._scores())

    def go_on(
        self,
        comparison: Comparison,
        predict: Predict,
        batches: int,
        *,
        outputs: Collection[str] | None = None,
        workers: int = 1,
    ) -> None:
        """Run a model on the batches from where its comparison is up to number ``batches``, so many at once.

        The comparison, of the same ``outputs`` each time, is then that of these batches in one go, to the last bit.
        """
        first, seen = comparison.batches, comparison.samples
        some = self._batches.some(first, batches) if isinstance(self._batches, Held) else self._batches[first:batches]
        ran = in_order(partial(_run, predict), _numbered(some, seen), workers)
        for (names, expected), (_, found) in zip(self._kept[first:batches], ran, strict=True):
            comparison.add(names, expected, found, outputs)

    def mean_power(self, output: str, batches: int | None = None) -> float:
        """Name of an output -> its mean power per sample, over the first ``batches`` (None: all)."""
        if (output, batches) not in self._power:
            kept = self._kept[:batches]
            power = sum(float(np.square(outputs[output], dtype=np.float64).sum()) for _, outputs in kept)
            self._power[output, batches] = power / sum(len(names) for names, _ in kept)
        return self._power[output, batches]

    def _scores(self) -> Scores | None:
        if self._labels is None or self._metric is None:
            return None
        return Scores(self._labels, dict([self._metric]))


class Comparison:
    """How far a model is from a :class:`Reference` on its first ``batches``, to go on with."""

    def __init__(self, distances: Distances, scores: Scores | None) -> None:
        self.distances, self.scores = distances, scores
        self.batches = self.samples = 0

    @property
    def holds_outputs(self) -> bool:
        """Does it keep the model's outputs, for a metric that wants all of them at once?"""
        return self.scores is not None and self.scores.holds_outputs

    def add(
        self, names: Sequence[str], expected: Outputs, found: Outputs, compared: Collection[str] | None = None
    ) -> None:
        """Names of the next batch's samples, both models' outputs, and which of them to compare (None: all)."""
        self.distances.add(names, *(_only_these(compared, of) for of in (expected, found)))
        if self.scores is not None:
            self.scores.add(names, found)
        self.batches += 1
        self.samples += len(names)

    def result(self, *, whole: bool = True) -> tuple[Agreement, Score | None]:
        """The agreement on the batches so far, and the metric; ``whole``: these must be all that have labels."""
        return self.distances.result(), _only(self.scores, whole=whole)


def prediction(predict: Predict, batch: Mapping[str, np.ndarray], seen: int) -> tuple[list[str], Outputs]:
    """Model, batch and number of samples before it -> names and outputs of the batch's valid rows."""
    rows = len(next(iter(batch.values())))
    numbers = [str(seen + row) for row in range(rows)]
    names = list(batch.samples[: batch.valid]) if isinstance(batch, Batch) else numbers
    outputs = predict(batch)
    if len(names) == rows:
        return names, outputs
    for name, array in outputs.items():
        if not array.ndim or len(array) != rows:
            raise ModelError(
                f"output {name!r} has shape {array.shape} for a batch of {rows}: without a row per sample, padding "
                f"cannot be left out of it; use partial='drop'"
            )
    return names, {name: array[: len(names)] for name, array in outputs.items()}


def difference(before: Score, after: Score) -> Score:
    """Two scores on the same samples -> after - before, with the interval of the paired differences.

    Narrower than the two scores' own intervals suggest: what makes a sample hard, it makes hard for both.
    ValueError where the scores have no values per sample, or not of as many.
    """
    if not before.values.size or before.values.shape != after.values.shape:
        raise ValueError(
            f"a difference needs scores of the same samples, got {before.values.size} and {after.values.size} values"
        )
    return score_of(after.values - before.values, after.confidence)


def bootstrap(
    values: np.ndarray, *, confidence: float = CONFIDENCE, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Values per sample (n,) -> interval (low, high) of their mean: percentiles over resampled sets of n.

    With a few samples, or all of them equal, it is too narrow: what no sample shows, it cannot know.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or np.isnan(values).any():
        raise ValueError(f"bootstrap needs one number per sample and no nan, got shape {values.shape}")
    return bootstraps(values[None], confidence=confidence, resamples=resamples, seed=seed)[0]


def bootstraps(
    values: np.ndarray, *, confidence: float = CONFIDENCE, resamples: int = 1000, seed: int = 0
) -> list[tuple[float, float]]:
    """What :func:`bootstrap` says of each row of (rows, samples), to the last bit: all are resampled alike, at once."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.shape[1] or np.isnan(values).any():
        raise ValueError(f"bootstrap needs one number per sample and no nan, got shape {values.shape}")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"bootstrap needs 0 < confidence < 1 and resamples >= 1, got {confidence}, {resamples}")
    rng, samples = np.random.default_rng(seed), values.shape[1]
    # Whole numbers add exactly in any order, so that how often each sample was drawn is enough; it pays from a few on.
    whole = np.all((values == np.rint(values)) & (np.abs(values) <= 2**53 / samples), axis=1)
    whole &= np.count_nonzero(whole) > FEW
    means = np.empty((len(values), resamples))
    step = max(1, AT_ONCE // samples)
    for first in range(0, resamples, step):
        some = slice(first, min(first + step, resamples))
        drawn = rng.integers(samples, size=(some.stop - first, samples))
        if whole.any():
            places = drawn + samples * np.arange(len(drawn))[:, None]
            times = np.bincount(places.reshape(-1), minlength=drawn.size).reshape(drawn.shape)
            means[whole, some] = values[whole] @ times.T.astype(np.float64) / samples
        for row in np.flatnonzero(~whole):
            means[row, some] = values[row][drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def score_of(values: np.ndarray, confidence: float = CONFIDENCE) -> Score:
    """One number per sample (n,) -> their mean, with its interval."""
    low, high = bootstrap(values, confidence=confidence)
    return Score(float(values.mean()), low, high, confidence, values)


def _only(scores: Scores | None, *, whole: bool = True) -> Score | None:
    return None if scores is None else next(iter(scores.result(whole=whole).scores.values()))


def _numbered(batches: Iterable[Mapping[str, np.ndarray]], seen: int) -> Iterator[tuple[Mapping[str, np.ndarray], int]]:
    """Each batch, and how many samples come before it."""
    for batch in batches:
        yield batch, seen
        seen += batch.valid if isinstance(batch, Batch) else len(next(iter(batch.values())))


def _run(predict: Predict, item: tuple[Mapping[str, np.ndarray], int]) -> tuple[list[str], Outputs]:
    return prediction(predict, *item)


def _only_these(names: Collection[str] | None, outputs: Outputs) -> Outputs:
    return outputs if names is None else {name: array for name, array in outputs.items() if name in names}


def _shares(noise: np.ndarray, power: float) -> np.ndarray:
    """Noise per sample and the power of all samples -> each over the mean power; inf where there is none of that."""
    mean = power / len(noise)
    return noise / mean if mean > 0 else np.where(noise > 0, np.inf, 0.0)


def _labels_of(names: Sequence[str], labels: Labels, first: int) -> np.ndarray:
    if isinstance(labels, Mapping):
        missing = [name for name in names if name not in labels]
        if missing:
            raise DataError(f"sample {missing[0]} has no label ({len(labels)} samples have one)")
        found = [labels[name] for name in names]
    else:
        found = list(labels[first : first + len(names)])
        if len(found) < len(names):
            raise DataError(f"there are {len(labels)} labels, and more samples: {names[len(found)]} has none")
    if all(np.isscalar(label) for label in found):
        return np.asarray(found)
    array = np.empty(len(found), object)
    for row, label in enumerate(found):  # all at once, lists of one length would become a second axis
        array[row] = label
    return array


def _finite(output: str, names: Sequence[str], array: np.ndarray) -> np.ndarray:
    array = np.asarray(array, np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        bad = np.argwhere(~finite)
        where = f"sample {names[bad[0][0]]}" if array.ndim and len(array) == len(names) else "the batch of " + names[0]
        raise NonFiniteError(f"output {output!r} holds inf or nan for {where}: there is no distance to measure")
    return array


def _joined(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        raise DataError(
            f"output {name!r} has rows of several shapes ({', '.join(map(str, sorted(shapes)))}), so it cannot be "
            f"given to a metric in one array; let the metric return one number per sample"
        )
    return np.concatenate(arrays)

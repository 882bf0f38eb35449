"""A model on a user's data: how good it is, how far from FP32, in one pass over the samples."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trtcal.errors import DataError, ModelError
from trtcal.files.brief import brief
from trtcal.judging.accuracy import (
    TOP1,
    Agreement,
    Distances,
    Labels,
    Predict,
    Score,
    Scores,
    difference,
    int8_of,
    prediction,
)
from trtcal.judging.metrics import METRICS, Metric, Outputs
from trtcal.model.open import Model, Source, open_model
from trtcal.model.runner import Runner
from trtcal.model.unknown import some
from trtcal.passes.sharing import resolved
from trtcal.qdq.insert import check_exclude, fitting, int8_candidates
from trtcal.qdq.reached import int8_outputs, outputs_behind_int8
from trtcal.samples.batches import Batches, Samples
from trtcal.samples.conform import as_dtype
from trtcal.samples.labels import class_numbers, is_number, read_labels, refuse_unlabelled
from trtcal.samples.listed import Listed
from trtcal.spec import InputSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of a model and of its reference, what changed from one to the other, and how they agree.

    ``scores`` is empty where no labels are known; ``reference`` and ``changes`` are empty and ``agreement`` is
    None without a reference. ``changes`` has the metrics that give a number per sample, paired. ``reached`` names the
    outputs that depend on a layer in INT8, None where that is not known.
    """

    samples: tuple[str, ...]
    scores: Mapping[str, Score]
    reference: Mapping[str, Score]
    changes: Mapping[str, Score]
    agreement: Agreement | None
    reached: frozenset[str] | None = None

    __repr__ = brief

    def to_dict(self) -> dict[str, Any]:
        """Nothing -> plain data for JSON, where inf and nan are text and null."""
        outputs = {} if self.agreement is None else self.agreement.outputs
        return {
            "samples": len(self.samples),
            "scores": {name: _plain_score(score) for name, score in self.scores.items()},
            "reference_scores": {name: _plain_score(score) for name, score in self.reference.items()},
            "changes": {name: _plain_score(score) for name, score in self.changes.items()},
            "agreement": {
                name: {
                    "sqnr_db": plain(output.sqnr_db),
                    "cosine": plain(output.cosine),
                    "max_abs_error": plain(output.max_abs_error),
                    "top1": None if output.top1 is None else _plain_score(output.top1),
                    "floating": output.floating,
                    "depends_on_int8": None if self.reached is None else name in self.reached,
                }
                for name, output in outputs.items()
            },
        }


def compare(
    predict: Predict,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    reference: Predict | None = None,
    labels: Labels | None = None,
    metrics: Mapping[str, Metric] = TOP1,
    reached: frozenset[str] | None = None,
) -> Evaluation:
    """Model, batches, perhaps its FP32 reference and labels -> :class:`Evaluation`, each model run once.

    ``reached``: its outputs that depend on a layer in INT8, as `open_runner` tells them.

    Raises what `evaluate` and `agreement` raise; ValueError where
    there are neither labels nor a reference, and so nothing to measure.
    """
    if labels is None and reference is None:
        raise ValueError("nothing to measure: the samples have no labels, and there is no FP32 model to compare with")
    truth = () if labels is None else labels
    scores, reference_scores, distances = Scores(truth, metrics), Scores(truth, metrics), Distances()
    samples: list[str] = []
    for batch in batches:
        names, found = prediction(predict, batch, len(samples))
        if labels is not None:
            scores.add(names, found)
        if reference is not None:
            _, expected = prediction(reference, batch, len(samples))
            distances.add(names, expected, found)
            if labels is not None:
                reference_scores.add(names, expected)
        samples += names
    if not samples:
        raise DataError("there are no samples to evaluate on")
    after = {} if labels is None else scores.result().scores
    before = {} if labels is None or reference is None else reference_scores.result().scores
    changes = {name: difference(before[name], after[name]) for name in before if before[name].values.size}
    agreement = None if reference is None else distances.result()
    return Evaluation(tuple(samples), after, before, changes, agreement, reached)


class Opened(NamedTuple):
    """A Runner, how many layers are INT8 of those that could be, and (tensor, reason) for what stays in float.

    A model that runs as it is written has None for both numbers: what is INT8 in it is not known. ``reached`` has its
    outputs that depend on a layer in INT8, or, as it is written, on a value that it rounds; None of a float model.
    """

    runner: Runner
    int8: int | None = None
    candidates: int | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    reached: frozenset[str] | None = None


def open_runner(
    model: Source,
    batches: Batches,
    *,
    scales: Mapping[str, np.float32] | None = None,
    placement: str = "all",
    exclude: Iterable[str] = (),
) -> Opened:
    """Model -> a Runner for these batches, and what is INT8 in it.

    With ``scales`` the model is computed as INT8, by ``placement`` and ``exclude`` of
    :func:`trtcal.qdq.insert.insert_qdq`; without, as it is written, Q/DQ pairs included. Graph optimization is off,
    so that Q/DQ is computed exactly. A batch size that the file fixes gives way to that of the batches; operators that
    ONNX Runtime does not know are left out, see `Model.for_judging`. ModelError where nothing becomes INT8 with the
    ``scales``.
    """
    given = open_model(model)
    exclude = tuple(exclude)
    if scales is not None:
        check_exclude(given, exclude)
        scales = {name: scale for name, scale in scales.items() if name not in given.unknown.tensors}
    model = resolved(given.for_judging(), batches, judged=True)
    exclude = fitting(model, exclude) if given.unknown else exclude
    with blaming_batch_size(model, batches.batch_size):
        ready = for_batches(model, batches.batch_size)
        if scales is None:
            rounded = frozenset(outputs_behind_int8(ready))
            return Opened(ready.runner(), reached=rounded or None)
        result = int8_of(ready, scales, placement, exclude, model.name, batches)
        candidates = int8_candidates(ready, placement=placement, exclude=exclude)
        reached = frozenset(int8_outputs(ready, scales, placement=placement, exclude=exclude))
        return Opened(ready.runner(result.model), len(result.layers), candidates, result.skipped, reached)


def fed_as(predict: Predict, inputs: Sequence[InputSpec]) -> Predict:
    """Model and what it wants to be fed -> the same, for batches of another dtype, as an engine may want them.

    TensorRT 8 reads int64 inputs as int32, for one. DataError for a value that the model's dtype does not have.
    """
    dtypes = {spec.name: spec.dtype for spec in inputs}

    def converted(batch: Mapping[str, np.ndarray]) -> Outputs:
        return predict({name: as_dtype(array, dtypes.get(name, array.dtype)) for name, array in batch.items()})

    return converted


def for_batches(model: Model, size: int) -> Model:
    """Model -> itself if it takes batches of ``size``, else one that does, and a warning.

    Of a model whose samples run one by one (`Model.by_rows`), one that takes one; `for_rows` runs it.
    """
    changed = model.with_batch_size(1 if model.by_rows else size)
    if changed is not model:
        logger.warning("%s: has batch size %d built in; running it with %d", model.name, model.batch_size, size)
    return changed


@contextmanager
def blaming_batch_size(model: Model, size: int) -> Iterator[None]:
    """A block that runs a model with batches of ``size``: a ModelError there says what may be to blame."""
    try:
        yield
    except ModelError as error:
        fixed = model.batch_size
        if fixed in (None, size):
            raise
        raise ModelError(f"{model.name}: has batch size {fixed} built in; use batches of {fixed} ({error})") from error


def labels_of(batches: Batches, path: str | os.PathLike[str] | None, metrics: Iterable[str]) -> Labels | None:
    """Batches, perhaps a CSV file of ``sample,label`` rows -> labels of the samples used; None where none are known.

    The file goes before what the samples say themselves. Its labels are class numbers, or class names numbered
    in sorted order, wherever one of the ``metrics`` counts classes; for metrics of the user's own alone, texts
    that are not all numbers stay texts. DataError for a file that does not fit, or a sample without a row.
    A warning where the samples are a part that is spread over classes, and scores are of another mix than all have.
    """
    if batches.mix is not None:
        logger.warning("scores are of a part of the samples that is spread over classes: %s", batches.mix)
    if path is None:
        return batches.labels
    names = batches.sample_names
    source = batches.source
    every = [source.name(index) for index in range(len(source))] if isinstance(source, Samples) else names
    labels = read_labels(path, every, part=isinstance(source, Listed))
    refuse_unlabelled(path, names, labels)
    if METRICS.keys() & set(metrics) or all(map(is_number, labels.values())):
        return class_numbers(path, labels)
    return {name: label.text for name, label in labels.items()}


def for_metric(model: Model, labels: Labels | None, *, asked: bool) -> Labels | None:
    """Model, labels of the samples -> these, where a metric can be measured: it takes all of the model's outputs.

    Where some cannot be computed, since ONNX Runtime does not know an operator, None and a warning; ModelError where
    somebody ``asked`` for a metric.
    """
    if labels is None or not model.unknown.missing:
        return labels
    why = (
        f"{model.name}: a metric needs all outputs of the model, and ONNX Runtime cannot compute "
        f"{some(model.unknown.missing)}, since it does not know {model.unknown}{model.unknown.advice}"
    )
    if asked:
        raise ModelError(f"{why}; leave out --labels and --metric to compare INT8 with FP32 before it")
    logger.warning("%s; the labels of the samples are not used", why)
    return None


def judged_by(batches: Batches, labels: Labels | None, metric: str) -> str:
    """Samples, their labels as :func:`labels_of` has them, and a metric's name -> SHA-256 (hex) of what judges a model.

    Equal ones judge alike: the contents count, of a metric's file as well, and where these lie does not. Without labels
    no metric is asked. DataError where the metric's file cannot be read.
    """
    parts: list[Any] = [batches.key()]
    if labels is not None:
        parts.append([labels[name] for name in batches.sample_names] if isinstance(labels, Mapping) else list(labels))
        file, _, function = metric.rpartition(":")
        try:
            parts += [hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None, function]
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def plain(value: float) -> float | str | None:
    """A number -> what JSON can say of it: itself, "inf" or "-inf", None for nan."""
    if math.isfinite(value):
        return float(value)
    return None if math.isnan(value) else str(value)


def _plain_score(score: Score) -> dict[str, Any]:
    return {
        "value": plain(score.value),
        "low": plain(score.low),
        "high": plain(score.high),
        "confidence": score.confidence,
    }

"""What a set of ranges does to a model, judged without a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from trtcal.calibration.calibrate import carried
from trtcal.errors import DataError
from trtcal.judging.accuracy import Comparison, Labels, Reference
from trtcal.judging.evaluation import for_batches, for_metric
from trtcal.judging.metrics import Metric
from trtcal.judging.simulator import Simulator
from trtcal.model.open import Source, open_model
from trtcal.model.runner import Runner
from trtcal.passes.sharing import resolved
from trtcal.qdq.insert import MIN_OPSET, fitting
from trtcal.qdq.reached import int8_outputs
from trtcal.qdq.weights import decibels
from trtcal.samples.batches import Batches, Samples
from trtcal.samples.held import Held
from trtcal.sweep.judge import Step
from trtcal.sweep.trials import Judgement

NAMED = 6  # outputs in a sentence
FIRST = 16  # samples, after which sets of ranges are compared for the first time


class CpuJudge:
    """Judges a set of ranges by running the model with them as INT8 on this CPU, as `simulate` does.

    ``labels`` and ``metric`` give the accuracy, if there are any. Compared with the FP32 model are the float outputs
    that depend on an INT8 layer, and no others: agreement is of the first of them that is (N, classes), and the SQNR is
    the lowest of them all. Where there is none, neither is known. So many batches run at once as there are ``workers``
    (default: one per core).

    It can stop after a part of the samples (`Stepwise`), unless a class made from it says that it is not ``stepwise``.
    Samples are taken in the order of `Batches.first_spread`, so that what the first of them say is said of all.
    """

    stepwise = True

    def __init__(
        self,
        model: Source,
        batches: Batches,
        labels: Labels | None = None,
        metric: Metric | None = None,
        exclude: Iterable[str] = (),
        *,
        workers: int | None = None,
    ) -> None:
        given = open_model(model)
        self.notes = (f"{given.compared}.",) if given.compared else ()
        labels = for_metric(given, labels, asked=metric is not None)
        self.model = resolved(given.for_judging(), batches, judged=True)
        self.batches, self._places = batches.first_spread(FIRST)
        self.labels, self.metric = labels, metric
        if labels is not None and not isinstance(labels, Mapping) and len(labels) == len(self._places):
            self.labels = [labels[place] for place in self._places]
        self.exclude = fitting(self.model, exclude) if given.unknown else tuple(exclude)
        self.workers = workers or os.cpu_count() or 1
        self.ready = for_batches(self.model, batches.batch_size).with_weights()
        self._sources = self.model.calibrated.sources
        self._reference: Reference | None = None
        self._reached: dict[frozenset[str], frozenset[str]] = {}  # outputs, by the tensors that have a scale
        self._simulator: Simulator | None = None

    def __call__(self, amax: Mapping[str, np.float32]) -> Judgement:
        """Tensor -> amax; how the model performs with these on all samples, in the order of the batches."""
        return self.as_given(self.go_on(Step(amax, None, self.batches.num_samples))[0])

    def steps(self) -> list[int]:
        """Nothing -> after how many samples sets of ranges are to be compared: a few, twice as many, ..., all.

        Of a stream all at once, since its first samples may be of one kind.
        """
        total, size = self.batches.num_samples, self.batches.batch_size
        few, found = -(-FIRST // size) * size, []
        while few < total and isinstance(self.batches.source, Samples):
            found.append(few)
            few *= 2
        return [*found, total]

    def go_on(self, step: Step) -> tuple[Judgement, Comparison | None]:
        """Ranges, and how far they are judged -> how the model performs with them, and with what to go on.

        Values per sample are in the order in which these are taken. None where the metric wants all outputs at once:
        such a comparison begins anew.
        """
        reference, size = self._ready_reference(), self.batches.batch_size
        whole = step.samples >= self.batches.num_samples
        batches = len(self.batches) if whole else -(-step.samples // size)
        comparison: Comparison = step.so_far or reference.begin()
        scales = {
            name: value / np.float32(127)
            for name, value in carried(self._sources, step.amax).items()
            if 0 < value < np.inf
        }
        compared = self.reached(scales) & reference.floating
        with self.quantized(scales) as runner:
            reference.go_on(comparison, runner, batches, outputs=compared, workers=self.workers)
        found, score = comparison.result(whole=whole)
        outputs = {  # FP32's zeros say nothing
            name: output for name, output in found.outputs.items() if output.sqnr_db != -np.inf
        }
        agreement = next((output.top1.values for output in outputs.values() if output.top1 is not None), None)
        worst = min(outputs, key=lambda name: outputs[name].sqnr_db, default=None)
        accuracy = None
        if score is not None:
            if np.isnan(score.value):
                raise DataError("the metric is nan")
            accuracy = score.values if score.values.size else np.array([score.value])
        sqnr_db = noise = None
        if worst is not None:
            sqnr_db, noise = outputs[worst].sqnr_db, outputs[worst].noise
            if noise is not None and comparison.samples < reference.samples:
                # Judgements on more samples and on fewer are compared, so both are over the same power.
                noise = noise * (reference.mean_power(worst, comparison.batches) / reference.mean_power(worst))
                sqnr_db = decibels(1.0, float(noise.mean()))
        judgement = Judgement(accuracy, agreement, sqnr_db, noise, len(found.samples))
        return judgement, None if comparison.holds_outputs else comparison

    def as_given(self, judgement: Judgement) -> Judgement:
        """A judgement on all samples, as they were taken -> the same in the order of the batches."""

        def given(values: np.ndarray | None) -> np.ndarray | None:
            if values is None or len(values) != len(self._places):  # one for the whole set
                return values
            found = np.empty_like(values)
            found[self._places] = values
            return found

        accuracy, agreement, noise = map(given, (judgement.accuracy, judgement.agreement, judgement.noise))
        return replace(judgement, accuracy=accuracy, agreement=agreement, noise=noise)

    def reached(self, scales: Mapping[str, np.float32]) -> frozenset[str]:
        """Tensor -> scale; the outputs that depend on a layer which these make INT8."""
        tensors = frozenset(scales)
        if tensors not in self._reached:
            self._reached[tensors] = frozenset(int8_outputs(self.ready, scales, exclude=self.exclude))
        return self._reached[tensors]

    def account(self, amax: Mapping[str, np.float32]) -> str:
        """Tensor -> amax; which outputs are compared with FP32 and which are not, in words; "" where all are."""
        scales = {name: np.float32(1) for name, value in carried(self._sources, amax).items() if 0 < value < np.inf}
        reached = self.reached(scales)
        integers = {spec.name for spec in self.ready.outputs if spec.dtype is not None and spec.dtype.kind != "f"}
        names = [spec.name for spec in self.ready.outputs]
        compared = [name for name in names if name in reached - integers]
        others = [name for name in names if name not in compared]
        told = [f"{name} ({'integers' if name in integers else 'no layer in INT8 leads to it'})" for name in others]
        more = f", and {len(told) - NAMED} more" if len(told) > NAMED else ""
        if not compared:
            said = "Nothing is compared with FP32: no floating-point output depends on a layer in INT8; the outputs are"
            return f"{said} {', '.join(told[:NAMED])}{more}."
        if not others:
            return ""
        first = ", ".join(compared[:NAMED]) + (f" and {len(compared) - NAMED} more" if len(compared) > NAMED else "")
        return f"Compared with FP32: {first}; not {', '.join(told[:NAMED])}{more}."

    def quantized(self, scales: Mapping[str, np.float32]) -> Runner:
        """Tensor -> scale; the model as INT8 with these."""
        if self._simulator is None:
            self._simulator = Simulator(self.ready, exclude=self.exclude)
        return self._simulator(scales)

    def _ready_reference(self) -> Reference:
        if self._reference is None:
            held = Held(self.batches)
            metric = None if self.metric is None else ("metric", self.metric)
            with self.ready.runner(threads=1) as runner:
                self._reference = Reference(runner, held, self.labels, metric, workers=self.workers)
            self.ready = self.ready.with_opset(MIN_OPSET, held)  # once, and not for each set of ranges
        return self._reference

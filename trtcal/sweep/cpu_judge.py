"""What a set of ranges does to a model, judged without a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from trtcal.calibration.calibrate import carried
from trtcal.errors import DataError
from trtcal.judging.accuracy import Labels, Reference, simulate
from trtcal.judging.evaluation import for_batches
from trtcal.judging.metrics import Metric
from trtcal.model.open import Source, for_rows, open_model
from trtcal.model.runner import OrtRunner, Runner
from trtcal.passes.sharing import resolved
from trtcal.qdq.insert import MIN_OPSET
from trtcal.qdq.reached import int8_outputs
from trtcal.samples.batches import Batches
from trtcal.sweep.trials import Judgement


class CpuJudge:
    """Judges a set of ranges by running the model with them as INT8 on this CPU (`simulate`).

    ``labels`` and ``metric`` give the accuracy, if there are any. Compared with the FP32 model are the float outputs
    that depend on an INT8 layer, and no others: agreement is of the first of them that is (N, classes), and the SQNR is
    the lowest of them all. Where there is none, neither is known.
    """

    def __init__(
        self,
        model: Source,
        batches: Batches,
        labels: Labels | None = None,
        metric: Metric | None = None,
        exclude: Iterable[str] = (),
    ) -> None:
        self.model = resolved(open_model(model), batches, judged=True)
        self.batches, self.labels, self.metric = batches, labels, metric
        self.exclude = tuple(exclude)
        self.ready = for_batches(self.model, batches.batch_size).with_weights()
        self._sources = self.model.calibrated.sources
        self._reference: Reference | None = None
        self._reached: dict[frozenset[str], frozenset[str]] = {}  # outputs, by the tensors that have a scale

    def __call__(self, amax: Mapping[str, np.float32]) -> Judgement:
        """Tensor -> amax; how the model performs with these."""
        if self._reference is None:
            metric = None if self.metric is None else ("metric", self.metric)
            with for_rows(OrtRunner(self.ready.whole), self.ready) as runner:
                self._reference = Reference(runner, self.batches, self.labels, metric)
            self.ready = self.ready.with_opset(MIN_OPSET, self.batches)  # once, and not for each set of ranges
        scales = {
            name: value / np.float32(127) for name, value in carried(self._sources, amax).items() if 0 < value < np.inf
        }
        compared = self.reached(scales) & self._reference.floating
        with self.quantized(scales) as runner:
            found, score = self._reference.compare(runner, compared)
        outputs = [output for output in found.outputs.values() if output.sqnr_db != -np.inf]  # FP32's zeros say nothing
        agreement = next((output.top1.values for output in outputs if output.top1 is not None), None)
        worst = min(outputs, key=lambda output: output.sqnr_db, default=None)
        accuracy = None
        if score is not None:
            if np.isnan(score.value):
                raise DataError("the metric is nan")
            accuracy = score.values if score.values.size else np.array([score.value])
        return Judgement(accuracy, agreement, *((None, None) if worst is None else (worst.sqnr_db, worst.noise)))

    def reached(self, scales: Mapping[str, np.float32]) -> frozenset[str]:
        """Tensor -> scale; the outputs that depend on a layer which these make INT8."""
        tensors = frozenset(scales)
        if tensors not in self._reached:
            self._reached[tensors] = frozenset(int8_outputs(self.ready, scales, exclude=self.exclude))
        return self._reached[tensors]

    def quantized(self, scales: Mapping[str, np.float32]) -> Runner:
        """Tensor -> scale; the model as INT8 with these."""
        return simulate(self.ready, scales, exclude=self.exclude)

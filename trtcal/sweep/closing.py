"""A look at a fresh cache: how near INT8 by it is to FP32 on a few samples, so that a collapse is seen at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtcal.cache.cache import CalibrationCache
from trtcal.judging.evaluation import plain
from trtcal.model.open import Model
from trtcal.samples.batches import Batches
from trtcal.spec import built_in_batch_size
from trtcal.sweep.cpu_judge import CpuJudge

logger = logging.getLogger(__name__)

SAMPLES = 16
DEARER = 1.6  # times a sample of the pass, at most; 0.1 to 1.6 on five models from a CNN of 16 tensors to ResNet-50
SOON = 2.0  # seconds that nobody minds, whatever the pass took
BATCH_SIZE = 8
LARGE = 1 << 30  # bytes of a model that is not compared unasked
FAR = 10.0  # dB; below it the difference has a tenth of the output's power


@dataclass(frozen=True)
class Closing:
    """Looks at caches of a model on some of the samples that made them; what ``calibrate_to_file`` calls at its end.

    ``always``: also where it is expected to cost more than the pass did.
    """

    model: Model
    batches: Batches
    always: bool = False

    def __call__(self, cache: CalibrationCache, seconds_per_sample: float | None) -> Mapping[str, Any]:
        """A cache, and what a sample of the pass took, if there was one -> what is found, for JSON.

        ``samples``, and of these ``sqnr_db``, as plain data, and ``agreement``, the share of the same classes, None
        where there are none; or else ``left_out``: why nothing is known. Never raises: a check that fails is a warning.
        """
        try:
            return self._look(cache, seconds_per_sample)
        except Exception as error:  # whatever it is: the calibration is done, and is as good as it was
            logger.warning("INT8 by this cache could not be compared with FP32: %s", error)
            return {"left_out": f"it failed: {error}"}

    def _look(self, cache: CalibrationCache, seconds_per_sample: float | None) -> Mapping[str, Any]:
        size = built_in_batch_size(self.model.inputs) or BATCH_SIZE
        samples = min(SAMPLES, self.batches.num_samples)
        rows = -(-samples // size) * size
        if not self.always and sum(file.stat().st_size for file in self.model.files) > LARGE:
            return {"left_out": "the model is large, and is held several times for it; --check compares all the same"}
        if seconds_per_sample is not None and not self.always:
            all_samples = seconds_per_sample * self.batches.num_samples
            if DEARER * rows * seconds_per_sample > max(SOON, all_samples):
                return {"left_out": "it would take longer than the calibration did; --check compares all the same"}
        found = CpuJudge(self.model, self.batches.part(samples).in_batches_of(size))(
            {name: cache.amax(name) for name in cache}
        )
        if found.sqnr_db is None:
            return {"left_out": "no floating-point output depends on a layer in INT8, or all are zero"}
        agreement = None if found.agreement is None else float(found.agreement.mean())
        return {"samples": samples, "sqnr_db": plain(found.sqnr_db), "agreement": agreement}


def in_words(found: Mapping[str, Any], *, chosen: bool = False) -> str:
    """What a :class:`Closing` gave, and whether methods were compared already -> a line for people; "" for nothing."""
    if not found:
        return ""
    if "left_out" in found:
        return f"INT8 by this cache was not compared with FP32: {found['left_out']}"
    samples, sqnr_db, agreement = found["samples"], float(found["sqnr_db"]), found["agreement"]
    same = "" if agreement is None else f", the same class in {round(agreement * samples)} of {samples}"
    far = ""
    if sqnr_db < FAR:
        methods = "" if chosen else "--method auto compares methods, and "
        far = f"; that is far from FP32: {methods}trtcal sensitivity names the layers that cost most"
    return f"INT8 by this cache against FP32, on {samples} of the samples: SQNR {sqnr_db:.1f} dB{same}{far}"

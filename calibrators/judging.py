"""Ranges -> how a real engine performs with them: the judge of ``trtcal sweep --engine``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from calibrators import versions
from calibrators.cached import DEFAULT, CachedCalibrator
from calibrators.engine import BuiltEngine, build_engine
from calibrators.memory import DeviceMemory, open_memory
from calibrators.runner import Engine
from calibrators.shapes import Range, extremes
from trtcal.cache.cache import CalibrationCache, version_number
from trtcal.calibration.calibrate import TRT_VERSION
from trtcal.errors import ModelError
from trtcal.judging.accuracy import Labels
from trtcal.judging.metrics import Metric
from trtcal.model.open import Model, Source
from trtcal.qdq.file import qdq_to_file
from trtcal.samples.batches import Batches
from trtcal.sweep.cpu_judge import CpuJudge


class EngineJudge(CpuJudge):
    """Judges a set of ranges by an engine that TensorRT builds with them, on this GPU.

    On TensorRT 8 and 10 the ranges are handed over as a calibration cache, and layers may run in FP16 where that is
    faster, as ``trtcal build`` does it. TensorRT 11 takes no cache: there they become Q/DQ pairs, and what is not INT8
    stays in the model's own precision.

    Compared is with the FP32 model in ONNX Runtime, as `CpuJudge` does it: so the two judges differ
    in the INT8 model alone, and whatever else TensorRT does to the numbers counts as well.

    ``timing_cache``: file in which all builds keep their timings, so that what was measured for one engine need not
    be for the next. ``memory``: as `calibrators.memory.open_memory` takes it.
    """

    stepwise = False  # an engine is built for a whole judgement

    def __init__(
        self,
        model: Source,
        batches: Batches,
        labels: Labels | None = None,
        metric: Metric | None = None,
        *,
        timing_cache: str | os.PathLike[str] | None = None,
        memory: str | DeviceMemory | None = None,
    ) -> None:
        super().__init__(model, batches, labels, metric, workers=1)  # an engine runs one batch after the other
        if self.model.by_rows:
            raise ModelError(
                f"{self.model.name}: an engine counts samples on the first axis of every input, and this model does "
                f"not; leave --engine out, and ranges are judged in ONNX Runtime"
            )
        self.timing_cache, self.memory = timing_cache, memory
        self._shapes: dict[str, Range] | None = None
        self._builder: Any = None

    def quantized(self, scales: Mapping[str, np.float32]) -> Engine:
        """Tensor -> scale; the engine that TensorRT builds with these."""
        if versions.has_calibrators(versions.tensorrt()):
            cache = CalibrationCache(version_number(TRT_VERSION), DEFAULT, scales)
            built = self._build(self.model, calibrator=CachedCalibrator(cache))
        else:
            with TemporaryDirectory(prefix="trtcal-") as folder:
                pairs = qdq_to_file(self.model, scales, Path(folder) / "model.onnx")
                built = self._build(pairs.files[0], precision="fp32")
        return Engine(built.plan, memory=self.memory, name=f"the engine of {self.model.name}")

    def _build(self, model: Path | Model, **how: Any) -> BuiltEngine:
        from calibrators.trtlog import new_builder

        if self._shapes is None:
            self._shapes = self._ranges()
        if self._builder is None:
            self._builder = new_builder()
        return build_engine(model, shapes=self._shapes, timing_cache=self.timing_cache, builder=self._builder, **how)

    def _ranges(self) -> dict[str, Range]:
        """Inputs with dynamic axes -> from one sample, where the file allows, up to a batch, in every shape to come."""
        batch = self.model.batch_size
        dynamic = [spec for spec in self.model.inputs if batch is None or None in spec.shape]
        first, last = (1, self.batches.batch_size) if batch is None else (batch, batch)
        return {
            name: Range((first, *low), (last, *high), (last, *high))
            for name, (low, high) in extremes(dynamic, self.batches).items()
        }


def identity(memory: str | DeviceMemory | None = None) -> str:
    """TensorRT's version and the name of the GPU that an `EngineJudge` with this ``memory`` uses: whose judgements.

    BackendError without them.
    """
    trt = versions.tensorrt()
    opened = open_memory(memory)
    try:
        return f"TensorRT {trt.__version__} on {opened.device_name()}"
    finally:
        if opened is not memory:
            opened.close()

"""Calibration by thresholds of our own, which TensorRT is given as its cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from calibrators import versions
from calibrators.cached import DEFAULT, HandedOver
from calibrators.feed import Feed
from calibrators.memory import DeviceMemory
from calibrators.store import TENSORRT, CacheStore, data_inputs
from trtcal.cache.cache import CalibrationCache, version_number
from trtcal.cache.provenance import Provenance, origin
from trtcal.errors import BackendError, ModelError
from trtcal.model.open import library_versions
from trtcal.model.read import model_files
from trtcal.ranges.thresholds import method as threshold_method

logger = logging.getLogger(__name__)


class HasCache(Protocol):
    """What a calibration gives back: at least its ranges."""

    @property
    def cache(self) -> CalibrationCache:
        """The ranges."""


class ThresholdCalibrator(HandedOver):
    """Batches and a model -> ranges by one of trtcal's methods: ``mse``, or any other in `trtcal.METHODS`.

    TensorRT has no hook for a threshold of one's own. So the ranges are collected before the build, when the object is
    made, by running the model in FP32, and TensorRT is given them as its cache; it does not calibrate on the data.
    ``algorithm`` (a key of `versions.BASES`) chooses the class of TensorRT's that hands them over; the default is the
    only one that DLA takes. Batch size and order change the result of entropy alone.

    The model runs in TensorRT on the GPU (`calibrators.gpu_stats.collect_on_gpu`) or, where that cannot be, in ONNX
    Runtime on the CPU (`trtcal.calibrate`), with the reason in the log; ``collected_on`` says which it was. Values
    differ in the last bits between the two, as between any implementations in FP32, and ranges with them.

    ``cache``, ``policy`` and ``data_key`` are those of `FedCalibrator`; ``memory`` is what `open_memory` takes;
    ``collect`` replaces both passes: it is called with the model's path, the batches and the method. ``libraries`` have
    custom operators for ONNX Runtime. Raises at once whatever goes wrong in the pass.
    """

    collected_on: str | None
    """"gpu" or "cpu"; None where ranges were found in the cache, or ``collect`` made them."""

    def __new__(cls, batches: Any = None, **options: Any) -> ThresholdCalibrator:
        """An object over TensorRT's class for ``algorithm``."""
        if hasattr(cls, "algorithm"):
            made: ThresholdCalibrator = super().__new__(cls)
            return made
        return cls.of(options.get("algorithm", DEFAULT))

    def __init__(
        self,
        batches: Iterable[Mapping[str, Any]],
        *,
        model: str | os.PathLike[str],
        method: str,
        algorithm: str = DEFAULT,
        cache: str | os.PathLike[str] | None = None,
        policy: str = "auto",
        data_key: str | None = None,
        memory: str | DeviceMemory | None = None,
        collect: Callable[..., HasCache] | None = None,
        libraries: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        method = threshold_method(method).name
        super().__init__()
        self.collected_on = None
        trt_version = versions.dotted(versions.tensorrt())

        def from_here() -> Provenance:
            made = origin(
                batches,
                files=model_files(model),
                data_key=data_key,
                batch_size=getattr(batches, "batch_size", None),
                method=method,
                growth=TENSORRT,
                header=f"TRT-{version_number(trt_version)}-{self.algorithm}",
            )
            return replace(made, versions={**made.versions, **library_versions(libraries)})

        self._batches, self._memory, self._libraries = batches, memory, libraries
        self.data_paths = data_inputs(batches)
        store = CacheStore(
            cache,
            policy,
            algorithm=self.algorithm,
            trt_version=trt_version,
            origin=from_here,
            inputs=[model, *self.data_paths],
        )
        self.cache_path = store.path
        found = store.read()
        if found is None:
            logger.info("collecting ranges by %s before the build", method)
            self.hand_over((collect or self._collect)(Path(model), batches, method).cache)
            store.write(self.to_hand_over.format())
        else:
            self.hand_over(found)

    def _collect(self, model: Path, batches: Iterable[Any], method: str) -> HasCache:
        """The pass on the GPU; the one on the CPU where that fails, and the data can still be had."""
        from calibrators.gpu_stats import collect_on_gpu
        from trtcal.calibration.calibrate import calibrate, from_stats
        from trtcal.model.open import open_model

        opened = open_model(model, libraries=self._libraries)
        taken = []

        def once() -> Iterator[Any]:
            taken.append(True)
            yield from batches

        try:
            stats = collect_on_gpu(opened, once() if isinstance(batches, Iterator) else batches, memory=self._memory)
        except (BackendError, ModelError) as error:
            if taken:  # and cannot be had again
                raise
            logger.warning("collecting ranges with ONNX Runtime on the CPU, since the GPU cannot: %s", error)
            self.collected_on = "cpu"
            return calibrate(opened, batches, method)
        logger.info("ranges were collected with TensorRT on the GPU, in FP32")
        self.collected_on = "gpu"
        return from_stats(opened, stats, method)

    def fed_shapes(self, inputs: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        """As `Calibrator.fed_shapes`; empty where the batches can be run through only once."""
        if iter(self._batches) is self._batches:
            return {}
        feed = Feed(self._batches)
        try:
            return feed.first_shapes(inputs)
        finally:
            feed.close()


class PercentileCalibrator(ThresholdCalibrator):
    """Batches and a model -> ranges that keep ``percentile`` % of each tensor's |x|.

    A `ThresholdCalibrator` by that method, with its other arguments. Neither batch size nor order changes the result.
    """

    def __init__(self, batches: Iterable[Mapping[str, Any]], *, percentile: float = 99.99, **options: Any) -> None:
        super().__init__(batches, method=f"percentile:{percentile}", **options)

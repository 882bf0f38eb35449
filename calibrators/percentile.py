"""Calibration by a percentile of our own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from calibrators import versions
from calibrators.cached import DEFAULT, HandedOver
from calibrators.feed import Feed
from calibrators.origin import data_inputs, origin
from calibrators.overwriting import model_inputs
from calibrators.store import CacheStore
from trtcal.cache import CalibrationCache, version_number
from trtcal.provenance import Provenance

logger = logging.getLogger(__name__)


class HasCache(Protocol):
    """What a calibration gives back: at least its ranges."""

    @property
    def cache(self) -> CalibrationCache:
        """The ranges."""


class PercentileCalibrator(HandedOver):
    """Model and batches -> ranges that keep ``percentile`` % of each tensor's |x|.

    TensorRT has no hook for a threshold of one's own. So the ranges are collected before the build, when the object is
    made, by running the model in FP32 (`trtcal.calibrate`, on the CPU), and TensorRT is given them as its cache; it
    never sees the data. ``base`` (a key of `versions.BASES`) is the class of TensorRT's that hands them over; the
    default is the only one that DLA takes. Neither batch size nor order changes the result.

    ``cache``, ``policy`` and ``data_key`` are those of `FedCalibrator`; ``collect`` replaces `trtcal.calibrate`.
    Raises at once whatever goes wrong in the pass.
    """

    def __new__(cls, model: Any = None, batches: Any = None, **options: Any) -> PercentileCalibrator:
        """An object over TensorRT's class for ``base``."""
        if hasattr(cls, "algorithm"):
            made: PercentileCalibrator = super().__new__(cls)
            return made
        return cls.of(options.get("base", DEFAULT))

    def __init__(
        self,
        model: str | os.PathLike[str],
        batches: Iterable[Mapping[str, Any]],
        *,
        percentile: float = 99.99,
        base: str = DEFAULT,
        cache: str | os.PathLike[str] | None = None,
        policy: str = "auto",
        data_key: str | None = None,
        collect: Callable[..., HasCache] | None = None,
    ) -> None:
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile must be in (0, 100], got {percentile}")
        super().__init__()
        if collect is None:
            from trtcal.calibration import calibrate

            collect = calibrate
        trt_version = versions.dotted(versions.tensorrt())
        method = f"percentile:{percentile}"

        def from_here() -> tuple[Provenance, list[str]]:
            return origin(
                model=model,
                data_key=data_key,
                batches=batches,
                batch_size=getattr(batches, "batch_size", None),
                method=method,
                header=f"TRT-{version_number(trt_version)}-{self.algorithm}",
            )

        self._batches = batches
        self.data_paths = data_inputs(batches)
        store = CacheStore(
            cache,
            policy,
            algorithm=self.algorithm,
            trt_version=trt_version,
            origin=from_here,
            inputs=[*model_inputs(model), *self.data_paths],
        )
        self.cache_path = store.path
        found = store.read()
        if found is None:
            logger.info("collecting ranges by %s before the build", method)
            self.hand_over(collect(Path(model), batches, method).cache)
            store.write(self.to_hand_over.format())
        else:
            self.hand_over(found)

    def fed_shapes(self, inputs: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        """As `Calibrator.fed_shapes`; empty where the batches can be run through only once."""
        if iter(self._batches) is self._batches:
            return {}
        feed = Feed(self._batches)
        try:
            return feed.first_shapes(inputs)
        finally:
            feed.close()

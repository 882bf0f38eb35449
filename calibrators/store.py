"""The cache file of a calibrator: when it is believed, and how it is replaced."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from trtcal.cache import provenance
from trtcal.cache.cache import CalibrationCache, version_number
from trtcal.cache.provenance import Provenance
from trtcal.calibration.file import check_cache_output
from trtcal.errors import CacheError
from trtcal.files.brief import few

logger = logging.getLogger(__name__)

POLICIES: dict[str, str] = {
    "auto": "use the cache if its sidecar shows the same model, data and settings; else calibrate, saying why",
    "read": "use the cache without asking where it comes from; it must exist",
    "write": "calibrate, and replace the cache",
    "off": "neither read nor write a file",
}
"""Cache policy -> what it does."""

TENSORRT = "tensorrt"
"""The growth rule that the sidecar names: TensorRT's own, whatever it is."""


class CacheStore:
    """A cache file under a policy; ``origin`` is called once, when it is needed.

    ``inputs``: the files that the cache is made from. Raises OutputError where writing it would lose one of them, or
    a file that is no cache.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        policy: str,
        *,
        algorithm: str,
        trt_version: str,
        origin: Callable[[], Provenance],
        inputs: Iterable[str | os.PathLike[str] | None] = (),
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        if path is None and policy in ("read", "write"):
            raise ValueError(f"policy {policy!r} needs a cache file: cache='model.cache'")
        self.path = None if path is None or policy == "off" else Path(path)
        self._policy, self._algorithm, self._trt_version = policy, algorithm, trt_version
        self._make_origin = origin
        self._origin: Provenance | None = None
        if policy == "read" and self.path is not None and not self.path.is_file():
            raise CacheError(f"{self.path}: no such cache; policy 'read' uses one that exists, 'auto' makes it")
        if self.path is not None and policy != "read":
            check_cache_output(
                self.path,
                inputs,
                force=policy == "write",
                how="use it with policy 'read', replace it with policy 'write' (--force)",
            )

    def read(self) -> CalibrationCache | None:
        """The cache to hand to TensorRT, with a header that it takes; None where it has to calibrate.

        Raises CacheError under policy "read" for a file that cannot be used; under "auto" that is a reason to
        calibrate.
        """
        if self.path is None or self._policy == "write":
            return None
        if self._policy == "read":
            cache = CalibrationCache.load(self.path)
            if cache.algorithm != self._algorithm:
                raise CacheError(
                    f"{self.path}: holds {cache.header}, this calibrator is {self._algorithm}; use the calibrator of "
                    f"that algorithm, or CachedCalibrator, which takes any"
                )
            refuse_spoilt(cache, str(self.path))
            logger.info("%s: used as it is, without asking where it comes from (policy 'read')", self.path)
            return retargeted(cache, self._trt_version, self._algorithm)
        if not self.path.exists():
            logger.info("%s: not there yet; calibrating", self.path)
            return None
        reasons = self._reasons()
        if reasons:
            logger.warning("%s: not used, calibrating anew: %s", self.path, "; ".join(reasons))
            return None
        logger.info("%s: used; same model, data and settings", self.path)
        return CalibrationCache.load(self.path)

    def _reasons(self) -> list[str]:
        """Why the cache that lies there cannot stand for this run."""
        assert self.path is not None
        try:
            CalibrationCache.load(self.path)
            made = self.origin()
            known = {"model=": made.model_sha256, "data_key=": made.data_key}
            unknown = [f"{name} was not given" for name, value in known.items() if not value]
            if unknown:
                return [
                    f"its origin cannot be verified, because {' and '.join(unknown)} (policy 'read' takes it anyway)"
                ]
            return list(provenance.check(self.path, made).reasons)
        except CacheError as error:
            return [str(error)]

    def origin(self) -> Provenance:
        """This run's provenance; the same answer every time."""
        if self._origin is None:
            self._origin = self._make_origin()
        return self._origin

    def write(self, data: bytes, *, batch_size: int | None = None, samples: int | None = None) -> CalibrationCache:
        """What TensorRT wrote -> the file, replaced in one step, with its sidecar; warns of scales that look wrong.

        ``batch_size`` and ``samples``: what was really fed, which the sidecar tells.
        """
        cache = CalibrationCache.parse(data, name="the cache that TensorRT wrote")
        spoilt = [name for name, scale in cache.scales.items() if not (np.isfinite(scale) and scale > 0)]
        if spoilt:
            logger.warning("%d tensors have a scale of 0, inf or nan: %s", len(spoilt), few(spoilt, 10))
        if self.path is not None:
            made = self.origin()
            made = replace(
                made,
                batch_size=made.batch_size if batch_size is None else batch_size,
                samples_used=made.samples_used if samples is None else samples,
            )
            provenance.save_with_sidecar(data, made, self.path)
            logger.info("%s: written, %d tensors", self.path, len(cache.scales))
        return cache


def data_inputs(batches: object) -> list[Path]:
    """Batches -> the file that they are read from, where they tell."""
    source = getattr(batches, "source", None)
    path = getattr(source, "path", None) or getattr(source, "_path", None)
    return [Path(path)] if isinstance(path, (str, os.PathLike)) and os.path.isfile(path) else []


def refuse_spoilt(cache: CalibrationCache, name: str = "the ranges") -> None:
    """Ranges that are to be handed over -> CacheError for nan, inf and negative scales; a scale of 0 is warned of."""
    bad = [tensor for tensor, scale in cache.scales.items() if not (np.isfinite(scale) and scale >= 0)]
    if bad:
        raise CacheError(
            f"{name}: {len(bad)} tensors have a scale that is nan, inf or negative: {few(bad, 10)}; calibrate "
            f"again, or take them out"
        )
    zero = [tensor for tensor, scale in cache.scales.items() if scale == 0]
    if zero:
        logger.warning("%s: %d tensors have a scale of 0: %s", name, len(zero), few(zero, 10))


def retargeted(cache: CalibrationCache, trt_version: str, algorithm: str) -> CalibrationCache:
    """Cache -> the same scales under the header that this TensorRT takes for this algorithm.

    Between TensorRT 8 and 10 the digits are compared, within one major version they are not.
    """
    number = version_number(trt_version)
    if cache.version == number and cache.algorithm == algorithm:
        return cache
    logger.info("cache header %s rewritten for TensorRT %s, %s", cache.header, trt_version, algorithm)
    return CalibrationCache(number, algorithm, cache.scales)

"""Ranges that exist already, handed to TensorRT as its cache."""

from __future__ import annotations

import logging
import os
import types
from collections.abc import Hashable, Sequence
from functools import cache as memoised
from pathlib import Path
from typing import Any, TypeVar

from calibrators import versions
from calibrators.calibrator import Calibrator
from calibrators.store import refuse_spoilt, retargeted
from trtcal.cache.cache import CalibrationCache
from trtcal.errors import BackendError

logger = logging.getLogger(__name__)

C = TypeVar("C", bound="HandedOver")

DEFAULT = "EntropyCalibration2"  # the only one that DLA takes


class HandedOver(Calibrator):
    """Ranges instead of data; a class of TensorRT's is mixed in per algorithm.

    If TensorRT does not take the ranges it asks for batches. There are none, and a build from nothing, or by another
    method, is not what was asked for: that is an error, and `raise_if_failed` raises it.
    """

    _ranges: CalibrationCache

    @classmethod
    def of(cls: type[C], algorithm: str) -> C:
        """Algorithm -> a new, empty object of this class over TensorRT's class for that algorithm."""
        if algorithm not in versions.BASES:
            raise ValueError(f"algorithm must be one of {', '.join(versions.BASES)}, got {algorithm!r}")
        ours: Any = cls
        concrete: Any = _with_base(ours, algorithm)
        made: C = concrete.__new__(concrete)
        return made

    def hand_over(self, cache: CalibrationCache) -> None:
        """Ranges -> what TensorRT will be given, under the header that it takes."""
        refuse_spoilt(cache)
        self._ranges = retargeted(cache, versions.dotted(versions.tensorrt()), self.algorithm)

    @property
    def to_hand_over(self) -> CalibrationCache:
        """The ranges as TensorRT will be given them."""
        return self._ranges

    def _batch_size(self) -> int:
        return 1  # asked for, and used for nothing

    def _batch(self, names: Sequence[str]) -> list[int]:
        raise BackendError(
            f"TensorRT did not take the {len(self._ranges.scales)} ranges it was given ({self._ranges.header}) and "
            f"asks for data; its log says why, for example that the header belongs to another version or algorithm"
        )

    def _read(self) -> CalibrationCache | None:
        return self._ranges

    def _write(self, data: bytes) -> None:
        """TensorRT hands back what it was given; there is nothing to keep."""
        self._check_handed_back(data)


@memoised
def _with_base(cls: Hashable, algorithm: str) -> type:
    """A class of ours and an algorithm -> a class over TensorRT's own: its base is a choice made at run time."""
    ours: Any = cls
    body = {"algorithm": algorithm, "__module__": ours.__module__, "__doc__": ours.__doc__}
    return types.new_class(ours.__name__, (ours, versions.base_class(algorithm)), {}, lambda space: space.update(body))


class CachedCalibrator(HandedOver):
    """Any cache -> the ranges of the build, without data.

    ``cache``: a file, its bytes, or a `CalibrationCache`. Its header is rewritten for the TensorRT that runs, so a
    cache from TensorRT 8 serves TensorRT 10. ``algorithm`` (a key of `versions.BASES`) chooses the class of TensorRT's
    that hands it over: by default that of the header, or EntropyCalibration2 where the header names none of them.
    """

    def __new__(cls, cache: Any = None, *, algorithm: str | None = None) -> CachedCalibrator:
        """An object over TensorRT's class for the cache's algorithm."""
        if hasattr(cls, "algorithm"):
            made: CachedCalibrator = super().__new__(cls)
            return made
        if algorithm is None:
            found = _load(cache).algorithm
            algorithm = found if found in versions.BASES else DEFAULT
        return cls.of(algorithm)

    def __init__(
        self,
        cache: str | os.PathLike[str] | bytes | CalibrationCache,
        *,
        algorithm: str | None = None,
    ) -> None:
        super().__init__()
        self.hand_over(_load(cache))
        if isinstance(cache, (str, os.PathLike)):
            self.cache_path = Path(cache)


def _load(cache: Any) -> CalibrationCache:
    if isinstance(cache, CalibrationCache):
        return cache
    if isinstance(cache, (bytes, bytearray, memoryview)):
        return CalibrationCache.parse(cache)
    return CalibrationCache.load(cache)

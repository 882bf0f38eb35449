"""Calibrators that drive the real TensorRT, and never let a failed feed become a cache.

``import calibrators`` works everywhere. The classes need TensorRT 8.5 to 10.16; asking for one where there is no
TensorRT, or TensorRT 11, which has no calibrators, raises `CalibratorsUnavailable`, an ImportError that says what to
do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from calibrators.versions import CalibratorsUnavailable

if TYPE_CHECKING:
    from calibrators.cached import CachedCalibrator
    from calibrators.engine import build_engine
    from calibrators.entropy import EntropyCalibrator
    from calibrators.legacy import LegacyCalibrator
    from calibrators.minmax import MinMaxCalibrator
    from calibrators.percentile import PercentileCalibrator

__all__ = [
    "CachedCalibrator",
    "CalibratorsUnavailable",
    "EntropyCalibrator",
    "LegacyCalibrator",
    "MinMaxCalibrator",
    "PercentileCalibrator",
    "build_engine",
]

_HOME = {
    "CachedCalibrator": "cached",
    "EntropyCalibrator": "entropy",
    "LegacyCalibrator": "legacy",
    "MinMaxCalibrator": "minmax",
    "PercentileCalibrator": "percentile",
    "build_engine": "engine",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'calibrators' has no attribute {name!r}")
    value: object = getattr(import_module(f"calibrators.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

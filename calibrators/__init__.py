"""Calibrators that drive the real TensorRT and never let a failed feed become a cache, and what runs the engines.

``import calibrators`` works everywhere. The calibrators need TensorRT 8.5 to 10.16; importing one where there is no
TensorRT, or TensorRT 11, which has no calibrators, raises `CalibratorsUnavailable`, an ImportError that says what to
do. As an attribute (``calibrators.EntropyCalibrator``) it is missing there: an AttributeError with the same words, so
that ``hasattr`` and ``help`` work. `Engine` runs on TensorRT 11 as well.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from calibrators.versions import CalibratorsMissing, CalibratorsUnavailable

if TYPE_CHECKING:
    from calibrators.cached import CachedCalibrator
    from calibrators.engine import build_engine
    from calibrators.gpu_stats import collect_on_gpu
    from calibrators.percentile import PercentileCalibrator, ThresholdCalibrator
    from calibrators.runner import Engine
    from calibrators.tensorrt_methods import EntropyCalibrator, LegacyCalibrator, MinMaxCalibrator

__all__ = [
    "CachedCalibrator",
    "CalibratorsUnavailable",
    "Engine",
    "EntropyCalibrator",
    "LegacyCalibrator",
    "MinMaxCalibrator",
    "PercentileCalibrator",
    "ThresholdCalibrator",
    "build_engine",
    "collect_on_gpu",
]

_HOME = {
    "CachedCalibrator": "cached",
    "Engine": "runner",
    "EntropyCalibrator": "tensorrt_methods",
    "LegacyCalibrator": "tensorrt_methods",
    "MinMaxCalibrator": "tensorrt_methods",
    "PercentileCalibrator": "percentile",
    "ThresholdCalibrator": "percentile",
    "build_engine": "engine",
    "collect_on_gpu": "gpu_stats",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'calibrators' has no attribute {name!r}")
    try:
        value: object = getattr(import_module(f"calibrators.{_HOME[name]}"), name)
    except CalibratorsUnavailable as error:
        # An AttributeError would cost "from calibrators import X" its message: Python replaces it by one of its own.
        if sys._getframe(1).f_code.co_name == "_handle_fromlist":
            raise
        raise CalibratorsMissing(str(error)) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Calibrate ONNX models for TensorRT INT8, on any CPU: statistics, thresholds, calibration caches.

The names below are the whole public surface; everything else may change. Each is loaded when it
is first asked for, so ``import trtcal`` costs nothing, and ``trtcal --help`` neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtcal.cache.cache import CalibrationCache
    from trtcal.calibration.calibrate import calibrate
    from trtcal.errors import TrtcalError
    from trtcal.passes.collect import collect
    from trtcal.ranges.histogram import Histogram
    from trtcal.ranges.stats import ActivationStats
    from trtcal.ranges.thresholds import METHODS

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "ActivationStats",
    "CalibrationCache",
    "Histogram",
    "TrtcalError",
    "calibrate",
    "collect",
]

_HOME = {
    "METHODS": "trtcal.ranges.thresholds",
    "ActivationStats": "trtcal.ranges.stats",
    "CalibrationCache": "trtcal.cache.cache",
    "Histogram": "trtcal.ranges.histogram",
    "TrtcalError": "trtcal.errors",
    "calibrate": "trtcal.calibration.calibrate",
    "collect": "trtcal.passes.collect",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'trtcal' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

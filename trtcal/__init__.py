"""Calibrate ONNX models for TensorRT INT8, on any CPU: statistics, thresholds, calibration caches.

The names below are the whole public surface, with `trtcal.refine` and `trtcal.demo`; everything else may change. Each
is loaded when it is first asked for, so ``import trtcal`` costs nothing, and ``trtcal --help`` neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtcal.cache.cache import CalibrationCache
    from trtcal.cache.formats import FORMATS
    from trtcal.cache.provenance import Provenance
    from trtcal.calibration.calibrate import calibrate, from_stats
    from trtcal.calibration.file import calibrate_to_file
    from trtcal.cluster.executor import RayExecutor
    from trtcal.cluster.ray_cluster import Cluster
    from trtcal.errors import TrtcalError
    from trtcal.judging.accuracy import agreement, evaluate, simulate
    from trtcal.model.open import open_model
    from trtcal.model.runner import OrtRunner
    from trtcal.passes.collect import collect
    from trtcal.passes.executor import Here
    from trtcal.qdq.extract import extract_scales, strip_qdq
    from trtcal.qdq.insert import insert_qdq
    from trtcal.ranges.histogram import Histogram
    from trtcal.ranges.stats import ActivationStats
    from trtcal.ranges.thresholds import METHODS
    from trtcal.samples.batches import Batches
    from trtcal.samples.options import SampleOptions
    from trtcal.samples.raydata import RayData
    from trtcal.sweep.plan import SweepPlan
    from trtcal.sweep.run import run_sweep

__version__ = "0.1.0"

__all__ = [
    "FORMATS",
    "METHODS",
    "ActivationStats",
    "Batches",
    "CalibrationCache",
    "Cluster",
    "Here",
    "Histogram",
    "OrtRunner",
    "Provenance",
    "RayData",
    "RayExecutor",
    "SampleOptions",
    "SweepPlan",
    "TrtcalError",
    "agreement",
    "calibrate",
    "calibrate_to_file",
    "collect",
    "evaluate",
    "extract_scales",
    "from_stats",
    "insert_qdq",
    "open_model",
    "run_sweep",
    "simulate",
    "strip_qdq",
]

_HOME = {
    "FORMATS": "trtcal.cache.formats",
    "METHODS": "trtcal.ranges.thresholds",
    "ActivationStats": "trtcal.ranges.stats",
    "Batches": "trtcal.samples.batches",
    "CalibrationCache": "trtcal.cache.cache",
    "Cluster": "trtcal.cluster.ray_cluster",
    "Here": "trtcal.passes.executor",
    "Histogram": "trtcal.ranges.histogram",
    "OrtRunner": "trtcal.model.runner",
    "Provenance": "trtcal.cache.provenance",
    "RayData": "trtcal.samples.raydata",
    "RayExecutor": "trtcal.cluster.executor",
    "SampleOptions": "trtcal.samples.options",
    "SweepPlan": "trtcal.sweep.plan",
    "TrtcalError": "trtcal.errors",
    "agreement": "trtcal.judging.accuracy",
    "calibrate": "trtcal.calibration.calibrate",
    "calibrate_to_file": "trtcal.calibration.file",
    "collect": "trtcal.passes.collect",
    "evaluate": "trtcal.judging.accuracy",
    "extract_scales": "trtcal.qdq.extract",
    "from_stats": "trtcal.calibration.calibrate",
    "insert_qdq": "trtcal.qdq.insert",
    "open_model": "trtcal.model.open",
    "run_sweep": "trtcal.sweep.run",
    "simulate": "trtcal.judging.accuracy",
    "strip_qdq": "trtcal.qdq.extract",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'trtcal' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Every difference between TensorRT versions that the calibrators and the build have to know, in this one file.

==============================  =====================  ======================  =======================
what                            8.5, 8.6               10.0 – 10.16            11
==============================  =====================  ======================  =======================
calibrators, INT8/FP16 flags    yes                    deprecated since 10.1   removed
explicit batch                  a flag of the network  always, flag ignored    always
int64 inputs                    read as int32          yes                     yes
cache of another major version  refused                refused                 no caches
tactics of cuBLAS and cuDNN     yes                    off unless asked for    removed
==============================  =====================  ======================  =======================
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trtcal.errors import BackendError

logger = logging.getLogger(__name__)

BASES: dict[str, str] = {
    "EntropyCalibration2": "IInt8EntropyCalibrator2",
    "MinMaxCalibration": "IInt8MinMaxCalibrator",
    "EntropyCalibration": "IInt8EntropyCalibrator",
    "LegacyCalibration": "IInt8LegacyCalibrator",
}
"""Algorithm in a cache's header -> TensorRT's class for it."""

OLDEST = (8, 5)


class CalibratorsUnavailable(BackendError, ImportError):
    """TensorRT is missing, cannot be loaded, or has no calibrators; the message says what to do."""


class CalibratorsMissing(BackendError, AttributeError):
    """The same, where a class is asked for as an attribute of the package."""


def tensorrt() -> Any:
    """The tensorrt module, under whichever of its names it is installed; CalibratorsUnavailable without it."""
    reasons: list[str] = []
    # The bindings wheels for TensorRT 10 and later can be installed by themselves, under a name of their own.
    for name in ("tensorrt", "tensorrt_bindings"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                reasons.append(f"{name}: {error}")
        except (ImportError, OSError) as error:
            reasons.append(f"{name}: {error}")
    if reasons:
        raise CalibratorsUnavailable(
            f"TensorRT is installed but cannot be loaded ({reasons[0]}); make its libraries visible, for example with "
            f"LD_LIBRARY_PATH"
        )
    raise CalibratorsUnavailable(
        "TensorRT is not installed; install tensorrt>=8.5,<11 to calibrate, build and run engines with it, or find "
        "ranges on the CPU with trtcal.calibrate(), which needs none"
    )


def version(trt: Any) -> tuple[int, int, int]:
    """The tensorrt module -> (major, minor, patch)."""
    parts = [int(part) for part in re.findall(r"\d+", trt.__version__)[:3]]
    major, minor, patch = (*parts, 0, 0, 0)[:3]
    return major, minor, patch


def dotted(trt: Any) -> str:
    """The tensorrt module -> "10.3.0", as `trtcal.cache.cache.version_number` takes it."""
    return ".".join(map(str, version(trt)))


def base_class(algorithm: str) -> Any:
    """Algorithm -> TensorRT's calibrator class for it; CalibratorsUnavailable where this TensorRT has none."""
    trt = tensorrt()
    found = version(trt)
    if found[:2] < OLDEST:
        raise CalibratorsUnavailable(
            f"TensorRT {trt.__version__} is older than {'.'.join(map(str, OLDEST))}, the oldest that these calibrators "
            f"drive; install tensorrt>=8.5,<11"
        )
    if not hasattr(trt, BASES[algorithm]):
        raise CalibratorsUnavailable(
            f"TensorRT {trt.__version__} has no INT8 calibrators (removed in 11); put the ranges into the model as "
            f"Q/DQ with `trtcal qdq`, or install tensorrt>=8.5,<11"
        )
    return getattr(trt, BASES[algorithm])


def has_calibrators(trt: Any) -> bool:
    """Whether ranges can be handed over as a calibration cache; TensorRT 11 takes Q/DQ alone."""
    return hasattr(trt, BASES["EntropyCalibration2"])


def has_int64(trt: Any) -> bool:
    """Whether network inputs may be int64; before TensorRT 10 they are read as int32."""
    return version(trt)[0] >= 10


def create_network(trt: Any, builder: Any) -> Any:
    """Builder -> empty network with explicit batch."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    if flag is None or version(trt)[0] >= 10:  # always explicit, and naming the flag is deprecated
        return builder.create_network(0)
    return builder.create_network(1 << int(flag))


def set_calibrator(config: Any, calibrator: Any) -> None:
    """Sets INT8 and the calibrator; without the DeprecationWarning, which names no way out for who needs a cache."""
    with _quiet():
        config.int8_calibrator = calibrator


def set_calibration_profile(config: Any, profile: Any) -> bool:
    """Sets the profile whose OPT shapes TensorRT calibrates with -> whether it was taken."""
    with _quiet():
        return bool(config.set_calibration_profile(profile))


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def set_flag(trt: Any, config: Any, name: str) -> None:
    """Sets a BuilderFlag by name; BackendError where this TensorRT has none of that name."""
    flag = getattr(trt.BuilderFlag, name, None)
    if flag is None:
        raise BackendError(f"TensorRT {trt.__version__} has no builder flag {name}; networks are strongly typed there")
    config.set_flag(flag)


def set_workspace(trt: Any, config: Any, nbytes: int) -> None:
    """Bytes -> limit of the scratch memory that a layer may use."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, nbytes)


def set_detailed(trt: Any, config: Any) -> None:
    """Lets the engine inspector tell the precision of each layer afterwards."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


_LIBRARIES = {
    "CUBLAS": (("libcublasLt.so.12", "libcublasLt.so.11"), "cublasLtGetVersion"),
    "CUBLAS_LT": (("libcublasLt.so.12", "libcublasLt.so.11"), "cublasLtGetVersion"),
    "CUDNN": (("libcudnn.so.8",), "cudnnGetVersion"),
}
"""TacticSource -> libraries, one of which it calls, and a function that only the whole library has."""


def leave_out_tactics(trt: Any, config: Any) -> None:
    """On TensorRT 8, does without tactics from cuBLAS and cuDNN where these are missing or cut down to their names.

    Its plugin library links both, so that where nothing needs them people put stubs in their place, which save two
    gigabytes; a tactic that called one would end the process.
    """
    if version(trt)[0] >= 10:
        return
    sources = out = int(config.get_tactic_sources())
    for name, (libraries, function) in _LIBRARIES.items():
        source = getattr(trt.TacticSource, name, None)
        if source is not None and not any(_has(library, function) for library in libraries):
            out &= ~(1 << int(source))
    if out != sources:
        logger.info("cuBLAS or cuDNN is not whole here; building without its tactics")
        config.set_tactic_sources(out)


def _has(library: str, function: str) -> bool:
    try:
        return hasattr(ctypes.CDLL(library), function)
    except OSError:
        return False


def io_dtype(dtype: Any) -> Any:
    """TensorRT's data type of an engine's input or output -> name of its numpy dtype; None where NumPy has none."""
    names = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64"}
    names.update({"BOOL": "bool", "UINT8": "uint8"})
    return names.get(dtype.name)


def numpy_dtype(trt: Any, dtype: Any) -> Any:
    """TensorRT's data type -> name of the numpy dtype that is fed for it (int64 where TensorRT has it)."""
    names = {"FLOAT": "float32", "HALF": "float32", "BF16": "float32", "INT8": "int8", "INT32": "int32"}
    names.update({"INT64": "int64", "BOOL": "bool", "UINT8": "uint8"})
    if dtype.name not in names:
        raise BackendError(f"a network input of type {dtype.name} cannot be fed for calibration")
    return names[dtype.name]


def as_constant_layer(layer: Any) -> Any:
    """A layer of type CONSTANT, as get_layer() gives it -> the same with its ``weights``.

    get_layer() answers with the base class; assigning the class is NVIDIA's own way to the derived one.
    """
    kind = getattr(importlib.import_module(type(layer).__module__), "IConstantLayer", None)
    if kind is not None:
        layer.__class__ = kind
    return layer

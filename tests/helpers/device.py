"""The GPU of the tests marked gpu: whether there is one, what it is, and whether test doubles stand in for it."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from calibrators import CalibratorsUnavailable, versions
from calibrators.device_kernels import Observer
from calibrators.memory import open_memory
from trtcal.errors import BackendError

HOW = "run on a GPU: pip install 'trtcal[cuda,tensorrt]' pytest hypothesis && python scripts/gpu_acceptance.py"
DOUBLES = {"libcuda.so": "fakecuda_live", "libnvinfer.so": "trtfake_live"}
"""Library -> a symbol that only its test double (tests/helpers/fakecuda) has."""


class NoGpu(Exception):
    """There is nothing to measure on; the message says what is missing."""


def test_doubles() -> list[str]:
    """Test doubles among the libraries that this process has loaded, by file; empty where all are real."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return []
    found = []
    for path in sorted(set(re.findall(r"(/\S.*)$", maps, re.MULTILINE))):
        for library, symbol in DOUBLES.items():
            if Path(path).name.startswith(library) and hasattr(ctypes.CDLL(path), symbol):
                found.append(Path(path).name)
    return found


test_doubles.__test__ = False  # type: ignore[attr-defined]


@functools.cache
def small() -> bool:
    """Whether the smallest case will do, because test doubles answer and nobody takes that for a measurement."""
    without_gpu(), without_tensorrt()  # which load the libraries
    return bool(test_doubles())


@contextmanager
def driver() -> Iterator[ctypes.CDLL]:
    """CUDA's driver, with device 0's primary context current on this thread; NoGpu without a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NoGpu(f"no GPU: the CUDA driver cannot be loaded ({error})") from error
    context, number = ctypes.c_void_p(), ctypes.c_int()
    for function, *arguments in (
        (cuda.cuInit, 0),
        (cuda.cuDeviceGet, ctypes.byref(number), 0),
        (cuda.cuDevicePrimaryCtxRetain, ctypes.byref(context), number),
        (cuda.cuCtxPushCurrent_v2, context),
    ):
        if code := function(*arguments):
            raise NoGpu(f"no GPU: {function.__name__} failed with CUresult {code}")
    try:
        yield cuda
    finally:
        cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
        cuda.cuDevicePrimaryCtxRelease_v2(number)


def describe() -> dict[str, Any]:
    """Name, driver, CUDA version, compute capability and memory in GiB of device 0; NoGpu without a GPU."""
    name, (version, major, minor) = ctypes.create_string_buffer(128), (ctypes.c_int() for _ in range(3))
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with driver() as cuda:
        cuda.cuDeviceGetName(name, 128, 0)
        cuda.cuDriverGetVersion(ctypes.byref(version))
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
        cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    return {
        "name": name.value.decode(),
        "driver": _driver_version(),
        "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "compute_capability": f"{major.value}.{minor.value}",
        "memory_gib": round(total.value / 2**30, 1),
    }


def _driver_version() -> str:
    """From NVML, else from the kernel; "unknown" where neither tells."""
    text = ctypes.create_string_buffer(96)
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0:
            return text.value.decode()
    except (OSError, AttributeError):
        pass
    try:
        version = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    match = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", version)
    return match[1] if match else "unknown"


def lost() -> str | None:
    """Why the GPU answers nobody in this process any more, as after an illegal access; None where it works."""
    try:
        with driver() as cuda:
            code = cuda.cuCtxSynchronize()
    except NoGpu as error:
        return str(error)
    return f"the CUDA context is lost (CUresult {code})" if code else None


@functools.cache
def without_gpu() -> str | None:
    """Why there is no device memory here; None where there is."""
    try:
        open_memory().close()
    except BackendError as error:
        return f"{error}; {HOW}"
    return None


@functools.cache
def without_kernels() -> str | None:
    """Why no kernel of ours runs here; None where it does."""
    if without_gpu() is not None:
        return without_gpu()
    memory = open_memory()
    try:
        Observer(memory).close()
    except BackendError as error:
        return f"{error}; {HOW}"
    finally:
        memory.close()
    return None


@functools.cache
def without_tensorrt() -> str | None:
    """Why no engine is built here, GPU or none; None where TensorRT has calibrators."""
    try:
        versions.base_class("EntropyCalibration2")
    except CalibratorsUnavailable as error:
        return f"{error}; {HOW}"
    return None


def needs(*missing: str | None) -> pytest.MarkDecorator:
    """Reasons -> a mark that skips, with the first of them that there is."""
    reason = next(filter(None, missing), None)
    return pytest.mark.skipif(reason is not None, reason=str(reason))

"""The GPU of the tests marked gpu: whether there is one, what it is, and whether test doubles stand in for it."""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from calibrators import CalibratorsUnavailable, versions
from calibrators.device_kernels import Observer
from calibrators.memory import Attribute, open_memory
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


def describe() -> dict[str, Any]:
    """Name, driver, CUDA version, compute capability and free memory of the GPU; NoGpu without one."""
    try:
        memory = open_memory()
    except BackendError as error:
        raise NoGpu(f"no GPU: {error}") from error
    version, (major, minor) = ctypes.c_int(), (Attribute.COMPUTE_CAPABILITY_MAJOR, Attribute.COMPUTE_CAPABILITY_MINOR)
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    with closing(memory):
        return {
            "name": memory.device_name(),
            "driver": _driver_version(),
            "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
            "compute_capability": f"{memory.attribute(major)}.{memory.attribute(minor)}",
            "free_gib": round(memory.vacant() / 2**30, 1),
            "through": memory.name,
        }


def _driver_version() -> str:
    """As the kernel's module or nvidia-smi says it; "unknown" where neither tells."""
    try:
        version = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            version = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.TimeoutExpired):
            version = ""
    match = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", version)
    return match[1] if match else "unknown"


def lost() -> str | None:
    """Why the GPU answers nobody in this process any more, as after an illegal access; None where it works."""
    try:
        with closing(open_memory()) as memory:
            memory.synchronize()
    except BackendError as error:
        return f"the CUDA context is lost: {error}"
    return None


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

"""The GPU through its driver, and whether the libraries in this process are the real ones."""

from __future__ import annotations

import ctypes
import functools
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

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


class Device:
    """Device 0's primary context, in which TensorRT works too."""

    def __init__(self) -> None:
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise NoGpu(f"no GPU: the CUDA driver cannot be loaded ({error})") from error
        code = self._cuda.cuInit(0)
        if code:
            raise NoGpu(f"no GPU: cuInit failed with CUresult {code}")
        self._device = ctypes.c_int()
        context = ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._cuda, function)(*arguments)
        if code:
            raise RuntimeError(f"{function} failed with CUresult {code}")

    def describe(self) -> dict[str, Any]:
        """Name, driver, CUDA version, compute capability, memory in GiB."""
        name = ctypes.create_string_buffer(128)
        cuda, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGetName", name, 128, self._device)
        self._call("cuDriverGetVersion", ctypes.byref(cuda))
        self._call("cuDeviceGetAttribute", ctypes.byref(major), 75, self._device)
        self._call("cuDeviceGetAttribute", ctypes.byref(minor), 76, self._device)
        return {
            "name": name.value.decode(),
            "driver": _driver(),
            "cuda": f"{cuda.value // 1000}.{cuda.value % 1000 // 10}",
            "compute_capability": f"{major.value}.{minor.value}",
            "memory_gib": round(self.memory()[1] / 2**30, 1),
        }

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, nbytes: int) -> int:
        """Bytes -> address."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(nbytes, 1)))
        return address.value

    def upload(self, array: np.ndarray) -> int:
        """Host array -> address of a copy on the device."""
        array = np.ascontiguousarray(array)
        address = self.allocate(array.nbytes)
        source = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, ctypes.c_size_t(array.nbytes))
        return address

    def free(self, address: int) -> None:
        """Address -> nothing."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def synchronize(self) -> None:
        """Wait for everything."""
        self._call("cuCtxSynchronize")

    def copy_seconds(self, target: int, source: int, nbytes: int, times: int = 20) -> float:
        """Seconds of one copy within the device, by events around ``times`` of them."""
        begin, end = ctypes.c_void_p(), ctypes.c_void_p()
        milliseconds = ctypes.c_float()
        for event in (begin, end):
            self._call("cuEventCreate", ctypes.byref(event), 0)
        pair = ctypes.c_uint64(target), ctypes.c_uint64(source), ctypes.c_size_t(nbytes)
        self._call("cuMemcpyDtoD_v2", *pair)
        self._call("cuEventRecord", begin, None)
        for _ in range(times):
            self._call("cuMemcpyDtoD_v2", *pair)
        self._call("cuEventRecord", end, None)
        self._call("cuEventSynchronize", end)
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), begin, end)
        for event in (begin, end):
            self._call("cuEventDestroy_v2", event)
        return milliseconds.value / 1000 / times

    @contextmanager
    def lent(self, *sizes: int) -> Iterator[list[int]]:
        """Sizes in bytes -> addresses, given back afterwards."""
        addresses = [self.allocate(size) for size in sizes]
        try:
            yield addresses
        finally:
            for address in addresses:
                self.free(address)


@functools.cache
def device() -> Device:
    """The one `Device` of this process; NoGpu without a GPU."""
    return Device()


def _driver() -> str:
    """The driver's version from NVML, else from the kernel; "unknown" where neither tells."""
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


def describe_host() -> dict[str, Any]:
    """Python and the processor's kind: not the machine's name."""
    return {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}

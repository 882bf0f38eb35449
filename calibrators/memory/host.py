"""Ordinary memory in the role of a device's: the fake that tests use, here and in anyone's own project."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrators.memory.base import Attribute, Compiler, Staging
from trtcal.errors import BackendError


class _NoCompiler:
    path = "the host"

    def compile(self, source: str, name: str, capability: int) -> bytes:
        return b""


class HostMemory:
    """Ordinary memory in the role of a device's; counts live allocations in ``live``.

    It launches what ``functions`` holds: name -> a function of (blocks, threads, bytes of shared memory, arguments).
    """

    name = "host"

    def __init__(self, device: int | None = None) -> None:
        self.live = 0
        self.functions: dict[str, Callable[[int, int, int, Sequence[np.generic]], None]] = {}
        self.attributes = {
            Attribute.MULTIPROCESSORS: 4,
            Attribute.COMPUTE_CAPABILITY_MAJOR: 9,
            Attribute.COMPUTE_CAPABILITY_MINOR: 0,
            Attribute.SHARED_MEMORY_OPT_IN: 232448,
        }
        self._buffers: dict[int, NDArray[np.uint8]] = {}

    def allocate(self, nbytes: int) -> int:
        """As `DeviceMemory.allocate`."""
        buffer = np.zeros(nbytes, np.uint8)
        self._buffers[buffer.ctypes.data] = buffer
        self.live += 1
        return int(buffer.ctypes.data)

    def free(self, address: int) -> None:
        """As `DeviceMemory.free`; BackendError for an address that is not alive."""
        if self._buffers.pop(address, None) is None:
            raise BackendError(f"host memory: {address:#x} is not a live allocation")
        self.live -= 1

    def allocate_staging(self, nbytes: int) -> Staging:
        """As `DeviceMemory.allocate_staging`."""
        self.live += 1
        return np.zeros(nbytes, np.uint8)

    def free_staging(self, staging: Staging) -> None:
        """As `DeviceMemory.free_staging`."""
        self.live -= 1

    def upload(self, address: int, staging: Staging) -> None:
        """As `DeviceMemory.upload`, at once."""
        if self.extent(address) < staging.nbytes:
            raise BackendError(f"host memory: {staging.nbytes} bytes do not fit at {address:#x}")
        ctypes.memmove(address, staging.ctypes.data, staging.nbytes)

    def download(self, staging: Staging, address: int) -> None:
        """As `DeviceMemory.download`, at once."""
        staging[:] = np.frombuffer(self.read(address, staging.nbytes), np.uint8)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """As `DeviceMemory.copy`, at once."""
        ctypes.memmove(target, source, nbytes)

    def synchronize(self, stream: int | None = None) -> None:
        """Nothing to wait for."""

    def extent(self, address: int) -> int:
        """As `DeviceMemory.extent`, for addresses allocated here."""
        for start, buffer in self._buffers.items():
            if start <= address < start + buffer.nbytes:
                return start + buffer.nbytes - address
        return 0

    def clear(self, address: int, nbytes: int) -> None:
        """As `DeviceMemory.clear`, at once."""
        self.read(address, nbytes)
        ctypes.memset(address, 0, nbytes)

    def vacant(self) -> int:
        """As `DeviceMemory.vacant`: a number that nothing in a test exceeds."""
        return 1 << 33

    def attribute(self, attribute: Attribute) -> int:
        """As `DeviceMemory.attribute`."""
        return self.attributes[attribute]

    def device_name(self) -> str:
        """As `DeviceMemory.device_name`."""
        return "the host"

    def compilers(self) -> Iterable[Compiler]:
        """As `DeviceMemory.compilers`: one, that makes nothing, for ``functions`` are there already."""
        return (_NoCompiler(),)

    def load(self, image: bytes, name: str, shared: int) -> Any:
        """As `DeviceMemory.load`, from ``functions``."""
        if name not in self.functions:
            raise BackendError(f"host memory runs no code for a GPU, and has no function {name!r}")
        return self.functions[name]

    def launch(self, function: Any, blocks: int, threads: int, shared: int, arguments: Sequence[np.generic]) -> None:
        """As `DeviceMemory.launch`, at once."""
        function(blocks, threads, shared, arguments)

    def read(self, address: int, nbytes: int) -> bytes:
        """The bytes at an address handed out here: what a test looks at."""
        if self.extent(address) < nbytes:
            raise BackendError(f"host memory: {address:#x} does not hold {nbytes} bytes")
        return ctypes.string_at(address, nbytes)

    @property
    def stream(self) -> int:
        """No stream."""
        return 0

    def current(self) -> AbstractContextManager[None]:
        """No context."""
        return nullcontext()

    def elapsed(self, work: Callable[[], None]) -> float:
        """As `DeviceMemory.elapsed`, by the host's clock."""
        begin = time.perf_counter()
        work()
        return (time.perf_counter() - begin) * 1000

    def close(self) -> None:
        """Nothing to release."""

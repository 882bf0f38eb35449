"""What a feed needs of a GPU, and nothing more: the protocol that every backend has, and what backends share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trtcal.errors import BackendError

Staging = NDArray[np.uint8]

LEGACY_STREAM = 1
"""Handle of CUDA's legacy default stream, CU_STREAM_LEGACY."""

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: our stream does not wait for the legacy default stream, nor that for ours."""


class Attribute(IntEnum):
    """What `DeviceMemory.attribute` can be asked for; values are those of CUdevice_attribute."""

    MULTIPROCESSORS = 16
    COMPUTE_CAPABILITY_MAJOR = 75
    COMPUTE_CAPABILITY_MINOR = 76
    SHARED_MEMORY_OPT_IN = 97
    """Bytes that a block may have where its function asks for them."""


class Compiler(Protocol):
    """CUDA source -> what `DeviceMemory.load` takes; `calibrators.nvrtc.Nvrtc` is one."""

    path: str
    """What to call it in messages."""

    def compile(self, source: str, name: str, capability: int) -> bytes:
        """Source, its name in messages, compute capability (90 is 9.0) -> image; BackendError with its words."""


class DeviceMemory(Protocol):
    """Allocation, copies on one stream of its own, and release; sizes and lengths in bytes."""

    name: str

    def allocate(self, nbytes: int) -> int:
        """Bytes wanted -> device address of a new allocation; BackendError when there is no room."""

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""

    def allocate_staging(self, nbytes: int) -> Staging:
        """Bytes wanted -> (nbytes,) uint8 host array, page-locked so that copies from it are asynchronous."""

    def free_staging(self, staging: Staging) -> None:
        """Give back what `allocate_staging` returned; the array must not be touched afterwards."""

    def upload(self, address: int, staging: Staging) -> None:
        """Start to copy all of ``staging`` to the device; done when `synchronize` returns."""

    def download(self, staging: Staging, address: int) -> None:
        """Start to fill all of ``staging`` from the device; done when `synchronize` returns."""

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Start to copy within the device; done when `synchronize` returns."""

    def synchronize(self, stream: int | None = None) -> None:
        """Wait for the copies started here, or for all work queued on another stream's handle."""

    def extent(self, address: int) -> int:
        """Device address -> bytes from there to the end of its allocation; 0 where nothing is allocated."""

    @property
    def stream(self) -> int:
        """Handle of the stream of the copies: other work that is queued on it runs in order with them."""

    def current(self) -> AbstractContextManager[None]:
        """The device's context, current on the calling thread inside ``with``: where TensorRT is to find it."""

    def elapsed(self, work: Callable[[], None]) -> float:
        """Something that queues work on `stream` -> milliseconds that it took there; returns when it is done."""

    def clear(self, address: int, nbytes: int) -> None:
        """Start to set bytes to zero; done when `synchronize` returns."""

    def vacant(self) -> int:
        """Bytes that can still be allocated, about."""

    def attribute(self, attribute: Attribute) -> int:
        """What the device says of itself."""

    def device_name(self) -> str:
        """What the device is called by its driver."""

    def compilers(self) -> Iterable[Compiler]:
        """What makes code that `load` takes, the preferred one first; none where nothing is installed."""

    def load(self, image: bytes, name: str, shared: int) -> Any:
        """Compiled module (cubin or PTX) -> its function ``name``, with room for ``shared`` bytes of dynamic memory."""

    def launch(self, function: Any, blocks: int, threads: int, shared: int, arguments: Sequence[np.generic]) -> None:
        """Start a function that `load` gave; the arguments are numpy scalars of the types of its parameters."""

    def close(self) -> None:
        """Release the stream and the context; buffers are to be freed before."""


DRIVERS = {"cuda": ("cuda.bindings.driver", "cuda.cuda"), "pycuda": ("pycuda.driver",)}
"""Backend -> its driver module; cuda-bindings before 12.6 had it at cuda.cuda."""

PACKAGES = {"cuda": "cuda-bindings", "pycuda": "pycuda"}
"""Backend -> the package to install."""


def import_driver(name: str) -> Any:
    """The driver module of a backend; BackendError that says how to get it."""
    reasons = []
    for module in DRIVERS[name]:
        try:
            return importlib.import_module(module)
        except Exception as error:  # PyCUDA raises errors of its own when libcuda is missing
            reasons.append(f"{error}")
    raise BackendError(f"memory {name!r} needs the package {PACKAGES[name]} and a CUDA driver: {reasons[0]}")


def advice(code: int) -> str:
    """A CUresult -> what to do, for the end of a sentence."""
    return "; use a smaller calibration batch, or free the GPU for the build" if code == 2 else ""

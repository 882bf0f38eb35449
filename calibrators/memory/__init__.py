"""Device memory behind one small protocol: what a feed needs of a GPU, and nothing more.

``BACKENDS`` names the implementations: ``cuda`` (NVIDIA's cuda-bindings, wheels without a compiler), ``pycuda``,
and ``host``, which hands out addresses of ordinary memory and counts what is alive: the fake that tests use, here
and in anyone's own project.

TensorRT, PyTorch and CuPy live in a device's *primary* context. Both CUDA backends retain that one and make it
current for their own calls alone, so that they work on any thread, whatever context is current there, and leave it as
it was. (``pycuda.autoinit`` makes a second context instead; pointers of one are "invalid resource
handle" in the other.)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from calibrators.memory.base import (
    DRIVERS,
    LEGACY_STREAM,
    Attribute,
    Compiler,
    DeviceMemory,
    Staging,
    import_driver,
)
from calibrators.memory.cuda import CudaMemory
from calibrators.memory.host import HostMemory
from calibrators.memory.pycuda import PycudaMemory
from trtcal.errors import BackendError

__all__ = [
    "BACKENDS",
    "ENVIRONMENT",
    "LEGACY_STREAM",
    "Attribute",
    "Compiler",
    "CudaMemory",
    "DeviceMemory",
    "HostMemory",
    "PycudaMemory",
    "Staging",
    "available",
    "open_memory",
]

logger = logging.getLogger(__name__)

BACKENDS: dict[str, Callable[[int | None], DeviceMemory]] = {
    "cuda": CudaMemory,
    "pycuda": PycudaMemory,
    "host": HostMemory,
}

ENVIRONMENT = "TRTCAL_MEMORY"


def available() -> list[str]:
    """Names of ``BACKENDS`` that can be imported here, the preferred one first; ``host`` is always last."""
    found = []
    for name in BACKENDS:
        try:
            if name in DRIVERS:
                import_driver(name)
        except BackendError:
            continue
        found.append(name)
    return found


def open_memory(choice: str | DeviceMemory | None = None, device: int | None = None) -> DeviceMemory:
    """A backend's name, a memory of your own, or None -> memory ready for use.

    None takes the environment variable TRTCAL_MEMORY, and without it the first real backend that is installed;
    ``host`` is never chosen by itself, because TensorRT cannot read it. ``device`` is the CUDA device number: by
    default that of the calling thread's current context, else 0.
    """
    if choice is not None and not isinstance(choice, str):
        return choice
    name = choice or os.environ.get(ENVIRONMENT) or next((n for n in available() if n != "host"), None)
    if name is None:
        raise BackendError(
            "no package for device memory is installed: pip install cuda-bindings (wheels, no compiler) or pycuda"
        )
    if name not in BACKENDS:
        raise ValueError(f"memory must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "host":
        logger.warning("memory backend 'host' is for tests: TensorRT on a GPU cannot read its addresses")
    return BACKENDS[name](device)

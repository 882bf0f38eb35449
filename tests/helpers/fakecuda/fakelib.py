"""Handle on the fake driver's counters and switches: the same library that PyCUDA or cuda-bindings has loaded."""

from __future__ import annotations

import ctypes

_library = ctypes.CDLL("libcuda.so.1")
_library.fakecuda_live.restype = ctypes.c_long
_library.fakecuda_calls.restype = ctypes.c_long

KINDS = ("device", "host", "registered", "managed", "context", "stream", "event", "module")


def live(kind: str) -> int:
    """Live objects of one of KINDS; also "bytes", "peak" (bytes) and "total" (device allocations ever made)."""
    return int(_library.fakecuda_live(kind.encode()))


def snapshot() -> dict[str, int]:
    """Live objects of every kind that has any."""
    return {kind: live(kind) for kind in KINDS if live(kind)}


def calls(name: str) -> int:
    """How often an entry point was called, for example cuMemAlloc_v2."""
    return int(_library.fakecuda_calls(name.encode()))


def fail(spec: str = "") -> None:
    """Inject faults from now on: "cuMemAlloc_v2:3" lets the third call fail; "" ends it. See fakecuda.c."""
    _library.fakecuda_fail(spec.encode())


def lazy(on: bool) -> None:
    """Whether asynchronous copies wait for a synchronisation."""
    _library.fakecuda_set_lazy(int(on))


def context() -> int:
    """Handle of the calling thread's current context; 0 when there is none."""
    handle = ctypes.c_void_p()
    _library.cuCtxGetCurrent(ctypes.byref(handle))
    return handle.value or 0


def read(address: int, nbytes: int) -> bytes:
    """Bytes in device memory, in whatever context is current."""
    out = ctypes.create_string_buffer(nbytes)
    code = _library.cuMemcpyDtoH_v2(out, ctypes.c_uint64(address), ctypes.c_size_t(nbytes))
    if code:
        raise OSError(f"cuMemcpyDtoH failed with {code}")
    return out.raw

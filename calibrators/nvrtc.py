"""CUDA source -> code for one GPU, by NVIDIA's run-time compiler: no nvcc, and no GPU, is needed for it.

The library is looked for where pip puts it (nvidia-cuda-nvrtc-cu12, nvidia-cuda-nvrtc), then where the system's loader
finds it (CUDA toolkits, JetPack).
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from trtcal.errors import BackendError

logger = logging.getLogger(__name__)

SONAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so")
# Division and subnormals as IEEE 754 says, and no multiply-add where two operations are written: the counts are to
# equal those of a CPU.
OPTIONS = ("--std=c++14", "--fmad=false", "--ftz=false", "--prec-div=true")


class Nvrtc:
    """One NVRTC library."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._library = ctypes.CDLL(path)
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
            major, minor = ctypes.c_int(), ctypes.c_int()
            self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        except (OSError, AttributeError) as error:
            raise BackendError(f"{path}: cannot be loaded: {error}") from error
        self.version = major.value, minor.value

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            words = self._library.nvrtcGetErrorString(code)
            raise BackendError(f"{self.path}: {function} failed with {words.decode(errors='replace')}")

    def capabilities(self) -> list[int]:
        """Compute capabilities that it compiles for, ascending: 90 is 9.0."""
        number = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(number))
        found = (ctypes.c_int * number.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return sorted(found)

    def compile(self, source: str, name: str, capability: int) -> bytes:
        """Source, its name in messages, and a compute capability -> image to load.

        Machine code where this NVRTC knows the GPU; else PTX for the newest that it knows, which the driver finishes.
        BackendError carries the compiler's own words.
        """
        known = [number for number in self.capabilities() if number <= capability]
        if not known:
            raise BackendError(
                f"{self.path}: NVRTC {'.'.join(map(str, self.version))} no longer compiles for compute capability "
                f"{capability / 10}; install an older one, for example nvidia-cuda-nvrtc-cu12"
            )
        kind, getter = ("sm", "CUBIN") if known[-1] == capability else ("compute", "PTX")
        program = ctypes.c_void_p()
        text = source.encode()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text, name.encode(), 0, None, None)
        try:
            options = [f"--gpu-architecture={kind}_{known[-1]}".encode(), *(option.encode() for option in OPTIONS)]
            array = (ctypes.c_char_p * len(options))(*options)
            try:
                self._call("nvrtcCompileProgram", program, len(options), array)
            except BackendError as error:
                raise BackendError(f"{error}: {self._read(program, 'ProgramLog').decode(errors='replace')}") from error
            return self._read(program, getter)
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, data)
        return data.raw


def libraries() -> Iterator[Nvrtc]:
    """Every NVRTC that can be loaded here, those of pip's packages first; none is no error."""
    for path in (*_from_pip(), *SONAMES):
        try:
            yield Nvrtc(path)
        except BackendError as error:
            logger.debug("%s", error)


def _from_pip() -> Sequence[str]:
    spec = importlib.util.find_spec("nvidia")  # a namespace that NVIDIA's packages share
    folders = [] if spec is None or spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    found = [path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.*")]
    return [str(path) for path in sorted(found)]

"""Device memory through cuda-bindings, NVIDIA's own package: wheels, without a compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from calibrators.memory.base import NON_BLOCKING, Attribute, Compiler, Staging, advice, import_driver
from calibrators.nvrtc import libraries
from trtcal.errors import BackendError


class CudaMemory:
    """Device memory through NVIDIA's cuda-bindings."""

    name = "cuda"

    def __init__(self, device: int | None = None) -> None:
        self._cuda: Any = import_driver("cuda")
        self._context: Any = None
        self._stream: Any = None
        self._staging: dict[int, int] = {}  # address of the array's data -> the same, for freeing
        self._modules: list[Any] = []
        self._call("cuInit", 0)
        if device is None:
            device = self._current_device()
        self._device = self._call("cuDeviceGet", device)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        try:
            with self.current():
                self._stream = self._call("cuStreamCreate", NON_BLOCKING)
        except BaseException:
            self.close()
            raise

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            error, *result = getattr(self._cuda, function)(*arguments)
        except RuntimeError as missing:  # cuda-bindings itself: libcuda.so.1, or this function of it, is missing
            if function == "cuInit":  # the first call
                raise BackendError(f"no CUDA driver: {missing}") from missing
            raise BackendError(
                f"{function}: {missing}; where the CUDA driver is older than cuda-bindings, install one of its version"
            ) from missing
        if error != self._cuda.CUresult.CUDA_SUCCESS:
            raise BackendError(f"{function} failed with {error.name}{advice(int(error))}")
        return None if not result else result[0] if len(result) == 1 else result

    def _current_device(self) -> int:
        if int(self._call("cuCtxGetCurrent")) == 0:
            return 0
        return int(self._call("cuCtxGetDevice"))

    @property
    def stream(self) -> int:
        """As `DeviceMemory.stream`."""
        return int(self._stream)

    @contextmanager
    def current(self) -> Iterator[None]:
        """As `DeviceMemory.current`."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def allocate(self, nbytes: int) -> int:
        """As `DeviceMemory.allocate`."""
        with self.current():
            return int(self._call("cuMemAlloc", nbytes))

    def free(self, address: int) -> None:
        """As `DeviceMemory.free`."""
        with self.current():
            self._call("cuMemFree", self._cuda.CUdeviceptr(address))

    def allocate_staging(self, nbytes: int) -> Staging:
        """As `DeviceMemory.allocate_staging`."""
        with self.current():
            address = int(self._call("cuMemHostAlloc", nbytes, 0))
        self._staging[address] = address
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def free_staging(self, staging: Staging) -> None:
        """As `DeviceMemory.free_staging`."""
        with self.current():
            self._call("cuMemFreeHost", self._staging.pop(int(staging.ctypes.data)))

    def upload(self, address: int, staging: Staging) -> None:
        """As `DeviceMemory.upload`."""
        with self.current():
            target = self._cuda.CUdeviceptr(address)
            self._call("cuMemcpyHtoDAsync", target, staging.ctypes.data, staging.nbytes, self._stream)

    def download(self, staging: Staging, address: int) -> None:
        """As `DeviceMemory.download`."""
        with self.current():
            source = self._cuda.CUdeviceptr(address)
            self._call("cuMemcpyDtoHAsync", staging.ctypes.data, source, staging.nbytes, self._stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """As `DeviceMemory.copy`."""
        with self.current():
            pair = self._cuda.CUdeviceptr(target), self._cuda.CUdeviceptr(source)
            self._call("cuMemcpyDtoDAsync", *pair, nbytes, self._stream)

    def synchronize(self, stream: int | None = None) -> None:
        """As `DeviceMemory.synchronize`."""
        with self.current():
            self._call("cuStreamSynchronize", self._stream if stream is None else self._cuda.CUstream(stream))

    def elapsed(self, work: Callable[[], None]) -> float:
        """As `DeviceMemory.elapsed`, by CUDA events before and after the work."""
        with self.current():
            events: list[Any] = []
            try:
                events += [self._call("cuEventCreate", 0), self._call("cuEventCreate", 0)]
                self._call("cuEventRecord", events[0], self._stream)
                work()
                self._call("cuEventRecord", events[1], self._stream)
                self._call("cuEventSynchronize", events[1])
                return float(self._call("cuEventElapsedTime", *events))
            finally:
                for event in events:
                    self._call("cuEventDestroy", event)

    def extent(self, address: int) -> int:
        """As `DeviceMemory.extent`."""
        with self.current():
            error, base, size = self._cuda.cuMemGetAddressRange(self._cuda.CUdeviceptr(address))
        if error != self._cuda.CUresult.CUDA_SUCCESS:
            return 0
        return int(base) + int(size) - address

    def clear(self, address: int, nbytes: int) -> None:
        """As `DeviceMemory.clear`."""
        with self.current():
            self._call("cuMemsetD8Async", self._cuda.CUdeviceptr(address), 0, nbytes, self._stream)

    def vacant(self) -> int:
        """As `DeviceMemory.vacant`."""
        with self.current():
            return int(self._call("cuMemGetInfo")[0])

    def attribute(self, attribute: Attribute) -> int:
        """As `DeviceMemory.attribute`."""
        return int(self._call("cuDeviceGetAttribute", self._cuda.CUdevice_attribute(int(attribute)), self._device))

    def device_name(self) -> str:
        """As `DeviceMemory.device_name`."""
        name: bytes = self._call("cuDeviceGetName", 256, self._device)
        return name.partition(b"\0")[0].decode(errors="replace")

    def compilers(self) -> Iterable[Compiler]:
        """As `DeviceMemory.compilers`."""
        return libraries()

    def load(self, image: bytes, name: str, shared: int) -> Any:
        """As `DeviceMemory.load`; the module is unloaded by `close`."""
        with self.current():
            module = self._call("cuModuleLoadData", image)
            self._modules.append(module)
            function = self._call("cuModuleGetFunction", module, name.encode())
            kind = self._cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, kind, shared)
        return function

    def launch(self, function: Any, blocks: int, threads: int, shared: int, arguments: Sequence[np.generic]) -> None:
        """As `DeviceMemory.launch`."""
        held = [np.array(argument) for argument in arguments]  # read before the call returns
        places = np.array([argument.ctypes.data for argument in held], np.uint64)
        with self.current():
            shape = blocks, 1, 1, threads, 1, 1, shared
            self._call("cuLaunchKernel", function, *shape, self._stream, places.ctypes.data, 0)

    def close(self) -> None:
        """As `DeviceMemory.close`; closing twice is allowed."""
        if self._context is None:
            return
        if self._stream is not None:
            with self.current():
                self._call("cuStreamDestroy", self._stream)
                for module in self._modules:
                    self._call("cuModuleUnload", module)
        self._modules = []
        self._stream = self._context = None
        self._call("cuDevicePrimaryCtxRelease", self._device)

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

import ctypes
import importlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from trtcal.errors import BackendError

logger = logging.getLogger(__name__)

Staging = NDArray[np.uint8]
T = TypeVar("T")

LEGACY_STREAM = 1
"""Handle of CUDA's legacy default stream, CU_STREAM_LEGACY."""

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: our stream does not wait for the legacy default stream, nor that for ours


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

    def attribute(self, code: int) -> int:
        """Number of a CUdevice_attribute -> its value."""

    def load(self, image: bytes, name: str, shared: int) -> Any:
        """Compiled module (cubin or PTX) -> its function ``name``, with room for ``shared`` bytes of dynamic memory."""

    def launch(self, function: Any, blocks: int, threads: int, shared: int, arguments: Sequence[np.generic]) -> None:
        """Start a function that `load` gave; the arguments are numpy scalars of the types of its parameters."""

    def close(self) -> None:
        """Release the stream and the context; buffers are to be freed before."""


class HostMemory:
    """Ordinary memory in the role of a device's; counts live allocations in ``live``.

    It launches what ``functions`` holds: name -> a function of (blocks, threads, bytes of shared memory, arguments).
    """

    name = "host"

    def __init__(self, device: int | None = None) -> None:
        self.live = 0
        self.functions: dict[str, Callable[[int, int, int, Sequence[np.generic]], None]] = {}
        self.attributes = {16: 4, 75: 9, 76: 0, 97: 232448}
        """CUdevice_attribute -> value; 0 where none stands here."""
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

    def attribute(self, code: int) -> int:
        """As `DeviceMemory.attribute`."""
        return self.attributes.get(code, 0)

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


class CudaMemory:
    """Device memory through NVIDIA's cuda-bindings."""

    name = "cuda"

    def __init__(self, device: int | None = None) -> None:
        self._cuda: Any = _import("cuda")
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
                self._stream = self._call("cuStreamCreate", _NON_BLOCKING)
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
            raise BackendError(f"{function} failed with {error.name}{_advice(int(error))}")
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

    def attribute(self, code: int) -> int:
        """As `DeviceMemory.attribute`."""
        return int(self._call("cuDeviceGetAttribute", self._cuda.CUdevice_attribute(code), self._device))

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


class PycudaMemory:
    """Device memory through PyCUDA, on a thread of its own.

    PyCUDA 2026.1 keeps a stack of contexts per thread, releases a primary context only on the thread that retained it,
    and leaves the released one current there. On its own thread it disturbs nobody.
    """

    name = "pycuda"

    def __init__(self, device: int | None = None) -> None:
        self._driver: Any = _import("pycuda")
        self._context: Any = None
        self._stream: Any = None
        self._device_buffers: dict[int, Any] = {}
        self._staging: dict[int, Any] = {}
        self._modules: list[Any] = []
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="trtcal-pycuda")
        self._number = self._current_device() if device is None else device
        try:
            self._on_thread(self._open, self._number)
        except BaseException:
            self.close()
            raise

    def _open(self, device: int) -> None:
        self._driver.init()
        self._context = self._driver.Device(device).retain_primary_context()
        self._stream = self._in_context(self._driver.Stream, _NON_BLOCKING)

    def _current_device(self) -> int:
        # PyCUDA sees only contexts of its own making; the driver it has loaded sees PyTorch's as well.
        number = ctypes.c_int(0)
        found = ctypes.CDLL("libcuda.so.1").cuCtxGetDevice(ctypes.byref(number))
        return number.value if found == 0 else 0

    def _in_context(self, function: Callable[..., T], *arguments: Any) -> T:
        # Never left current: PyCUDA aborts a process that ends with a context on the stack.
        self._context.push()
        try:
            result: T = function(*arguments)
        finally:
            self._driver.Context.pop()
        return result

    @property
    def stream(self) -> int:
        """As `DeviceMemory.stream`."""
        return int(self._stream.handle)

    @contextmanager
    def current(self) -> Iterator[None]:
        """As `DeviceMemory.current`."""
        # Past PyCUDA, which keeps a stack of contexts of its own for every thread that it pushes one on.
        driver, popped = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
        code = driver.cuCtxPushCurrent_v2(ctypes.c_void_p(self._context.handle))
        if code:
            raise BackendError(f"cuCtxPushCurrent failed with {code}")
        try:
            yield
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(popped))

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        result: T = self._on_thread(self._in_context, function, *arguments)
        return result

    def _on_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        assert self._thread is not None, "closed"
        try:
            result: T = self._thread.submit(function, *arguments).result()
        except self._driver.Error as error:
            memory = isinstance(error, self._driver.MemoryError)
            raise BackendError(f"PyCUDA: {error}{_advice(2 if memory else 0)}") from error
        return result

    def allocate(self, nbytes: int) -> int:
        """As `DeviceMemory.allocate`."""
        buffer = self._call(self._driver.mem_alloc, nbytes)
        self._device_buffers[int(buffer)] = buffer
        return int(buffer)

    def free(self, address: int) -> None:
        """As `DeviceMemory.free`."""
        self._call(self._device_buffers.pop(address).free)

    def allocate_staging(self, nbytes: int) -> Staging:
        """As `DeviceMemory.allocate_staging`."""
        staging: Staging = self._call(self._driver.pagelocked_empty, nbytes, np.uint8)
        self._staging[int(staging.ctypes.data)] = staging.base
        return staging

    def free_staging(self, staging: Staging) -> None:
        """As `DeviceMemory.free_staging`."""
        self._call(self._staging.pop(int(staging.ctypes.data)).free)

    def upload(self, address: int, staging: Staging) -> None:
        """As `DeviceMemory.upload`."""
        self._call(self._driver.memcpy_htod_async, address, staging, self._stream)

    def download(self, staging: Staging, address: int) -> None:
        """As `DeviceMemory.download`."""
        self._call(self._driver.memcpy_dtoh_async, staging, address, self._stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """As `DeviceMemory.copy`."""
        self._call(self._driver.memcpy_dtod_async, target, source, nbytes, self._stream)

    def synchronize(self, stream: int | None = None) -> None:
        """As `DeviceMemory.synchronize`."""
        # PyCUDA cannot wrap a stream made elsewhere; for one, everything queued in the context is waited for.
        self._call(self._stream.synchronize if stream is None else self._driver.Context.synchronize)

    def elapsed(self, work: Callable[[], None]) -> float:
        """As `DeviceMemory.elapsed`, by CUDA events before and after the work."""
        begin, end = self._call(self._driver.Event), self._call(self._driver.Event)
        self._call(begin.record, self._stream)
        work()
        self._call(end.record, self._stream)
        self._call(end.synchronize)
        return float(self._call(begin.time_till, end))

    def extent(self, address: int) -> int:
        """As `DeviceMemory.extent`."""
        try:
            base, size = self._call(self._driver.mem_get_address_range, address)
        except BackendError:
            return 0
        return int(base) + int(size) - address

    def clear(self, address: int, nbytes: int) -> None:
        """As `DeviceMemory.clear`."""
        self._call(self._driver.memset_d8_async, address, 0, nbytes, self._stream)

    def vacant(self) -> int:
        """As `DeviceMemory.vacant`."""
        return int(self._call(self._driver.mem_get_info)[0])

    def attribute(self, code: int) -> int:
        """As `DeviceMemory.attribute`; asked of the driver, for PyCUDA does not name all of them."""
        found = ctypes.c_int(0)
        if ctypes.CDLL("libcuda.so.1").cuDeviceGetAttribute(ctypes.byref(found), code, self._number):
            raise BackendError(f"the driver has no device attribute {code}")
        return found.value

    def load(self, image: bytes, name: str, shared: int) -> Any:
        """As `DeviceMemory.load`; the module is unloaded by `close`."""
        module = self._call(self._driver.module_from_buffer, image)
        self._modules.append(module)
        function = self._call(module.get_function, name)
        kind = self._driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._call(function.set_attribute, kind, shared)
        return function

    def launch(self, function: Any, blocks: int, threads: int, shared: int, arguments: Sequence[np.generic]) -> None:
        """As `DeviceMemory.launch`."""

        def start() -> None:
            function(*arguments, grid=(blocks, 1), block=(threads, 1, 1), shared=shared, stream=self._stream)

        self._call(start)

    def close(self) -> None:
        """As `DeviceMemory.close`; closing twice is allowed."""
        if self._thread is None:
            return
        try:
            self._on_thread(self._leave)
        finally:
            self._thread.shutdown()
            self._thread = None

    def _leave(self) -> None:
        if self._context is not None:
            self._stream = None  # destroys it, in a context that PyCUDA makes current by itself
            self._modules.clear()
            self._context.detach()  # releases a primary context, once it is off PyCUDA's stack
            self._context = None


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
            _import(name)
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


def _import(name: str) -> Any:
    """The driver module of a backend; BackendError that says how to get it."""
    modules = {"cuda": ("cuda.bindings.driver", "cuda.cuda"), "pycuda": ("pycuda.driver",), "host": ("numpy",)}[name]
    reasons = []
    for module in modules:  # cuda-bindings before 12.6 had its driver module at cuda.cuda
        try:
            return importlib.import_module(module)
        except Exception as error:  # PyCUDA raises errors of its own when libcuda is missing
            reasons.append(f"{error}")
    package = {"cuda": "cuda-bindings", "pycuda": "pycuda"}[name]
    raise BackendError(f"memory {name!r} needs the package {package} and a CUDA driver: {reasons[0]}")


def _advice(code: int) -> str:
    return "; use a smaller calibration batch, or free the GPU for the build" if code == 2 else ""

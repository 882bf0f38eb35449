"""Device memory through PyCUDA."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from calibrators.memory.base import NON_BLOCKING, Attribute, Compiler, Staging, advice, import_driver
from calibrators.nvrtc import libraries
from trtcal.errors import BackendError

T = TypeVar("T")


class PycudaMemory:
    """Device memory through PyCUDA, on a thread of its own.

    PyCUDA 2026.1 keeps a stack of contexts per thread, releases a primary context only on the thread that retained it,
    and leaves the released one current there. On its own thread it disturbs nobody.
    """

    name = "pycuda"

    def __init__(self, device: int | None = None) -> None:
        self._driver: Any = import_driver("pycuda")
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
        self._stream = self._in_context(self._driver.Stream, NON_BLOCKING)

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
            raise BackendError(f"PyCUDA: {error}{advice(2 if memory else 0)}") from error
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

    def attribute(self, attribute: Attribute) -> int:
        """As `DeviceMemory.attribute`; asked of the driver, for PyCUDA does not name all of them."""
        found = ctypes.c_int(0)
        if ctypes.CDLL("libcuda.so.1").cuDeviceGetAttribute(ctypes.byref(found), int(attribute), self._number):
            raise BackendError(f"the driver does not tell {attribute.name}")
        return found.value

    def device_name(self) -> str:
        """As `DeviceMemory.device_name`."""
        return str(self._on_thread(lambda: self._driver.Device(self._number).name()))

    def compilers(self) -> Iterable[Compiler]:
        """As `DeviceMemory.compilers`."""
        return libraries()

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

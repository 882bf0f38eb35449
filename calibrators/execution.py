"""One plan on one GPU: arrays of the engine's own shapes and types in, arrays out, and the TensorRT calls it takes.

`calibrators.runner.Engine` is what to use; this is the part of it that talks to TensorRT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrators import versions
from calibrators.buffers import Buffers
from calibrators.memory import DeviceMemory
from calibrators.shapes import Range, Shape
from calibrators.trtlog import LOG, made
from trtcal.errors import BackendError, ModelError

# What TensorRT 5 to 10 say of an engine from elsewhere -> what to do. (Their last line tells only that it failed.)
_ADVICE = (
    (r"incompatible device|compute capability|expecting compute|different (GPU|device)", "build it on this GPU"),
    (r"not compatible with this version|expecting library version|version tag", "build it again with this TensorRT"),
    (r"magic ?tag", "it is no engine, or only the beginning of one"),
    (r"plugin", "load the library of its plugins before it"),
)

_Base: Any = versions.tensorrt().IOutputAllocator


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine; -1 in ``shape`` is a dynamic axis."""

    name: str
    dtype: np.dtype
    shape: Shape


class OutputMemory(_Base):  # type: ignore[misc]
    """Memory for outputs whose size TensorRT knows only while it runs."""

    def __init__(self, buffers: Buffers) -> None:
        _Base.__init__(self)
        self._buffers = buffers
        self.found: dict[str, tuple[int, Shape]] = {}
        """Output -> its address and, once TensorRT knows it, its shape."""
        self.error: BaseException | None = None

    def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
        """Called by TensorRT -> address; 0 where there is no room, and then the error is kept: it may not pass."""
        try:
            address = self._buffers.device(0, tensor_name, size)
        except BaseException as error:
            self.error = self.error or error
            return 0
        self.found[tensor_name] = address, ()
        return address

    def notify_shape(self, tensor_name: str, shape: Any) -> None:
        """Called by TensorRT before execute_async_v3 returns."""
        self.found[tensor_name] = self.found.get(tensor_name, (0, ()))[0], tuple(shape)


class Execution:
    """A deserialized plan, a context to run it, and buffers that only grow.

    To be made and used inside ``with memory.current()``. ``inputs`` and ``outputs`` in the engine's order;
    ``profiles``: for each optimization profile, input -> the shapes that it takes.

    Raises BackendError where TensorRT does not take or run the plan; ModelError for an input or output that cannot be
    an ordinary array.
    """

    def __init__(self, plan: bytes, name: str, memory: DeviceMemory) -> None:
        self.name, self._memory = name, memory
        self._trt = versions.tensorrt()
        self._buffers = Buffers(memory, slots=1)
        LOG.clear()
        self._runtime: Any = made(lambda: self._trt.Runtime(LOG), "a runtime")
        self._trt.init_libnvinfer_plugins(LOG, "")  # TensorRT's own plugins, which an engine may need
        self.engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise BackendError(f"{name}: TensorRT {self._trt.__version__} does not take this engine: {_why()}")
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        for number in range(self.engine.num_io_tensors):
            tensor = self._tensor(self.engine.get_tensor_name(number))
            is_input = self.engine.get_tensor_mode(tensor.name) == self._trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(tensor)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.profiles = tuple(
            {tensor.name: self._range(tensor, number) for tensor in inputs}
            for number in range(max(self.engine.num_optimization_profiles, 1))
        )
        self._context: Any = made(self.engine.create_execution_context, f"a context to run {name}")
        self._sizes: dict[str, tuple[int, Shape]] = {}  # output -> address and shape of the inputs that are set
        self._allocator = OutputMemory(self._buffers)

    def _tensor(self, name: str) -> Tensor:
        dtype = self.engine.get_tensor_dtype(name)
        layout = self.engine.get_tensor_format(name)
        trouble = None
        if getattr(self.engine, "has_implicit_batch_dimension", False):  # gone in TensorRT 11
            trouble = "belongs to an engine of implicit batch; build it from ONNX, whose batch is explicit"
        elif self.engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            trouble = "is a shape, which TensorRT keeps on the host; build the engine with a constant there"
        elif versions.io_dtype(dtype) is None:
            trouble = f"is {dtype.name}, which NumPy has not; build the engine with another type there"
        elif layout != self._trt.TensorFormat.LINEAR:
            trouble = f"is laid out as {layout.name}, not in order; build the engine with linear inputs and outputs"
        if trouble is not None:
            raise ModelError(f"{self.name}: {name!r} {trouble}")
        return Tensor(name, np.dtype(versions.io_dtype(dtype)), tuple(self.engine.get_tensor_shape(name)))

    def _range(self, tensor: Tensor, profile: int) -> Range:
        if -1 not in tensor.shape:
            return Range.of(tensor.shape)
        return Range.of(self.engine.get_tensor_profile_shape(tensor.name, profile))

    def prepare(self, profile: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Queue the inputs' copies to the device, and find room for the outputs."""
        LOG.clear()
        stream, context = self._memory.stream, self._context
        if profile != context.active_optimization_profile:
            self._check(context.set_optimization_profile_async(profile, stream), f"use its profile {profile}")
        for tensor in self.inputs:
            array = arrays[tensor.name]
            address = self._buffers.device(0, tensor.name, array.nbytes)
            staging = self._buffers.staging(0, tensor.name, array.nbytes)
            np.copyto(staging.view(tensor.dtype).reshape(array.shape), array, casting="no")
            if array.nbytes:
                self._memory.upload(address, staging)
            if -1 in tensor.shape:
                taken = context.set_input_shape(tensor.name, array.shape)
                self._check(taken, f"take shape {array.shape} for input {tensor.name!r}")
            self._check(context.set_tensor_address(tensor.name, address), f"read {tensor.name!r}")
        for tensor in self.outputs:
            shape = tuple(context.get_tensor_shape(tensor.name))
            if -1 in shape:  # depends on the values of the inputs
                self._check(context.set_output_allocator(tensor.name, self._allocator), f"size {tensor.name!r}")
                continue
            address = self._buffers.device(0, tensor.name, math.prod(shape) * tensor.dtype.itemsize)
            self._sizes[tensor.name] = address, shape
            self._check(context.set_tensor_address(tensor.name, address), f"write {tensor.name!r}")

    def enqueue(self) -> None:
        """Queue one inference on what `prepare` has set."""
        taken = self._context.execute_async_v3(self._memory.stream)
        error, self._allocator.error = self._allocator.error, None
        if error is not None:
            raise error
        self._check(taken, "run")

    def fetch(self) -> dict[str, np.ndarray]:
        """Wait for what is queued -> output: array."""
        staged = {}
        for tensor in self.outputs:
            address, shape = self._sizes.get(tensor.name) or self._allocator.found[tensor.name]
            nbytes = math.prod(shape) * tensor.dtype.itemsize
            staging = self._buffers.staging(0, tensor.name, nbytes)
            if nbytes:
                self._memory.download(staging, address)
            staged[tensor.name] = staging.view(tensor.dtype).reshape(shape)
        self._memory.synchronize()
        return {name: array.copy() for name, array in staged.items()}

    def run(self, profile: int, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays of shapes that the profile takes -> output: array."""
        self.prepare(profile, arrays)
        self.enqueue()
        return self.fetch()

    def _check(self, taken: bool, what: str) -> None:
        if not taken:
            raise BackendError(f"{self.name}: TensorRT cannot {what}: {LOG.words()}")

    def close(self) -> None:
        """Give everything back, in the order that TensorRT wants."""
        try:
            self._memory.synchronize()  # after an error work may still be queued that uses the buffers
        finally:
            self._context = None
            self.engine = None
            self._runtime = None
            self._buffers.close()


def _why() -> str:
    words = LOG.words()
    advice = next((advice for pattern, advice in _ADVICE if re.search(pattern, words, re.IGNORECASE)), None)
    return words if advice is None else f"{words}; {advice}"

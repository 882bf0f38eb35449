from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from calibrators.feed import Feed
from calibrators.intake import DeviceArray, Expected, as_array, fed_dtype
from calibrators.memory import HostMemory
from trtcal.errors import DataError
from trtcal.samples.conform import PIXELS, conform
from trtcal.spec import InputSpec

X = {"x": ((2, 3), "float32")}


def drain(feed: Feed, memory: HostMemory) -> list[np.ndarray]:
    """What TensorRT would read of input x: the bytes at its pointer, before the next call."""
    read = []
    while pointers := feed.next(["x"]):
        expected = feed.expected["x"]
        data = memory.read(pointers[0], expected.nbytes)
        read.append(np.frombuffer(data, expected.dtype).reshape(expected.shape))
    return read


def feed_once(value: Any, inputs: Any = X, **options: Any) -> np.ndarray:
    memory = HostMemory()
    (array,) = drain(Feed([{"x": value}], inputs=inputs, memory=memory, **options), memory)
    return array


# Casts


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floating_point_becomes_float32(dtype: str) -> None:
    array = np.arange(6, dtype=dtype).reshape(2, 3)
    for inputs in (X, None, {"x": ((2, 3), "float16")}):
        fed = feed_once(array, inputs)
        assert fed.dtype == np.float32
        np.testing.assert_array_equal(fed, array)


def test_integers_become_the_networks_integers_where_they_fit() -> None:
    fed = feed_once(np.array([[1, -2, 3]] * 2, np.int64), {"x": ((2, 3), "int32")})
    assert fed.dtype == np.int32
    assert fed.tolist() == [[1, -2, 3]] * 2


def test_integers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"values from 0 to 2147483648 do not fit into int32"):
        feed_once(np.array([[0, 1, 1 << 31]] * 2), {"x": ((2, 3), "int32")})


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_raw_pixels_for_a_floating_point_input_are_refused_as_on_the_cpu(dtype: str) -> None:
    with pytest.raises(DataError) as gpu:
        feed_once(np.zeros((2, 3), np.uint8), {"x": ((2, 3), dtype)})
    with pytest.raises(DataError) as cpu:
        conform({"x": np.zeros(3, np.uint8)}, [InputSpec("x", np.dtype(dtype), (3,))], "a")
    assert str(gpu.value) == f"input 'x': {PIXELS}"
    assert str(cpu.value) == f"sample 'a', input 'x': {PIXELS}"


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int32", "int64"])
def test_other_integers_become_the_same_floats_as_on_the_cpu(dtype: str) -> None:
    array = np.array([[1, 0, 1], [0, 1, 1]], dtype)
    cpu = conform({"x": array[0]}, [InputSpec("x", np.dtype(np.float32), (3,))], "a")["x"]
    gpu = feed_once(array)
    assert gpu.dtype == cpu.dtype == np.float32
    np.testing.assert_array_equal(gpu[0], cpu)


@pytest.mark.parametrize("value", [2**24 + 1, -(2**24) - 1])
def test_integers_that_no_float_is_are_refused_as_on_the_cpu(value: int) -> None:
    said = f"int64 value {value} does not fit float32; rescale the data"
    with pytest.raises(DataError, match=said):
        feed_once(np.array([[0, 0, value]] * 2))
    with pytest.raises(DataError, match=said):
        conform({"x": np.array([0, 0, value])}, [InputSpec("x", np.dtype(np.float32), (3,))], "a")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16"])
def test_raw_pixels_for_an_unknown_input_are_refused(dtype: str) -> None:
    with pytest.raises(DataError, match="network's own type is not known"):
        feed_once(np.zeros((2, 3), dtype), None)


def test_floating_point_for_an_integer_input_is_refused() -> None:
    with pytest.raises(DataError, match="found float32, the network takes int32"):
        feed_once(np.zeros((2, 3), np.float32), {"x": ((2, 3), "int32")})


@pytest.mark.parametrize(("int64", "dtype"), [(True, np.int64), (False, np.int32)])
def test_int64_stays_where_tensorrt_has_it(int64: bool, dtype: Any) -> None:
    assert feed_once(np.ones((2, 3), np.int64), None, int64=int64).dtype == dtype


def test_bool_stays_bool() -> None:
    assert feed_once(np.ones((2, 3), bool), None).dtype == np.bool_
    with pytest.raises(DataError, match="found bool"):
        feed_once(np.ones((2, 3), bool), {"x": ((2, 3), "int32")})


def test_bfloat16_becomes_float32() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert fed_dtype(np.dtype(ml_dtypes.bfloat16), None) == np.float32
    assert feed_once(np.ones((2, 3), ml_dtypes.bfloat16)).tolist() == [[1, 1, 1]] * 2


# What counts as an array


def test_strided_arrays_are_copied_as_they_read() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2].T
    np.testing.assert_array_equal(feed_once(array), array)


def test_scalars_per_batch_are_fed() -> None:
    assert feed_once(np.float32(3).reshape(()), {"x": ((), "float32")}) == 3


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64"])
def test_torch_tensors_are_fed(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=getattr(torch, dtype)).reshape(2, 3)
    if tensor.is_floating_point():
        tensor.requires_grad_()
    assert feed_once(tensor, None).tolist() == [[0, 1, 2], [3, 4, 5]]


class OnDevice:
    """An array in HostMemory that presents itself as CuPy and Numba do."""

    def __init__(self, array: np.ndarray, memory: HostMemory, **changes: Any) -> None:
        self.address = memory.allocate(array.nbytes)
        memory.upload(self.address, array.reshape(-1).view(np.uint8))
        face = {"shape": array.shape, "typestr": array.dtype.str, "data": (self.address, False), "version": 3}
        self.__cuda_array_interface__ = {**face, "strides": None, **changes}


def test_cuda_arrays_are_copied_on_the_device() -> None:
    memory = HostMemory()
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    device = OnDevice(array, memory)
    (fed,) = drain(Feed([{"x": device}], memory=memory), memory)
    np.testing.assert_array_equal(fed, array)


def test_a_loader_may_fill_its_device_buffer_again_while_tensorrt_reads() -> None:
    memory = HostMemory()
    device = OnDevice(np.zeros((2, 3), np.float32), memory)

    def loader() -> Iterator[dict[str, Any]]:
        for value in (1, 2, 3):
            data = np.full(6, value, np.float32)
            ctypes.memmove(device.address, data.ctypes.data, data.nbytes)
            yield {"x": device}

    assert [array[0, 0] for array in drain(Feed(loader(), memory=memory), memory)] == [1, 2, 3]


def test_the_work_that_fills_a_device_array_is_waited_for() -> None:
    class Streams(HostMemory):
        waited: list[int | None] = []  # noqa: RUF012

        def synchronize(self, stream: int | None = None) -> None:
            self.waited.append(stream)

    memory = Streams()
    device = OnDevice(np.zeros((2, 3), np.float32), memory, stream=77)
    Feed([{"x": device}], memory=memory).next(["x"])
    assert memory.waited[0] == 77


def test_device_arrays_that_are_not_dense_are_refused() -> None:
    memory = HostMemory()
    device = OnDevice(np.zeros((2, 3), np.float32), memory, strides=(4, 8))
    with pytest.raises(DataError, match="not contiguous"):
        Feed([{"x": device}], memory=memory).next(["x"])


def test_device_arrays_of_another_type_are_refused() -> None:
    memory = HostMemory()
    device = OnDevice(np.zeros((2, 3), np.float64), memory)
    with pytest.raises(DataError, match="on the device is float64, TensorRT is to read float32"):
        Feed([{"x": device}], memory=memory).next(["x"])


def test_a_device_array_that_is_larger_than_its_memory_is_refused() -> None:
    memory = HostMemory()
    device = OnDevice(np.zeros((1, 3), np.float32), memory, shape=(2, 3))
    with pytest.raises(DataError, match=r"24 bytes are to be read at 0x\w+, where 12 are allocated"):
        Feed([{"x": device}], memory=memory).next(["x"])


def test_device_addresses_are_fed_where_it_is_said_what_they_hold() -> None:
    memory = HostMemory()
    device = OnDevice(np.ones((2, 3), np.float32), memory)
    (fed,) = drain(Feed([{"x": device.address}], inputs=X, memory=memory), memory)
    assert fed.tolist() == [[1, 1, 1]] * 2


def test_a_device_address_alone_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'x': a device address alone.*inputs="):
        Feed([{"x": 4096}], memory="host").next(["x"])


def test_a_device_address_with_too_little_memory_behind_it_is_refused() -> None:
    memory = HostMemory()
    address = memory.allocate(20)
    with pytest.raises(DataError, match="where 20 are allocated"):
        Feed([{"x": address}], inputs=X, memory=memory).next(["x"])


class Capsule:
    """Memory that presents itself through DLPack as CUDA's."""

    def __init__(self, address: int, shape: tuple[int, ...], *, code: int = 2, bits: int = 32, device: int = 2):
        from calibrators.intake import _DLTensor

        self.device = device
        self.shape = (ctypes.c_int64 * len(shape))(*shape)
        self.tensor = _DLTensor(address, device, 0, len(shape), code, bits, 1, self.shape, None, 0)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, stream: int | None = None) -> Any:
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return make(ctypes.addressof(self.tensor), b"dltensor", None)


def test_dlpack_on_the_device_is_fed() -> None:
    memory = HostMemory()
    device = OnDevice(np.ones((2, 3), np.float32), memory)
    (fed,) = drain(Feed([{"x": Capsule(device.address, (2, 3))}], memory=memory), memory)
    assert fed.tolist() == [[1, 1, 1]] * 2


def test_dlpack_types_and_devices_that_numpy_lacks_are_refused() -> None:
    with pytest.raises(DataError, match="no numpy type"):
        as_array(Capsule(4096, (2, 3), code=4, bits=16), None)
    with pytest.raises(DataError, match="device type 7"):
        as_array(Capsule(4096, (2, 3), device=7), None)


def test_dlpack_on_the_cpu_is_fed() -> None:
    class OnCpu:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(feed_once(OnCpu(array)), array)


@pytest.mark.parametrize("value", [[1.0, 2.0], "pixels", None, True])
def test_anything_else_is_refused_by_its_type(value: Any) -> None:
    with pytest.raises(TypeError, match=f"cannot feed a builtins.{type(value).__name__}"):
        as_array(value, Expected((1,), np.dtype("float32")))


def test_a_device_array_knows_its_bytes() -> None:
    assert DeviceArray(0, (2, 3), np.dtype("int64"), None).nbytes == 48

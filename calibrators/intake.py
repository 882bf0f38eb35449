"""Whatever a loader yields -> a host array or a checked piece of device memory.

What an input becomes, by what is known of it:

====================  ==========================================================================================
network's input type  what is accepted
====================  ==========================================================================================
float32, float16,     any floating-point array, and bools and integers that float32 has, but for uint8; becomes float32,
bfloat16              because TensorRT calibrates in float32 whatever type the network's input has (stated in
                      Polygraphy's ``Calibrator.set_input_metadata``)
int32, int64, int8,   any integer array whose values fit; becomes that type
uint8
bool                  bool
not known             floating point becomes float32; int32 and bool stay; int64 stays, but becomes int32 on
                      TensorRT before 10, which has no int64; other types are refused
====================  ==========================================================================================

uint8 for a floating-point input is refused, as on the CPU: it is raw pixels, as a rule, and a range of 0 to 255 for a
network that was trained on normalised images is the most expensive of silent mistakes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtcal.errors import DataError
from trtcal.samples.conform import PIXELS, are_pixels


@dataclass(frozen=True)
class Expected:
    """What TensorRT reads for one input: the full shape, batch included, and the dtype that it is fed."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that TensorRT reads at the pointer."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


@dataclass(frozen=True)
class DeviceArray:
    """Dense memory on the device that belongs to someone else; ``owner`` keeps it alive."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype
    owner: object
    stream: int | None = None  # handle of the stream whose queued work fills the memory

    @property
    def nbytes(self) -> int:
        """Bytes from ``address`` on that the array occupies."""
        return Expected(self.shape, self.dtype).nbytes


def expected_inputs(inputs: Mapping[str, Any]) -> dict[str, Expected]:
    """Input -> Expected, or a pair (full shape, dtype) -> input -> Expected; floating-point becomes float32."""
    result = {}
    for name, value in inputs.items():
        shape, dtype = (value.shape, value.dtype) if isinstance(value, Expected) else value
        dtype = np.dtype(dtype)
        shape = tuple(int(size) for size in shape)
        if any(size < 0 for size in shape):
            raise ValueError(f"input {name!r}: the shape must be complete, batch included, got {shape}")
        result[name] = Expected(shape, np.dtype(np.float32) if _is_float(dtype) else dtype)
    return result


def as_array(value: Any, expected: Expected | None) -> np.ndarray | DeviceArray:
    """A loader's value -> host array (any dtype, any strides), or device memory as it lies there.

    Accepts numpy arrays, torch tensors on any device, ``__cuda_array_interface__``, DLPack on the CPU or a CUDA
    device, ``__array__``, and, where ``expected`` says what it holds, a device address. Anything else is a TypeError.
    """
    if isinstance(value, np.ndarray):
        return value
    if _is_torch(value):
        return _from_torch(value)
    if hasattr(value, "__cuda_array_interface__"):
        return _from_cuda_interface(value)
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if expected is None:
            raise TypeError(
                "a device address alone does not say how much memory it stands for; "
                "say so: inputs={'name': ((4, 3, 224, 224), 'float32')}"
            )
        return DeviceArray(int(value), expected.shape, expected.dtype, owner=None)
    if hasattr(value, "__array__"):
        return np.asarray(value)
    raise TypeError(
        f"cannot feed a {type(value).__module__}.{type(value).__qualname__}; expected a numpy array, a torch tensor, "
        f"an object with __cuda_array_interface__ or __dlpack__, or a device address"
    )


def fed_dtype(found: np.dtype, expected: Expected | None, *, int64: bool = True) -> np.dtype:
    """Dtype of a loader's array -> dtype that TensorRT is given; DataError where no cast keeps the meaning.

    ``int64``: whether this TensorRT has that type, for inputs of which nothing is known.
    """
    if expected is None:
        if _is_float(found):
            return np.dtype(np.float32)
        if found == np.int64:
            return np.dtype(np.int64 if int64 else np.int32)
        if found in (np.int32, np.bool_):
            return found
        raise DataError(
            f"found {found}, and the network's own type is not known; convert images to float32, "
            f"or say what the network reads: inputs={{'name': (shape, '{found}')}}"
        )
    wanted = expected.dtype
    if found == wanted or (_is_float(found) and _is_float(wanted)):
        return wanted
    if are_pixels(found, wanted):
        raise DataError(PIXELS)
    if found.kind in "iu" and (wanted.kind in "iu" or _is_float(wanted)):
        return wanted
    if found.kind == "b" and _is_float(wanted):
        return wanted
    raise DataError(f"found {found}, the network takes {wanted}")


def check_fits(array: np.ndarray, dtype: np.dtype) -> None:
    """Raises DataError where the dtype does not have an integer of the array."""
    if array.dtype == dtype or not array.size or array.dtype.kind not in "biu":
        return
    if dtype.kind == "f":
        changed = array.astype(dtype) != array
        if changed.any():
            raise DataError(f"{array.dtype} value {array[changed].flat[0]} does not fit {dtype}; rescale the data")
        return
    low, high = int(array.min()), int(array.max())
    limits = np.iinfo(dtype)
    if low < limits.min or high > limits.max:
        raise DataError(f"values from {low} to {high} do not fit into {dtype}, which the network takes")


def _is_float(dtype: np.dtype) -> bool:
    # ml_dtypes.bfloat16 has kind "V", and no cast of its own to numpy's floating types by name.
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")  # a tensor cannot exist without it
    return torch is not None and isinstance(value, torch.Tensor)


def _from_torch(tensor: Any) -> np.ndarray | DeviceArray:
    torch = sys.modules["torch"]
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16, torch.float64):
        tensor = tensor.float()
    if tensor.device.type != "cuda" or tensor.dtype == torch.int64:  # the values of an int64 are checked on the host
        array: np.ndarray = tensor.cpu().numpy()
        return array
    found = _from_cuda_interface(tensor.contiguous())
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return DeviceArray(found.address, found.shape, found.dtype, found.owner, int(stream))


def _from_cuda_interface(value: Any) -> DeviceArray:
    """https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html"""
    face = value.__cuda_array_interface__
    shape, dtype = tuple(face["shape"]), np.dtype(face["typestr"])
    strides = face.get("strides")
    if strides is not None and tuple(strides) != _dense_strides(shape, dtype.itemsize):
        raise DataError(f"the device array of shape {shape} is not contiguous; make it so before it is fed")
    return DeviceArray(int(face["data"][0] or 0), shape, dtype, value, face.get("stream"))


def _dense_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides = []
    for size in reversed(shape):
        strides.append(itemsize)
        itemsize *= size
    return tuple(reversed(strides))


class _DLTensor(ctypes.Structure):
    """https://dmlc.github.io/dlpack/latest/c_api.html, as it stands at the start of an unversioned capsule."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_DL_CPU, _DL_CUDA, _DL_CUDA_HOST, _DL_CUDA_MANAGED = 1, 2, 3, 13
_DL_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}


def _from_dlpack(value: Any) -> np.ndarray | DeviceArray:
    device = int(value.__dlpack_device__()[0])
    if device in (_DL_CPU, _DL_CUDA_HOST):
        return np.from_dlpack(value)
    if device not in (_DL_CUDA, _DL_CUDA_MANAGED):
        raise DataError(f"DLPack device type {device} is neither the CPU nor CUDA; copy the array to one of them")
    # 1 asks the producer to make its work visible to the legacy default stream, which is waited for before the copy.
    capsule = value.__dlpack__(stream=1)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _DLTensor.from_address(pointer(capsule, b"dltensor"))
    if tensor.code not in _DL_KINDS or tensor.lanes != 1:
        raise DataError(f"DLPack type {tensor.code} with {tensor.bits} bits has no numpy type; convert it to float32")
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides and tuple(tensor.strides[: tensor.ndim]) != _dense_strides(shape, 1):
        raise DataError(f"the device array of shape {shape} is not contiguous; make it so before it is fed")
    dtype = np.dtype(f"{_DL_KINDS[tensor.code]}{tensor.bits // 8}")
    # The capsule is not renamed to "used_dltensor", so whoever made it frees the tensor when the capsule goes.
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, dtype, (value, capsule), 1)

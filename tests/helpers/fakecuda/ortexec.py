"""Lets the fake TensorRT compute: engines run in ONNX Runtime, as INT8 with the ranges they were built with.

    from fakecuda import ortexec
    ortexec.install()

What an engine then answers is bit for bit what `trtcal.judging.accuracy.simulate` computes for the same model and ranges.
"""

from __future__ import annotations

import ctypes
import sys
import traceback
from typing import Any

import numpy as np

from trtcal.judging.accuracy import simulate
from trtcal.cache.cache import CalibrationCache
from trtcal.model.runner import OrtRunner


class Dims(ctypes.Structure):
    _fields_ = [("nb", ctypes.c_int32), ("d", ctypes.c_int64 * 8)]


_P, _N = ctypes.c_void_p, ctypes.c_size_t
_Executor = ctypes.CFUNCTYPE(ctypes.c_int, _P, _N, _P, _N, ctypes.POINTER(Dims), ctypes.POINTER(_P), ctypes.POINTER(_P))
_runners: dict[tuple[bytes, bytes], tuple[Any, OrtRunner]] = {}


def _runner(model: bytes, ranges: bytes) -> tuple[Any, OrtRunner]:
    if (model, ranges) not in _runners:
        import onnx

        proto = onnx.load_model_from_string(model)
        _runners.clear()
        if ranges:
            _runners[model, ranges] = proto, simulate(proto, CalibrationCache.parse(ranges).scales)
        else:
            _runners[model, ranges] = proto, OrtRunner(proto)
    return _runners[model, ranges]


def _execute(model: Any, nmodel: int, ranges: Any, nranges: int, shapes: Any, inputs: Any, outputs: Any) -> int:
    try:
        from onnx.helper import tensor_dtype_to_np_dtype

        proto, runner = _runner(ctypes.string_at(model, nmodel), ctypes.string_at(ranges, nranges))
        constants = {tensor.name for tensor in proto.graph.initializer}
        batch = {}
        for number, value in enumerate(v for v in proto.graph.input if v.name not in constants):
            dtype = np.dtype(tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
            shape = tuple(shapes[number].d[: shapes[number].nb])
            data = ctypes.string_at(inputs[number], int(np.prod(shape)) * dtype.itemsize)
            batch[value.name] = np.frombuffer(data, dtype).reshape(shape)
        for number, array in enumerate(runner(batch).values()):
            ctypes.memmove(outputs[number], np.ascontiguousarray(array).ctypes.data, array.nbytes)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        return 1
    return 0


_callback = _Executor(_execute)  # kept: the library holds its address alone


def install() -> None:
    """From now on, in this process."""
    ctypes.CDLL("libnvinfer.so.10").trtfake_set_executor(_callback)

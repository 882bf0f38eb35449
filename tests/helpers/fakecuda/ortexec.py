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
_Executor = ctypes.CFUNCTYPE(
    ctypes.c_int, _P, _N, _P, _N, ctypes.POINTER(Dims), ctypes.POINTER(_P), ctypes.POINTER(ctypes.c_char_p),
    ctypes.POINTER(_N), ctypes.c_int, ctypes.POINTER(_P),
)  # fmt: skip
_Shapes = ctypes.CFUNCTYPE(_P, _P, _N, ctypes.POINTER(_N))
_runners: dict[tuple[bytes, bytes, tuple[str, ...]], tuple[Any, OrtRunner]] = {}


def _runner(model: bytes, ranges: bytes, names: tuple[str, ...]) -> tuple[Any, OrtRunner]:
    if (model, ranges, names) not in _runners:
        import onnx

        proto = onnx.load_model_from_string(model)
        _runners.clear()
        if ranges:
            _runners[model, ranges, names] = proto, simulate(proto, CalibrationCache.parse(ranges).scales)
        else:
            known = {value.name for value in proto.graph.output}
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
            _runners[model, ranges, names] = proto, OrtRunner(proto, threads=1, outputs=names)
    return _runners[model, ranges, names]


def _execute(
    model: Any, nmodel: int, ranges: Any, nranges: int, shapes: Any, inputs: Any, names: Any, room: Any, count: int, outputs: Any
) -> int:
    try:
        from onnx.helper import tensor_dtype_to_np_dtype

        shown = tuple(names[number].decode() for number in range(count))
        proto, runner = _runner(ctypes.string_at(model, nmodel), ctypes.string_at(ranges, nranges), shown)
        constants = {tensor.name for tensor in proto.graph.initializer}
        batch = {}
        for number, value in enumerate(v for v in proto.graph.input if v.name not in constants):
            dtype = np.dtype(tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
            shape = tuple(shapes[number].d[: shapes[number].nb])
            data = ctypes.string_at(inputs[number], int(np.prod(shape)) * dtype.itemsize)
            batch[value.name] = np.frombuffer(data, dtype).reshape(shape)
        for number, array in enumerate(runner(batch).values()):
            assert array.nbytes == room[number], f"{shown[number]} is {array.nbytes} bytes, and has room for {room[number]}"
            ctypes.memmove(outputs[number], np.ascontiguousarray(array).ctypes.data, array.nbytes)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        return 1
    return 0


_inferred: dict[bytes, bytes] = {}  # kept: the library reads them while it parses


def _infer(model: Any, nmodel: int, size: Any) -> int:
    import onnx

    data = ctypes.string_at(model, nmodel)
    try:
        found = onnx.shape_inference.infer_shapes(data).SerializeToString()
    except Exception:  # no model, which the parser is to say
        found = data
    _inferred.clear()
    _inferred[data] = found
    size[0] = len(found)
    return ctypes.cast(ctypes.c_char_p(found), ctypes.c_void_p).value


_callbacks = _Executor(_execute), _Shapes(_infer)  # kept: the library holds their addresses alone


def install() -> None:
    """From now on, in this process."""
    library = ctypes.CDLL("libnvinfer.so.10")
    library.trtfake_set_executor(_callbacks[0])
    library.trtfake_set_shapes(_callbacks[1])

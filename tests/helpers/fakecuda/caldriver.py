"""Calls the genuine C++-to-Python trampolines of one calibrator, without a builder.

pybind11 keeps a pointer to the C++ object in the instance; its vtable is called as the builder would call it. This
works on any TensorRT bindings, on a real 8.6.0 without a GPU too. The first slot is 0 in TensorRT 8 and 4 in
TensorRT 10, where the methods of IVersionedInterface come first.
"""

from __future__ import annotations

import ctypes as C
from typing import Any

P = C.c_void_p
INSTANCE = 16  # offset of the C++ pointer in a pybind11 instance with one base


class Driver:
    """The five calls that a builder makes, on one calibrator."""

    def __init__(self, trt: Any, calibrator: Any) -> None:
        self.calibrator = calibrator  # the C++ object lives as long as this
        self._object = P.from_address(id(calibrator) + INSTANCE).value
        table = P.from_address(self._object).value
        first = 0 if int(trt.__version__.split(".")[0]) < 10 else 4

        def slot(number: int, *types: Any) -> Any:
            return C.CFUNCTYPE(*types)(P.from_address(table + 8 * (first + number)).value)

        self._batch_size = slot(0, C.c_int32, P)
        self._batch = slot(1, C.c_bool, P, P, P, C.c_int32)
        self._read = slot(2, P, P, C.POINTER(C.c_size_t))
        self._write = slot(3, None, P, C.c_char_p, C.c_size_t)
        self._algorithm = slot(4, C.c_int32, P)

    def get_batch_size(self) -> int:
        return self._batch_size(self._object)

    def get_algorithm(self) -> int:
        return self._algorithm(self._object)

    def get_batch(self, names: list[str]) -> tuple[bool, list[int]]:
        pointers = (P * len(names))()
        texts = (C.c_char_p * len(names))(*[name.encode() for name in names])
        more = self._batch(self._object, C.addressof(pointers), C.addressof(texts), len(names))
        return more, [pointer or 0 for pointer in pointers]

    def read_calibration_cache(self) -> bytes | None:
        length = C.c_size_t(0)
        address = self._read(self._object, length)
        return None if not address else C.string_at(address, length.value)

    def write_calibration_cache(self, cache: bytes) -> None:
        self._write(self._object, cache, len(cache))

    def calibrate(self, names: list[str], cache: bytes, *, size_first: bool = True, limit: int = 100_000) -> list[str]:
        """One whole calibration in the order that is asked for -> the calls made."""
        made = []
        if size_first:
            made.append(f"get_batch_size {self.get_batch_size()}")
        if self.read_calibration_cache():
            return [*made, "read_calibration_cache hit"]
        made.append("read_calibration_cache miss")
        if not size_first:
            made.append(f"get_batch_size {self.get_batch_size()}")
        batches = 0
        while batches < limit and self.get_batch(names)[0]:
            batches += 1
        made.append(f"get_batch {batches}")
        self.write_calibration_cache(cache)
        return [*made, "write_calibration_cache"]

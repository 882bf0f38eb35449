"""Lets the fake TensorRT calibrate: the ranges of every tensor, by the algorithm as trtcal believes it to be.

    from fakecuda import ortcalibrate
    ortcalibrate.install()

With ``TRTFAKE_RULES="growth=times 4"`` it breaks one rule of `acceptance.rules`. Whoever expects TensorRT to keep the
rules is then to fail, which is what this is for: it says nothing about TensorRT.
"""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from typing import Any

import numpy as np
from fakecuda.ortexec import Dims

from acceptance import rules
from trtcal.model.open import FloatRunner, open_model
from trtcal.ranges.growth import double
from trtcal.ranges.histogram import NUM_BINS, HistogramBuilder, abs_max
from trtcal.ranges.thresholds import entropy

_P, _N = ctypes.c_void_p, ctypes.c_size_t
_Ranges = ctypes.CFUNCTYPE(
    ctypes.c_int, _P, _N, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(Dims), ctypes.POINTER(_P), ctypes.c_double, _P, _N
)


class _Calibration:
    """The values of every tensor of the model that is being calibrated, batch by batch."""

    def __init__(self, model: bytes) -> None:
        self.model = open_model(model)
        self.values: dict[str, list[np.ndarray]] = {}

    def add(self, batch: dict[str, np.ndarray]) -> None:
        with FloatRunner(self.model) as runner:
            rows = [runner({name: array[row : row + 1] for name, array in batch.items()}) for row in range(len(next(iter(batch.values()))))]
        for name in rows[0]:
            self.values.setdefault(name, []).append(np.concatenate([row[name] for row in rows]))

    def lines(self, algorithm: str, quantile: float) -> str:
        graph = self.model.calibrated
        values = {**self.values, **{name: [value] for name, value in graph.constants.items()}}
        scales = {name: _scale(batches, algorithm, quantile) for name, batches in values.items()}
        sources = ((name, graph.carried.get(name, name)) for name in graph.order)
        return "".join(f"{name}: {scales[source].view(np.uint32):x}\n" for name, source in sources if source in scales)


def _scale(batches: list[np.ndarray], algorithm: str, quantile: float) -> np.float32:
    largest = np.float32(max(abs_max(batch) for batch in batches))
    if algorithm == "MinMaxCalibration" or not np.isfinite(largest):
        return largest / np.float32(127)
    if algorithm == "LegacyCalibration":
        return np.float32(np.quantile(np.abs(np.concatenate([batch.ravel() for batch in batches])), quantile)) / np.float32(127)
    if broken := os.environ.get("TRTFAKE_RULES"):
        return rules.scale(batches, dict(rules.Rules().broken())[broken])
    builder = HistogramBuilder(NUM_BINS, double)
    for batch in batches:
        builder.start_batch()
        builder.add(batch, abs_max(batch))
    return np.float32(entropy(builder.build())) / np.float32(127)


_now: list[_Calibration] = []  # the one that is under way


def _calibrate(model: Any, nmodel: int, algorithm: bytes, batch: int, shapes: Any, data: Any, quantile: float, text: Any, room: int) -> int:
    try:
        if batch == 0:
            _now[:] = [_Calibration(ctypes.string_at(model, nmodel))]
        if batch >= 0:
            fed = {}
            for number, spec in enumerate(_now[0].model.inputs):
                shape, dtype = tuple(shapes[number].d[: shapes[number].nb]), np.dtype(spec.dtype)
                held = ctypes.string_at(data[number], int(np.prod(shape)) * dtype.itemsize)
                fed[spec.name] = np.frombuffer(held, dtype).reshape(shape)
            _now[0].add(fed)
            return 0
        lines = _now.pop().lines(algorithm.decode(), quantile).encode()
        assert len(lines) < room
        ctypes.memmove(text, lines, len(lines))
        return len(lines)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        return -1


_callback = _Ranges(_calibrate)  # kept: the library holds its address alone


def install() -> None:
    """From now on, in this process."""
    ctypes.CDLL("libnvinfer.so.10").trtfake_set_calibrator(_callback)

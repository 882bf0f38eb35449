"""A plan -> what became of it: layers per precision, and the time of one inference on this GPU."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrators import versions
from calibrators.memory import LEGACY_STREAM, DeviceMemory, open_memory
from calibrators.shapes import Shape
from trtcal.errors import BackendError

logger = logging.getLogger(__name__)

# As the engine inspector spells data types: "Int8 NC/32HW32", "Row major linear FP32", "Half", "FP8".
_PRECISION = re.compile(r"\b(int8|int4|fp8|fp16|half|bf16|fp32|float|int32|int64|bool)\b", re.IGNORECASE)
_SAME = {"half": "fp16", "float": "fp32"}


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference, input and output copies left out."""

    median: float
    p99: float
    runs: int


def open_engine(trt: Any, plan: bytes) -> Any:
    """Plan -> TensorRT engine; BackendError where it cannot be loaded here."""
    from calibrators.trtlog import LOG

    LOG.clear()
    runtime = trt.Runtime(LOG)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"the engine cannot be loaded: {'; '.join(LOG.errors()[-3:]) or 'TensorRT gives no reason'}")
    return engine


def layers_per_precision(trt: Any, engine: Any) -> dict[str, int] | None:
    """Engine -> precision of the first output -> number of layers, most first; None where TensorRT does not tell."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    counts: Counter[str] = Counter()
    for layer in layers:
        outputs = layer.get("Outputs") if isinstance(layer, dict) else None  # names alone without DETAILED verbosity
        if not outputs:
            continue
        found = _PRECISION.search(str(outputs[0].get("Format/Datatype", "")))
        precision = found[1].lower() if found else "other"
        counts[_SAME.get(precision, precision)] += 1
    return dict(counts.most_common()) or None


def latency(
    trt: Any,
    engine: Any,
    shapes: Mapping[str, Shape],
    *,
    runs: int = 50,
    memory: str | DeviceMemory | None = None,
) -> Latency:
    """Engine and input shapes -> time of one inference on uninitialised data, after a tenth as many for warming up."""
    context = engine.create_execution_context()
    if context is None:
        raise BackendError("TensorRT makes no execution context; the GPU may lack the memory")
    device = open_memory(memory)
    addresses = []
    try:
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        for name in names:
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT and -1 in tuple(engine.get_tensor_shape(name)):
                context.set_input_shape(name, shapes[name])
        for name in names:
            shape = tuple(context.get_tensor_shape(name))
            size = int(np.prod(shape, dtype=np.int64)) * versions.itemsize(trt, engine.get_tensor_dtype(name))
            addresses.append(device.allocate(max(size, 1)))
            context.set_tensor_address(name, addresses[-1])
        times = []
        for number in range(-max(runs // 10, 1), runs):
            begin = time.perf_counter()
            if not context.execute_async_v3(0):
                raise BackendError("TensorRT cannot run the engine; see the log of calibrators.tensorrt")
            device.synchronize(LEGACY_STREAM)
            if number >= 0:
                times.append((time.perf_counter() - begin) * 1000)
    finally:
        for address in addresses:
            device.free(address)
        if device is not memory:
            device.close()
    return Latency(float(np.median(times)), float(np.quantile(times, 0.99)), runs)

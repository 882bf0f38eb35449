"""For test programs over the fakes: a model, its data, a build driven as TensorRT drives one, and the counters.

Imported inside the process that `fakecuda.run` starts, never by pytest itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path  # noqa: F401
from typing import Any

warnings.simplefilter("ignore", DeprecationWarning)  # of the calibrators since 10.1, and of nothing else

import numpy as np  # noqa: E402
import tensorrt_bindings as trt  # noqa: E402
from fakecuda import fakelib  # noqa: E402
from fakecuda.models import SHAPE, onnx_model  # noqa: E402
from fakecuda.report import failure, report  # noqa: E402, F401


class Log(trt.ILogger):
    """Keeps the lines that TensorRT logs."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        self.lines.append(f"{severity.name}: {message}")


def batches(count: int, size: int = 4, *, names: tuple[str, ...] = ("image",)) -> list[dict[str, np.ndarray]]:
    """Batch k holds k + 1 everywhere in its first input, 10 times that in its second, and so on."""
    return [
        {name: np.full((size, *SHAPE), (k + 1) * 10**i, np.float32) for i, name in enumerate(names)}
        for k in range(count)
    ]


def failing(count: int, error: BaseException, *, after: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields ``after`` of ``count`` batches and raises the error for the one that follows."""
    for number, batch in enumerate(batches(count)):
        if number == after:
            raise error
        yield batch


def build(
    calibrator: Any, *, model: bytes | None = None, opt: int | None = 4, int8: bool = True, inputs: tuple[str, ...] = ("image",)
) -> tuple[bytes | None, list[str]]:
    """A plain TensorRT build, as people write one -> the plan, None where the builder gave none, and the log."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model or onnx_model(inputs=inputs))
    config = builder.create_builder_config()
    if int8:
        config.set_flag(trt.BuilderFlag.INT8)
    config.int8_calibrator = calibrator
    if opt is not None:
        profile = builder.create_optimization_profile()
        for name in inputs:
            profile.set_shape(name, (1, *SHAPE), (opt, *SHAPE), (opt * 2, *SHAPE))
        config.add_optimization_profile(profile)
        config.set_calibration_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return (None if plan is None else bytes(plan)), log.lines


live = fakelib.snapshot

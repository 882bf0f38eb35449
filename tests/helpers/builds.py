"""Plain TensorRT builds, set up by hand: what TensorRT does with a calibrator must not depend on our own builder."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import nets
import numpy as np

from calibrators import versions
from calibrators.buffers import Buffers
from calibrators.coverage import complete
from calibrators.memory import open_memory
from trtcal.cache.cache import CalibrationCache

LEVELS = (0, None)
"""Optimization levels to build at, one after the other: at 0 a layer may be left without any kernel, and then "no plan"
is the level's answer and not the calibration's."""
CAREFUL = 2  # the level for engines that are judged: INT8 kernels are looked for
LEGACY = 0.9999  # the legacy calibrator's quantile, with a regression cutoff of 1

_WORKSPACE = 1 << 30
_TIMINGS: dict[str, bytes] = {}  # what TensorRT has timed in this process, for the next build

Shapes = Mapping[str, tuple[int, ...]]
"""Input -> full shape."""


class BuildFailed(Exception):
    """TensorRT built no plan; the message holds what its log says of it."""


@dataclass(frozen=True)
class Built:
    """A plan, what TensorRT logged meanwhile, and how long it took."""

    plan: bytes = field(repr=False)
    log: list[str]
    seconds: float


def build(
    model: bytes,
    calibrator: Any = None,
    *,
    profiles: Sequence[Shapes] = (),
    calibrate_with: Shapes | None = None,
    fp16: bool = False,
    tf32: bool = False,
    int8_layers: bool = False,
    level: int | None = 0,
    expect: bool = False,
) -> Built:
    """ONNX bytes -> plan; INT8 where there is a calibrator.

    ``profiles``: OPT shapes of each, which go from one row to that many; ``calibrate_with``: those of the calibration
    profile, None to set none. ``level`` is TensorRT's optimization level: 0 takes the first kernel that works, enough
    where only the ranges are wanted; None is its own default. ``int8_layers`` asks for INT8 in every layer that can.
    ``expect`` tells one of our calibrators about the network.
    """
    from calibrators.trtlog import LOG

    trt = versions.tensorrt()
    LOG.clear()
    builder = _builder()
    network = versions.create_network(trt, builder)
    parser = trt.OnnxParser(network, LOG)
    if not parser.parse(model):
        raise BuildFailed("; ".join(parser.get_error(number).desc() for number in range(parser.num_errors)))
    config = builder.create_builder_config()
    versions.set_workspace(trt, config, _WORKSPACE)
    versions.set_detailed(trt, config)
    if fp16:
        versions.set_flag(trt, config, "FP16")
    if not tf32:  # on by default; its activations differ from a CPU's in the third digit
        config.clear_flag(trt.BuilderFlag.TF32)
    if level is not None and hasattr(config, "builder_optimization_level"):  # new in 8.6
        config.builder_optimization_level = level
    versions.leave_out_tactics(trt, config)
    if int8_layers:
        config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        for number in range(network.num_layers):
            layer = network.get_layer(number)
            if layer.type != trt.LayerType.CONSTANT:
                layer.precision = trt.int8
    for shapes in profiles:
        config.add_optimization_profile(_profile(builder, shapes))
    chosen = None if calibrate_with is None else _profile(builder, calibrate_with)
    if calibrator is not None:
        versions.set_flag(trt, config, "INT8")
        versions.set_calibrator(config, calibrator)
        if chosen is not None and not versions.set_calibration_profile(config, chosen):
            raise BuildFailed("the calibration profile was not taken")
        if expect:
            calibrator.expect_network(network, chosen)
            if calibrator.to_hand_over is not None:  # for the tensors that the parser makes, too
                calibrator.hand_over(complete(calibrator.to_hand_over, network)[0])
    timings = config.create_timing_cache(_TIMINGS.get("", b""))
    if timings is not None:
        config.set_timing_cache(timings, ignore_mismatch=False)
    begin = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - begin
    if plan is None:
        raise BuildFailed("no plan: " + "; ".join(telling(_log())))
    if timings is not None:
        _TIMINGS[""] = bytes(timings.serialize())
    return Built(bytes(plan), _log(), seconds)


def calibrating(model: bytes, calibrator: Any, batch: Mapping[str, np.ndarray], **options: Any) -> Built:
    """As `build`, calibrated and run with the shapes of a batch; ``expect`` unless it is told otherwise."""
    shapes = {name: array.shape for name, array in batch.items()}
    return build(model, calibrator, profiles=[shapes], calibrate_with=shapes, **{"expect": True, **options})


@functools.cache
def _builder() -> Any:
    """The one builder of this process: making one loads TensorRT's kernels, which takes seconds."""
    from calibrators.trtlog import new_builder

    return new_builder()


def _profile(builder: Any, shapes: Shapes) -> Any:
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, (1, *shape[1:]), shape, shape)
    return profile


def _log() -> list[str]:
    """What TensorRT has logged since the build began, without its verbose lines."""
    from calibrators.trtlog import LOG

    return [f"{severity}: {message}" for severity, message in LOG.lines]


def telling(log: Sequence[str]) -> list[str]:
    """Log lines -> those that a reader wants: warnings, errors, and what is said of calibration.

    The rest is where memory went, dozens of lines of it in every build, the last ones among them.
    """
    return [line for line in log if not line.startswith("INFO") or "calib" in line.lower()][:20]


@dataclass
class Observed:
    """What TensorRT asked of a calibrator, and what it wrote."""

    calls: list[str] = field(default_factory=list)
    written: bytes | None = None
    built: bool = False
    threads: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)

    def scale(self, tensor: str = "x") -> np.float32 | None:
        """The scale of a tensor in the cache, None without it; BuildFailed where no cache was written."""
        if self.written is None:
            raise BuildFailed(f"no cache was written after {self.calls}: {'; '.join(telling(self.log))}")
        return CalibrationCache.parse(self.written).scales.get(tensor)

    def keep(self, record_property: Callable[[str, object], None]) -> None:
        """Put into the record what a wrong answer can be looked at by, without a GPU."""
        record_property("calls", self.calls)
        record_property("cache", None if self.written is None else self.written.decode(errors="replace"))
        record_property("built", self.built)
        record_property("log", telling(self.log))


def observe(
    batches: Sequence[np.ndarray],
    *,
    algorithm: str = "EntropyCalibration2",
    profiles: Sequence[int] = (),
    calibrate_with: int | None = None,
    **answers: Any,
) -> Observed:
    """Batches of x, (rows, 1, 1, width) -> what TensorRT did with them in a network of one layer.

    ``profiles``: OPT batches of a network whose batch axis is made dynamic, and ``calibrate_with`` that of the
    calibration profile. ``answers`` are those of `plain_calibrator`.
    """
    rows, width = (len(batches[0]), batches[0].shape[-1]) if len(batches) else (4, 256)
    model = nets.one_layer(None if profiles else rows, width)
    shapes = [{"x": (size, 1, 1, width)} for size in profiles]
    chosen = None if calibrate_with is None else {"x": (calibrate_with, 1, 1, width)}
    for level in LEVELS:
        observed = Observed()
        with closing(open_memory()) as memory, Buffers(memory, slots=1) as buffers:

            def place(number: int, memory: Any = memory, buffers: Buffers = buffers) -> list[int] | None:
                if number == len(batches):
                    return None
                address = buffers.place_host(0, "x", batches[number], np.dtype(np.float32), lambda _: None)
                memory.synchronize()
                return [address]

            calibrator = plain_calibrator(observed, place, algorithm, **answers)
            try:
                build(model, calibrator, profiles=shapes, calibrate_with=chosen, level=level)
                observed.built = True
            except BuildFailed:
                pass
        observed.log = _log()
        if observed.built:
            break
    return observed


def plain_calibrator(
    observed: Observed,
    place: Callable[[int], list[int] | None],
    algorithm: str = "EntropyCalibration2",
    *,
    claimed: int = 4,
    cache: bytes | None = None,
    fail_at: int | None = None,
    quantile: float = LEGACY,
    cutoff: float = 1.0,
) -> Any:
    """A calibrator as a script of anybody's would have it, which writes down what it is asked.

    ``place``: a batch's number, from 0 -> the addresses of its arrays, None at the end. ``claimed``: what
    get_batch_size answers. ``cache``: what read_calibration_cache does. ``fail_at``: the batch in which it raises.
    """
    base: Any = versions.base_class(algorithm)

    class Plain(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.number = -1

        def get_batch_size(self) -> int:
            observed.calls.append("get_batch_size")
            return claimed

        def get_batch(self, names: Sequence[str], *_: Any) -> list[int] | None:
            observed.calls.append("get_batch")
            observed.threads.add("main" if threading.current_thread() is threading.main_thread() else "another")
            self.number += 1
            if self.number == fail_at:
                raise RuntimeError("planned")
            return place(self.number)

        def read_calibration_cache(self) -> bytes | None:
            observed.calls.append("read_calibration_cache")
            return cache

        def write_calibration_cache(self, found: Any) -> None:
            observed.calls.append("write_calibration_cache")
            observed.written = bytes(found)

        def get_quantile(self) -> float:
            return quantile

        def get_regression_cutoff(self) -> float:
            return cutoff

        def read_histogram_cache(self, length: int) -> None:
            observed.calls.append("read_histogram_cache")

        def write_histogram_cache(self, data: Any, length: int) -> None:
            observed.calls.append("write_histogram_cache")

    return Plain()


def calibrated(model: bytes, batches: list[nets.Batch], algorithm: str) -> CalibrationCache:
    """A model and batches -> the cache that TensorRT writes, through our calibrators.

    Where it writes one and then builds no plan, that is what was asked for all the same.
    """
    from calibrators import EntropyCalibrator, LegacyCalibrator, MinMaxCalibrator

    kinds: dict[str, Any] = {
        "EntropyCalibration2": EntropyCalibrator,
        "MinMaxCalibration": MinMaxCalibrator,
        "LegacyCalibration": functools.partial(LegacyCalibrator, quantile=LEGACY, cutoff=1.0),
    }
    reason = None
    for level in LEVELS:
        try:
            with kinds[algorithm](batches) as calibrator:
                calibrating(model, calibrator, batches[0], level=level)
        except BuildFailed as error:
            reason = error
        if calibrator.written is not None:
            return calibrator.written  # type: ignore[no-any-return]
    assert reason is not None, "raise_if_failed() would have raised"
    raise reason

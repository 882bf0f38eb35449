"""Plain TensorRT builds, set up by hand: what TensorRT does with a calibrator must not depend on our own builder."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from acceptance.findings import Context
from acceptance.machine import Device, device
from acceptance.networks import one_layer
from calibrators import versions

LEVELS = (0, None)
"""Optimization levels to build at, one after the other: at 0 a layer may be left without any kernel, and then "no plan"
is the level's answer and not the calibration's."""

_WORKSPACE = 1 << 30
_TIMINGS: dict[str, bytes] = {}  # what TensorRT has timed in this process, for the next build

Shapes = Mapping[str, tuple[int, ...]]
"""Input -> full shape."""


class BuildFailed(Exception):
    """TensorRT built no plan; the message holds the end of its log."""


@dataclass(frozen=True)
class Built:
    """A plan, what TensorRT logged meanwhile, and how long it took."""

    plan: bytes = field(repr=False)
    log: list[str]
    seconds: float


def build(
    context: Context,
    model: bytes,
    calibrator: Any = None,
    *,
    profiles: Sequence[Shapes] = (),
    calibrate_with: Shapes | None = None,
    fp16: bool = False,
    tf32: bool = False,
    level: int | None = 0,
    expect: bool = False,
) -> Built:
    """ONNX bytes -> plan; INT8 where there is a calibrator.

    ``profiles``: OPT shapes of each, which go from one row to that many; ``calibrate_with``: those of the calibration
    profile, None to set none. ``level`` is TensorRT's optimization level: 0 takes the first kernel that works, enough
    where only the ranges are wanted; None is its own default. ``expect`` tells one of our calibrators what the network
    reads.
    """
    from calibrators.trtlog import LOG

    trt = context.trt
    LOG.clear()
    builder = _builder(trt)
    network = versions.create_network(trt, builder)
    parser = trt.OnnxParser(network, LOG)
    if not parser.parse(model):
        raise BuildFailed("; ".join(parser.get_error(number).desc() for number in range(parser.num_errors)))
    config = builder.create_builder_config()
    configure(trt, config, fp16=fp16, tf32=tf32, level=level)
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


@functools.cache
def _builder(trt: Any) -> Any:
    """The one builder of this process: making one loads TensorRT's kernels, which takes seconds."""
    from calibrators.trtlog import LOG, made

    return made(lambda: trt.Builder(LOG), "a builder")


def configure(trt: Any, config: Any, *, fp16: bool, tf32: bool, level: int | None) -> None:
    """How every build here is made, apart from its calibrator."""
    versions.set_workspace(trt, config, _WORKSPACE)
    versions.set_detailed(trt, config)
    if fp16:
        versions.set_flag(trt, config, "FP16")
    if not tf32:  # on by default; its activations differ from a CPU's in the third digit
        config.clear_flag(trt.BuilderFlag.TF32)
    if level is not None and hasattr(config, "builder_optimization_level"):  # new in 8.6
        config.builder_optimization_level = level
    versions.leave_out_tactics(trt, config)


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

    def written_or_raise(self) -> bytes:
        """The cache; BuildFailed with TensorRT's words where none was written."""
        if self.written is None:
            raise BuildFailed(f"no cache was written after {self.calls}: {'; '.join(telling(self.log))}")
        return self.written

    def record(self) -> dict[str, Any]:
        """What is kept of it beside an answer, so that the answer can be looked at again without a GPU."""
        cache = None if self.written is None else self.written.decode(errors="replace")
        return {"calls": self.calls, "cache": cache, "built": self.built, "log": telling(self.log)}


def observe(
    context: Context,
    model: bytes,
    batches: Sequence[Mapping[str, np.ndarray]],
    *,
    algorithm: str = "EntropyCalibration2",
    claimed: int = 4,
    cache: bytes | None = None,
    fail_at: int | None = None,
    quantile: float = 0.9999,
    cutoff: float = 1.0,
    profiles: Sequence[int] = (),
    calibrate_with: int | None = None,
) -> Observed:
    """Build with a calibrator that does as a script of anybody's would, and writes down what it is asked.

    ``claimed``: what get_batch_size answers. ``fail_at``: the batch, from 0, in which it raises. ``profiles``: OPT
    batches of a network whose batch axis is made dynamic, and ``calibrate_with`` that of the calibration profile.
    """
    shapes, chosen = [], None
    if profiles:
        width = batches[0]["x"].shape[-1]
        model, shapes = one_layer(None, width), [{"x": (rows, 1, 1, width)} for rows in profiles]
        chosen = None if calibrate_with is None else {"x": (calibrate_with, 1, 1, width)}
    for level in LEVELS:
        observed = Observed()
        calibrator = _observer(
            context.trt, observed, device(), batches, algorithm, claimed, cache, fail_at, quantile, cutoff
        )
        try:
            build(context, model, calibrator, profiles=shapes, calibrate_with=chosen, level=level)
            observed.built = True
        except BuildFailed:
            pass
        finally:
            calibrator.release()
        observed.log = _log()
        if observed.built:
            break
    return observed


def _observer(
    trt: Any,
    observed: Observed,
    gpu: Device,
    batches: Sequence[Mapping[str, np.ndarray]],
    algorithm: str,
    claimed: int,
    cache: bytes | None,
    fail_at: int | None,
    quantile: float,
    cutoff: float,
) -> Any:
    base: Any = getattr(trt, versions.BASES[algorithm])

    class Observer(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.number = 0
            self.held: list[int] = []

        def release(self) -> None:
            for address in self.held:
                gpu.free(address)
            self.held = []

        def get_batch_size(self) -> int:
            observed.calls.append("get_batch_size")
            return claimed

        def get_batch(self, names: Sequence[str], *_: Any) -> list[int] | None:
            observed.calls.append("get_batch")
            observed.threads.add("main" if threading.current_thread() is threading.main_thread() else "another")
            if self.number == fail_at:
                raise RuntimeError("planned")
            self.release()
            if self.number == len(batches):
                return None
            batch, self.number = batches[self.number], self.number + 1
            self.held = [gpu.upload(np.asarray(batch[name], np.float32)) for name in names]
            return list(self.held)

        def read_calibration_cache(self) -> bytes | None:
            observed.calls.append("read_calibration_cache")
            return cache

        def write_calibration_cache(self, found: Any) -> None:
            observed.calls.append("write_calibration_cache")
            observed.written = bytes(found)

        def get_quantile(self) -> float:
            observed.calls.append("get_quantile")
            return quantile

        def get_regression_cutoff(self) -> float:
            observed.calls.append("get_regression_cutoff")
            return cutoff

        def read_histogram_cache(self, length: int) -> None:
            observed.calls.append("read_histogram_cache")

        def write_histogram_cache(self, data: Any, length: int) -> None:
            observed.calls.append("write_histogram_cache")

    return Observer()

"""Engines that are run: accuracy by batch size and order, latency by precision, and a PyTorch context beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from acceptance import building, networks
from acceptance.findings import Context, Finding, Skip, attempt, beyond_doubles, compared, measured
from acceptance.networks import Batch, Model
from acceptance.parity import calibrated
from trtcal.cache.cache import CalibrationCache
from trtcal.judging.accuracy import simulate
from trtcal.model.open import open_model

JUDGED = 1000  # images
CALIBRATED = 512
BATCH = 100
NEAR = 0.03  # of top-1 between an engine and its simulation, which differ by chance from one kernel to another
CAREFUL = 2  # TensorRT's optimization level for engines that are judged: INT8 kernels are looked for


@contextmanager
def opened(context: Context, plan: bytes) -> Iterator[Any]:
    """Plan -> our Engine, closed afterwards."""
    from calibrators.runner import Engine

    with beyond_doubles(context, "build no engine that runs"), Engine(plan) as engine:
        yield engine


def engine_accuracy(context: Context) -> Iterator[Finding]:
    """Each labelled model as FP32 and INT8 engines, by batch size and order of the calibration."""
    for model in context.models:
        if model.load_labelled is not None:
            yield from attempt(f"{model.name}: engines", partial(_judged, context, model))


def _judged(context: Context, model: Model) -> Iterator[Finding]:
    assert model.load_labelled is not None
    inputs, labels = model.load_labelled()
    count = 200 if context.small else JUDGED
    batches = [
        {name: np.ascontiguousarray(array[begin : begin + BATCH]) for name, array in inputs.items()}
        for begin in range(0, min(count, len(labels)) // BATCH * BATCH, BATCH)
    ]
    labels = labels[: len(batches) * BATCH]
    shapes = {name: array.shape for name, array in batches[0].items()}

    def fp32() -> Finding:
        plan = building.build(context, model.path.read_bytes(), profiles=[shapes], level=CAREFUL).plan
        return measured(f"{model.name}: FP32", _top1(context, plan, batches, labels))

    yield from attempt(f"{model.name}: FP32", fp32)
    orders = model.orders(CALIBRATED)
    plan = [("minmax", "MinMaxCalibration", 16, "given")]
    plan += [("entropy", "EntropyCalibration2", size, order) for size in (16, 64, 4, 1) for order in orders]
    seen: dict[bytes, str] = {}

    def int8(question: str, algorithm: str, size: int, order: str) -> Finding:
        data = model.batches(orders[order], size)
        ranges = calibrated(context, model, data[: 2 if context.small else None], algorithm)
        key = ranges.format()
        if key in seen:
            return measured(question, f"the ranges of {seen[key]}")
        seen[key] = question
        simulated = _simulated(model, ranges, batches, labels)
        got = _top1(context, _int8(context, model, ranges, shapes), batches, labels)
        return compared(question, got, simulated, abs(got - simulated) <= NEAR, expected_from="our simulation")

    for method, algorithm, size, order in plan[: 2 if context.small else None]:
        question = f"{model.name}: INT8 {method}, batch {size}, {order}"
        if context.seconds_left < 20:
            yield measured(f"{question}: left out, for time", None)
            continue
        yield from attempt(question, partial(int8, question, algorithm, size, order))


def _int8(
    context: Context, model: Model, ranges: CalibrationCache, shapes: building.Shapes, fp16: bool = False
) -> bytes:
    """Ranges -> the plan that TensorRT makes of them."""
    from calibrators import CachedCalibrator

    with CachedCalibrator(ranges) as calibrator:
        return building.build(
            context,
            model.path.read_bytes(),
            calibrator,
            profiles=[shapes],
            calibrate_with=shapes,
            level=CAREFUL,
            fp16=fp16,
        ).plan


def _top1(context: Context, plan: bytes, batches: list[Batch], labels: np.ndarray) -> float:
    with opened(context, plan) as engine:
        return _accuracy(engine, batches, labels)


def _simulated(model: Model, ranges: CalibrationCache, batches: list[Batch], labels: np.ndarray) -> float:
    with simulate(open_model(model.path).whole, ranges.scales, optimization="extended") as runner:
        return _accuracy(runner, batches, labels)


def _accuracy(runner: Any, batches: list[Batch], labels: np.ndarray) -> float:
    answers = [next(iter(runner(batch).values())) for batch in batches]
    found = np.concatenate([np.asarray(answer).reshape(len(answer), -1).argmax(axis=1) for answer in answers])
    return float((found == labels).mean())


def latency(context: Context) -> Iterator[Finding]:
    """A ResNet-like network of ordinary size in FP32, FP16, INT8 and INT8 beside FP16, at two batch sizes."""
    model = networks.large(context.folder, small=context.small)
    ranges = functools.cache(lambda: calibrated(context, model, model.batches(range(16), 16), "MinMaxCalibration"))
    for size in (16, 1):
        for precision in ("FP32 with TF32", "FP16", "INT8", "INT8 beside FP16"):
            question = f"milliseconds of {model.name}, batch {size}, {precision}"
            if context.seconds_left < 10:
                yield measured(f"{question}: left out, for time", None)
                continue
            yield from attempt(question, partial(_latency, context, question, model, size, precision, ranges))


def _latency(
    context: Context,
    question: str,
    model: Model,
    size: int,
    precision: str,
    ranges: Callable[[], CalibrationCache],
) -> Finding:
    batch = model.batches(range(size), size)[0]
    shapes = {name: array.shape for name, array in batch.items()}
    fp16 = "FP16" in precision
    if "INT8" in precision:
        plan = _int8(context, model, ranges(), shapes, fp16=fp16)
    else:
        data = model.path.read_bytes()
        plan = building.build(context, data, profiles=[shapes], level=CAREFUL, fp16=fp16, tf32=True).plan
    with opened(context, plan) as engine:
        found = engine.latency(batch, warmup=20, runs=100)
        layers = engine.layers()
    return measured(question, {key: round(value, 4) for key, value in vars(found).items()}, layers=layers)


def beside_torch(context: Context) -> Iterator[Finding]:
    """PyTorch's CUDA context before, during and after a calibration; tensors of its memory as data."""
    try:
        import torch
    except ImportError as error:
        raise Skip(f"PyTorch is not installed: {error}") from error
    if not torch.cuda.is_available():
        raise Skip("PyTorch sees no GPU")
    from calibrators import EntropyCalibrator

    question = "calibration on PyTorch's CUDA tensors, between its own kernels"

    def ask() -> Finding:
        held = torch.arange(1 << 20, device="cuda", dtype=torch.float32)
        rng = np.random.default_rng(0)
        host = [rng.normal(size=(4, 1, 1, 256)).astype(np.float32) for _ in range(4)]
        found = []
        for data in (host, [torch.from_numpy(array).cuda() for array in host]):
            with EntropyCalibrator([{"x": array} for array in data]) as calibrator:
                building.build(context, networks.one_layer(4, 256), calibrator, expect=True)
            assert calibrator.written is not None
            found.append(str(calibrator.written.scales["x"]))
            held = held + 1
        intact = bool((held == torch.arange(1 << 20, device="cuda") + 2).all())
        return compared(
            question, {"scales": found, "tensor intact": intact}, "equal, intact", found[0] == found[1] and intact
        )

    yield from attempt(question, ask)

"""Times and memory: what the builder waits for data, against Polygraphy's calibrator, the kernel's rate, leaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from acceptance import building, networks
from acceptance.findings import Context, Finding, Skip, attempt, beyond_doubles, compared, measured
from acceptance.machine import device
from acceptance.networks import Batch, Model
from trtcal.calibration.calibrate import calibrate

BUILDS = 50
FEEDS = 50
DECODING = 0.02  # seconds that a loader takes for a batch, as one that decodes 16 photographs does
LEAK = 8 << 20  # bytes; a driver rounds, and a library may keep a little once


class Slow:
    """Batches that take a while each, as where pictures are decoded."""

    def __init__(self, batches: Sequence[Batch], seconds: float) -> None:
        self._batches, self._seconds = batches, seconds

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            time.sleep(self._seconds)
            yield batch


def _timed(batches: Iterable[Mapping[str, Any]], **options: Any) -> tuple[Any, list[float]]:
    """Our calibrator, and the seconds that each get_batch will have taken."""
    from calibrators import EntropyCalibrator

    waits: list[float] = []

    class Timed(EntropyCalibrator):
        def get_batch(self, names: Sequence[str]) -> list[int] | None:
            begin = time.perf_counter()
            try:
                found: list[int] | None = super().get_batch(names)
                return found
            finally:
                waits.append(time.perf_counter() - begin)

    return Timed(batches, **options), waits


def feed_overlap(context: Context) -> Iterator[Finding]:
    """How long the builder waits for data: ready buffers, our feed from host arrays, a slow loader behind it."""
    model = networks.large(context.folder, small=context.small)
    size = 4 if context.small else 16
    batches = model.batches(np.arange(model.count), size)
    loader = Slow(batches, 0.001 if context.small else DECODING)
    found: dict[str, float] = {}

    def run(what: str, data: Any) -> Finding:
        calibrator, waits = _timed(data)
        with calibrator:
            built = _calibrate(context, model, calibrator, batches[0])
        found[what] = sum(waits[1:])  # with the first batch everything is opened
        return measured(
            f"{what}: milliseconds that the builder waited after the first batch",
            round(1000 * found[what], 2),
            per_batch_ms=[round(1000 * wait, 3) for wait in waits],
            whole_build_s=round(built.seconds, 2),
        )

    def ready() -> Finding:
        observed_waits = _ready_buffers(context, model, batches)
        return measured(
            "ready buffers: milliseconds that the builder waited after the first batch",
            round(1000 * sum(observed_waits[1:]), 2),
        )

    yield from attempt("ready buffers", ready)
    yield from attempt("our feed from host arrays", lambda: run("our feed from host arrays", batches))
    yield from attempt("our feed behind a slow loader", lambda: run("our feed behind a slow loader", loader))

    def hidden() -> Finding:
        loading = len(batches) * (0.001 if context.small else DECODING)
        extra = found["our feed behind a slow loader"] - found["our feed from host arrays"]
        return measured("share of the loader's time that the builder waited for", round(extra / loading, 3))

    yield from attempt("share of the loader's time that the builder waited for", hidden)


def _calibrate(context: Context, model: Model, calibrator: Any, batch: Batch, *, expect: bool = True) -> building.Built:
    shapes = {name: array.shape for name, array in batch.items()}
    return building.build(
        context, model.path.read_bytes(), calibrator, profiles=[shapes], calibrate_with=shapes, expect=expect
    )


def _ready_buffers(context: Context, model: Model, batches: Sequence[Batch]) -> list[float]:
    """The floor: every batch lies on the device before the build begins."""
    gpu = device()
    addresses = [[gpu.upload(array) for array in batch.values()] for batch in batches]
    base: Any = context.trt.IInt8EntropyCalibrator2
    waits: list[float] = []

    class Ready(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.left = list(addresses)

        def get_batch_size(self) -> int:
            return len(next(iter(batches[0].values())))

        def get_batch(self, names: Sequence[str], *_: Any) -> list[int] | None:
            begin = time.perf_counter()
            found = self.left.pop(0) if self.left else None
            waits.append(time.perf_counter() - begin)
            return found

        def read_calibration_cache(self) -> None:
            return None

        def write_calibration_cache(self, cache: Any) -> None:
            pass

    try:
        _calibrate(context, model, Ready(), batches[0], expect=False)
    finally:
        for batch in addresses:
            for address in batch:
                gpu.free(address)
    return waits


def against_polygraphy(context: Context) -> Iterator[Finding]:
    """Whole calibrations of the same data, ours and Polygraphy's in turns."""
    try:
        from polygraphy.backend.trt import Calibrator
    except ImportError as error:
        raise Skip(f"Polygraphy is not installed: {error}") from error
    from calibrators import EntropyCalibrator

    try:
        from polygraphy import cuda

        cuda.DeviceArray(shape=(1,)).free()
    except Exception as error:  # without it Polygraphy's calibrator takes its own failure for the end of the data
        raise Skip(f"Polygraphy finds no CUDA runtime: {error}") from error
    model = networks.large(context.folder, small=context.small)
    batches = model.batches(np.arange(model.count), 4 if context.small else 16)
    times: dict[str, list[float]] = {"ours": [], "Polygraphy's": []}

    def timed(question: str, name: str, make: Any, turn: int) -> Finding:
        calibrator = make(batches)
        with calibrator:
            built = _calibrate(context, model, calibrator, batches[0], expect=name == "ours")
        if turn:  # the first build fills the timing cache and loads kernels
            times[name].append(built.seconds)
        return measured(question, round(built.seconds, 3))

    for turn in range(1 if context.small else 4):
        for name, make in (("ours", EntropyCalibrator), ("Polygraphy's", Calibrator)):
            question = f"seconds of a calibrating build, {name}, turn {turn}"
            yield from attempt(question, partial(timed, question, name, make, turn))
    if all(times.values()):
        ratio = float(np.median(times["ours"]) / np.median(times["Polygraphy's"]))
        yield measured("median of ours / median of Polygraphy's, lower is better", round(ratio, 3))


def kernel_rate(context: Context) -> Iterator[Finding]:
    """Bytes per second that the histogram kernel reads, beside the device's own copy."""
    nbytes = 1 << (16 if context.small else 28)
    rates: dict[str, float] = {}

    def copy() -> Finding:
        with device().lent(nbytes, nbytes) as (target, source):
            seconds = device().copy_seconds(target, source, nbytes)
        rates["copy"] = 2 * nbytes / seconds
        return measured("GB/s of a copy within the device, read and written", round(rates["copy"] / 1e9, 1))

    def kernel() -> Finding:
        rates["kernel"] = _kernel_rate(context, nbytes)
        return measured("GB/s that the histogram kernel reads", round(rates["kernel"] / 1e9, 1))

    yield from attempt("GB/s of a copy within the device", copy)
    yield from attempt("GB/s that the histogram kernel reads", kernel)
    if len(rates) == 2:
        yield measured("the kernel's rate / the copy's", round(rates["kernel"] / rates["copy"], 3))


def _kernel_rate(context: Context, nbytes: int) -> float:
    from calibrators.device_kernels import Observer, throughput
    from calibrators.memory import open_memory

    memory = open_memory()
    try:
        with beyond_doubles(context, "run no kernels"), Observer(memory) as observer:
            return throughput(observer, elements=nbytes // 4, runs=20)
    finally:
        memory.close()


def gpu_statistics(context: Context) -> Iterator[Finding]:
    """Statistics that the GPU collects against the CPU's, tensor by tensor."""
    for model in context.models[: 1 if context.small else None]:
        yield from attempt(f"{model.name}: statistics on the GPU", partial(_both_statistics, context, model))


def _both_statistics(context: Context, model: Model) -> Iterator[Finding]:
    from calibrators.gpu_stats import collect_on_gpu

    batches = model.batches(np.arange(4 if context.small else 64), 2 if context.small else 8)
    begin = time.perf_counter()
    with beyond_doubles(context, "run neither kernels nor engines"):
        theirs = collect_on_gpu(model.path, batches)
    middle = time.perf_counter()
    ours = calibrate(model.path, batches).stats
    end = time.perf_counter()
    yield measured(
        f"{model.name}: seconds on the GPU and on the CPU", [round(middle - begin, 3), round(end - middle, 3)]
    )
    inputs = list(batches[0])
    equal = [name for name in inputs if theirs.tensors.get(name) == ours.tensors.get(name)]
    yield compared(f"{model.name}: statistics of the inputs, every count", equal, inputs)
    shared = [name for name in ours.tensors if name in theirs.tensors]
    far = {
        name: [float(theirs.tensors[name].amax), float(ours.tensors[name].amax)]
        for name in shared
        if not np.isclose(theirs.tensors[name].amax, ours.tensors[name].amax, rtol=1e-3, atol=1e-6)
    }
    missing = [name for name in ours.tensors if name not in theirs.tensors]
    yield compared(
        f"{model.name}: largest |x| of all tensors within 0.1%",
        {"tensors": len(shared), "missing": missing, "far": far},
        "none missing, none far",
        not far and not missing,
    )


def leaks(context: Context) -> Iterator[Finding]:
    """Device memory after many builds and many feeds, against what it was after the first few."""
    from calibrators import EntropyCalibrator
    from calibrators.feed import Feed

    batches = [{"x": np.full((4, 1, 1, 4096), step + 1, np.float32)} for step in range(4)]

    def one_build() -> None:
        with EntropyCalibrator(batches) as calibrator:
            building.build(context, networks.one_layer(4, 4096), calibrator, expect=True)

    def one_feed() -> None:
        feed = Feed(batches)
        while feed.next(["x"]):
            pass

    def abandoned() -> None:
        feed = Feed(batches)
        feed.next(["x"])
        feed.close()

    plan = [("builds", one_build, BUILDS), ("feeds", one_feed, FEEDS), ("feeds that are abandoned", abandoned, FEEDS)]
    for what, once, times in plan:
        question = f"bytes lost over {what}"
        yield from attempt(question, partial(_lost, context, question, once, times))


def _lost(context: Context, question: str, once: Callable[[], None], times: int) -> Finding:
    for _ in range(3):
        once()
    before = device().memory()[0]
    done = 0
    while done < (2 if context.small else times) and context.seconds_left > 5:
        once()
        done += 1
    lost = before - device().memory()[0]
    return compared(question, lost, f"at most {LEAK}", lost <= LEAK, times=done)

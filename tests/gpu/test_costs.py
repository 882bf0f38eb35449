"""Times and memory: what a builder waits for data, calibrations beside Polygraphy's, and device memory that is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from builds import Observed, build, calibrating, plain_calibrator
from device import needs, small, without_gpu, without_tensorrt

from calibrators.buffers import Buffers
from calibrators.memory import open_memory
from trtcal.cache.cache import CalibrationCache

pytestmark = [pytest.mark.gpu, needs(without_gpu(), without_tensorrt())]

Record = Callable[[str, object], None]

TIMES = 2 if small() else 50  # builds and feeds
DECODING = (
    0.001 if small() else 0.02
)  # seconds that a loader takes for a batch, as one that decodes 16 photographs does
LEAK = 8 << 20  # bytes; a driver rounds, and a library may keep a little once


class Slow:
    """Batches that take a while each, as where pictures are decoded."""

    def __init__(self, batches: Sequence[nets.Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[nets.Batch]:
        for batch in self._batches:
            time.sleep(DECODING)
            yield batch


def timed(calibrator: Any, waits: list[float]) -> Any:
    """A calibrator, which from now on keeps the seconds of each get_batch."""
    ask = calibrator.get_batch

    def get_batch(names: Sequence[str], *more: Any) -> Any:
        begin = time.perf_counter()
        try:
            return ask(names, *more)
        finally:
            waits.append(time.perf_counter() - begin)

    calibrator.get_batch = get_batch
    return calibrator


def ready(batches: Sequence[nets.Batch], stack: ExitStack) -> Any:
    """The floor: a calibrator of a few lines, whose batches all lie on the device before the build begins."""
    memory = stack.enter_context(closing(open_memory()))
    buffers = stack.enter_context(Buffers(memory, slots=len(batches)))
    places: list[list[int] | None] = [
        [buffers.place_host(slot, name, array, array.dtype, lambda _: None) for name, array in batch.items()]
        for slot, batch in enumerate(batches)
    ]
    memory.synchronize()
    return plain_calibrator(Observed(), [*places, None].__getitem__)


@pytest.mark.seconds(30)
def test_what_the_builder_waits_for_data_is_measured(record_property: Record) -> None:
    """What the builder waits for data after the first batch, with which everything is opened; in milliseconds."""
    from calibrators import EntropyCalibrator

    model, waited = nets.large(small=small()), {}
    batches = model.batches(np.arange(model.count), 4 if small() else 16)
    with ExitStack() as stack:
        makes: dict[str, Callable[[], Any]] = {
            "ready buffers": lambda: ready(batches, stack),
            "our feed from host arrays": lambda: stack.enter_context(EntropyCalibrator(batches)),
            "our feed behind a slow loader": lambda: stack.enter_context(EntropyCalibrator(Slow(batches))),
        }
        for name, make in makes.items():
            waits: list[float] = []
            built = calibrating(model.data, timed(make(), waits), batches[0], expect=name != "ready buffers")
            assert len(waits) == len(batches) + 1  # and the end
            waited[name] = sum(waits[1:])
            record_property(name, {"waited": round(1000 * waited[name], 2), "build": round(1000 * built.seconds)})
    loading = (len(batches) - 1) * DECODING
    share = (waited["our feed behind a slow loader"] - waited["our feed from host arrays"]) / loading
    record_property("share of the loader's time that the builder waited for", round(share, 3))


@pytest.mark.seconds(40)
def test_polygraphys_calibrator_finds_the_same_ranges_and_its_time_is_measured(
    tmp_path: Path, record_property: Record
) -> None:
    from calibrators import EntropyCalibrator

    polygraphy = pytest.importorskip("polygraphy.backend.trt")
    from polygraphy import cuda

    try:
        cuda.DeviceArray(shape=(1,)).free()
    except Exception as error:  # without it Polygraphy's calibrator takes its own failure for the end of the data
        pytest.skip(f"Polygraphy finds no CUDA runtime: {error}")
    model, seconds, found = nets.large(small=small()), {"ours": [], "Polygraphy's": []}, {}
    batches = model.batches(np.arange(model.count), 4 if small() else 16)
    for turn in range(2 if small() else 4):
        for name, make in (("ours", EntropyCalibrator), ("Polygraphy's", polygraphy.Calibrator)):
            file = tmp_path / f"{turn} {name}.cache"
            with make(batches, cache=str(file)) as calibrator:
                built = calibrating(model.data, calibrator, batches[0], expect=name == "ours")
            found[name] = CalibrationCache.load(file).scales
            if turn:  # the first build fills the timing cache and loads kernels
                seconds[name].append(built.seconds)
        assert found["ours"] == found["Polygraphy's"]
    ratio = float(np.median(seconds["ours"]) / np.median(seconds["Polygraphy's"]))
    record_property("seconds of builds that calibrate", seconds)
    record_property("median of ours / median of Polygraphy's", round(ratio, 3))


FED = [{"x": np.full((4, 1, 1, 4096), step + 1, np.float32)} for step in range(4)]


def one_build() -> None:
    from calibrators import EntropyCalibrator

    with EntropyCalibrator(FED) as calibrator:
        build(nets.one_layer(4, 4096), calibrator, expect=True)


def one_feed() -> None:
    from calibrators.feed import Feed

    feed = Feed(FED)
    while feed.next(["x"]):
        pass


def one_abandoned_feed() -> None:
    from calibrators.feed import Feed

    feed = Feed(FED)
    feed.next(["x"])
    feed.close()


@pytest.mark.seconds(15)
@pytest.mark.parametrize("once", [one_build, one_feed, one_abandoned_feed], ids=lambda once: once.__name__)
def test_no_device_memory_is_lost(once: Callable[[], None], record_property: Record) -> None:
    with closing(open_memory()) as memory:
        for _ in range(3):
            once()
        before = memory.vacant()
        for _ in range(TIMES):
            once()
        lost = before - memory.vacant()
    record_property(f"bytes lost in {TIMES} times", lost)
    assert lost <= LEAK

"""Device memory and the counting kernel on a GPU, against the CPU: what needs no TensorRT.

A GPU, cuda-bindings or PyCUDA, and NVRTC are enough.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from device import needs, small, without_kernels
from fakecuda.hostkernels import Shown

from calibrators.buffers import Buffers
from calibrators.device_kernels import NOTHING, SUMMARY_BYTES, TABLE_BYTES, Observer, Span, below, throughput
from calibrators.memory import DeviceMemory
from trtcal.errors import BackendError
from trtcal.passes.collect import collect
from trtcal.ranges.growth import GROWTH, power_of_two
from trtcal.ranges.histogram import FINE_BINS, NUM_BINS, HistogramBuilder, abs_max

pytestmark = [pytest.mark.gpu, pytest.mark.seconds(1.5), needs(without_kernels())]

HUGE = np.finfo(np.float32).max


def on_the_cpu(values: np.ndarray, limit: float, num_bins: int) -> np.ndarray:
    counted = values[np.abs(values).astype(np.float64) < limit]
    builder = HistogramBuilder(num_bins, lambda *_: limit)
    builder.add(counted, abs_max(counted))
    return builder.counts


def arrays() -> dict[str, np.ndarray]:
    random, many = np.random.default_rng(0), 30_000 if small() else 3_000_000
    edges = (np.arange(NUM_BINS + 1) * 0.7 / NUM_BINS).astype(np.float32)
    odd = [0, -0.0, 1e-45, -3e-45, 1.2e-38, 1, -1, HUGE, -HUGE, *(2.0**e for e in range(-149, 128))]
    return {
        "normal": random.normal(size=many + 1).astype(np.float32),
        "relu": np.maximum(random.normal(size=(2 * many,)), 0).astype(np.float32),
        "edges": np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, HUGE)]),
        "odd": np.array(odd, np.float32),
        "one value": np.full(many, 0.7, np.float32),
        "bits": random.integers(0, 0x7F800000, many, dtype=np.uint32).view(np.float32),
        "subnormal": random.integers(0, 0x00800000, many, dtype=np.uint32).view(np.float32),
        "single": np.array([3.0], np.float32),
    }


@pytest.mark.parametrize("own_fine", [True, False])
@pytest.mark.parametrize("kind", arrays())
def test_counts_equal_the_cpus_on_the_same_values(
    memory: DeviceMemory, kind: str, own_fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not own_fine:
        monkeypatch.setattr("calibrators.device_kernels._FINE_BYTES", 1 << 30)  # as where shared memory is small
    values = arrays()[kind].reshape(-1)
    largest = abs_max(values)
    limits = [(power_of_two(0, largest), largest), (2.0**128, float(HUGE)), (1.0, 0.7), (2.0**-140, 2.0**-141)]
    with Observer(memory) as observer, Buffers(memory, slots=1) as buffers:
        address = buffers.place_host(0, "x", values, values.dtype, lambda _: None)
        counts, summary = buffers.device(0, "counts", TABLE_BYTES), buffers.device(0, "summary", SUMMARY_BYTES)
        for fine, batch_grid in limits:
            memory.clear(counts, TABLE_BYTES)
            memory.clear(summary, SUMMARY_BYTES)
            observer.observe(address, values.size, counts, summary, below(fine), below(batch_grid))
            seen = observer.summaries(summary, 1)[0]
            assert seen == (np.float32(largest), (np.abs(values) == np.float32(largest)).sum(), False)
            found = observer.counts(counts)
            np.testing.assert_array_equal(found[0], on_the_cpu(values, fine, FINE_BINS))
            np.testing.assert_array_equal(found[1], on_the_cpu(values, float(np.float32(batch_grid)), NUM_BINS))


@pytest.mark.parametrize("values", [[1, np.nan, np.inf], [1, -np.inf, -np.inf], [np.inf, 2, -np.inf]])
def test_inf_and_nan_are_told_apart(memory: DeviceMemory, values: list[float]) -> None:
    array = np.array(values, np.float32)
    with Observer(memory) as observer, Buffers(memory, slots=1) as buffers:
        address = buffers.place_host(0, "x", array, array.dtype, lambda _: None)
        counts, summary = buffers.device(0, "counts", TABLE_BYTES), buffers.device(0, "summary", SUMMARY_BYTES)
        memory.clear(summary, SUMMARY_BYTES)
        nothing: Span = NOTHING
        observer.observe(address, array.size, counts, summary, nothing, nothing)
        seen = observer.summaries(summary, 1)[0]
    np.testing.assert_equal(seen.amax, np.float32(np.nan if np.isnan(array).any() else np.inf))
    assert seen.positive_inf == (np.inf in values)
    assert np.isnan(seen.amax) or seen.peaks == np.isinf(array).sum()


@pytest.mark.parametrize("growth", GROWTH)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_statistics_of_the_same_values_equal_the_cpus_to_the_byte(memory: DeviceMemory, growth: str, size: int) -> None:
    from calibrators.gpu_stats import observe_all

    def network(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = batch["x"]
        return {"x": x, "relu": np.maximum(x, 0), "dead": np.maximum(-np.abs(x), 0), "wide": x[..., None] * [1, 30]}

    x = np.rint(np.random.default_rng(0).laplace(size=(12, 1_000 if small() else 100_000)) * 8).astype(np.float32) / 8
    batches = [{"x": x[i : i + size]} for i in range(0, len(x), size)]
    with Observer(memory) as observer, Shown(network, memory) as shown:
        found = observe_all(shown, observer, batches, growth)
    assert found.to_bytes() == collect(network, batches, growth=growth).to_bytes()


def test_bytes_come_back_from_the_device_as_they_were(memory: DeviceMemory) -> None:
    values = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    before = memory.vacant()
    with Buffers(memory) as buffers:
        there, beside = buffers.device(0, "x", values.nbytes), buffers.device(1, "x", values.nbytes)
        staging, back = (buffers.staging(slot, "x", values.nbytes) for slot in (0, 1))
        staging[:] = values
        memory.upload(there, staging)
        memory.copy(beside, there, values.nbytes)
        memory.clear(there, values.nbytes // 2)
        memory.download(back, beside)
        memory.synchronize()
        np.testing.assert_array_equal(back, values)
        memory.download(back, there)
        memory.synchronize()
        assert not back[: values.nbytes // 2].any()
        np.testing.assert_array_equal(back[values.nbytes // 2 :], values[values.nbytes // 2 :])
        assert memory.extent(there + 5) >= values.nbytes - 5
    assert memory.extent(there) == 0
    assert memory.vacant() >= before - (2 << 20)


def test_more_than_the_device_has_is_an_error_and_nothing_is_lost(memory: DeviceMemory) -> None:
    before = memory.vacant()
    with pytest.raises(BackendError, match=r"(?i)memory"):
        memory.allocate(1 << 50)
    assert memory.vacant() >= before - (2 << 20)


@pytest.mark.seconds(15)
def test_the_kernels_rate_is_measured_beside_a_copys(
    memory: DeviceMemory, record_property: Callable[[str, object], None]
) -> None:
    """Bytes per second that are read, and read and written; the device's own copy is what there is to be had."""
    nbytes, runs = 1 << (16 if small() else 28), 20
    with Buffers(memory, slots=1) as buffers:
        target, source = (buffers.device(0, name, nbytes) for name in ("target", "source"))

        def work() -> None:
            for _ in range(runs):
                memory.copy(target, source, nbytes)

        memory.elapsed(work)  # to warm up
        copy = 2 * runs * nbytes / memory.elapsed(work) * 1000
    with Observer(memory) as observer:
        kernel = throughput(observer, elements=nbytes // 4, runs=runs)
    for name, rate in {"copy": copy, "kernel": kernel}.items():
        record_property(f"GB/s of the {name}", round(rate / 1e9, 1))
    record_property("kernel / copy", round(kernel / copy, 3))
    assert kernel > 0 < copy

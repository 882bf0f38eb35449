"""Counting and collecting on a real GPU, against the CPU; skipped elsewhere.

The first half needs a GPU, cuda-bindings or PyCUDA, and NVRTC; the second TensorRT 8.5 to 10.16 besides:

    pip install 'trtcal[cuda,tensorrt]' pytest hypothesis && python -m pytest tests/gpu -rs
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from device import needs, without_kernels, without_tensorrt
from fakecuda.hostkernels import Shown
from fakecuda.models import SHAPE

from calibrators.buffers import Buffers
from calibrators.device_kernels import NOTHING, SUMMARY_BYTES, TABLE_BYTES, Observer, Span, below
from calibrators.memory import DeviceMemory, available, open_memory
from trtcal.model.open import FloatRunner, open_model
from trtcal.passes.collect import collect
from trtcal.ranges.growth import GROWTH, power_of_two
from trtcal.ranges.histogram import FINE_BINS, NUM_BINS, HistogramBuilder, abs_max
from trtcal.samples.streams import batches_of

pytestmark = [pytest.mark.gpu, needs(without_kernels())]
tensorrt = needs(without_tensorrt())

HUGE = np.finfo(np.float32).max


@pytest.fixture(params=[name for name in available() if name != "host"])
def memory(request: pytest.FixtureRequest) -> Iterator[DeviceMemory]:
    made = open_memory(request.param)
    yield made
    made.close()


def on_the_cpu(values: np.ndarray, limit: float, num_bins: int) -> np.ndarray:
    counted = values[np.abs(values).astype(np.float64) < limit]
    builder = HistogramBuilder(num_bins, lambda *_: limit)
    builder.add(counted, abs_max(counted))
    return builder.counts


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    edges = (np.arange(NUM_BINS + 1) * 0.7 / NUM_BINS).astype(np.float32)
    odd = [0, -0.0, 1e-45, -3e-45, 1.2e-38, 1, -1, HUGE, -HUGE, *(2.0**e for e in range(-149, 128))]
    return {
        "normal": random.normal(size=3_000_001).astype(np.float32),
        "relu": np.maximum(random.normal(size=(7, 64, 112, 112)), 0).astype(np.float32),
        "edges": np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, HUGE)]),
        "odd": np.array(odd, np.float32),
        "one value": np.full(1_000_000, 0.7, np.float32),
        "bits": random.integers(0, 0x7F800000, 2_000_000, dtype=np.uint32).view(np.float32),
        "subnormal": random.integers(0, 0x00800000, 2_000_000, dtype=np.uint32).view(np.float32),
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
        for fine, streamed in limits:
            memory.clear(counts, TABLE_BYTES)
            memory.clear(summary, SUMMARY_BYTES)
            observer.observe(address, values.size, counts, summary, below(fine), below(streamed))
            seen = observer.summaries(summary, 1)[0]
            assert seen == (np.float32(largest), (np.abs(values) == np.float32(largest)).sum(), False)
            found = observer.counts(counts)
            np.testing.assert_array_equal(found[0], on_the_cpu(values, fine, FINE_BINS))
            np.testing.assert_array_equal(found[1], on_the_cpu(values, float(np.float32(streamed)), NUM_BINS))


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

    x = np.rint(np.random.default_rng(0).laplace(size=(12, 100_000)) * 8).astype(np.float32) / 8
    batches = [{"x": x[i : i + size]} for i in range(0, len(x), size)]
    with Observer(memory) as observer, Shown(network, memory) as shown:
        found = observe_all(shown, observer, batches, growth)
    assert found.to_bytes() == collect(network, batches, growth=growth).to_bytes()


def data(count: int = 4, size: int = 3) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"image": random.normal(size=(size, *SHAPE)).astype(np.float32)} for _ in range(count)]


@tensorrt
@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("which", ["small", "demo"])
def test_tensorrts_values_are_those_of_onnx_runtime_but_for_their_last_bits(
    model: Path, memory: DeviceMemory, limit: int | None, which: str
) -> None:
    from calibrators.gpu_stats import collect_on_gpu
    from trtcal import demo

    batches = data()
    if which == "demo":
        model, images = demo.model_path(), demo.calibration_images()[:8]
        batches = [{"image": images[:4]}, {"image": images[4:]}]
    graph = open_model(model)
    with FloatRunner(graph) as runner:
        expected = collect(runner, batches_of(batches, graph.inputs))
    before = memory.vacant()
    found = collect_on_gpu(model, batches, memory=memory, limit=limit)
    assert memory.vacant() > before - (256 << 20)  # TensorRT keeps some for itself
    assert found.samples == expected.samples
    assert list(found.tensors) == list(expected.tensors)
    assert found.tensors["image"] == expected.tensors["image"]
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].histogram.total == tensor.histogram.total
        # TF32, which has 10 bits of mantissa, would be some 1e-3 off.
        np.testing.assert_allclose(found.tensors[name].sample_amax, tensor.sample_amax, rtol=1e-4)


@tensorrt
def test_the_percentile_calibrator_collects_on_the_gpu(model: Path) -> None:
    from calibrators import PercentileCalibrator, build_engine
    from trtcal.calibration.calibrate import calibrate

    calibrator = PercentileCalibrator(data(), model=model, percentile=99)
    assert calibrator.collected_on == "gpu"
    assert build_engine(model, calibrator=calibrator).plan
    expected = calibrate(model, data(), "percentile:99").cache.scales
    assert calibrator.to_hand_over is not None
    for name, scale in expected.items():
        assert calibrator.to_hand_over.scales[name] == pytest.approx(scale, rel=1e-3)

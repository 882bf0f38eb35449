"""Statistics of whole networks collected on the GPU, where TensorRT computes the values, beside the CPU's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import nets
import numpy as np
import pytest
from device import needs, small, without_kernels, without_tensorrt
from fakecuda.models import SHAPE

from calibrators.memory import DeviceMemory
from trtcal.calibration.calibrate import calibrate
from trtcal.model.open import FloatRunner, open_model
from trtcal.passes.collect import collect
from trtcal.samples.streams import batches_of

pytestmark = [pytest.mark.gpu, pytest.mark.seconds(10), needs(without_kernels(), without_tensorrt())]


def data(count: int = 4, size: int = 3) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"image": random.normal(size=(size, *SHAPE)).astype(np.float32)} for _ in range(count)]


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


@pytest.mark.seconds(30)
@pytest.mark.parametrize("name", nets.names())
def test_statistics_of_the_inputs_are_the_cpus_and_all_maxima_near_them(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    from calibrators.gpu_stats import collect_on_gpu

    model = nets.model(name)
    batches = model.batches(np.arange(4 if small() else 64), 2 if small() else 8)
    begin = time.perf_counter()
    theirs = collect_on_gpu(model.path, batches)
    middle = time.perf_counter()
    ours = calibrate(model.path, batches).stats
    record_property("seconds on the GPU", round(middle - begin, 3))
    record_property("seconds on the CPU", round(time.perf_counter() - middle, 3))
    assert not [name for name in batches[0] if theirs.tensors[name] != ours.tensors[name]]
    assert not [name for name in ours.tensors if name not in theirs.tensors]
    far = {
        name: [float(theirs.tensors[name].amax), float(tensor.amax)]
        for name, tensor in ours.tensors.items()
        if not np.isclose(theirs.tensors[name].amax, tensor.amax, rtol=1e-3, atol=1e-6)
    }
    assert not far

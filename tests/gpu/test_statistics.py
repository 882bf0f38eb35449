"""Statistics of whole networks collected on the GPU, where TensorRT computes the values, beside the CPU's."""

from __future__ import annotations

import time
from collections.abc import Callable

import nets
import numpy as np
import pytest
from device import needs, small, without_kernels, without_tensorrt

from calibrators.memory import DeviceMemory
from trtcal.calibration.calibrate import calibrate

pytestmark = [pytest.mark.gpu, pytest.mark.seconds(12), needs(without_kernels(), without_tensorrt())]

CASES = [("demo", 1), *((name, None) for name in nets.names())]  # with a limit of one byte each tensor has an engine


@pytest.mark.parametrize(("name", "limit"), CASES)
def test_tensorrts_values_are_those_of_onnx_runtime_but_for_their_last_bits(
    name: str, limit: int | None, memory: DeviceMemory, record_property: Callable[[str, object], None]
) -> None:
    from calibrators.gpu_stats import collect_on_gpu

    model = nets.model(name)
    batches = model.batches(np.arange(4 if small() or limit else 64), 2 if small() or limit else 8)
    before, begin = memory.vacant(), time.perf_counter()
    found = collect_on_gpu(model.path, batches, memory=memory, limit=limit)
    middle = time.perf_counter()
    expected = calibrate(model.path, batches).stats
    record_property("seconds on the GPU", round(middle - begin, 3))
    record_property("seconds on the CPU", round(time.perf_counter() - middle, 3))
    assert memory.vacant() > before - (256 << 20)  # TensorRT keeps some for itself
    assert found.samples == expected.samples
    assert list(found.tensors) == list(expected.tensors)
    for name, tensor in expected.tensors.items():
        if name in batches[0]:
            assert found.tensors[name] == tensor  # every count
        assert found.tensors[name].histogram.total == tensor.histogram.total
        # TF32, which has 10 bits of mantissa, would be some 1e-3 off.
        np.testing.assert_allclose(found.tensors[name].sample_amax, tensor.sample_amax, rtol=1e-4, atol=1e-6)


@pytest.mark.seconds(8)
def test_the_percentile_calibrator_collects_on_the_gpu() -> None:
    from calibrators import PercentileCalibrator, build_engine

    model = nets.model("demo")
    batches = model.batches(np.arange(8), 4)
    calibrator = PercentileCalibrator(batches, model=model.path, percentile=99)
    assert calibrator.collected_on == "gpu"
    assert build_engine(model.path, calibrator=calibrator).plan
    assert calibrator.to_hand_over is not None
    for name, scale in calibrate(model.path, batches, "percentile:99").cache.scales.items():
        assert calibrator.to_hand_over.scales[name] == pytest.approx(scale, rel=1e-3)

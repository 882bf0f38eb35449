"""One layer whose weights lie on the INT8 grid: with which integers TensorRT computes.

What is refined for INT8 (weights that are whole multiples of their channel's step, the largest of them 127) comes
through a builder unchanged only where the builder quantizes per channel as is believed here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from builds import CAREFUL, calibrating
from device import needs, small, without_gpu, without_tensorrt
from layers import LAYERS, STEP, answers, check, data_of, explained_by, model_of, output_step, weights_on_the_grid

from trtcal.cache.cache import CalibrationCache

pytestmark = [pytest.mark.gpu, pytest.mark.seconds(8), needs(without_gpu(), without_tensorrt())]


@pytest.mark.parametrize("name", LAYERS)
def test_weights_on_the_grid_are_computed_with_as_they_are(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    from calibrators import CachedCalibrator, Engine

    layer = LAYERS[name]
    if small() and layer.believed == "per input channel":
        pytest.skip("the test doubles quantize per output channel, as Q/DQ does")
    weights, x = weights_on_the_grid(layer), data_of(layer)
    ways = answers(layer, x, weights)
    scales = {"x": STEP, "y": output_step(ways)}
    ranges = CalibrationCache.from_amax(
        {tensor: scale * np.float32(127) for tensor, scale in scales.items()}, algorithm="EntropyCalibration2"
    )
    with CachedCalibrator(ranges) as calibrator:
        plan = calibrating(model_of(layer, weights), calibrator, {"x": x}, level=CAREFUL, int8_layers=True).plan
    with Engine(plan) as engine:
        got = engine({"x": x})["y"]
        record_property("layers by precision", engine.layers())
    found = explained_by(got, ways)
    record_property("explained by", found)
    check(layer, found)

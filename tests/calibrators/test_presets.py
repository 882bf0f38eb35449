from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibrators.presets import NVIDIA, resolve
from trtcal.errors import DataError
from trtcal.samples.options import image_preprocess
from trtcal.spec import InputSpec


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("V1", 224, {"resize": "shorter", "resize_to": 256, "interpolation": "bicubic", "scale": 1 / 255,
                     "mean": (0.0,)}),
        ("V1MS", 224, {"resize": "shorter", "resize_to": 256, "interpolation": "bicubic",
                       "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}),
        ("V2", 224, {"resize": "shorter", "resize_to": 256, "scale": 1 / 128, "mean": (1.0,)}),
        ("V2", 384, {"resize": "stretch", "resize_to": None, "scale": 1 / 128, "mean": (1.0,)}),
    ],
)  # fmt: skip
def test_the_preprocessors_of_nvidias_sample_are_presets(name: str, size: int, expected: dict[str, Any]) -> None:
    inputs = [InputSpec("x", np.dtype(np.float32), (3, size, size))]
    preset, knobs = resolve(name, inputs)
    made = image_preprocess(inputs, preset, **knobs)
    assert {field: getattr(made, field) for field in expected} == expected
    assert resolve("raw", inputs) == ("raw", {})


@pytest.mark.parametrize("name", NVIDIA)
def test_they_crop_as_the_sample_does_but_for_rounding(name: str) -> None:
    """A centre crop of size / (size + 32) of the shorter side: the middle of a ramp keeps its value and its slope."""
    from PIL import Image

    inputs = [InputSpec("x", np.dtype(np.float32), (3, 96, 96))]
    preset, knobs = resolve(name, inputs)
    made = image_preprocess(inputs, preset, **knobs)
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    seen = made.undo(made(Image.fromarray(np.ascontiguousarray(ramp))))[48, :, 0].astype(int)
    assert seen[0] == pytest.approx(32, abs=2)
    assert seen[-1] == pytest.approx(223, abs=2)


def test_a_model_that_takes_no_images_is_told() -> None:
    with pytest.raises(DataError, match="takes no images"):
        resolve("V2", [InputSpec("x", np.dtype(np.float32), (3,))])

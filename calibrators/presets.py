"""The preprocessors of NVIDIA's EfficientNet sample, by the names that its ``--calib_preprocessor`` knows.

======  ================================================  ====================================
name    geometry                                          values
======  ================================================  ====================================
V1      centre crop with 32 pixels to spare, bicubic      0 to 1; the model itself normalises
V1MS    the same                                          ImageNet's mean and deviation
V2      the same below 320 pixels, bilinear; else the     (x - 128) / 128
        whole picture, stretched
======  ================================================  ====================================

The sample crops first and resizes then; here it is the other way round, which differs in rounding only.
Source: samples/python/efficientnet/image_batcher.py of NVIDIA/TensorRT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtcal.spec import InputSpec

NVIDIA = ("V1", "V1MS", "V2")

_SPARE = 32
_WHOLE_FROM = 320


def resolve(name: str, inputs: Sequence[InputSpec], layout: str | None = None) -> tuple[str, dict[str, Any]]:
    """Name of a preset, NVIDIA's or ours -> name of ours, and the fields of it to replace."""
    from trtcal.samples.options import image_preprocess

    if name not in NVIDIA:
        return name, {}
    height = image_preprocess(inputs, "raw", layout=layout).size[0]
    crop = {"resize": "shorter", "resize_to": height + _SPARE}
    if name == "V2":
        return "-1-1", {"scale": 1 / 128, **(crop if height < _WHOLE_FROM else {})}
    return "0-1" if name == "V1" else "imagenet", {"interpolation": "bicubic", **crop}

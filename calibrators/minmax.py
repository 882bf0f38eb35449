"""Calibration by the largest value."""

from __future__ import annotations

from typing import Any

from calibrators.calibrator import FedCalibrator
from calibrators.versions import base_class

_Base: Any = base_class("MinMaxCalibration")


class MinMaxCalibrator(FedCalibrator, _Base):  # type: ignore[misc]
    """Batches -> ranges up to the largest |x|, nothing clipped (IInt8MinMaxCalibrator).

    The one that NVIDIA recommends for language models. The arguments are those of `FedCalibrator`. Neither batch size
    nor order changes the result.
    """

    algorithm = "MinMaxCalibration"

"""Entropy calibration as TensorRT and DLA do it by default."""

from __future__ import annotations

from typing import Any

from calibrators.calibrator import FedCalibrator
from calibrators.versions import base_class

_Base: Any = base_class("EntropyCalibration2")


class EntropyCalibrator(FedCalibrator, _Base):  # type: ignore[misc]
    """Batches -> ranges with the least loss of information (IInt8EntropyCalibrator2).

    The one that NVIDIA recommends for convolutional networks, and the only one that DLA takes. The arguments are those
    of `FedCalibrator`. The result depends on the size and the order of the batches: TensorRT sets a tensor's histogram
    by the first batch and doubles its range for later ones.
    """

    algorithm = "EntropyCalibration2"

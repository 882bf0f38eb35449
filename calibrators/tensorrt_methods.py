"""TensorRT's own methods: entropy, the largest value, and its percentile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from calibrators.calibrator import FedCalibrator
from calibrators.versions import base_class

# Any: TensorRT's classes come without types, and are chosen by the version that is installed.
_Entropy2: Any = base_class("EntropyCalibration2")
_MinMax: Any = base_class("MinMaxCalibration")
_Legacy: Any = base_class("LegacyCalibration")


class EntropyCalibrator(FedCalibrator, _Entropy2):  # type: ignore[misc]
    """Batches -> ranges with the least loss of information (IInt8EntropyCalibrator2).

    The one that NVIDIA recommends for convolutional networks, and the only one that DLA takes. The arguments are those
    of `FedCalibrator`. The result depends on the size and the order of the batches: TensorRT sets a tensor's histogram
    by the first batch and doubles its range for later ones.
    """

    algorithm = "EntropyCalibration2"


class MinMaxCalibrator(FedCalibrator, _MinMax):  # type: ignore[misc]
    """Batches -> ranges up to the largest |x|, nothing clipped (IInt8MinMaxCalibrator).

    The one that NVIDIA recommends for language models. The arguments are those of `FedCalibrator`. Neither batch size
    nor order changes the result.
    """

    algorithm = "MinMaxCalibration"


class LegacyCalibrator(FedCalibrator, _Legacy):  # type: ignore[misc]
    """Batches -> ranges by a quantile and a regression (IInt8LegacyCalibrator).

    ``quantile`` in (0, 1] is the share of |x| to keep; ``cutoff`` in [0, 1] is the regression cutoff, and with 1 the
    quantile decides alone. 0.9999 and 1 are what NVIDIA's BERT demo used. NVIDIA documents neither the regression nor
    the histogram behind it, so this is a comparator; `PercentileCalibrator` is the percentile whose arithmetic is
    known. The other arguments are those of `FedCalibrator`.
    """

    algorithm = "LegacyCalibration"

    def __init__(
        self, batches: Iterable[Mapping[str, Any]], *, quantile: float = 0.9999, cutoff: float = 1.0, **options: Any
    ) -> None:
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile must be in (0, 1], got {quantile}")
        if not 0 <= cutoff <= 1:
            raise ValueError(f"cutoff must be in [0, 1], got {cutoff}")
        self._quantile, self._cutoff = float(quantile), float(cutoff)
        super().__init__(batches, **options)

    def _method(self) -> str:
        return f"{super()._method()}:quantile={self._quantile}:cutoff={self._cutoff}"

    def get_quantile(self) -> float:
        """The share of |x| to keep."""
        return self._quantile

    def get_regression_cutoff(self) -> float:
        """The regression cutoff."""
        return self._cutoff

    def read_histogram_cache(self, length: int) -> None:
        """No histogram is kept between builds: the one in TensorRT's file says nothing of where it came from."""

    def write_histogram_cache(self, data: Any, length: int) -> None:
        """As `read_histogram_cache`."""

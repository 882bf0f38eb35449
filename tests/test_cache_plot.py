from __future__ import annotations

import numpy as np
import pytest

from trtcal.cache import CalibrationCache
from trtcal.cache_doctor import diff
from trtcal.cache_plot import plot_difference


def page(first: dict[str, float], second: dict[str, float]) -> str:
    def cache(scales: dict[str, float]) -> CalibrationCache:
        return CalibrationCache("8601", "EntropyCalibration2", {n: np.float32(s) for n, s in scales.items()})

    return plot_difference(diff(cache(first), cache(second)), "a.cache", "b<b>.cache").decode()


def test_the_page_names_the_files_the_tensors_and_how_many_have_no_place() -> None:
    html = page({"conv1": 1, "zero": 0, "inf": np.inf, "gone": 1}, {"conv1": 2, "zero": 0, "inf": np.inf})
    assert "conv1" in html
    assert "ratio 2" in html
    assert "of 1 tensors; 3 without one in both" in html
    assert "a.cache" in html


def test_the_page_needs_no_network_and_runs_no_tensor_s_name() -> None:
    html = page({"</script><script>alert(1)</script>": 1}, {"</script><script>alert(1)</script>": 2})
    assert "<script src" not in html
    assert "<script>alert" not in html


@pytest.mark.parametrize("scales", [{}, {"x": 0.0}])
def test_there_need_be_nothing_to_draw(scales: dict[str, float]) -> None:
    assert "Range (amax) of 0 tensors" in page(scales, scales)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser, Page, address

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.doctor import diff
from trtcal.cache.plot import plot_difference


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


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on PATH; Debian's package is chromium")
def test_no_name_is_markup_in_a_browser(tmp_path: Path) -> None:
    evil = [
        "</script><script>window.hacked = 1</script>",
        '<img src="https://x.invalid/a.png" onerror="window.hacked = 1">',
        '<a href="javascript:window.hacked = 1">link</a>',
        "<b>bold</b>",
    ]
    caches = [
        CalibrationCache("8601", "EntropyCalibration2", {name: np.float32(scale) for name in evil}) for scale in (1, 2)
    ]
    (tmp_path / "ranges.html").write_bytes(plot_difference(diff(*caches), evil[1], "".join(evil[2:])))
    with Browser() as browser:
        page = Page(browser, address(tmp_path / "ranges.html"))
        page.wait("document.querySelector('.xtitle') !== null")
        assert evil[1] in page.run("document.querySelector('.xtitle').textContent")
        assert "".join(evil[2:]) in page.run("document.querySelector('.ytitle').textContent")
        assert page.run("document.querySelectorAll('svg a, img').length") == 0
        assert page.run("window.hacked") is None
        assert [request for request in page.requests() if not request.startswith("file:")] == []

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser, Page, address

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.doctor import diff
from trtcal.cache.plot import SIDE, plot_difference


def page(first: dict[str, float], second: dict[str, float]) -> str:
    def cache(scales: dict[str, float]) -> CalibrationCache:
        return CalibrationCache("8601", "EntropyCalibration2", {n: np.float32(s) for n, s in scales.items()})

    return plot_difference(diff(cache(first), cache(second)), "a.cache", "b<b>.cache").decode()


def test_the_page_names_the_files_the_tensors_and_how_many_have_no_place() -> None:
    html = page({"conv1": 1, "zero": 0, "inf": np.inf, "gone": 1}, {"conv1": 2, "zero": 0, "inf": np.inf})
    assert "conv1" in html
    assert "ratio 2" in html
    assert "of 1 tensor; 3 without one in both" in html
    assert "a.cache" in html


def test_the_page_needs_no_network_and_runs_no_tensor_s_name() -> None:
    html = page({"</script><script>alert(1)</script>": 1}, {"</script><script>alert(1)</script>": 2})
    assert "<script src" not in html
    assert "<script>alert" not in html


def test_each_point_lies_where_its_two_ranges_are() -> None:
    html = page(
        {"small": 1 / 127, "large": 100 / 127, "same": 10 / 127}, {"small": 1 / 127, "large": 10 / 127, "same": 1}
    )
    found = re.findall(r'<circle cx="([0-9.]+)" cy="([0-9.]+)" r="4"><title>(\w+)\n', html)
    at = {name: (float(x), SIDE - float(y)) for x, y, name in found}
    assert at["small"][0] == pytest.approx(at["small"][1], abs=0.2)  # 1 and 1: on the diagonal
    assert at["same"][1] > at["same"][0]  # 10 and 127: above it
    assert at["large"][1] < at["large"][0]
    # 1, 10 and 100 are equally far apart on a logarithmic axis.
    assert at["same"][0] - at["small"][0] == pytest.approx(at["large"][0] - at["same"][0], abs=0.2)
    assert at["large"][1] - at["small"][1] == pytest.approx(at["same"][0] - at["small"][0], abs=0.2)
    assert all(0 < value < SIDE for pair in at.values() for value in pair)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.01, 300.0), (1e-30, 1e30), (3.0, 4.0)])
def test_an_axis_has_a_few_round_numbers_on_it(low: float, high: float) -> None:
    html = page({"a": low / 127, "b": high / 127}, {"a": low / 127, "b": high / 127})
    ticks = [float(text) for text in re.findall(r'text-anchor="middle">([-+.0-9e]+)</text>', html)][::2]
    assert 1 <= len(ticks) <= 18
    assert ticks == sorted(set(ticks))


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
        page.wait("document.querySelector('#first') !== null")
        assert evil[1] in page.run("document.querySelector('#first').textContent")
        assert "".join(evil[2:]) in page.run("document.querySelector('#second').textContent")
        assert evil[0] in page.run("document.querySelector('circle title').textContent")
        assert page.run("document.querySelectorAll('svg a, img').length") == 0
        assert page.run("window.hacked") is None
        assert [request for request in page.requests() if not request.startswith("file:")] == []

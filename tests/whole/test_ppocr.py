"""Real input: PP-OCR's text recogniser, from the wheel rapidocr (pip install --no-deps rapidocr)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from ppocr import recogniser

from trtcal.calibration.file import calibrate_to_file
from trtcal.model.open import open_model
from trtcal.ranges.thresholds import method as threshold_method
from trtcal.samples.batches import Batches
from trtcal.samples.options import fix_shapes, image_preprocess
from trtcal.samples.sources import open_source
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.run import run_sweep

pytestmark = pytest.mark.slow(reason="sweeps a real model")
LINES = [
    "No. 749301-B",
    "quick brown fox",
    "38 % of 2465",
    "over the lazy dog",
    "08.10.2001",
    "TOTAL 12.50",
    "a",
    "Wxyz",
]


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Batches:
    """Eight rendered lines, batches of 4."""
    folder = tmp_path_factory.mktemp("lines")
    rng = np.random.default_rng(0)
    for number, text in enumerate(LINES):
        image = Image.new("RGB", (320, 48), tuple(rng.integers(180, 256, 3).tolist()))
        font = ImageFont.load_default()
        drawn = Image.new("RGB", (110, 16), image.getpixel((0, 0)))
        ImageDraw.Draw(drawn).text((2, 2), text, fill=tuple(rng.integers(0, 90, 3).tolist()), font=font)
        image.paste(drawn.resize((320, 48)))
        image.save(folder / f"{number}.png")
    inputs = fix_shapes(open_model(recogniser()).inputs, ["3x48x320"])
    return Batches(
        open_source(folder, inputs=inputs, preprocess=image_preprocess(inputs, "-1-1", color="BGR")),
        4,
    )


def test_every_tensor_gets_a_range_or_a_reason(batches: Batches, tmp_path: Path) -> None:
    made = calibrate_to_file(recogniser(), batches, tmp_path / "rec.cache")
    assert len(made.cache.scales) > 500
    assert all(np.isfinite(scale) for scale in made.cache.scales.values())


def test_replay_is_as_close_to_an_exact_second_pass_as_the_documentation_says(batches: Batches, tmp_path: Path) -> None:
    plan = SweepPlan(batch_sizes=(1, 2, 8), seeds=2)
    fast = run_sweep(recogniser(), batches, tmp_path / "fast", plan).sweep
    exact = run_sweep(recogniser(), batches, tmp_path / "exact", replace(plan, exact=True)).sweep
    moved = {}
    for one, two in zip(fast.trials, exact.trials, strict=True):
        relative = np.abs(one.amax / np.where(two.amax > 0, two.amax, 1) - 1)[two.amax > 0]
        moved.setdefault(one.method, []).append(relative)
    bins = np.concatenate([np.abs(fast.measures[a].m - exact.measures[a].m) for a in exact.measures])
    print(f"\n|change of m|: median {np.median(bins):.0f}, worst {bins.max()}, none in {np.mean(bins == 0):.0%}")
    for method, parts in moved.items():
        every = np.concatenate(parts)
        print(
            f"{method:20} median {np.median(every):.2e}, worst {every.max():.2e}, over 1% {np.mean(every > 0.01):.1%}"
        )
        if not threshold_method(method).depends_on_batches:
            assert every.max() == 0
    for configuration, measures in exact.measures.items():
        assert np.array_equal(measures.limit, fast.measures[configuration].limit)
        assert np.array_equal(measures.doublings, fast.measures[configuration].doublings)
    assert np.median(bins) == 0
    assert np.mean(np.concatenate(moved["entropy"]) > 0.01) < 0.2

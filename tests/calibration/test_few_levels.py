"""`trtcal calibrate` on tensors of few levels: TensorRT wrote the scales below, or clips none of the like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import make_model, save
from numpy.typing import NDArray
from onnx import helper
from PIL import Image, ImageDraw, ImageFont

from trtcal.cache.cache import CalibrationCache

Run = Callable[..., tuple[int, str, str]]
node = helper.make_node


def cells(size: int) -> dict[int, int]:
    """Stride -> cells of a YOLO's grids, for pictures of that size."""
    return {stride: (size // stride) ** 2 for stride in (8, 16, 32)}


def centres(size: int) -> NDArray[np.float64]:
    grids = [np.indices((size // stride,) * 2).reshape(2, -1) + 0.5 for stride in cells(size)]
    return np.concatenate(grids, axis=1)


# What TensorRT 8.5 to 10.14 wrote for these constants of YOLOs.
WRITTEN: dict[str, tuple[NDArray[np.float64], str]] = {
    "strides at 640": (np.repeat(list(cells(640)), list(cells(640).values())).astype(float), "3e810a14"),
    "strides at 1280": (np.repeat(list(cells(1280)), list(cells(1280).values())).astype(float), "3e810a14"),
    "anchors of stride 8": (np.array([10, 13, 16, 30, 33, 23.0]), "3e851265"),
    "anchors of stride 16": (np.array([30, 61, 62, 45, 59, 119.0]), "3f6feebd"),
    "anchors of stride 32": (np.array([116, 90, 156, 198, 373, 326.0]), "403c03af"),
}
WHOLE: dict[str, NDArray[np.float64]] = {
    **{f"range of {n}": np.arange(n, dtype=float) for n in (20, 40, 80, 160)},
    **{f"grid of {n}": np.indices((n, n)) - 0.5 for n in (20, 40, 80, 160)},
    "cell centres at 640": centres(640),
    "cell centres at 1280": centres(1280),
    "5 levels": np.arange(5) / 4,
    "17 levels": np.arange(17) / 16,
    "256 levels": np.arange(256) / 255,
    "two values": np.array([0.25, 1]),
    "a constant": np.array([0.7]),
}


def as_hex(scale: np.float32) -> str:
    return f"{np.float32(scale).view(np.uint32):x}"


def unclipped(values: NDArray[np.float64]) -> str:
    """The scale that keeps all 2048 bins."""
    f32 = np.float32
    return as_hex(f32(2048.5) * (f32(np.abs(values).max()) / f32(2048)) / f32(127))


def calibrated(run: Run, *arguments: object) -> tuple[CalibrationCache, dict[str, float]]:
    """The cache that the command writes, and which tensors it says are clipped."""
    code, out, err = run("calibrate", *arguments, "-o", "made.cache", "--json")
    assert code == 0, err
    clipped: dict[str, float] = json.loads(out)["clipped"]
    return CalibrationCache.load("made.cache"), clipped


@pytest.mark.parametrize("name", [*WRITTEN, *WHOLE])
def test_a_constant_of_few_levels_has_tensorrt_s_scale(run: Run, tmp_path: Path, name: str) -> None:
    """As what an identity network is fed, and as an initializer that is added to it."""
    values, expected = WRITTEN[name] if name in WRITTEN else (WHOLE[name], unclipped(WHOLE[name]))
    fed = values.astype(np.float32).reshape(1, -1)
    nodes = [node("Identity", ["x"], ["y"]), node("Add", ["x", "table"], ["z"])]
    save(make_model(nodes, {"x": ["N", fed.size]}, ["y", "z"], {"table": fed}), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.repeat(fed, 4, axis=0))
    cache, clipped = calibrated(run, "m.onnx", "--data", "x.npy")
    assert {tensor: as_hex(cache.scales[tensor]) for tensor in ("x", "y", "table_output")} == dict.fromkeys(
        ("x", "y", "table_output"), expected
    )
    assert clipped == {}


def test_values_that_begin_far_from_zero_are_not_clipped(run: Run, tmp_path: Path) -> None:
    save(make_model([node("Identity", ["x"], ["y"])], {"x": ["N", 5000]}, ["y"]), tmp_path / "m.onnx")
    x = np.random.default_rng(0).uniform(0.5, 1, (16, 5000)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    cache, clipped = calibrated(run, "m.onnx", "--data", "x.npy", "--batch-size", 16)
    assert as_hex(cache.scales["x"]) == unclipped(x.astype(float))
    assert clipped == {}


def page(seed: int) -> Image.Image:
    """Dark grey text on white, without any grey in between: what greys there are come of scaling it down."""
    rng = np.random.default_rng(seed)
    ink = Image.new("1", (300, 300), 1)
    for top in range(4, 290, 13):
        text = "".join(map(chr, rng.integers(97, 123, 50)))
        ImageDraw.Draw(ink).text((4, top), text, fill=0, font=ImageFont.load_default())
    return ink.convert("L").point(lambda value: value or 40).convert("RGB")


def test_pages_of_text_on_white_are_not_clipped(run: Run, tmp_path: Path) -> None:
    save(make_model([node("Identity", ["image"], ["y"])], {"image": ["N", 3, 96, 96]}, ["y"]), tmp_path / "m.onnx")
    (tmp_path / "pages").mkdir()
    for seed in range(6):
        page(seed).save(tmp_path / "pages" / f"{seed}.png")
    cache, clipped = calibrated(run, "m.onnx", "--data", "pages", "--preset", "0-1")
    assert as_hex(cache.scales["image"]) == "3c010a14"
    assert clipped == {}


def spikes(tmp_path: Path) -> None:
    """A model and data of which entropy clips three quarters, as TensorRT does.

    A spike that shares a level with its neighbour costs more than clipping it.
    """
    save(make_model([node("Identity", ["x"], ["y"])], {"x": ["N", 1000]}, ["y"]), tmp_path / "m.onnx")
    levels, shares = [99, 100, 254, 255], [0.01, 0.2, 0.01, 0.78]
    np.save(tmp_path / "x.npy", np.random.default_rng(0).choice(levels, (8, 1000), p=shares).astype(np.float32) / 255)


SHOUTED = (
    "unusable by entropy: the threshold of x clips 78.4% of this input; TensorRT's own "
    "calibrator does the same; calibrate by minmax, percentile:99.99 or mse instead"
)


def test_an_unusable_threshold_is_shouted_with_its_reason_and_the_methods_without(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spikes(tmp_path)
    command = ("calibrate", "m.onnx", "--data", "x.npy", "--json", "--no-check")
    for _ in range(2):  # of a cache that is up to date as well
        code, out, err = run(*command)
        assert code == 0
        made = json.loads(out)
        assert made["unusable_thresholds"]["x"] == "clips 78.4% of this input"
        assert made["usable_methods"] == ["minmax", "percentile:99.99", "mse"]
        assert [record.getMessage() for record in caplog.records] == [f"calibration.cache: {SHOUTED}"]
        caplog.clear()
    for name in made["usable_methods"]:
        code, out, err = run(
            "calibrate", "m.onnx", "--data", "x.npy", "--json", "--method", name, "--strict", "--no-check"
        )
        assert code == 0, err
        assert json.loads(out)["unusable_thresholds"] == {}
        assert json.loads(out)["usable_methods"] == []
        assert not caplog.records


def test_the_summary_lists_what_is_clipped(run: Run, tmp_path: Path) -> None:
    spikes(tmp_path)
    code, _, err = run("calibrate", "m.onnx", "--data", "x.npy")
    assert code == 0
    assert "1 tensor is clipped by more than 1%, which may cost accuracy:\n  x: 7" in err
    assert "Entropy, TensorRT's own as well, clips values that sit in spikes" in err
    assert "spikes" not in run("calibrate", "m.onnx", "--data", "x.npy", "--method", "minmax")[2]


def test_strict_leaves_no_cache_but_what_another_method_goes_on_from(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spikes(tmp_path)
    code, out, err = run("calibrate", "m.onnx", "--data", "x.npy", "--strict")
    assert (code, out) == (2, "")
    assert f"trtcal: error: calibration.cache: not written: {SHOUTED}\n" in err
    assert not caplog.records
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "x.npy", "calibration.cache.partial.npz"}
    code, _, err = run("calibrate", "m.onnx", "--data", "x.npy", "--strict", "--method", "mse")
    assert code == 0
    assert "going on after 8 samples" in err
    assert {path.name for path in tmp_path.iterdir()} == {
        *("m.onnx", "x.npy", "calibration.cache", "calibration.cache.json")
    }


def test_strict_refuses_an_unusable_cache_that_is_there(run: Run, tmp_path: Path) -> None:
    spikes(tmp_path)
    assert run("calibrate", "m.onnx", "--data", "x.npy")[0] == 0
    before = (tmp_path / "calibration.cache").read_bytes()
    code, _, err = run("calibrate", "m.onnx", "--data", "x.npy", "--strict")
    assert code == 2
    assert f"calibration.cache: is there, but {SHOUTED}" in err
    assert (tmp_path / "calibration.cache").read_bytes() == before

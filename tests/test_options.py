from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from calibrators.options import knob, parser, ranges
from calibrators.shapes import Range

REQUIRED = ["--onnx", "m.onnx", "--engine", "m.engine"]


def options(*texts: str) -> Any:
    return parser().parse_args([*REQUIRED, *texts])


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--calib_cache", "c"], "calib_cache", Path("c")),
        (["--calib-cache=c"], "calib_cache", Path("c")),
        (["--calibration-cache", "c"], "calib_cache", Path("c")),
        (["--calib=c"], "calib_cache", Path("c")),
        (["--calib_num_images", "7"], "calib_num_images", 7),
        (["--calib-batch-size", "7"], "calib_batch_size", 7),
        (["--batch-size", "7"], "calib_batch_size", 7),
        (["--preset", "raw"], "calib_preprocessor", "raw"),
        (["--saveEngine=e"], "engine", Path("e")),
        (["--int8"], "precision", "int8"),
        (["-p", "fp32"], "precision", "fp32"),
        (["--no-fp16"], "fp16", False),
        ([], "fp16", True),
        (["--useDLACore=1"], "dla_core", 1),
        (["--dla-core", "1"], "dla_core", 1),
        (["--allowGPUFallback"], "gpu_fallback", True),
        (["--timingCacheFile=t"], "timing_cache", Path("t")),
        (["--calib-base-cls", "IInt8MinMaxCalibrator"], "method", "minmax"),
        (["--force"], "policy", "write"),
        (["-w", "2"], "workspace", 2 << 30),
        (["--workspace=2"], "workspace", 2 << 20),
        (["--memPoolSize=workspace:16"], "workspace", 16 << 20),
        (["--memPoolSize=workspace:1.5G"], "workspace", 3 << 29),
        (["--best"], "precision", "int8"),
        (["--workspace", "512M"], "workspace", 512 << 20),
    ],
)
def test_the_spellings_of_nvidias_sample_trtexec_and_polygraphy_are_understood(
    flags: list[str], name: str, value: Any
) -> None:
    assert getattr(options(*flags), name) == value


@pytest.mark.parametrize(
    "flags",
    [
        ["--minShapes=x:1x3,a::b:0:1", "--optShapes=x:4x3,a::b:0:2", "--maxShapes=x:8x3,a::b:0:3"],
        ["--trt-min-shapes", "x:[1,3]", "a::b:0:[1]", "--trt-opt-shapes", "x:[4,3]", "a::b:0:[2]",
         "--trt-max-shapes", "x:[8,3]", "a::b:0:[3]"],
    ],
)  # fmt: skip
def test_shapes_are_understood_as_trtexec_and_as_polygraphy_write_them(flags: list[str]) -> None:
    assert ranges(options(*flags)) == {"x": Range((1, 3), (4, 3), (8, 3)), "a::b:0": Range((1,), (2,), (3,))}


def test_shapes_that_are_left_out_are_the_opt_shape() -> None:
    assert ranges(options("--optShapes=x:4x3")) == {"x": Range.of((4, 3))}
    assert ranges(options("--maxShapes=x:4x3")) == {"x": Range.of((4, 3))}
    assert ranges(options("--shapes=x:4x3,y:1")) == {"x": Range.of((4, 3)), "y": Range.of((1,))}
    with pytest.raises(ValueError, match=r"--shapes says all"):
        ranges(options("--shapes=x:4x3", "--optShapes=x:4x3"))
    with pytest.raises(ValueError, match=r"^--shapes x=4: expected"):
        ranges(options("--shapes=x=4"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--memPoolSize=dlaSRAM:1"],
        ["--memPoolSize=16"],
        ["--calib_num_images", "0"],
        ["-w", "much"],
        ["--calib-base-cls", "X"],
        ["--calib_c", "x"],
    ],
)
def test_wrong_values_and_abbreviations_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(*flags)
    assert "error" in capsys.readouterr().err


def testknobs_of_a_preset_are_numbers_lists_and_words() -> None:
    found = dict(map(knob, ("resize-to=232", "mean=0.5,0.25,1", "std=2", "color=BGR", "scale=0.5")))
    assert found == {"resize_to": 232, "mean": (0.5, 0.25, 1.0), "std": (2.0,), "color": "BGR", "scale": 0.5}
    with pytest.raises(ValueError, match="--preprocess scale=big: expected KNOB=VALUE"):
        knob("scale=big")

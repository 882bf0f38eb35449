from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from calibrators.options import knob, method, parser, ranges
from calibrators.shapes import Range
from trtcal.ranges.thresholds import usages

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
        (["--preset", "-1-1"], "calib_preprocessor", "-1-1"),
        (["--calib_preprocessor", "-1-1"], "calib_preprocessor", "-1-1"),
        (["--mean", "-1,-.5,0", "--std", "2"], "mean", "-1,-.5,0"),
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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ("entropy", {})),
        (["--method", "minmax"], ("minmax", {})),
        (["--method", "percentile"], ("percentile:99.99", {})),
        (["--method", "percentile:99.0"], ("percentile:99", {})),
        (["--method", "mse"], ("mse", {})),
        (["--percentile", "99.9"], ("percentile:99.9", {})),
        (["--method", "percentile", "--percentile", "99.9"], ("percentile:99.9", {})),
        (["--method", "legacy"], ("legacy", {})),
        (["--method", "legacy", "--quantile", "0.5"], ("legacy", {"quantile": 0.5})),
        (["--calib-base-cls", "IInt8LegacyCalibrator", "--cutoff", "0"], ("legacy", {"cutoff": 0.0})),
        (["--method", "legacy", "--regression-cutoff", "0.5"], ("legacy", {"cutoff": 0.5})),
    ],
)
def test_a_method_gets_the_arguments_that_were_given(
    flags: list[str], expected: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert method(options(*flags)) == expected
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--method", "minmax", "--percentile", "99"],
            "--percentile 99 goes with method percentile alone, not with mi",
        ),
        (
            ["--method", "legacy", "--percentile", "99"],
            "--percentile 99 goes with method percentile alone, not with le",
        ),
        (["--calib-base-cls", "IInt8EntropyCalibrator2", "--percentile", "9"], "not with entropy"),
        (
            ["--method", "percentile:99.9", "--percentile", "99"],
            "--percentile 99 goes with .*, not with percentile:99.9",
        ),
        (["--percentile", "101"], "percentile needs 0 < q <= 100"),
        (["--method", "percentile:many"], "percentile needs a number after the colon, got 'many'"),
        (["--method", "percentile:"], "percentile needs a number after the colon, got ''"),
        (["--method", "entropy:"], "method entropy takes no parameter"),
        (["--method", "legacy:0.9"], "method legacy takes no parameter, got 'legacy:0.9'"),
        (["--method", "max"], f"method must be one of {', '.join(usages().values())}, legacy, got 'max'"),
    ],
)
def test_a_method_and_arguments_of_another_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(options(*flags))


def test_what_polygraphy_lets_pass_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert method(options("--method", "minmax", "--quantile", "0.5", "--cutoff", "1")) == ("minmax", {})
    assert "--quantile, --cutoff: without effect, for the method is minmax and not legacy" in caplog.text


@pytest.mark.parametrize("text", ["layout=HWC", "size=3", "channels=1", "sclae=2", "", "=1"])
def test_a_knob_that_is_none_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected KNOB=VALUE with one of resize, resize-to, .*, pad-value; size and"):
        knob(text)


def test_knobs_of_a_preset_are_numbers_lists_and_words() -> None:
    found = dict(map(knob, ("resize-to=232", "mean=0.5,0.25,1", "std=2", "color=BGR", "scale=0.5")))
    assert found == {"resize_to": 232, "mean": (0.5, 0.25, 1.0), "std": (2.0,), "color": "BGR", "scale": 0.5}
    with pytest.raises(ValueError, match="--preprocess scale=big: expected KNOB=VALUE"):
        knob("scale=big")

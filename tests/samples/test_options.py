from __future__ import annotations

import numpy as np
import pytest

from trtcal.errors import DataError
from trtcal.samples.options import fix_shapes, image_preprocess
from trtcal.spec import InputSpec

F32 = np.dtype(np.float32)
IMAGE = InputSpec("x", F32, (3, None, None))
TOKENS = InputSpec("ids", np.dtype(np.int64), (None,))


def test_dynamic_axes_are_fixed_by_name_or_for_the_only_input() -> None:
    assert fix_shapes([IMAGE], ["3x640x320"])[0].shape == (3, 640, 320)
    assert [spec.shape for spec in fix_shapes([IMAGE, TOKENS], ["ids:32", "x:3X64x64"])] == [(3, 64, 64), (32,)]
    assert fix_shapes([InputSpec("a:b", F32, (None,))], ["a:b:4"])[0].shape == (4,)
    assert fix_shapes([IMAGE], []) == (IMAGE,)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("3x640", r"does not fit x: float32 .*; give all 3 sizes but the batch's"),
        ("4x640x640", r"does not fit x: .*; only axes written \? may"),
        ("1x3x640x640", "leave the batch out"),
        ("3x0x640", "does not fit x: "),
        ("3,640,640", "joined by x"),
        ("y:3x6x6", "no input 'y'; it has x"),
    ],
)
def test_a_shape_that_does_not_fit_says_why(shape: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fix_shapes([IMAGE], [shape])


def test_a_shape_without_a_name_is_ambiguous_for_several_inputs() -> None:
    with pytest.raises(ValueError, match="inputs x, ids; write INPUT:32"):
        fix_shapes([IMAGE, TOKENS], ["32"])


@pytest.mark.parametrize(
    ("shape", "layout", "made"),
    [
        ((3, 24, 32), None, (3, 24, 32)),
        ((24, 32, 3), None, (24, 32, 3)),
        ((1, 24, 32), None, (1, 24, 32)),
        ((24, 32, 1), None, (24, 32, 1)),
        ((3, 8, 3), "HWC", (3, 8, 3)),
    ],
)
def test_size_channels_and_layout_come_from_the_model(
    shape: tuple[int, ...], layout: str | None, made: tuple[int, ...]
) -> None:
    assert image_preprocess([InputSpec("x", F32, shape)], "0-1", layout=layout).shape == made


def test_knobs_change_the_preset() -> None:
    knobs = {"color": "BGR", "mean": (0.5, 0.25, 0.125), "scale": 0.5, "resize": "letterbox", "pad_value": 0}
    made = image_preprocess([InputSpec("x", F32, (3, 8, 8))], "imagenet", **knobs)
    assert (made.color, made.mean, made.scale, made.resize, made.pad_value) == (
        "BGR", (0.5, 0.25, 0.125), 0.5, "letterbox", 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([IMAGE], r"leaves its size open; fix it, for instance with --shape x:3x224x224"),
        ([TOKENS], "takes no images"),
        ([InputSpec("x", F32, (7, 8, 8))], "wants 7 channels"),
        ([IMAGE, TOKENS], "one input, the model has x, ids"),
    ],
)
def test_an_input_that_is_no_image_says_why(inputs: list[InputSpec], message: str) -> None:
    with pytest.raises(DataError, match=message):
        image_preprocess(inputs, "imagenet")


def test_an_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(ValueError, match="imagenet, torchvision-<size>, yolo-letterbox, 0-1, -1-1, raw"):
        image_preprocess([InputSpec("x", F32, (3, 8, 8))], "image-net")

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trtcal.errors import DataError
from trtcal.samples.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PRESETS,
    Layout,
    Preprocess,
    decode,
    image_extensions,
    is_image,
    preset,
)

NAMES = ["imagenet", "torchvision-40", "yolo-letterbox", "0-1", "-1-1", "raw", "V1", "V1MS", "V2"]


def gradient(height: int, width: int) -> Image.Image:
    """A picture whose pixels tell where they were: red is the row, green the column."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows, columns, np.full_like(rows, 7)], axis=2).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64)


# --- presets


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_makes_the_shape_it_says(name: str, channels: int, layout: Layout) -> None:
    made = preset(name, size=(32, 24), channels=channels, layout=layout)
    for mode, size in [("RGB", (50, 70)), ("L", (70, 50)), ("F", (33, 44))]:
        array = made(Image.new(mode, size, 9))
        assert array.shape == made.shape
        assert sorted(array.shape) == sorted((channels, 32, 24))
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


@pytest.mark.parametrize("knobs", [{}, {"color": "BGR"}, {"layout": "HWC"}])
@pytest.mark.parametrize("name", NAMES)
def test_undo_gives_the_picture_back(name: str, knobs: dict[str, Any]) -> None:
    image = gradient(32, 32)
    made = preset(name, size=(32, 32), resize="stretch", **knobs)
    seen = np.asarray(image)[..., ::-1] if made.color == "BGR" else np.asarray(image)
    np.testing.assert_array_equal(made.undo(made(image)), seen)  # channels as they are fed, so that one can see it


def test_undo_of_a_grey_input_is_a_grey_picture() -> None:
    image = gradient(16, 16).convert("L")
    made = preset("imagenet", size=(16, 16), channels=1, resize="stretch")
    np.testing.assert_array_equal(made.undo(made(image)), np.asarray(image.convert("RGB")))


def test_undo_clips_what_no_picture_holds() -> None:
    made = preset("0-1", size=(1, 2))
    picture = made.undo(np.stack([np.full((1, 2), value, np.float32) for value in (-3.0, 0.5, 7.0)]))
    assert picture.tolist() == [[[0, 128, 255]] * 2]


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [
        ("imagenet", -np.array(IMAGENET_MEAN) / IMAGENET_STD, (1 - np.array(IMAGENET_MEAN)) / IMAGENET_STD),
        ("yolo-letterbox", [0] * 3, [1] * 3),
        ("0-1", [0] * 3, [1] * 3),
        ("-1-1", [-1] * 3, [1] * 3),
        ("raw", [0] * 3, [255] * 3),
    ],
)
def test_a_preset_maps_black_and_white_to_its_ends(name: str, black: list[float], white: list[float]) -> None:
    made = preset(name, size=(8, 8))
    for value, ends in [(0, black), (255, white)]:
        array = made(Image.new("L", (8, 8), value))
        np.testing.assert_allclose(array[:, 0, 0], ends, rtol=1e-6, atol=1e-7)


def test_bgr_turns_the_mean_round_with_the_channels() -> None:
    image = gradient(20, 20)
    rgb = preset("imagenet", size=(16, 16))(image)
    np.testing.assert_array_equal(preset("imagenet", size=(16, 16), color="BGR")(image), rgb[::-1])


def test_bgr_leaves_a_mean_of_the_users_own_alone() -> None:
    made = preset("imagenet", size=(1, 1), color="BGR", mean=(1, 2, 3), std=(1, 1, 1), scale=1)
    assert made(Image.new("RGB", (1, 1), (10, 20, 30))).ravel().tolist() == [29, 18, 7]


def test_imagenet_is_resize_256_and_centre_crop_224() -> None:
    made = preset("imagenet", size=(224, 224))
    assert (made.resize, made.resize_to, made.crop) == ("shorter", 256, "center")
    image = Image.effect_noise((300, 410), 80).convert("RGB")
    # As torchvision: the longer side is int(256 * 410 / 300) = 349, the crop begins at round((349 - 224) / 2).
    resized = image.resize((256, 349), Image.Resampling.BILINEAR).crop((16, 62, 240, 286))
    expected = (pixels(resized) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(made(image), expected.transpose(2, 0, 1), atol=1e-5)


def test_a_letterbox_keeps_the_aspect_ratio_and_fills_with_114() -> None:
    array = preset("yolo-letterbox", size=(40, 60))(Image.new("RGB", (100, 50), (255, 255, 255)))
    levels = np.rint(array * 255)
    assert (levels[:, :5] == 114).all()
    assert (levels[:, 5:35] == 255).all()
    assert (levels[:, 35:] == 114).all()


def test_shorter_without_a_length_just_covers_the_size() -> None:
    made = Preprocess((20, 30), resize="shorter")
    assert made(Image.new("RGB", (300, 300))).shape == (3, 20, 30)
    assert made(Image.new("RGB", (10, 500))).shape == (3, 20, 30)
    assert made(Image.new("RGB", (500, 10))).shape == (3, 20, 30)


def test_nothing_is_resized_where_nothing_needs_to_be() -> None:
    for height, width, top, left in [(10, 12, 3, 3), (4, 6, 0, 0), (7, 11, 2, 2)]:  # halves go to even numbers
        array = Preprocess((4, 6), resize="none")(gradient(height, width))
        np.testing.assert_array_equal(array[:2], np.mgrid[top : top + 4, left : left + 6])


def test_grey_goes_to_every_channel_and_colour_to_luminance() -> None:
    to_rgb = Preprocess((1, 1))(Image.new("L", (1, 1), 77))
    to_grey = Preprocess((1, 1), color="L")(Image.new("RGB", (1, 1), (255, 0, 0)))
    assert to_rgb.ravel().tolist() == [77, 77, 77]
    assert to_grey.ravel().tolist() == [76]  # 0.299 of 255


def test_to_dict_survives_json_and_makes_the_same_again() -> None:
    made = preset("imagenet", size=(224, 192), color="BGR", interpolation="lanczos")
    assert Preprocess(**json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "imagnet"}, "imagenet, torchvision-<size>"),
        ({"name": "torchvision-<size>"}, "unknown preset"),
        ({"name": "torchvision-x"}, "unknown preset"),
        ({"name": "torchvision-16"}, "less than the model's size"),
        ({"name": "raw", "colour": "RGB"}, "unknown knob colour; there are color, crop"),
        ({"name": "raw", "channels": 4}, "feed arrays"),
        ({"name": "raw", "channels": 1, "color": "RGB"}, "does not fit"),
        ({"name": "raw", "color": "L"}, "does not fit"),
        ({"name": "raw", "color": "XYZ"}, "RGB, BGR, L"),
        ({"name": "raw", "layout": "NCHW"}, "CHW, HWC"),
        ({"name": "raw", "resize": "crop"}, "shorter, stretch, letterbox, none"),
        ({"name": "raw", "mean": (1, 2)}, "takes 1 or 3"),
        ({"name": "raw", "std": (0,)}, "not zero"),
        ({"name": "raw", "scale": float("nan")}, "finite"),
        ({"name": "raw", "resize_to": 40}, "resize='shorter'"),
        ({"name": "raw", "size": (0, 5)}, "height, width"),
        ({"name": "raw", "pad_value": 256}, "0..255"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preset(**{"size": (32, 32), **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("resize", ["none", "shorter"])
def test_an_image_smaller_than_the_crop_is_refused_with_both_sizes(resize: str) -> None:
    knobs = {"resize_to": 16} if resize == "shorter" else {}
    made = Preprocess((20, 20), resize=resize, **knobs)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"16x16.*20x20"):
        made(Image.new("RGB", (16, 16)))


def test_without_crop_the_size_must_be_right_already() -> None:
    with pytest.raises(DataError, match=r"30x20.*20x20"):
        Preprocess((20, 20), resize="none", crop="none")(Image.new("RGB", (30, 20)))


def test_undo_refuses_an_array_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2, 2\)"):
        preset("raw", size=(2, 2)).undo(np.zeros((2, 2, 3), np.float32))


def test_the_presets_are_listed_under_their_names() -> None:
    ours = ["imagenet", "torchvision-<size>", "yolo-letterbox", "0-1", "-1-1", "raw"]
    assert list(PRESETS) == [*ours, "V1", "V1MS", "V2"]


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("V1", 224, {"resize": "shorter", "resize_to": 256, "interpolation": "bicubic", "scale": 1 / 255,
                     "mean": (0.0,)}),
        ("V1MS", 224, {"resize": "shorter", "resize_to": 256, "interpolation": "bicubic",
                       "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}),
        ("V2", 224, {"resize": "shorter", "resize_to": 256, "scale": 1 / 128, "mean": (1.0,)}),
        ("V2", 384, {"resize": "stretch", "resize_to": None, "scale": 1 / 128, "mean": (1.0,)}),
    ],
)  # fmt: skip
def test_the_preprocessors_of_nvidias_sample_are_presets(name: str, size: int, expected: dict[str, Any]) -> None:
    made = preset(name, size=(size, size))
    assert {field: getattr(made, field) for field in expected} == expected
    assert preset(name, size=(size, size), scale=2.0).scale == 2.0


@pytest.mark.parametrize("name", ["V1", "V1MS", "V2"])
def test_they_crop_as_the_sample_does_but_for_rounding(name: str) -> None:
    """A centre crop of size / (size + 32) of the shorter side: the middle of a ramp keeps its value and its slope."""
    made = preset(name, size=(96, 96))
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    seen = made.undo(made(Image.fromarray(np.ascontiguousarray(ramp))))[48, :, 0].astype(int)
    assert seen[0] == pytest.approx(32, abs=2)
    assert seen[-1] == pytest.approx(223, abs=2)


# --- files

BLUE = (10, 20, 200)

COLOURED: dict[str, Callable[[], tuple[Image.Image, str]]] = {
    "RGB": lambda: (Image.new("RGB", (6, 4), BLUE), "png"),
    "RGBA": lambda: (Image.new("RGBA", (6, 4), (*BLUE, 0)), "png"),
    "P": lambda: (Image.new("RGB", (6, 4), BLUE).convert("P", palette=Image.Palette.ADAPTIVE), "png"),
    "gif": lambda: (Image.new("RGB", (6, 4), BLUE).convert("P", palette=Image.Palette.ADAPTIVE), "gif"),
    "bmp": lambda: (Image.new("RGB", (6, 4), BLUE), "bmp"),
    "webp": lambda: (Image.new("RGB", (6, 4), BLUE), "webp"),
    "tiff": lambda: (Image.new("RGB", (6, 4), BLUE), "tiff"),
    "ppm": lambda: (Image.new("RGB", (6, 4), BLUE), "ppm"),
    "CMYK": lambda: (Image.new("CMYK", (6, 4), (245, 235, 55, 0)), "jpg"),
    "CMYK tiff": lambda: (Image.new("CMYK", (6, 4), (245, 235, 55, 0)), "tiff"),
    "YCbCr": lambda: (Image.new("RGB", (6, 4), BLUE).convert("YCbCr"), "jpg"),
}


@pytest.mark.parametrize("case", COLOURED)
def test_colours_survive_every_mode(case: str, tmp_path: Path) -> None:
    image, extension = COLOURED[case]()
    path = tmp_path / f"x.{extension}"
    image.save(path)
    decoded = decode(path)
    assert (decoded.mode, decoded.size) == ("RGB", (6, 4))
    tolerance = 4 if extension in ("jpg", "webp") else 0
    np.testing.assert_allclose(pixels(decoded).reshape(-1, 3), [BLUE] * 24, atol=tolerance)


@pytest.mark.parametrize(("mode", "value"), [("1", 1), ("L", 255), ("LA", (255, 0))])
def test_grey_stays_grey(mode: str, value: object, tmp_path: Path) -> None:
    Image.new(mode, (3, 2), value).save(tmp_path / "x.png")  # type: ignore[arg-type]
    decoded = decode(tmp_path / "x.png")
    assert decoded.mode == "L"
    assert (pixels(decoded) == 255).all()


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 300, 32768, 65535]], np.uint16)
    for name in ("x.png", "x.tiff", "x.pgm"):
        if name == "x.pgm":  # which Pillow 10 does not write
            (tmp_path / name).write_bytes(b"P5 5 1 65535\n" + values.astype(">u2").tobytes())
        else:
            Image.fromarray(values).save(tmp_path / name)
        decoded = decode(tmp_path / name)
        np.testing.assert_allclose(pixels(decoded), values / 257, rtol=1e-5)
        made = Preprocess((1, 5), resize="none", scale=1 / 255)
        np.testing.assert_allclose(made(decoded)[2, 0], values[0] / 65535, rtol=1e-5)


def test_dark_sixteen_bit_pictures_stay_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 257, np.uint16)).save(tmp_path / "x.png")
    assert (Preprocess((2, 2))(decode(tmp_path / "x.png")) == 1).all()


@pytest.mark.parametrize(("factor", "top"), [(255, 1.0), (1, 200.0)])
def test_floats_are_taken_as_0_to_1_or_0_to_255(factor: float, top: float, tmp_path: Path) -> None:
    values = np.array([[0, top / 2, top]], np.float32)
    Image.fromarray(values).save(tmp_path / "x.tiff")
    np.testing.assert_allclose(pixels(decode(tmp_path / "x.tiff")), values * factor)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 70000]], np.int32),
        np.array([[-5, 100]], np.int32),
        np.array([[0, 1000]], np.float32),
        np.array([[-0.5, 1]], np.float32),
        np.array([[0, np.nan]], np.float32),
    ],
    ids=["int too large", "int negative", "float too large", "float negative", "nan"],
)
def test_grey_levels_without_a_known_white_are_refused(values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff: grey values .*; convert the file"):
        decode(tmp_path / "x.tiff")


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "RGBX", "PA", "LAB", "HSV", "YCbCr", "La", "LA", "1"])
def test_pictures_from_memory_may_have_any_mode(mode: str) -> None:
    array = Preprocess((2, 2))(Image.new(mode, (2, 2)))
    assert array.shape == (3, 2, 2)
    assert len(np.unique(array[0])) == 1


@pytest.mark.parametrize("transparency", [0, bytes(range(256))], ids=["one entry", "every entry"])
def test_a_palette_with_transparency_keeps_its_colours(transparency: object, tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4), BLUE).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "x.png", transparency=transparency)
    assert pixels(decode(tmp_path / "x.png")).reshape(-1, 3).tolist() == [[*BLUE]] * 24


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("extension", ["avif", "heic"])
def test_pictures_of_telephones_are_read_upright(orientation: int, extension: str, tmp_path: Path) -> None:
    if extension == "heic":
        pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: pip install pillow-heif")
    if f".{extension}" not in image_extensions():
        pytest.skip("Pillow was built without AVIF, or is older than 11.3")
    upright = np.asarray(gradient(48, 64))
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{extension}"
    Image.fromarray(np.ascontiguousarray(np.rot90(upright, turns))).save(path, exif=exif.tobytes(), quality=100)
    decoded = decode(path)
    assert (decoded.mode, decoded.size) == ("RGB", (64, 48))
    np.testing.assert_allclose(np.asarray(decoded, np.int16), upright, atol=12)
    path.rename(tmp_path / "x")
    assert is_image(tmp_path / "x")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "webp", "tiff"])
def test_exif_orientation_is_applied(orientation: int, extension: str, tmp_path: Path) -> None:
    upright = gradient(4, 6)
    undone = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](np.asarray(upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{extension}"
    Image.fromarray(np.ascontiguousarray(undone)).save(path, exif=exif, lossless=True)
    np.testing.assert_array_equal(np.asarray(decode(path)), np.asarray(upright))


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)


def test_content_counts_and_not_the_extension(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), BLUE).save(tmp_path / "x.jpg", "PNG")
    assert decode(tmp_path / "x.jpg").getpixel((0, 0)) == BLUE


def test_a_truncated_image_is_refused_by_name(tmp_path: Path) -> None:
    for extension in ("png", "jpg", "webp", "bmp", "tiff", "gif"):
        path = tmp_path / f"half.{extension}"
        Image.effect_noise((64, 64), 90).convert("RGB").save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=rf"half\.{extension}: .*; replace or remove it"):
            decode(path)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(40), b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png: "):
        decode(tmp_path / "x.png")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: cannot be decoded"):
        decode(tmp_path / "gone.png")


@pytest.mark.parametrize("limit", [99, 49], ids=["warning in Pillow", "error in Pillow"])
def test_a_decompression_bomb_is_refused(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"x\.png: .*limit of \d+"):
        decode(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(tmp_path / "x.png").size == (10, 10)


def test_postscript_is_never_run(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.eps")
    (tmp_path / "y.png").write_bytes((tmp_path / "x.eps").read_bytes())
    assert not is_image(tmp_path / "x.eps")
    with pytest.raises(DataError, match="not a picture"):
        decode(tmp_path / "y.png")


def test_pillow_warnings_stay_inside(tmp_path: Path) -> None:
    # A broken EXIF block: Pillow warns of it and goes on.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0"
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", exif=exif)
    with warnings.catch_warnings(record=True) as pillows:
        warnings.simplefilter("always")
        Image.open(tmp_path / "x.jpg").getexif()
    assert pillows, "Pillow no longer warns of this: find another file"
    for action in ("always", "error"):
        with warnings.catch_warnings(record=True) as ours:
            warnings.simplefilter(action)
            decode(tmp_path / "x.jpg")
            decode(tmp_path / "x.jpg")
        assert not ours


def test_images_are_known_by_extension_or_without_one_by_content(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "plain", "PNG")
    (tmp_path / "README").write_text("BM, GIF and other words")
    assert is_image(tmp_path / "plain")
    assert not is_image(tmp_path / "README")
    assert is_image(tmp_path / "gone.JPEG")
    assert not is_image(tmp_path / "x.txt")
    assert {".jpg", ".png", ".tif", ".webp"} <= image_extensions()
    assert not {".pdf", ".eps", ".h5", ".mpg"} & image_extensions()

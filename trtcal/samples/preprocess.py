"""Picture files become arrays: decode, resize, crop, normalise, lay out; and back again to look at them."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trtcal.errors import DataError

Resize = Literal["shorter", "stretch", "letterbox", "none"]
Crop = Literal["center", "none"]
Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos", "box"]
Color = Literal["RGB", "BGR", "L"]
Layout = Literal["CHW", "HWC"]

CHOICES: dict[str, tuple[str, ...]] = {
    "resize": get_args(Resize),
    "crop": get_args(Crop),
    "interpolation": get_args(Interpolation),
    "color": get_args(Color),
    "layout": get_args(Layout),
}


@dataclass(frozen=True)
class Preprocess:
    """Picture -> float32 array ``(C, H, W)`` or ``(H, W, C)``: ``(pixels * scale - mean) / std``.

    Pixels are 0..255 throughout, whatever the file's bit depth. Raises ValueError for knobs that
    contradict each other.
    """

    size: tuple[int, int]  # (height, width) of the result
    resize: Resize = "stretch"  # "letterbox" keeps the aspect ratio and fills the rest with pad_value
    resize_to: int | None = None  # length of the shorter side; None: as little as covers size
    crop: Crop = "center"  # "none": whatever resize leaves must have the size already
    interpolation: Interpolation = "bilinear"  # Pillow's filters, which smooth when they shrink
    color: Color = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)  # one for all channels, or one each in the order they are fed
    std: tuple[float, ...] = (1.0,)
    layout: Layout = "CHW"
    pad_value: int = 114  # a pixel, 0..255

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):  # JSON and command lines bring lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size is (height, width), both at least 1; got {self.size}")
        if self.resize_to is not None and (self.resize != "shorter" or self.resize_to < 1):
            raise ValueError(f"resize_to={self.resize_to} needs resize='shorter' and a length of at least 1")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} values; {self.color} takes 1 or {self.channels}"
                )
        if not np.isfinite((self.scale, *self.mean, *self.std)).all() or 0 in (self.scale, *self.std):
            raise ValueError("scale, mean and std must be finite, and scale and std not zero")
        if not 0 <= self.pad_value <= 255:
            raise ValueError(f"pad_value is a pixel, 0..255; got {self.pad_value}")

    @property
    def channels(self) -> int:
        """Channels of the result: 1 for grey, otherwise 3."""
        return 1 if self.color == "L" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the result."""
        height, width = self.size
        return (self.channels, height, width) if self.layout == "CHW" else (height, width, self.channels)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Picture -> float32 array of ``shape``.

        Raises DataError where the picture, after resizing, is smaller than the crop or larger than Pillow's limit.
        """
        if image.mode != "F":  # as decode() leaves it, an F picture has pixels already
            image = to_pixels(image)
        if self.color == "L" and image.mode == "RGB":
            image = image.convert("L")
        elif self.color != "L" and image.mode == "L":
            image = image.convert("RGB")
        pixels = np.asarray(self._fit(image), dtype=np.float32)
        if pixels.ndim == 2:
            pixels = np.broadcast_to(pixels[..., None], (*pixels.shape, self.channels))
        if self.color == "BGR":
            pixels = pixels[..., ::-1]
        array = pixels * np.float32(self.scale)
        array -= np.asarray(self.mean, np.float32)
        array /= np.asarray(self.std, np.float32)
        return np.ascontiguousarray(array.transpose(2, 0, 1) if self.layout == "CHW" else array)

    def undo(self, array: np.ndarray) -> np.ndarray:
        """Array of ``shape`` -> the picture the network sees, (H, W, 3) uint8, clipped to 0..255.

        Channels stay in the order they are fed: shown as RGB, a photograph fed as BGR has blue and red exchanged.
        """
        if array.shape != self.shape:
            raise ValueError(f"undo takes an array of shape {self.shape}, got {array.shape}")
        pixels = array.transpose(1, 2, 0) if self.layout == "CHW" else array
        pixels = (pixels.astype(np.float64) * self.std + self.mean) / self.scale
        rounded = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(rounded, (*self.size, 3)))

    def to_dict(self) -> dict[str, Any]:
        """Every knob as JSON-able values; ``Preprocess(**d)`` makes it again."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def _fit(self, image: Image.Image) -> Image.Image:
        """Picture -> picture of ``size``."""
        height, width = self.size
        if self.resize == "stretch":
            return self._resized(image, width, height)
        if self.resize == "letterbox":
            ratio = min(height / image.height, width / image.width)
            # Rounding, and the smaller half of an odd border on top and left, as in Ultralytics' LetterBox.
            inner = self._resized(image, max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
            _refuse_size(width, height, image)
            fill = (self.pad_value,) * 3 if image.mode == "RGB" else self.pad_value
            canvas = Image.new(image.mode, (width, height), fill)
            canvas.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
            return canvas
        if self.resize == "shorter":
            image = self._resized(image, *self._shorter(image.width, image.height))
        if image.size == (width, height):
            return image
        if self.crop == "none" or image.width < width or image.height < height:
            found = f"{image.width}x{image.height} (width x height)"
            found += " after resizing" if self.resize == "shorter" else ""
            wanted = "a size of" if self.crop == "none" else "a crop of"
            raise DataError(
                f"the image is {found}, the model needs {wanted} {width}x{height}; "
                "use resize 'shorter' or 'stretch' with a large enough size, or leave the image out"
            )
        # round(), as in torchvision's center_crop, so that both see the same pixels.
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def _shorter(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) -> both scaled by ``resize_to``, the longer rounded down as in torchvision."""
        if self.resize_to is None:
            if self.size[0] * width >= self.size[1] * height:
                return max(self.size[1], self.size[0] * width // height), self.size[0]
            return self.size[1], max(self.size[0], self.size[1] * height // width)
        if width <= height:
            return self.resize_to, self.resize_to * height // width
        return self.resize_to * width // height, self.resize_to

    def _resized(self, image: Image.Image, width: int, height: int) -> Image.Image:
        if image.size == (width, height):
            return image
        _refuse_size(width, height, image)  # a small file can hold a line of pixels, which scales up to any size
        return image.resize((width, height), Image.Resampling[self.interpolation.upper()])


# --- presets ---------------------------------------------------------------------------------------------

# Of ImageNet's training pictures scaled to 0..1, as torchvision's models expect them (RGB).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_TORCHVISION = "torchvision-<size>"

Size = tuple[int, int]


def _normalised(size: Size, channels: int, layout: Layout, resize_to: int | None) -> Preprocess:
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    return Preprocess(
        size,
        resize="shorter",
        resize_to=resize_to,
        color=_color(channels),
        scale=1 / 255,
        mean=mean if channels == 3 else (sum(mean) / 3,),
        std=std if channels == 3 else (sum(std) / 3,),
        layout=layout,
    )


def _color(channels: int) -> Color:
    if channels not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, the model takes {channels}: feed arrays instead")
    return "L" if channels == 1 else "RGB"


def _imagenet(size: Size, channels: int, layout: Layout) -> Preprocess:
    return _normalised(size, channels, layout, round(max(size) * 256 / 224))


def _torchvision(size: Size, channels: int, layout: Layout) -> Preprocess:
    return _normalised(size, channels, layout, None)


def _yolo_letterbox(size: Size, channels: int, layout: Layout) -> Preprocess:
    return Preprocess(size, resize="letterbox", color=_color(channels), scale=1 / 255, layout=layout)


def _zero_to_one(size: Size, channels: int, layout: Layout) -> Preprocess:
    return Preprocess(size, color=_color(channels), scale=1 / 255, layout=layout)


def _minus_one_to_one(size: Size, channels: int, layout: Layout) -> Preprocess:
    return Preprocess(size, color=_color(channels), scale=1 / 127.5, mean=(1.0,), layout=layout)


def _raw(size: Size, channels: int, layout: Layout) -> Preprocess:
    return Preprocess(size, color=_color(channels), layout=layout)


# The preprocessors of NVIDIA's EfficientNet sample, by the names that its --calib_preprocessor knows. The sample crops
# first and resizes then; here it is the other way round, which differs in rounding only.
# Source: samples/python/efficientnet/image_batcher.py of NVIDIA/TensorRT.
_SPARE = 32  # pixels that its crop leaves at the edges
_WHOLE_FROM = 320  # from this size on, V2 takes the whole picture


def _v1(size: Size, channels: int, layout: Layout) -> Preprocess:
    made = _zero_to_one(size, channels, layout)
    return replace(made, resize="shorter", resize_to=size[0] + _SPARE, interpolation="bicubic")


def _v1_mean_subtraction(size: Size, channels: int, layout: Layout) -> Preprocess:
    return replace(_normalised(size, channels, layout, size[0] + _SPARE), interpolation="bicubic")


def _v2(size: Size, channels: int, layout: Layout) -> Preprocess:
    made = replace(_minus_one_to_one(size, channels, layout), scale=1 / 128)
    return made if size[0] >= _WHOLE_FROM else replace(made, resize="shorter", resize_to=size[0] + _SPARE)


PRESETS: dict[str, Callable[[Size, int, Layout], Preprocess]] = {
    "imagenet": _imagenet,
    _TORCHVISION: _torchvision,
    "yolo-letterbox": _yolo_letterbox,
    "0-1": _zero_to_one,
    "-1-1": _minus_one_to_one,
    "raw": _raw,
    "V1": _v1,
    "V1MS": _v1_mean_subtraction,
    "V2": _v2,
}


def preset(name: str, *, size: tuple[int, int], channels: int = 3, layout: Layout = "CHW", **knobs: Any) -> Preprocess:
    """Name of a preset, (height, width) of the model's input -> Preprocess; ``knobs`` replace its fields.

    - ``imagenet``: shorter side to 256/224 of the size, centre crop, ImageNet's mean and std
    - ``torchvision-<size>``: the same with the shorter side given, for instance ``torchvision-232``
    - ``yolo-letterbox``: aspect ratio kept, rest filled with 114, 0..1
    - ``0-1``, ``-1-1``, ``raw`` (0..255): stretched to the size
    - ``V1`` (0..1; the model itself normalises), ``V1MS`` (ImageNet's mean and std): centre crop with 32 pixels to
      spare, bicubic; ``V2`` ((x - 128) / 128): the same below 320 pixels, bilinear, else stretched; as in NVIDIA's
      EfficientNet sample

    One channel means grey, with the average of the three means and stds. ``color="BGR"`` turns the
    preset's mean and std round with the channels. Raises ValueError for unknown names and knobs.
    """
    numbered = re.fullmatch(r"torchvision-(\d+)", name)
    if numbered is None and (name not in PRESETS or name == _TORCHVISION):
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    valid = {field.name for field in fields(Preprocess)} - {"size", "layout"}
    if unknown := sorted(knobs.keys() - valid):
        raise ValueError(f"unknown knob {', '.join(unknown)}; there are {', '.join(sorted(valid))}")
    made = PRESETS[_TORCHVISION if numbered else name](size, channels, layout)
    if numbered:
        made = replace(made, resize_to=int(numbered[1]))
    color = knobs.get("color", made.color)
    if (color == "L") != (channels == 1):
        raise ValueError(f"color {color!r} does not fit a model of {channels} channels")
    if color == "BGR":
        made = replace(made, mean=made.mean[::-1], std=made.std[::-1])
    if knobs.get("resize", "shorter") != "shorter":
        made = replace(made, resize_to=None)
    made = replace(made, **knobs)
    if made.resize_to is not None and made.resize_to < min(size):
        raise ValueError(f"preset {name!r}: shorter side {made.resize_to} is less than the model's size {size}")
    return made


# --- files -----------------------------------------------------------------------------------------------

# Containers without pixels of their own, and formats Pillow hands to another program or system library:
# a data set is no place to run PostScript from.
_NOT_PIXELS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_PILLOW = r"PIL\."


@cache
def _formats() -> tuple[str, ...]:
    Image.init()  # Pillow reads AVIF itself from 11.3 on, where it was built with it
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        if ".avif" not in Image.registered_extensions() and hasattr(pillow_heif, "register_avif_opener"):
            pillow_heif.register_avif_opener()
    return tuple(name for name in Image.ID if name not in _NOT_PIXELS)


@cache
def image_extensions() -> frozenset[str]:
    """Nothing -> the file name extensions of pictures that ``decode`` reads, in lower case with their dot."""
    formats = _formats()
    return frozenset(ext for ext, name in Image.registered_extensions().items() if name in formats)


@cache
def _known_by_content() -> tuple[str, ...]:
    return tuple(set(_formats()) & {"PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF"})


def is_image(path: str | os.PathLike[str]) -> bool:
    """Path -> whether it is a picture: by its extension, or by its content where it has none."""
    extension = os.path.splitext(path)[1].lower()
    if extension:
        return extension in image_extensions()
    _ignore_pillow_warnings()
    try:
        with open(path, "rb") as stream, Image.open(stream, formats=_known_by_content()):
            return True
    except Exception:  # anything at all may be in a file without an extension
        return False


def decode(path: str | os.PathLike[str], content: bytes | None = None) -> Image.Image:
    """Picture file -> upright picture of mode RGB or L (8 bits), or F (grey, fractions kept); pixels 0..255.

    ``content`` is what the file holds, where that is at hand. EXIF orientation is applied, alpha is dropped (as
    torchvision's loader does), the first frame of an animation is taken. Raises DataError, naming the file, for files
    that are damaged, no picture, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    _ignore_pillow_warnings()
    try:
        # Opened here: Pillow does not close a file whose first bytes it cannot read.
        with (
            open(path, "rb") if content is None else io.BytesIO(content) as stream,
            Image.open(stream, formats=_formats()) as image,
        ):
            _refuse_bomb(image)
            image.load()
            if image.format != "TIFF":  # load() turns these upright, and Pillow 10.0 leaves the tag behind
                ImageOps.exif_transpose(image, in_place=True)
            return to_pixels(image)
    except DataError as error:
        raise DataError(f"{os.fspath(path)}: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{os.fspath(path)}: not a picture that Pillow can read; replace or remove it") from error
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        raise DataError(f"{os.fspath(path)}: cannot be decoded ({error}); replace or remove it") from error


def from_pixels(array: np.ndarray) -> Image.Image:
    """(H, W) or (H, W, 1, 3 or 4) uint8 -> picture; DataError for anything else."""
    pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise DataError(f"{array.dtype} {array.shape}, expected pixels: uint8 (H, W) or (H, W, C), C one of 1, 3 and 4")
    return to_pixels(Image.fromarray(pixels))


def to_pixels(image: Image.Image) -> Image.Image:
    """Picture of any mode -> RGB, L or F with pixels 0..255, alpha dropped.

    16-bit grey is scaled by 255/65535, floats in 0..1 by 255; floats up to 255 stay. Raises DataError
    for integers beyond 16 bits and other floats: nobody can tell what their white is.
    """
    mode = image.mode
    if mode in ("RGB", "L"):
        return image
    if mode.startswith("I") or mode == "F":
        # Pillow's own convert() clips these at 255 instead of scaling them.
        values = np.asarray(image, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        white = 65535.0 if mode != "F" else 1.0 if high <= 1 else 255.0
        if not 0 <= low <= high <= white:
            known = "floats in 0..1 or 0..255" if mode == "F" else "integers in 0..65535"
            raise DataError(f"grey values {low:g}..{high:g}, expected {known}; convert the file, or feed arrays")
        return Image.fromarray(values * np.float32(255 / white))
    if mode in ("1", "LA", "La"):
        return (image.convert("LA") if mode == "La" else image).convert("L")
    return (image.convert("RGBA") if mode == "RGBa" else image).convert("RGB")


def _refuse_bomb(image: Image.Image) -> None:
    # Pillow only warns until twice its limit.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise DataError(
            f"{image.width}x{image.height} pixels are more than Pillow's limit of {limit}; "
            "shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        )


def _refuse_size(width: int, height: int, image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise DataError(
            f"the image is {image.width}x{image.height} (width x height) and would become {width}x{height}, more than "
            f"Pillow's limit of {limit} pixels; leave it out, or use resize 'stretch' or 'letterbox'"
        )


def _ignore_pillow_warnings() -> None:
    # Pillow warns of damaged metadata, which nobody can act upon here. warnings.catch_warnings() is not
    # thread-safe and files are decoded in threads, so one narrow filter is put in front and stays there.
    newest = warnings.filters[0] if warnings.filters else None
    if newest is None or newest[0] != "ignore" or getattr(newest[3], "pattern", None) != _PILLOW:
        warnings.filterwarnings("ignore", module=_PILLOW)

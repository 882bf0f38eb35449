"""A look at what the network really sees: a sheet of pictures, and the numbers behind them."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trtcal.errors import DataError
from trtcal.files.atomic import write_bytes
from trtcal.samples.batches import Batch, Batches

_TILE = 160  # pixels; pictures are scaled to fit
_CAPTION = 14
_GAP = 4


@dataclass(frozen=True)
class InputStatistics:
    """What an input was fed, over the samples on a contact sheet; one number per channel."""

    input_name: str
    samples: int
    minimum: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    maximum: tuple[float, ...]
    zeros: float  # share of all values that are exactly 0
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"input {self.input_name!r}, {self.samples} samples, {self.zeros:.1%} zeros"]
        lines.append(f"{'channel':>7} {'min':>10} {'mean':>10} {'std':>10} {'max':>10}")
        columns = zip(self.minimum, self.mean, self.std, self.maximum, strict=True)
        lines += [f"{channel:>7} " + " ".join(f"{v:>10.4g}" for v in row) for channel, row in enumerate(columns)]
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


def contact_sheet(
    batches: Iterable[Mapping[str, np.ndarray]],
    path: str | os.PathLike[str],
    *,
    undo: Callable[[np.ndarray], np.ndarray] | None,
    input_name: str | None = None,
    count: int = 16,
) -> InputStatistics:
    """Batches -> PNG file of ``count`` samples as the network sees them, and their statistics.

    Of a `Batches` these are spread over its samples and their classes, of any other iterable they are the first.

    ``undo`` turns the array of one sample into an (H, W, 3) uint8 picture, as ``Preprocess.undo``
    does. Without it each picture is stretched from its own minimum to its own maximum; where there
    are neither 1 nor 3 channels, the first is shown. ``input_name`` is needed where several inputs
    look like pictures. Raises DataError where none does, OutputError where the file cannot be written.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if isinstance(batches, Batches):
        batches = batches.part(count)
    named = list(islice(_rows(batches, input_name), count))
    if not named:
        raise DataError("no samples to show; give the contact sheet at least one batch")
    names, arrays, name = [row[0] for row in named], [_channels_last(row[1]) for row in named], named[0][2]
    pictures = [undo(row[1]) if undo else _stretched(array) for row, array in zip(named, arrays, strict=True)]
    write_bytes(path, _png(_sheet(pictures, names)))
    flat = np.concatenate([array.reshape(-1, array.shape[2]) for array in arrays]).astype(np.float64)
    return InputStatistics(
        input_name=name,
        samples=len(names),
        minimum=tuple(flat.min(axis=0).tolist()),
        mean=tuple(flat.mean(axis=0).tolist()),
        std=tuple(flat.std(axis=0).tolist()),
        maximum=tuple(flat.max(axis=0).tolist()),
        zeros=float((flat == 0).mean()),
        warnings=tuple(_suspicions(names, arrays, pictures if undo else None)),
    )


def thumbnails(
    batches: Iterable[Mapping[str, np.ndarray]],
    samples: Iterable[str],
    *,
    undo: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, str]:
    """Re-iterable of batches and names of samples -> ``data:`` URL of a PNG by name, as the network sees them.

    ``undo`` is that of :func:`contact_sheet`. Reads on only until all are found; names that are not there are
    left out. Nothing where not exactly one input looks like a picture.
    """
    wanted = set(samples)
    first = next(iter(batches), None)
    if first is None or not wanted:
        return {}
    pictures = [name for name, array in first.items() if array.ndim in (3, 4)]
    found: dict[str, str] = {}
    if len(pictures) != 1:
        return found
    for name, array, _ in _rows(batches, pictures[0]):
        if name in wanted and name not in found:
            tile = _tile(undo(array) if undo else _stretched(_channels_last(array)))
            found[name] = f"data:image/png;base64,{base64.b64encode(_png(tile)).decode()}"
        if len(found) == len(wanted):
            break
    return found


def _rows(batches: Iterable[Mapping[str, np.ndarray]], input_name: str | None) -> Iterable[tuple[str, np.ndarray, str]]:
    """Batches -> name, array and input of each sample, repeats left out."""
    seen = 0
    for feed in batches:
        batch = feed if isinstance(feed, Batch) else Batch(feed)
        key = _picture_input(batch) if input_name is None else input_name
        if key not in batch:
            raise DataError(f"no input {key!r}; the batches have {', '.join(map(repr, batch))}")
        if batch[key].ndim not in (3, 4):
            raise DataError(
                f"input {key!r}: samples of shape {batch[key].shape[1:]} are no pictures, expected "
                "(height, width) or these with channels; name another input"
            )
        names = batch.samples if batch is feed else [str(seen + row) for row in range(len(batch.samples))]
        for row in range(batch.valid):
            yield names[row], batch[key][row], key
        seen += len(names)


def _picture_input(batch: Batch) -> str:
    names = [name for name, array in batch.items() if array.ndim in (3, 4)] if len(batch) > 1 else [*batch]
    if len(names) != 1:
        found = ", ".join(f"{name!r} {array.shape}" for name, array in batch.items())
        raise DataError(f"{len(names)} inputs look like pictures ({found}); name the one to show")
    return names[0]


def _channels_last(array: np.ndarray) -> np.ndarray:
    """(H, W), (C, H, W) or (H, W, C) -> (H, W, C); the axis of 1, 3 or 4 is the channels, else the first."""
    if array.ndim == 2:
        return array[..., None]
    last = array.shape[2] in (1, 3, 4) and array.shape[0] not in (1, 3, 4)
    return array if last else array.transpose(1, 2, 0)


def _stretched(array: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (H, W, 3) uint8, from its minimum to its maximum."""
    shown = (array if array.shape[2] in (1, 3) else array[..., :1]).astype(np.float64)
    shown -= shown.min()
    levels = np.rint(shown * (255 / (shown.max() or 1))).astype(np.uint8)
    return np.broadcast_to(levels, (*levels.shape[:2], 3))


def _suspicions(names: list[str], arrays: list[np.ndarray], undone: list[np.ndarray] | None) -> Iterable[str]:
    """Samples, and the pictures that an undo made of them -> what looks wrong."""
    constant = [name for name, array in zip(names, arrays, strict=True) if array.min() == array.max()]
    if constant:
        yield f"{len(constant)} of {len(names)} samples are one constant value, the first is {constant[0]!r}"
    values = np.concatenate([array.mean(axis=2, dtype=np.float64).ravel() for array in arrays])
    spread = f"values {min(a.min() for a in arrays):g}..{max(a.max() for a in arrays):g}"
    if undone is None:
        if arrays[0].dtype.kind == "f" and values.min() >= 0 and values.max() > 32:
            yield f"{spread} look like pixels; most models want them normalised to a few units"
        return
    darkest, brightest = (np.concatenate([f(p, axis=2).ravel() for p in undone]) for f in (np.min, np.max))
    black, white = brightest == 0, darkest == 255
    inside = _spread(values[~(black | white)])
    # Black and white are real, too, but then they are one value. Where values that became black or
    # white spread wider than all others, they lay outside 0..255 and undo could only clip them.
    if max(_spread(values[black]), _spread(values[white])) > inside:
        yield f"{spread} leave 0..255 when the preset is undone; the data are not what it makes"
    elif brightest.max() - darkest.min() < 8 and not constant:
        yield f"{spread} are hardly one grey level when the preset is undone; the data are not what it makes"


def _spread(values: np.ndarray) -> float:
    return float(np.ptp(values)) if values.size else 0.0


def _sheet(pictures: list[np.ndarray], names: list[str]) -> Image.Image:
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    step = (_TILE + _GAP, _TILE + _CAPTION + _GAP)
    sheet = Image.new("RGB", (columns * step[0] + _GAP, rows * step[1] + _GAP), (32, 32, 32))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for place, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        left, top = _GAP + place % columns * step[0], _GAP + place // columns * step[1]
        tile = _tile(picture)
        sheet.paste(tile, (left + (_TILE - tile.width) // 2, top + (_TILE - tile.height) // 2))
        draw.text((left, top + _TILE), _caption(name, font), fill=(230, 230, 230), font=font)
    return sheet


def _tile(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture))
    ratio = _TILE / max(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    # Small pictures are shown pixel by pixel: smoothing would show what the network does not see.
    return image.resize(size, Image.Resampling.NEAREST if ratio > 1 else Image.Resampling.BOX)


def _caption(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Name -> as much of its end as fits under a tile."""
    text = name.encode("ascii", "replace").decode()  # all that Pillow's built-in font is sure to have
    whole = text
    while text and font.getlength(text if text == whole else f"...{text}") > _TILE:
        text = text[1:]
    return text if text == whole else f"...{text}"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()

"""How a model is fed where its file does not tell: axes that somebody chose, inputs that are always the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtcal.errors import DataError, SettingError
from trtcal.files.npy import read_header
from trtcal.model.batch_axis import Axes, Size, fed_values, sizes_of
from trtcal.model.nodes import dtype_of

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, eq=False)
class Feeding:
    """What is known of a model's inputs and outputs beside its file.

    ``axes``: input -> the axis that counts samples, where it was said or found; ``asked`` are those that the user said.
    ``fixed``: input -> what it is always fed. ``outputs``: output -> the axis that counts samples. ``copies``: how many
    of one sample make the batch that is built into the graph. ``resolved``: whether a run has shown that samples may be
    fed so, see `trtcal.passes.sharing`.
    """

    axes: Axes = field(default_factory=dict)
    asked: frozenset[str] = frozenset()
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    outputs: Axes | None = None
    copies: int = 1
    resolved: bool = False


NOTHING_SAID = Feeding()


def asked(model: ModelProto, batch_axes: Sequence[str] = (), inputs: Sequence[str] = ()) -> Feeding:
    """Options ``--batch-axis NAME=AXIS`` and ``--input NAME=VALUE`` -> the feeding they ask for.

    SettingError for what is no such option of this model, DataError for a file that cannot be read.
    """
    values = fed_values(model)
    axes: dict[str, int | None] = {}
    for text, name, value in _pairs("--batch-axis", batch_axes, values):
        sizes = sizes_of(values[name])
        if value.lower() == "none":
            axes[name] = None
        elif value.isdigit() and int(value) < len(sizes):
            axes[name] = int(value)
        else:
            raise SettingError(
                f"{text}: {name} has the axes {_spelt(sizes)}; give the number of the one that counts samples, from 0 "
                f"to {len(sizes) - 1}, or none where a sample is one whole input"
            )
    fixed = {}
    for text, name, value in _pairs("--input", inputs, values):
        dtype = dtype_of(values[name].type.tensor_type.elem_type, name)
        fixed[name] = _constant(text, value, dtype, sizes_of(values[name]))
    both = axes.keys() & fixed.keys()
    if both:
        raise SettingError(f"--batch-axis {min(both)}: what --input fixes is the same for all samples")
    return Feeding(axes, frozenset(axes), fixed)


def _pairs(option: str, texts: Iterable[str], names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Texts NAME=VALUE -> each with its option in front, the name and the value."""
    known, seen = list(names), set()
    for text in texts:
        name, equals, value = text.rpartition("=") if option == "--batch-axis" else text.partition("=")
        if not equals and option == "--batch-axis" and len(known) == 1:
            name = known[0]
        elif not equals or not value:
            raise SettingError(f"{option} {text}: expected NAME=VALUE; the model's inputs are {', '.join(known)}")
        if name not in known:
            raise SettingError(f"{option} {text}: the model has no input {name!r}; it has {', '.join(known)}")
        if name in seen:
            raise SettingError(f"{option} {text}: {name} is given twice")
        seen.add(name)
        yield f"{option} {text}", name, value


def _constant(text: str, value: str, dtype: np.dtype, sizes: Sequence[Size]) -> np.ndarray:
    """A number, or a file that holds an array -> the array of an input of these sizes."""
    if Path(value).suffix.lower() == ".npy":
        given: Any = _read(text, Path(value))
        fits = given.ndim == len(sizes) and all(
            not isinstance(want, int) or want == size for want, size in zip(sizes, given.shape, strict=True)
        )
        if not fits:
            raise DataError(f"{text}: shape {given.shape}, the model takes {_spelt(sizes)}")
    else:
        given = _number(text, value)
        given = np.full([size if isinstance(size, int) else 1 for size in sizes], given)
    if given.dtype.kind not in "biuf":
        raise DataError(f"{text}: dtype {given.dtype}, the model takes {dtype}; convert it to numbers first")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = given.astype(dtype)
    kept = np.isfinite(cast) if dtype.kind == "f" else cast == given
    if not kept.all():
        raise DataError(f"{text}: {given[~kept].flat[0]} is no {dtype}, which the model takes")
    return np.array(cast, order="C")


def _read(text: str, path: Path) -> np.ndarray:
    try:
        with path.open("rb") as stream:
            read_header(stream, path.stat().st_size, str(path))
            stream.seek(0)
            array: np.ndarray = np.load(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{text}: {path} cannot be read: {error}") from error
    return array


def _number(text: str, value: str) -> Any:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    raise SettingError(f"{text}: expected a number, true, false or a file that ends in .npy")


def _spelt(sizes: Sequence[Size]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in sizes)})"

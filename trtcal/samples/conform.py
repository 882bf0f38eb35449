"""Hold a sample against what the model wants to be fed, and say what is wrong in words that help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from trtcal.errors import DataError, NonFiniteError
from trtcal.spec import InputSpec


def conform(feed: Mapping[str, object], inputs: Sequence[InputSpec], sample: str) -> dict[str, np.ndarray]:
    """Input name to array of one sample, no batch axis -> the same, as fresh arrays of the inputs' dtypes.

    Casts change no value, apart from rounding one float to another: float64 becomes float32 unless
    it overflows; bools and integers become any type that holds each of their values (int64 to int32
    or float32); floats never become integers, nor uint8 floats unless the input says ``pixels``.
    Raises DataError for missing or unknown inputs, wrong shapes and refused casts, NonFiniteError for
    inf and nan.
    """
    names = [spec.name for spec in inputs]
    if missing := [name for name in names if name not in feed]:
        raise DataError(
            f"sample {sample!r} lacks {_list(missing)}: it has {_list(feed)}, "
            f"the model's inputs are {_list(names)}; give every one of them, or say what one always is: "
            f"--input {missing[0]}=VALUE"
        )
    if unknown := [name for name in feed if name not in names]:
        raise DataError(
            f"sample {sample!r} has {_list(unknown)}, which the model does not take; "
            f"its inputs are {_list(names)}: rename or leave out"
        )
    return {spec.name: _conform_array(np.asarray(feed[spec.name]), spec, sample) for spec in inputs}


PIXELS = (
    "uint8 for a floating-point input: pixels, as a rule, and most models want them normalised; feed what the model "
    "was trained on, or say that it takes 0 to 255 by --preset raw or astype(np.float32)"
)
"""Why uint8 is refused. A range of 0 to 255 for a model of normalised images is the dearest of silent mistakes."""


def are_pixels(found: np.dtype, wanted: np.dtype) -> bool:
    """Is it uint8, in which pictures come, for a floating-point input? One rule for the CPU and the GPU."""
    return found == np.uint8 and wanted.kind == "f"


def as_dtype(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Array -> the same values in another dtype; DataError with the first value that it does not have."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
        kept = (cast == array) & (cast.astype(array.dtype) == array)
    kept |= (cast != cast) & (array != array)  # nan
    if not kept.all():
        raise DataError(f"{array.dtype} value {array[~kept].flat[0]} is none of {dtype}; convert the data to {dtype}")
    return cast


def fits(shape: Sequence[int], spec: InputSpec) -> bool:
    """Shape of one sample, without batch axis -> whether the input takes it."""
    return len(shape) == len(spec.shape) and all(
        want in (None, size) for size, want in zip(shape, spec.shape, strict=True)
    )


def shape_hint(found: Sequence[int], spec: InputSpec) -> str:
    """Shape that does not fit -> what is probably wrong and what to do."""
    want = spec.shape
    if len(found) == len(want) + 1 and fits(found[1:], spec):
        return "a sample has no batch axis: take it off"
    if len(found) != len(want):
        return f"give samples of rank {len(want)}"
    if len(found) == 3:
        if fits((found[2], found[0], found[1]), spec):
            return "these look like height, width, channels: feed array.transpose(2, 0, 1)"
        if fits((found[1], found[2], found[0]), spec):
            return "these look like channels, height, width: feed array.transpose(1, 2, 0)"
        for axis in (0, 2):
            if want[axis] in (1, 3, 4) and found[axis] != want[axis]:
                return f"the model takes {want[axis]} channels, the array has {found[axis]}"
    return "resize or cut the samples to the model's size"


def axis_hint(shape: Sequence[int], spec: InputSpec) -> str:
    """Shape of a sample that does not fit -> which other axis of the input may count samples; or nothing."""
    sizes = spec.full(spec.count)
    if spec.axis is not None and len(shape) == len(sizes):
        return f"; if a sample is one whole input, say --batch-axis {spec.name}=none"
    fitting = [
        axis
        for axis in range(len(sizes))
        if axis != spec.axis and fits(shape, replace(spec, shape=sizes[:axis] + sizes[axis + 1 :]))
    ]
    if fitting:
        return f"; if axis {fitting[0]} of the input counts samples, say --batch-axis {spec.name}={fitting[0]}"
    return ""


def _conform_array(array: np.ndarray, spec: InputSpec, sample: str) -> np.ndarray:
    where = f"sample {sample!r}, input {spec.name!r}"
    if not fits(array.shape, spec):
        hint = shape_hint(array.shape, spec) + axis_hint(array.shape, spec)
        raise DataError(f"{where}: shape {array.shape}, expected {_shape(spec)}; {hint}")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: dtype {array.dtype}, expected {spec.dtype}; convert it to numbers first")
    if array.dtype.kind == "f":
        _refuse_non_finite(array, where)
        if spec.dtype.kind in "biu":
            raise DataError(f"{where}: {array.dtype} values for an input of {spec.dtype}; round and cast them yourself")
    if are_pixels(array.dtype, spec.dtype) and not spec.pixels:
        raise DataError(f"{where}: {PIXELS}")
    with np.errstate(over="ignore", invalid="ignore"):
        # A plain, fresh array: neither a view into a memory map nor the caller's own.
        cast = np.array(array, dtype=spec.dtype, order="C")
    kept = np.isfinite(cast) if array.dtype.kind == "f" else cast == array
    if not kept.all():
        value = array[~kept].flat[0]
        raise DataError(f"{where}: {array.dtype} value {value} does not fit {spec.dtype}; rescale the data")
    return cast


def _refuse_non_finite(array: np.ndarray, where: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise NonFiniteError(
            f"{where}: {int((~finite).sum())} of {array.size} values are inf or nan, "
            f"the first is {array[index]} at {index}; clean or leave out this sample"
        )


def _shape(spec: InputSpec) -> str:
    sizes = ["?" if size is None else str(size) for size in spec.shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _list(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"

"""The batch that is really calibrated: network and data -> one full shape per input, or an error that says what to do.

TensorRT ignores get_batch_size() for networks with explicit batch, which is all of them today. What counts is the
static shape of each input or, where an axis is dynamic, the OPT shape of the calibration profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrators import versions
from trtcal.errors import DataError, ModelError
from trtcal.spec import InputSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NetworkInput:
    """A network's input as TensorRT sees it; -1 in ``shape`` is a dynamic axis."""

    name: str
    shape: Shape
    dtype: str
    """Name of the numpy dtype that it is fed."""

    @property
    def dynamic(self) -> bool:
        """Whether a profile has to give its shape."""
        return -1 in self.shape


@dataclass(frozen=True)
class Range:
    """MIN, OPT and MAX of one input in an optimization profile."""

    min: Shape
    opt: Shape
    max: Shape

    @classmethod
    def of(cls, value: Any) -> Range:
        """One shape, or three -> range."""
        if isinstance(value, Range):
            return value
        if value and not isinstance(value[0], int):
            low, best, high = (tuple(int(size) for size in shape) for shape in value)
            return cls(low, best, high)
        shape = tuple(int(size) for size in value)
        return cls(shape, shape, shape)


def extremes(
    inputs: Iterable[InputSpec], batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, tuple[Shape, Shape]]:
    """Inputs and batches -> input: the smallest and the largest size of each axis but the first.

    The batches are read only where an input leaves such an axis open. Inputs without any data are left out.
    """
    seen: dict[str, set[tuple[Any, ...]]] = {spec.name: {spec.shape} for spec in inputs}
    if any(None in shape for shapes in seen.values() for shape in shapes):
        seen = {name: set() for name in seen}
        for arrays in batches:
            for name, shapes in seen.items():
                shapes.add(arrays[name].shape[1:])
    axes = {name: list(zip(*shapes, strict=True)) for name, shapes in seen.items() if shapes}
    return {name: (tuple(map(min, sizes)), tuple(map(max, sizes))) for name, sizes in axes.items()}


def network_inputs(trt: Any, network: Any) -> list[NetworkInput]:
    """Parsed network -> its inputs; ModelError for one that cannot be fed for calibration."""
    found = []
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if tensor.is_shape_tensor:
            raise ModelError(f"input {tensor.name!r} is a shape; make it a constant before the engine is built")
        shape = tuple(int(size) for size in tensor.shape)
        found.append(NetworkInput(tensor.name, shape, versions.numpy_dtype(trt, tensor.dtype)))
    return found


def static_batch(inputs: Sequence[NetworkInput]) -> int | None:
    """Inputs -> the batch size that the model fixes; None where axis 0 is dynamic or inputs have none."""
    sizes = {item.shape[0] for item in inputs if item.shape}
    return sizes.pop() if len(sizes) == 1 and -1 not in sizes else None


def calibration_shapes(
    inputs: Sequence[NetworkInput],
    fed: Mapping[str, Shape],
    ranges: Mapping[str, Range],
    batch_size: int | None,
) -> dict[str, Shape]:
    """What the network takes, what the data bring, what was asked for -> full shape of every input.

    ``fed``: shapes of the first batch, empty without data. Without data the OPT shapes of ``ranges`` count, and
    ``batch_size`` for an axis 0 that they leave open. Raises DataError where the data do not fit the network, and
    ModelError where an axis stays unknown.
    """
    unknown = set(ranges) - {item.name for item in inputs}
    if unknown:
        raise ModelError(f"shapes are given for {sorted(unknown)}; the model's inputs are {[i.name for i in inputs]}")
    return {item.name: _one_shape(item, fed, ranges.get(item.name), batch_size) for item in inputs}


def _one_shape(item: NetworkInput, fed: Mapping[str, Shape], asked: Range | None, batch_size: int | None) -> Shape:
    if item.name in fed:
        found = tuple(fed[item.name])
        _check_fed(item, found, batch_size)
        return found
    if fed:
        raise DataError(f"the model takes input {item.name!r}; the batches hold {sorted(fed)}")
    shape = tuple(
        size if size >= 0 else (asked.opt[axis] if asked and axis < len(asked.opt) else -1)
        for axis, size in enumerate(item.shape)
    )
    if shape and shape[0] < 0 and batch_size is not None:
        shape = batch_size, *shape[1:]
    if -1 in shape:
        example = ["8" if size < 0 and axis == 0 else "…" if size < 0 else str(size) for axis, size in enumerate(shape)]
        raise ModelError(
            f"input {item.name!r} has dynamic axes {item.shape}; say its shape, for example "
            f"shapes={{{item.name!r}: ({', '.join(example)})}}, or --optShapes {item.name}:{'x'.join(example)} on the "
            f"command line"
        )
    return shape


def _check_fed(item: NetworkInput, found: Shape, batch_size: int | None) -> None:
    if len(found) != len(item.shape) or any(
        size not in (-1, seen) for size, seen in zip(item.shape[1:], found[1:], strict=True)
    ):
        raise DataError(f"input {item.name!r}: the batches have shape {found}, the model takes {item.shape}")
    if not found:
        return
    if item.shape[0] not in (-1, found[0]):
        fixed = item.shape[0]
        raise DataError(
            f"input {item.name!r}: the model fixes batch size {fixed}, the data come in batches of {found[0]}; feed "
            f"batches of {fixed}, or let the axis be made dynamic for this build (rewrite_batch=True, "
            f"--rewrite-batch), or export the model with a dynamic batch axis"
        )
    if batch_size is not None and batch_size != found[0]:
        raise DataError(
            f"input {item.name!r}: batch size {batch_size} was asked for, the data come in batches of {found[0]}"
        )


def inference_ranges(
    inputs: Sequence[NetworkInput], calibration: Mapping[str, Shape], ranges: Mapping[str, Range], fixed: int | None
) -> dict[str, Range]:
    """Inputs -> the engine's own profile: what was asked for, else batch 1 up to the calibrated one.

    ``fixed``: the batch size that the model had before its axis was made dynamic, which the engine keeps.
    """
    result = {}
    for item in inputs:
        shape = calibration[item.name]
        if item.name in ranges:
            result[item.name] = ranges[item.name]
        elif fixed is not None and shape:
            result[item.name] = Range.of((fixed, *shape[1:]))
        elif item.dynamic and item.shape[0] == -1:
            result[item.name] = Range((1, *shape[1:]), shape, shape)
        else:
            result[item.name] = Range.of(shape)
    return result

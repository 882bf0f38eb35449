"""What a model wants to be fed and what it answers with: value types that data and models share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class InputSpec:
    """Name, dtype and shape of a model's input.

    ``shape`` is that of one sample, with None for a dynamic axis. ``axis`` says which axis of the input counts samples
    and is therefore no part of it; where that is None, a sample is one whole input. ``pixels``: somebody has said that
    a floating-point input takes pixels of 0 to 255, so that uint8 may be fed. ``count``: how many samples the
    file takes at once, if it says.

    Samples that come together are *rows*: one array whose first axis counts them, whatever the input's own is.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]
    axis: int | None = 0
    pixels: bool = False
    count: int | None = field(default=None, compare=False)

    def fed(self, rows: np.ndarray) -> np.ndarray:
        """Rows, (N, ...) -> the array that the model takes; a whole input is one row alone."""
        if self.axis is None:
            if len(rows) != 1:
                raise ValueError(f"{self} takes one sample at a time, got {len(rows)}")
            return np.asarray(rows[0])
        return np.moveaxis(rows, 0, self.axis) if self.axis else rows

    def rows(self, fed: np.ndarray) -> np.ndarray:
        """An array that the model takes -> the samples that are in it, as rows."""
        if self.axis is None:
            return fed[None]
        return np.moveaxis(fed, self.axis, 0) if self.axis else fed

    def full(self, count: Any, shape: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
        """Number of samples, or what stands for it, and a shape of one (default: its own) -> what the model takes."""
        sizes = self.shape if shape is None else shape
        return sizes if self.axis is None else (*sizes[: self.axis], count, *sizes[self.axis :])

    def __str__(self) -> str:
        return self._with(self.axis)

    @property
    def of_rows(self) -> str:
        """As text what the input is, with samples on the first axis, as data have them."""
        return self._with(0)

    def _with(self, axis: int | None) -> str:
        sizes = ["?" if size is None else str(size) for size in self.shape]
        if axis is not None:
            sizes.insert(axis, "N")
        return f"{self.name}: {self.dtype} ({', '.join(sizes)})"


def built_in_batch_size(inputs: Iterable[InputSpec]) -> int | None:
    """Inputs -> how many samples the file takes at once, if it says so of all alike."""
    counts = {spec.count for spec in inputs if spec.axis is not None}
    return counts.pop() if len(counts) == 1 else None


@dataclass(frozen=True)
class OutputSpec:
    """Name, dtype and whole shape of a model's output, None for what the file does not say; so is a dynamic axis."""

    name: str
    dtype: np.dtype | None
    shape: tuple[int | None, ...] | None

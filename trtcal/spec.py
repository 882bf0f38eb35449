"""What a model wants to be fed and what it answers with: value types that data and models share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class InputSpec:
    """Name, dtype and shape of a model's input; ``shape`` leaves the batch axis out, None is a dynamic axis.

    ``pixels``: somebody has said that a floating-point input takes pixels of 0 to 255, so that uint8 may be fed.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]
    pixels: bool = False

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in ("N", *self.shape))
        return f"{self.name}: {self.dtype} ({sizes})"


@dataclass(frozen=True)
class OutputSpec:
    """Name, dtype and whole shape of a model's output, None for what the file does not say; so is a dynamic axis."""

    name: str
    dtype: np.dtype | None
    shape: tuple[int | None, ...] | None

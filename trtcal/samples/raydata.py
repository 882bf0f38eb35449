"""Ray Data as a source; Ray itself is not imported here, the data set brings what is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from trtcal.errors import DataError, TrtcalError
from trtcal.samples.batches import LABELS, Sample
from trtcal.samples.conform import conform
from trtcal.spec import InputSpec

if TYPE_CHECKING:
    from trtcal.samples.preprocess import Preprocess

ROWS = 64  # fetched at once


class RayData:
    """``ray.data.Dataset``, of rows, Parquet or pictures -> stream of samples, in the order of the set.

    Every input is a column of its name; ``columns`` maps inputs to columns of other names, and the only input of a
    model may be the only column that is no label. Pictures are (H, W) or (H, W, C) uint8 and need a ``preprocess``.
    ``labels`` or ``label`` holds the classes, where that is no input; a column ``path`` names the samples.

    Rows stream through this process, some at a time: Ray decodes them on its nodes, and ahead. Raises DataError for
    columns that are missing and samples that do not fit.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        inputs: Sequence[InputSpec],
        columns: Mapping[str, str] | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        self._dataset, self._inputs, self.preprocess = dataset, tuple(inputs), preprocess
        there = list(dataset.columns() or ())
        names = {spec.name for spec in inputs}
        self._label = next((name for name in LABELS if name in there and name not in names), None)
        self._columns = {spec.name: (columns or {}).get(spec.name, spec.name) for spec in inputs}
        values = [name for name in there if name not in ("path", self._label)]
        if len(inputs) == 1 and columns is None and inputs[0].name not in there and len(values) == 1:
            self._columns = {inputs[0].name: values[0]}
        for name, column in self._columns.items():
            if column not in there:
                raise DataError(
                    f"{self.describe()}: no column {column!r} for input {name!r}, it has {', '.join(there) or 'none'}; "
                    f"name the column in columns={{{name!r}: ...}}"
                )
        if preprocess is not None and len(inputs) != 1:
            raise DataError(f"{self.describe()}: a preset prepares pictures for one input, the model has {len(inputs)}")
        self._names = "path" if "path" in there else None
        dataset.context.execution_options.preserve_order = True  # without it, rows come as tasks end

    def blocks(self) -> Iterator[list[Sample]]:
        """Nothing -> the samples, so many rows at a time."""
        number = count()
        try:
            for rows in self._dataset.iter_batches(batch_size=ROWS, batch_format="numpy"):
                yield [self._sample(rows, row, next(number)) for row in range(len(next(iter(rows.values()))))]
        except TrtcalError:
            raise
        except Exception as error:  # Ray's, and those of the user's own functions inside it
            first = next(iter(str(error).strip().splitlines()), "")
            raise DataError(f"{self.describe()}: {type(error).__name__}: {first}") from error

    def describe(self) -> str:
        """Nothing -> one line for people."""
        return f"rows of a Ray {type(self._dataset).__name__}"

    def _sample(self, rows: Mapping[str, np.ndarray], row: int, number: int) -> Sample:
        from trtcal.samples.preprocess import from_pixels  # Pillow loads slowly

        name = f"row {number}" if self._names is None else str(rows[self._names][row])
        arrays: dict[str, Any] = {}
        for input_, column in self._columns.items():
            value = np.asarray(rows[column][row])
            if self.preprocess is not None:
                try:
                    value = self.preprocess(from_pixels(value))
                except DataError as error:
                    raise DataError(f"{self.describe()}: {name}: {error}") from error
                if self._inputs[0].dtype.kind in "iu":
                    value = np.rint(value).astype(np.int64)
            arrays[input_] = value
        label = None if self._label is None else int(rows[self._label][row])
        return Sample(name, conform(arrays, self._inputs, name), label)

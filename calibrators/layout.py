"""Batches for a network whose inputs do not all count samples on the first axis, or take what no sample gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from trtcal.errors import DataError
from trtcal.model.open import Model
from trtcal.samples.batches import Batch, Batches


class FedBatch(dict[str, np.ndarray]):
    """Input name -> array as the network takes it; ``samples`` and ``valid`` are those of `Batch`."""

    def __init__(self, batch: Batch, model: Model) -> None:
        try:
            super().__init__(model.fed(batch))
        except ValueError as error:
            raise DataError(f"{error}; calibrate with batches of 1") from error
        self.samples, self.valid = batch.samples, batch.valid


class FedBatches(Batches):
    """Batches of samples -> the same, each as the model's network takes it."""

    def __init__(self, batches: Batches, model: Model) -> None:
        self.__dict__.update(batches.__dict__)
        self._model = model

    def __iter__(self) -> Iterator[Any]:
        """The batches."""
        for batch in super().__iter__():
            yield FedBatch(batch, self._model)

    def key(self) -> str:
        """As `Batches.key`, of how they are fed as well."""
        parts = [super().key(), self._model.shapes]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def as_fed(batches: Batches, model: Model) -> Batches:
    """Batches of samples -> what the model's network is to be fed: themselves, or `FedBatches`."""
    return FedBatches(batches, model) if model.by_rows else batches

"""What a cache belongs to: the run's model, data and settings -> the provenance that goes beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any

from calibrators.feed import declared_length
from trtcal.cache import provenance
from trtcal.cache.provenance import Provenance


def origin(
    *,
    model: str | os.PathLike[str] | None,
    data_key: str | None,
    batches: Iterable[Any],
    batch_size: int | None,
    method: str,
    header: str,
) -> tuple[Provenance, list[str]]:
    """The run that is about to begin -> its provenance, and what of it is unknown, a sentence each.

    ``data_key`` is anything that changes with the data, or None for batches that know their own (trtcal's `Batches`:
    a hash of names and contents). Raises ModelError where the model cannot be read.
    """
    unknown = []
    if model is None:
        unknown.append("model= was not given")
    source = getattr(batches, "source", None)
    key = getattr(batches, "key", None)
    if data_key is None and source is not None and callable(key):
        data_key = str(key())
    if data_key is None:
        unknown.append("data_key= was not given")
    # A folder of pictures hashes its files, so what is done to them has to be said as well.
    to_dict = getattr(getattr(source, "preprocess", None), "to_dict", dict)
    describe = getattr(source, "describe", None)
    size = batch_size or 0
    count = getattr(batches, "num_samples", (declared_length(batches) or 0) * size)
    available = len(source) if isinstance(source, Sized) else count
    made = Provenance(
        model="" if model is None else Path(model).name,
        model_sha256="" if model is None else provenance.model_sha256([model, *external_data(Path(model))]),
        data=str(describe()) if callable(describe) else type(batches).__name__,
        data_key=data_key or "",
        samples_used=count,
        samples_available=available,
        preprocess=to_dict(),
        method=method,
        growth="tensorrt",
        batch_size=size,
        order=str(getattr(batches, "order", "as in the data key")),
        seed=getattr(batches, "seed", None),
        partial=str(getattr(batches, "partial", "as in the data key")),
        shapes={},  # those of the data, which the key covers
        header=header,
        versions=provenance.installed_versions(),
    )
    return made, unknown


def data_inputs(batches: Iterable[Any]) -> list[Path]:
    """Batches -> the file that they are read from, where they tell."""
    source = getattr(batches, "source", None)
    path = getattr(source, "path", None) or getattr(source, "_path", None)
    return [Path(path)] if isinstance(path, (str, os.PathLike)) and os.path.isfile(path) else []


def external_data(model: Path) -> list[Path]:
    """Files beside an ONNX model that hold its weights; none for a file that is not ONNX, such as a UFF."""
    from trtcal.errors import ModelError
    from trtcal.model.read import external_files, load_model

    try:
        return [model.parent / name for name in external_files(load_model(model))]
    except ModelError:
        return []

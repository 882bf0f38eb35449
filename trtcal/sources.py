"""The one door to every kind of data: a path or a script in, a source out."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from trtcal.arrays import EXTENSIONS, ArrayFolder, ArraySource
from trtcal.conform import fits, shape_hint
from trtcal.data import Samples, Stream
from trtcal.errors import DataError
from trtcal.folders import files_below, seen
from trtcal.images import ImageFolder
from trtcal.preprocess import PRESETS, Preprocess, is_image
from trtcal.spec import InputSpec
from trtcal.streams import IterableSource, LoaderScript

__all__ = ["ArrayFolder", "ArraySource", "ImageFolder", "IterableSource", "LoaderScript", "open_source"]


def open_source(
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None = None,
    labels: str | os.PathLike[str] | None = None,
) -> Samples | Stream:
    """Folder of pictures or of arrays, ``.npy`` or ``.npz`` file, or ``script.py[:function]`` -> its source.

    ``preprocess`` and ``labels``, a CSV file, belong to pictures only. Raises DataError where the
    path, the model's ``inputs`` and these do not go together.
    """
    where, root = os.fspath(path), Path(path)
    script = re.search(r"\.py(:\w+)?$", where) is not None
    if not script and not root.exists():
        raise DataError(f"{where}: no such file or folder")
    if root.is_dir():
        files = files_below(root)
        images = sum(is_image(root / name) for name in files)
        arrays = sum(Path(name).suffix.lower() in EXTENSIONS for name in files)
        if not images and not arrays:
            raise DataError(f"{where}: neither pictures nor .npy or .npz files; {seen(files)}")
        if images and arrays and preprocess is None:
            raise DataError(
                f"{where}: {images} pictures and {arrays} array files; "
                "name a preset to take the pictures, or put them into folders of their own"
            )
        if images:
            return _pictures(root, inputs, preprocess, labels)
    elif not script and root.suffix.lower() not in EXTENSIONS:
        raise DataError(f"{where}: expected a folder, a .npy or .npz file, or script.py[:function]")
    if preprocess is not None or labels is not None:
        raise DataError(
            f"{where}: arrays are fed as they are, a preset or a labels file is for pictures; "
            "prepare the arrays themselves, and put labels into the .npz file as 'labels'"
        )
    return LoaderScript(where, inputs=inputs) if script else ArrayFolder(root, inputs=inputs)


def holds_arrays(path: str | os.PathLike[str]) -> bool:
    """Path or script -> whether what it gives are arrays rather than pictures; False where nothing is there."""
    root = Path(path)
    if not root.is_dir():
        return not root.exists() or root.suffix.lower() in EXTENSIONS or root.suffix == ".py"
    files = files_below(root)
    return not any(is_image(root / name) for name in files) and any(Path(n).suffix.lower() in EXTENSIONS for n in files)


def _pictures(
    root: Path,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
    labels: str | os.PathLike[str] | None,
) -> ImageFolder:
    if preprocess is None:
        raise DataError(f"{root}: pictures need a preset that says how the model wants them: {', '.join(PRESETS)}")
    if len(inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in inputs)
        raise DataError(f"{root}: pictures feed one input, the model takes {names}: use .npz with these names")
    (spec,) = inputs
    if not fits(preprocess.shape, spec):
        raise DataError(
            f"{root}: the preset makes {preprocess.shape}, the model takes {spec}; {shape_hint(preprocess.shape, spec)}"
        )
    return ImageFolder(root, preprocess, input_name=spec.name, labels=labels, dtype=spec.dtype)

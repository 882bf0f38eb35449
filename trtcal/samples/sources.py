"""The one door to every kind of data: a path or a script in, a source out."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from trtcal.errors import DataError
from trtcal.files.folders import LocalFolder, files_below
from trtcal.files.remote import Remote, is_url
from trtcal.samples.arrays import EXTENSIONS, ArrayFolder, ArraySource, RemoteArrays
from trtcal.samples.batches import Samples, Stream
from trtcal.samples.conform import fits, shape_hint
from trtcal.samples.images import ImageFolder, pictures
from trtcal.samples.left_out import by_kind, tell_left_out
from trtcal.samples.listed import Listed, is_list, read_list
from trtcal.samples.preprocess import PRESETS, Preprocess, is_image
from trtcal.samples.raydata import RayData
from trtcal.samples.streams import IterableSource, LoaderScript
from trtcal.spec import InputSpec

__all__ = [
    "ArrayFolder",
    "ArraySource",
    "ImageFolder",
    "IterableSource",
    "Listed",
    "LoaderScript",
    "RayData",
    "open_source",
]


def open_source(
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None = None,
) -> Samples | Stream:
    """Folder of pictures or of arrays, ``.npy`` or ``.npz`` file, ``list.txt``, ``script.py[:function]`` -> its source.

    A list names some of the samples of the others but scripts (:func:`trtcal.samples.listed.read_list`).
    Folders and files may lie behind a URL that fsspec opens, such as ``s3://bucket/photos``.

    ``preprocess`` belongs to pictures only. Raises DataError where the path, the model's ``inputs`` and it do not go
    together.
    """
    where = os.fspath(path)
    if is_url(where):
        return _remote(Remote(where), inputs, preprocess)
    if is_list(where) and Path(where).is_file():
        return _listed(where, inputs, preprocess)
    root = Path(path)
    script = re.fullmatch(r"(.+\.py)(?::\w+)?", where)
    if not Path(script[1] if script else where).exists():
        raise DataError(f"{where}: no such file or folder")
    if root.is_dir():
        folder = LocalFolder(root)
        if _holds_pictures(folder, preprocess):
            return _pictures(folder, inputs, preprocess)
    elif not script and root.suffix.lower() not in EXTENSIONS:
        raise DataError(
            f"{where}: expected a folder, a .npy or .npz file, or script.py[:function]; or list.txt with their names"
        )
    _refuse_for_arrays(where, preprocess)
    return LoaderScript(where, inputs=inputs) if script else ArrayFolder(root, inputs=inputs)


def holds_arrays(path: str | os.PathLike[str]) -> bool:
    """Path or script -> whether what it gives are arrays rather than pictures; False where nothing is there."""
    if is_url(path):
        remote = Remote(os.fspath(path))
        files = remote.files() if remote.is_folder else [remote.name]
        return not pictures(remote, files) and any(Path(name).suffix.lower() in EXTENSIONS for name in files)
    root = Path(path)
    if is_list(path) and root.is_file():
        listing = read_list(path)
        if is_url(listing.root) or not Path(listing.root).is_dir():
            return holds_arrays(listing.root)
        return all(Path(name).suffix.lower() in EXTENSIONS for name in listing.files)
    if not root.is_dir():
        return not root.exists() or root.suffix.lower() in EXTENSIONS or root.suffix == ".py"
    files = files_below(root)
    return not any(is_image(root / name) for name in files) and any(Path(n).suffix.lower() in EXTENSIONS for n in files)


def _listed(path: str, inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> Listed:
    listing = read_list(path)
    source: Samples | Stream
    if is_url(listing.root) or not Path(listing.root).is_dir():
        source = open_source(listing.root, inputs=inputs, preprocess=preprocess)
    else:
        folder = LocalFolder(listing.root, listing.files)
        if _holds_pictures(folder, preprocess):
            source = _pictures(folder, inputs, preprocess)
        else:
            _refuse_for_arrays(path, preprocess)
            source = ArrayFolder(listing.root, inputs=inputs, only=listing.files)
    if not isinstance(source, Samples):
        raise DataError(f"{path}: {source.describe()} comes in its own order, and no list can name its samples")
    return Listed(source, listing)


def _remote(
    remote: Remote,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
) -> Samples:
    if remote.is_folder and _holds_pictures(remote, preprocess):
        return _pictures(remote, inputs, preprocess)
    if not remote.is_folder and Path(remote.name).suffix.lower() not in EXTENSIONS:
        raise DataError(f"{remote}: expected a folder, or a .npy or .npz file")
    _refuse_for_arrays(str(remote), preprocess)
    return RemoteArrays(remote, inputs=inputs)


def _holds_pictures(folder: LocalFolder | Remote, preprocess: Preprocess | None) -> bool:
    """Are there pictures to take? DataError where nothing is of use, or nobody can tell what is meant.

    Says what is left out.
    """
    files = folder.files()
    images = pictures(folder, files)
    arrays = [name for name in files if Path(name).suffix.lower() in EXTENSIONS]
    if not images and not arrays:
        raise DataError(f"{folder}: neither pictures nor .npy or .npz files; saw {by_kind(files) or 'no files'}")
    if images and arrays and preprocess is None:
        raise DataError(
            f"{folder}: {len(images)} pictures and {len(arrays)} array files; "
            "name a preset to take the pictures, or put them into folders of their own"
        )
    tell_left_out(str(folder), files, images or arrays)
    return bool(images)


def _refuse_for_arrays(where: str, preprocess: Preprocess | None) -> None:
    if preprocess is not None:
        raise DataError(
            f"{where}: arrays are fed as they are, a preset is for pictures; leave it out, and prepare the arrays "
            "themselves"
        )


def _pictures(
    root: LocalFolder | Remote,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
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
    return ImageFolder(root, preprocess, input_name=spec.name, dtype=spec.dtype)

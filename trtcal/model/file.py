"""Whole ONNX models from files and into files, with weights inside or beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtcal.errors import ModelError
from trtcal.files.atomic import remove, staged
from trtcal.model.check import check_file
from trtcal.model.nodes import all_tensors, copied, refuse_cut_off
from trtcal.model.overwriting import Input, check_output, weights_beside
from trtcal.model.read import external_files

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

# protobuf takes messages of up to 2 GiB; the rest of a model beside its weights stays below the difference.
MAX_WEIGHTS_INSIDE = (1 << 31) - (64 << 20)

_SMALL = 1024  # bytes; constants below stay in the model, since tools read shapes and axes from there
_ALIGNMENT = 4096  # so that every system can map a weight into memory


def load_weights(model: ModelProto, path: str | Path) -> ModelProto:
    """Model, and the file that it is from -> a copy with all its weights in memory; ModelError, with the file."""
    from onnx import checker, external_data_helper

    path = Path(path)
    files = external_files(model)
    try:
        for tensor in all_tensors(model):
            if tensor.data_location == tensor.EXTERNAL:
                refuse_cut_off(tensor, path.parent)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    model = copied(model)
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, checker.ValidationError) as error:
        raise ModelError(f"{path}: its weights in {', '.join(files)} cannot be read: {error}") from error
    return model


def save_model(
    model: ModelProto,
    path: str | Path,
    *,
    external: bool = False,
    source: str | Path | ModelProto | None = None,
    libraries: Sequence[Path] = (),
) -> tuple[Path, ...]:
    """Model -> the file ``path``, and ``<path>.data`` for its weights where protobuf's 2 GiB do not hold them.

    ``external`` puts them there in any case, but for constants of less than 1 KiB. ``model`` keeps its weights only
    where they stay inside. Returns the files written. ModelError where ONNX's checker or ONNX Runtime does not take
    what is to be written, by :func:`trtcal.model.check.check_file`, for which ``source`` is what the model was made
    from and ``libraries`` have custom operators; OutputError names a file that cannot be written. None is touched then.
    A run that is killed between the two leaves a model without its weights rather than with another's.
    """
    path = Path(path)
    weights = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _SMALL]
    data = _data_path(path)
    if not ((external and weights) or sum(len(tensor.raw_data) for tensor in weights) > MAX_WEIGHTS_INSIDE):
        with staged(path, [model.SerializeToString()]) as put_model:
            check_file(put_model.file, str(path), source, libraries)
            put_model()
        return (path,)
    with staged(data, _moved_out(weights, data.name)) as put_data:
        _point_to(weights, put_data.file.name)  # where they are for now
        with staged(path, [model.SerializeToString()]) as trial:
            check_file(trial.file, str(path), source, libraries)
        _point_to(weights, data.name)
        with staged(path, [model.SerializeToString()]) as put_model:
            remove(data)
            put_model()
            put_data()
    return (path, data)


def check_weights_output(model: str | Path, inputs: Iterable[Input]) -> None:
    """Path of a model to write with its weights outside -> nothing; OutputError where they would destroy a file."""
    check_output(_data_path(Path(model)), weights_beside(Path(model)), inputs)


def _data_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _moved_out(weights: list[TensorProto], location: str) -> Iterator[bytes]:
    """The weights' bytes, aligned; each tensor refers to its place in the file as soon as they are written."""
    from onnx import external_data_helper

    offset = 0
    for tensor in weights:
        content = tensor.raw_data
        yield bytes(-offset % _ALIGNMENT)
        offset += -offset % _ALIGNMENT
        yield content
        external_data_helper.set_external_data(tensor, location, offset, len(content))
        tensor.ClearField("raw_data")
        offset += len(content)


def _point_to(weights: list[TensorProto], location: str) -> None:
    """Weights that lie in a file -> in the file of this name, at the same places."""
    for tensor in weights:
        for item in tensor.external_data:
            if item.key == "location":
                item.value = location

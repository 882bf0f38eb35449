"""ONNX models from files, read as if strangers had sent them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trtcal.errors import ModelError
from trtcal.model.nodes import STANDARD, all_bodies, all_graphs, all_tensors, array_of, domain_of

if TYPE_CHECKING:
    from onnx import ModelProto


MIN_OPSET = 9


# How external data are described: https://onnx.ai/onnx/repo-docs/ExternalData.html
_PLACE = frozenset({"location", "offset", "length", "checksum", "basepath"})  # the last is for writers alone


def load_model(path: str | Path) -> ModelProto:
    """File -> model, with external data left on disk; ModelError names the file and what is wrong with it."""
    path = Path(path)
    model = load_model_alone(path)
    for name in external_files(model):
        check_weights(path, name)
    return model


def load_model_alone(path: str | Path) -> ModelProto:
    """As :func:`load_model`, whether the files with its weights are there or not."""
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise ModelError(f"{path}: is not an ONNX file: {error}") from error
    _refuse_unusable(model, str(path))
    return model


def model_of(source: ModelProto | bytes, name: str, *, in_file: bool = False) -> ModelProto:
    """A model in memory, or the content of its file -> the model; ModelError, with the name, for what is wrong with it.

    Unless it is what is ``in_file``, its weights must be in it, since nobody knows where their files would be.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if isinstance(source, onnx.ModelProto):
        model = source
    else:
        try:
            model = onnx.load_model_from_string(bytes(source), format="protobuf")
        except DecodeError as error:
            raise ModelError(f"{name}: is not an ONNX model that can be read: {error}") from error
    _refuse_unusable(model, name)
    for tensor in () if in_file else all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            array_of(tensor)  # which says so
    return model


def _refuse_unusable(model: ModelProto, name: str) -> None:
    if not model.graph.node or not model.graph.output:
        raise ModelError(f"{name}: is not an ONNX model with nodes and outputs")
    if not model.opset_import:
        raise ModelError(f"{name}: names no opset, so what its ops mean is not known; export it again")
    opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD), None)
    if opset is not None and opset < MIN_OPSET:
        raise ModelError(
            f"{name}: opset {opset} is older than {MIN_OPSET}, the oldest trtcal reads; "
            f"export the model again with a newer opset"
        )
    try:
        refuse_damaged(model)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error


def refuse_damaged(model: ModelProto) -> None:
    """Model out of a file -> nothing; ModelError for names, shapes and nodes that nobody can work with.

    That is less than ONNX's own checker wants, which refuses models that run everywhere.
    """
    import onnx

    for text in _texts(model):
        if not isinstance(text, str):  # protobuf hands out as bytes what is no UTF-8
            raise ModelError(f"{text!r} is no UTF-8, which names in ONNX are; the file is damaged, export it again")
    for tensor in all_tensors(model):
        if min(tensor.dims, default=0) < 0:
            raise ModelError(f"constant {tensor.name!r} has the shape {list(tensor.dims)}; the file is damaged")
    versions: dict[str, int] = {}
    for entry in model.opset_import:  # of two for one domain everyone takes the first
        versions.setdefault(domain_of(entry), min(max(entry.version, 1), 2**31 - 1))
    for body in all_bodies(model):
        for node in body.node:
            inputs, outputs = 0, 1
            try:
                schema = onnx.defs.get_schema(node.op_type, versions.get(domain_of(node), MIN_OPSET), domain_of(node))
                inputs, outputs = schema.min_input, max(schema.min_output, 1)
            except onnx.defs.SchemaError:  # an op of somebody's own
                pass
            if len(node.input) < inputs or len(node.output) < outputs:
                raise ModelError(
                    f"node {node.name!r} has {len(node.input)} inputs and {len(node.output)} outputs, while a "
                    f"{node.op_type} has at least {inputs} and {outputs}; the file is damaged, export it again"
                )


def _texts(model: ModelProto) -> Iterator[str | bytes]:
    """Names in a model, and whatever else in it should be text."""
    for entry in model.opset_import:
        yield entry.domain
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
    for graph in all_graphs(model):
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield from (value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim))
    for body in all_bodies(model):
        for node in body.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            yield from (attribute.name for attribute in node.attribute)
    for tensor in all_tensors(model):
        yield tensor.name
        for item in tensor.external_data:
            yield from (item.key, item.value)


def check_weights(path: Path, name: str) -> None:
    """ModelError where the file of weights is not there, or is a link out of the folder that holds the model."""
    file = path.parent / name
    try:
        there = file.is_file()
    except (OSError, ValueError):  # no name that a file can have
        there = False
    if not there:
        raise ModelError(f"{path}: its external data file {name!r} is missing in {path.parent}")
    real = Path(os.path.realpath(file))
    # Where the model is itself a link, as in the caches of model hubs, its weights may lie where it leads to.
    if not any(real.is_relative_to(os.path.realpath(folder)) for folder in (path.parent, path.resolve().parent)):
        raise ModelError(
            f"{path}: its external data file {name!r} links to {real}, outside the model's folder; "
            f"put the file itself there"
        )


def model_files(path: str | os.PathLike[str]) -> list[Path]:
    """File of a model -> itself, then the files that hold its weights; alone where it is not ONNX, such as a UFF."""
    path = Path(path)
    try:
        return [path, *(path.parent / name for name in external_files(load_model(path)))]
    except ModelError:
        return [path]


def external_files(model: ModelProto) -> list[str]:
    """Relative names of the files that hold this model's weights, sorted; empty if it holds them itself.

    A name that leaves the model's folder raises ModelError.
    """
    from onnx import TensorProto

    names = set()
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            keys = [entry.key for entry in tensor.external_data]
            if odd := [key for key in keys if key not in _PLACE or keys.count(key) > 1]:  # readers would take another
                raise ModelError(
                    f"tensor {tensor.name!r}: its external data is described by {odd[0]!r}, which is unknown or there "
                    f"twice; export the model again"
                )
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            if not location or Path(location).is_absolute() or ".." in Path(location).parts:
                raise ModelError(
                    f"tensor {tensor.name!r}: external data location {location!r} leaves the model's folder"
                )
            names.add(location)
    return sorted(names)


def sha256_of(files: Iterable[str | os.PathLike[str]]) -> str:
    """The ONNX file, then its external data files -> one SHA-256, the file's own if it is alone.

    Files are streamed, so size does not matter. Raises ModelError, naming the file that cannot be read.
    """
    digests = []
    for file in files:
        digest = hashlib.sha256()
        try:
            with open(file, "rb") as content:
                while chunk := content.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise ModelError(f"{os.fspath(file)}: cannot be read: {error.strerror or error}") from error
        digests.append(digest.hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

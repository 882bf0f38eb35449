"""What every model goes through at the door, so that nothing behind it need think of it again.

The model's own functions are put in their places, nodes sorted, names made unique, constants that are listed among the
inputs taken out of these, and small ones that lie in files, such as shapes and axes, read. ONNX's own ops get one name
for their domain. A model that has none of this to do stays as it is, byte for byte.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from trtcal.errors import ModelError
from trtcal.model import functions, names
from trtcal.model.names import NO_ORIGINALS, Originals
from trtcal.model.nodes import all_bodies, all_tensors, array_of, copied, domain_of, name_domain_alike, replaced
from trtcal.model.sort import is_sorted, sort

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

IR_WITH_FREE_CONSTANTS = 4  # before, constants had to be among the inputs
SMALL = 128  # elements; no shape has as many


def prepared(model: ModelProto, *, ours: bool, folder: Path | None = None) -> tuple[ModelProto, Originals]:
    """Model -> the model as commands work on it, and what it called otherwise; changed itself where it is ``ours``.

    ``folder`` is where weights lie that the model keeps in files.
    ModelError for cycles, tensors that are written twice, and functions that cannot be put in their places.
    """
    originals = NO_ORIGINALS
    if any(node.domain != domain_of(node) for body in all_bodies(model) for node in body.node):
        model, ours = _own(model, ours), True
        name_domain_alike(model)  # by its other name, ONNX Runtime 1.32 does not find it inside If, Loop and Scan
    if model.functions:
        model, ours = _own(model, ours), True
        originals = functions.inline(model)
    names.refuse_ambiguous(model)
    if not is_sorted(model):
        model, ours = _own(model, ours), True
        sort(model)
    if not names.are_unique(model):
        model, ours = _own(model, ours), True
        originals = names.make_unique(model, originals)
    if folder is not None and any(_is_small_in_file(tensor) for tensor in all_tensors(model)):
        model, ours = _own(model, ours), True
        _read_small(model, folder)
    constants = {tensor.name for tensor in model.graph.initializer}
    if len(constants) < len(model.graph.initializer) or any(value.name in constants for value in model.graph.input):
        model = _own(model, ours)
        _settle_constants(model)
    return model, originals


def _own(model: ModelProto, ours: bool) -> ModelProto:
    return model if ours else copied(model)


def _is_small_in_file(tensor: TensorProto) -> bool:
    return tensor.data_location == tensor.EXTERNAL and math.prod(tensor.dims) <= SMALL


def _read_small(model: ModelProto, folder: Path) -> None:
    """Small constants out of the files where they lie, if these are there.

    ONNX Runtime does not load a model whose shapes or axes it would have to look for in files (seen with 1.32).
    """
    from onnx import numpy_helper

    for tensor in filter(_is_small_in_file, all_tensors(model)):
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if (folder / location).is_file():
            tensor.CopyFrom(numpy_helper.from_array(array_of(tensor, folder), tensor.name))


def _settle_constants(model: ModelProto) -> None:
    """Constants are no inputs, and each is there once: readers differ in which of two they take."""
    graph = model.graph
    constants: dict[str, TensorProto] = {}
    for tensor in graph.initializer:
        if constants.setdefault(tensor.name, tensor) != tensor:
            raise ModelError(f"constant {tensor.name!r} is there twice, with other values; the file is damaged")
    if len(constants) < len(graph.initializer):
        replaced(graph.initializer, constants.values())
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) < len(graph.input):
        replaced(graph.input, inputs)
        model.ir_version = max(model.ir_version, IR_WITH_FREE_CONSTANTS)

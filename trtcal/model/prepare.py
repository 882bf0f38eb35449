"""What every model goes through at the door, so that nothing behind it need think of it again.

The model's own functions are put in their places, nodes sorted, names made unique, and constants that are listed among
the inputs taken out of these. A model that has none of this to do stays as it is, byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtcal.errors import ModelError
from trtcal.model import functions, names
from trtcal.model.names import NO_ORIGINALS, Originals
from trtcal.model.nodes import copied, replaced
from trtcal.model.sort import is_sorted, sort

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

IR_WITH_FREE_CONSTANTS = 4  # before, constants had to be among the inputs


def prepared(model: ModelProto, *, ours: bool) -> tuple[ModelProto, Originals]:
    """Model -> the model as commands work on it, and what it called otherwise; changed itself where it is ``ours``.

    ModelError for cycles, tensors that are written twice, and functions that cannot be put in their places.
    """
    originals = NO_ORIGINALS
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
    constants = {tensor.name for tensor in model.graph.initializer}
    if len(constants) < len(model.graph.initializer) or any(value.name in constants for value in model.graph.input):
        model = _own(model, ours)
        _settle_constants(model)
    return model, originals


def _own(model: ModelProto, ours: bool) -> ModelProto:
    return model if ours else copied(model)


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

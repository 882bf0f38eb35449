"""What a model is to be fed, and its batch size: asked for, set, taken out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.nodes import Names, array_of, constants_of, copied, dtype_of, op_name
from trtcal.spec import InputSpec, OutputSpec

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TypeProto


def model_inputs(model: ModelProto) -> tuple[InputSpec, ...]:
    """Inputs that must be fed, with dtype and shape; ModelError for one that is no tensor or has no batch axis."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in initializers:
            continue
        if not value.type.HasField("tensor_type"):
            raise ModelError(f"input {value.name!r} is no tensor; trtcal can only feed tensors")
        tensor = value.type.tensor_type
        if not tensor.HasField("shape") or not tensor.shape.dim:
            raise ModelError(f"input {value.name!r} has no batch axis: its first axis must count samples")
        specs.append(InputSpec(value.name, dtype_of(tensor.elem_type, value.name), _sizes(tensor)[1:]))
    if not specs:
        raise ModelError("the model has no inputs to feed")
    return tuple(specs)


def model_outputs(model: ModelProto) -> tuple[OutputSpec, ...]:
    """What the model answers with, as far as it says so itself; outputs that are no tensors have neither."""
    specs = []
    for value in model.graph.output:
        tensor = value.type.tensor_type  # empty where the output is of another type
        dtype = dtype_of(tensor.elem_type, value.name) if tensor.elem_type else None
        specs.append(OutputSpec(value.name, dtype, _sizes(tensor) if tensor.HasField("shape") else None))
    return tuple(specs)


def _sizes(tensor: TypeProto.Tensor) -> tuple[int | None, ...]:
    """A tensor's type -> its sizes, None for axes that are dynamic."""
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim)


def batch_size(model: ModelProto) -> int | None:
    """The batch size that the inputs' first axis fixes; None where it is dynamic. Inputs that disagree: ModelError."""
    sizes = {name: dim.dim_value for name, dim in _batch_dims(model) if dim.HasField("dim_value")}
    sizes = {name: size for name, size in sizes.items() if size > 0}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ModelError(
            f"the inputs fix different batch sizes ({found}); trtcal takes axis 0 of every input as the batch"
        )
    return next(iter(sizes.values()), None)


def set_batch_size(model: ModelProto, size: int | None, folder: str | Path | None) -> ModelProto:
    """Copy of the model, whose file lies in ``folder``, with batch ``size`` for its inputs (None: a dynamic axis "N").

    Inferred shapes are dropped, and a Reshape whose constant shape begins with the old batch size gets the new one
    there. Graphs that bake the batch size in otherwise fail in the runtime, which names the node.
    """
    old = batch_size(model)
    model = copied(model)
    for _, dim in _batch_dims(model):
        dim.Clear()
        if size is None:
            dim.dim_param = "N"
        else:
            dim.dim_value = size
    del model.graph.value_info[:]
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    if old is not None and old != size:
        names, constants = Names(model), constants_of(model.graph)
        for node in model.graph.node:
            if op_name(node) == "Reshape" and len(node.input) > 1 and node.input[1] in constants:
                shape = array_of(constants[node.input[1]].tensor, folder)
                if shape.ndim == 1 and shape.size > 1 and shape[0] == old:
                    _reshape_to(model, node, size, shape[1:], names)
    return model


def _reshape_to(model: ModelProto, node: NodeProto, size: int | None, rest: np.ndarray, names: Names) -> None:
    """Give a Reshape another batch size; any is what is left over, or where that is taken, that of the input."""
    import onnx

    first = size if size is not None else -1 if (rest != -1).all() else 0
    allow_zero = [attribute for attribute in node.attribute if attribute.name == "allowzero" and attribute.i]
    if not first and allow_zero:  # there a 0 is none from the input; without any other 0 nothing else is lost
        node.attribute.remove(allow_zero[0])
    name = names.new(f"{node.output[0]}_shape")
    shape = np.concatenate([[first], rest]).astype(np.int64)
    model.graph.initializer.append(onnx.numpy_helper.from_array(shape, name))
    node.input[1] = name


def _batch_dims(model: ModelProto) -> list[tuple[str, Any]]:
    fed = {spec.name for spec in model_inputs(model)}
    return [(value.name, value.type.tensor_type.shape.dim[0]) for value in model.graph.input if value.name in fed]

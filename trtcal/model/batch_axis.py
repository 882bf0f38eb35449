"""What a model is to be fed, and its batch size: asked for, set, taken out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.nodes import array_of, constants_of, copied, dtype_of, op_name
from trtcal.spec import InputSpec

if TYPE_CHECKING:
    from onnx import ModelProto


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
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim
        )
        specs.append(InputSpec(value.name, dtype_of(tensor.elem_type, value.name), shape[1:]))
    if not specs:
        raise ModelError("the model has no inputs to feed")
    return tuple(specs)


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

    Inferred shapes are dropped, and a Reshape whose constant shape begins with the old batch size takes it
    from its input instead. Graphs that bake the batch size in otherwise fail in the runtime, which names
    the node.
    """
    import onnx

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
        constants = constants_of(model.graph)
        for node in model.graph.node:
            if op_name(node) != "Reshape" or len(node.input) < 2 or node.input[1] not in constants:
                continue
            shape = array_of(constants[node.input[1]].tensor, folder)
            if shape.ndim == 1 and shape.size > 1 and shape[0] == old:
                name = f"{node.output[0]}_shape_any_batch"
                model.graph.initializer.append(
                    onnx.numpy_helper.from_array(np.concatenate([[0], shape[1:]]).astype(np.int64), name)
                )
                node.input[1] = name
    return model


def _batch_dims(model: ModelProto) -> list[tuple[str, Any]]:
    fed = {spec.name for spec in model_inputs(model)}
    return [(value.name, value.type.tensor_type.shape.dim[0]) for value in model.graph.input if value.name in fed]

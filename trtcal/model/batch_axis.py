"""What a model is to be fed: which axis of an input counts samples, and how many; asked for, set, taken out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.nodes import Names, array_of, constants_of, copied, dtype_of, op_name, reads
from trtcal.spec import InputSpec, OutputSpec

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto


Axes = Mapping[str, int | None]
"""Name -> the axis that counts samples; None where there is none."""


class Axis(NamedTuple):
    """The axis of an input that counts samples, None for an input that has none, and whether the file says so."""

    axis: int | None
    certain: bool


def model_inputs(model: ModelProto, chosen: Axes | None = None) -> tuple[InputSpec, ...]:
    """Inputs that must be fed, with dtype, the shape of a sample and the batch axis: the ``chosen``, or what is found.

    ModelError for an input that is no tensor or has no shape.
    """
    values = fed_values(model)
    axes = {name: found.axis for name, found in batch_axes(model).items()} | dict(chosen or {})
    specs = []
    for name, value in values.items():
        sizes, axis, count = sizes_of(value), axes[name], None
        if axis is not None:
            count = sizes[axis]
            sizes = sizes[:axis] + sizes[axis + 1 :]
        shape = tuple(size if isinstance(size, int) else None for size in sizes)
        dtype = dtype_of(value.type.tensor_type.elem_type, name)
        specs.append(InputSpec(name, dtype, shape, axis, count=count if isinstance(count, int) else None))
    if not specs:
        raise ModelError("the model has no inputs to feed")
    return tuple(specs)


def model_outputs(model: ModelProto) -> tuple[OutputSpec, ...]:
    """What the model answers with, as far as it says so itself; outputs that are no tensors have neither."""
    specs = []
    for value in model.graph.output:
        tensor = value.type.tensor_type  # empty where the output is of another type
        dtype = dtype_of(tensor.elem_type, value.name) if tensor.elem_type else None
        sizes = sizes_of(value) if tensor.HasField("shape") else None
        shape = None if sizes is None else tuple(size if isinstance(size, int) else None for size in sizes)
        specs.append(OutputSpec(value.name, dtype, shape))
    return tuple(specs)


def batch_axes(model: ModelProto) -> dict[str, Axis]:
    """Which axis of each input counts samples, as far as the file tells.

    The name of an axis tells most: "batch" is certain, "N" likely, and so is one that inputs and outputs share;
    "sequence_length" is none. Without names, it is the first axis that is open. Of a model whose sizes are all fixed
    the first axis is taken where it has one size in all inputs and outputs. What is left is whole inputs, as the file
    has them: nothing says that anything in them could be cut.
    """
    sizes = {name: sizes_of(value) for name, value in fed_values(model).items()}
    outputs = [sizes_of(value) for value in model.graph.output if value.type.tensor_type.HasField("shape")]
    name = _batch_name(list(sizes.values()), outputs)
    fixed = all(isinstance(size, int) for found in sizes.values() for size in found)
    known = {size[0] for size in (*sizes.values(), *outputs) if size and isinstance(size[0], int)}
    axes = {}
    for key, found in sizes.items():
        said = [axis for axis, size in enumerate(found) if size == name or _says_batch(size)]
        open_ = [axis for axis, size in enumerate(found) if size is None or (name is None and _may_count(size))]
        if not found:
            axes[key] = Axis(None, certain=True)
        elif name is not None and said:
            axis = found.index(name) if name in found else said[0]
            axes[key] = Axis(axis, certain=_says_batch(found[axis]))
        elif found[0] == 1:
            axes[key] = Axis(0, certain=True)  # a sample is what the file takes at once
        elif open_:
            axes[key] = Axis(open_[0], certain=False)
        else:
            axes[key] = Axis(0 if fixed and known == {found[0]} else None, certain=False)
    return axes


def output_axes(model: ModelProto, inputs: Sequence[InputSpec]) -> dict[str, int | None]:
    """Which axis of each output counts samples: the one named as the inputs', else the first, if that is no other's.

    None where it has none, or nobody can tell.
    """
    declared = {name: sizes_of(value) for name, value in fed_values(model).items()}
    names = {declared[spec.name][spec.axis] for spec in inputs if spec.axis is not None}
    axes: dict[str, int | None] = {}
    for value in model.graph.output:
        sizes = sizes_of(value) if value.type.tensor_type.HasField("shape") else None
        if sizes is None:
            axes[value.name] = 0
        else:
            shared = [axis for axis, size in enumerate(sizes) if size is not None and size in names]
            open_ = [axis for axis, size in enumerate(sizes) if size is None]
            if not shared and None in names and len(open_) == 1:
                shared = open_  # where no axis has a name, and one is open
            named = sizes and isinstance(sizes[0], str) and any(isinstance(name, str) for name in names)
            first = 0 if sizes and not isinstance(sizes[0], int) and not named else None
            axes[value.name] = shared[0] if shared else first
    return axes


def batch_size(model: ModelProto, inputs: Sequence[InputSpec] | None = None) -> int | None:
    """The batch size that the inputs' batch axes fix; None where they are dynamic, or there are none.

    Inputs that disagree: ModelError.
    """
    sizes = {name: dim.dim_value for name, dim in _batch_dims(model, inputs) if dim.HasField("dim_value")}
    sizes = {name: size for name, size in sizes.items() if size > 0}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ModelError(
            f"the inputs fix different batch sizes ({found}); say which axis of each counts samples, if any: "
            f"--batch-axis {next(iter(sizes))}=none, a sample is then one whole input"
        )
    return next(iter(sizes.values()), None)


def set_batch_size(
    model: ModelProto, size: int | None, folder: str | Path | None, inputs: Sequence[InputSpec] | None = None
) -> ModelProto:
    """Copy of the model, whose file lies in ``folder``, with batch ``size`` for its inputs (None: a dynamic axis "N").

    Inferred shapes are dropped, and a Reshape of what depends on these inputs whose constant shape begins with the old
    batch size gets the new one there. Graphs that bake the batch size in otherwise fail in the runtime, which names the
    node.
    """
    inputs = model_inputs(model) if inputs is None else inputs
    old = batch_size(model, inputs)
    model = copied(model)
    for _, dim in _batch_dims(model, inputs):
        dim.Clear()
        if size is None:
            dim.dim_param = "N"
        else:
            dim.dim_value = size
    del model.graph.value_info[:]
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    if old is not None and old != size and any(spec.axis == 0 for spec in inputs):
        names, constants = Names(model), constants_of(model.graph)
        counted = {spec.name for spec in inputs if spec.axis == 0}  # and what depends on these
        for node in model.graph.node:
            if counted.isdisjoint(reads(node)):
                continue
            counted.update(node.output)
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


Size = int | str | None
"""Of one axis: a number, a name, or unknown."""

_BATCHES = frozenset({"batch", "batch_size", "batchsize", "n", "b", "bs"})
_OTHERS = re.compile("seq|len|time|frame|step|token|word|point|node|edge|vert|box|roi|height|width|chan|feat", re.I)


def fed_values(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Inputs that are no constants; ModelError for one that is no tensor or has no shape."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = {value.name: value for value in model.graph.input if value.name not in constants}
    for name, value in found.items():
        if not value.type.HasField("tensor_type"):
            raise ModelError(f"input {name!r} is no tensor; trtcal can only feed tensors")
        if not value.type.tensor_type.HasField("shape"):
            raise ModelError(f"input {name!r} has no shape; export the model with the shapes of its inputs")
    return found


def sizes_of(value: ValueInfoProto) -> tuple[Size, ...]:
    """A tensor that has a shape -> its sizes."""

    def size(dim: Any) -> Size:
        if dim.HasField("dim_value") and dim.dim_value > 0:
            return int(dim.dim_value)
        return str(dim.dim_param) or None

    return tuple(size(dim) for dim in value.type.tensor_type.shape.dim)


def _likeness(name: Size) -> int:
    """Does the name of an axis say that it counts samples? 2: it is what batches are called, 1: it may say so."""
    if not isinstance(name, str):
        return 0
    return 2 if name.lower() in _BATCHES else int("batch" in name.lower() and name.isidentifier())


def _says_batch(name: Size) -> bool:
    """Is it the name of nothing else? N may count the nodes of a graph."""
    return _likeness(name) > 0 and "batch" in str(name).lower()


def _may_count(name: Size) -> bool:
    """Is it a name that does not say that something else is counted?"""
    return isinstance(name, str) and ("batch" in name.lower() or not _OTHERS.search(name))


def _batch_name(inputs: Sequence[tuple[Size, ...]], outputs: Sequence[tuple[Size, ...]]) -> str | None:
    """Sizes of inputs and of outputs -> the name of the axis that counts samples; None where no name does."""
    named = [size for sizes in inputs for size in sizes if isinstance(size, str)]
    twice = {name for sizes in inputs for name in sizes if sizes.count(name) > 1}  # as of nodes of a graph
    names = [name for name in dict.fromkeys(named) if name not in twice and _may_count(name)]

    def rank(name: str) -> tuple[int, ...]:
        return (
            _likeness(name),
            sum(name in sizes for sizes in outputs),
            any(sizes[:1] == (name,) for sizes in inputs),
            sum(name in sizes for sizes in inputs),
        )

    best = max(names, key=rank, default=None)  # the first of equals
    if best is None or _likeness(best):
        return best
    if all(sizes[0] == 1 for sizes in inputs if sizes):  # such a model takes one sample, and names what varies in it
        return None
    shared = any(best in sizes for sizes in outputs) and any(sizes[:1] == (best,) for sizes in inputs)
    return best if shared else None


def _batch_dims(model: ModelProto, inputs: Sequence[InputSpec] | None) -> list[tuple[str, Any]]:
    axes = {spec.name: spec.axis for spec in (model_inputs(model) if inputs is None else inputs)}
    values = {value.name: value for value in model.graph.input}
    return [(name, values[name].type.tensor_type.shape.dim[axis]) for name, axis in axes.items() if axis is not None]

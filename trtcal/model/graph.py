"""Read an ONNX model the way TensorRT's calibration sees it.

TensorRT calibrates network inputs, the output of every layer before fusion, and constants that stay
tensors. :func:`calibration_graph` finds those, makes the outputs visible, and says which tensors carry
another tensor's scale and so need no look of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trtcal.errors import ModelError
from trtcal.spec import InputSpec

if TYPE_CHECKING:
    from onnx import (
        AttributeProto,
        FunctionProto,
        GraphProto,
        ModelProto,
        NodeProto,
        OperatorSetIdProto,
        TensorProto,
    )

MIN_OPSET = 9
STANDARD = frozenset({"", "ai.onnx"})  # two names of one domain, that of ONNX's own ops

# TensorRT gives the outputs of these their input's scale, as caches in the wild show. Those not seen there
# (Unsqueeze, Dropout, DepthToSpace, SpaceToDepth) only move values about, so their histogram is the same.
CARRIES_SCALE = frozenset(
    {
        *("MaxPool", "AveragePool", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"),
        *("Identity", "Dropout", "DepthToSpace", "SpaceToDepth"),
    }
)
RESIZES = frozenset({"Resize", "Upsample"})  # carry the scale as well where they repeat nearest values

# Initializers of these, but for the first input, are weights or attributes of the layer and never tensors.
WEIGHT_OPS = frozenset(
    {
        *("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "LSTM", "GRU", "RNN"),
        *("Resize", "Upsample", "Clip", "Pad", "Slice", "Gather", "OneHot", "TopK", "Reshape", "Expand", "Tile"),
    }
)
# How external data are described: https://onnx.ai/onnx/repo-docs/ExternalData.html
_PLACE = frozenset({"location", "offset", "length", "checksum", "basepath"})  # the last is for writers alone
QUANTIZED_OPS = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"),
        *("ConvInteger", "MatMulInteger"),
    }
)


class Constant(NamedTuple):
    """A constant and the name of the initializer or Constant output that holds it, before any Identity."""

    name: str
    tensor: TensorProto


@dataclass(frozen=True)
class CalibrationGraph:
    """What there is to calibrate in a model.

    ``visible`` are candidates for calibration in topological order (which of them are float tensors, the
    runtime knows); ``carried`` maps an output to the tensor whose scale it has; ``constants`` are
    TensorRT's name -> value; ``order`` is every name in the order a cache lists them; ``hidden`` counts
    tensors inside If, Loop and Scan bodies, which get no range.
    """

    model: ModelProto
    path: Path
    inputs: tuple[InputSpec, ...]
    visible: tuple[str, ...]
    carried: dict[str, str]
    constants: dict[str, np.ndarray]
    order: tuple[str, ...]
    hidden: int

    @property
    def files(self) -> list[Path]:
        """The model's file, then those that hold its weights."""
        return [self.path, *(self.path.parent / name for name in external_files(self.model))]


def load_model(path: str | Path) -> ModelProto:
    """File -> model, with external data left on disk; ModelError names the file and what is wrong with it."""
    path = Path(path)
    model = load_model_alone(path)
    for name in external_files(model):
        _check_weights(path, name)
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
    if not model.graph.node or not model.graph.output:
        raise ModelError(f"{path}: is not an ONNX model with nodes and outputs")
    opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD), None)
    if opset is not None and opset < MIN_OPSET:
        raise ModelError(
            f"{path}: opset {opset} is older than {MIN_OPSET}, the oldest trtcal reads; "
            f"export again, or use onnx.version_converter"
        )
    try:
        refuse_damaged(model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return model


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
        versions.setdefault(_domain(entry), min(max(entry.version, 1), 2**31 - 1))
    for body in all_bodies(model):
        for node in body.node:
            inputs, outputs = 0, 1
            try:
                schema = onnx.defs.get_schema(node.op_type, versions.get(_domain(node), MIN_OPSET), _domain(node))
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
    for graph in _all_graphs(model):
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


def _check_weights(path: Path, name: str) -> None:
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


def array_of(tensor: TensorProto, folder: str | Path | None = None) -> np.ndarray:
    """Constant, and the model's folder, where a file may hold it -> its values.

    ModelError where it does not fit its shape, cannot be read, or lies in a file and no folder is given.
    """
    from onnx import TensorProto, numpy_helper

    if folder is None and tensor.data_location == TensorProto.EXTERNAL:
        raise ModelError(
            f"constant {tensor.name!r}: still in an external file; load the model with onnx.load(path), which reads "
            f"such files"
        )
    try:
        return numpy_helper.to_array(tensor, base_dir=str(folder or ""))
    except Exception as error:  # of ONNX, NumPy and the file system
        places = [f" in {Path(folder or '') / item.value}" for item in tensor.external_data if item.key == "location"]
        raise ModelError(f"constant {tensor.name!r}{''.join(places)}: cannot be read: {error}") from error


def dtype_of(element_type: int, name: str) -> np.dtype:
    """ONNX's number of an element type -> NumPy's type; ModelError, with the tensor's name, where there is none."""
    from onnx.helper import tensor_dtype_to_np_dtype

    try:
        return np.dtype(tensor_dtype_to_np_dtype(element_type))
    except KeyError as error:
        raise ModelError(f"tensor {name!r} has the element type {element_type}, which ONNX does not know") from error


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


def set_batch_size(model: ModelProto, size: int | None, folder: str | Path) -> ModelProto:
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


def calibration_graph(path: str | Path, model: ModelProto | None = None) -> CalibrationGraph:
    """File (or its model, changed by the caller) -> what to calibrate, with every layer's output made visible."""
    import onnx
    import onnx.inliner

    path = Path(path)
    model = load_model(path) if model is None else copied(model)
    if model.functions:  # their tensors are as good as any, but nobody sees them from outside
        try:
            model = onnx.inliner.inline_local_functions(model)
            refuse_damaged(model)
        except Exception as error:  # whatever its C++ raises
            raise ModelError(f"{path}: its functions cannot be put in their places: {error}") from error
    quantized = next((node for node in model.graph.node if is_quantized(node)), None)
    if quantized is not None:
        raise ModelError(
            f"{path}: already quantized (node {quantized.name or quantized.output[0]!r} is a {quantized.op_type}); "
            f"calibration needs the floating-point model"
        )
    held = constants_of(model.graph)
    inputs = model_inputs(model)
    order = [spec.name for spec in inputs if np.issubdtype(spec.dtype, np.floating)]
    visible = list(order)
    carried: dict[str, str] = {}
    constants: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        if op_name(node) == "Constant" or node.output[0] in held:
            continue
        for position, name in enumerate(node.input):
            tensor = held[name].tensor if name in held else None
            if tensor is None or not _is_float(tensor) or (position and op_name(node) in WEIGHT_OPS):
                continue
            # TensorRT makes a Constant layer named like the initializer; this is how it names the output.
            key = f"{tensor.name or name}_output"
            if key not in constants:
                constants[key] = _float32(array_of(tensor, path.parent))
                order.append(key)
        carries = _carries_scale(node) and node.input[0] and node.input[0] not in held
        for position, name in enumerate(node.output):
            if not name:
                continue
            order.append(name)
            if carries and position == 0:
                carried[name] = carried.get(node.input[0], node.input[0])
            else:
                visible.append(name)
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in visible if name not in known)
    hidden = sum(len(node.output) for graph in subgraphs(model.graph) for node in graph.node)
    return CalibrationGraph(model, path, inputs, tuple(visible), carried, constants, tuple(order), hidden)


def op_name(node: NodeProto) -> str:
    """Node -> its op as the tables here list it; with the domain, as ``my.ops::Resize``, where that is not ONNX's own.

    Another domain's op may have the name of one of ONNX's, and compute something else.
    """
    return f"{_domain(node)}::{node.op_type}" if _domain(node) else node.op_type


def name_domain_alike(model: ModelProto) -> None:
    """Nodes of ONNX's own ops get the one name of its domain that all of ONNX's tools know, in the model itself."""
    for body in all_bodies(model):
        for node in body.node:
            if node.domain != _domain(node):
                node.ClearField("domain")


def _domain(named: NodeProto | OperatorSetIdProto) -> str:
    return "" if named.domain in STANDARD else named.domain


def is_quantized(node: NodeProto) -> bool:
    """Does a node quantize, or compute with quantized values? ONNX Runtime has such ops in a domain of its own."""
    return node.op_type in QUANTIZED_OPS


def _carries_scale(node: NodeProto) -> bool:
    if not node.input:  # of an op that its opset does not have
        return False
    if op_name(node) in RESIZES:
        mode = next((attribute.s for attribute in node.attribute if attribute.name == "mode"), b"nearest")
        return bool(mode == b"nearest")
    return op_name(node) in CARRIES_SCALE


def constants_of(graph: GraphProto) -> dict[str, Constant]:
    """Name -> value of every initializer, of every Constant node that holds numbers, and of their Identities."""
    constants = {tensor.name: Constant(tensor.name, tensor) for tensor in graph.initializer}
    for node in graph.node:
        if op_name(node) == "Identity" and node.input and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
        elif op_name(node) == "Constant":
            for tensor in filter(None, map(_constant_value, node.attribute)):
                constants[node.output[0]] = Constant(node.output[0], tensor)
    return constants


def _constant_value(attribute: AttributeProto) -> TensorProto | None:
    """What a Constant node's attribute says, where that is a dense tensor or numbers."""
    from onnx import numpy_helper

    numbers: dict[str, tuple[Any, type]] = {
        "value_float": (attribute.f, np.float32),
        "value_floats": (list(attribute.floats), np.float32),
        "value_int": (attribute.i, np.int64),
        "value_ints": (list(attribute.ints), np.int64),
    }
    if attribute.name == "value":
        return attribute.t
    return numpy_helper.from_array(np.array(*numbers[attribute.name])) if attribute.name in numbers else None


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """Graphs inside a node: the branches of an If, the body of a Loop or Scan."""
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            if body.node or body.initializer or body.output:  # a branch may hold a constant and no node
                yield body


def subgraphs(graph: GraphProto | FunctionProto) -> Iterator[GraphProto]:
    """Graphs inside a graph's nodes, and inside theirs."""
    for node in graph.node:
        for body in bodies(node):
            yield body
            yield from subgraphs(body)


def all_bodies(model: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """Model -> whatever in it has nodes: its graph, its functions, and the graphs inside the nodes of either."""
    yield from _all_graphs(model)
    yield from model.functions


def _all_graphs(model: ModelProto) -> Iterator[GraphProto]:
    yield model.graph
    for body in (model.graph, *model.functions):
        yield from subgraphs(body)


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Model -> every constant in it, wherever it stands."""
    for graph in _all_graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for body in all_bodies(model):
        for node in body.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)


def _batch_dims(model: ModelProto) -> list[tuple[str, Any]]:
    fed = {spec.name for spec in model_inputs(model)}
    return [(value.name, value.type.tensor_type.shape.dim[0]) for value in model.graph.input if value.name in fed]


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # an inf makes the range unusable, and is reported as such
        return values.astype(np.float32)


def _is_float(tensor: TensorProto) -> bool:
    from onnx import TensorProto

    return tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def copied(model: ModelProto) -> ModelProto:
    """Model -> a copy to change."""
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(model)
    return copy

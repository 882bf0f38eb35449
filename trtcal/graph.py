"""Read an ONNX model the way TensorRT's calibration sees it.

TensorRT calibrates network inputs, the output of every layer before fusion, and constants that stay
tensors. :func:`calibration_graph` finds those, makes the outputs visible, and says which tensors carry
another tensor's scale and so need no look of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtcal.errors import ModelError
from trtcal.spec import InputSpec

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

MIN_OPSET = 9

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
QUANTIZED_OPS = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"),
        *("ConvInteger", "MatMulInteger"),
    }
)


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
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise ModelError(f"{path}: is not an ONNX file: {error}") from error
    if not model.graph.node or not model.graph.output:
        raise ModelError(f"{path}: is not an ONNX model with nodes and outputs")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is not None and opset < MIN_OPSET:
        raise ModelError(
            f"{path}: opset {opset} is older than {MIN_OPSET}, the oldest trtcal reads; "
            f"export again, or use onnx.version_converter"
        )
    for name in external_files(model):
        if not (path.parent / name).is_file():
            raise ModelError(f"{path}: its external data file {name!r} is missing in {path.parent}")
    return model


def external_files(model: ModelProto) -> list[str]:
    """Relative names of the files that hold this model's weights, sorted; empty if it holds them itself.

    A name that leaves the model's folder raises ModelError.
    """
    from onnx import TensorProto

    names = set()
    for tensor in _all_tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            if not location or Path(location).is_absolute() or ".." in Path(location).parts:
                raise ModelError(
                    f"tensor {tensor.name!r}: external data location {location!r} leaves the model's folder"
                )
            names.add(location)
    return sorted(names)


def model_inputs(model: ModelProto) -> tuple[InputSpec, ...]:
    """Inputs that must be fed, with dtype and shape; ModelError for one that is no tensor or has no batch axis."""
    from onnx.helper import tensor_dtype_to_np_dtype

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
        specs.append(InputSpec(value.name, np.dtype(tensor_dtype_to_np_dtype(tensor.elem_type)), shape[1:]))
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


def set_batch_size(model: ModelProto, size: int | None) -> ModelProto:
    """Copy of the model whose inputs have batch ``size`` (None: a dynamic axis "N").

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
        constants = _constant_tensors(model.graph)
        for node in model.graph.node:
            if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] not in constants:
                continue
            shape = onnx.numpy_helper.to_array(constants[node.input[1]])
            if shape.size > 1 and shape[0] == old and shape[0] != 0:
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
    model = copied(load_model(path) if model is None else model)
    if model.functions:  # their tensors are as good as any, but nobody sees them from outside
        model = onnx.inliner.inline_local_functions(model)
    quantized = next((node for node in model.graph.node if node.op_type in QUANTIZED_OPS), None)
    if quantized is not None:
        raise ModelError(
            f"{path}: already quantized (node {quantized.name or quantized.output[0]!r} is a {quantized.op_type}); "
            f"calibration needs the floating-point model"
        )
    constant_tensors = _constant_tensors(model.graph)
    inputs = model_inputs(model)
    order = [spec.name for spec in inputs if np.issubdtype(spec.dtype, np.floating)]
    visible = list(order)
    carried: dict[str, str] = {}
    constants: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        if node.op_type == "Constant" or node.output[0] in constant_tensors:
            continue
        for position, name in enumerate(node.input):
            tensor = constant_tensors.get(name)
            if tensor is None or not _is_float(tensor) or (position and node.op_type in WEIGHT_OPS):
                continue
            # TensorRT makes a Constant layer named like the initializer; this is how it names the output.
            key = f"{tensor.name or name}_output"
            if key not in constants:
                constants[key] = onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent)).astype(np.float32)
                order.append(key)
        carries = _carries_scale(node) and node.input[0] and node.input[0] not in constant_tensors
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
    hidden = sum(len(node.output) for graph in _subgraphs(model.graph) for node in graph.node)
    return CalibrationGraph(model, path, inputs, tuple(visible), carried, constants, tuple(order), hidden)


def _carries_scale(node: NodeProto) -> bool:
    if node.op_type in RESIZES:
        mode = next((attribute.s for attribute in node.attribute if attribute.name == "mode"), b"nearest")
        return bool(mode == b"nearest")
    return node.op_type in CARRIES_SCALE


def _constant_tensors(graph: GraphProto) -> dict[str, TensorProto]:
    """Name -> value of every initializer, of every Constant node that holds a tensor, and of their Identities."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
        elif node.op_type == "Constant":
            constants.update((node.output[0], tensor) for tensor in map(_constant_value, node.attribute) if tensor)
    return constants


def _constant_value(attribute: AttributeProto) -> TensorProto | None:
    """What a Constant node's attribute says, where that is a tensor or float numbers."""
    from onnx import numpy_helper

    if attribute.name == "value":
        return attribute.t
    if attribute.name in ("value_float", "value_floats"):
        number = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        return numpy_helper.from_array(np.asarray(number, np.float32))
    return None


def _subgraphs(graph: GraphProto) -> Iterator[GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    yield body
                    yield from _subgraphs(body)


def _all_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    for part in (graph, *_subgraphs(graph)):
        yield from part.initializer
        for node in part.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t


def _batch_dims(model: ModelProto) -> list[tuple[str, Any]]:
    fed = {spec.name for spec in model_inputs(model)}
    return [(value.name, value.type.tensor_type.shape.dim[0]) for value in model.graph.input if value.name in fed]


def _is_float(tensor: TensorProto) -> bool:
    from onnx import TensorProto

    return tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def copied(model: ModelProto) -> ModelProto:
    """Model -> a copy to change."""
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(model)
    return copy

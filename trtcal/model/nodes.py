"""What stands in an ONNX graph: nodes and the bodies inside them, constants and their values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trtcal.errors import ModelError

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto


STANDARD = frozenset({"", "ai.onnx"})  # two names of one domain, that of ONNX's own ops


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
    if tensor.data_location == TensorProto.EXTERNAL:
        refuse_cut_off(tensor, Path(folder or ""))
    try:
        return numpy_helper.to_array(tensor, base_dir=str(folder or ""))
    except Exception as error:  # of ONNX, NumPy and the file system
        places = [f" in {Path(folder or '') / item.value}" for item in tensor.external_data if item.key == "location"]
        raise ModelError(f"constant {tensor.name!r}{''.join(places)}: cannot be read: {error}") from error


def live(nodes: Sequence[NodeProto], producer: Mapping[str, int], outputs: Iterable[str]) -> frozenset[int]:
    """Nodes, which of them writes each tensor, and a graph's outputs -> numbers of the nodes that these depend on."""
    waiting = [producer[name] for name in outputs if name in producer]
    found = set(waiting)
    while waiting:
        needed = {producer[name] for name in reads(nodes[waiting.pop()]) if name in producer}
        waiting += needed - found
        found |= needed
    return frozenset(found)


def refuse_cut_off(tensor: TensorProto, folder: Path) -> None:
    """ModelError for weights beyond the end of the file where they lie, which ONNX 1.16 reads as far as they go."""
    entry = {item.key: item.value for item in tensor.external_data}
    place = [entry.get(key, "0") for key in ("offset", "length")]
    if not all(re.fullmatch("[0-9]{1,18}", number) for number in place):
        raise ModelError(f"weights {tensor.name!r} lie at {place}; expected an offset and a length")
    end = sum(map(int, place))
    try:
        size = (folder / entry["location"]).stat().st_size
    except (KeyError, OSError) as error:
        raise ModelError(f"weights {tensor.name!r}: the file where they lie cannot be read: {error}") from error
    if end > size:
        raise ModelError(
            f"weights {tensor.name!r} end at byte {end} of {entry['location']}, which has {size}; the file is cut off "
            f"or another model's"
        )


def dtype_of(element_type: int, name: str) -> np.dtype:
    """ONNX's number of an element type -> NumPy's type; ModelError, with the tensor's name, where there is none."""
    from onnx.helper import tensor_dtype_to_np_dtype

    try:
        return np.dtype(tensor_dtype_to_np_dtype(element_type))
    except KeyError as error:
        raise ModelError(f"tensor {name!r} has the element type {element_type}, which ONNX does not know") from error


def op_name(node: NodeProto) -> str:
    """Node -> its op as the tables here list it; with the domain, as ``my.ops::Resize``, where that is not ONNX's own.

    Another domain's op may have the name of one of ONNX's, and compute something else.
    """
    return f"{domain_of(node)}::{node.op_type}" if domain_of(node) else node.op_type


def label(node: NodeProto) -> str:
    """What to call a node in a message: its op type and its name, or that of its output if it has none."""
    return f"{node.op_type} {node.name or node.output[0]!r}"


def name_domain_alike(model: ModelProto) -> None:
    """Nodes of ONNX's own ops get the one name of its domain that all of ONNX's tools know, in the model itself."""
    for body in all_bodies(model):
        for node in body.node:
            if node.domain != domain_of(node):
                node.ClearField("domain")


def domain_of(named: NodeProto | OperatorSetIdProto | FunctionProto) -> str:
    """The domain of an op or of a set of ops, "" for ONNX's own by either of its names."""
    return "" if named.domain in STANDARD else named.domain


def is_quantized(node: NodeProto) -> bool:
    """Does a node quantize, or compute with quantized values? ONNX Runtime has such ops in a domain of its own."""
    return node.op_type in QUANTIZED_OPS


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
    yield from all_graphs(model)
    yield from model.functions


def all_graphs(model: ModelProto) -> Iterator[GraphProto]:
    """Model -> its graph, and the graphs inside its nodes and those of its functions."""
    yield model.graph
    for body in (model.graph, *model.functions):
        yield from subgraphs(body)


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Model -> every constant in it, wherever it stands."""
    for graph in all_graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for body in all_bodies(model):
        for node in body.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)


def reads(node: NodeProto) -> Iterator[str]:
    """Names a node reads, those that the bodies inside it read from outside included."""
    yield from dict.fromkeys(filter(None, node.input))
    for body in bodies(node):
        own = set(defined_in(body))
        for name in (*(name for inner in body.node for name in reads(inner)), *(value.name for value in body.output)):
            if name not in own:
                yield name


def defined_in(graph: GraphProto) -> Iterator[str]:
    """Names that a graph gives to its inputs, its constants and what its nodes write."""
    yield from (value.name for value in (*graph.input, *graph.initializer))
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    yield from (name for node in graph.node for name in node.output if name)


class Names:
    """Names in use in a model, of tensors and nodes in all of its bodies, and new ones beside them."""

    def __init__(self, model: ModelProto) -> None:
        self._taken = {name for graph in all_graphs(model) for name in defined_in(graph)}
        for graph in all_graphs(model):
            self._taken.update(value.name for value in (*graph.output, *graph.value_info))
            self._taken.update(name for node in graph.node for name in (node.name, *node.input))
        self._count = 0

    def __contains__(self, name: str) -> bool:
        return name in self._taken

    def new(self, name: str) -> str:
        """The name, or if it is in use one like it; it is in use from now on."""
        found = name
        while found in self._taken:
            found = f"{name}_{self._count}"
            self._count += 1
        self._taken.add(found)
        return found


def copied_node(node: NodeProto) -> NodeProto:
    """Node -> a copy to change."""
    from onnx import NodeProto

    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def copied(model: ModelProto) -> ModelProto:
    """Model -> a copy to change."""
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def replaced(field: Any, items: Iterable[Any]) -> None:
    """Set a repeated field of a protobuf message, from items that may come out of it."""
    items = list(items)
    del field[:]
    field.extend(items)

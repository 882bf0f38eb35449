"""An ONNX graph, indexed for Q/DQ: who writes and reads a tensor, what is constant, what shares a kernel."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.calibrated import CARRIES_SCALE
from trtcal.model.names import NO_ORIGINALS, Originals
from trtcal.model.nodes import (
    all_graphs,
    array_of,
    bodies,
    constants_of,
    domain_of,
    dtype_of,
    live,
    name_domain_alike,
    op_name,
    reads,
)

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TypeProto

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# Element by element, so that TensorRT computes them inside the kernel of the layer before.
POINTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Sqrt", "Exp", "Abs", "Neg", "Erf"}
    | {"BatchNormalization", "Clip", "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Mish"}
    | {"Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus"}
    | {"Identity", "Dropout"}
)

# What they make of a constant is none.
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

_SHAPE = 64  # elements; no shape has more

# The output is the input, moved about: with both of them INT8, one scale serves both.
MOVES_VALUES = CARRIES_SCALE - {"AveragePool"}


class Graph:
    """A model's main graph, indexed: who writes and who reads a tensor, what is constant, what is fused.

    ``constants`` are initializers and Constant nodes, also behind an Identity; ``fixed`` are these and all
    that is computed from nothing else. ``readers`` counts a node as reader of what the bodies inside it (If,
    Loop, Scan) read. ``live`` has the indices of the nodes that an output depends on; the others TensorRT takes out
    before it fuses anything. ``root`` maps each live weighted and pointwise node to the node whose kernel computes it.
    ``originals`` has the names that nodes and tensors have in the file, where these are others.
    """

    def __init__(self, model: ModelProto, originals: Originals = NO_ORIGINALS) -> None:
        self.model = model
        self.originals = originals
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.outputs = frozenset(value.name for value in model.graph.output)
        self.constants = constants_of(model.graph)
        self.fixed = fixed_in(model.graph)
        self.producer: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in reads(node):
                self.readers.setdefault(name, []).append(index)
            for name in node.output:
                self.producer[name] = index
        self.tensors = frozenset(
            {value.name for value in model.graph.input} | self.constants.keys() | self.producer.keys()
        )
        self.types = element_types(model)
        self.live = live(self.nodes, self.producer, self.outputs)
        self.root: dict[int, int] = {}
        self._find_roots()

    def dtype(self, name: str) -> np.dtype:
        """Element type; float32 where it is unknown, as behind an op of another domain."""
        from onnx import TensorProto

        return dtype_of(self.types.get(name, TensorProto.FLOAT), name)

    def array(self, name: str) -> np.ndarray:
        """Value of a constant; ModelError if it lies in a file that was not loaded."""
        return array_of(self.constants[name].tensor)

    def activations(self, index: int) -> list[int]:
        """Positions of the node's inputs that depend on the model's inputs."""
        inputs = self.nodes[index].input
        return [position for position, name in enumerate(inputs) if name and name not in self.fixed]

    def is_fused(self, index: int, position: int) -> bool:
        """Does TensorRT compute this input in the same kernel as the node that reads it?"""
        name = self.nodes[index].input[position]
        return self._is_fusible(name) and self.root[self.producer[name]] == self.root.get(index)

    def moved_from(self, name: str) -> str | None:
        """The tensor whose values this one holds in another order; None if it holds its own."""
        index = self.producer.get(name)
        if index is None or op_name(self.nodes[index]) not in MOVES_VALUES:
            return None
        return str(self.nodes[index].input[0])

    def live_readers(self, name: str) -> list[int]:
        """Indices of the live nodes that read a tensor."""
        return [index for index in self.readers.get(name, ()) if index in self.live]

    def _find_roots(self) -> None:
        """Of two layers summed up, the later one takes the sum: the other's result is there by then.

        Later in the file, as TensorRT has it: it gave the sum to a ResNet's 1x1 convolution beside the deeper branch
        (NVIDIA/TensorRT#4020).
        """
        for index, node in enumerate(self.nodes):
            if index not in self.live:
                continue
            if op_name(node) in WEIGHTED:
                self.root[index] = index
            elif op_name(node) in POINTWISE:
                names = [node.input[position] for position in self.activations(index)]
                roots = [self.root[self.producer[name]] for name in names if self._is_fusible(name)]
                if roots or op_name(node) not in ("Identity", "Dropout"):  # which make no kernel of their own
                    self.root[index] = max(roots, default=index)

    def _is_fusible(self, name: str) -> bool:
        """A tensor that need never be stored: fused nodes make it, and only pointwise nodes read it."""
        return (
            self.producer.get(name) in self.root
            and name not in self.outputs
            and all(op_name(self.nodes[reader]) in POINTWISE for reader in self.live_readers(name))
        )


def fixed_in(graph: GraphProto) -> set[str]:
    """Sorted graph -> its constants, and what is computed from nothing else."""
    fixed = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        computed = node.input and fixed.issuperset(reads(node)) and not _is_random(node)
        if computed or op_name(node) == "Constant":
            fixed.update(node.output)
    return fixed


def _is_random(node: NodeProto) -> bool:
    """Does a node, or one inside it, draw numbers? Dropout does where its third input says that it is training."""
    trains = op_name(node) == "Dropout" and any(node.input[2:])
    inside = (inner for body in bodies(node) for inner in body.node)
    return trains or op_name(node) in RANDOM or any(map(_is_random, inside))


def int_attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node, or the default that ONNX gives it."""
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def decisive(graph: GraphProto, outputs: Iterable[str], known: Collection[str]) -> Iterator[str]:
    """Outputs of a graph -> the known tensors next to them, a nan in which is in an output or in what makes it."""
    producer = {output: node for node in graph.node for output in node.output}
    waiting = list(outputs)
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        if name in known:
            yield name
        elif name in producer and op_name(producer[name]) != "IsNaN":  # whose answer is none
            new = [read for read in reads(producer[name]) if read not in seen]
            seen.update(new)
            waiting += new


def element_types(model: ModelProto) -> dict[str, int]:
    """Element type of every tensor that the model declares or ONNX can infer."""
    return {name: found.elem_type for name, found in inferred(model).items()}


def inferred(model: ModelProto, nodes: Iterable[NodeProto] | None = None) -> dict[str, TypeProto.Tensor]:
    """Element type, and shape if known, of every tensor that the model declares or ONNX can infer from these nodes.

    Inferred on a copy whose constants are inputs, but for small integers, which may be shapes: types do not depend on
    values, and weights are big.
    """
    import onnx

    skeleton = onnx.ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    skeleton.graph.node.extend(model.graph.node if nodes is None else nodes)
    skeleton.graph.input.extend(model.graph.input)
    known = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and math.prod(tensor.dims) <= _SHAPE and not tensor.external_data:
            skeleton.graph.initializer.append(tensor)
        if tensor.name not in known:
            skeleton.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    skeleton.graph.output.extend(model.graph.output)
    skeleton.graph.value_info.extend(model.graph.value_info)
    name_domain_alike(skeleton)
    imported = {domain_of(entry) for entry in skeleton.opset_import}
    for domain in {node.domain for graph in all_graphs(skeleton) for node in graph.node} - imported:
        skeleton.opset_import.add(domain=domain, version=1)  # ONNX infers nothing at all where one is not imported
    try:
        graph = onnx.shape_inference.infer_shapes(skeleton).graph
    except Exception as error:  # whatever its C++ raises
        raise ModelError(f"ONNX cannot tell the types of the model's tensors: {error}") from error
    return {
        value.name: value.type.tensor_type
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type
    }

"""Biases corrected for the mean shift that INT8 leaves at a layer's output.

Layer by layer, in the order of the graph: the INT8 model is computed from one layer with weights to the next for all
samples, the mean of each output channel is compared with the FP32 model's, and the difference goes into the bias before
the next stretch is computed. So every layer sees the inputs that it will have, from layers that are corrected already.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), empirical bias
correction; and "A White Paper on Neural Network Quantization" (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtcal.model.nodes import copied, op_name, reads
from trtcal.model.runner import OrtRunner
from trtcal.model.topology import Graph, int_attribute
from trtcal.passes.ordered import in_order
from trtcal.qdq.placement import WEIGHT_AXIS, layer_name

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


@dataclass(frozen=True)
class Bias:
    """Where a layer's bias can be changed: an initializer, by what sign, or none yet.

    ``sign`` is -1 for the mean of a batch normalization, which is subtracted. ``channel`` is the axis of the channels
    of ``tensor``, the output whose mean is compared.
    """

    layer: str
    tensor: str
    channel: int
    initializer: str | None
    sign: int
    index: int


def correctable(graph: Graph) -> list[Bias]:
    """Graph -> the layers whose bias can be changed without changing anything else, in order."""
    found = []
    times: dict[str, int] = {}
    for node in graph.nodes:
        for name in reads(node):
            if name in graph.constants:
                times[graph.constants[name].name] = times.get(graph.constants[name].name, 0) + 1

    def own(name: str) -> str | None:
        """The initializer behind a constant that nobody else reads."""
        if name not in graph.constants or name in graph.outputs:
            return None
        held = graph.constants[name].name
        return held if times.get(held) == 1 and held in initializers else None

    initializers = {tensor.name for tensor in graph.model.graph.initializer}
    for index, node in enumerate(graph.nodes):
        if op_name(node) not in WEIGHT_AXIS or node.input[1] not in graph.constants or node.output[0] in graph.fixed:
            continue
        place = _place(graph, index, own)
        if place is not None:
            found.append(Bias(layer_name(node), *place, index))
    return found


def _place(graph: Graph, index: int, own: Callable[[str], str | None]) -> tuple[str, int, str | None, int] | None:
    """A layer -> the tensor to compare, the axis of its channels, the initializer to change and the sign."""
    node = graph.nodes[index]
    output = node.output[0]
    channel = -1 if op_name(node) in ("Gemm", "MatMul") else 1
    if op_name(node) != "MatMul" and len(node.input) > 2 and node.input[2]:
        bias = own(node.input[2])
        if bias is None:
            return None
        channels = _channels(graph, node)
        return (output, channel, bias, 1) if graph.array(node.input[2]).shape == (channels,) else None
    only = graph.readers.get(output, [])
    after = graph.nodes[only[0]] if len(only) == 1 and output not in graph.outputs else None
    if after is not None and op_name(after) == "BatchNormalization" and after.input[0] == output:
        mean = own(after.input[3])
        if mean is not None:
            return output, channel, mean, -1
    if op_name(node) == "MatMul":
        if after is None or op_name(after) != "Add":
            return None
        other = after.input[1] if after.input[0] == output else after.input[0]
        bias = own(other)
        if bias is None or graph.array(other).shape != (_channels(graph, node),):
            return None
        return output, channel, bias, 1
    return output, channel, None, 1


def _channels(graph: Graph, node: NodeProto) -> int:
    shape = graph.array(node.input[1]).shape
    if op_name(node) == "Conv":
        return int(shape[0])
    if op_name(node) == "ConvTranspose":
        return int(shape[1]) * int_attribute(node, "group", 1)
    if op_name(node) == "Gemm":
        return int(shape[0 if int_attribute(node, "transB", 0) else 1])
    return int(shape[-1])


def channel_means(answers: Sequence[np.ndarray], channel: int) -> np.ndarray:
    """One tensor of all samples -> the mean of each channel, float64; every sample counts alike."""
    total: np.ndarray | None = None
    for array in answers:
        axis = channel % array.ndim
        mean = array.mean(axis=tuple(i for i in range(array.ndim) if i != axis), dtype=np.float64)
        total = mean if total is None else total + mean
    assert total is not None
    return total / len(answers)


def shifts(
    int8: ModelProto,
    places: Sequence[Bias],
    expected: Mapping[str, np.ndarray],
    samples: Sequence[Mapping[str, np.ndarray]],
    workers: int = 1,
    libraries: Sequence[Path] = (),
) -> dict[str, np.ndarray]:
    """Q/DQ model, its biases, FP32's means by tensor, samples -> what to add to each tensor's channels, float64.

    The samples' tensors at one cut of the graph are held at a time, and forgotten when no later node reads them.
    """
    graph = Graph(int8)
    parts = _Parts(graph)
    wanted = {place.tensor: place for place in places}
    order = [graph.producer[name] for name in wanted if name in graph.producer]
    cuts = sorted({*order, len(graph.nodes) - 1})
    last_read = {name: max(readers) for name, readers in graph.readers.items()}
    alive: list[dict[str, np.ndarray]] = [dict(sample) for sample in samples]
    found: dict[str, np.ndarray] = {}
    begin = 0
    for cut in cuts:
        if begin > max(order, default=-1):
            break  # behind the last bias nobody looks
        made = {name for node in graph.nodes[begin : cut + 1] for name in node.output if name}
        needed = [name for name in parts.read(begin, cut + 1) if name not in made and name in alive[0]]
        kept = [name for name in made if last_read.get(name, -1) > cut or name in wanted]
        shown = parts.model(begin, cut + 1, needed, kept)
        with OrtRunner(shown, name="INT8 model", outputs=kept, threads=1, libraries=libraries) as runner:
            fed = ({name: tensors[name] for name in needed} for tensors in alive)
            for tensors, answer in zip(alive, in_order(runner, fed, workers), strict=True):
                for name in [name for name in tensors if last_read.get(name, -1) <= cut]:
                    del tensors[name]
                tensors.update(answer)
        for name in kept:
            if name in wanted and name in expected:
                place = wanted[name]
                shift = expected[name] - channel_means([tensors[name] for tensors in alive], place.channel)
                found[name] = shift
                for tensors in alive:
                    array = tensors[name]
                    shape = [1] * array.ndim
                    shape[place.channel % array.ndim] = -1
                    tensors[name] = (array + shift.reshape(shape)).astype(array.dtype)
        begin = cut + 1
    return found


class _Parts:
    """Stretches of a graph's nodes, as models of them alone."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._reads = [tuple(reads(node)) for node in graph.nodes]
        self._initializers = {tensor.name: tensor for tensor in graph.model.graph.initializer}
        self._constants = {node.output[0]: node for node in graph.nodes if op_name(node) == "Constant"}

    def read(self, begin: int, end: int) -> list[str]:
        """What the nodes from ``begin`` up to ``end`` read, in order."""
        return list(dict.fromkeys(name for names in self._reads[begin:end] for name in names))

    def model(self, begin: int, end: int, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
        """These nodes, with the constants that they read, wherever they stand."""
        import onnx

        whole, nodes, names = self._graph.model, self._graph.nodes[begin:end], self.read(begin, end)
        made = {name for node in nodes for name in node.output}
        model = onnx.ModelProto(ir_version=whole.ir_version, opset_import=whole.opset_import)
        model.graph.name = "part"
        model.graph.node.extend(self._constants[name] for name in names if name in self._constants and name not in made)
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(self._initializers[name] for name in names if name in self._initializers)
        for name in inputs:
            value = model.graph.input.add(name=name)
            value.type.tensor_type.elem_type = self._graph.types.get(name, onnx.TensorProto.FLOAT)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return model


def with_biases(model: ModelProto, places: Sequence[Bias], found: Mapping[str, np.ndarray]) -> ModelProto:
    """Float model, its biases and what to add to each tensor's channels -> a copy with the biases changed."""
    from onnx import numpy_helper

    model = copied(model)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.output[0]: node for node in model.graph.node if node.output}
    for place in places:
        if place.tensor not in found:
            continue
        shift = found[place.tensor]
        if place.initializer is not None:
            tensor = held[place.initializer]
            value = numpy_helper.to_array(tensor)
            changed = (value + place.sign * shift).astype(value.dtype)
            tensor.CopyFrom(numpy_helper.from_array(changed, place.initializer))
            continue
        node = nodes[place.tensor]
        name = f"{node.output[0]}_bias"
        while name in held:
            name += "_"
        held[name] = model.graph.initializer.add()
        held[name].CopyFrom(numpy_helper.from_array(shift.astype(np.float32), name))
        if len(node.input) > 2:
            node.input[2] = name
        else:
            node.input.append(name)
    return model

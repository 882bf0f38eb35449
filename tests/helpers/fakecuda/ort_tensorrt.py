"""A stand-in for the tensorrt module whose engines are run by ONNX Runtime, on addresses of ordinary memory.

It has what `calibrators.visible` uses and refuses what TensorRT is known to refuse: outputs that are no floats, shapes
outside the profile, FP16 without its flag. Where TF32 was left on, values have its ten bits of mantissa. As in TensorRT's
parser, an Identity makes no layer: its input's tensor goes by the output's name.
"""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx

from trtcal.model.runner import OrtRunner

__version__ = "10.3.0"
BUILT: list[dict[str, Any]] = []
"""What every engine was built of: names of outputs, flags, profile, workspace."""
REFUSED: set[str] = set()
"""Types of nodes that the parser does not know."""

_TYPES = {1: "FLOAT", 10: "HALF", 6: "INT32", 7: "INT64", 9: "BOOL", 11: "DOUBLE"}
float32 = SimpleNamespace(name="FLOAT")
BuilderFlag = SimpleNamespace(TF32="TF32", FP16="FP16", INT8="INT8")
MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")
NetworkDefinitionCreationFlag = SimpleNamespace()


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = (
        SimpleNamespace(name=name) for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
    )

    def __init__(self) -> None:
        pass


class Tensor:
    def __init__(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, SimpleNamespace(name=dtype), shape
        self.known_as = name
        self.is_shape_tensor = self.is_network_output = False


class Layer:
    def __init__(self, outputs: list[Tensor | None]) -> None:
        self._outputs = outputs
        self.num_outputs = len(outputs)

    def get_output(self, number: int) -> Tensor | None:
        return self._outputs[number]


class Network:
    def __init__(self) -> None:
        self.model = b""
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.layers: list[Layer] = []

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))
    num_layers = property(lambda self: len(self.layers))

    def get_input(self, number: int) -> Tensor:
        return self.inputs[number]

    def get_output(self, number: int) -> Tensor:
        return self.outputs[number]

    def get_layer(self, number: int) -> Layer:
        return self.layers[number]

    def mark_output(self, tensor: Tensor) -> None:
        assert tensor not in self.outputs and tensor not in self.inputs
        tensor.is_network_output = True
        self.outputs.append(tensor)

    def unmark_output(self, tensor: Tensor) -> None:
        tensor.is_network_output = False
        self.outputs.remove(tensor)


class OnnxParser:
    def __init__(self, network: Network, log: Any) -> None:
        self._network = network
        self._problem = ""

    def parse(self, data: bytes, path: str | None = None) -> bool:
        model = onnx.load_from_string(data)
        odd = next((node.op_type for node in model.graph.node if node.op_type in REFUSED), None)
        if odd is not None:
            self._problem = f"No importer registered for op: {odd}"
            return False
        assert all(value.type.WhichOneof("value") for value in model.graph.output), "an output without a type"
        network, constants = self._network, {tensor.name for tensor in model.graph.initializer}
        network.model = data
        for value in model.graph.input:
            if value.name not in constants:
                network.inputs.append(_tensor(value))
        types = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
        types |= {value.name: value for value in model.graph.output}
        tensors = {tensor.name: tensor for tensor in network.inputs}
        for node in model.graph.node:
            if node.op_type == "Constant" or all(name in constants for name in node.input if name):
                constants.update(node.output)  # folded
                continue
            if node.op_type == "Identity" and node.input[0] not in {tensor.name for tensor in network.inputs}:
                tensors[node.output[0]] = tensors.pop(node.input[0])
                tensors[node.output[0]].name = node.output[0]
                continue
            made = [_tensor(types[name], name) if name else None for name in node.output]
            tensors |= {tensor.name: tensor for tensor in made if tensor}
            network.layers.append(Layer(made))
        for value in model.graph.output:
            if value.name in tensors and tensors[value.name] not in network.inputs:
                network.mark_output(tensors[value.name])
        return True

    @property
    def num_errors(self) -> int:
        return bool(self._problem)

    def get_error(self, number: int) -> Any:
        return SimpleNamespace(desc=lambda: self._problem)


def _tensor(value: onnx.ValueInfoProto, name: str = "") -> Tensor:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return Tensor(name or value.name, _TYPES[tensor.elem_type], shape)


class Profile(dict[str, Any]):
    def set_shape(self, name: str, low: Sequence[int], best: Sequence[int], high: Sequence[int]) -> None:
        assert all(a <= b <= c for a, b, c in zip(low, best, high, strict=True))
        self[name] = tuple(low), tuple(best), tuple(high)


class Config:
    def __init__(self) -> None:
        self.flags = {"TF32"}  # on by default, as in TensorRT
        self.profile: Profile | None = None
        self.workspace: int | None = None

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def set_memory_pool_limit(self, kind: str, nbytes: int) -> None:
        self.workspace = nbytes

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profile = profile


class Builder:
    def __init__(self, log: Any) -> None:
        self._log = log

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        if not network.outputs or any(tensor.dtype.name != "FLOAT" for tensor in network.outputs):
            self._log.log(ILogger.ERROR, "an output is no float")
            return None
        tensors = [*network.inputs, *(tensor for layer in network.layers for tensor in layer._outputs if tensor)]
        if any(tensor.dtype.name == "HALF" for tensor in tensors) and "FP16" not in config.flags:
            self._log.log(ILogger.ERROR, "fp16 is not configured in the builder")
            return None
        dynamic = any(-1 in tensor.shape for tensor in network.inputs)
        if dynamic and config.profile is None:
            self._log.log(ILogger.ERROR, "no optimization profile")
            return None
        built = {
            "outputs": [tensor.name for tensor in network.outputs],
            "flags": sorted(config.flags),
            "profile": dict(config.profile) if config.profile else {tensor.name: (tensor.shape,) * 3 for tensor in network.inputs},
            "workspace": config.workspace,
        }
        BUILT.append(built)
        inputs = {tensor.name: tensor.dtype.name for tensor in network.inputs}
        return pickle.dumps((network.model, built, inputs, {tensor.name: tensor.known_as for tensor in network.outputs}))


class Runtime:
    def __init__(self, log: Any) -> None:
        pass

    def deserialize_cuda_engine(self, plan: bytes) -> Engine:
        return Engine(plan)


class Engine:
    def __init__(self, plan: bytes) -> None:
        self.plan = plan
        model, built, inputs, known_as = pickle.loads(plan)
        needed = set(known_as.values())
        for node in reversed(onnx.load_from_string(model).graph.node):
            needed |= set(node.input) if needed & set(node.output) else set()
        self._names = [*(name for name in inputs if name in needed), *built["outputs"]]

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    def get_tensor_name(self, number: int) -> str:
        return self._names[number]

    def create_execution_context(self) -> Context:
        return Context(self.plan)


class Context:
    def __init__(self, plan: bytes) -> None:
        model, self._built, self._inputs, self._known_as = pickle.loads(plan)
        graph = onnx.load_from_string(model)
        self._dtypes = {value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in graph.graph.input}
        known = {value.name for value in graph.graph.output}
        graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._known_as.values() if name not in known)
        self._runner = OrtRunner(graph, threads=1, outputs=list(self._known_as.values()))
        self._given = set(Engine(plan)._names)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert name in self._given, f"the engine has no input {name}"
        low, _, high = self._built["profile"][name]
        self._shapes[name] = tuple(shape)
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name.endswith("nonzero"):
            return (-1,)
        answer = self._runner(self._whole({name: np.ones(s, self._dtypes[name]) for name, s in self._shapes.items()}))
        return answer[self._known_as[name]].shape

    def _whole(self, fed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """With something for inputs that the engine does not have; ONNX Runtime asks for all."""
        best = {name: shapes[1] for name, shapes in self._built["profile"].items()}
        return {name: fed[name] if name in fed else np.ones(best[name], dtype) for name, dtype in self._dtypes.items()}

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self._given, f"the engine has no tensor {name}"
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        fed = {}
        for name, shape in self._shapes.items():
            dtype = np.dtype({"FLOAT": "float32", "INT32": "int32", "INT64": "int64", "HALF": "float16"}[self._inputs[name]])
            values = np.frombuffer(ctypes.string_at(self._addresses[name], int(np.prod(shape)) * dtype.itemsize), dtype)
            fed[name] = values.reshape(shape).astype(self._dtypes[name])
        answer = self._runner(self._whole(fed))
        for name in self._built["outputs"]:
            values = np.ascontiguousarray(answer[self._known_as[name]], np.float32)
            if "TF32" in self._built["flags"]:
                values = (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
            ctypes.memmove(self._addresses[name], values.ctypes.data, values.nbytes)
        return True

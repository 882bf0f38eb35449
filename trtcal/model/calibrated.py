"""Which tensors of a model get a range, as TensorRT's calibration sees it.

TensorRT calibrates network inputs, the output of every layer before fusion, and constants that stay
tensors. :func:`calibration_graph` finds those, makes the outputs visible, and says which tensors carry
another tensor's scale and so need no look of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.batch_axis import model_inputs
from trtcal.model.nodes import all_bodies, array_of, constants_of, copied, is_quantized, op_name

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto


# The outputs of these have their input's scale. TensorRT hands it on from a pool's input to its output, as caches in
# the wild show; the others hold their input's values, so that it makes no difference whether they are measured or not.
CARRIES_SCALE = frozenset(
    {
        *("MaxPool", "AveragePool", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"),
        *("Identity", "Dropout", "DepthToSpace", "SpaceToDepth"),
    }
)


# Behind a pool it does: its output has the scale of other values. TensorRT 8.5.1 measured a Reshape there (5 of 5), and
# these become a Reshape in its parser. A Transpose it did not measure (10.3, seen once).
POOLS = frozenset({"MaxPool", "AveragePool"})
MEASURED_BEHIND_POOLS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "DepthToSpace", "SpaceToDepth"})
RESIZES = frozenset({"Resize", "Upsample"})  # carry the scale as well where they repeat nearest values


# Initializers of these, but for the first input, are weights or attributes of the layer and never tensors.
WEIGHT_OPS = frozenset(
    {
        *("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "LSTM", "GRU", "RNN"),
        *("Resize", "Upsample", "Clip", "Pad", "Slice", "Gather", "OneHot", "TopK", "Reshape", "Expand", "Tile"),
    }
)


@dataclass(frozen=True)
class CalibrationGraph:
    """What there is to calibrate in a model.

    ``visible`` are candidates for calibration in topological order (which of them are float tensors, the
    runtime knows); ``carried`` maps an output to the tensor whose scale it has; ``constants`` are
    TensorRT's name -> value; ``order`` is every name in the order a cache lists them; ``hidden`` counts
    tensors inside If, Loop and Scan bodies and functions that stay functions, which get no range.
    """

    model: ModelProto
    visible: tuple[str, ...]
    carried: dict[str, str]
    constants: dict[str, np.ndarray]
    order: tuple[str, ...]
    hidden: int

    @property
    def sources(self) -> dict[str, str]:
        """Every name, in the order a cache lists them -> the tensor whose scale it has, mostly itself."""
        return {name: self.carried.get(name, name) for name in self.order}


def refuse_quantized(model: ModelProto) -> None:
    """ModelError for a model with operators of integer arithmetic."""
    quantized = next((node for body in all_bodies(model) for node in body.node if is_quantized(node)), None)
    if quantized is not None:
        raise ModelError(
            f"already quantized (node {quantized.name or quantized.output[0]!r} is a {quantized.op_type}); "
            f"calibration needs the floating-point model"
        )


def calibration_graph(
    model: ModelProto,
    folder: Path | None = None,
    *,
    lost: Container[str] = (),
    part: Callable[[ModelProto], ModelProto] = lambda model: model,
) -> CalibrationGraph:
    """Model, and where its weights lie -> what to calibrate, with every layer's output made visible.

    ``lost`` are tensors that ONNX Runtime cannot compute, and ``part`` is what of the model it can: they are visible
    where something else runs the model.
    """
    refuse_quantized(model)
    held = constants_of(model.graph)
    tensors = {name for node in model.graph.node for name in node.output} | {value.name for value in model.graph.input}
    order = [spec.name for spec in model_inputs(model) if np.issubdtype(spec.dtype, np.floating)]
    visible = list(order)
    carried: dict[str, str] = {}
    pooled: set[str] = set()  # what carries the scale of other values than its own
    constants: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        if op_name(node) == "Constant" or node.output[0] in held:
            continue
        for position, read in enumerate(node.input):
            tensor = held[read].tensor if read in held else None
            if tensor is None or not _is_float(tensor) or (position and op_name(node) in WEIGHT_OPS):
                continue
            # TensorRT makes a Constant layer named like the initializer; this is how it names the output.
            key = f"{tensor.name or read}_output"
            if key not in constants and key not in tensors:  # whose own range it would take
                constants[key] = _float32(array_of(tensor, folder))
                order.append(key)
        carries = _carries_scale(node) and node.input[0] and node.input[0] not in held
        if carries and node.input[0] in pooled and op_name(node) in MEASURED_BEHIND_POOLS:
            carries = False
        if carries and (node.input[0] in pooled or op_name(node) in POOLS):
            pooled.add(node.output[0])
        for position, output in enumerate(node.output):
            if not output:
                continue
            order.append(output)
            if carries and position == 0:
                carried[output] = carried.get(node.input[0], node.input[0])
            else:
                visible.append(output)
    hidden = sum(len(node.output) for body in all_bodies(model) for node in body.node)
    hidden -= sum(len(node.output) for node in model.graph.node)
    shown = with_outputs(part(model), [name for name in visible if name not in lost])
    return CalibrationGraph(shown, tuple(visible), carried, constants, tuple(order), hidden)


def with_outputs(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """Model and names of its tensors -> a copy that has them among its outputs; inputs are there anyway."""
    import onnx

    model = copied(model)
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return model


def _carries_scale(node: NodeProto) -> bool:
    if not node.input:  # of an op that its opset does not have
        return False
    if op_name(node) in RESIZES:
        mode = next((attribute.s for attribute in node.attribute if attribute.name == "mode"), b"nearest")
        return bool(mode == b"nearest")
    return op_name(node) in CARRIES_SCALE


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # an inf makes the range unusable, and is reported as such
        return values.astype(np.float32)


def _is_float(tensor: TensorProto) -> bool:
    from onnx import TensorProto

    return tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

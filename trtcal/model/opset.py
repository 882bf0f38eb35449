"""A model of an older opset raised to a newer one, so that it computes the same under the same names.

ONNX's own converter gives Resize and Upsample of opset 10 and older other sampling, and renames tensors
(https://github.com/onnx/onnx/issues/8480). Here each op whose definition changed is written anew by one function; all
others mean the same in both opsets. What comes out is compared with what went in, by running both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.nodes import (
    STANDARD,
    Names,
    all_bodies,
    array_of,
    bodies,
    constants_of,
    copied,
    domain_of,
    dtype_of,
    label,
    name_domain_alike,
    replaced,
)
from trtcal.model.same import check_same
from trtcal.model.topology import inferred

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TypeProto

OLDEST, NEWEST = 9, 13  # opsets from and to which a model can be raised
IR_VERSION = 7  # of ONNX 1.8, which brought opset 13


def raise_opset(
    model: ModelProto,
    opset: int,
    *,
    samples: Iterable[Mapping[str, np.ndarray]] | None = None,
    folder: str | Path | None = None,
    libraries: Sequence[Path] = (),
    part: Callable[[ModelProto], ModelProto] = lambda model: model,
) -> ModelProto:
    """Model -> a copy of at least this opset, at most 13, that computes the same; tensors and nodes keep their names.

    Both are run on ``samples``, each ``{input: array}`` as the model takes it, or on random ones, by
    :func:`trtcal.model.same.check_same`, or the ``part`` of them that can be run. ``folder`` is where weights lie that
    the model keeps in files, ``libraries`` have custom operators.
    ModelError names the first node that computes something else afterwards, and a node that newer opsets have no
    way to write; ValueError for an opset beyond 13.
    """
    after, changed = rewritten(model, opset)
    if changed:
        check_same(part(model), part(after), watched=changed, samples=samples, folder=folder, libraries=libraries)
    return after


def opset_of(model: ModelProto) -> int:
    """The opset of ONNX's own ops; of two the first, as everyone takes it, and where none is given a recent one."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in STANDARD), NEWEST)


def rewritten(model: ModelProto, opset: int) -> tuple[ModelProto, tuple[str, ...]]:
    """As :func:`raise_opset`, but nothing is run: the copy, and outputs of the nodes that were written anew."""
    if opset > NEWEST:
        raise ValueError(f"a model can be raised to opset {NEWEST} at most, not to {opset}")
    before = opset_of(model)
    after = copied(model)
    name_domain_alike(after)
    if before >= opset:
        return after, ()
    if before < OLDEST:
        raise ModelError(
            f"the model has opset {before}, and {OLDEST} is the oldest that can be raised; export it again"
        )
    writer = _Writer(model)
    writer.rewrite(after.graph, range(before + 1, opset + 1))
    after.ir_version = max(after.ir_version, IR_VERSION)  # by which initializers need not be inputs
    others = [entry for entry in after.opset_import if domain_of(entry)]
    replaced(after.opset_import, others)
    after.opset_import.add(domain="", version=opset)
    return after, tuple(writer.changed)


class _Writer:
    """Writes nodes anew; knows which names are taken, and of the model's tensors the types and ranks."""

    def __init__(self, model: ModelProto) -> None:
        self.changed: dict[str, None] = {}
        self.names = Names(model)
        self._types = _inferred(model)
        self._constants: dict[str, np.ndarray] = {}
        self._graph = model.graph

    def rewrite(self, graph: GraphProto, versions: range) -> None:
        """The nodes of a graph, and of the bodies inside them, from each opset to the next."""
        for node in graph.node:
            for body in bodies(node):
                self.rewrite(body, versions)
        outside, self._graph = self._graph, graph
        held = dict(self._constants)
        for name, (_, tensor) in constants_of(graph).items():
            if np.prod(tensor.dims, dtype=np.float64) <= _FEW and not tensor.external_data:
                self._constants[name] = array_of(tensor)
        nodes: list[NodeProto] = []
        for node in graph.node:
            written = [node]
            for version in versions:
                written = [new for old in written for new in self._next(old, version)]
            nodes += written
        replaced(graph.node, nodes)
        self._graph, self._constants = outside, held

    def _next(self, node: NodeProto, version: int) -> list[NodeProto]:
        step = None if domain_of(node) else STEPS.get((node.op_type, version))
        if step is None:
            return [node]
        self.changed |= dict.fromkeys(filter(None, node.output))
        before = label(node)
        try:
            return step(self, node)
        except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
            raise ModelError(f"{before}: is not as opset {version - 1} defines it: {error}") from error

    def constant(self, node: NodeProto, what: str, value: np.ndarray) -> str:
        """A new initializer beside a node -> its name."""
        from onnx import numpy_helper

        name = self.names.new(f"{node.output[0]}_{what}")
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        self._constants[name] = value
        return name

    def value(self, name: str) -> np.ndarray | None:
        """Value of a small constant; None of anything else."""
        return self._constants.get(name)

    def dtype(self, name: str) -> np.dtype:
        """Element type; float32 where ONNX cannot tell it."""
        found = self._types.get(name)
        return np.dtype(np.float32) if found is None or not found.elem_type else dtype_of(found.elem_type, name)

    def shape(self, name: str) -> list[int | None] | None:
        """Shape as far as it is known; None where not even the rank is."""
        found = self._types.get(name)
        if found is None or not found.HasField("shape"):
            return None
        return [dim.dim_value if dim.HasField("dim_value") else None for dim in found.shape.dim]


_FEW = 64  # elements of a constant that may be scales or axes


def _inferred(model: ModelProto) -> Mapping[str, TypeProto.Tensor]:
    """Types and shapes of the model's tensors, those of bodies as far as they are declared."""
    found = inferred(model)
    for body in all_bodies(model):
        for value in getattr(body, "value_info", ()):
            if value.type.HasField("tensor_type"):
                found.setdefault(value.name, value.type.tensor_type)
    return found


def _take(node: NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, which the node then no longer has."""
    from onnx import helper

    for position, attribute in enumerate(node.attribute):
        if attribute.name == name:
            value = helper.get_attribute_value(attribute)
            del node.attribute[position]
            return value
    return default


def _set(node: NodeProto, name: str, value: Any) -> None:
    from onnx import helper

    _take(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def _drop_empty(node: NodeProto) -> None:
    """Inputs that are not given go from the end."""
    while node.input and not node.input[-1]:
        del node.input[-1]


def _whole_numbers(*names: str) -> Callable[[_Writer, NodeProto], list[NodeProto]]:
    """Attributes that become inputs, in this order; one that is not given stays away."""

    def step(writer: _Writer, node: NodeProto) -> list[NodeProto]:
        for name in names:
            value = _take(node, name)
            numbers = None if value is None else np.asarray(value, np.int64).reshape(-1)
            node.input.append("" if numbers is None else writer.constant(node, name, numbers))
        _drop_empty(node)
        return [node]

    return step


def _upsample(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    """Upsample is Resize, of opset 10, under another name."""
    node.op_type = "Resize"
    return [node]


def _resize(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    """Resize of opset 10 does not say how it samples; this is what ONNX Runtime does.

    Coordinates are divided by the scale. Nearest takes the one below, but the one above where it makes an axis
    smaller; several axes of which some grow and some shrink take two nodes.
    """
    from onnx import helper

    mode = (_take(node, "mode") or b"nearest").decode()
    data, scales = node.input[0], node.input[1]
    replaced(node.input, [data, "", scales])
    _set(node, "mode", mode)
    _set(node, "coordinate_transformation_mode", "asymmetric")
    if mode != "nearest":
        return [node]
    known = writer.value(scales)
    smaller = known is not None and bool((known < 1).any())
    _set(node, "nearest_mode", "ceil" if smaller else "floor")
    if known is None or not smaller or not (known > 1).any():
        return [node]
    grown = helper.make_node(
        "Resize",
        [data, "", writer.constant(node, "scales_up", np.maximum(known, 1).astype(known.dtype))],
        [writer.names.new(f"{node.output[0]}_up")],
        writer.names.new(f"{node.name or node.output[0]}_up"),
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    shrunk = writer.constant(node, "scales_down", np.minimum(known, 1).astype(known.dtype))
    replaced(node.input, [grown.output[0], "", shrunk])
    return [grown, node]


def _resize_13(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    """``tf_half_pixel_for_nn`` is no more: floor((x + 1/2) / s) is half_pixel's position, of two the upper one."""
    from onnx import helper

    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if attributes.get("coordinate_transformation_mode") == b"tf_half_pixel_for_nn":
        nearest = attributes.get("nearest_mode", b"round_prefer_floor")
        if attributes.get("mode", b"nearest") != b"nearest" or nearest != b"floor":
            raise ModelError(
                f"{label(node)}: samples by tf_half_pixel_for_nn with {nearest.decode()}, which opset 13 has no "
                f"way to write; export the model again with opset 13"
            )
        _set(node, "coordinate_transformation_mode", "half_pixel")
        _set(node, "nearest_mode", "round_prefer_ceil")
    return [node]


def _dropout_10(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    """The mask, which was of the data's type, becomes a bool."""
    from onnx import helper

    if len(node.output) < 2 or not node.output[1]:
        return [node]
    mask, node.output[1] = node.output[1], writer.names.new(f"{node.output[1]}_bool")
    to = helper.np_dtype_to_tensor_dtype(writer.dtype(node.input[0]))
    return [node, helper.make_node("Cast", [node.output[1]], [mask], writer.names.new(f"{mask}_Cast"), to=to)]


def _dropout_12(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    """The ratio, which does not matter but in training, becomes an input that need not be given."""
    _take(node, "ratio")
    return [node]


def _clip(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    dtype = writer.dtype(node.input[0])
    for name in ("min", "max"):
        bound = _take(node, name)
        node.input.append("" if bound is None else writer.constant(node, name, np.asarray(bound, dtype)))
    _drop_empty(node)
    return [node]


def _pad(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    dtype = writer.dtype(node.input[0])
    node.input.append(writer.constant(node, "pads", np.asarray(_take(node, "pads", []), np.int64)))
    value = _take(node, "value", 0.0)
    if value:
        node.input.append(writer.constant(node, "value", np.asarray(value, dtype)))
    return [node]


def _scatter(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    node.op_type = "ScatterElements"
    return [node]


def _softmax(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    """Until opset 12 all axes from ``axis`` on are one; from 13 on it is ``axis`` alone.

    The same where no other axis comes after it, or none with more than one element. Else the data are flattened and
    get their shape back.
    """
    from onnx import helper

    axis = _take(node, "axis", 1)
    shape = writer.shape(node.input[0])
    if shape is not None:
        first = axis % len(shape) if shape else 0
        if all(size == 1 for size in shape[first + 1 :]):
            _set(node, "axis", first if shape else -1)
            return [node]
    base = node.name or node.output[0]
    data, output = node.input[0], node.output[0]
    flat, answer, form = (writer.names.new(f"{output}_{what}") for what in ("flat", "flat_answer", "shape"))
    node.input[0], node.output[0] = flat, answer
    _set(node, "axis", -1)
    return [
        helper.make_node("Flatten", [data], [flat], writer.names.new(f"{base}_Flatten"), axis=axis),
        node,
        helper.make_node("Shape", [data], [form], writer.names.new(f"{base}_Shape")),
        helper.make_node("Reshape", [answer, form], [output], writer.names.new(f"{base}_Reshape")),
    ]


# (op, opset that changed its definition) -> how a node of the opset before is written in it. An op is here where its
# inputs, attributes or outputs changed, or their meaning; where only types or negative axes were added, it is not.
STEPS: dict[tuple[str, int], Callable[[_Writer, NodeProto], list[NodeProto]]] = {
    ("Slice", 10): _whole_numbers("starts", "ends", "axes"),
    ("TopK", 10): _whole_numbers("k"),
    ("Upsample", 10): _upsample,
    ("Dropout", 10): _dropout_10,
    ("Resize", 11): _resize,
    ("Clip", 11): _clip,
    ("Pad", 11): _pad,
    ("Scatter", 11): _scatter,
    ("Dropout", 12): _dropout_12,
    ("Resize", 13): _resize_13,
    ("Softmax", 13): _softmax,
    ("LogSoftmax", 13): _softmax,
    ("Hardmax", 13): _softmax,
    ("ReduceSum", 13): _whole_numbers("axes"),
    ("Split", 13): _whole_numbers("split"),
    ("Squeeze", 13): _whole_numbers("axes"),
    ("Unsqueeze", 13): _whole_numbers("axes"),
}

"""A model's file, before it gets its name: do ONNX's checker and ONNX Runtime take it?"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtcal.errors import ModelError
from trtcal.model.functions import inlined
from trtcal.model.nodes import bodies, op_name, reads, replaced
from trtcal.model.runner import OrtRunner
from trtcal.model.topology import element_types
from trtcal.model.unknown import unknown_op

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

logger = logging.getLogger(__name__)


def check_file(
    file: Path, name: str, source: str | Path | ModelProto | None = None, libraries: Sequence[Path] = ()
) -> None:
    """Model's file, and what it will be called -> nothing; ModelError where nobody could load it.

    ONNX's checker must take it, or must refuse ``source``, which it was made from, in the same words: it refuses models
    that run everywhere. ONNX Runtime must load it, with ``libraries`` of custom operators. Of a model with ops that
    ONNX Runtime does not know, it must load all that does not depend on those. What could not be checked is logged.
    """
    complaint = _complaint(file)
    if complaint is not None:
        if source is None or complaint != _complaint(source):
            raise ModelError(f"{name}: is not written, since ONNX's checker refuses it: {complaint}")
        given = source if isinstance(source, (str, Path)) else "the model that was given"
        logger.warning("%s: ONNX's checker refuses it as it does %s: %s", name, given, complaint)
    refusal = _refusal(file, name, libraries=libraries)
    if refusal is not None:
        _check_known_part(file, name, refusal, libraries)


def _complaint(model: str | Path | ModelProto) -> str | None:
    """What ONNX's checker says against a model, by path where it can since that has no limit of size; None: nothing."""
    from onnx import checker

    given = str(model) if isinstance(model, (str, Path)) else model
    try:
        checker.check_model(given)
    except Exception as error:  # of ONNX's C++ and protobuf
        text = str(error).replace(given, "the model") if isinstance(given, str) else str(error)
        return re.sub(r"domain_version of \d+", "this opset", " ".join(text.split()))  # which may have been raised
    return None


def _refusal(
    model: Path | ModelProto, name: str, folder: Path | None = None, libraries: Sequence[Path] = ()
) -> ModelError | None:
    """What ONNX Runtime says against a model; None where nothing."""
    try:
        OrtRunner(model, threads=1, folder=folder, name=name, libraries=libraries, all_nodes=True).close()
    except ModelError as error:
        return error
    return None


def _check_known_part(file: Path, name: str, refusal: ModelError, libraries: Sequence[Path]) -> None:
    """A model that ONNX Runtime refuses: the error, unless it loads all but what depends on ops it does not know."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    whole = len(model.graph.node)
    found: ModelError | None = refusal
    if model.functions:  # of whose ops ONNX Runtime says only that it cannot infer a type
        model = inlined(model)
        whole = len(model.graph.node)
        found = _refusal(model, name, file.parent, libraries)
    unknown: list[str] = []
    while found is not None and model.graph.node:
        said = unknown_op(found)
        op = str(said)
        if said is None or op in unknown:
            break
        unknown.append(op)
        model = _without(model, op)
        found = _refusal(model, name, file.parent, libraries) if model.graph.node else None
    if found is not None or not unknown:
        raise ModelError(f"{_without_file(found or refusal, file)}; it is not written") from refusal
    logger.warning(
        "%s: ONNX Runtime does not know %s, and has loaded %d of its %d nodes; ONNX's checker has seen all",
        name,
        ", ".join(sorted(unknown)),
        len(model.graph.node),
        whole,
    )


def _without(model: ModelProto, op: str) -> ModelProto:
    """A copy of the model without the nodes of an op: where the types of their outputs are known, these are inputs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    types = element_types(model)
    gone: set[str] = set()
    kept: list[NodeProto] = []
    inputs: dict[str, int] = {}
    read: set[str] = set()
    for node in graph.node:
        if _has(node, op):
            inputs |= {name: types[name] for name in node.output if name in types}
            gone |= {name for name in node.output if name and name not in types}
            read.update(reads(node))
        elif gone.isdisjoint(reads(node)):
            kept.append(node)
        else:
            gone.update(node.output)
            read.update(reads(node))
    made = {name for node in kept for name in node.output}
    outputs = dict.fromkeys(name for name in (*(v.name for v in graph.output), *sorted(read)) if name in made)
    replaced(graph.node, kept)
    replaced(graph.output, [onnx.ValueInfoProto(name=name) for name in outputs])
    graph.input.extend(onnx.helper.make_tensor_value_info(name, type, None) for name, type in inputs.items())
    return copy


def _has(node: NodeProto, op: str) -> bool:
    """Is a node of an op, or one inside it?"""
    return op in (op_name(node), node.op_type) or any(_has(inner, op) for body in bodies(node) for inner in body.node)


def _without_file(error: ModelError, file: Path) -> str:
    """The message without the temporary name of the file, which nobody knows."""
    return str(error).replace(f" Load model from {file} failed:", " ").replace(str(file), "the model")

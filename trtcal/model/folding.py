"""What a model computes from constants alone: its values, by running that part of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from trtcal.errors import ModelError
from trtcal.files.brief import few
from trtcal.model.nodes import array_of, reads
from trtcal.model.runner import OrtRunner
from trtcal.model.topology import Graph


def fixed_values(
    graph: Graph, names: Iterable[str], folder: str | Path | None = None, libraries: Sequence[Path] = ()
) -> dict[str, np.ndarray]:
    """Names among ``graph.fixed`` -> their values; ``folder`` is where weights lie that the model keeps in files.

    What is computed, say by Cast, Transpose or DequantizeLinear, ONNX Runtime computes, with ``libraries`` of custom
    operators. ModelError where it cannot, and where weights lie in files and no folder is given.
    """
    names = list(dict.fromkeys(names))
    values = {name: array_of(graph.constants[name].tensor, folder) for name in names if name in graph.constants}
    computed = [name for name in names if name not in values]
    return values | (_computed(graph, computed, folder, libraries) if computed else {})


def _computed(
    graph: Graph, names: list[str], folder: str | Path | None, libraries: Sequence[Path]
) -> dict[str, np.ndarray]:
    """Runs the nodes that these names need, and no others."""
    import onnx

    needed: set[int] = set()
    read: set[str] = set()
    open_ends = list(names)
    while open_ends:
        name = open_ends.pop()
        index = graph.producer.get(name)
        read.add(name)
        if index is not None and index not in needed:
            needed.add(index)
            open_ends += reads(graph.nodes[index])
    whole = graph.model
    part = onnx.ModelProto(
        ir_version=whole.ir_version,
        opset_import=whole.opset_import,
        functions=whole.functions,
        graph=onnx.GraphProto(
            name="constants",
            node=[graph.nodes[index] for index in sorted(needed)],
            initializer=[tensor for tensor in whole.graph.initializer if tensor.name in read],
            output=[onnx.ValueInfoProto(name=name) for name in names],
        ),
    )
    try:
        with OrtRunner(part, threads=1, folder=folder, name="the model", libraries=libraries) as runner:
            return runner({})
    except ModelError as error:
        what = few([repr(name) for name in names])
        raise ModelError(f"{what}: cannot be computed from the constants they depend on: {error}") from error

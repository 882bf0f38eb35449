"""From an ONNX file and ranges to a Q/DQ ONNX file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trtcal.model.file import check_weights_output, save_model
from trtcal.model.nodes import STANDARD
from trtcal.model.open import Source, open_model
from trtcal.model.overwriting import ONNX, check_output, only_writer
from trtcal.qdq.insert import check_int8, insert_qdq
from trtcal.qdq.placement import layer_name
from trtcal.qdq.weights import weight_method


@dataclass(frozen=True, eq=False)
class QdqFile:
    """The files written, the model first, and what is INT8 in it; the fields are those of QdqResult.

    ``layers`` maps each INT8 layer to its op type.
    """

    files: tuple[Path, ...]
    opset: int
    layers: Mapping[str, str]
    quantized: Mapping[str, np.float32]
    weights: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def op_types(self) -> dict[str, int]:
        """Op type -> number of INT8 layers, the most frequent first."""
        return dict(Counter(self.layers.values()).most_common())


def qdq_to_file(
    model: Source,
    scales: Mapping[str, np.float32],
    output: str | Path,
    *,
    placement: str = "tensorrt",
    exclude: Iterable[str] = (),
    weights: str = "max",
) -> QdqFile:
    """Float model and scales -> Q/DQ model at ``output``, by :func:`trtcal.qdq.insert.insert_qdq`.

    ``weights`` is a method of :func:`trtcal.qdq.weights.weight_method`. Weights that lie beside the model's file, and
    those too big for protobuf, go to ``<output>.data``. OutputError where either would be written over the model,
    its weights, or what is no model and its weights; ModelError where nothing would be INT8, and for what
    insert_qdq refuses.
    """
    model = open_model(model)
    check_output(output, ONNX, [model])
    method = weight_method(weights)
    model.refuse_faulty()
    if model.has_external_data:
        check_weights_output(output, [model])
    result = insert_qdq(model, scales, placement=placement, exclude=exclude, weights=method)
    check_int8(result.layers, result.skipped, model.name)
    int8 = set(result.layers)
    layers = {layer_name(node): node.op_type for node in result.model.graph.node if layer_name(node) in int8}
    opset = next(entry.version for entry in result.model.opset_import if entry.domain in STANDARD)
    with only_writer(output):
        source = model.path or model.proto
        files = save_model(
            result.model, output, external=model.has_external_data, source=source, libraries=model.libraries
        )
    return QdqFile(files, opset, layers, result.quantized, result.weights, result.skipped)

"""All that trtcal says of a model, under names that can be compared: ranges, pairs, what INT8 costs, by layer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from trtcal.calibration.calibrate import calibrate, from_stats
from trtcal.judging.evaluation import compare, open_runner
from trtcal.judging.sensitivity import Sensitivity, Trial, sensitivity
from trtcal.model.open import Model, open_model
from trtcal.qdq.insert import insert_qdq
from trtcal.qdq.placement import PLACEMENTS
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource

Names = Mapping[str, str | None]
"""Tensor of a model -> the tensor of the plain model that it is; None for one that the plain model does not have."""

Answer = dict[str, Any]


def answers(
    source: ModelProto | Path,
    data: Mapping[str, np.ndarray],
    names: Names,
    *,
    batch_size: int = 3,
    layers: int = 16,
    judged: bool = True,
) -> Answer:
    """Model, samples by the names of the plain model's inputs, and what its tensors are there -> what trtcal says.

    ``layers`` are measured one at a time. Without ``judged``, the model is neither evaluated nor measured by layer.
    """
    model = open_model(source)
    plain = _Plain(model, names)
    here = {plain(spec.name): spec.name for spec in model.inputs}
    feed = {here[name]: array for name, array in data.items()}
    batches = Batches(ArraySource(feed), batch_size)
    entropy = calibrate(model, batches, "entropy", workers=1)
    minmax = from_stats(model, entropy.stats, "minmax")
    scales = minmax.cache.scales
    said: Answer = {
        "ranges": {
            "entropy": plain.scales(entropy.cache.scales),
            "minmax": plain.scales(scales),
            "unusable": plain.tensors(entropy.unusable),
            "hidden": entropy.hidden,
        },
        "pairs": {placement: pairs(model, scales, placement, plain) for placement in PLACEMENTS},
    }
    if judged:
        said["evaluate"] = _evaluated(model, batches, scales, plain)
        measured = sensitivity(model, scales, batches, layers=layers, placement="all")
        said["sensitivity"] = _measured(measured, plain)
    return said


def difference(expected: Any, found: Any, where: str = "") -> str | None:
    """Two answers -> the first place at which they differ, and how; None where they are equal, to the last bit."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected.keys() - found.keys():
            return f"{where}: {key!r} is missing; it should be {expected[key]!r}"
        for key in found.keys() - expected.keys():
            return f"{where}: {key!r} is too much: {found[key]!r}"
        for key in expected:
            if problem := difference(expected[key], found[key], f"{where}/{key}"):
                return problem
        return None
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return next((p for n, (one, other) in pairs if (p := difference(one, other, f"{where}/{n}"))), None)
    same = type(expected) is type(found) and (expected == found or (expected != expected and found != found))
    return None if same else f"{where}: expected {expected!r}, found {found!r}"


class _Plain:
    """What tensors, as the opened model calls them, are called in the plain model."""

    def __init__(self, model: Model, names: Names) -> None:
        self._originals, self._names = model.originals.tensors, names

    def __call__(self, name: str) -> str | None:
        """None for a tensor that the plain model does not have."""
        name = self._originals.get(name, name)
        return self._names.get(name, name)

    def tensors(self, names: Iterable[str]) -> list[str]:
        return sorted({there for name in names if (there := self._of_range(name)) is not None})

    def _of_range(self, name: str) -> str | None:
        """A cache calls the output of a Constant layer after the constant."""
        base = name.removesuffix("_output")
        if name not in self._names and name not in self._originals and base != name:
            there = self(base)
            return None if there is None else f"{there}_output"
        return self(name)

    def scales(self, scales: Mapping[str, np.float32]) -> dict[str, str]:
        """Bits of each scale; an AssertionError where two tensors that are one have two."""
        found: dict[str, str] = {}
        for name, scale in scales.items():
            there = self._of_range(name)
            if there is not None:
                bits = scale.tobytes().hex()
                assert found.setdefault(there, bits) == bits, f"{name!r} is {there!r}, and has another range"
        return found


def pairs(model: Model, scales: Mapping[str, np.float32], placement: str, plain: Any) -> dict[str, list[Any]]:
    """Which layer reads what as int8, and with which scales, as the model with pairs has it.

    Layer and input position -> the tensor, or of a weight the hash of its values, the bits of the scales, the axis.
    Layers that the plain model does not have must read nothing as int8.
    """
    made = insert_qdq(model, scales, placement=placement).model
    found = {}
    for node, position, source, scale, axis in quantized_reads(made):
        layer = plain(node.output[0])
        assert layer is not None, f"{node.op_type} {node.output[0]!r}, which the plain model has not, reads int8"
        assert node.op_type != "Identity", "an Identity computes nothing"
        name = plain(source) if isinstance(source, str) else hashlib.sha256(source.tobytes()).hexdigest()
        found[f"{layer} [{position}]"] = [name, scale.tobytes().hex(), axis]
    return found


def quantized_reads(
    model: ModelProto,
) -> Iterable[tuple[NodeProto, int, str | np.ndarray, np.ndarray, int | None]]:
    """Model with pairs -> each node and position that reads from one: tensor or weight, scales, axis of these."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    held = {
        n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant" and n.attribute[0].t.dims
    }
    same = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Identity"}
    quantize = {n.output[0]: n for n in model.graph.node if n.op_type == "QuantizeLinear"}
    dequantize = {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if node.op_type == "DequantizeLinear" or name not in dequantize:
                continue
            pair = quantize[dequantize[name].input[0]]
            assert list(pair.input[1:]) == list(dequantize[name].input[1:])
            scale = numpy_helper.to_array(constants[pair.input[1]])
            axis = next((attribute.i for attribute in pair.attribute if attribute.name == "axis"), None)
            source = original = str(pair.input[0])
            while original in same:
                original = same[original]
            tensor = constants.get(original, held.get(original))
            yield node, position, source if tensor is None else numpy_helper.to_array(tensor), scale, axis


def _evaluated(model: Model, batches: Batches, scales: Mapping[str, np.float32], plain: _Plain) -> Answer:
    """The agreement, and hashes of all that FP32 and INT8 answer."""
    hashes: dict[str, Any] = {"fp32": {}, "int8": {}}

    def heard(kind: str, runner: Any) -> Any:
        def predict(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            answer: dict[str, np.ndarray] = runner(batch)
            for name, array in answer.items():
                digest = hashlib.sha256(array.tobytes() + str(array.shape).encode()).hexdigest()
                hashes[kind].setdefault(plain(name), []).append(digest)
            return answer

        return predict

    with (
        open_runner(model, batches).runner as reference,
        open_runner(model, batches, scales=scales).runner as runner,
    ):
        result = compare(heard("int8", runner), batches, reference=heard("fp32", reference)).to_dict()
    agreement = {plain(name): found for name, found in result["agreement"].items()}
    return {"samples": result["samples"], "agreement": agreement, **hashes}


def _measured(found: Sensitivity, plain: _Plain) -> Answer:
    """Layers by what they read, since they are called after nodes; of equals, the order does not matter."""

    def trial(one: Trial | None) -> list[Any]:
        return [] if one is None else [one.noise, one.metric]

    layers: dict[str, list[Any]] = {}
    for damage in found.layers:
        tensors, weights = (" ".join(map(str, map(plain, names))) for names in (damage.tensors, damage.weights))
        measured = [damage.estimate_db, trial(damage.only), trial(damage.without)]
        layers.setdefault(f"{damage.op_type} of {tensors} by {weights}", []).append(measured)
    return {
        "int8": trial(found.int8),
        "tensors": {str(plain(one.tensor)): [one.amax, one.sqnr_db] for one in found.tensors},
        "layers": {layer: sorted(measured, key=repr) for layer, measured in layers.items()},
        "curve": [trial(step.trial) for step in found.curve],
        "ended": found.ended,
    }

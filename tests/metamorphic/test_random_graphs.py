"""Random graphs: Q/DQ computes fake quantization bit for bit, comes out as it went in, and spelling changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import onnx
import pytest
from answers import answers, difference, quantized_reads
from onnx import ModelProto, TensorProto, helper, numpy_helper
from random_graphs import random_graph
from specimens import Specimen
from spellings import LAST, TRANSFORMATIONS, applied, plain

from trtcal.calibration.calibrate import calibrate
from trtcal.model.runner import OrtRunner
from trtcal.qdq.extract import extract_scales, strip_qdq
from trtcal.qdq.insert import insert_qdq
from trtcal.qdq.placement import PLACEMENTS
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource

node = helper.make_node


EXHAUSTIVE = pytest.mark.exhaustive(reason="440 random graphs, and 75 written otherwise in three ways")


def parts(few: int, many: int, size: int) -> list[object]:
    """Numbers of graphs: a few for every run, the others exhaustive, in parts of a size."""
    later = [range(begin, min(begin + size, many)) for begin in range(few, many, size)]
    marked = [pytest.param(part, marks=EXHAUSTIVE, id=f"{part.start} to {part.stop - 1}") for part in later]
    return [pytest.param(range(few), id=f"0 to {few - 1}"), *marked]


def scales_of(drawn: Specimen) -> dict[str, np.float32]:
    batches = Batches(ArraySource(dict(drawn.data)), 3)
    return dict(calibrate(drawn.model, batches, "minmax", workers=1).cache.scales)


def with_rounding(model: ModelProto, quantized: ModelProto) -> ModelProto:
    """The float model, in which each input that the model with pairs reads as int8 is rounded by plain operators."""
    rounded = ModelProto()
    rounded.CopyFrom(model)
    graph = rounded.graph
    layers = {each.output[0]: each for each in graph.node}
    floats = {each.output[0]: list(each.input) for each in graph.node}
    nodes: dict[str, list[onnx.NodeProto]] = {}
    for layer, position, _, scale, axis in quantized_reads(quantized):
        output = layer.output[0]
        source = floats[output][position]
        name = f"{output} {position}"
        rank = len(next(t.dims for t in graph.initializer if t.name == root(model, source))) if axis is not None else 0
        along = scale.reshape([-1 if place == axis else 1 for place in range(rank)]) if axis is not None else scale
        graph.initializer.append(numpy_helper.from_array(along, f"{name} scale"))
        for bound, value in (("low", -128), ("high", 127)):
            graph.initializer.append(numpy_helper.from_array(np.float32(value), f"{name} {bound}"))
        steps = [f"{name} {step}" for step in ("divided", "whole", "clipped", "int8", "float", "rounded")]
        nodes.setdefault(output, []).extend(
            [
                node("Div", [source, f"{name} scale"], [steps[0]]),
                node("Round", [steps[0]], [steps[1]]),
                node("Clip", [steps[1], f"{name} low", f"{name} high"], [steps[2]]),
                node("Cast", [steps[2]], [steps[3]], to=TensorProto.INT8),
                node("Cast", [steps[3]], [steps[4]], to=TensorProto.FLOAT),
                node("Mul", [steps[4], f"{name} scale"], [steps[5]]),
            ]
        )
        layers[output].input[position] = steps[5]
    order = [new for each in graph.node for new in (*nodes.get(each.output[0], ()), each)]
    copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in order]
    del graph.node[:]
    graph.node.extend(copies)
    return rounded


def root(model: ModelProto, name: str) -> str:
    """The constant behind an Identity."""
    same = {each.output[0]: each.input[0] for each in model.graph.node if each.op_type == "Identity"}
    while name in same:
        name = same[name]
    return name


def without_aliases(model: ModelProto, quantized: ModelProto) -> ModelProto:
    """The float model, in which layers whose weights are INT8 read these themselves where an Identity stood between."""
    copy = ModelProto()
    copy.CopyFrom(model)
    layers = {each.output[0]: each for each in copy.graph.node}
    for layer, position, source, _, _ in quantized_reads(quantized):
        if not isinstance(source, str):
            layer = layers[layer.output[0]]
            layer.input[position] = root(model, layer.input[position])
    return copy


@pytest.mark.parametrize("numbers", parts(16, 440, 53))
def test_pairs_compute_fake_quantization_and_come_out_as_they_went_in(numbers: Sequence[int]) -> None:
    quantized = 0
    for number in numbers:
        drawn = random_graph(number)
        scales = scales_of(drawn)
        for placement in PLACEMENTS:
            result = insert_qdq(drawn.model, scales, placement=placement)
            onnx.checker.check_model(result.model, full_check=True)
            quantized += len(result.quantized)
            feed = {"x": drawn.data["x"]}
            with OrtRunner(result.model) as pairs, OrtRunner(with_rounding(drawn.model, result.model)) as plainly:
                expected = plainly(feed)
                for name, found in pairs(feed).items():
                    assert found.tobytes() == expected[name].tobytes(), f"graph {number}, {placement}: {name}"
            assert strip_qdq(result.model).graph == without_aliases(drawn.model, result.model).graph, number
            if result.quantized:
                assert extract_scales(result.model) == dict(result.quantized), f"graph {number}, {placement}"
    assert quantized > 4 * len(numbers), "there is something to compare"


@pytest.mark.parametrize("numbers", parts(3, 75, 12))
def test_a_random_graph_that_is_written_otherwise_gets_the_same_answers(numbers: Sequence[int]) -> None:
    for number in numbers:
        drawn, rng = random_graph(number, 10), Random(number)
        as_it_is = plain(drawn.model, drawn.axes)
        expected = answers(drawn.model, drawn.data, as_it_is.names, layers=drawn.layers)
        for _ in range(3):
            chosen = rng.sample(list(TRANSFORMATIONS), rng.randint(1, 4)) + rng.sample(list(LAST), rng.randint(0, 1))
            with applied(as_it_is, chosen, rng) as (source, spelling):
                found = answers(source, drawn.data, spelling.names, layers=drawn.layers)
            assert difference(expected, found) is None, f"graph {number}: {', '.join(chosen)}"

"""What is not the same model gets another answer: the comparison of spellings can fail, in each of its parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
from answers import Answer, answers, difference
from onnx import ModelProto, NodeProto, helper, numpy_helper
from specimens import specimen
from spellings import applied, dead_nodes, identity_inserted, plain, renamed


def answered(name: str, model: ModelProto) -> Answer:
    each = specimen(name)
    return answers(model, each.data, plain(each.model, each.axes).names, layers=2)


def node_of(model: ModelProto, op: str, number: int = 0) -> NodeProto:
    return [each for each in model.graph.node if each.op_type == op][number]


def reset(node: NodeProto, name: str, value: object) -> None:
    others = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend([*others, helper.make_attribute(name, value)])


def scale_constant(model: ModelProto, name: str, factor: float) -> None:
    """Its first element alone."""
    tensor = next(each for each in model.graph.initializer if each.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] *= np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def swap_inputs(node: NodeProto) -> None:
    node.input[0], node.input[1] = node.input[1], node.input[0]


# What is wrong -> the model, and how it gets so.
WRONG: dict[str, tuple[str, Callable[[ModelProto], None]]] = {
    "a weight": ("convolutions", lambda model: scale_constant(model, "w", 1.001)),
    "a constant of a sum": ("convolutions", lambda model: scale_constant(model, "offset", 1e4)),
    "a bias": ("transformer", lambda model: scale_constant(model, node_of(model, "Add").input[1], 1.01)),
    "nearest is linear": ("YOLO", lambda model: reset(node_of(model, "Resize"), "mode", "linear")),
    "nearest is another one": ("YOLO", lambda model: reset(node_of(model, "Resize"), "nearest_mode", "ceil")),
    "Upsample is nearest": ("UNet", lambda model: reset(node_of(model, "Upsample"), "mode", "nearest")),
    "a Concat the other way round": ("residual block", lambda model: swap_inputs(node_of(model, "Concat"))),
    "a Softmax along another axis": ("transformer", lambda model: reset(node_of(model, "Softmax"), "axis", 1)),
    "an LSTM that goes back": ("time-major LSTM", lambda model: reset(node_of(model, "LSTM"), "direction", "reverse")),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_model_gets_another_answer(name: str) -> None:
    of, spoil = WRONG[name]
    model = copy.deepcopy(specimen(of).model)
    spoil(model)
    expected, found = answered(of, specimen(of).model), answered(of, model)
    assert {part for part in expected if difference(expected[part], found[part])} == expected.keys()
    assert difference(expected, found)


def test_other_pairs_are_another_answer_though_all_ranges_are_the_same() -> None:
    """The convolution beside a residual block comes after the others, and so the sum is computed with it."""
    model = copy.deepcopy(specimen("ResNet").model)
    short = next(index for index, each in enumerate(model.graph.node) if each.output[0] == "conv_13")
    model.graph.node.insert(short + 3, model.graph.node.pop(short))
    expected, found = answered("ResNet", specimen("ResNet").model), answered("ResNet", model)
    differing = {part for part in expected if difference(expected[part], found[part])}
    assert differing == {"pairs", "evaluate", "sensitivity"}
    assert "'add_17 [1]' is missing" in str(difference(expected["pairs"], found["pairs"]))


def leaves(answer: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all that an answer says, the deepest alone."""
    if isinstance(answer, (dict, list)) and answer:
        for key, value in answer.items() if isinstance(answer, dict) else enumerate(answer):
            yield from leaves(value, (*path, key))
    else:
        yield path


def test_a_change_of_anything_that_is_said_is_a_difference() -> None:
    answer = answered("residual block", specimen("residual block").model)
    paths = list(leaves(answer))
    assert len(paths) > 100
    for path in paths:
        other = copy.deepcopy(answer)
        inner = other
        for key in path[:-1]:
            inner = inner[key]
        value = inner[path[-1]]
        inner[path[-1]] = np.nextafter(value, 0).item() if isinstance(value, float) and value else ["other", value]
        assert inner[path[-1]] != value
        assert difference(answer, other), path
        del inner[path[-1]]
        assert difference(answer, other), path
        assert difference(other, answer), path


def test_names_that_are_not_said_are_missed() -> None:
    each = specimen("convolutions")
    as_it_is = plain(each.model, each.axes)
    other = renamed(as_it_is, Random(3))
    with pytest.raises((KeyError, StopIteration)):
        answers(other.model, each.data, {}, layers=2)
    expected = answered("convolutions", each.model)
    names = dict(other.names)
    conv = next(name for name, there in names.items() if there == "conv")
    names[conv] = "relu"
    names[next(name for name, there in names.items() if there == "relu" and name != conv)] = "conv"
    problem = difference(expected, answers(other.model, each.data, names, layers=2))
    assert problem is not None
    assert problem.startswith("/ranges/entropy/")


def test_a_layer_that_the_plain_model_does_not_have_must_not_be_int8() -> None:
    each = specimen("convolutions")
    model = copy.deepcopy(each.model)
    model.graph.node.append(helper.make_node("MaxPool", ["relu"], ["more"], kernel_shape=[2, 2]))
    model.graph.output.add(name="more").type.CopyFrom(model.graph.output[0].type)
    names = {**plain(each.model, each.axes).names, "more": None}
    with pytest.raises(AssertionError, match=r"MaxPool 'more', which the plain model has not, reads int8"):
        answers(model, each.data, names, layers=2)


def test_two_tensors_that_are_one_must_have_one_range() -> None:
    each = specimen("convolutions")
    names = {**plain(each.model, each.axes).names, "relu": "conv"}
    with pytest.raises(AssertionError, match="'relu' is 'conv', and has another range"):
        answers(each.model, each.data, names, layers=2)


def test_transformations_change_what_they_say() -> None:
    """None of them gives the model back as it was, and none loses a tensor of it."""
    each = specimen("residual block")
    as_it_is = plain(each.model, each.axes)
    for transformation in (identity_inserted, dead_nodes):
        made = transformation(as_it_is, Random(5))
        assert made is not None
        assert len(made.model.graph.node) > len(each.model.graph.node)
    new = renamed(as_it_is, Random(5))
    assert {new.names[value.name] for value in new.model.graph.output} == {"p", "s"}
    assert not {name for node in each.model.graph.node for name in node.output} & set(new.names)
    with applied(as_it_is, ["nodes shuffled", "constants as nodes", "every name replaced"], Random(1)) as (_, spelling):
        assert spelling.applied == ("nodes shuffled", "constants as nodes", "every name replaced")

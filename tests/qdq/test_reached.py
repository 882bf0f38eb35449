from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import make_model
from onnx import TensorProto, helper

from trtcal.qdq.insert import insert_qdq
from trtcal.qdq.reached import int8_outputs, outputs_behind_int8

node = helper.make_node
W = np.eye(4, dtype=np.float32)


def model() -> onnx.ModelProto:
    """Outputs before, beside and behind a MatMul, one through a body, and one that has its shape alone."""
    branch = [
        helper.make_graph([node("Identity", ["r"], [name])], name, [], [onnx.ValueInfoProto(name=name)])
        for name in ("then", "else")
    ]
    nodes = [
        node("Identity", ["ids"], ["ids_out"]),
        node("Neg", ["x"], ["beside"]),
        node("MatMul", ["x", "w"], ["m"], name="first"),
        node("Relu", ["m"], ["r"]),
        node("Shape", ["r"], ["shape"]),
        node("Cast", ["shape"], ["shape_of"], to=TensorProto.FLOAT),
        node("ArgMax", ["r"], ["best"], axis=1),
        node("If", ["yes"], ["inside"], then_branch=branch[0], else_branch=branch[1]),
        node("MatMul", ["x", "w2"], ["alone"], name="second"),
    ]
    outputs = ["ids_out", "beside", "r", "shape_of", "best", "inside", "alone"]
    constants = {"w": W, "w2": W * 2, "yes": np.array(True)}
    inputs: dict[str, list[int | str]] = {"ids": ["N", 4], "x": ["N", 4]}
    return make_model(nodes, inputs, outputs, constants, dtypes={"ids": TensorProto.INT64})


def test_an_output_is_reached_where_a_path_of_values_leads_to_it_from_an_int8_layer() -> None:
    assert int8_outputs(model(), {"x": np.float32(1)}) == ("r", "best", "inside", "alone")
    assert int8_outputs(model(), {"x": np.float32(1)}, exclude=["first"]) == ("alone",)


@pytest.mark.parametrize("scale", [0.0, np.inf])
def test_a_layer_without_a_usable_scale_is_float_and_reaches_nothing(scale: float) -> None:
    assert int8_outputs(model(), {"x": np.float32(scale)}) == ()
    assert int8_outputs(model(), {}) == ()


def test_a_model_with_pairs_says_the_same() -> None:
    for exclude in ([], ["first"], ["second"]):
        scales = {"x": np.float32(1)}
        made = insert_qdq(model(), scales, placement="all", exclude=exclude).model
        assert outputs_behind_int8(made) == int8_outputs(model(), scales, exclude=exclude)
    assert outputs_behind_int8(model()) == ()

from __future__ import annotations

from typing import Any

import numpy as np
from models import make_model
from onnx import helper

from trtcal.model.nodes import array_of, constants_of

node = helper.make_node


def test_all_numbers_that_a_constant_node_can_hold_are_constants() -> None:
    values: dict[str, Any] = {"value_float": 0.5, "value_floats": [1.5, 2.5], "value_int": 3, "value_ints": [4, 5]}
    nodes = [node("Constant", [], [name], **{name: value}) for name, value in values.items()]
    others = [node("Constant", [], ["text"], value_string="a"), node("Identity", ["value_ints"], ["same"])]
    constants = constants_of(make_model([*nodes, *others], {"x": [1]}, ["text"]).graph)
    assert {name: constant.name for name, constant in constants.items()} == {
        **{name: name for name in values},
        "same": "value_ints",
    }
    found = {name: array_of(constants[name].tensor) for name in values}
    assert {name: array.tolist() for name, array in found.items()} == values
    assert [array.dtype for array in found.values()] == [np.float32, np.float32, np.int64, np.int64]

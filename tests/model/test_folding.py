from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import make_model
from onnx import helper

from trtcal.errors import ModelError
from trtcal.model.file import save_model
from trtcal.model.folding import fixed_values
from trtcal.model.read import load_model
from trtcal.model.topology import Graph

node = helper.make_node


def folded(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    model = make_model([*nodes, node("Neg", ["x"], ["y"])], {"x": [1]}, ["y"], constants)
    return fixed_values(Graph(model), names)


def test_what_is_computed_from_constants_has_its_value_and_constants_have_theirs() -> None:
    nodes = [
        node("Constant", [], ["k"], value_floats=[1.0, 2.0]),
        node("Add", ["a", "k"], ["sum"]),
        node("Unsqueeze", ["sum", "axes"], ["row"]),
        node("Cast", ["row"], ["whole"], to=onnx.TensorProto.INT64),
    ]
    values = folded(nodes, {"a": np.float32([10, 20]), "axes": np.int64([0])}, "whole", "a", "k", "whole")
    np.testing.assert_array_equal(values["whole"], [[11, 22]])
    assert values["whole"].dtype == np.int64
    np.testing.assert_array_equal(values["a"], [10, 20])
    np.testing.assert_array_equal(values["k"], [1, 2])


def test_only_what_is_asked_for_is_run() -> None:
    broken = node("Reshape", ["a", "shape"], ["broken"])
    values = folded([broken, node("Neg", ["a"], ["fine"])], {"a": np.float32([10, 20]), "shape": np.int64([7])}, "fine")
    np.testing.assert_array_equal(values["fine"], [-10, -20])


def test_a_body_reads_what_stands_outside() -> None:
    branch = helper.make_graph(
        [node("Mul", ["a", "twice"], ["inner"])], "b", [], [helper.make_tensor_value_info("inner", 1, None)]
    )
    nodes = [node("Add", ["a", "a"], ["twice"]), node("If", ["yes"], ["i"], then_branch=branch, else_branch=branch)]
    values = folded(nodes, {"a": np.float32([3, 4]), "yes": np.array(True)}, "i")
    np.testing.assert_array_equal(values["i"], [18, 32])


def test_what_cannot_be_computed_is_named() -> None:
    nodes = [node("Reshape", ["a", "shape"], [f"broken{i}"]) for i in range(4)]
    constants = {"a": np.float32([10, 20]), "shape": np.int64([7])}
    with pytest.raises(ModelError, match=r"'broken0': cannot be computed from the constants they depend on: .*Reshape"):
        folded(nodes, constants, "broken0")
    with pytest.raises(ModelError, match="'broken0', 'broken1', 'broken2' and 1 more: cannot be computed"):
        folded(nodes, constants, *(f"broken{i}" for i in range(4)))


def test_weights_are_read_from_their_files(tmp_path: Path) -> None:
    weights = np.arange(1000, dtype=np.float32)
    model = make_model(
        [node("Neg", ["w"], ["n"]), node("Add", ["x", "n"], ["y"])], {"x": [1000]}, ["y"], {"w": weights}
    )
    save_model(model, tmp_path / "a.onnx", external=True)
    graph = Graph(load_model(tmp_path / "a.onnx"))
    values = fixed_values(graph, ["n", "w"], tmp_path)
    np.testing.assert_array_equal(values["n"], -weights)
    np.testing.assert_array_equal(values["w"], weights)
    for name in ("n", "w"):
        with pytest.raises(ModelError):
            fixed_values(Graph(load_model(tmp_path / "a.onnx")), [name])

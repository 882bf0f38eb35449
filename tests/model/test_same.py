from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from models import conv_model, make_model
from onnx import TensorProto, helper
from qdq_models import f32, node

from trtcal.errors import ModelError
from trtcal.model.runner import OrtRunner
from trtcal.model.same import TOLERANCE, check_same


def chain(*ops: str, shape: tuple[int | str, ...] = ("N", 4)) -> onnx.ModelProto:
    """x -> one op after the other, each called after its place -> y."""
    names = ["x", *(f"t{number}" for number in range(1, len(ops))), "y"]
    nodes = [
        node(op, [a], [b], name=f"node {number}")
        for number, (op, a, b) in enumerate(zip(ops, names[:-1], names[1:], strict=True))
    ]
    return make_model(nodes, {"x": list(shape)}, ["y"])


def test_a_model_computes_what_it_computes(caplog: pytest.LogCaptureFixture) -> None:
    check_same(conv_model(), conv_model())
    check_same(conv_model(), conv_model(), samples=[{"image": np.ones((1, 3, 8, 8), np.float32)}])
    assert not caplog.records


def test_the_first_node_that_differs_is_named_and_by_how_much() -> None:
    before, after = chain("Neg", "Sigmoid", "Relu", "Relu"), chain("Neg", "Tanh", "Relu", "Relu")
    with pytest.raises(ModelError, match=r"^Sigmoid 'node 1': 't2' is something else .*\(by up to "):
        check_same(before, after)
    with pytest.raises(ModelError, match=r"\(by up to 0\.5\)"):
        check_same(before, after, samples=[{"x": np.zeros((2, 4), np.float32)}])


def test_other_shapes_and_types_are_a_difference() -> None:
    flat = make_model([node("Flatten", ["x"], ["y"], axis=0)], {"x": ["N", 4]}, ["y"])
    with pytest.raises(
        ModelError, match=r"Identity 'node 0': 'y' .*\(float32 \(2, 4\) before, float32 \(1, 8\) after\)"
    ):
        check_same(chain("Identity"), flat)
    cast = make_model([node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)], {"x": ["N", 4]}, ["y"])
    with pytest.raises(ModelError, match=r"float32 \(2, 4\) before, float64 \(2, 4\) after"):
        check_same(chain("Identity"), cast)


def test_rounding_is_no_difference_and_more_is() -> None:
    def scaled(factor: float) -> onnx.ModelProto:
        return make_model([node("Mul", ["x", "f"], ["y"])], {"x": ["N", 4]}, ["y"], {"f": f32(factor)})

    check_same(scaled(1), scaled(1 + TOLERANCE / 2))
    with pytest.raises(ModelError, match="'y' is something else"):
        check_same(scaled(1), scaled(1 + TOLERANCE * 2))


def test_inf_and_nan_must_be_where_they_were() -> None:
    samples = [{"x": f32([[0, -1, 1, 2]])}]  # of which the logarithms are -inf and nan among others
    check_same(chain("Log"), chain("Log"), samples=samples)
    for other in ("Neg", "Sqrt"):
        with pytest.raises(ModelError, match="Log 'node 0'"):
            check_same(chain("Log"), chain(other), samples=samples)


def test_tensors_that_are_watched_are_compared_where_no_output_shows_them() -> None:
    def hidden(op: str) -> onnx.ModelProto:
        nodes = [node(op, ["x"], ["h"]), node("Mul", ["h", "zero"], ["y"])]
        return make_model(nodes, {"x": ["N", 4]}, ["y"], {"zero": f32(0)})

    check_same(hidden("Sin"), hidden("Cos"))
    with pytest.raises(ModelError, match="Sin 'h': 'h' is something else"):
        check_same(hidden("Sin"), hidden("Cos"), watched=["h", "unknown"])


@pytest.mark.parametrize(("batch", "rows"), [("N", 2), (5, 5)])
def test_of_a_large_batch_a_few_rows_are_run_where_the_model_takes_them(
    batch: int | str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = []

    class Watching(OrtRunner):
        def __call__(self, batch: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
            fed.append(batch["x"].shape)
            return super().__call__(batch)

    monkeypatch.setattr("trtcal.model.same.OrtRunner", Watching)
    samples = ({"x": np.ones((5, 4), np.float32)} for _ in range(100))
    check_same(chain("Neg", shape=(batch, 4)), chain("Neg", shape=(batch, 4)), samples=samples)
    assert fed == [(rows, 4)] * 4, "two samples, before and after"
    assert len(list(samples)) == 98


def token_model(rows: int, op: str = "Relu") -> onnx.ModelProto:
    """ids (N, T), mask (N, T) and a length -> embedding by Gather, masked."""
    return make_model(
        [
            node("Gather", ["table", "ids"], ["e"]),
            node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["m", "last"], ["mm"]),
            node("Mul", ["e", "mm"], ["masked"]),
            node(op, ["masked"], ["y"]),
        ],
        {"ids": ["N", "T"], "mask": ["N", "T"]},
        ["y"],
        {"table": f32(np.random.default_rng(0).normal(size=(rows, 3))), "last": np.array([-1])},
        dtypes={"ids": TensorProto.INT64, "mask": TensorProto.BOOL},
    )


def test_whole_numbers_are_small_enough_for_any_table(caplog: pytest.LogCaptureFixture) -> None:
    check_same(token_model(2), token_model(2))
    with pytest.raises(ModelError, match="Relu 'y'"):
        check_same(token_model(2), token_model(2, "Neg"))
    assert not caplog.records


@pytest.mark.parametrize("size", [7, 32, 200, 224])
def test_sizes_that_are_open_are_found(size: int, caplog: pytest.LogCaptureFixture) -> None:
    """A network with an open axis that takes only some sizes: a kernel that must fit, a table of positions."""

    def model(op: str) -> onnx.ModelProto:
        shape = node("MaxPool", ["x"], ["p"], kernel_shape=[size])
        return make_model([shape, node(op, ["p"], ["y"])], {"x": ["N", 1, "L"]}, ["y"])

    check_same(model("Neg"), model("Neg"))
    with pytest.raises(ModelError, match="Neg 'y'"):
        check_same(model("Neg"), model("Abs"))
    assert not caplog.records


def test_floats_that_are_indices_are_tried_as_such(caplog: pytest.LogCaptureFixture) -> None:
    def model(op: str) -> onnx.ModelProto:
        nodes = [
            node("Cast", ["x"], ["i"], to=TensorProto.INT64),
            node("Gather", ["table", "i"], ["g"]),
            node(op, ["g"], ["y"]),
        ]
        return make_model(nodes, {"x": ["N", 100]}, ["y"], {"table": f32([3])})

    check_same(model("Neg"), model("Neg"))
    with pytest.raises(ModelError, match="Neg 'y'"):
        check_same(model("Neg"), model("Abs"))
    assert not caplog.records


def test_what_cannot_be_run_before_is_said_not_to_be_compared(caplog: pytest.LogCaptureFixture) -> None:
    picky = make_model([node("Reshape", ["x", "shape"], ["y"])], {"x": ["A"]}, ["y"], {"shape": np.array([3, 331])})
    check_same(picky, picky)
    assert "is not compared with what it computed before: model: ONNX Runtime cannot run it" in caplog.text


def test_no_input_is_drawn_that_does_not_fit_into_memory(caplog: pytest.LogCaptureFixture) -> None:
    check_same(chain("Neg", shape=(1 << 20, 1 << 20)), chain("Neg", shape=(1 << 20, 1 << 20)))
    assert "input 'x' of shape [1048576, 1048576] is too large to try" in caplog.text


def test_what_cannot_be_run_afterwards_is_an_error() -> None:
    broken = chain("Neg")
    broken.graph.node[0].op_type = "Nig"
    with pytest.raises(ModelError, match="ONNX Runtime cannot load it"):
        check_same(chain("Neg"), broken)
    with pytest.raises(ModelError, match="ONNX Runtime cannot run it"):
        check_same(
            chain("Neg"), make_model([node("Reshape", ["x", "s"], ["y"])], {"x": ["N", 4]}, ["y"], {"s": np.array([7])})
        )


def test_random_outputs_are_said_not_to_be_compared(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(
        [node("RandomNormalLike", ["x"], ["r"], name="dice"), node("Add", ["r", "x"], ["y"])], {"x": ["N", 4]}, ["y"]
    )
    check_same(model, model)
    assert "is random from RandomNormalLike 'dice' on, and is not compared" in caplog.text


def test_sequences_are_compared_element_by_element() -> None:
    def model(*splits: int) -> onnx.ModelProto:
        made = make_model(
            [node("SplitToSequence", ["x", "split"], ["y"], axis=0)], {"x": [4]}, [], {"split": np.array(splits)}
        )
        made.graph.output.append(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
        return made

    check_same(model(1, 3), model(1, 3))
    for other in (model(2, 2), model(1, 1, 2)):
        with pytest.raises(ModelError, match="SplitToSequence 'y'"):
            check_same(model(1, 3), other)

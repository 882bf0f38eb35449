from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, images, make_model, save
from onnx import helper

from trtcal.errors import ModelError
from trtcal.model.runner import Optimization, OrtRunner


def test_a_model_runs_from_a_file_bytes_or_memory_alike(tmp_path: Path) -> None:
    model, x = conv_model(), {"image": images(3)}
    path = save(model, tmp_path / "m.onnx")
    answers = [OrtRunner(source)(x)["logits"] for source in (path, str(path), model.SerializeToString(), model)]
    assert answers[0].shape == (3, 5)
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


def test_what_no_output_depends_on_is_not_run() -> None:
    """Beside such nodes ONNX Runtime 1.18 gives wrong results; this one would fail."""
    model, x = conv_model(), {"image": images(3)}
    expected = OrtRunner(model)(x)["logits"]
    model.graph.initializer.append(helper.make_tensor("seven", onnx.TensorProto.INT64, [1], [7]))
    model.graph.node.append(helper.make_node("Reshape", ["relu", "seven"], ["dead"]))
    np.testing.assert_array_equal(OrtRunner(model)(x)["logits"], expected)
    assert OrtRunner(model, outputs=[])(x) == {}


def test_only_the_outputs_asked_for_come_back_in_that_order() -> None:
    model = conv_model()
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("conv", "relu"))
    with OrtRunner(model, outputs=["relu", "logits"]) as runner:
        assert list(runner({"image": images(1)})) == ["relu", "logits"]
    with pytest.raises(ModelError, match=r"has no output 'nope'; it has logits, conv, relu"):
        OrtRunner(model, outputs=["nope"])


def test_floating_point_outputs_are_told_from_others() -> None:
    model = make_model(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("ArgMax", ["x"], ["i"])],
        {"x": ["N", 2]},
        ["y", "i"],
    )
    assert OrtRunner(model).floats(["i", "y", "unknown"]) == ("y",)


def test_outputs_in_bfloat16_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(
        [
            helper.make_node("Cast", ["x"], ["b"], to=onnx.TensorProto.BFLOAT16),
            helper.make_node("Cast", ["b"], ["y"], to=onnx.TensorProto.FLOAT),
        ],
        {"x": ["N", 2]},
        ["b", "y"],
    )
    with OrtRunner(model, name="m.onnx") as runner:
        runner.outputs = runner.floats(["b", "y"])
        assert runner.outputs == ("y",)
        assert "m.onnx: left out, since ONNX Runtime hands no bfloat16 to NumPy: b;" in caplog.text
        caplog.clear()
        assert runner.floats(["y"]) == ("y",)
        assert not caplog.records
        np.testing.assert_array_equal(runner({"x": np.float32([[1, 2]])})["y"], [[1, 2]])


def test_threads_may_share_a_runner() -> None:
    xs = [{"image": images(1, seed=seed)} for seed in range(16)]
    with OrtRunner(conv_model(), threads=1) as runner, ThreadPoolExecutor(4) as pool:
        together = [answer["logits"] for answer in pool.map(runner, xs)]
        for x, answer in zip(xs, together, strict=True):
            np.testing.assert_array_equal(answer, runner(x)["logits"])


def test_what_cannot_run_says_what_was_fed(tmp_path: Path) -> None:
    with OrtRunner(save(conv_model(), tmp_path / "m.onnx")) as runner:
        with pytest.raises(ModelError, match=r"m\.onnx: ONNX Runtime cannot run it on image float32 \(1, 4, 8, 8\)"):
            runner({"image": np.zeros((1, 4, 8, 8), np.float32)})
        with pytest.raises(ModelError, match="photo float32"):
            runner({"photo": images(1)})
    with pytest.raises(RuntimeError, match="closed"):
        runner({"image": images(1)})


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    model = make_model([helper.make_node("NoSuchOperator", ["x"], ["y"])], {"x": ["N"]}, ["y"])
    with pytest.raises(ModelError, match=r"odd\.onnx: ONNX Runtime cannot load it: .*NoSuchOperator"):
        OrtRunner(save(model, tmp_path / "odd.onnx"))


def linear(dtype: np.dtype | type = np.float32) -> onnx.ModelProto:
    """A weight that is large, and a small one."""
    weight = np.random.default_rng(0).normal(size=(64, 96)).astype(dtype)
    shift = np.arange(96).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["w"], ["w32"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w32"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    return make_model(nodes, {"x": ["N", 64]}, ["y"], {"w": weight, "b": shift})


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int8, np.int64])
@pytest.mark.parametrize("optimization", ["disabled", "extended", "all"])
def test_large_weights_of_a_model_in_memory_are_used(dtype: type, optimization: Optimization, tmp_path: Path) -> None:
    x = {"x": np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)}
    model = linear(dtype)
    before = model.SerializeToString()
    expected = OrtRunner(save(model, tmp_path / "m.onnx"), optimization=optimization)(x)["y"]
    with OrtRunner(model, optimization=optimization, folder=tmp_path) as runner:
        assert model.SerializeToString() == before
        del model.graph.initializer[:]
        np.testing.assert_array_equal(runner(x)["y"], expected)


def test_a_large_weight_that_may_be_fed_is_the_default() -> None:
    model, x = linear(), {"x": np.ones((1, 64), np.float32)}
    model.graph.input.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [64, 96]))
    with OrtRunner(model) as runner:
        np.testing.assert_array_equal(runner(x)["y"], OrtRunner(linear())(x)["y"])
        np.testing.assert_array_equal(runner({**x, "w": np.zeros((64, 96), np.float32)})["y"][0], np.arange(96))


@pytest.mark.parametrize("spoil", [lambda w: w.dims.append(2), lambda w: w.ClearField("raw_data")])
def test_a_weight_that_does_not_fit_its_shape_is_an_error(spoil: Callable[[onnx.TensorProto], object]) -> None:
    model = linear()
    spoil(model.graph.initializer[0])
    with pytest.raises(ModelError, match="model: ONNX Runtime cannot load it"):
        OrtRunner(model)


@pytest.mark.parametrize("optimization", ["disabled", "extended", "all"])
def test_large_weights_that_only_a_subgraph_or_nobody_reads_do_not_hinder(
    optimization: Optimization, tmp_path: Path
) -> None:
    weights = {name: np.random.default_rng(seed).normal(size=(64, 96)) for seed, name in enumerate("abcd")}
    branches = {
        branch: helper.make_graph(
            [helper.make_node("MatMul", ["x", weight], [branch])], branch, [], [onnx.ValueInfoProto(name=branch)]
        )
        for branch, weight in (("then_branch", "a"), ("else_branch", "b"))
    }
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], **branches),
        helper.make_node("MatMul", ["x", "c"], ["dead"]),
    ]
    model = make_model(
        nodes,
        {"x": ["N", 64]},
        ["y"],
        {"zero": np.zeros((), np.float32), **{name: value.astype(np.float32) for name, value in weights.items()}},
    )
    expected = OrtRunner(save(model, tmp_path / "m.onnx"), optimization=optimization)
    runner = OrtRunner(model, optimization=optimization)
    for x in (np.ones((2, 64), np.float32), -np.ones((2, 64), np.float32)):
        np.testing.assert_array_equal(runner({"x": x})["y"], expected({"x": x})["y"])


def test_of_a_large_weight_that_is_there_twice_the_one_that_a_file_would_give_is_taken(tmp_path: Path) -> None:
    model, x = linear(), {"x": np.ones((1, 64), np.float32)}
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((64, 96), np.float32), "w"))
    expected = OrtRunner(save(model, tmp_path / "m.onnx"))(x)["y"]
    np.testing.assert_array_equal(OrtRunner(model)(x)["y"], expected)


def test_weights_that_a_closed_runner_gave_out_stay_what_they_were() -> None:
    model = linear()
    model.graph.output.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [64, 96]))
    expected = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    with OrtRunner(model) as runner:
        weight = runner({"x": np.ones((1, 64), np.float32)})["w"]
    del model, runner
    churn = [np.full((64, 96), 7, np.float32) for _ in range(256)]
    np.testing.assert_array_equal(weight, expected)
    assert churn

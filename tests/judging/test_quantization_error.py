from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import batched, images, make_model, save
from onnx import helper

from trtcal.judging.quantization_error import (
    LayerDamage,
    Trial,
    layer_damage,
    noise_ratio,
    rounding_sqnr,
    tensor_damage,
)
from trtcal.model.open import open_model
from trtcal.model.topology import Graph
from trtcal.qdq.insert import insert_qdq
from trtcal.qdq.placement import PLACEMENTS, Plan, place
from trtcal.qdq.weights import weight_scales, weight_sqnr_db
from trtcal.samples.batches import Batch

node = helper.make_node
SAMPLES = images(6)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network(nodes: list[onnx.NodeProto], **kernels: np.ndarray) -> onnx.ModelProto:
    """Nodes from image (N, 3, 8, 8) to y."""
    return make_model(nodes, {"image": ["N", 3, 8, 8]}, ["y"], kernels)


def planned(model: onnx.ModelProto, **scales: float) -> tuple[Graph, Plan]:
    """Every tensor with scale 0.03, but for those given, in placement "all"."""
    names = [name for n in model.graph.node for name in (*n.input, *n.output)]
    every = {name: np.float32(scales.get(name, 0.03)) for name in names}
    graph = Graph(model)
    return graph, place(graph, every, PLACEMENTS["all"], ())


def layers(model: onnx.ModelProto, **scales: float) -> dict[str, LayerDamage]:
    graph, plan = planned(model, **scales)
    return {damage.layer: damage for damage in layer_damage(graph, plan, dict.fromkeys(plan.scales, 20.0))}


POOLED = network(
    [
        node("Conv", ["image", "w1"], ["c1"], "conv1"),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("MaxPool", ["r1"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w2"], ["c2"], "conv2"),
        node("Relu", ["c2"], ["y"], "relu2"),
    ],
    w1=weights(4, 3, 1, 1),
    w2=weights(2, 4, 1, 1),
)


def rounded(x: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.rint(x / np.float32(scale)), -128, 127) * np.float32(scale)


def sqnr_db(x: np.ndarray, scale: float) -> float:
    noise = np.square(x.astype(np.float64) - rounded(x, scale)).sum()
    return 10 * math.log10(np.square(x.astype(np.float64)).sum() / noise)


@pytest.mark.parametrize("scale", [0.001, 0.03, 0.5])
def test_a_tensor_s_sqnr_is_that_of_rounding_and_clipping_it(tmp_path: Path, scale: float) -> None:
    _, plan = planned(POOLED, image=scale)
    found = rounding_sqnr(open_model(save(POOLED, tmp_path / "m.onnx")), plan, batched(SAMPLES, 4))
    assert found.keys() == {"image", "r1", "p"}
    assert found["image"] == pytest.approx(sqnr_db(SAMPLES, scale), abs=1e-4)
    c1 = np.einsum("nchw,mc->nmhw", SAMPLES, weights(4, 3, 1, 1)[:, :, 0, 0])
    pooled = np.maximum(c1, 0).reshape(6, 4, 4, 2, 4, 2).max(axis=(3, 5))
    assert found["p"] == pytest.approx(sqnr_db(pooled, 0.03), abs=1e-2)


def test_padding_does_not_count(tmp_path: Path) -> None:
    _, plan = planned(POOLED)
    rows = [0, 1, 2, 3, 4, 5, 0, 0]
    padded = Batch({"image": SAMPLES[rows]}, samples=[str(row) for row in rows], valid=6)
    graph = open_model(save(POOLED, tmp_path / "m.onnx"))
    assert rounding_sqnr(graph, plan, [padded]) == rounding_sqnr(graph, plan, batched(SAMPLES, 4))


def test_tensors_come_from_worst_to_best_with_range_and_readers() -> None:
    graph, plan = planned(POOLED, image=0.01)
    first, second, third = tensor_damage(graph, plan, {"image": 30.0, "r1": 5.0, "p": 4.0})
    assert [damage.tensor for damage in (first, second, third)] == ["p", "r1", "image"]
    assert [damage.layers for damage in (first, second, third)] == [("conv2",), ("pool",), ("conv1",)]
    assert third.amax == pytest.approx(1.27)
    assert third.sqnr_db == 30


def test_a_layer_s_estimate_adds_the_noise_of_all_it_reads() -> None:
    graph, plan = planned(POOLED)
    found = layer_damage(graph, plan, {"image": 30.0, "r1": 9.0, "p": 10.0})
    assert [damage.layer for damage in found] == ["conv2", "conv1"]
    kernel = weights(4, 3, 1, 1)
    expected = noise_ratio(30.0) + noise_ratio(weight_sqnr_db(kernel, weight_scales(kernel, 0), 0))
    assert found[1].estimate_db == pytest.approx(-10 * math.log10(expected))
    assert found[1].tensors == ("image",)
    assert found[1].weights == ("w1",)
    assert found[0].only is found[0].without is None


def test_a_pool_goes_along_with_the_layer_behind_it() -> None:
    found = layers(POOLED)
    assert found.keys() == {"conv1", "conv2"}
    assert found["conv2"].exclude == ("conv2", "pool")
    assert found["conv2"].tensorrt == ("pool", "conv2", "relu2")
    assert found["conv1"].exclude == ("conv1",)
    assert found["conv1"].tensorrt == ("conv1", "relu1")


def test_a_pool_goes_along_with_each_layer_behind_it() -> None:
    nodes = [
        node("MaxPool", ["image"], ["p"], "pool", kernel_shape=[2, 2]),
        node("Conv", ["p", "w1"], ["a"], "conv1"),
        node("Conv", ["p", "w2"], ["b"], "conv2"),
        node("Mul", ["a", "b"], ["y"], "mul"),
    ]
    found = layers(network(nodes, w1=weights(4, 3, 1, 1), w2=weights(4, 3, 1, 1, seed=1)))
    assert found["conv1"].exclude == ("conv1", "pool")
    assert found["conv2"].exclude == ("conv2", "pool")


def test_a_concat_and_what_is_before_it_go_along_with_the_layer_behind_it() -> None:
    nodes = [
        node("Conv", ["image", "w1"], ["a"], "conv1"),
        node("MaxPool", ["a"], ["p"], "pool", kernel_shape=[1, 1]),
        node("Conv", ["image", "w2"], ["b"], "conv2"),
        node("Concat", ["p", "b"], ["c"], "join", axis=1),
        node("Conv", ["c", "w3"], ["y"], "conv3"),
    ]
    model = network(nodes, w1=weights(2, 3, 1, 1), w2=weights(2, 3, 1, 1, seed=1), w3=weights(2, 4, 1, 1))
    found = layers(model)
    assert found.keys() == {"conv1", "conv2", "conv3"}
    assert found["conv3"].exclude == ("conv3", "pool", "join")


def test_a_pool_that_no_int8_layer_reads_is_a_layer_of_its_own() -> None:
    nodes = [
        node("Conv", ["image", "w"], ["c"], "conv"),
        node("MaxPool", ["c"], ["p"], "pool", kernel_shape=[2, 2]),
        node("Softmax", ["p"], ["y"], "softmax", axis=1),
    ]
    found = layers(network(nodes, w=weights(4, 3, 1, 1)))
    assert {name: damage.exclude for name, damage in found.items()} == {"conv": ("conv",), "pool": ("pool",)}


def test_layers_whose_names_are_patterns_or_missing_are_told_apart() -> None:
    nodes = [
        node("Conv", ["image", "w1"], ["c1"], "conv[0]"),
        node("Conv", ["c1", "w2"], ["c2"], "conv0"),
        node("Conv", ["c2", "w3"], ["c3"]),
        node("Conv", ["c3", "w4"], ["y"], "Conv"),
    ]
    kernels = {f"w{i}": weights(4, 4, 1, 1, seed=i) for i in (2, 3, 4)}
    model = network(nodes, w1=weights(4, 3, 1, 1), **kernels)
    _, plan = planned(model)
    found = layers(model)
    assert {damage.exclude for damage in found.values()} == {("conv[[]0]",), ("conv0",), ("c3",), ("y",)}
    for damage in found.values():
        assert len(insert_qdq(model, plan.scales, placement="all", exclude=damage.exclude).layers) == 3
    assert found["c3"].tensorrt == ("node_of_c3",)


def test_a_pool_goes_along_under_either_name_of_onnx_s_own_domain() -> None:
    model = network(list(POOLED.graph.node))
    model.graph.initializer.extend(POOLED.graph.initializer)
    for each in model.graph.node:
        each.domain = "ai.onnx"
    assert layers(model) == layers(POOLED)


def test_an_op_of_another_domain_is_no_pool_to_go_along() -> None:
    def exclude(domain: str) -> tuple[str, ...]:
        nodes = [
            node("MaxPool", ["image"], ["p"], "pool", kernel_shape=[1, 1]),
            node("MaxPool", ["p"], ["q"], "other", domain=domain, kernel_shape=[1, 1]),
            node("Conv", ["q", "w"], ["y"], "conv"),
        ]
        model = network(nodes, w=weights(4, 3, 1, 1))
        model.opset_import.append(helper.make_opsetid("my.ops", 1))
        return layers(model)["conv"].exclude

    assert exclude("") == ("conv", "pool", "other")
    assert exclude("my.ops") == ("conv",)


def test_noise_and_sqnr_are_each_other_s_inverse() -> None:
    assert noise_ratio(20.0) == pytest.approx(0.01)
    assert Trial(0.01, None).sqnr_db == pytest.approx(20)
    assert Trial(0.0, None).sqnr_db == math.inf
    assert (noise_ratio(math.inf), noise_ratio(-math.inf)) == (0, 0)

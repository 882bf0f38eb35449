from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import pytest
from models import make_model
from onnx import TensorProto, helper

from trtcal.errors import ModelError
from trtcal.model.topology import Graph
from trtcal.qdq.placement import PLACEMENTS, Plan, Weight, exclusion, invalid_scale, place, weights_of


def f32(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


node = helper.make_node


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def network(nodes: list[onnx.NodeProto], outputs: str, **initializers: np.ndarray) -> Graph:
    """A graph over x (1, 4, 8, 8); outputs as one string of names."""
    return Graph(make_model(nodes, {"x": [1, 4, 8, 8]}, outputs.split(), initializers))


def scales(graph: Graph, **others: float) -> dict[str, np.float32]:
    """A scale of its own for every activation: 1.0, 1.1, ... in order of the graph."""
    names = [*graph.producer, *graph.tensors - graph.producer.keys() - graph.constants.keys()]
    return {name: np.float32(others.get(name, 1 + i / 10)) for i, name in enumerate(names)}


def placed(graph: Graph, placement: str = "tensorrt", exclude: Iterable[str] = (), **others: float) -> Plan:
    return place(graph, scales(graph, **others), PLACEMENTS[placement], exclude)


def int8_activations(plan: Plan) -> str:
    return " ".join(plan.scales)


def residual_block(downsample: bool = False) -> Graph:
    """conv-bn-relu, then a block: conv-bn-relu, conv-bn, + x or a convolution of it, relu; pool and gemm."""
    nodes = []
    sources = {"1": "x", "2": "r1", "3": "r2"}
    for i, source in sources.items():
        nodes += [
            node("Conv", [source, "w"], [f"c{i}"], pads=[1, 1, 1, 1]),
            node("BatchNormalization", [f"c{i}", *["v"] * 4], [f"b{i}"]),
        ]
        nodes += [node("Relu", [f"b{i}"], [f"r{i}"])] if i != "3" else []
    if downsample:
        nodes += [node("Conv", ["r1", "w"], ["cd"], pads=[1, 1, 1, 1]), node("Add", ["cd", "b3"], ["s"])]
    else:
        nodes += [node("Add", ["b3", "r1"], ["s"])]
    nodes += [
        node("Relu", ["s"], ["r3"]),
        node("GlobalAveragePool", ["r3"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "gw", "gb"], ["y"]),
    ]
    return network(nodes, "y", w=weights(4, 4, 3, 3), v=np.ones(4, np.float32), gw=weights(4, 5), gb=weights(5))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_residual_network_is_int8_at_the_layers_inputs_and_nowhere_between(placement: str) -> None:
    plan = placed(residual_block(), placement)
    assert int8_activations(plan) == "x r1 r2 r3 f"
    add = plan.reads[8]
    assert add == {1: "r1"}, "the branch that the convolution computes stays as it is"
    assert plan.skipped == {}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_of_two_convolutions_that_are_summed_the_later_one_takes_the_sum(placement: str) -> None:
    plan = placed(residual_block(downsample=True), placement)
    assert int8_activations(plan) == "x r1 r2 b3 r3 f"
    assert plan.reads[9] == {1: "b3"}


def test_weights_are_read_along_their_output_channels_and_biases_not_at_all() -> None:
    graph = network(
        [
            node("Conv", ["x", "conv", "bias"], ["a"]),
            node("Conv", ["a", "depthwise"], ["b"], group=4),
            node("ConvTranspose", ["b", "up"], ["c"]),
            node("ConvTranspose", ["c", "grouped"], ["d"], group=2),
            node("Flatten", ["d"], ["e"]),
            node("Gemm", ["e", "rows", "bias"], ["f"], transB=1),
            node("Gemm", ["f", "columns"], ["g"]),
            node("MatMul", ["g", "matrix"], ["h"]),
            node("MatMul", ["h", "vector"], ["y"]),
        ],
        "y",
        conv=weights(4, 4, 1, 1),
        depthwise=weights(4, 1, 1, 1),
        up=weights(4, 6, 1, 1),
        grouped=weights(6, 2, 1, 1),
        rows=weights(4, 256),
        columns=weights(4, 4),
        matrix=weights(4, 4),
        vector=weights(4),
        bias=weights(4),
    )
    expected = {
        "conv": 0,
        "depthwise": 0,
        "up": 1,
        "grouped": None,
        "rows": 0,
        "columns": 1,
        "matrix": 1,
        "vector": None,
    }
    read = [read for found in placed(graph).reads.values() for read in found.values() if isinstance(read, Weight)]
    assert read == [Weight(name, axis) for name, axis in expected.items()]
    assert list(weights_of(graph)) == read


def test_attention_reads_both_activations_and_keeps_softmax_and_normalization_in_float() -> None:
    graph = Graph(
        make_model(
            [
                node("LayerNormalization", ["x", "v"], ["n"]),
                node("MatMul", ["n", "w"], ["q"]),
                node("Transpose", ["n"], ["k"], perm=[0, 2, 1]),
                node("MatMul", ["q", "k"], ["logits"]),
                node("Softmax", ["logits"], ["p"]),
                node("MatMul", ["p", "n"], ["a"]),
                node("Add", ["a", "x"], ["y"]),
            ],
            {"x": [1, 6, 4]},
            ["y"],
            {"v": weights(4), "w": weights(4, 4)},
            opset=17,
        )
    )
    plan = placed(graph)
    assert int8_activations(plan) == "n q k p"
    assert plan.reads[3] == {0: "q", 1: "k"}
    assert plan.scales["k"] == plan.scales["n"], "moved values have the scale of their source"
    assert int8_activations(placed(graph, "all")) == "n q k p x", "implicit INT8 also sums in int8"


def test_all_adds_what_implicit_int8_computes_besides() -> None:
    graph = network(
        [
            node("MaxPool", ["x"], ["m"], kernel_shape=[1, 1]),
            node("Relu", ["m"], ["r"]),
            node("Mul", ["r", "two"], ["d"]),
            node("Concat", ["m", "d"], ["c"], axis=1),
            node("Softmax", ["c"], ["y"]),
        ],
        "y",
        two=f32([2]),
    )
    assert int8_activations(placed(graph)) == ""
    plan = placed(graph, "all")
    assert int8_activations(plan) == "x m d"
    assert plan.scales["m"] == plan.scales["x"]
    assert plan.scales["d"] != plan.scales["m"], "no int8 layer reads the Concat, so its inputs need not agree"


def test_what_is_fused_into_a_float_layer_stays_in_float_with_it() -> None:
    plan = placed(residual_block(), "all", exclude=["c3"])
    assert 8 not in plan.reads
    assert int8_activations(plan) == "x r1 r3 f"


def concat_network(*last: onnx.NodeProto) -> Graph:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Conv", ["a", "w"], ["b"]),
        node("Concat", ["a", "b"], ["c"], axis=1),
        *last,
    ]
    return network(nodes, "y", w=weights(4, 4, 1, 1), w8=weights(4, 8, 1, 1), w12=weights(4, 12, 1, 1))


def test_inputs_of_a_concat_take_the_scale_of_its_int8_output() -> None:
    plan = placed(concat_network(node("Conv", ["c", "w8"], ["y"])), a=1, b=3, c=2)
    assert plan.scales == {"x": plan.scales["x"], "a": 2, "b": 2, "c": 2}
    assert plan.reads[2] == {0: "a", 1: "b"}


def test_a_concat_that_float_layers_read_too_stays_in_float() -> None:
    readers = (
        node("Conv", ["c", "w8"], ["d"]),
        node("Softmax", ["c"], ["e"]),
        node("Concat", ["d", "e"], ["y"], axis=1),
    )
    plan = placed(concat_network(*readers), a=1, c=2)
    assert 2 not in plan.reads
    assert plan.scales["a"] == 1
    assert int8_activations(plan) == "x a c"


def test_a_concat_that_is_an_output_of_the_model_stays_in_float() -> None:
    graph = concat_network(node("Conv", ["c", "w8"], ["y"]))
    assert 2 in placed(graph).reads
    graph.outputs |= {"c"}
    assert 2 not in placed(graph).reads


def test_an_excluded_concat_stays_in_float() -> None:
    assert 2 not in placed(concat_network(node("Conv", ["c", "w8"], ["y"])), exclude=["Concat"]).reads


def test_a_concat_is_found_behind_layers_that_move_its_values() -> None:
    graph = concat_network(
        node("MaxPool", ["c"], ["m"], kernel_shape=[1, 1]),
        node("Transpose", ["m"], ["t"], perm=[0, 1, 3, 2]),
        node("Conv", ["t", "w8"], ["y"]),
    )
    plan = placed(graph, a=1, b=3, c=2, t=9)
    assert plan.scales["a"] == plan.scales["b"] == plan.scales["t"] == 2
    given = scales(graph, a=1, b=3, t=9)
    del given["c"]
    plan = place(graph, given, PLACEMENTS["tensorrt"], ())
    assert plan.scales["a"] == plan.scales["t"] == 9, "the nearest scale behind it, where the Concat has none"


def test_concats_that_share_inputs_share_the_largest_scale_of_their_outputs() -> None:
    graph = concat_network(
        node("Conv", ["c", "w8"], ["d"]),
        node("Concat", ["c", "d"], ["e"], axis=1),
        node("Conv", ["e", "w12"], ["y"]),
    )
    for larger in ("c", "e"):
        given = scales(graph, **{"a": 1, "b": 1, "c": 2, "d": 9, "e": 2, larger: 5})
        plan = place(graph, given, PLACEMENTS["tensorrt"], ())
        assert {name: plan.scales[name] for name in "abcde"} == dict.fromkeys("abcde", 5)


def test_nodes_that_no_output_depends_on_are_not_int8_and_change_nothing() -> None:
    """TensorRT takes them out before it fuses: they were quantized, and came between a convolution and its Relu."""
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("Concat", ["r", "x"], ["c"], axis=1),
        node("Conv", ["c", "w8"], ["b"]),
        node("Add", ["b", "r"], ["y"]),
    ]
    dead = [
        node("MaxPool", ["a"], ["d1"], kernel_shape=[1, 1]),
        node("Softmax", ["c"], ["d2"]),
        node("Conv", ["d1", "w"], ["d3"]),
        node("Relu", ["d3"], ["d4"]),
        node("AveragePool", ["y"], ["d5"], kernel_shape=[1, 1]),
    ]
    constants = {"w": weights(4, 4, 1, 1), "w8": weights(4, 8, 1, 1)}
    for placement in PLACEMENTS:
        plain = network(nodes, "y", **constants)
        given = scales(plain)
        with_dead = network([*nodes, *dead], "y", **constants)
        more = dict.fromkeys(("d1", "d2", "d3", "d4", "d5"), np.float32(1))
        expected = place(plain, given, PLACEMENTS[placement], ())
        assert place(with_dead, given | more, PLACEMENTS[placement], ()) == expected
        assert expected.reads.keys() >= {0, 2, 3, 4}
        assert not with_dead.root.keys() & set(range(len(nodes), len(nodes) + len(dead)))


def test_a_dead_input_of_an_int8_concat_takes_the_output_s_scale() -> None:
    graph = network(
        [
            node("Relu", ["x"], ["dead"]),
            node("Concat", ["dead", "x"], ["c"], axis=1),
            node("Conv", ["c", "w8"], ["y"]),
        ],
        "y",
        w8=weights(4, 8, 1, 1),
    )
    assert placed(graph, dead=0, c=2).scales["dead"] == 2


def test_moved_values_take_the_scale_of_their_source_if_both_are_int8() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Conv", ["a", "w"], ["b"]),
        node("MaxPool", ["a"], ["m"], kernel_shape=[1, 1]),
        node("Identity", ["m"], ["i"]),
        node("Conv", ["i", "w"], ["y"]),
    ]
    both = placed(network(nodes, "b y", w=weights(4, 4, 1, 1)), a=2, m=3, i=4)
    assert both.scales["i"] == both.scales["a"] == 2
    alone = placed(network(nodes, "b y", w=weights(4, 4, 1, 1)), exclude=["b"], a=2, m=3, i=4)
    assert "a" not in alone.scales
    assert alone.scales["i"] == 4


def test_a_missing_scale_is_taken_from_where_the_values_come_from() -> None:
    graph = network(
        [node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]), node("Conv", ["t", "w"], ["y"])],
        "y",
        w=weights(4, 4, 1, 1),
    )
    plan = place(graph, {"x": np.float32(3)}, PLACEMENTS["tensorrt"], ())
    assert plan.scales == {"t": 3}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.0, "all zeros"),
        (math.inf, "inf or nan"),
        (math.nan, "inf or nan"),
        (-1.0, "no positive normal"),
        (1e-39, "no positive normal"),
    ],
)
def test_a_scale_that_cannot_be_used_is_reported_and_its_layer_stays_in_float(value: float, reason: str) -> None:
    plan = placed(residual_block(), r2=value)
    assert "r2" not in plan.scales
    assert list(plan.skipped) == ["r2"]
    assert reason in plan.skipped["r2"]
    assert "Conv 'c3' stays in float" in plan.skipped["r2"]
    assert 8 not in plan.reads, "the sum is part of that convolution"
    assert invalid_scale(value) is not None


def test_the_smallest_normal_float_is_a_scale() -> None:
    assert invalid_scale(np.finfo(np.float32).tiny) is None


def test_a_matmul_without_one_of_its_scales_stays_in_float_whole() -> None:
    graph = network([node("MatMul", ["x", "x2"], ["y"]), node("Relu", ["x"], ["x2"])][::-1], "y")
    plan = place(graph, {"x": np.float32(1)}, PLACEMENTS["tensorrt"], ())
    assert plan.reads == {}
    assert plan.skipped == {"x2": "it has no scale; MatMul 'y' stays in float"}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_integers_are_neither_quantized_nor_reported(placement: str) -> None:
    graph = network(
        [
            node("Shape", ["x"], ["s"]),
            node("Mul", ["s", "s"], ["s2"]),
            node("Concat", ["s", "s2"], ["y"], axis=0),
        ],
        "y",
    )
    plan = placed(graph, placement)
    assert (plan.reads, plan.skipped) == ({}, {})


def test_half_precision_is_reported() -> None:
    graph = network(
        [node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16), node("Conv", ["half", "w"], ["y"])],
        "y",
        w=weights(4, 4, 1, 1).astype(np.float16),
    )
    plan = placed(graph)
    assert plan.reads == {}
    assert "it is float16" in plan.skipped["half"]
    assert "weights of type float16" in plan.skipped["w"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_reported(bad: float) -> None:
    w = weights(4, 4, 1, 1)
    w[0, 0] = bad
    plan = placed(network([node("Conv", ["x", "w"], ["y"])], "y", w=w))
    assert plan.skipped == {"w": "weights that hold inf or nan; Conv 'y' stays in float"}


def test_computed_weights_are_reported() -> None:
    nodes = [node("Transpose", ["w"], ["wt"], perm=[1, 0, 2, 3]), node("Conv", ["x", "wt"], ["y"])]
    constant = placed(network(nodes, "y", w=weights(4, 4, 1, 1)))
    assert "fold constants" in constant.skipped["wt"]
    nodes = [node("Relu", ["x"], ["r"]), node("Conv", ["x", "r"], ["y"])]
    activation = placed(network(nodes, "y"))
    assert activation.reads == {}
    assert "computed" in activation.skipped["r"]


def test_an_op_of_another_domain_is_not_taken_for_onnx_s() -> None:
    model = make_model([node("Conv", ["x", "w"], ["y"], domain="elsewhere")], {"x": [1]}, ["y"], {"w": weights(1)})
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    assert placed(Graph(model)).reads == {}


def test_layers_are_excluded_by_name_op_type_output_or_glob() -> None:
    graph = network(
        [
            node("Conv", ["x", "w"], ["a"], name="(Unnamed Layer* 0) [Convolution]"),
            node("Conv", ["a", "w"], ["b"], name="/head/conv"),
            node("GlobalAveragePool", ["b"], ["y"]),
        ],
        "y",
        w=weights(4, 4, 1, 1),
    )
    for patterns, left in [
        (["(Unnamed Layer* 0) [Convolution]"], [1, 2]),
        (["/head/*"], [0, 2]),
        (["Conv"], [2]),
        (["y", "a"], [1]),
        (["Global*", "/head/conv"], [0]),
        (["*"], []),
    ]:
        assert list(placed(graph, exclude=patterns).reads) == left


def test_an_exclusion_that_fits_nothing_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"'Convv'; did you mean 'Conv'"):
        placed(residual_block(), exclude=["Convv"])


def test_an_exclusion_fits_its_node_alone() -> None:
    nodes = [
        node("Relu", ["x"], ["a"], "relu[0]"),
        node("Relu", ["a"], ["b"], "relu0"),
        node("Relu", ["b"], ["c"]),
        node("Relu", ["c"], ["d"], "Relu"),
        node("Relu", ["d"], ["y"], "same"),
        node("Relu", ["d"], ["z"], "same"),
    ]
    graph = Graph(make_model(nodes, {"x": [1]}, ["y", "z"]))
    patterns = [exclusion(graph, index) for index in range(6)]
    assert patterns == ["relu[[]0]", "relu0", "c", "d", "y", "z"]


def test_a_node_that_no_name_fits_alone_is_an_error() -> None:
    graph = Graph(
        make_model([node("Relu", ["x"], ["y"], "y"), node("Relu", ["x"], ["z"], "y")], {"x": [1]}, ["y", "z"])
    )
    with pytest.raises(ModelError, match="Relu 'y': no name fits this node alone"):
        exclusion(graph, 0)


@pytest.mark.parametrize("domain", ["", "ai.onnx", "my.ops"])
def test_only_onnx_s_own_ops_are_int8(domain: str) -> None:
    model = make_model(
        [
            node("Conv", ["x", "w"], ["a"], domain=domain),
            node("Concat", ["a", "x"], ["b"], domain=domain, axis=1),
            node("Conv", ["b", "w8"], ["y"]),
        ],
        {"x": [1, 4, 8, 8]},
        ["y"],
        {"w": weights(4, 4, 1, 1), "w8": weights(4, 8, 1, 1)},
    )
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    graph = Graph(model)
    own = domain != "my.ops"
    assert placed(graph).reads.keys() == placed(graph, "all").reads.keys() == ({0, 1, 2} if own else {2})
    assert list(weights_of(graph).values()) == (["a", "y"] if own else ["y"])

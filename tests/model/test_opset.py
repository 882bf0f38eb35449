from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from models import load_whole_model, make_model, save
from onnx import TensorProto, helper
from qdq_models import f32, node, run

from trtcal.errors import ModelError
from trtcal.model.file import save_model
from trtcal.model.nodes import all_bodies
from trtcal.model.open import open_model
from trtcal.model.opset import NEWEST, OLDEST, STEPS, opset_of, raise_opset, rewritten
from trtcal.model.read import load_model

PICTURE = f32(np.random.default_rng(0).normal(size=(2, 3, 6, 4)))


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


class Case(NamedTuple):
    """Nodes that read x, a picture unless another is given, and write y; from opset ``first`` to ``last``."""

    nodes: list[onnx.NodeProto]
    first: int = OLDEST
    last: int = NEWEST - 1
    constants: dict[str, np.ndarray] = {}  # noqa: RUF012
    x: np.ndarray = PICTURE
    outputs: tuple[str, ...] = ("y",)


def one(op: str, first: int = OLDEST, last: int = NEWEST - 1, *, x: np.ndarray = PICTURE, **attributes: Any) -> Case:
    return Case([node(op, ["x"], ["y"], name="it", **attributes)], first, last, x=x)


def scaled(op: str, mode: str, *scales: float) -> Case:
    opset = 9 if op == "Upsample" else 10
    nodes = [node(op, ["x", "scales"], ["y"], name="it", mode=mode)]
    return Case(nodes, opset, opset, {"scales": f32(scales)})


CASES: dict[str, Case] = {
    "upsample nearest": scaled("Upsample", "nearest", 1, 1, 2, 2),
    "upsample nearest by three": scaled("Upsample", "nearest", 1, 1, 3, 4),
    "upsample nearest by broken numbers": scaled("Upsample", "nearest", 1, 1, 1.7, 2.5),
    "upsample linear": scaled("Upsample", "linear", 1, 1, 2, 2),
    "upsample linear by broken numbers": scaled("Upsample", "linear", 1, 1, 1.7, 2.5),
    "resize nearest up": scaled("Resize", "nearest", 1, 1, 2, 3),
    "resize nearest up by broken numbers": scaled("Resize", "nearest", 1, 1, 1.3, 2.6),
    "resize nearest down": scaled("Resize", "nearest", 1, 1, 0.5, 0.5),
    "resize nearest down by broken numbers": scaled("Resize", "nearest", 1, 1, 0.7, 0.6),
    "resize nearest up and down": scaled("Resize", "nearest", 1, 1, 2.5, 0.6),
    "resize nearest of all axes": scaled("Resize", "nearest", 2, 0.7, 1.5, 0.5),
    "resize nearest by nothing": scaled("Resize", "nearest", 1, 1, 1, 1),
    "resize linear up": scaled("Resize", "linear", 1, 1, 2, 3),
    "resize linear down": scaled("Resize", "linear", 1, 1, 0.5, 0.6),
    "resize linear up and down": scaled("Resize", "linear", 1, 1, 1.7, 0.6),
    "resize by computed scales": Case(
        [
            node("Shape", ["x"], ["shape"]),
            node("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
            node("Div", ["wanted", "sizes"], ["scales"]),
            node("Resize", ["x", "scales"], ["y"], mode="nearest"),
        ],
        10,
        10,
        {"wanted": f32([2, 3, 9, 11])},
    ),
    "resize by computed scales, linear": Case(
        [
            node("Shape", ["x"], ["shape"]),
            node("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
            node("Div", ["wanted", "sizes"], ["scales"]),
            node("Resize", ["x", "scales"], ["y"], mode="linear"),
        ],
        10,
        10,
        {"wanted": f32([2, 3, 9, 3])},
    ),
    "resize nearest in TensorFlow's way": Case(
        [
            node(
                "Resize",
                ["x", "roi", "scales"],
                ["y"],
                mode="nearest",
                coordinate_transformation_mode="tf_half_pixel_for_nn",
                nearest_mode="floor",
            )
        ],
        11,
        12,
        {"roi": f32([]), "scales": f32([1, 1, 1.5, 0.5])},
    ),
    "resize to sizes": Case(
        [node("Resize", ["x", "roi", "scales", "sizes"], ["y"], mode="linear")],
        11,
        12,
        {"roi": f32([]), "scales": f32([]), "sizes": i64(2, 3, 9, 3)},
    ),
    "softmax": one("Softmax"),
    "softmax of the last axis": one("Softmax", axis=3),
    "softmax of the third axis": one("Softmax", axis=2),
    "softmax of all": one("Softmax", axis=0),
    "softmax from behind": one("Softmax", 11, axis=-2),
    "softmax of channels": one("Softmax", x=PICTURE[:, :, :1, :1]),
    "softmax of a matrix": one("Softmax", x=PICTURE[:, :, 0, 0]),
    "softmax of a vector": one("Softmax", axis=0, x=PICTURE[0, 0, :, 0]),
    "log softmax": one("LogSoftmax"),
    "log softmax of the last axis": one("LogSoftmax", axis=3),
    "hardmax": one("Hardmax", axis=2),
    "hardmax of the last axis": one("Hardmax", axis=3),
    "clip": one("Clip", 9, 10, min=-0.5, max=0.25),
    "clip from below": one("Clip", 9, 10, min=-0.5),
    "clip from above": one("Clip", 9, 10, max=0.25),
    "clip nothing": one("Clip", 9, 10),
    "pad": one("Pad", 9, 10, pads=[0, 0, 1, 2, 0, 0, 3, 0]),
    "pad with a value": one("Pad", 9, 10, pads=[0, 0, 1, 2, 0, 0, 3, 0], value=1.5),
    "pad by reflection": one("Pad", 9, 10, pads=[0, 0, 1, 2, 0, 0, 3, 0], mode="reflect"),
    "pad by the edge": one("Pad", 9, 10, pads=[0, 0, 1, 2, 0, 0, 3, 0], mode="edge", value=2.0),
    "crop": one("Pad", 9, 10, pads=[0, 0, -1, 0, 0, 0, 0, -1]),
    "pad doubles": one("Pad", 9, 10, pads=[0, 0, 1, 2, 0, 0, 3, 0], value=1.5, x=PICTURE.astype(np.float64)),
    "slice": one("Slice", 9, 9, starts=[1, -3], ends=[2, 100], axes=[0, 2]),
    "slice without axes": one("Slice", 9, 9, starts=[0, 1], ends=[1, 3]),
    "top k": Case([node("TopK", ["x"], ["y", "which"], k=2)], 9, 9, outputs=("y", "which")),
    "top k of an axis": Case([node("TopK", ["x"], ["y", "which"], k=3, axis=2)], 9, 9, outputs=("y", "which")),
    "top k of opset 10": Case(
        [node("TopK", ["x", "k"], ["y", "which"], axis=2)], 10, 10, {"k": i64(3)}, outputs=("y", "which")
    ),
    "split": Case([node("Split", ["x"], ["y", "z"], axis=2, split=[1, 5])], outputs=("y", "z")),
    "split in halves": Case([node("Split", ["x"], ["y", "z"], axis=2)], outputs=("y", "z")),
    "squeeze": one("Squeeze", axes=[1, 3], x=PICTURE[:, :1, :, :1]),
    "squeeze all": one("Squeeze", x=PICTURE[:, :1, :, :1]),
    "unsqueeze": one("Unsqueeze", axes=[0, 3]),
    "unsqueeze from behind": one("Unsqueeze", 11, axes=[-1, 0]),
    "sum": one("ReduceSum", axes=[1, 2]),
    "sum without axes": one("ReduceSum", keepdims=0),
    "sum from behind": one("ReduceSum", 11, axes=[-1], keepdims=0),
    "mean": one("ReduceMean", axes=[1, 2], keepdims=0),
    "dropout": Case([node("Dropout", ["x"], ["d"]), node("Neg", ["d"], ["y"])], 9, 11),
    "dropout with a ratio": one("Dropout", 9, 11, ratio=0.3),
    "scatter": Case(
        [node("Scatter", ["x", "where", "what"], ["y"], axis=2)],
        9,
        10,
        {"where": np.ones((2, 3, 1, 4), np.int64), "what": np.zeros((2, 3, 1, 4), np.float32)},
    ),
    "one hot": Case(
        [
            node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
            node("OneHot", ["whole", "depth", "values"], ["y"], axis=1),
        ],
        9,
        12,
        {"depth": np.array(3, np.int64), "values": f32([-1, 2])},
    ),
    "batch normalization": Case(
        [node("BatchNormalization", ["x", "a", "b", "m", "v"], ["y"], epsilon=0.01)],
        9,
        12,
        {"a": f32([1, 2, 3]), "b": f32([0, 1, 2]), "m": f32([0.1, 0, 1]), "v": f32([1, 2, 0.5])},
    ),
    "arg max": one("ArgMax", axis=2),
    "max pool": one("MaxPool", kernel_shape=[2, 3], pads=[1, 1, 0, 1], strides=[2, 1]),
    "average pool": one("AveragePool", kernel_shape=[2, 3], pads=[1, 1, 0, 1], strides=[2, 1]),
    "average pool with its pads": one("AveragePool", kernel_shape=[3, 3], auto_pad="SAME_UPPER", count_include_pad=1),
    "convolution": Case(
        [node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2])],
        constants={"w": f32(np.random.default_rng(1).normal(size=(2, 3, 2, 2)))},
    ),
    "transposed convolution": Case(
        [node("ConvTranspose", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])],
        constants={"w": f32(np.random.default_rng(1).normal(size=(3, 2, 3, 3)))},
    ),
    "gemm": Case(
        [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w", "b"], ["y"], transB=1, alpha=0.5)],
        constants={"w": np.ones((2, 72), np.float32), "b": f32([1, 2])},
    ),
    "depth to space": one("DepthToSpace", blocksize=2, x=f32(np.arange(32).reshape(1, 8, 2, 2))),
    "gather": Case([node("Gather", ["x", "which"], ["y"], axis=2)], constants={"which": i64(0, 5, 2)}),
    "instance normalization": Case(
        [node("InstanceNormalization", ["x", "a", "b"], ["y"])],
        constants={"a": f32([1, 2, 3]), "b": f32([0, 1, 2])},
    ),
    "constants": Case(
        [
            node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(f32([1, 2, 3, 4]))),
            node("Expand", ["c", "shape"], ["e"]),
            node("Where", ["yes", "x", "e"], ["w"]),
            node("Pow", ["w", "c"], ["p"]),
            node("Max", ["p", "x", "c"], ["y"]),
        ],
        constants={"shape": i64(2, 3, 6, 4), "yes": PICTURE > 0},
    ),
    "recurrent": Case(
        [
            node("Reshape", ["x", "shape"], ["steps"]),
            node("LSTM", ["steps", "w", "r"], ["y", "last"], hidden_size=3, direction="bidirectional"),
        ],
        constants={
            "shape": i64(6, 2, 12),
            "w": f32(np.random.default_rng(1).normal(size=(2, 12, 12))),
            "r": f32(np.random.default_rng(2).normal(size=(2, 12, 3))),
        },
        outputs=("y", "last"),
    ),
}


def model_of(case: Case, opset: int) -> onnx.ModelProto:
    dtypes = {"x": helper.np_dtype_to_tensor_dtype(case.x.dtype)}
    model = make_model(
        case.nodes, {"x": list(case.x.shape)}, list(case.outputs), case.constants, opset=opset, dtypes=dtypes
    )
    return onnx.shape_inference.infer_shapes(model)


EVERY = [(name, opset) for name, case in CASES.items() for opset in range(case.first, case.last + 1)]


@pytest.mark.parametrize(("name", "opset"), EVERY, ids=[f"{name}, {opset}" for name, opset in EVERY])
def test_a_raised_model_computes_the_same_bit_for_bit(name: str, opset: int) -> None:
    before = model_of(CASES[name], opset)
    after = raise_opset(before, NEWEST)
    onnx.checker.check_model(after, full_check=True)
    assert [(entry.domain, entry.version) for entry in after.opset_import] == [("", NEWEST)]
    for x in (CASES[name].x, -2 * CASES[name].x):
        expected, found = run(before, x=x), run(after, x=x)
        assert list(expected) == list(found)
        for output in expected:
            np.testing.assert_array_equal(found[output], expected[output])


@pytest.mark.parametrize(("name", "opset"), EVERY, ids=[f"{name}, {opset}" for name, opset in EVERY])
def test_tensors_and_nodes_keep_their_names(name: str, opset: int) -> None:
    before = model_of(CASES[name], opset)
    after = raise_opset(before, NEWEST)
    makers = {output: n for n in after.graph.node for output in n.output}
    for n in before.graph.node:
        for output in n.output:
            assert output in makers
        if n.name:
            assert [other.op_type for other in after.graph.node if other.name == n.name] != []
    names = [output for n in after.graph.node for output in n.output]
    assert len(names) == len(set(names))
    assert before == model_of(CASES[name], opset), "what is given stays as it is"


# Ops whose inputs, attributes or outputs are other ones from some opset on, while a node of the opset before means the
# same in it: new attributes and inputs have defaults that do as before.
COMPATIBLE = {
    ("ArgMax", 12): "select_last_index",
    ("ArgMin", 12): "select_last_index",
    ("AveragePool", 10): "ceil_mode",
    ("Constant", 11): "sparse_value",
    ("Constant", 12): "value_float and the like",
    ("DepthToSpace", 11): "mode",
    ("DequantizeLinear", 13): "axis, which one scale does not need",
    ("GatherND", 12): "batch_dims",
    ("MaxPool", 10): "ceil_mode, dilations",
    ("QuantizeLinear", 13): "axis, which one scale does not need",
    ("TopK", 11): "largest, sorted",
}


def test_every_op_whose_definition_changes_is_written_anew_or_known_to_mean_the_same() -> None:
    """ONNX's own schemas, compared from opset to opset."""
    versions: dict[str, dict[int, Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain and schema.since_version <= NEWEST:
            versions.setdefault(schema.name, {})[schema.since_version] = (
                tuple(each.name for each in schema.inputs),
                sorted((name, str(each.default_value)) for name, each in schema.attributes.items()),
                tuple((each.name, each.type_str) for each in schema.outputs),
                schema.deprecated,
            )
    changes = set()
    for op, found in versions.items():
        for before, after in zip(sorted(found), sorted(found)[1:], strict=False):
            if after > OLDEST and found[before] != found[after]:
                changes.add((op, after))
    meaning = {("Resize", 13)}  # of whose modes one is gone, which a schema does not say
    assert changes | meaning == STEPS.keys() | COMPATIBLE.keys()
    assert not STEPS.keys() & COMPATIBLE.keys()


def test_every_step_is_among_the_cases() -> None:
    covered = {(n.op_type, opset) for case in CASES.values() for n in case.nodes for opset in range(case.first + 1, 14)}
    assert STEPS.keys() <= covered | {("Resize", 11)}


def test_the_names_of_new_tensors_are_free() -> None:
    model = make_model(
        [
            node("Clip", ["x"], ["y"], name="y_Flatten", min=0.0),
            node("Softmax", ["y"], ["z"]),
            node("Neg", ["z"], ["y_min"]),
            node("Neg", ["z"], ["z_flat"]),
        ],
        {"x": [2, 3, 4]},
        ["y_min", "z_flat"],
        opset=9,
    )
    after = raise_opset(model, 13)
    onnx.checker.check_model(after, full_check=True)
    names = [n.name for n in after.graph.node if n.name]
    assert len(names) == len(set(names))
    x = PICTURE[0, :2, :3, :4].copy()
    for name, value in run(model, x=x).items():
        np.testing.assert_array_equal(run(after, x=x)[name], value)


def test_bodies_are_raised_with_the_model() -> None:
    def body(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(f"{name} out", 1, None)])

    inner = body("inner", node("Clip", ["x"], ["inner out"], max=0.5))
    other = body(
        "other",
        node("Upsample", ["x", "scales"], ["u"], mode="linear"),
        node("AveragePool", ["u"], ["other out"], kernel_shape=[2, 2], strides=[2, 2]),
    )
    outer = body(
        "outer", node("If", ["no"], ["i"], then_branch=inner, else_branch=other), node("Neg", ["i"], ["outer out"])
    )
    twin = body("twin", node("Softmax", ["x"], ["twin out"], axis=2))
    model = make_model(
        [node("If", ["yes"], ["y"], then_branch=outer, else_branch=twin)],
        {"x": [2, 3, 6, 4]},
        ["y"],
        {"yes": np.array(True), "no": np.array(False), "scales": f32([1, 1, 2, 2])},
        opset=9,
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, None))
    after = raise_opset(model, 13)
    np.testing.assert_array_equal(run(after, x=PICTURE)["y"], run(model, x=PICTURE)["y"])
    ops = {n.op_type for graph in all_bodies(after) for n in graph.node}
    assert "Resize" in ops
    assert "Upsample" not in ops
    for chosen in (False, True):
        flags = {"yes": np.array(chosen), "no": np.array(chosen)}
        for each in (model, after):
            for tensor in each.graph.initializer:
                if tensor.name in flags:
                    tensor.CopyFrom(onnx.numpy_helper.from_array(flags[tensor.name], tensor.name))
        np.testing.assert_array_equal(run(after, x=PICTURE)["y"], run(model, x=PICTURE)["y"])


def test_ops_of_other_domains_stay(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model([node("Clip", ["x"], ["y"], domain="my.ops", min=1.0)], {"x": [2]}, ["y"], opset=9)
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    after, changed = rewritten(model, 13)
    assert after.graph == model.graph
    assert changed == ()
    assert {entry.domain: entry.version for entry in after.opset_import} == {"my.ops": 1, "": 13}
    model.graph.node.append(node("Clip", ["y"], ["z"], min=1.0))
    raise_opset(model, 13)
    assert "is not compared with what it computed before: model: ONNX Runtime cannot load it" in caplog.text


def test_both_names_of_onnx_s_domain_are_one() -> None:
    model = make_model([node("Clip", ["x"], ["y"], domain="ai.onnx", min=1.0)], {"x": [2]}, ["y"], opset=9)
    model.opset_import[0].domain = "ai.onnx"
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [2]))
    after = raise_opset(model, 13)
    assert [(entry.domain, entry.version) for entry in after.opset_import] == [("", 13)]
    assert run(after, x=f32([0, 3]))["y"].tolist() == [1, 3]


def test_a_mask_of_dropout_keeps_its_type() -> None:
    model = make_model([node("Dropout", ["x"], ["y", "mask"])], {"x": [2]}, ["y", "mask"], opset=9)
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [2]))
    after, _ = rewritten(model, 13)
    onnx.checker.check_model(after, full_check=True)
    assert {name: value.dtype for name, value in run(after, x=f32([1, 2])).items()} == {
        "y": np.float32,
        "mask": np.float32,
    }


def test_a_model_that_is_new_enough_is_copied() -> None:
    model = make_model([node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"], opset=17)
    after = raise_opset(model, 13)
    assert after == model
    assert after is not model
    assert (
        raise_opset(make_model([node("Clip", ["x"], ["y"], min=0.0)], {"x": [2]}, ["y"], opset=9), 10)
        .opset_import[0]
        .version
        == 10
    )


def test_opsets_beyond_those_that_are_known_are_refused() -> None:
    with pytest.raises(ValueError, match="opset 13 at most, not to 14"):
        raise_opset(make_model([node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"]), 14)
    with pytest.raises(ModelError, match="opset 8, and 9 is the oldest"):
        raise_opset(make_model([node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"], opset=8), 13)


def test_a_way_to_sample_that_newer_opsets_lack_is_refused() -> None:
    model = make_model(
        [
            node(
                "Resize",
                ["x", "roi", "scales"],
                ["y"],
                name="up",
                mode="nearest",
                coordinate_transformation_mode="tf_half_pixel_for_nn",
            )
        ],
        {"x": [1, 1, 2, 2]},
        ["y"],
        {"roi": f32([]), "scales": f32([1, 1, 2, 2])},
        opset=11,
    )
    with pytest.raises(ModelError, match="Resize 'up': samples by tf_half_pixel_for_nn with round_prefer_floor"):
        raise_opset(model, 13)


def test_a_node_that_its_opset_does_not_define_is_an_error() -> None:
    model = make_model(
        [node("Resize", ["x", "s"], ["y"], name="up", mode=7)], {"x": [1]}, ["y"], {"s": f32([2])}, opset=10
    )
    with pytest.raises(ModelError, match="Resize 'up': is not as opset 10 defines it"):
        raise_opset(model, 13)


def test_a_difference_names_the_first_node_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(writer: object, one: onnx.NodeProto) -> list[onnx.NodeProto]:
        one.op_type = "Floor"
        return [one]

    monkeypatch.setitem(STEPS, ("Abs", 13), wrong)
    model = make_model(
        [node("Neg", ["x"], ["n"]), node("Abs", ["n"], ["a"], name="the culprit"), node("Relu", ["a"], ["y"])],
        {"x": ["N", 3]},
        ["y"],
        opset=11,
    )
    with pytest.raises(ModelError, match=r"^Abs 'the culprit': 'a' is something else after"):
        raise_opset(model, 13)
    raise_opset(model, 13, samples=[{"x": f32([[-1, -2, -3]])}])  # of which both are the same


def test_scales_that_shrink_while_it_runs_are_an_error_and_not_another_answer() -> None:
    """Of a computed scale nobody knows beforehand whether nearest means the one below or the one above."""
    case = CASES["resize by computed scales"]
    model = make_model(case.nodes, {"x": [2, 3, 6, 4]}, ["y"], {"wanted": f32([2, 3, 4, 3])}, opset=10)
    with pytest.raises(ModelError, match=r"^Resize 'y': 'y' is something else"):
        raise_opset(model, 13)


def test_weights_may_lie_in_files(tmp_path: Path) -> None:
    weights = f32(np.random.default_rng(1).normal(size=(1000, 3)))
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Clip", ["m"], ["y"], min=-1.0, max=1.0)]
    inside, outside = (make_model(nodes, {"x": ["N", 1000]}, ["y"], {"w": weights}, opset=9) for _ in range(2))
    save_model(outside, tmp_path / "m.onnx", external=True)
    raised = raise_opset(load_model(tmp_path / "m.onnx"), 13, folder=tmp_path)
    assert raised.graph.initializer[0].external_data, "nothing was read into it"
    x = f32(np.random.default_rng(2).normal(size=(2, 1000)))
    whole = raise_opset(load_whole_model(tmp_path / "m.onnx")[0], 13)
    np.testing.assert_array_equal(run(whole, x=x)["y"], run(inside, x=x)["y"])


def test_the_door_raises_a_model_and_keeps_the_rest_of_it(tmp_path: Path) -> None:
    made = make_model([node("Clip", ["x"], ["y"], min=0.0)], {"x": ["N", 2]}, ["y"], opset=9)
    model = open_model(save(made, tmp_path / "m.onnx"))
    raised = model.with_opset(13)
    assert raised.proto == raise_opset(made, 13)
    assert (raised.name, raised.path, raised.files) == (model.name, model.path, model.files)
    assert model.with_opset(9) is model
    assert raised.with_opset(13) is raised
    assert opset_of(raised.proto) == 13
    broken = make_model([node("Clip", ["x"], ["y"], min="a")], {"x": ["N", 2]}, ["y"], opset=9)
    with pytest.raises(ModelError, match=r"b\.onnx: Clip 'y': is not as opset 10 defines it"):
        open_model(save(broken, tmp_path / "b.onnx")).with_opset(13)

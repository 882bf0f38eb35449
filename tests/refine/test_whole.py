from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import batched, conv_model, images, make_model, save
from onnx import helper, numpy_helper

import trtcal.refine
from trtcal import demo
from trtcal.errors import DataError, ModelError
from trtcal.model.runner import OrtRunner
from trtcal.model.topology import Graph
from trtcal.refine import refine
from trtcal.refine.layers import refinable
from trtcal.refine.rounding import integers
from trtcal.refine.whole import Singles, held_back

node = helper.make_node
RNG = np.random.default_rng(0)


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.fixture(scope="module")
def demo_refined() -> trtcal.refine.Refinement:
    x = demo.calibration_images()[:96]
    with OrtRunner(onnx.load(demo.model_path())) as runner:
        labels = runner({"image": x})["logits"].argmax(1)
    labels[7::16] = (labels[7::16] + 1) % 10  # of those that report, which are 7, 15, 23, ..., every second
    labels[3::8] = 0
    return refine(demo.model_path(), batched(x, 16), labels=labels)


def test_a_trained_model_comes_nearer_to_fp32_on_samples_that_it_has_not_seen(
    demo_refined: trtcal.refine.Refinement,
) -> None:
    found = demo_refined
    assert found.improved
    assert found.change.low > 0
    assert found.after.value > found.before.value
    assert found.chosen != "original"
    assert {"biases", "weights", "weights and biases"} <= found.variants.keys()
    assert found.samples == {"refined on": 72, "biases": 32, "chosen on": 12, "reported on": 12}


def test_metrics_are_of_the_samples_that_report(demo_refined: trtcal.refine.Refinement) -> None:
    fp32, before, after, change = demo_refined.scores["top1"]
    assert fp32.value == 0.5  # every second label of theirs is wrong
    assert fp32.values.size == before.values.size == after.values.size == 12
    assert change is not None
    assert change.value == pytest.approx(after.value - before.value)


def test_labels_go_by_name_or_by_position_and_a_sample_without_one_is_named() -> None:
    x = images(16)
    one = refine(conv_model(), batched(x, 4), labels=[0] * 16)
    named = refine(conv_model(), batched(x, 4), labels={str(number): 0 for number in range(16)})
    assert named.scores["top1"].fp32.value == one.scores["top1"].fp32.value
    with pytest.raises(DataError, match="sample 15 has no label"):
        refine(conv_model(), batched(x, 4), labels={str(number): 0 for number in range(15)})
    with pytest.raises(DataError, match="8 labels, and more samples"):
        refine(conv_model(), batched(x, 4), labels=[0] * 8)


def test_a_metric_of_the_whole_set_has_no_change_by_sample() -> None:
    scored = refine(
        conv_model(),
        batched(images(16), 4),
        labels=[0] * 16,
        metrics={"rows": lambda outputs, labels: float(len(labels))},
    ).scores["rows"]
    assert (scored.fp32.value, scored.after.value, scored.change) == (2.0, 2.0, None)


def test_the_graph_its_names_inputs_and_outputs_stay(demo_refined: trtcal.refine.Refinement) -> None:
    original = onnx.load(demo.model_path())
    made = demo_refined.model
    for field in ("input", "output"):
        assert list(getattr(made.graph, field)) == list(getattr(original.graph, field))
    assert [(n.op_type, n.name, list(n.output)) for n in made.graph.node] == [
        (n.op_type, n.name, list(n.output)) for n in original.graph.node
    ]
    assert weights_of(original).keys() <= weights_of(made).keys()


def test_tensorrts_rule_finds_every_refined_weight_on_a_step(demo_refined: trtcal.refine.Refinement) -> None:
    graph = Graph(demo_refined.model)
    refined = {row.weights for row in demo_refined.layers if row.refined}
    assert refined
    for each in refinable(graph)[0]:
        if each.name in refined:
            rows = each.to_rows(graph.array(each.name))
            steps = np.abs(rows).max(axis=-1, keepdims=True) / np.float32(127)
            off = np.abs(rows / np.where(steps, steps, 1) - integers(rows))
            assert off.max() < 1e-3


def test_equal_arguments_give_equal_bytes() -> None:
    batches = batched(images(16), 4)
    one, two = (refine(conv_model(), batches).model.SerializeToString(deterministic=True) for _ in range(2))
    assert one == two


def test_a_batch_size_in_the_file_stays_there(tmp_path: Path) -> None:
    path = save(conv_model(batch=4), tmp_path / "m.onnx")
    x = images(16)
    free = refine(conv_model(), batched(x, 4))
    fixed = refine(path, batched(x, 4))
    assert fixed.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    for name, value in weights_of(free.model).items():
        if name != "shape":
            assert np.array_equal(weights_of(fixed.model)[name], value), name
    OrtRunner(fixed.model)({"image": x[:4]})


def test_where_nothing_helps_the_model_comes_back_as_it_was_and_says_so() -> None:
    """Weights that lie on their steps already, and nothing is clipped: there is nothing to gain."""
    rng = np.random.default_rng(1)
    w = rng.integers(-127, 128, (4, 6)).astype(np.float32) / 128
    w[:, 0] = 127 / 128
    model = make_model([node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": ["N", 6]}, ["y"], {"w": w})
    x = rng.integers(-127, 128, (32, 6)).astype(np.float32)
    x[:, 0] = 127
    found = refine(model, batched(x, 8, "x"), method="minmax")
    assert not found.improved
    assert found.chosen == "original"
    assert found.model.graph == model.graph
    assert found.change.value == 0
    assert [row.refined for row in found.layers] == [False]


def test_logits_are_compared_before_softmax_and_integer_outputs_not_at_all() -> None:
    rng = np.random.default_rng(2)
    model = make_model(
        [
            node("Gemm", ["x", "w"], ["logits"], transB=1),
            node("Softmax", ["logits"], ["shares"]),
            node("ArgMax", ["logits"], ["class"], axis=1),
            node("Identity", ["x"], ["copy"]),
        ],
        {"x": ["N", 8]},
        ["shares", "class", "copy"],
        {"w": rng.normal(size=(5, 8)).astype(np.float32)},
    )
    found = refine(model, batched(rng.normal(size=(24, 8)).astype(np.float32), 8, "x"))
    # Logits of float weights and INT8 activations: 8 products rounded to 127 steps are near 40 dB, shares would not be.
    assert 30 < found.activations.value < 60


def test_constant_nodes_that_hold_weights_are_refined_too() -> None:
    rng = np.random.default_rng(3)
    w = rng.normal(size=(5, 8)).astype(np.float32)
    held = node("Constant", [], ["w"], value=numpy_helper.from_array(w))
    model = make_model([held, node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": ["N", 8]}, ["y"])
    x = (rng.normal(size=(48, 8)) @ rng.normal(size=(8, 8))).astype(np.float32)
    found = refine(model, batched(x, 8, "x"))
    plain = make_model([node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": ["N", 8]}, ["y"], {"w": w})
    other = refine(plain, batched(x, 8, "x"))
    assert found.chosen == other.chosen
    after = Graph(found.model)
    assert np.array_equal(after.array("w"), Graph(other.model).array("w"))


def test_samples_are_held_back_evenly_and_used_once() -> None:
    on, choosing, reporting = held_back(400)
    assert sorted([*on, *choosing, *reporting])[:4] == [0, 1, 2, 3]
    assert len(choosing) == len(reporting) == 24
    assert len(set(on) | set(choosing) | set(reporting)) == len(on) + 48 == 400
    assert max(np.diff(sorted(choosing + reporting))) <= 12
    assert held_back(8) == ([0, 1, 2, 4, 5, 6], [3], [7])


def test_too_few_samples_are_refused_with_the_number() -> None:
    with pytest.raises(DataError, match="refining needs 8 samples or more, got 7"):
        refine(conv_model(), batched(images(7), 4))


def test_a_model_without_weights_is_refused() -> None:
    model = make_model([node("Relu", ["x"], ["y"])], {"x": ["N", 4]}, ["y"])
    with pytest.raises(ModelError, match="has no weights to refine"):
        refine(model, batched(RNG.normal(size=(16, 4)).astype(np.float32), 4, "x"))


def test_refined_weights_of_an_interrupted_run_are_taken_up() -> None:
    batches = batched(images(16), 4)
    kept: dict[str, np.ndarray] = {}
    whole = refine(conv_model(), batches, keep=kept.update)
    assert set(kept) == {"w", "gw"}
    calls: list[str] = []
    again = refine(conv_model(), batches, kept=kept, progress=lambda stage, done, total: calls.append(stage))
    assert again.model.SerializeToString(deterministic=True) == whole.model.SerializeToString(deterministic=True)
    assert "second moments" not in calls


def test_padding_rows_are_no_samples() -> None:
    x = images(5)
    batch = trtcal_batch({"image": np.concatenate([x, x[-1:]])}, 5)
    assert len(list(Singles([batch], ()))) == 5


def trtcal_batch(arrays: dict[str, np.ndarray], valid: int) -> dict[str, np.ndarray]:
    from trtcal.samples.batches import Batch

    return Batch(arrays, valid=valid)

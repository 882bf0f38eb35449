from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, images, make_model
from onnx import helper, numpy_helper

from trtcal.calibration.calibrate import calibrate
from trtcal.model.runner import OrtRunner
from trtcal.model.topology import Graph
from trtcal.qdq.insert import insert_qdq
from trtcal.refine.biases import channel_means, correctable, shifts, with_biases
from trtcal.refine.whole import _means

node = helper.make_node
RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def many() -> onnx.ModelProto:
    """A convolution with a bias, one before a batch norm, one with neither, Gemm, MatMul and Add."""
    return make_model(
        [
            node("Conv", ["x", "w1", "b1"], ["a"], "with bias", pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["a2"]),
            node("Conv", ["a2", "w2"], ["b"], "before a norm"),
            node("BatchNormalization", ["b", "s", "o", "m", "v"], ["b2"]),
            node("Relu", ["b2"], ["b3"]),
            node("Conv", ["b3", "w3"], ["c"], "with neither", pads=[1, 1, 1, 1]),
            node("Flatten", ["c"], ["d"]),
            node("MatMul", ["d", "w4"], ["e"], "matmul"),
            node("Add", ["e", "b4"], ["f"]),
            node("Gemm", ["f", "w5", "b5"], ["logits"], "gemm"),
        ],
        {"x": ["N", 3, 6, 6]},
        ["logits"],
        {
            **{"w1": f32(4, 3, 3, 3), "b1": f32(4), "w2": f32(5, 4, 3, 3), "w3": f32(2, 5, 3, 3)},
            **{"s": f32(5) + 2, "o": f32(5), "m": f32(5), "v": np.abs(f32(5)) + 1},
            **{"w4": f32(32, 6), "b4": f32(6), "w5": f32(6, 3), "b5": f32(3)},
        },
    )


def singles(number: int) -> list[dict[str, np.ndarray]]:
    return [{"x": f32(1, 3, 6, 6)} for _ in range(number)]


def test_each_bias_is_found_where_it_can_be_changed() -> None:
    found = {place.layer: (place.tensor, place.initializer, place.sign) for place in correctable(Graph(many()))}
    assert found == {
        "with bias": ("a", "b1", 1),
        "before a norm": ("b", "m", -1),
        "with neither": ("c", None, 1),
        "matmul": ("e", "b4", 1),
        "gemm": ("logits", "b5", 1),
    }


def test_a_bias_that_another_layer_reads_is_left_alone() -> None:
    model = make_model(
        [node("Conv", ["x", "w", "b"], ["y"], "one"), node("Conv", ["y", "w", "b"], ["z"], "two")],
        {"x": [1, 2, 6, 6]},
        ["z"],
        {"w": f32(2, 2, 3, 3), "b": f32(2)},
    )
    assert correctable(Graph(model)) == []


def test_what_was_added_to_a_channel_comes_out_of_the_changed_model() -> None:
    model = many()
    places = correctable(Graph(model))
    change = {
        place.tensor: np.arange(1.0, 1 + {"a": 4, "b": 5, "c": 2, "e": 6, "logits": 3}[place.tensor])
        for place in places
    }
    for place in places:
        changed = with_biases(model, [place], change)
        behind = {"b": "b2", "e": "f"}.get(place.tensor, place.tensor)
        for proto in (model, changed):
            proto.graph.output.append(onnx.ValueInfoProto(name=behind)) if behind != "logits" else None
        sample = singles(1)[0]
        before, after = (OrtRunner(proto)(sample)[behind] for proto in (model, changed))
        shift = change[place.tensor]
        if place.tensor == "b":  # through the norm: gamma / sqrt(variance + epsilon) times as much
            held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
            shift = shift * held["s"] / np.sqrt(held["v"] + 1e-5)
        shape = [1, -1, *[1] * (before.ndim - 2)]
        np.testing.assert_allclose(
            after - before, np.broadcast_to(shift.reshape(shape), before.shape), rtol=2e-3, atol=2e-3
        )
        if behind != "logits":
            del model.graph.output[-1]


def test_corrected_layer_by_layer_the_means_of_int8_are_those_of_fp32(tmp_path: Path) -> None:
    model = many()
    samples = singles(12)
    scales = calibrate(model, samples, method="percentile:90").cache.scales  # clips much, so that means shift
    places = correctable(Graph(model))
    expected = _means(model, places, samples)
    found = shifts(insert_qdq(model, scales, placement="all").model, places, expected, samples)
    assert set(found) == {"a", "b", "c", "e", "logits"}
    changed = with_biases(model, places, found)

    def far(variant: onnx.ModelProto) -> dict[str, float]:
        int8 = insert_qdq(variant, scales, placement="all").model
        shown = [place.tensor for place in places if place.tensor != "logits"]
        int8.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
        with OrtRunner(int8) as runner:
            answers = [runner(sample) for sample in samples]
        means = {p.tensor: channel_means([answer[p.tensor] for answer in answers], p.channel) for p in places}
        # The norm's mean and the Add take up what the layer before them lacks.
        for place in places:
            if variant is changed and place.tensor in ("b", "e"):
                means[place.tensor] = means[place.tensor] + found[place.tensor]
        return {name: float(np.abs(mean - expected[name]).max()) for name, mean in means.items()}

    before, after = far(model), far(changed)
    assert all(after[name] < 1e-4 for name in after), after
    assert max(before.values()) > 0.01


def test_a_model_is_cut_between_layers_without_changing_what_it_computes(tmp_path: Path) -> None:
    """With the INT8 model's own means expected, nothing is to be added anywhere."""
    model = conv_model(batch=1)
    samples = [{"image": image[None]} for image in images(5)]
    scales = calibrate(model, samples, method="mse").cache.scales
    int8 = insert_qdq(model, scales, placement="all").model
    places = correctable(Graph(model))
    own = _means(int8, places, samples)
    found = shifts(int8, places, own, samples)
    assert set(found) == {"conv", "logits"}
    assert all(np.abs(shift).max() < 1e-5 for shift in found.values())


@pytest.mark.parametrize(("shape", "channel"), [((1, 3, 4, 5), 1), ((1, 6), -1), ((1, 7, 3), -1)])
def test_means_are_taken_over_all_axes_but_the_channels(shape: tuple[int, ...], channel: int) -> None:
    arrays = [f32(*shape) for _ in range(3)]
    found = channel_means(arrays, channel)
    expected = (
        np.moveaxis(np.stack(arrays), channel if channel < 0 else channel + 1, -1).reshape(-1, len(found)).mean(0)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from models import conv_model
from nets import branches, residual
from qdq_models import body_model, ranges, small_network
from sequences import batch_first

from trtcal import demo
from trtcal.errors import ModelError
from trtcal.judging.accuracy import simulate
from trtcal.judging.simulator import KEPT, Simulator
from trtcal.model.open import open_model
from trtcal.model.runner import OrtRunner
from trtcal.qdq.insert import insert_qdq

MODELS = {
    "convolutions": conv_model,
    "residual": lambda: onnx.load_from_string(residual((8, 16), 1, 32)),
    "concat, sigmoid, softmax": lambda: onnx.load_from_string(branches()),
    "shared weights": small_network,
    "opset 9": lambda: small_network(9),
    "a layer inside a body": body_model,
    "lstm": batch_first,
    "demo": lambda: onnx.load(demo.model_path()),
}


def feed(model: onnx.ModelProto, rows: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        spec.name: rng.normal(size=(spec.count or rows, *(size or 4 for size in spec.shape))).astype(np.float32)
        for spec in open_model(model).inputs
    }


def bits(outputs: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in outputs.items()}


@pytest.mark.parametrize("placement", ["all", "tensorrt"])
@pytest.mark.parametrize("name", MODELS)
def test_one_session_for_many_scales_computes_what_simulate_does_bit_for_bit(name: str, placement: str) -> None:
    model = MODELS[name]()
    batch, simulator = feed(model), Simulator(model, placement=placement)
    given, answers = ranges(open_model(model).proto), set()
    for factor in (1.0, 0.37, 5.0):
        scales = {tensor: np.float32(scale * factor) for tensor, scale in given.items()}
        with simulate(model, scales, placement=placement) as runner:
            expected = bits(runner(batch))
        with simulator(scales) as runner:
            assert bits(runner(batch)) == expected
        answers.add(tuple(expected.values()))
    assert len(answers) > 1 or name == "a layer inside a body"


def test_sets_that_make_other_layers_int8_get_a_session_of_their_own_and_the_same_numbers() -> None:
    model = small_network()
    batch, simulator, every = feed(model), Simulator(model), ranges(small_network())
    opened = []
    for missing in (None, "r1", "s", None, "x", "g", "c5", "r1"):
        scales = {tensor: scale for tensor, scale in every.items() if tensor != missing}
        with simulate(model, scales) as runner:
            expected = bits(runner(batch))
        with simulator(scales) as runner:
            assert bits(runner(batch)) == expected, missing
        opened.append(len(simulator._open))
    assert opened[0] == 1
    assert opened[1] == 2
    assert max(opened) == KEPT


def test_scales_that_a_concat_unites_are_those_of_the_set_at_hand() -> None:
    model = small_network()
    batch, simulator, every = feed(model), Simulator(model), ranges(small_network())
    for larger in ("s", "c4", "cat"):
        scales = {**every, larger: np.float32(0.5)}
        expected = insert_qdq(model, scales, placement="all")
        with OrtRunner(expected.model, threads=1) as runner, simulator(scales) as ours:
            assert bits(ours(batch)) == bits(runner(batch))


def test_layers_that_are_left_out_stay_in_float() -> None:
    model = small_network()
    batch, scales = feed(model), ranges(small_network())
    with simulate(model, scales, exclude=["third", "Gemm"]) as runner:
        expected = bits(runner(batch))
    with Simulator(model, exclude=["third", "Gemm"])(scales) as runner:
        assert bits(runner(batch)) == expected


def test_closing_a_runner_leaves_the_session_to_the_next() -> None:
    model = conv_model()
    batch, scales, simulator = feed(model), ranges(conv_model()), Simulator(conv_model())
    with simulator(scales) as runner:
        first = bits(runner(batch))
    with simulator(scales) as runner:
        assert bits(runner(batch)) == first


def test_what_simulate_refuses_is_refused() -> None:
    simulator = Simulator(conv_model())
    with pytest.raises(ModelError, match="none of the 1 ranges is for a tensor of this model"):
        simulator({"nonsense": np.float32(1)})
    with pytest.raises(ModelError, match="nothing becomes INT8 with these ranges"):
        simulator({})
    with pytest.raises(ModelError, match="quantized already"):
        Simulator(insert_qdq(conv_model(), ranges(conv_model())).model)
    with pytest.raises(ValueError, match="exclude: no node has the name"):
        Simulator(conv_model(), exclude=["nonsense"])(ranges(conv_model()))

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import conv_model, images, make_model, save
from onnx import helper

from trtcal.errors import ModelError
from trtcal.runners import OrtRunner


def test_a_model_runs_from_a_file_bytes_or_memory_alike(tmp_path: Path) -> None:
    model, x = conv_model(), {"image": images(3)}
    path = save(model, tmp_path / "m.onnx")
    answers = [OrtRunner(source)(x)["logits"] for source in (path, str(path), model.SerializeToString(), model)]
    assert answers[0].shape == (3, 5)
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


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

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import conv_model, images, make_model, save
from onnx import helper

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.provenance import sidecar_path
from trtcal.calibration import file
from trtcal.calibration.file import calibrate_to_file
from trtcal.errors import ModelError
from trtcal.judging.accuracy import agreement, simulate
from trtcal.model.open import Model, open_model
from trtcal.model.runner import OrtRunner
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.sweep import closing as closing_module
from trtcal.sweep.closing import Closing, in_words

Run = Callable[..., tuple[int, str, str]]


def batches(number: int = 20, batch_size: int = 4) -> Batches:
    return Batches(ArraySource({"image": images(number)}), batch_size)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return open_model(save(conv_model(), tmp_path / "m.onnx"))


def test_it_says_how_near_int8_by_the_cache_is_to_fp32(model: Model, tmp_path: Path) -> None:
    made = calibrate_to_file(model, batches(), tmp_path / "c", closing=Closing(model, batches(), always=True))
    found = made.closing
    with OrtRunner(model.whole) as fp32, simulate(model, made.cache.scales) as int8:
        expected = agreement(fp32, int8, batches().part(16)).outputs["logits"]
    assert expected.top1 is not None
    assert found == {
        "samples": 16,
        "sqnr_db": pytest.approx(expected.sqnr_db, abs=0.1),
        "agreement": expected.top1.value,
    }
    for always, expected_again in ((False, {}), (True, found)):  # of a cache that is up to date if asked to
        again = calibrate_to_file(model, batches(), tmp_path / "c", closing=Closing(model, batches(), always=always))
        assert (again.reused, again.closing) == (True, expected_again)


def test_the_price_of_a_sample_is_that_after_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and compiling are paid once."""
    told: list[int] = []
    times = iter([0.0, 100.0, 103.0, 106.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    clock = file._Clock(told.append)
    assert clock.seconds_per_sample is None
    prices = []
    for done in (8, 16, 20):
        clock(done)
        prices.append(clock.seconds_per_sample)
    assert prices == [12.5, 3 / 8, 6 / 12]
    assert told == [8, 16, 20]


def test_it_changes_nothing_in_the_cache_and_its_account(model: Model, tmp_path: Path) -> None:
    plain = calibrate_to_file(model, batches(), tmp_path / "a")
    closed = calibrate_to_file(model, batches(), tmp_path / "b", closing=Closing(model, batches(), always=True))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sidecar_path(tmp_path / "a").read_bytes() == sidecar_path(tmp_path / "b").read_bytes()
    assert (plain.closing, plain.cache) == ({}, closed.cache)


def test_a_check_that_fails_is_a_warning_and_the_cache_is_there(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ModelError("no way")

    monkeypatch.setattr(closing_module, "CpuJudge", broken)
    made = calibrate_to_file(model, batches(), tmp_path / "c", closing=Closing(model, batches(), always=True))
    assert made.closing == {"left_out": "it failed: no way"}
    assert CalibrationCache.load(tmp_path / "c") == made.cache
    assert "could not be compared with FP32: no way" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "always", "runs"),
    [(0.01, False, True), (10.0, False, False), (10.0, True, True), (None, False, True)],
)
def test_it_is_left_out_where_it_would_cost_more_than_the_pass(
    model: Model, seconds: float | None, always: bool, runs: bool
) -> None:
    """Of 20 samples, 16 at 1.6 times their price cost more than all did."""
    cache = CalibrationCache.from_amax({name: np.float32(1) for name in model.calibrated.order})
    found = Closing(model, batches(), always=always)(cache, seconds)
    assert ("samples" in found) == runs
    assert ("left_out" in found) != runs
    assert "samples" in Closing(model, batches(40))(cache, seconds)


def test_a_large_model_is_not_held_several_times_unasked(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing_module, "LARGE", 100)
    cache = CalibrationCache.from_amax({name: np.float32(1) for name in model.calibrated.order})
    assert "the model is large" in Closing(model, batches())(cache, None)["left_out"]
    assert "samples" in Closing(model, batches(), always=True)(cache, None)


def test_a_model_without_a_float_output_in_int8_says_so(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"]), helper.make_node("ArgMax", ["y"], ["z"], axis=1)]
    weights = {"w": np.ones((4, 3), np.float32)}
    model = open_model(save(make_model(nodes, {"x": ["N", 4]}, ["z"], weights), tmp_path / "m.onnx"))
    samples = Batches(ArraySource({"x": np.ones((8, 4), np.float32)}), 4)
    made = calibrate_to_file(model, samples, tmp_path / "c", closing=Closing(model, samples, always=True))
    assert "no floating-point output depends on a layer in INT8" in made.closing["left_out"]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, ""),
        ({"left_out": "no"}, "INT8 by this cache was not compared with FP32: no"),
        (
            {"samples": 16, "sqnr_db": 27.34, "agreement": 0.9375},
            "INT8 by this cache against FP32, on 16 of the samples: SQNR 27.3 dB, the same class in 15 of 16",
        ),
        (
            {"samples": 8, "sqnr_db": "inf", "agreement": None},
            "INT8 by this cache against FP32, on 8 of the samples: SQNR inf dB",
        ),
        (
            {"samples": 8, "sqnr_db": -0.3, "agreement": None},
            "INT8 by this cache against FP32, on 8 of the samples: SQNR -0.3 dB; that is far from FP32: --method auto "
            "compares methods, and trtcal sensitivity names the layers that cost most",
        ),
    ],
)
def test_what_was_found_in_words(found: Mapping[str, Any], said: str) -> None:
    assert in_words(found) == said
    assert in_words(found, chosen=True) == said.replace("--method auto compares methods, and ", "")


def test_the_command_ends_with_it_unless_told_otherwise(run: Run, tmp_path: Path) -> None:
    save(conv_model(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", images(20))
    code, _, err = run("calibrate", "m.onnx", "--data", "x.npy", "--no-check")
    assert code == 0
    assert "FP32" not in err
    again = run("calibrate", "m.onnx", "--data", "x.npy")[2]
    assert again.splitlines()[-1] == "INT8 by this cache is not compared with FP32 again; --check does it"
    for arguments in (["--check"], ["--force", "--check"]):  # of the cache that is there, and made anew
        assert (
            "INT8 by this cache against FP32, on 16 of the samples: SQNR "
            in run("calibrate", "m.onnx", "--data", "x.npy", *arguments)[2].splitlines()[-1]
        )
    arguments = ["--json", "--check"]
    assert json.loads(run("calibrate", "m.onnx", "--data", "x.npy", *arguments)[1])["closing"]["samples"] == 16

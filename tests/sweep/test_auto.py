from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import conv_model, images, make_model, save
from onnx import helper

from trtcal import demo
from trtcal.cache.provenance import read_sidecar
from trtcal.calibration.calibrate import calibrate, from_stats
from trtcal.calibration.file import calibrate_to_file, partial_path
from trtcal.errors import DataError, ModelError
from trtcal.model.open import Model, Source, open_model
from trtcal.passes.executor import Here
from trtcal.ranges.thresholds import spelt
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource, IterableSource
from trtcal.sweep import choosing
from trtcal.sweep.auto import Auto, chosen_of, lines
from trtcal.sweep.cpu_judge import CpuJudge
from trtcal.sweep.trials import Judgement

Run = Callable[..., tuple[int, str, str]]
node = helper.make_node


def batches(number: int = 30, samples: int | None = 10) -> Batches:
    return Batches(ArraySource({"image": images(number)}), 4, samples=samples)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return open_model(save(conv_model(), tmp_path / "m.onnx"))


# --- the choice


def judged(agreement: float | None, noise: float, samples: int = 32) -> Judgement:
    """The same share of samples agrees, and noise is about as large in each."""
    values = None if agreement is None else (np.arange(samples) < agreement * samples).astype(float)
    return Judgement(agreement=values, noise=noise * np.linspace(0.9, 1.1, samples))


def test_agreement_decides_where_it_can_and_sqnr_among_those_that_are_alike() -> None:
    assert chosen_of({"mse": judged(1.0, 0.1), "minmax": judged(0.5, 0.01)}) == "mse"
    assert chosen_of({"mse": judged(1.0, 0.1), "minmax": judged(1.0, 0.01), "entropy": judged(0.5, 0.001)}) == "minmax"
    assert chosen_of({"mse": judged(None, 0.1), "minmax": judged(None, 0.01)}) == "minmax"
    assert chosen_of({"mse": judged(None, 0.1)}) == "mse"


def worse_than_best(model: Source, source: ArraySource, calibrating: int, fresh: Batches) -> tuple[str, str]:
    """The method that auto takes, and the one that is significantly better on as many fresh samples; "" if none is."""
    some = Batches(source, 4, samples=calibrating)
    stats = calibrate(model, some).stats
    taken = Auto(model, some)(open_model(model), stats).method
    judge = CpuJudge(model, fresh)
    noise = {}
    for name in spelt(swept=True):
        made = from_stats(model, stats, name)
        if not made.unusable_thresholds:
            noise[name] = judge({tensor: made.cache.amax(tensor) for tensor in made.cache}).noise
    assert taken in noise  # and is usable
    best = min(noise, key=lambda name: float(np.mean(noise[name])))
    means = choosing.means([noise[taken][None], noise[best][None]])
    apart = np.quantile(means[0] - means[1], (1 - choosing.CONFIDENCE) / 2)
    return taken, best if apart > 0 else ""


def chain(seed: int) -> Any:
    """x (N, 16) -> Gemm, ReLU, Gemm, with a few large weights; what methods make of it differs."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.standard_t(2 + seed, (16, 16)).astype(np.float32) for name in ("a", "b")}
    nodes = [node("Gemm", ["x", "a"], ["u"]), node("Relu", ["u"], ["v"]), node("Gemm", ["v", "b"], ["y"])]
    return make_model(nodes, {"x": ["N", 16]}, ["y"], weights)


@pytest.mark.parametrize("seed", range(5))
def test_auto_is_never_worse_than_the_best_method_by_more_than_the_interval(tmp_path: Path, seed: int) -> None:
    path = save(chain(seed), tmp_path / "m.onnx")
    rng = np.random.default_rng(seed)
    x = rng.standard_t([1, 1.5, 2, 3, 30][seed], (128, 16)).clip(-1e4, 1e4).astype(np.float32)
    fresh = Batches(ArraySource({"x": x[96:]}), 32)
    taken, better = worse_than_best(path, ArraySource({"x": x[:96]}), 32, fresh)
    assert not better, f"{taken} is worse than {better}"


@pytest.mark.exhaustive(reason="a network of convolutions, judged by six methods on 96 samples, five times")
@pytest.mark.parametrize("seed", range(5))
def test_auto_is_never_worse_on_a_network_of_convolutions(seed: int) -> None:
    pictures = np.concatenate([demo.calibration_images(), demo.labelled_images()[0]])
    pictures = pictures[np.random.default_rng(seed).permutation(len(pictures))[:128]]
    fresh = Batches(ArraySource({"image": pictures[96:]}), 32)
    taken, better = worse_than_best(demo.model_path(), ArraySource({"image": pictures[:96]}), 32, fresh)
    assert not better, f"{taken} is worse than {better}"


# --- the file


def test_the_sidecar_names_the_method_and_that_auto_chose_it(model: Model, tmp_path: Path) -> None:
    made = calibrate_to_file(model, batches(), tmp_path / "c", Auto(model, batches()))
    sidecar = read_sidecar(tmp_path / "c")
    assert sidecar is not None
    assert sidecar[0].method == made.provenance.method == made.chosen["method"]
    assert sidecar[1]["chosen"] == made.chosen
    assert made.cache == calibrate(model, batches(), made.provenance.method).cache
    assert made.chosen["samples"] == {"chosen_by": 10, "reported": 10}
    assert made.chosen["held_out"]
    assert list(made.chosen["methods"]) == list(spelt(swept=True))
    reported = made.chosen["methods"][made.provenance.method]["reported"]
    assert made.closing == {"samples": 10, "sqnr_db": reported["sqnr_db"], "agreement": reported["agreement"]}


def test_half_of_the_samples_choose_and_the_other_half_reports(model: Model) -> None:
    stats = calibrate(model, batches()).stats
    auto = Auto(model, batches())
    found = auto(model, stats).why["methods"]["minmax"]
    cache = from_stats(model, stats, "minmax").cache
    noise = CpuJudge(model, auto.judged)({name: cache.amax(name) for name in cache}).noise
    assert noise is not None
    for half, places in (("chosen_by", slice(0, None, 2)), ("reported", slice(1, None, 2))):
        assert found[half]["sqnr_db"] == pytest.approx(-10 * np.log10(noise[places].mean()))
        assert found[half]["low"] <= found[half]["sqnr_db"] <= found[half]["high"]


def test_samples_that_did_not_calibrate_judge_or_all_where_there_are_none(model: Model) -> None:
    some = batches()
    assert set(Auto(model, some).judged.sample_names).isdisjoint(some.sample_names)
    assert Auto(model, batches(200)).judged.num_samples == 64
    everything = Auto(model, batches(12, None))
    assert (everything.held_out, everything.judged.num_samples) == (False, 12)
    stream = Batches(IterableSource([{"image": images(8)}], inputs=model.inputs), 4)
    assert (Auto(model, stream).held_out, Auto(model, stream).judged.num_samples) == (False, 8)


def test_what_was_chosen_is_kept_until_what_judges_changes(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = calibrate_to_file(model, batches(), tmp_path / "c", Auto(model, batches()))
    again = calibrate_to_file(model, batches(), tmp_path / "c", Auto(model, batches()))
    assert (again.reused, again.chosen, again.closing) == (True, first.chosen, first.closing)
    named = calibrate_to_file(model, batches(), tmp_path / "c", first.provenance.method)
    assert named.reused  # it is the very cache
    fewer = Auto(model, batches(), methods=("minmax", "mse"))
    changed = calibrate_to_file(model, batches(), tmp_path / "c", fewer)
    assert changed.reasons == ("its method is to be chosen",)
    assert set(changed.chosen["methods"]) == {"minmax", "mse"}
    other = "mse" if changed.provenance.method == "minmax" else "minmax"
    assert not calibrate_to_file(model, batches(), tmp_path / "c", other).reused
    assert not calibrate_to_file(model, batches(), tmp_path / "c", fewer).reused


def test_unusable_thresholds_are_never_chosen_and_said_to_be(tmp_path: Path) -> None:
    """Of pixels at two levels entropy clips one, which is most of them, however it is judged."""
    path = save(make_model([node("Gemm", ["x", "w"], ["y"])], {"x": ["N", 64]}, ["y"], WEIGHTS), tmp_path / "m.onnx")
    levels, shares = [99, 100, 254, 255], [0.01, 0.2, 0.01, 0.78]
    x = np.random.default_rng(0).choice(levels, (400, 64), p=shares).astype(np.float32) / 255
    some = Batches(ArraySource({"x": x}), 100, samples=300)
    assert "x" in calibrate(path, some).unusable_thresholds
    made = calibrate_to_file(path, some, tmp_path / "c", Auto(path, some), strict=True)
    assert made.provenance.method != "entropy"
    assert not made.unusable_thresholds
    assert made.chosen["methods"]["entropy"]["left_out"].startswith("unusable, the threshold of x clips 7")
    assert any(line.startswith("  entropy            left out: unusable") for line in lines(made.chosen))


WEIGHTS = {"w": np.random.default_rng(1).standard_normal((64, 5)).astype(np.float32)}


def test_where_nothing_can_be_judged_it_says_so_and_no_pass_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [node("Gemm", ["x", "w"], ["y"]), node("ArgMax", ["y"], ["z"], axis=1)]
    model = open_model(save(make_model(nodes, {"x": ["N", 64]}, ["z"], WEIGHTS), tmp_path / "m.onnx"))
    some = Batches(ArraySource({"x": np.ones((8, 64), np.float32)}), 4)
    with pytest.raises(ModelError, match=r"m\.onnx: method auto cannot judge any method: no floating-point output"):
        calibrate_to_file(model, some, tmp_path / "c", Auto(model, some))
    assert not (tmp_path / "c").exists()
    assert partial_path(tmp_path / "c").exists()
    passes: list[int] = []
    run_pass = Here.run_pass

    def counted(self: Here, *arguments: Any, **options: Any) -> Any:
        stats = run_pass(self, *arguments, **{**options, "progress": passes.append})
        return stats

    monkeypatch.setattr(Here, "run_pass", counted)
    calibrate_to_file(model, some, tmp_path / "c", "minmax")
    assert not passes


def test_one_sample_is_not_enough_to_judge_by(model: Model, tmp_path: Path) -> None:
    one = batches(1, None)
    with pytest.raises(DataError, match="judges by two samples at least"):
        calibrate_to_file(model, one, tmp_path / "c", Auto(model, one))
    assert partial_path(tmp_path / "c").exists()


@pytest.mark.parametrize("chosen", [{"a": 1}, {"samples": 3}, {"samples": {}, "methods": {"m": []}}, {"methods": None}])
def test_an_account_that_somebody_changed_is_not_shown(chosen: Mapping[str, Any]) -> None:
    assert lines(chosen) == []
    assert lines({}) == []


def test_the_command_prints_all_methods_with_their_numbers(run: Run, tmp_path: Path) -> None:
    save(conv_model(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", images(24))
    arguments = ["calibrate", "m.onnx", "--data", "x.npy", "--method", "auto", "--samples", 8]
    code, _, err = run(*arguments)
    assert code == 0, err
    method = json.loads((tmp_path / "calibration.cache.json").read_bytes())["provenance"]["method"]
    table = err.splitlines()
    assert f"calibration.cache: 9 tensors by {method}, TRT-8601-" in err
    head = f"auto took {method}: chosen on 8 samples that did not calibrate, and below on 8 more, with 95% intervals:"
    assert head in table
    rows = table[table.index(head) + 1 :][: len(spelt(swept=True))]
    assert {row.split()[0] for row in rows} == set(spelt(swept=True))
    assert [row.split()[0] for row in rows if row.endswith("<- taken")] == [method]
    assert "INT8 by this cache against FP32, on 8 of the samples: SQNR " in table[-1]
    code, out, _ = run(*arguments, "--json")
    assert (code, json.loads(out)["chosen"]["method"]) == (0, method)
    code, _, err = run(*arguments[:-3], "autos")
    assert code == 2
    assert err.endswith(
        "unknown method 'autos'; choose one of entropy, minmax, percentile or percentile:Q, mse, or auto\n"
    )

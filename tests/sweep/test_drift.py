from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from models import conv_model, images, save

from trtcal.model.open import FloatRunner, open_model
from trtcal.passes.collect import collect
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import spelt
from trtcal.sweep.drift import Looks
from trtcal.sweep.trials import usable


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStats, ActivationStats]:
    """Statistics of the first four samples, and of all eight."""
    graph = open_model(save(conv_model(), tmp_path_factory.mktemp("drift") / "m.onnx"))
    data = images(8)
    with FloatRunner(graph) as runner:
        return tuple(collect(runner, [{"image": data[:n]}]) for n in (4, 8))  # type: ignore[return-value]


def test_the_last_look_is_where_nothing_moves_any_more(
    passes: tuple[ActivationStats, ActivationStats], tmp_path: Path
) -> None:
    looks = Looks(tmp_path / "drift.json", "k")
    found = [looks.take(stats, workers=1) for stats in passes]
    drift = looks.drift(len(usable(passes[1])))
    assert list(drift) == list(spelt())
    for name, rows in drift.items():
        assert rows["samples"] == [4, 8]
        assert rows["change_max"][1] == 0
        change = np.abs(found[0][name].astype(np.float64) / found[1][name].astype(np.float64) - 1)
        assert rows["change_max"][0] == change.max()
        assert rows["change_median"][0] == np.median(change)
    assert drift["minmax"]["change_max"][0] > 0


def test_looks_are_taken_up_under_the_same_key_only(
    passes: tuple[ActivationStats, ActivationStats], tmp_path: Path
) -> None:
    path = tmp_path / "drift.json"
    first = Looks(path, "k")
    for stats in passes:
        first.take(stats, workers=2)
    again = Looks(path, "k")
    assert 4 in again
    assert 5 not in again
    tensors = len(usable(passes[1]))
    assert again.drift(tensors) == first.drift(tensors)
    assert 4 not in Looks(path, "another")


def test_looks_at_another_number_of_tensors_are_left_out(
    passes: tuple[ActivationStats, ActivationStats], tmp_path: Path
) -> None:
    looks = Looks(tmp_path / "drift.json", "k")
    looks.take(passes[1], workers=1)
    assert looks.drift(len(usable(passes[1])) - 1) == {}


@pytest.mark.parametrize("amax", [None, "inf", 1e999, ["x"], {}])
def test_a_file_that_is_broken_counts_as_none(tmp_path: Path, amax: object) -> None:
    path = tmp_path / "drift.json"
    path.write_text(json.dumps({"key": "k", "snapshots": {"4": {name: [amax] for name in spelt()}}}))
    assert 4 not in Looks(path, "k")

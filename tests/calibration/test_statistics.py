from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import conv_model, images, save

from trtcal.cache.provenance import installed_versions
from trtcal.calibration.calibrate import calibrate
from trtcal.calibration.file import calibrate_to_file
from trtcal.calibration.statistics import StatisticsFile
from trtcal.errors import OutputError
from trtcal.model.open import open_model
from trtcal.passes.executor import Here
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import method as threshold_method
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArrayFolder, ArraySource


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(conv_model(), tmp_path / "m.onnx")


def batches(batch_size: int = 4, **options: Any) -> Batches:
    return Batches(ArraySource({"image": images(10)}), batch_size, **options)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_is_not_there_serves_nothing_and_one_that_is_damaged_is_never_replaced(
    model: Path, tmp_path: Path, force: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stats = tmp_path / "s.npz"
    made = calibrate_to_file(model, batches(), tmp_path / "a.cache", stats=stats).provenance
    whole = StatisticsFile.read(stats, made)
    assert whole.differences == []
    assert whole.serving(made) == whole.stats
    none = StatisticsFile.read(tmp_path / "none.npz", made)
    assert none.serving(made) is None
    assert none.check_replaceable(force=force) is None
    stats.write_bytes(stats.read_bytes()[:-100])
    damaged = StatisticsFile.read(stats, made)
    assert damaged.serving(made) is None
    assert "s.npz: is not a complete file of activation statistics" in caplog.text
    with pytest.raises(OutputError, match=r"s\.npz: exists and is no file of statistics"):
        damaged.check_replaceable(force=force)


@pytest.mark.parametrize(
    ("growth", "changed", "named"),
    [
        ("double", {"batch_size": 5}, "batch size: 4 -> 5"),
        ("double", {"order": "shuffled", "seed": 2}, "order: given -> shuffled; seed: none -> 2"),
        ("double", {"partial": "wrap"}, "partial batch: pad -> wrap"),
        ("power-of-two", {}, "growth: power-of-two -> double"),
    ],
)
def test_statistics_of_the_same_samples_with_other_settings_are_replaced_by_force_alone(
    model: Path, tmp_path: Path, growth: str, changed: dict[str, Any], named: str
) -> None:
    stats, cache = tmp_path / "s.npz", tmp_path / "c.cache"
    calibrate_to_file(model, batches(), cache, stats=stats, growth=growth)
    before = {path: path.read_bytes() for path in (stats, cache)}
    with pytest.raises(OutputError) as error:
        calibrate_to_file(model, batches(**changed), cache, stats=stats)
    assert str(error.value) == (
        f"{stats}: holds statistics of the same samples with other settings ({named}); replace it (--force), or "
        f"choose another file"
    )
    assert {path: path.read_bytes() for path in before} == before
    said: list[str] = []
    made = calibrate_to_file(model, batches(**changed), cache, stats=stats, force=True, announce=said.append)
    assert f"{stats}: its statistics will be replaced: {named}" in said
    assert made.cache == calibrate(model, batches(**changed)).cache
    assert stats.read_bytes() != before[stats]
    assert calibrate_to_file(model, batches(**changed), cache, stats=stats).reused


@pytest.mark.parametrize(
    ("changed", "growth"),
    [
        ({"batch_size": 5}, "double"),
        ({"order": "shuffled", "seed": 2}, "double"),
        ({"partial": "wrap"}, "double"),
        ({}, "power-of-two"),
    ],
)
@pytest.mark.parametrize("method", ["minmax", "percentile:99", "mse", "entropy"])
def test_statistics_serve_a_method_that_does_not_depend_on_the_settings_they_were_made_with(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    growth: str,
    method: str,
) -> None:
    stats = tmp_path / "s.npz"
    calibrate_to_file(model, batches(), tmp_path / "a.cache", stats=stats)
    before = stats.read_bytes()
    if threshold_method(method).depends_on_batches:
        growth = "power-of-two"
    expected = calibrate_to_file(model, batches(**changed), tmp_path / "b.cache", method, growth=growth)

    def never(*_: object, **__: object) -> object:
        raise AssertionError("the model ran")

    monkeypatch.setattr(Here, "run_pass", never)
    path = tmp_path / "c.cache"
    made = calibrate_to_file(model, batches(**changed), path, method, growth=growth, stats=stats)
    assert path.read_bytes() == (tmp_path / "b.cache").read_bytes()
    assert made.provenance == expected.provenance
    assert (made.clipped, made.unusable) == (expected.clipped, expected.unusable)
    assert stats.read_bytes() == before
    assert calibrate_to_file(model, batches(**changed), path, method, growth=growth, stats=stats).reused


def test_statistics_of_an_earlier_trtcal_are_kept_unless_they_may_be_replaced(model: Path, tmp_path: Path) -> None:
    stats = tmp_path / "s.npz"
    calibrate_to_file(model, batches(), tmp_path / "a.cache", stats=stats)
    old = ActivationStats.load(stats).to_bytes(key="61" * 32)  # 0.1 had a hash as key
    stats.write_bytes(old)
    with pytest.raises(OutputError, match=r"s\.npz: exists, and it was left by another version of trtcal; replace it"):
        calibrate_to_file(model, batches(), tmp_path / "a.cache", stats=stats)
    assert stats.read_bytes() == old
    said: list[str] = []
    calibrate_to_file(model, batches(), tmp_path / "a.cache", stats=stats, force=True, announce=said.append)
    assert f"{stats}: its statistics will be replaced: it was left by another version of trtcal" in said
    assert calibrate_to_file(model, batches(), tmp_path / "a.cache", stats=stats).reused


@pytest.mark.parametrize("changed", ["a file that is not used", "another NumPy"])
def test_statistics_are_good_as_long_as_what_decides_them_is_the_same(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(5):
        np.save(tmp_path / "data" / f"{number}.npy", images(1, seed=number)[0])

    def used() -> Batches:
        return Batches(ArrayFolder(tmp_path / "data", inputs=open_model(model).inputs), 2, order=[0, 1, 2, 3])

    cache, stats = tmp_path / "c.cache", tmp_path / "s.npz"
    calibrate_to_file(model, used(), cache, stats=stats)
    if changed == "another NumPy":
        versions = {**installed_versions(), "numpy": "99.0.0"}
        monkeypatch.setattr("trtcal.cache.provenance.installed_versions", lambda: versions)
    else:
        np.save(tmp_path / "data" / "9.npy", images(1, seed=9)[0])

    def never(*_: object, **__: object) -> object:
        raise AssertionError("the model ran again")

    monkeypatch.setattr(Here, "run_pass", never)
    assert calibrate_to_file(model, used(), cache).reused
    assert calibrate_to_file(model, used(), cache, stats=stats).reused
    assert not calibrate_to_file(model, used(), tmp_path / "m.cache", "minmax", stats=stats).reused

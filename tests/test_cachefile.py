from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from models import conv_model, images, save

from trtcal import cachefile, collector
from trtcal.cache import CalibrationCache
from trtcal.cachefile import calibrate_to_file, partial_path
from trtcal.calibration import calibrate
from trtcal.data import Batches
from trtcal.errors import CacheError, OutputError, TrtcalError
from trtcal.provenance import sidecar_path
from trtcal.sources import ArraySource


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(conv_model(), tmp_path / "m.onnx")


def batches(number: int = 10, batch_size: int = 4, **options: object) -> Batches:
    return Batches(ArraySource({"image": images(number)}), batch_size, **options)  # type: ignore[arg-type]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_file_holds_what_calibrate_gives_and_the_sidecar_says_what_from(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.cache"
    result = calibrate_to_file(model, batches(), path)
    assert CalibrationCache.load(path) == result.cache == calibrate(model, batches()).cache
    origin = json.loads(sidecar_path(path).read_bytes())["provenance"]
    assert (origin["method"], origin["batch_size"], origin["samples_used"]) == ("entropy", 4, 10)
    assert files(tmp_path) == {"m.onnx", "c.cache", "c.cache.json"}


def test_an_equal_run_is_not_repeated(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.cache"
    first = calibrate_to_file(model, batches(), path)

    def never(*_: object, **__: object) -> object:
        raise AssertionError("the model ran again")

    monkeypatch.setattr(cachefile, "collect", never)
    again = calibrate_to_file(model, batches(), path)
    assert again.calibration is None
    assert again.cache == first.cache
    with pytest.raises(AssertionError, match="ran again"):
        calibrate_to_file(model, batches(), path, force=True)
    assert CalibrationCache.load(path) == first.cache


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model, path: calibrate_to_file(model, batches(), path, "minmax"), "method: entropy -> minmax"),
        (lambda model, path: calibrate_to_file(model, batches(batch_size=5), path), "batch size: 4 -> 5"),
        (lambda model, path: calibrate_to_file(model, batches(9), path), "data: samples differ"),
        (lambda model, path: calibrate_to_file(model, batches(order="shuffled"), path), "order: given -> shuffled"),
        (lambda model, path: calibrate_to_file(model, batches(partial="drop"), path), "partial batch: pad -> drop"),
        (lambda model, path: calibrate_to_file(model, batches(), path, growth="power-of-two"), "growth: double ->"),
        (lambda model, path: calibrate_to_file(model, batches(), path, trt_version="10.3.0"), "TRT-100300"),
        (lambda model, path: calibrate_to_file(other_model(model), batches(), path), "model: content differs"),
    ],
)
def test_whatever_differs_is_named_and_calibrated_again(
    model: Path, tmp_path: Path, change: object, named: str
) -> None:
    path = tmp_path / "c.cache"
    calibrate_to_file(model, batches(), path)
    assert callable(change)
    result = change(model, path)
    assert result.calibration is not None
    assert named in "; ".join(result.reasons)


def other_model(path: Path) -> Path:
    changed = conv_model()
    changed.graph.name = "other"
    return save(changed, path)


def test_a_cache_of_unknown_origin_is_not_trusted(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.cache"
    expected = calibrate_to_file(model, batches(), path).cache
    said: list[str] = []
    path.write_bytes(path.read_bytes().replace(b"TRT-8601", b"TRT-8602"))
    assert "origin unknown" in calibrate_to_file(model, batches(), path, announce=said.append).reasons[0]
    assert "calibrating again" in said[0]
    sidecar_path(path).unlink()
    assert "origin unknown" in calibrate_to_file(model, batches(), path).reasons[0]
    assert CalibrationCache.load(path) == expected


def test_kept_statistics_serve_another_method_without_the_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = tmp_path / "s.npz"
    calibrate_to_file(model, batches(), tmp_path / "a.cache", stats=stats)
    runs: list[object] = []
    monkeypatch.setattr(cachefile, "collect", lambda *a, **k: runs.append(a))
    made = calibrate_to_file(model, batches(), tmp_path / "b.cache", "percentile:99", stats=stats)
    assert made.cache == calibrate(model, batches(), "percentile:99").cache
    assert runs == []
    monkeypatch.undo()
    other = calibrate_to_file(model, batches(7), tmp_path / "b.cache", stats=stats)
    assert other.cache == calibrate(model, batches(7)).cache


class Interrupted(Batches):
    """Batches that are interrupted before the third."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        for number, batch in enumerate(super().__iter__()):
            if number == 2:
                raise KeyboardInterrupt
            yield batch


def test_an_interruption_leaves_no_cache_and_the_next_run_goes_on_to_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "SNAPSHOT_SECONDS", 0)
    path = tmp_path / "c.cache"
    source = ArraySource({"image": images(12)})
    with pytest.raises(KeyboardInterrupt):
        calibrate_to_file(model, Interrupted(source, 3), path)
    assert files(tmp_path) == {"m.onnx", "c.cache.partial.npz"}
    said: list[str] = []
    result = calibrate_to_file(model, Batches(source, 3), path, announce=said.append)
    assert any("going on after 6 samples" in line for line in said)
    assert result.cache == calibrate(model, Batches(source, 3)).cache
    assert files(tmp_path) == {"m.onnx", "c.cache", "c.cache.json"}


def test_an_interrupted_run_over_an_old_cache_leaves_the_old_one(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.cache"
    calibrate_to_file(model, batches(), path)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        calibrate_to_file(model, Interrupted(ArraySource({"image": images(12)}), 3), path)
    assert path.read_bytes() == before


def test_two_runs_on_one_file_do_not_mix(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.cache"

    class Meanwhile(Batches):
        def __iter__(self):  # type: ignore[no-untyped-def]
            with pytest.raises(OutputError, match=r"c\.cache: another run is writing this cache"):
                calibrate_to_file(model, batches(), path)
            return super().__iter__()

    source = ArraySource({"image": images(4)})
    assert calibrate_to_file(model, Meanwhile(source, 2), path).cache == calibrate(model, Batches(source, 2)).cache
    assert calibrate_to_file(model, batches(), path, "minmax").calibration is not None


def test_an_output_that_cannot_be_written_is_named_before_the_pass(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> object:
        raise AssertionError("the model ran")

    monkeypatch.setattr(cachefile, "collect", never)
    with pytest.raises(OutputError, match=r"cannot be written: the folder .*nowhere does not exist"):
        calibrate_to_file(model, batches(), tmp_path / "nowhere" / "c.cache")
    (tmp_path / "folder").mkdir()
    with pytest.raises((OutputError, CacheError), match="folder"):
        calibrate_to_file(model, batches(), tmp_path / "folder")


def test_a_full_disk_leaves_the_old_cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.cache"
    calibrate_to_file(model, batches(), path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"c\.cache: cannot be written: No space left on device"):
        calibrate_to_file(model, batches(), path, "minmax")
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_failing_data_leaves_nothing(model: Path, tmp_path: Path) -> None:
    class Broken(ArraySource):
        def load(self, index: int) -> dict[str, np.ndarray]:
            arrays: Mapping[str, np.ndarray] = super().load(index)
            return {"image": arrays["image"] * (np.nan if index == 5 else 1)}

    with pytest.raises(TrtcalError, match=r"5: tensor 'image' holds nan"):
        calibrate_to_file(model, Batches(Broken({"image": images(8)}), 2), tmp_path / "c.cache")
    assert files(tmp_path) == {"m.onnx"}


def test_the_partial_file_lies_beside_the_cache() -> None:
    assert partial_path("a/model.cache") == Path("a/model.cache.partial.npz")

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from models import conv_model, images, save

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.provenance import sidecar_path
from trtcal.calibration.calibrate import calibrate
from trtcal.calibration.file import calibrate_to_file, partial_path, ranges_for
from trtcal.errors import CacheError, OutputError, TrtcalError
from trtcal.files import checkpoint
from trtcal.model.open import open_model
from trtcal.passes import collect as collector
from trtcal.passes.executor import Here
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource, IterableSource


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

    monkeypatch.setattr(Here, "run_pass", never)
    again = calibrate_to_file(model, batches(), path)
    assert again.reused
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
    assert not result.reused
    assert named in "; ".join(result.reasons)


def other_model(path: Path) -> Path:
    changed = conv_model()
    changed.graph.name = "other"
    return save(changed, path)


def test_a_cache_that_was_edited_is_not_trusted(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.cache"
    expected = calibrate_to_file(model, batches(), path).cache
    said: list[str] = []
    path.write_bytes(path.read_bytes().replace(b"TRT-8601", b"TRT-8602"))
    assert "origin unknown" in calibrate_to_file(model, batches(), path, announce=said.append).reasons[0]
    assert "calibrating again" in said[0]
    assert CalibrationCache.load(path) == expected


def test_a_cache_that_somebody_else_made_is_replaced_by_force_alone(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "gpu.cache"
    path.write_bytes(b"TRT-8601-EntropyCalibration2\nimage: 3c010a14\n")
    with pytest.raises(OutputError, match=r"gpu\.cache: exists, and nothing beside it says"):
        calibrate_to_file(model, batches(), path)
    assert path.read_bytes().endswith(b"image: 3c010a14\n")
    assert not calibrate_to_file(model, batches(), path, force=True).reused


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_is_no_cache_or_no_statistics_is_never_replaced(model: Path, tmp_path: Path, force: bool) -> None:
    before = model.read_bytes()
    with pytest.raises(OutputError, match=r"m\.onnx: exists and is no calibration cache"):
        calibrate_to_file(model, batches(), model, force=force)
    with pytest.raises(OutputError, match=r"m\.onnx: exists and is no file of statistics"):
        calibrate_to_file(model, batches(), tmp_path / "c.cache", stats=model, force=force)
    assert model.read_bytes() == before
    assert files(tmp_path) == {"m.onnx"}


@pytest.mark.parametrize("content", ['{"conv": [-1.0, 1.0]}', '{"format": 1}', "[]", "text"])
def test_a_file_that_lies_where_the_sidecar_goes_is_not_replaced(model: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(OutputError, match=r"calibration\.json: exists and is no account of where a cache comes from"):
        calibrate_to_file(model, batches(), tmp_path / "calibration")
    assert (tmp_path / "calibration.json").read_text() == content
    assert files(tmp_path) == {"m.onnx", "calibration.json"}
    (tmp_path / "calibration.json").unlink()
    calibrate_to_file(model, batches(), tmp_path / "calibration")
    assert not calibrate_to_file(model, batches(), tmp_path / "calibration", force=True).reused


@pytest.mark.parametrize("stats", ["c.cache", "c.cache.json", "c.cache.partial.npz"])
def test_statistics_do_not_replace_the_cache_they_were_kept_for(model: Path, tmp_path: Path, stats: str) -> None:
    with pytest.raises(OutputError, match=r"to become both .* and the statistics"):
        calibrate_to_file(model, batches(), tmp_path / "c.cache", stats=tmp_path / stats)
    assert files(tmp_path) == {"m.onnx"}


def test_statistics_that_cannot_be_written_are_named_before_the_pass(model: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"s\.npz: cannot be written: the folder"):
        calibrate_to_file(model, batches(), tmp_path / "c.cache", stats=tmp_path / "nowhere" / "s.npz")


def test_statistics_that_are_asked_for_are_made_even_if_the_cache_is_up_to_date(model: Path, tmp_path: Path) -> None:
    calibrate_to_file(model, batches(), tmp_path / "c.cache")
    assert not calibrate_to_file(model, batches(), tmp_path / "c.cache", stats=tmp_path / "s.npz").reused
    assert ActivationStats.load(tmp_path / "s.npz").samples
    assert calibrate_to_file(model, batches(), tmp_path / "c.cache", stats=tmp_path / "s.npz").reused


def test_a_reused_cache_still_says_what_was_found_while_it_was_made(model: Path, tmp_path: Path) -> None:
    # Entropy clips the spike at 255 that shares a level with 254.
    pixels = np.random.default_rng(0).choice([99, 100, 254, 255], (8, 3, 8, 8), p=[0.01, 0.2, 0.01, 0.78])
    source = ArraySource({"image": pixels.astype(np.float32)})
    made = calibrate_to_file(model, Batches(source, 4), tmp_path / "c.cache")
    again = calibrate_to_file(model, Batches(source, 4), tmp_path / "c.cache")
    assert made.clipped
    assert (again.clipped, again.unusable, again.hidden) == (made.clipped, made.unusable, made.hidden)


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(collector, "SNAPSHOT_SECONDS", 0)
    monkeypatch.setattr(collector, "CHECKPOINT_SECONDS", 0)

    def full(path: object, data: bytes) -> None:
        raise OutputError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    assert calibrate_to_file(model, batches(), tmp_path / "c.cache").cache == calibrate(model, batches()).cache
    assert "No space left" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        calibrate_to_file(model, Interrupted(ArraySource({"image": images(12)}), 3), tmp_path / "d.cache")


def test_an_up_to_date_cache_in_a_folder_that_cannot_be_written_is_used(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate_to_file(model, batches(), tmp_path / "c.cache")

    def never(*_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", never)
    assert calibrate_to_file(model, batches(), tmp_path / "c.cache").reused


def test_a_random_loader_is_refused_instead_of_given_a_false_origin(model: Path, tmp_path: Path) -> None:
    class Random:
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield {"image": np.random.default_rng().normal(size=(4, 3, 8, 8)).astype(np.float32)}

    loader = Batches(IterableSource(Random(), inputs=open_model(model).inputs), 2)
    with pytest.raises(TrtcalError, match="batch 0 row 0 is not what it was the first time"):
        calibrate_to_file(model, loader, tmp_path / "c.cache")


def test_kept_statistics_serve_another_method_without_the_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = tmp_path / "s.npz"
    calibrate_to_file(model, batches(), tmp_path / "a.cache", stats=stats)
    expected = calibrate(model, batches(), "percentile:99").cache
    runs: list[object] = []
    monkeypatch.setattr(Here, "run_pass", lambda *a, **k: runs.append(a))
    made = calibrate_to_file(model, batches(), tmp_path / "b.cache", "percentile:99", stats=stats)
    assert made.cache == expected
    assert runs == []
    monkeypatch.undo()
    other = calibrate_to_file(model, batches(7), tmp_path / "b.cache", stats=stats)
    assert other.cache == calibrate(model, batches(7)).cache


def test_statistics_of_something_else_are_replaced_and_that_is_said_before(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats, said = tmp_path / "s.npz", list[str]()
    calibrate_to_file(model, batches(), tmp_path / "a.cache", stats=stats, announce=said.append)
    (tmp_path / "empty.npz").touch()
    calibrate_to_file(model, batches(), tmp_path / "e.cache", stats=tmp_path / "empty.npz", announce=said.append)
    calibrate_to_file(model, batches(), tmp_path / "a.cache", "minmax", stats=stats, announce=said.append)
    assert not any("will be replaced" in line for line in said)

    def interrupted(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(Here, "run_pass", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate_to_file(model, batches(7), tmp_path / "b.cache", stats=stats, announce=said.append)
    assert said[-1].endswith(
        "s.npz: its statistics will be replaced: data: samples differ (7 samples in memory); samples used: 10 -> 7"
    )
    monkeypatch.undo()
    calibrate_to_file(model, batches(7), tmp_path / "b.cache", stats=stats)
    assert len(ActivationStats.load(stats).samples) == 7


def test_statistics_that_do_not_say_what_they_are_of_are_replaced_by_force_alone(model: Path, tmp_path: Path) -> None:
    stats = tmp_path / "s.npz"
    calibrate_to_file(model, batches(7), tmp_path / "a.cache", stats=stats)
    ActivationStats.load(stats).save(stats)
    before = stats.read_bytes()
    with pytest.raises(OutputError, match=r"s\.npz: exists, and nothing in it says what it was made from"):
        calibrate_to_file(model, batches(), tmp_path / "b.cache", stats=stats)
    assert stats.read_bytes() == before
    assert not (tmp_path / "b.cache").exists()
    calibrate_to_file(model, batches(), tmp_path / "b.cache", stats=stats, force=True)
    assert len(ActivationStats.load(stats).samples) == 10


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


@pytest.mark.parametrize(("batch_size", "goes_on"), [(3, True), (4, False)])
def test_an_interruption_promises_to_go_on_only_from_statistics_of_these_settings(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, goes_on: bool
) -> None:
    path, source = tmp_path / "c.cache", ArraySource({"image": images(12)})
    monkeypatch.setattr(collector, "SNAPSHOT_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        calibrate_to_file(model, Interrupted(source, 3), path)
    monkeypatch.setattr(collector, "SNAPSHOT_SECONDS", 1e9)  # interrupted before there is anything to keep
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        calibrate_to_file(model, Interrupted(source, batch_size), path, announce=said.append)
    assert partial_path(path).exists()
    assert any("the same command goes on from it" in line for line in said) is goes_on


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
            with pytest.raises(OutputError, match=r"c\.cache: another run is writing it"):
                calibrate_to_file(model, batches(), path)
            return super().__iter__()

    source = ArraySource({"image": images(4)})
    assert calibrate_to_file(model, Meanwhile(source, 2), path).cache == calibrate(model, Batches(source, 2)).cache
    assert not calibrate_to_file(model, batches(), path, "minmax").reused
    assert not list(tmp_path.glob(".*lock"))


def test_an_output_that_cannot_be_written_is_named_before_the_pass(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> object:
        raise AssertionError("the model ran")

    monkeypatch.setattr(Here, "run_pass", never)
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
    with pytest.raises(OutputError, match=r"c\.cache\.json: cannot be written: No space left on device"):
        calibrate_to_file(model, batches(), path, "minmax")
    assert path.read_bytes() == before["c.cache"]
    assert files(tmp_path) == set(before)


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


@pytest.mark.parametrize(
    ("method", "growth", "size", "warned"),
    [
        ("entropy", "double", 5, True),
        ("entropy", "double", 4, False),
        ("entropy", "power-of-two", 5, False),
        ("minmax", "double", 5, False),
    ],
)
def test_another_batch_size_than_the_model_has_built_in_is_warned_of_where_it_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, growth: str, size: int, warned: bool
) -> None:
    model = save(conv_model(4), tmp_path / "m.onnx")
    calibrate_to_file(model, batches(batch_size=size), tmp_path / "c.cache", method, growth=growth)
    said = [record.getMessage() for record in caplog.records if "batch size 4 built in, with which" in record.message]
    assert len(said) == warned
    assert all("entropy in batches of 5 is another calibration; give batches of 4" in line for line in said)


def test_results_fit_a_screen(model: Path, tmp_path: Path) -> None:
    made = calibrate(model, batches())
    for result in (made, made.stats, made.stats.tensors["image"], calibrate_to_file(model, batches(), tmp_path / "c")):
        assert len(repr(result)) < 600
        assert "\n" not in repr(result)


def test_ranges_of_another_model_are_refused_and_of_another_version_warned_of(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.cache"
    calibrate_to_file(model, batches(), path)
    opened = open_model(model)
    assert ranges_for(opened, path) == CalibrationCache.load(path).scales
    assert not caplog.records
    other = open_model(other_model(tmp_path / "other.onnx"))
    assert ranges_for(other, path) == CalibrationCache.load(path).scales
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: was made from another model, or another version of it: m.onnx"
    ]
    foreign = tmp_path / "foreign.cache"
    foreign.write_bytes(b"TRT-8601-EntropyCalibration2\none: 3c010a14\ntwo: 3c010a14\nimage: 3c010a14\n")
    assert "image" in ranges_for(opened, foreign)
    assert "m.onnx lacks 2 of its 3 tensors: 'one', 'two'" in caplog.text
    foreign.write_bytes(b"TRT-8601-EntropyCalibration2\na: 3c010a14\n")
    with pytest.raises(CacheError, match=r"foreign\.cache: is of another model, or of .* lacks 1 of its 1 tensor: 'a'"):
        ranges_for(opened, foreign)

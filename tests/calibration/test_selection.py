from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from models import conv_model, images, save

from trtcal.cache.cache import CalibrationCache
from trtcal.calibration import selection
from trtcal.calibration.calibrate import from_stats
from trtcal.calibration.selection import TOLERANCE, Selection, select
from trtcal.errors import DataError, SettingError
from trtcal.model.open import FloatRunner, Model, open_model
from trtcal.passes.executor import Here
from trtcal.passes.sharing import resolved
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource, IterableSource

Run = Callable[..., tuple[int, str, str]]
NUMBER = 96


@pytest.fixture(autouse=True)
def few_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that gives up early is as right as a long one, and selects more samples."""
    monkeypatch.setattr(selection, "SEARCHES", 300)


def samples(number: int = NUMBER) -> np.ndarray:
    """Every eighth is loud: the others say nothing of the largest values."""
    data = images(number)
    data[::8] *= 3
    return data


@cache
def passed(growth: str = "double", partial_batch: str = "pad") -> tuple[Model, Batches, ActivationStats]:
    batches = Batches(ArraySource({"image": samples()}), 4, partial=partial_batch)  # type: ignore[arg-type]
    model = resolved(open_model(conv_model()), batches)
    return model, batches, Here(1).run_pass(partial(FloatRunner, model), batches, growth=growth)


def off(model: Model, chosen: list[int], method: str, growth: str = "double") -> float:
    """The largest difference of thresholds, calibrated anew and compared here."""
    _, batches, stats = passed(growth)
    part = Here(1).run_pass(partial(FloatRunner, model), batches.only(chosen), growth=growth)
    whole, made = (from_stats(model, one, method).cache for one in (stats, part))
    assert whole.scales.keys() == made.scales.keys()
    return max(abs(made.amax(name) / whole.amax(name) - 1) for name in whole.scales)


@pytest.mark.parametrize(
    ("method", "growth", "most"),
    [
        ("minmax", "double", 96),
        ("percentile:99", "double", 96),
        ("mse", "double", 96),
        ("entropy", "double", 96),
        ("entropy", "power-of-two", 96),
    ],
)
def test_a_calibration_of_the_selection_is_within_the_tolerance(method: str, growth: str, most: int) -> None:
    model, batches, stats = passed(growth)
    found = select(model, stats, batches, most, method, growth=growth, executor=Here(1))
    places = [int(name) for name in found.samples]
    assert found.within
    assert places == sorted(set(places)), "the order is that of all samples"
    assert len(places) <= most
    assert off(model, places, method, growth) == pytest.approx(found.difference, abs=1e-6)
    assert found.difference <= TOLERANCE
    assert found.of == NUMBER


def test_of_maxima_no_sample_can_be_left_out() -> None:
    model, batches, stats = passed()
    places = [int(name) for name in select(model, stats, batches, NUMBER, "minmax", executor=Here(1)).samples]
    assert 1 < len(places) < NUMBER / 4
    for place in places:
        assert off(model, [other for other in places if other != place], "minmax") > TOLERANCE


@pytest.mark.parametrize("method", ["percentile:99"])
def test_a_selection_is_smaller_than_a_random_one_would_have_to_be(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "SEARCHES", 3000)
    model, batches, stats = passed()
    size = len(select(model, stats, batches, NUMBER, method, executor=Here(1)).samples)
    rng = np.random.default_rng(0)
    assert size < NUMBER * 3 / 4
    for _ in range(5):
        assert off(model, sorted(rng.permutation(NUMBER)[:size].tolist()), method) > TOLERANCE


@pytest.mark.parametrize("method", ["minmax", "mse", "entropy"])
def test_too_few_come_with_how_far_they_are(method: str) -> None:
    model, batches, stats = passed()
    found = select(model, stats, batches, 1, method, executor=Here(1))
    assert (len(found.samples), found.within) == (1, False)
    assert off(model, [int(name) for name in found.samples], method) == pytest.approx(found.difference, abs=1e-6)


def test_as_many_as_there_are_always_suffice() -> None:
    model, batches, stats = passed()
    for method in ("entropy", "minmax"):
        found = select(model, stats, batches, 1000, method, executor=Here(1))
        assert found.within
        assert len(found.samples) <= NUMBER


def test_where_incomplete_batches_are_dropped_only_whole_ones_are_selected() -> None:
    model, batches, stats = passed("double", "drop")
    for method in ("minmax", "percentile:99"):
        found = select(model, stats, batches, NUMBER, method, executor=Here(1))
        assert found.within
        assert len(found.samples) % 4 == 0
    with pytest.raises(SettingError, match="3 samples do not fill a batch of 4"):
        select(model, stats, batches, 3, "mse")


def test_more_samples_than_there_is_memory_for_leave_some_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches, stats = passed()
    monkeypatch.setattr(selection, "MOST_BYTES", 1 << 20)  # of some ten samples
    found = select(model, stats, batches, 40, "percentile:99", executor=Here(1))
    assert len(found.samples) <= 40
    assert off(model, [int(name) for name in found.samples], "percentile:99") == pytest.approx(
        found.difference, abs=1e-6
    )


def test_a_stream_cannot_be_selected_from() -> None:
    model, _, stats = passed()
    stream = Batches(IterableSource([{"image": images(4)}], inputs=model.inputs), 4)
    with pytest.raises(DataError, match=r"no list can name them; save them as an .npz file"):
        select(model, stats, stream, 2)


def test_a_tensor_with_a_range_in_one_of_both_is_infinitely_far() -> None:
    one = {"a": np.float32(1), "b": np.float32(0)}
    assert selection._difference(one, {"a": np.float32(1)}) == (float("inf"), "b")
    assert selection._difference({"a": np.float32(1)}, one) == (float("inf"), "b")
    assert selection._difference(one, {"a": np.float32(1), "b": np.float32(1)}) == (float("inf"), "b")
    assert selection._difference(one, {"a": np.float32(0.75), "b": np.float32(0)}) == (0.25, "a")
    assert selection._difference(one, one) == (0.0, "")
    assert not Selection((), 1, float("inf"), "b").within


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(conv_model(), tmp_path / "m.onnx")
    np.save("x.npy", samples())
    return tmp_path


@pytest.mark.parametrize("order", ["given", "shuffled"])
def test_the_list_is_data_that_calibrate_as_all_do(order: str, folder: Path, run: Run) -> None:
    command = ["calibrate", "m.onnx", "--data", "x.npy", "-b", 4, "--order", order, "--method", "percentile:99"]
    assert run(*command, "-o", "plain.cache", "--no-check")[0] == 0
    code, out, err = run(*command, "--select", 96, "--no-check", "--json", "-o", "c.cache")
    assert code == 0, err
    assert Path("c.cache").read_bytes() == Path("plain.cache").read_bytes(), "selecting changes nothing in the cache"
    found = json.loads(out)["selected"]
    assert (found["list"], found["of"], found["asked"], found["within"]) == ("c.cache.samples.txt", NUMBER, 96, True)
    again = [
        "calibrate",
        "m.onnx",
        "--data",
        "c.cache.samples.txt",
        "-b",
        4,
        "--method",
        "percentile:99",
        "-o",
        "few.cache",
    ]
    code, _, err = run(*again, "--no-check")
    assert (code, f"{found['samples']} samples listed in c.cache.samples.txt" in err) == (0, True), err
    whole, few = CalibrationCache.load("c.cache"), CalibrationCache.load("few.cache")
    most = max(abs(few.amax(name) / whole.amax(name) - 1) for name in whole.scales)
    assert most == pytest.approx(found["difference"], abs=1e-6)
    assert most <= TOLERANCE


def test_a_cache_that_is_up_to_date_and_statistics_that_are_there_serve_too(folder: Path, run: Run) -> None:
    command = ["calibrate", "m.onnx", "--data", "x.npy", "--method", "minmax", "-o", "c.cache", "--no-check"]
    assert run(*command, "--stats", "s.npz")[0] == 0
    code, _, err = run(*command, "--stats", "s.npz", "--select", 96, "--select-list", "few.txt")
    assert code == 0
    assert "statistics of these samples are already there; the model need not run" in err
    assert "samples keep every threshold within 1%" in err
    assert "take them with --data few.txt --batch-size 8" in err
    first = Path("few.txt").read_bytes()
    shutil.copy("c.cache", "before.cache")
    assert run(*command, "--select", 96, "--select-list", "few.txt")[0] == 0, "its own list is replaced"
    assert Path("few.txt").read_bytes() == first
    assert Path("c.cache").read_bytes() == Path("before.cache").read_bytes()


def test_too_few_are_written_with_a_warning(folder: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    command = ["calibrate", "m.onnx", "--data", "x.npy", "--method", "minmax", "--no-check", "--select", 1]
    code, _, err = run(*command)
    assert (code, f"1 of {NUMBER} samples are the nearest found" in err) == (0, True), err
    assert "no 1 samples were found whose thresholds stay within 1% of those of all" in err + caplog.text
    assert len(Path("calibration.cache.samples.txt").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--select-list", "few.txt"], "is what --select writes"),
        (["--select", 4, "--select-list", "few.csv"], "call it few.csv.txt"),
        (["--select", 4, "--select-list", "mine.txt"], "mine.txt: exists and is no list of samples that trtcal wrote"),
        (["--select", 0], "--select"),
        (["--select", 4, "--partial", "drop", "-b", 8], "4 samples do not fill a batch of 8"),
        (["--select", 4, "--data", "load.py"], "no list can name them"),
    ],
)
def test_what_cannot_be_selected_is_refused_before_the_pass(
    more: list[str], message: str, folder: Path, run: Run
) -> None:
    Path("mine.txt").write_text("notes\n")
    Path("load.py").write_text(
        "import numpy as np\ndef load_data():\n    return [{'image': np.ones((2, 3, 8, 8), 'f')}]\n"
    )
    data = [] if "--data" in more else ["--data", "x.npy"]
    code, _, err = run("calibrate", "m.onnx", *data, *more, "-o", "c.cache")
    assert (code, message in " ".join(err.split())) == (2, True), err
    assert not Path("c.cache").exists()
    assert Path("mine.txt").read_text() == "notes\n"

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trtcal.errors import DataError, OutputError
from trtcal.samples.batches import Batch, Batches
from trtcal.samples.contact_sheet import contact_sheet, thumbnails
from trtcal.samples.images import ImageFolder
from trtcal.samples.preprocess import preset

rng = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return rng.uniform(0, 255, shape).astype(np.float32)


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_the_sheet_shows_the_pictures_as_they_went_in(tmp_path: Path) -> None:
    colours = {"a.png": (255, 0, 0), "b.png": (0, 255, 0), "c.png": (0, 0, 255)}
    (tmp_path / "data").mkdir()
    for name, colour in colours.items():
        Image.new("RGB", (32, 32), colour).save(tmp_path / "data" / name)
    variants: list[dict[str, Any]] = [{}, {"color": "BGR"}, {"layout": "HWC"}]
    for knobs in variants:
        made = preset("imagenet", size=(16, 16), **knobs)
        batches = Batches(ImageFolder(tmp_path / "data", made, input_name="x"), 2)
        statistics = contact_sheet(batches, tmp_path / "sheet.png", undo=made.undo)
        shown = picture(tmp_path / "sheet.png")
        for colour in colours.values():  # each fills a tile
            assert (shown == colour).all(axis=2).sum() == 160 * 160
        assert statistics.samples == 3  # the repeat in the last batch is not shown


def test_every_tile_has_its_name_below(tmp_path: Path) -> None:
    batch = {"x": np.zeros((2, 3, 8, 8), np.float32)}
    for samples in (["a.png", "b.png"], ["a.png", "x" * 200 + "/é漢.png"], ["", ""]):
        contact_sheet([Batch(batch, samples=samples)], tmp_path / "s.png", undo=None)
        below = picture(tmp_path / "s.png")[4 + 160 : 4 + 174]
        assert (below[:, 4:164] > 128).any() == bool(samples[0])
        assert (below[:, 168:328] > 128).any() == bool(samples[1])


def test_statistics_are_per_channel_of_what_the_network_sees(tmp_path: Path) -> None:
    array = noise(4, 3, 6, 8) * np.array([1, 0, -2], np.float32).reshape(3, 1, 1)
    statistics = contact_sheet([{"image": array}], tmp_path / "s.png", undo=None)
    channels = array.transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(statistics.minimum, channels.min(axis=1))
    np.testing.assert_allclose(statistics.mean, channels.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(statistics.std, channels.std(axis=1), rtol=1e-5)
    np.testing.assert_allclose(statistics.maximum, channels.max(axis=1))
    assert statistics.zeros == pytest.approx(1 / 3)
    text = str(statistics)
    assert text.splitlines()[0] == "input 'image', 4 samples, 33.3% zeros"
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((3, 6, 8), 3), ((6, 8, 3), 3), ((1, 6, 8), 1), ((6, 8, 1), 1), ((6, 8), 1), ((7, 6, 8), 7), ((4, 6, 8), 4)],
)
def test_any_layout_is_shown(shape: tuple[int, ...], channels: int, tmp_path: Path) -> None:
    statistics = contact_sheet([{"x": noise(2, *shape) / 255}], tmp_path / "s.png", undo=None)
    assert len(statistics.mean) == channels
    assert statistics.warnings == ()
    tiles = picture(tmp_path / "s.png")[4:164]
    assert tiles.min() == 0
    assert tiles.max() == 255


def test_count_limits_the_samples_and_the_reading(tmp_path: Path) -> None:
    def batches() -> object:
        yield {"x": noise(3, 3, 4, 4)}
        yield {"x": noise(3, 3, 4, 4)}
        pytest.fail("read on")

    statistics = contact_sheet(batches(), tmp_path / "s.png", undo=None, count=5)  # type: ignore[arg-type]
    assert statistics.samples == 5


def test_of_several_inputs_the_picture_is_found_or_named(tmp_path: Path) -> None:
    batch = {"ids": np.ones((2, 5), int), "x": noise(2, 3, 4, 4), "mask": np.ones((2, 4, 4), bool)}
    assert contact_sheet([batch], tmp_path / "s.png", undo=None, input_name="mask").input_name == "mask"
    del batch["mask"]
    assert contact_sheet([batch], tmp_path / "s.png", undo=None).input_name == "x"


@pytest.mark.parametrize(
    ("batch", "name", "words"),
    [
        ({"a": noise(1, 3, 4, 4), "b": noise(1, 3, 4, 4)}, None, "2 inputs look like pictures .*name the one"),
        ({"a": noise(1, 3), "b": noise(1, 3)}, None, "0 inputs look like pictures"),
        ({"ids": noise(1, 3)}, None, r"input 'ids': samples of shape \(3,\) are no pictures"),
        ({"x": noise(1, 3, 4, 4, 4)}, None, "are no pictures"),
        ({"x": noise(1, 3, 4, 4)}, "y", "no input 'y'; the batches have 'x'"),
    ],
)
def test_inputs_that_are_no_pictures_are_refused(
    batch: dict[str, np.ndarray], name: str | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        contact_sheet([batch], tmp_path / "s.png", undo=None, input_name=name)
    assert not (tmp_path / "s.png").exists()


def test_nothing_to_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples to show"):
        contact_sheet([], tmp_path / "s.png", undo=None)
    with pytest.raises(ValueError, match="count must be at least 1"):
        contact_sheet([], tmp_path / "s.png", undo=None, count=0)


def test_a_sheet_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="gone"):
        contact_sheet([{"x": noise(1, 3, 4, 4)}], tmp_path / "gone/s.png", undo=None)


# --- warnings


def warnings_of(array: np.ndarray, tmp_path: Path, name: str | None = None) -> str:
    undo = preset(name, size=(16, 16)).undo if name else None
    return " ".join(contact_sheet([{"x": array.astype(np.float32)}], tmp_path / "s.png", undo=undo).warnings)


@pytest.mark.parametrize("name", ["imagenet", "yolo-letterbox", "0-1", "-1-1", "raw"])
def test_honest_pictures_raise_no_suspicion(name: str, tmp_path: Path) -> None:
    made = preset(name, size=(16, 16))
    black = np.zeros((16, 16, 3), np.uint8)
    black[5:9, 5:9] = np.arange(100, 148).reshape(4, 4, 3)
    digit = np.where(black > 0, 255, 0).astype(np.uint8)
    for values in (black, 255 - black, digit, noise(16, 16, 3).astype(np.uint8)):
        array = made(Image.fromarray(values))[None]
        assert warnings_of(array, tmp_path, name) == ""


@pytest.mark.parametrize("name", ["imagenet", "0-1", "-1-1"])
def test_pixels_fed_to_a_normalising_preset_are_noticed(name: str, tmp_path: Path) -> None:
    assert "leave 0..255 when the preset is undone" in warnings_of(noise(2, 3, 16, 16), tmp_path, name)


def test_normalised_values_fed_to_another_preset_are_noticed(tmp_path: Path) -> None:
    normal = rng.normal(size=(2, 1, 16, 16)).repeat(3, axis=1)
    assert "leave 0..255" in warnings_of(normal, tmp_path, "0-1")
    assert "hardly one grey level" in warnings_of(noise(2, 3, 16, 16) / 255, tmp_path, "raw")


def test_pixels_without_a_preset_are_noticed(tmp_path: Path) -> None:
    assert "look like pixels" in warnings_of(noise(2, 3, 16, 16), tmp_path)


def test_constant_samples_are_named(tmp_path: Path) -> None:
    array = noise(3, 3, 16, 16) / 255
    array[1] = 0.5
    assert "1 of 3 samples are one constant value, the first is '1'" in warnings_of(array, tmp_path)
    assert "warning: 3 of 3" in str(contact_sheet([{"x": array * 0}], tmp_path / "s.png", undo=None))


def test_a_thumbnail_shows_the_sample_it_is_asked_for() -> None:
    batches = [
        Batch({"x": noise(2, 3, 8, 8), "length": np.ones(2)}, samples=names) for names in (["a", "b"], ["c", "d"])
    ]
    found = thumbnails(batches, ["c", "a", "nobody"], undo=lambda array: array.transpose(1, 2, 0).astype(np.uint8))
    assert set(found) == {"a", "c"}
    for name, row in (("a", batches[0]["x"][0]), ("c", batches[1]["x"][0])):
        head, _, data = found[name].partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            shown = np.asarray(image)[10::20, 10::20]  # 20 pixels to one of the sample's
        assert np.array_equal(shown, row.transpose(1, 2, 0).astype(np.uint8))


@pytest.mark.parametrize("batch", [{"x": np.ones((2, 8))}, {"x": np.ones((2, 3, 8, 8)), "y": np.ones((2, 3, 8, 8))}])
def test_without_a_picture_there_are_no_thumbnails(batch: dict[str, np.ndarray]) -> None:
    assert thumbnails([Batch(batch)], ["0", "1"]) == {}
    assert thumbnails([], ["0"]) == {}

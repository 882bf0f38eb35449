"""Against a stand-in with what is used of ``ray.data.Dataset``; test_distributed.py has the real one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trtcal.errors import DataError
from trtcal.samples.batches import Batches, Stream
from trtcal.samples.preprocess import from_pixels, preset
from trtcal.samples.raydata import RayData
from trtcal.spec import InputSpec

X = InputSpec("x", np.dtype(np.float32), (3,))
PIXELS = InputSpec("pixels", np.dtype(np.float32), (3, 4, 5))


class Rows:
    def __init__(self, columns: Mapping[str, Any], fails: Exception | None = None) -> None:
        self._columns, self._fails = columns, fails
        self.context = SimpleNamespace(execution_options=SimpleNamespace(preserve_order=False))

    def columns(self) -> list[str]:
        return list(self._columns)

    def iter_batches(self, *, batch_size: int, batch_format: str) -> Iterator[dict[str, Any]]:
        assert batch_format == "numpy"
        assert self.context.execution_options.preserve_order
        for first in range(0, len(next(iter(self._columns.values()))), batch_size):
            yield {name: column[first : first + batch_size] for name, column in self._columns.items()}
        if self._fails is not None:
            raise self._fails


def ragged(*arrays: np.ndarray) -> np.ndarray:
    """As Ray Data gives pictures of several sizes."""
    column = np.empty(len(arrays), object)
    column[:] = arrays
    return column


def test_rows_are_samples_with_labels_and_names() -> None:
    x = np.arange(300, dtype=np.float32).reshape(100, 3)
    paths = np.array([f"{number:03}.png" for number in range(100)])
    source = RayData(Rows({"x": x, "label": np.arange(100), "path": paths}), inputs=[X])
    assert isinstance(source, Stream)
    batches = Batches(source, 8)
    assert np.array_equal(np.concatenate([batch["x"][: batch.valid] for batch in batches]), x)
    assert batches.labels == tuple(range(100))
    assert batches.sample_names == tuple(paths)
    plain = RayData(Rows({"x": x}), inputs=[X])
    assert Batches(plain, 8).sample_names[65] == "row 65"


def test_the_only_column_feeds_the_only_input_and_others_are_named() -> None:
    x = np.ones((2, 3), np.float32)
    assert next(RayData(Rows({"item": x, "label": [1, 2]}), inputs=[X]).blocks())[1].label == 2
    named = RayData(Rows({"a": x, "b": x * 2}), inputs=[X], columns={"x": "b"})
    assert next(named.blocks())[0].arrays["x"].tolist() == [2, 2, 2]
    for columns, message in ((None, "no column 'x' for input 'x', it has a, b"), ({"x": "c"}, "no column 'c'")):
        with pytest.raises(DataError, match=message):
            RayData(Rows({"a": x, "b": x}), inputs=[X], columns=columns)


def test_pictures_are_prepared_as_those_of_a_folder() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((9, 7, 3), (5, 6, 1), (4, 4), (8, 8, 4))]
    prepare = preset("imagenet", size=(4, 5))
    (block,) = RayData(Rows({"image": ragged(*pictures)}), inputs=[PIXELS], preprocess=prepare).blocks()
    for picture, sample in zip(pictures, block, strict=True):
        squeezed = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
        assert np.array_equal(sample.arrays["pixels"], prepare(Image.fromarray(squeezed).convert("RGB")))


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros(4, np.uint8)]
)
def test_what_is_no_picture_is_named(picture: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected pixels: uint8"):
        from_pixels(picture)
    source = RayData(Rows({"image": ragged(picture)}), inputs=[PIXELS], preprocess=preset("raw", size=(4, 5)))
    with pytest.raises(DataError, match=r"^rows of a Ray Rows: row 0: .*expected pixels"):
        list(source.blocks())


def test_what_goes_wrong_in_ray_or_does_not_fit_is_a_data_error() -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(DataError, match="rows of a Ray Rows: RuntimeError: a node is gone"):
        list(RayData(Rows({"x": x}, RuntimeError("a node is gone\nand more")), inputs=[X]).blocks())
    with pytest.raises(DataError, match=r"'row 0', input 'x': shape \(2,\), expected \(3,\)"):
        list(RayData(Rows({"x": x[:, :2]}), inputs=[X]).blocks())
    two = [X, InputSpec("y", np.dtype(np.float32), (3,))]
    with pytest.raises(DataError, match="a preset prepares pictures for one input, the model has 2"):
        RayData(Rows({"x": x, "y": x}), inputs=two, preprocess=preset("raw", size=(4, 5)))

"""The embedded default: a small classifier trained on Fashion-MNIST, and images to calibrate and judge it on.

``model.onnx`` takes ``image``, (N, 1, 28, 28) float32 in 0..1, and gives ``logits``, (N, 10). ``images.npz``
holds images of the data set's two splits. ``scripts/train_demo_model.py`` made both; NOTICE holds the
data's licence.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def model_path() -> Path:
    """The path of ``model.onnx``."""
    return _file("model.onnx")


def calibration_images() -> NDArray[np.float32]:
    """512 training images, (512, 1, 28, 28) in 0..1; the classes take turns, so every batch holds all."""
    return _to_input(_array("calibration"))


def labelled_images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """2000 test images, (2000, 1, 28, 28) in 0..1, and their labels, (2000,), the data set's 0 to 9."""
    return _to_input(_array("labelled")), _array("labels").astype(np.int64)


def _file(name: str) -> Path:
    return Path(str(resources.files(__name__) / name))


def _array(name: str) -> np.ndarray:
    with np.load(_file("images.npz"), allow_pickle=False) as arrays:
        array: np.ndarray = arrays[name]
    return array


def _to_input(images: np.ndarray) -> NDArray[np.float32]:
    # A division by 255 rounds correctly; the product with 1/255 would move some grey levels by one ulp.
    return images[:, np.newaxis].astype(np.float32) / np.float32(255)

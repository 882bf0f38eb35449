"""What the tests on a real GPU need, and how they say what is missing."""

from __future__ import annotations

import functools

import pytest

from calibrators import CalibratorsUnavailable, versions
from calibrators.device_kernels import Observer
from calibrators.memory import open_memory
from trtcal.errors import BackendError

HOW = "run on a GPU: pip install 'trtcal[cuda,tensorrt]' pytest hypothesis && python -m pytest tests/gpu -rs"


@functools.cache
def without_gpu() -> str | None:
    """Why there is no device memory here; None where there is."""
    try:
        open_memory().close()
    except BackendError as error:
        return f"{error}; {HOW}"
    return None


@functools.cache
def without_kernels() -> str | None:
    """Why no kernel of ours runs here; None where it does."""
    if without_gpu() is not None:
        return without_gpu()
    memory = open_memory()
    try:
        Observer(memory).close()
    except BackendError as error:
        return f"{error}; {HOW}"
    finally:
        memory.close()
    return None


@functools.cache
def without_tensorrt() -> str | None:
    """Why no engine is built here, GPU or none; None where TensorRT has calibrators."""
    try:
        versions.base_class("EntropyCalibration2")
    except CalibratorsUnavailable as error:
        return f"{error}; {HOW}"
    return None


def needs(*missing: str | None) -> pytest.MarkDecorator:
    """Reasons -> a mark that skips, with the first of them that there is."""
    reason = next(filter(None, missing), None)
    return pytest.mark.skipif(reason is not None, reason=str(reason))

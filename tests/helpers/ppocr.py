"""Real models from the wheel rapidocr."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def recogniser() -> Path:
    spec = find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel rapidocr is not installed: pip install --no-deps rapidocr")
    found = sorted(Path(spec.submodule_search_locations[0]).rglob("*rec*.onnx"))
    if not found:
        pytest.skip("this rapidocr brings no recogniser")
    return found[0]

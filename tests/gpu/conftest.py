from __future__ import annotations

from pathlib import Path

import pytest
from fakecuda.models import onnx_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_model())
    return path

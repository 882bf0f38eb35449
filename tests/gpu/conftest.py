from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from device import test_doubles, without_tensorrt
from fakecuda.models import onnx_model

from calibrators.memory import DeviceMemory, available, open_memory

if without_tensorrt() is None and "libnvinfer.so.10" in test_doubles():
    # The double of TensorRT computes nothing by itself; with these it does what is believed of TensorRT.
    from fakecuda import ortcalibrate, ortexec

    ortcalibrate.install()
    ortexec.install()


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("beyond_doubles")
    if mark is not None and test_doubles():
        pytest.skip(f"the test doubles {mark.args[0]}")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_model())
    return path


@pytest.fixture(params=[name for name in available() if name != "host"])
def memory(request: pytest.FixtureRequest) -> Iterator[DeviceMemory]:
    made = open_memory(request.param)
    yield made
    made.close()

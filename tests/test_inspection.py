from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibrators.inspection import latency, layers_per_precision
from calibrators.memory import HostMemory
from trtcal.errors import BackendError

TRT = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON=1), TensorIOMode=SimpleNamespace(INPUT=0))


def engine(text: str) -> Any:
    """An engine whose inspector answers with this."""
    inspector = SimpleNamespace(get_engine_information=lambda _: text)
    return SimpleNamespace(create_engine_inspector=lambda: inspector)


def described(*formats: str) -> str:
    return json.dumps({"Layers": [{"Name": f, "Outputs": [{"Format/Datatype": f}]} for f in formats]})


def test_layers_are_counted_by_the_type_of_their_first_output() -> None:
    text = described(
        "Thirty-two wide channel vectorized row major Int8 format",
        "Int8 NC/32HW32",
        "Row major linear FP16 format",
        "Half",
        "Row major linear FP32",
        "Float",
        "Int32",
        "Something new",
    )
    assert layers_per_precision(TRT, engine(text)) == {"int8": 2, "fp16": 2, "fp32": 2, "int32": 1, "other": 1}


@pytest.mark.parametrize("text", ["", "null", "{}", '{"Layers": ["conv", "relu"]}', '{"Layers": []}', "[]"])
def test_an_inspector_that_does_not_tell_is_no_error(text: str) -> None:
    assert layers_per_precision(TRT, engine(text)) is None


class Context:
    """An execution context for one dynamic input and one output, which runs nothing."""

    def __init__(self, runs: bool = True) -> None:
        self.runs, self.count = runs, 0
        self.shape: tuple[int, ...] = (-1, 4)
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape if name == "x" else (self.shape[0], 2)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.count += 1
        return self.runs


def runnable(context: Context | None) -> Any:
    return SimpleNamespace(
        create_execution_context=lambda: context,
        num_io_tensors=2,
        get_tensor_name=lambda number: "xy"[number],
        get_tensor_mode=lambda name: 0 if name == "x" else 1,
        get_tensor_shape=lambda name: (-1, 4) if name == "x" else (-1, 2),
        get_tensor_dtype=lambda name: SimpleNamespace(name="FLOAT"),
    )


def test_latency_runs_on_buffers_of_the_right_size_and_frees_them() -> None:
    class Sizes(HostMemory):
        sizes: list[int] = []  # noqa: RUF012

        def allocate(self, nbytes: int) -> int:
            self.sizes.append(nbytes)
            return super().allocate(nbytes)

    memory, context = Sizes(), Context()
    found = latency(TRT, runnable(context), {"x": (8, 4)}, runs=20, memory=memory)
    assert memory.sizes == [8 * 4 * 4, 8 * 2 * 4]
    assert memory.live == 0
    assert context.count == 22
    assert found.runs == 20
    assert 0 <= found.median <= found.p99
    assert np.isfinite(found.p99)


def test_an_engine_that_does_not_run_is_an_error_and_frees_its_buffers() -> None:
    memory = HostMemory()
    with pytest.raises(BackendError, match="cannot run the engine"):
        latency(TRT, runnable(Context(runs=False)), {"x": (8, 4)}, memory=memory)
    assert memory.live == 0


def test_an_engine_without_a_context_is_an_error() -> None:
    with pytest.raises(BackendError, match="no execution context"):
        latency(TRT, runnable(None), {}, memory="host")

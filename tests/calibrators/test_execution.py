"""What running an engine asks of TensorRT is there in every version: looked up in the genuine bindings."""

from __future__ import annotations

import ast
from pathlib import Path

import fakecuda
import pytest

SOURCE = Path(__file__).parents[2] / "calibrators" / "execution.py"
OWNERS = {
    "self.engine": "ICudaEngine",
    "self._context": "IExecutionContext",
    "context": "IExecutionContext",
    "self._runtime": "Runtime",
    "self._trt": "",
    "self._trt.TensorIOMode": "TensorIOMode",
    "self._trt.TensorLocation": "TensorLocation",
    "self._trt.TensorFormat": "TensorFormat",
}
ASK = """
import json, sys
try:
    import tensorrt as trt
except ModuleNotFoundError:
    import tensorrt_bindings as trt
asked = json.loads({asked!r})
holds = lambda owner, name: hasattr(getattr(trt, owner) if owner else trt, name)
print(json.dumps([f"{{owner}}.{{name}}" for owner, name in asked if not holds(owner, name)]))
"""


def asked() -> list[tuple[str, str]]:
    """(class of TensorRT's, name) that the source uses."""
    found = set()
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in OWNERS:
            found.add((OWNERS[ast.unparse(node.value)], node.attr))
    return sorted(found)


def program() -> str:
    import json

    return ASK.format(asked=json.dumps(asked()))


def test_the_reader_of_the_source_finds_what_it_uses() -> None:
    found = asked()
    for entry in (
        ("ICudaEngine", "get_tensor_profile_shape"),
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "set_input_shape"),
        ("Runtime", "deserialize_cuda_engine"),
        ("TensorFormat", "LINEAR"),
        ("", "init_libnvinfer_plugins"),
    ):
        assert entry in found


@pytest.mark.slow(reason="a process per TensorRT")
@pytest.mark.parametrize("trt", [*fakecuda.TENSORRT_10, fakecuda.TENSORRT_11])
def test_tensorrt_10_and_11_have_every_name_that_is_used(tmp_path: Path, trt: str) -> None:
    assert fakecuda.run(program(), trt=trt, cwd=tmp_path) == []


@pytest.mark.slow(reason="a process per TensorRT")
def test_tensorrt_8_has_every_name_that_is_used(tmp_path: Path) -> None:
    assert fakecuda.run_on_tensorrt8(program(), tmp_path) == []


@pytest.mark.slow(reason="a process per TensorRT")
def test_an_allocator_is_called_by_tensorrt_8_as_by_10(tmp_path: Path) -> None:
    """By its C++ trampolines, the slots of which are 1 (reallocateOutput) and 2 (notifyShape) before TensorRT 10."""
    found = fakecuda.run_on_tensorrt8(
        """
import ctypes as C
from calibrators.buffers import Buffers
from calibrators.execution import OutputMemory
from calibrators.memory import HostMemory
from fakecuda.report import report
memory = HostMemory()
allocator = OutputMemory(Buffers(memory, slots=1))
P = C.c_void_p
this = P.from_address(id(allocator) + 16).value
table = P.from_address(this).value
again = C.CFUNCTYPE(P, P, C.c_char_p, P, C.c_uint64, C.c_uint64)(P.from_address(table + 8).value)
class Dims(C.Structure): _fields_ = [("nb", C.c_int32), ("d", C.c_int32 * 8)]
tell = C.CFUNCTYPE(None, P, C.c_char_p, C.POINTER(Dims))(P.from_address(table + 16).value)
address = again(this, b"y", None, 24, 256)
tell(this, b"y", Dims(2, (C.c_int32 * 8)(3, 2)))
found = allocator.found["y"]
kept = again(this, b"y", address, 8, 256)
memory.allocate = lambda nbytes: 1 / 0
nothing = again(this, b"z", None, 8, 256)
same = found == (address, (3, 2)) and kept == address
report(same=same, live=memory.live, nothing=nothing, error=type(allocator.error).__name__)
""",
        tmp_path,
    )
    assert found == {"same": True, "live": 1, "nothing": None, "error": "ZeroDivisionError"}

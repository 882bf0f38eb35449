from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fakecuda
import numpy as np
import pytest

from calibrators import versions
from trtcal.errors import BackendError


def module(version: str, **names: Any) -> ModuleType:
    made = ModuleType("tensorrt")
    made.__dict__.update(__version__=version, **names)
    return made


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("8.6.1", (8, 6, 1)), ("10.16.1.11", (10, 16, 1)), ("10.7.0.post1", (10, 7, 0)), ("8.6", (8, 6, 0))],
)
def test_versions_are_compared_as_numbers(text: str, numbers: tuple[int, int, int]) -> None:
    assert versions.version(module(text)) == numbers


def test_a_version_is_spelt_as_the_header_of_a_cache_wants_it() -> None:
    assert versions.dotted(module("10.16.1.11")) == "10.16.1"


def test_int64_comes_with_tensorrt_10() -> None:
    assert [versions.has_int64(module(v)) for v in ("8.6.1", "10.0.1", "11.0.0")] == [False, True, True]


@pytest.mark.parametrize("version", ["7.2.3", "8.4.1"])
def test_a_tensorrt_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(versions, "tensorrt", lambda: module(version, IInt8EntropyCalibrator2=object))
    with pytest.raises(versions.CalibratorsUnavailable, match=f"{version} is older than 8.5"):
        versions.base_class("EntropyCalibration2")


@pytest.mark.parametrize(("version", "flags"), [("8.5.1", 1), ("8.6.1", 1), ("10.3.0", 0)])
def test_networks_have_explicit_batch_on_every_version(version: str, flags: int) -> None:
    asked: list[int] = []
    builder = SimpleNamespace(create_network=asked.append)
    versions.create_network(module(version, NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0)), builder)
    assert asked == [flags]


def test_a_flag_that_a_version_lacks_is_named() -> None:
    with pytest.raises(BackendError, match="has no builder flag INT8; networks are strongly typed"):
        versions.set_flag(module("11.0.0", BuilderFlag=SimpleNamespace()), None, "INT8")


def test_an_input_that_cannot_be_fed_is_named() -> None:
    with pytest.raises(BackendError, match="of type FP8"):
        versions.numpy_dtype(module("10.3.0"), SimpleNamespace(name="FP8"))


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_every_type_that_is_fed_is_one_of_numpys_with_the_size_tensorrt_gives_it(trt: str) -> None:
    found = fakecuda.run(
        """
        import tensorrt_bindings as trt
        from calibrators import versions
        from fakecuda.report import report
        names = ("FLOAT", "HALF", "INT8", "INT32", "INT64", "BOOL", "UINT8", "BF16")
        kinds = [getattr(trt, f"{n}", None) or getattr(trt.DataType, n) for n in names]
        sizes = [[versions.numpy_dtype(trt, kind), versions.io_dtype(kind), kind.itemsize] for kind in kinds]
        report(found=[[name, *size] for name, size in zip(names, sizes)])
        """,
        trt=trt,
    )
    for name, dtype, in_an_engine, true_size in found["found"]:
        assert in_an_engine is None if name == "BF16" else np.dtype(in_an_engine).itemsize == true_size
        assert np.dtype(dtype).itemsize == (4 if name in ("HALF", "BF16") else true_size)


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_the_bases_are_tensorrts_and_answer_with_their_algorithm(trt: str) -> None:
    found = fakecuda.run(
        """
        import tensorrt_bindings as trt
        from calibrators import versions
        from fakecuda.report import report
        report(same=[versions.base_class(a) is getattr(trt, n) for a, n in versions.BASES.items()])
        """,
        trt=trt,
    )
    assert found == {"same": [True] * 4}


class Config:
    """A builder configuration as far as sources of tactics go: cuBLAS, cuBLASLt, cuDNN, and two of TensorRT's own."""

    def __init__(self) -> None:
        self.sources = 0b11111

    def get_tactic_sources(self) -> int:
        return self.sources

    def set_tactic_sources(self, sources: int) -> bool:
        self.sources = sources
        return True


SOURCES = SimpleNamespace(CUBLAS=0, CUBLAS_LT=1, CUDNN=2, EDGE_MASK_CONVOLUTIONS=3, JIT_CONVOLUTIONS=4)


@pytest.mark.parametrize(
    ("version", "whole", "left"),
    [
        ("8.6.0", (), 0b11000),
        ("8.6.0", ("libcudnn.so.8",), 0b11100),
        ("8.5.2", ("libcublasLt.so.11", "libcudnn.so.8"), 0b11111),
        ("8.6.1", ("libcublasLt.so.12",), 0b11011),
        ("10.3.0", (), 0b11111),
    ],
)
def test_tensorrt_8_does_without_tactics_of_libraries_that_are_not_whole(
    monkeypatch: pytest.MonkeyPatch, version: str, whole: tuple[str, ...], left: int
) -> None:
    monkeypatch.setattr(versions, "_has", lambda library, function: library in whole)
    config = Config()
    versions.leave_out_tactics(module(version, TacticSource=SOURCES), config)
    assert config.sources == left


@pytest.mark.slow(reason="needs the real TensorRT 8")
def test_stubs_of_cublas_and_cudnn_are_told_from_the_libraries(tmp_path: Path) -> None:
    """The stubs are those that the tests of TensorRT 8.6.0 put in the libraries' place; libm stands for a whole one."""
    found = fakecuda.run_on_tensorrt8(
        """
import ctypes
import tensorrt as trt
from calibrators import versions
from fakecuda.report import report
ctypes.CDLL("libcudnn.so.8")
report(stubs=[versions._has(name, function) for names, function in versions._LIBRARIES.values() for name in names],
       whole=versions._has("libm.so.6", "cos"), missing=versions._has("no.so", "cos"),
       settable=hasattr(trt.IBuilderConfig, "set_tactic_sources") and hasattr(trt.IBuilderConfig, "get_tactic_sources"),
       known=[hasattr(trt.TacticSource, name) for name in versions._LIBRARIES])
""",
        tmp_path,
    )
    assert found.pop("stubs") == [False] * 5
    assert found == {"whole": True, "missing": False, "settable": True, "known": [True] * 3}


def test_what_numpy_has_no_type_for_cannot_be_fed() -> None:
    kinds = ("FLOAT", "HALF", "INT8", "INT32", "INT64", "BOOL", "UINT8", "BF16", "FP8", "INT4")
    found = [versions.io_dtype(SimpleNamespace(name=kind)) for kind in kinds]
    assert found == ["float32", "float16", "int8", "int32", "int64", "bool", "uint8", None, None, None]

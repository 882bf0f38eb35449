from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import fakecuda
import pytest

import calibrators

CLASSES = [name for name in calibrators.__all__ if name.endswith("Calibrator")]


def test_the_public_names_are_these() -> None:
    assert calibrators.__all__ == [
        "CachedCalibrator",
        "CalibratorsUnavailable",
        "Engine",
        "EntropyCalibrator",
        "LegacyCalibrator",
        "MinMaxCalibrator",
        "PercentileCalibrator",
        "ThresholdCalibrator",
        "build_engine",
        "collect_on_gpu",
    ]
    assert set(calibrators.__all__) <= set(dir(calibrators))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'calibrators' has no attribute 'Entropy'"):
        calibrators.Entropy  # noqa: B018
    assert not hasattr(calibrators, "Entropy")


def test_importing_loads_neither_tensorrt_nor_cuda() -> None:
    program = "import sys, calibrators; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not {"tensorrt", "tensorrt_bindings", "cuda", "pycuda", "torch", "onnx"} & set(done.stdout.split())


def test_build_engine_is_the_function_of_its_module() -> None:
    assert calibrators.build_engine is import_module("calibrators.engine").build_engine


PROGRAM = """
import sys, calibrators
from fakecuda.report import failure, report
from trtcal.errors import TrtcalError
def ask(name):
    namespace = {}
    exec(f"from calibrators import {name}", namespace)
    assert namespace[name].__module__.startswith("calibrators.")
results = {name: failure(lambda: ask(name)) for name in sys.argv[1:]}
error = calibrators.CalibratorsUnavailable
report(**results, kinds=[issubclass(error, kind) for kind in (ImportError, TrtcalError)])
"""


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_every_class_is_there_on_tensorrt_10(trt: str) -> None:
    found = fakecuda.run(PROGRAM, *CLASSES, trt=trt)
    assert {name: found[name] for name in CLASSES} == dict.fromkeys(CLASSES)


def test_on_tensorrt_11_asking_for_a_class_says_what_to_do() -> None:
    found = fakecuda.run(PROGRAM, *CLASSES, trt=fakecuda.TENSORRT_11)
    assert found.pop("kinds") == [True, True]
    for name in ("EntropyCalibrator", "LegacyCalibrator", "MinMaxCalibrator"):
        assert found[name]["type"] == "CalibratorsUnavailable"
        assert found[name]["message"] == (
            f"TensorRT {fakecuda.TENSORRT_11} has no INT8 calibrators (removed in 11); put the ranges into the "
            f"model as Q/DQ with `trtcal qdq`, or install tensorrt>=8.5,<11"
        )


def test_the_classes_that_choose_their_base_say_the_same_when_they_are_made() -> None:
    found = fakecuda.run(
        """
        from calibrators import CachedCalibrator, PercentileCalibrator
        from fakecuda.report import failure, report
        cache = b"TRT-8601-EntropyCalibration2\\nx: 3c010a14\\n"
        own = failure(lambda: PercentileCalibrator([], model="m"))
        report(cached=failure(lambda: CachedCalibrator(cache)), own=own)
        """,
        trt=fakecuda.TENSORRT_11,
    )
    for error in found.values():
        assert error["type"] == "CalibratorsUnavailable"
        assert "trtcal qdq" in error["message"]


def test_without_tensorrt_asking_for_a_class_says_what_to_do() -> None:
    found = fakecuda.run(PROGRAM, "EntropyCalibrator", trt=None)
    assert found["EntropyCalibrator"]["type"] == "CalibratorsUnavailable"
    assert "install tensorrt>=8.5,<11" in found["EntropyCalibrator"]["message"]
    assert "trtcal.calibrate()" in found["EntropyCalibrator"]["message"]


def test_without_tensorrt_hasattr_and_help_work() -> None:
    found = fakecuda.run(
        """
        import calibrators, pydoc
        from fakecuda.report import failure, report
        report(there=[hasattr(calibrators, name) for name in ("EntropyCalibrator", "CalibratorsUnavailable")],
               page="calibrators" in pydoc.render_doc(calibrators),
               asked=failure(lambda: calibrators.EntropyCalibrator))
        """,
        trt=None,
    )
    assert found["there"] == [False, True]
    assert found["page"] is True
    assert found["asked"]["type"] == "CalibratorsMissing"
    assert "install tensorrt>=8.5,<11" in found["asked"]["message"]


def test_a_tensorrt_that_cannot_be_loaded_is_told_from_one_that_is_missing() -> None:
    found = fakecuda.run(PROGRAM, "EntropyCalibrator", LD_LIBRARY_PATH="")
    assert found["EntropyCalibrator"]["type"] == "CalibratorsUnavailable"
    assert "installed but cannot be loaded" in found["EntropyCalibrator"]["message"]
    assert "LD_LIBRARY_PATH" in found["EntropyCalibrator"]["message"]


def test_every_guarantee_on_the_page_names_a_test_that_exists() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "calibrators.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) > 20
    tests = {path.name: path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py")}
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in tests[file]]
    assert not missing

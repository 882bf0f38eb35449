"""In the process that runs pytest for scripts/gpu_acceptance.py: a line of JSON for everything that happens.

``$GPU_ACCEPTANCE`` says where to (``events``), who started it (``parent``), which tests are ``done``, until when tests
are begun (``deadline``, seconds since 1970) and whether test doubles are expected (``dry_run``).
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib.metadata
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

import device
import pytest

from calibrators import versions

PLAN: dict[str, Any] = json.loads(os.environ["GPU_ACCEPTANCE"])
PACKAGES = ("numpy", "onnx", "onnxruntime", "numba", "cuda-bindings", "nvidia-cuda-nvrtc-cu12", "polygraphy", "pytest")
ASSUMED = 10.0  # seconds of a test without the mark that says how many


def tell(**event: Any) -> None:
    with Path(PLAN["events"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(event, default=str) + "\n")


def seconds_of(item: pytest.Item) -> float:
    mark = item.get_closest_marker("seconds")
    return float(mark.args[0]) if mark else ASSUMED


def pytest_configure() -> None:
    if sys.platform == "linux":  # with the parent's end, however it comes: who hangs and is alone keeps the GPU
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != PLAN["parent"]:  # it was gone before that could be said
        os._exit(1)
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def pytest_sessionstart() -> None:
    host = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    found: dict[str, Any] = {"gpu": None, "tensorrt": None, "host": host | dict(_installed())}
    try:
        found["gpu"] = device.describe()  # before TensorRT, which crashes without a driver
        missing = device.without_tensorrt()
        found["tensorrt"] = None if missing else versions.tensorrt().__version__
        found["doubles"] = device.test_doubles()
        if PLAN["dry_run"] and not found["doubles"]:
            found["error"] = "--dry-run was asked for, and the libraries here are real; leave it out to measure"
    except device.NoGpu as error:
        found["error"] = str(error)
    tell(machine=found)
    if "error" in found:
        pytest.exit(found["error"], 2)


def _installed() -> list[tuple[str, str]]:
    found = []
    for package in PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tell(collected=[[item.nodeid, seconds_of(item)] for item in items])
    items[:] = [item for item in items if item.nodeid not in set(PLAN["done"])]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() + seconds_of(item) > PLAN["deadline"]:
        item.user_properties.append(("not run", True))
        pytest.skip(f"it may take {seconds_of(item):g} s, and so many are not left")
    tell(begin=item.nodeid)


_reports: list[pytest.TestReport] = []  # of the test that runs: setup, call, teardown


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _reports.append(report)


def pytest_runtest_logfinish(nodeid: str) -> None:
    failed = [report.longreprtext for report in _reports if report.failed]
    skipped = [report.longrepr for report in _reports if report.skipped]
    facts, doubles = dict(_reports[-1].user_properties), device.test_doubles()
    result: dict[str, Any] = {"seconds": round(sum(report.duration for report in _reports), 2)}
    _reports.clear()
    if failed:
        result |= {"outcome": "failed", "error": "\n".join(failed)}
    elif skipped:  # a place, a line and the reason
        result |= {"outcome": "skipped", "why": str(skipped[0][2] if isinstance(skipped[0], tuple) else skipped[0])}
    else:
        result["outcome"] = "not measured" if doubles else "passed"
    if facts.pop("not run", False):
        result["outcome"] = "not run"
    gone = device.lost() if failed else None
    if gone:
        result["error"] += f"\n{gone}; what follows runs in a new process"
    tell(end=nodeid, machine={"doubles": doubles}, result=result | {"facts": facts})
    if gone:
        os._exit(1)


def pytest_sessionfinish() -> None:
    tell(finished=True)

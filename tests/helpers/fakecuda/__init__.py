"""Runs test programs over the fake CUDA driver, each in a process of its own.

A process of its own, because the fakes are found through LD_LIBRARY_PATH, which is read when a process starts, and
because one process can hold one version of TensorRT. Inside the program, `driven.py` offers a model, a build and the
counters of the fake driver.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NoReturn

from fakecuda import setup_env

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
TENSORRT_10 = ("10.0.1", "10.3.0", "10.16.1.11")
TENSORRT_11 = "11.4.0.106"
# Where a test does not ask for more; 10.0.1 and 10.3.0 have no wheels for Python 3.13.
TENSORRT = "10.3.0" if sys.version_info < (3, 13) else "10.16.1.11"


_DRIVEN = """
import os, sys, threading
import numpy as np
from fakecuda.driven import *
from calibrators import (
    CachedCalibrator, EntropyCalibrator, LegacyCalibrator, MinMaxCalibrator, PercentileCalibrator, build_engine
)
"""


def drive(folder: Path, program: str, *arguments: str, **settings: Any) -> Any:
    """As `run`, in a folder, for a program that builds: all of `driven.py` and `calibrators` is imported."""
    return run(_DRIVEN + textwrap.dedent(program), *arguments, cwd=folder, **settings)


def start_driven(
    folder: Path, program: str, *arguments: str, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """As `drive`, for a program that may fail -> the finished process."""
    return start(_DRIVEN + textwrap.dedent(program), *arguments, cwd=folder, **settings)


def environment(
    *, trt: str | None = TENSORRT, memory: str = "cuda", full_name: bool = False, kernels: bool = False, **extra: str
) -> dict[str, str]:
    """Variables for a process with these bindings (None: no TensorRT) and this memory backend.

    With ``full_name`` the bindings can be imported as ``tensorrt``, as where all of TensorRT is installed, and so can
    Polygraphy, which knows no other name. With ``kernels`` there is a compiler for kernels, and the driver runs them.
    Skips the test when a part cannot be had.
    """
    try:
        paths: list[Path | None] = [ROOT, HERE.parent, setup_env.bindings(trt) if trt else None]
        paths += [HERE / "full_name", setup_env.polygraphy()] if full_name else []
        paths += [setup_env.cuda_bindings()] if memory == "cuda" else []
        paths += [setup_env.pycuda()] if memory == "pycuda" else []
        paths += [setup_env.nvrtc()] if kernels else []
        extra |= {"FAKECUDA_KERNELS": str(setup_env.kernels())} if kernels else {}
        libraries = setup_env.libraries()
    except setup_env.Unavailable as error:
        _skip(error)
    drop = ("TRTFAKE_", "FAKECUDA_", "TRTCAL_", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    kept.update(
        PYTHONPATH=os.pathsep.join(str(path) for path in paths if path),
        LD_LIBRARY_PATH=str(libraries),
        TRTCAL_MEMORY=memory,
        PYTHONDONTWRITEBYTECODE="1",
    )
    return {**kept, **extra}


def _skip(reason: Exception) -> NoReturn:
    import pytest  # not at the top: test programs import this package too

    pytest.skip(str(reason))


def start(
    program: str, *arguments: str, cwd: Path | None = None, timeout: float = 120, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Python source (or the path of a script) and its arguments -> the finished process."""
    command = [program] if program.endswith(".py") else ["-c", textwrap.dedent(program)]
    return subprocess.run(
        [sys.executable, *command, *arguments],
        env=environment(**settings), cwd=cwd, timeout=timeout, capture_output=True, text=True,
    )  # fmt: skip


def run(program: str, *arguments: str, **settings: Any) -> Any:
    """As `start`, for a program that must succeed and prints JSON as its last line -> what it printed."""
    done = start(program, *arguments, **settings)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_on_tensorrt8(program: str, folder: Path) -> Any:
    """As `run`, on the real TensorRT 8.6.0: no fake is near it, and no driver, so nothing can be built."""
    try:
        python, packages = setup_env.tensorrt8()
    except setup_env.Unavailable as error:
        _skip(error)
    paths = os.pathsep.join(map(str, (ROOT, HERE.parent, packages)))
    env = {**os.environ, "PYTHONPATH": paths, "LD_LIBRARY_PATH": str(packages / "lib"), "TRTCAL_MEMORY": "host"}
    done = subprocess.run(
        [python, "-c", textwrap.dedent(program)], env=env, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.strip().splitlines()[-1])

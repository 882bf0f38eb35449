"""Builds what the calibrator tests stand on; each part once, into a cache folder.

    python tests/helpers/fakecuda/setup_env.py               the fake libraries and small packages
    python tests/helpers/fakecuda/setup_env.py --pycuda      PyCUDA too: compiles for one to three minutes, needs g++
    python tests/helpers/fakecuda/setup_env.py --tensorrt8   the real TensorRT 8.6.0 too: Python 3.10, 820 MB

The folder is $TRTCAL_TEST_CACHE, by default trtcal-test-cache under the system's temporary folder. The tests
call the same functions, so running this file first is never necessary, except for the last two.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

HERE = Path(__file__).resolve().parent
SOURCES = ("fakecuda.c", "trtfake.c", "trtstub.c", "build.sh")
BINDINGS = ("10.0.1", "10.3.0", "10.16.1.11", "11.4.0.106")
PYCUDA = "2026.1"


class Unavailable(Exception):
    """A part that cannot be had here; the message says why and what would help."""


def remembered(function: Callable[P, T]) -> Callable[P, T]:
    """The function, asked once for the same arguments; a part that cannot be had is not tried again by every test."""
    answers: dict[object, T | Unavailable] = {}

    @wraps(function)
    def ask(*args: P.args, **kwargs: P.kwargs) -> T:
        key = args, tuple(kwargs.items())
        if key not in answers:
            try:
                answers[key] = function(*args, **kwargs)
            except Unavailable as error:
                answers[key] = error
        answer = answers[key]
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    return ask


def cache_dir() -> Path:
    """Folder that keeps what was built; per Python version, because extensions differ."""
    root = os.environ.get("TRTCAL_TEST_CACHE") or os.path.join(tempfile.gettempdir(), "trtcal-test-cache")
    return Path(root) / f"cp{sys.version_info.major}{sys.version_info.minor}"


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """``target``, made by ``make(folder)`` if it is not there; appears complete or not at all."""
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            part = Path(scratch) / "part"
            part.mkdir()
            make(part)
            try:
                part.rename(target)
            except OSError:  # another test run was faster
                if not target.is_dir():
                    raise
    return target


def _run(command: list[str], what: str, **env: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    if done.returncode:
        raise Unavailable(f"{what}: {' '.join((done.stderr or done.stdout).strip().splitlines()[-1:])}")


def _pip(target: Path, *arguments: str, **env: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries=1"]
    _run([*command, "--target", str(target), *arguments], f"pip install {' '.join(arguments)} failed", **env)


@remembered
def libraries() -> Path:
    """Folder with the fake libcuda, the fake TensorRT 10 and the import stubs for TensorRT 11."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise Unavailable("the fake CUDA driver is for Linux on x86-64")
    if not shutil.which("gcc"):
        raise Unavailable("the fake CUDA driver needs gcc (Debian: apt-get install gcc libc6-dev)")
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES)).hexdigest()[:16]
    return once(
        cache_dir() / f"lib-{digest}",
        lambda part: _run(["sh", str(HERE / "build.sh"), str(part)], "the fake libraries do not compile"),
    )


@remembered
def bindings(version: str) -> Path:
    """Folder to put on sys.path for ``import tensorrt_bindings`` of this version (1.3 MB, no library)."""
    return once(
        cache_dir() / f"tensorrt-{version}",
        lambda part: _pip(part, "--no-deps", f"tensorrt_cu12_bindings=={version}"),
    )


@remembered
def cuda_bindings() -> Path | None:
    """Folder that holds cuda-bindings; None where it is installed already."""
    if importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings"):
        return None
    return once(cache_dir() / "cuda-bindings", lambda part: _pip(part, "cuda-bindings"))


@remembered
def kernels() -> Path:
    """The library that g++ makes of calibrators/kernels.cu: the same source, for the CPU."""
    if sys.platform != "linux" or not shutil.which("g++"):
        raise Unavailable("the CUDA kernel on the CPU needs Linux and g++ (Debian: apt-get install g++)")
    sources = [HERE / "shim.h", HERE / "kernels_host.cpp", HERE.parents[2] / "calibrators" / "kernels.cu"]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]

    def make(part: Path) -> None:
        # Every float operation rounded by itself, as the kernel asks of NVRTC.
        options = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-x", "c++", f"-I{sources[2].parent}"]
        _run(["g++", *options, str(sources[1]), "-o", str(part / "libkernels.so")], "the kernel does not compile")

    return once(cache_dir() / f"kernels-{digest}", make) / "libkernels.so"


@remembered
def nvrtc() -> Path | None:
    """Folder that holds NVIDIA's run-time compiler (90 MB), which needs no GPU; None where it is installed already."""
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cuda_nvrtc"):
        return None
    return once(cache_dir().parent / "nvrtc-12", lambda part: _pip(part, "--no-deps", "nvidia-cuda-nvrtc-cu12"))


@remembered
def polygraphy() -> Path | None:
    """Folder that holds Polygraphy; None where it is installed already."""
    if importlib.util.find_spec("polygraphy"):
        return None
    return once(cache_dir() / "polygraphy", lambda part: _pip(part, "--no-deps", "polygraphy"))


@remembered
def pycuda(*, build: bool = False) -> Path | None:
    """Folder that holds PyCUDA; None where it is installed already. Compiled only when told to."""
    if importlib.util.find_spec("pycuda"):
        return None
    target = cache_dir() / f"pycuda-{PYCUDA}"
    if not target.is_dir() and not build:
        raise Unavailable("PyCUDA is not installed; build it with: python tests/helpers/fakecuda/setup_env.py --pycuda")
    return once(target, _build_pycuda)


def _build_pycuda(part: Path) -> None:
    """PyCUDA from PyPI packages alone: CUDA's headers from a wheel, linked against the fake driver."""
    with tempfile.TemporaryDirectory() as home:
        headers = Path(home) / "headers"
        _pip(headers, "--no-deps", "nvidia-cuda-runtime==13.0.*", "nvidia-cuda-profiler-api==13.0.*")
        (Path(home) / ".aksetup-defaults.py").write_text(
            'CUDA_ROOT = "/nonexistent"\n'
            f'CUDA_INC_DIR = ["{headers / "nvidia" / "cu13" / "include"}"]\n'
            "CUDA_ENABLE_CURAND = False\n"
            f'CUDADRV_LIB_DIR = ["{libraries()}"]\n'
        )
        # A HOME of its own: PyCUDA's build reads its settings there and nowhere else.
        _pip(part, "--no-cache-dir", "--no-binary", "pycuda", f"pycuda=={PYCUDA}", HOME=home)


def python310() -> str:
    """An interpreter for TensorRT 8.6.0, whose wheels end at Python 3.10."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in (sys.executable, "python3.10", *map(str, sorted(pyenv.glob("3.10.*/bin/python")))):
        try:
            done = subprocess.run([candidate, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True)
        except OSError:
            continue
        if done.stdout.split() == [b"(3,", b"10)"]:
            return candidate
    raise Unavailable("the real TensorRT 8.6.0 needs Python 3.10")


@remembered
def tensorrt8(*, build: bool = False) -> tuple[str, Path]:
    """Interpreter, and the folder that holds the real TensorRT 8.6.0. Fetched only when told to."""
    target = cache_dir().parent / "tensorrt-8.6.0"
    if not target.is_dir() and not build:
        raise Unavailable(
            "the real TensorRT 8.6.0 (820 MB) is not here; fetch it with: python tests/helpers/fakecuda/setup_env.py --tensorrt8"
        )
    python = python310()
    return python, once(target, lambda part: _fetch_tensorrt8(python, part))


def _fetch_tensorrt8(python: str, part: Path) -> None:
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(part)]
    _run([*pip, "numpy<2"], "pip install numpy failed")
    _run([*pip, "--no-deps", "tensorrt==8.6.0"], "pip install tensorrt==8.6.0 failed")
    # Its plugin library links cuBLAS and cuDNN, two gigabytes, which only its plugins call. Libraries that hold the
    # names and nothing else let it be loaded.
    plugin = part / "tensorrt" / "libnvinfer_plugin.so.8"
    wanted: dict[str, list[str]] = {"libcublas.so.12": [], "libcublasLt.so.12": [], "libcudnn.so.8": []}
    listing = subprocess.run(["nm", "-D", "--undefined-only", plugin], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines():
        name, _, version = line.split()[-1].partition("@")
        if version.lstrip("@") in wanted:
            wanted[version.lstrip("@")].append(name)
    (part / "lib").mkdir()
    for soname, names in wanted.items():
        source, exports = part / "stub.c", part / "stub.map"
        source.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in names))
        exports.write_text(f"{soname} {{ global: *; }};")
        options = [f"-Wl,-soname,{soname}", f"-Wl,--version-script={exports}", "-o", str(part / "lib" / soname)]
        _run(["gcc", "-shared", "-fPIC", *options, str(source)], f"the stub of {soname} does not compile")


def main() -> int:
    parts: list[Callable[[], Path | None]] = [libraries, kernels, cuda_bindings, nvrtc, polygraphy]
    parts += [lambda version=version: bindings(version) for version in BINDINGS]  # type: ignore[misc]
    if "--pycuda" in sys.argv[1:]:
        parts.append(lambda: pycuda(build=True))
    if "--tensorrt8" in sys.argv[1:]:
        parts.append(lambda: tensorrt8(build=True)[1])
    failed = 0
    for part in parts:
        try:
            print(part() or "installed already")
        except Unavailable as error:
            failed += 1
            print(f"not available: {error}", file=sys.stderr)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())

"""What is installed here, what works, and what to do about what does not. Imports none of it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

CORE = ("trtcal", "numpy", "pillow", "onnx", "onnxruntime", "numba", "typer", "rich")
TENSORRT = (
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-cu12",
    "tensorrt-cu11",
    "tensorrt_cu12_bindings",
    "tensorrt-bindings",
)
MEMORY = ("cuda-bindings", "pycuda")


@dataclass(frozen=True)
class Examination:
    """Versions of packages (None: absent), the GPU if any, and advice, a sentence each."""

    python: str
    system: str
    packages: dict[str, str | None]
    gpu: str | None
    driver: str | None
    works: dict[str, bool]
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For a machine to read."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"Python {self.python} on {self.system}"]
        lines += [f"  {name:22} {found or 'not installed'}" for name, found in self.packages.items()]
        lines.append(f"GPU: {self.gpu or 'none found'}" + (f", driver {self.driver}" if self.driver else ""))
        lines += [f"  {'yes' if ok else 'no ':3}  {what}" for what, ok in self.works.items()]
        lines += [f"- {sentence}" for sentence in self.advice]
        return "\n".join(lines)


def examine() -> Examination:
    """Nothing -> what this machine can do with trtcal."""
    packages = {name: _version(name) for name in CORE}
    found = next(((name, number) for name in TENSORRT if (number := _version(name))), None)
    tensorrt = found[1] if found else None
    packages["tensorrt"] = tensorrt
    packages |= {name: _version(name) for name in MEMORY}
    gpu, driver = _gpu()
    memory = any(packages[name] for name in MEMORY)
    calibrators = tensorrt is not None and int(tensorrt.split(".")[0]) < 11
    works = {
        "calibrate on the CPU (trtcal calibrate)": True,
        "import TensorRT's calibrators (import calibrators)": calibrators,
        "build INT8 engines with them (trtcal build)": calibrators and memory and gpu is not None,
    }
    advice = []
    if tensorrt is None:
        advice.append(
            "No TensorRT: caches are made here and used where TensorRT is. To build engines here, "
            "pip install 'trtcal[tensorrt]' (on Jetson, JetPack brings it)."
        )
    elif not calibrators:
        advice.append(
            f"TensorRT {tensorrt} has no calibrators and no implicit INT8: use Q/DQ models there, "
            f"or TensorRT 8.5 to 10.16 for calibrators."
        )
    if gpu is None:
        advice.append("No NVIDIA GPU: engines are built on the machine they run on; the cache made here goes there.")
    if calibrators and not memory:
        advice.append("No package for device memory: pip install 'trtcal[cuda]' (wheels, no compiler).")
    if packages["numba"] is None:
        advice.append("No numba: statistics are the same but several times slower.")
    return Examination(
        platform.python_version(),
        f"{platform.system()} {platform.machine()}",
        packages,
        gpu,
        driver,
        works,
        tuple(advice),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu() -> tuple[str | None, str | None]:
    """Name of the first GPU and version of the driver, by asking NVIDIA's own tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, None
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None, None
    name, _, driver = answer.partition("\n")[0].partition(",")
    return name.strip() or None, driver.strip() or None

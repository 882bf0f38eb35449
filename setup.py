from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """The version stands in trtcal/__init__.py alone, and is read without importing the package."""
    text = (HERE / "trtcal" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('trtcal/__init__.py has no line __version__ = "..."')
    return match[1]


setup(
    name="trtcal",
    version=version(),
    description="Calibrate ONNX models for TensorRT INT8, on a GPU or on any CPU",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords=["tensorrt", "int8", "calibration", "quantization", "onnx"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["trtcal", "trtcal.*", "calibrators", "calibrators.*"]),
    package_data={
        "trtcal": ["py.typed"],
        "trtcal.demo": ["*.onnx", "*.npz", "NOTICE"],
        "trtcal.sweep.report": ["*.html", "*.css", "*.js"],
        "calibrators": ["py.typed", "*.cu"],
    },
    # The lower bounds are tested together: tests/lowest-versions.txt.
    install_requires=[
        "filelock>=3.29.5",
        "numba>=0.60",
        "numpy>=1.26",
        "onnx>=1.16",
        "onnxruntime>=1.18",
        "pillow>=10",
        "rich>=13",
        "typer>=0.12.4",
    ],
    extras_require={
        # Official wheels; NVRTC compiles the counting kernel for the GPU that is there.
        "cuda": ["cuda-bindings>=12", "nvidia-cuda-nvrtc-cu12>=12"],
        # NVIDIA's metapackage; TensorRT 11 has no calibrators. On Jetson use JetPack's own TensorRT.
        "tensorrt": ["tensorrt>=8.5,<11"],
        # Builds from source and needs a CUDA toolkit; `cuda` serves as well without one.
        "pycuda": ["pycuda>=2024.1"],
        # Tested with 2.10 and 2.60. Ray Data as a source needs ray[data], and a pyarrow of the same time.
        "ray": ["ray>=2.10"],
        # s3://, gs:// and hf:// need s3fs, gcsfs and huggingface_hub besides.
        "remote": ["fsspec[http]>=2023.6"],
        "zoo": ["pyyaml>=6"],
        "mlflow": ["mlflow>=2.10"],
        "dev": [
            "build>=1,<2",
            "coverage>=7.10",
            "hypothesis>=6.100,<7",
            # A new linter finds new things; it comes in with the commit that answers them.
            "mypy>=2.4,<2.5",
            "pytest>=8,<10",
            "pytest-cov>=6.2",
            "pytest-xdist>=3.6",
            "ruff>=0.17,<0.18",
        ],
    },
    entry_points={"console_scripts": ["trtcal = trtcal.cli:main"]},
)

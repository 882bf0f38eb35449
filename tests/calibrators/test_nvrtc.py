"""NVRTC from PyPI compiles the kernel for GPUs that nobody here has; it needs none."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakecuda import setup_env

from calibrators import nvrtc
from calibrators.device_kernels import THREADS, compile_kernel
from calibrators.memory import HostMemory
from calibrators.nvrtc import Nvrtc, libraries
from trtcal.errors import BackendError


@pytest.fixture(scope="module")
def compiler() -> Iterator[Nvrtc]:
    try:
        folder = setup_env.nvrtc()
    except setup_env.Unavailable as error:
        pytest.skip(str(error))
    if folder is None:
        yield next(libraries())
        return
    yield Nvrtc(str(folder / "nvidia" / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"))


def registers(cubin: bytes) -> int:
    """Registers of a thread: the largest EIATTR_REGCOUNT in the machine code's .nv.info."""
    mark, found = b"\x04\x2f\x08\x00", []
    at = cubin.find(mark)
    while at >= 0:
        found.append(struct.unpack_from("<I", cubin, at + 8)[0])
        at = cubin.find(mark, at + 1)
    return max(found)


@pytest.mark.parametrize("capability", [70, 75, 80, 86, 87, 89, 90, 100, 120])
def test_the_kernel_compiles_to_machine_code_that_a_whole_block_fits(compiler: Nvrtc, capability: int) -> None:
    if capability not in compiler.capabilities():
        pytest.skip(f"NVRTC {compiler.version} does not know {capability}")
    image = compile_kernel(compiler, capability)
    assert image[:4] == b"\x7fELF"
    assert b"observe" in image
    assert registers(image) * THREADS <= 65536


def test_a_gpu_newer_than_the_compiler_gets_ptx_for_the_newest_it_knows(compiler: Nvrtc) -> None:
    image = compile_kernel(compiler, 990)
    assert f".target sm_{compiler.capabilities()[-1]}".encode() in image
    assert b".entry observe(" in image


def test_divisions_are_rounded_and_subnormals_kept(compiler: Nvrtc) -> None:
    image = compile_kernel(compiler, 990)  # PTX can be read
    assert b"div.rn.f32" in image
    assert b"mul.rn.f32" in image
    assert b".ftz" not in image
    assert b"fma.rn.f32" not in image


def test_a_gpu_older_than_the_compiler_is_an_error_that_says_what_to_install(compiler: Nvrtc) -> None:
    with pytest.raises(BackendError, match=r"no longer compiles for compute capability 2\.0.*nvidia-cuda-nvrtc-cu12"):
        compile_kernel(compiler, 20)


def test_the_compilers_words_are_in_the_error(compiler: Nvrtc) -> None:
    with pytest.raises(BackendError, match=r'(?s)NVRTC_ERROR_COMPILATION.*odd\.cu\(1\).*"nonsense" is undefined'):
        compiler.compile('extern "C" __global__ void f(int *x) { *x = nonsense; }', "odd.cu", 90)


def test_a_library_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "libnvrtc.so.12").write_text("nothing")
    with pytest.raises(BackendError, match=r"libnvrtc\.so\.12: cannot be loaded"):
        Nvrtc(str(tmp_path / "libnvrtc.so.12"))


def test_those_of_pip_come_first_and_broken_ones_are_passed_over(
    compiler: Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia" / "cu99" / "lib").mkdir(parents=True)
    (tmp_path / "nvidia" / "cu99" / "lib" / "libnvrtc.so.99").write_text("nothing")
    monkeypatch.setattr(nvrtc, "_from_pip", lambda: [str(tmp_path / "libnvrtc.so.99"), compiler.path])
    monkeypatch.setattr(nvrtc, "SONAMES", ())
    assert [found.path for found in libraries()] == [compiler.path]


def test_both_layouts_of_nvidias_packages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "cuda_nvrtc/lib/libnvrtc.so.12",
        "cu13/lib/libnvrtc.so.13",
        "cuda_nvrtc/lib/libnvrtc-builtins.so.12.9",
    ):
        (tmp_path / "nvidia" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nvidia" / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = [Path(path).relative_to(tmp_path) for path in nvrtc._from_pip() if path.startswith(str(tmp_path))]
    assert found == [Path("nvidia/cu13/lib/libnvrtc.so.13"), Path("nvidia/cuda_nvrtc/lib/libnvrtc.so.12")]


def test_without_any_compiler_the_observer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from calibrators.device_kernels import Observer

    memory = HostMemory()
    monkeypatch.setattr(memory, "compilers", lambda: ())
    with pytest.raises(BackendError, match="pip install nvidia-cuda-nvrtc-cu12"):
        Observer(memory)
    assert memory.live == 0

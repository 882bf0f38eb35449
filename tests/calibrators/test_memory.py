from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import fakecuda
import numpy as np
import pytest

from calibrators.memory import BACKENDS, Attribute, HostMemory, available, open_memory
from trtcal.errors import BackendError

CUDA = ("cuda", "pycuda")


def test_host_memory_counts_what_is_alive_and_reads_back_what_was_uploaded() -> None:
    memory = HostMemory()
    address = memory.allocate(8)
    staging = memory.allocate_staging(8)
    staging[:] = range(8)
    memory.upload(address, staging)
    assert memory.read(address, 8) == bytes(range(8))
    assert memory.live == 2
    memory.free(address)
    memory.free_staging(staging)
    assert memory.live == 0


def test_host_memory_refuses_what_a_gpu_would_refuse() -> None:
    memory = HostMemory()
    address = memory.allocate(8)
    with pytest.raises(BackendError, match="do not fit"):
        memory.upload(address, np.zeros(9, np.uint8))
    with pytest.raises(BackendError, match="does not hold"):
        memory.read(address, 9)
    memory.free(address)
    with pytest.raises(BackendError, match="not a live allocation"):
        memory.free(address)
    assert memory.extent(address) == 0


def test_extent_is_what_is_left_of_the_allocation() -> None:
    memory = HostMemory()
    address = memory.allocate(100)
    assert [memory.extent(address), memory.extent(address + 40)] == [100, 60]
    assert memory.extent(address + 100) < 100


def test_a_memory_of_ones_own_is_used_as_it_is() -> None:
    memory = HostMemory()
    assert open_memory(memory) is memory


def test_the_environment_chooses_where_no_argument_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRTCAL_MEMORY", "host")
    assert open_memory().name == "host"
    assert "is for tests" in caplog.text


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTCAL_MEMORY", "cuda")
    assert open_memory("host").name == "host"


def test_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="cuda, pycuda, host"):
        open_memory("opencl")


def test_host_is_never_chosen_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRTCAL_MEMORY", raising=False)
    monkeypatch.setattr("calibrators.memory.available", lambda: ["host"])
    with pytest.raises(BackendError, match="pip install cuda-bindings"):
        open_memory()
    assert available()[-1] == "host"


@pytest.mark.parametrize("name", CUDA)
def test_copies_arrive_and_nothing_is_left(name: str) -> None:
    found = fakecuda.run(
        """
        from fakecuda import fakelib
        from fakecuda.report import report
        from calibrators.memory import open_memory
        fakelib.lazy(True)
        memory = open_memory()
        address, other = memory.allocate(1000), memory.allocate(1000)
        staging = memory.allocate_staging(1000)
        staging[:] = 7
        memory.upload(address, staging)
        memory.copy(other, address, 1000)
        memory.synchronize()
        from ctypes import CDLL, c_void_p, byref
        driver, context = CDLL("libcuda.so.1"), c_void_p()
        driver.cuDevicePrimaryCtxRetain(byref(context), 0); driver.cuCtxPushCurrent_v2(context)
        read = list(fakelib.read(other, 1000))
        driver.cuCtxPopCurrent_v2(byref(context)); driver.cuDevicePrimaryCtxRelease_v2(0)
        extents = memory.extent(address), memory.extent(address + 10), memory.extent(1)
        memory.free(address); memory.free(other); memory.free_staging(staging); memory.close(); memory.close()
        report(read=read, extents=extents, live=fakelib.snapshot())
        """,
        trt=None,
        memory=name,
    )
    assert found == {"read": [7] * 1000, "extents": [1000, 990, 0], "live": {}}


@pytest.mark.parametrize("name", CUDA)
def test_a_missing_synchronisation_would_be_seen(name: str) -> None:
    """The control of the test above: without `synchronize` the copy has not arrived."""
    found = fakecuda.run(
        """
        from fakecuda import fakelib
        from fakecuda.report import report
        from calibrators.memory import open_memory
        fakelib.lazy(True)
        memory = open_memory()
        address, staging = memory.allocate(4), memory.allocate_staging(4)
        staging[:] = 7
        memory.upload(address, staging)
        from ctypes import CDLL, c_void_p, byref
        context = c_void_p()
        CDLL("libcuda.so.1").cuDevicePrimaryCtxRetain(byref(context), 0)
        CDLL("libcuda.so.1").cuCtxPushCurrent_v2(context)
        report(read=list(fakelib.read(address, 4)))
        """,
        trt=None,
        memory=name,
    )
    assert found == {"read": [0, 0, 0, 0]}


@pytest.mark.parametrize("name", CUDA)
def test_works_on_threads_without_a_context_and_leaves_contexts_as_they_were(name: str) -> None:
    found = fakecuda.run(
        """
        from ctypes import CDLL, c_void_p, byref
        import threading
        from fakecuda import fakelib
        from fakecuda.report import report
        from calibrators.memory import open_memory
        seen = []
        def use(memory):
            address, staging = memory.allocate(100), memory.allocate_staging(100)
            memory.upload(address, staging); memory.synchronize()
            memory.free(address); memory.free_staging(staging)
            seen.append(fakelib.context())
        def elsewhere(function, *arguments):
            thread = threading.Thread(target=function, args=arguments); thread.start(); thread.join()
        memory = open_memory()
        use(memory)                         # no context is current
        elsewhere(use, memory)              # nor on another thread
        driver, own, popped = CDLL("libcuda.so.1"), c_void_p(), c_void_p()
        driver.cuCtxCreate_v2(byref(own), 0, 0)
        use(memory)                         # a context of somebody else's is
        others = seen.pop() == own.value
        driver.cuCtxPopCurrent_v2(byref(popped)); driver.cuCtxDestroy_v2(own)
        use(memory)                         # and is gone again
        elsewhere(memory.close)             # closed on another thread than it was opened on
        report(seen=seen, others=others, now=fakelib.context(), live=fakelib.snapshot())
        """,
        trt=None,
        memory=name,
    )
    assert found == {"seen": [0, 0, 0], "others": True, "now": 0, "live": {}}


@pytest.mark.parametrize("name", CUDA)
def test_the_device_is_that_of_the_current_context(name: str) -> None:
    found = fakecuda.run(
        """
        from ctypes import CDLL, c_void_p, byref, c_int
        from fakecuda import fakelib
        from fakecuda.report import report
        from calibrators.memory import open_memory
        driver, own = CDLL("libcuda.so.1"), c_void_p()
        active = []
        def note():
            flags, on = c_int(), c_int()
            for device in (0, 1):
                driver.cuDevicePrimaryCtxGetState(device, byref(flags), byref(on)); active.append(on.value)
        driver.cuInit(0)
        memory = open_memory(); note(); memory.close()
        driver.cuCtxCreate_v2(byref(own), 0, 1)
        memory = open_memory(); note(); memory.close()
        memory = open_memory(device=0); note(); memory.close()
        report(active=active)
        """,
        trt=None,
        memory=name,
        FAKECUDA_DEVICES="2",
    )
    assert found == {"active": [1, 0, 0, 1, 1, 0]}


@pytest.mark.parametrize("name", CUDA)
def test_a_device_tells_its_name(name: str) -> None:
    found = fakecuda.run(
        """
        from fakecuda.report import report
        from calibrators.memory import open_memory
        names = []
        for device in (None, 1):
            memory = open_memory(device=device)
            names.append(memory.device_name())
            memory.close()
        report(names=names, host=open_memory("host").device_name())
        """,
        trt=None,
        memory=name,
        FAKECUDA_DEVICES="2",
    )
    assert found["names"] == ["FakeCUDA test double (sm_80)", "FakeCUDA test double 1 (sm_80)"]
    assert found["host"] == "the host"


@pytest.mark.parametrize("name", CUDA)
def test_out_of_memory_says_what_to_do(name: str) -> None:
    found = fakecuda.run(
        """
        from fakecuda import fakelib
        from fakecuda.report import failure, report
        from calibrators.memory import open_memory
        memory = open_memory()
        failed = failure(lambda: memory.allocate(81 << 30))
        memory.close()
        report(failed=failed, live=fakelib.snapshot())
        """,
        trt=None,
        memory=name,
    )
    assert found["failed"]["type"] == "BackendError"
    assert "smaller calibration batch" in found["failed"]["message"]
    assert found["live"] == {}


@pytest.mark.parametrize("name", CUDA)
def test_a_machine_without_a_device_is_a_clear_error(name: str) -> None:
    found = fakecuda.run(
        """
        from fakecuda.report import failure, report
        from calibrators.memory import open_memory
        report(failed=failure(open_memory))
        """,
        trt=None,
        memory=name,
        FAKECUDA_DEVICES="0",
    )
    assert found["failed"]["type"] == "BackendError"


def test_a_machine_without_a_driver_is_a_clear_error() -> None:
    found = fakecuda.run(
        """
        from fakecuda.report import failure, report
        from calibrators.memory import open_memory
        report(failed=failure(open_memory))
        """,
        trt=None,
        memory="cuda",
        LD_LIBRARY_PATH="",
    )
    assert found["failed"]["type"] == "BackendError"
    assert "driver" in found["failed"]["message"]


def test_a_function_that_an_older_driver_lacks_is_not_taken_for_a_missing_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Bindings:
        CUresult = SimpleNamespace(CUDA_SUCCESS=0)

        @staticmethod
        def cuInit(flags: int) -> tuple[int]:
            return (0,)

        @staticmethod
        def cuDeviceGet(number: int) -> None:
            raise RuntimeError('Function "cuDeviceGet_v3" not found')

    monkeypatch.setattr("calibrators.memory.cuda.import_driver", lambda name: Bindings)
    with pytest.raises(BackendError, match=r'^cuDeviceGet: .*"cuDeviceGet_v3" not found; .*older than cuda-bindings'):
        open_memory("cuda", device=0)


@pytest.mark.parametrize("name", CUDA)
def test_clearing_waits_its_turn_and_the_device_tells_what_it_is(name: str) -> None:
    found = fakecuda.run(
        """
        import numpy as np
        from fakecuda import fakelib
        from fakecuda.report import report
        from calibrators.memory import Attribute, open_memory
        fakelib.lazy(True)
        memory = open_memory()
        before = memory.vacant()
        address, staging = memory.allocate(100), memory.allocate_staging(100)
        staging[:] = 7
        memory.upload(address, staging)
        memory.clear(address + 10, 80)
        memory.download(staging, address)
        memory.synchronize()
        read, used = staging.tolist(), before - memory.vacant()
        capability = [
            memory.attribute(Attribute.COMPUTE_CAPABILITY_MAJOR), memory.attribute(Attribute.COMPUTE_CAPABILITY_MINOR)
        ]
        memory.free(address); memory.free_staging(staging); memory.close()
        report(read=read, used=used, capability=capability, live=fakelib.snapshot())
        """,
        trt=None,
        memory=name,
        FAKECUDA_CC="87",
    )
    assert found == {"read": [7] * 10 + [0] * 80 + [7] * 10, "used": 100, "capability": [8, 7], "live": {}}


@pytest.mark.parametrize("name", CUDA)
@pytest.mark.parametrize("call", ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernel"])
def test_a_kernel_that_cannot_be_loaded_or_launched_is_an_error_and_leaves_nothing(name: str, call: str) -> None:
    found = fakecuda.run(
        """
        import sys
        import numpy as np
        from fakecuda import fakelib
        from fakecuda.report import failure, report
        from calibrators.memory import open_memory
        memory = open_memory()
        def run():
            fakelib.fail(sys.argv[1])
            function = memory.load(b"image", "observe", 100_000)
            memory.launch(function, 1, 32, 100_000, [np.uint64(0)] * 13)
        failed = failure(run)
        fakelib.fail()
        memory.close()
        report(failed=failed, live=fakelib.snapshot())
        """,
        call,
        trt=None,
        memory=name,
        kernels=True,
    )
    assert found["failed"]["type"] == "BackendError"
    assert found["live"] == {}


def test_every_backend_has_the_same_methods() -> None:
    methods: list[set[Any]] = [
        {name for name in dir(backend) if not name.startswith("_")} - {"name", "read"} for backend in BACKENDS.values()
    ]
    assert methods[0] == methods[1] == methods[2]


@pytest.mark.parametrize("name", CUDA)
def test_what_other_work_needs_of_the_device_is_there_on_any_thread(name: str) -> None:
    found = fakecuda.run(
        """
        from concurrent.futures import ThreadPoolExecutor
        from ctypes import CDLL, c_int, c_uint64, c_void_p
        import numpy as np
        from fakecuda import fakelib
        from fakecuda.report import report
        from calibrators.memory import open_memory
        memory = open_memory()
        address, staging = memory.allocate(8), memory.allocate_staging(8)
        staging[:] = range(8)
        memory.upload(address, staging)
        def negated():
            with memory.current():
                inside = fakelib.context()
                clear = CDLL("libcuda.so.1").cuMemsetD8Async
                def work(): clear(c_uint64(address), 9, c_uint64(4), c_void_p(memory.stream))
                took = memory.elapsed(work)
            return inside != 0, fakelib.context(), took > 0
        with ThreadPoolExecutor(1) as pool:
            seen = pool.submit(negated).result()
        fakelib.lazy(True)
        back = memory.allocate_staging(8)
        memory.download(back, address)
        early = back.tolist()
        memory.synchronize()
        read = back.tolist()
        memory.free(address); memory.free_staging(staging); memory.free_staging(back); memory.close()
        report(seen=seen, early=early, read=read, live=fakelib.snapshot())
        """,
        trt=None,
        memory=name,
    )
    assert found["seen"] == [True, 0, True]
    assert found["read"] == [9, 9, 9, 9, 4, 5, 6, 7]
    assert found["early"] != found["read"]
    assert found["live"] == {}


def test_host_memory_gives_back_what_it_holds_and_times_by_the_clock() -> None:
    memory = HostMemory()
    address = memory.allocate(4)
    memory.upload(address, np.arange(4, dtype=np.uint8))
    back = np.zeros(4, np.uint8)
    with memory.current():
        assert memory.elapsed(lambda: memory.download(back, address)) >= 0
    assert back.tolist() == [0, 1, 2, 3]
    with pytest.raises(BackendError, match="does not hold"):
        memory.download(np.zeros(5, np.uint8), address)


def test_the_names_of_attributes_are_those_of_the_bindings() -> None:
    found = fakecuda.run(
        """
        from cuda.bindings.driver import CUdevice_attribute
        from fakecuda.report import report
        report(**{name: int(value) for name, value in CUdevice_attribute.__members__.items()})
        """,
        trt=None,
        memory="cuda",
    )
    names = {
        "MULTIPROCESSORS": "MULTIPROCESSOR_COUNT",
        "SHARED_MEMORY_OPT_IN": "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
    }
    for attribute in Attribute:
        assert found[f"CU_DEVICE_ATTRIBUTE_{names.get(attribute.name, attribute.name)}"] == attribute

"""The pass on a GPU against the pass on the CPU, over the same values: the kernel is its own source, by g++."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import fakecuda
import in_parts
import numpy as np
import pytest
from fakecuda import setup_env
from fakecuda.hostkernels import Shown, kernel_memory
from models import batched
from network import Batches, cut, data, network
from ppocr import recogniser

from calibrators.device_kernels import Observer
from calibrators.gpu_stats import observe_all
from calibrators.memory import HostMemory
from trtcal.errors import BackendError, DataError, ModelError, NonFiniteError
from trtcal.model.open import FloatRunner, open_model
from trtcal.passes.collect import collect
from trtcal.ranges.growth import GROWTH
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.batches import Batch


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostMemory]:
    try:
        made = kernel_memory(setup_env.kernels())
    except setup_env.Unavailable as error:
        pytest.skip(str(error))
    monkeypatch.setattr("calibrators.device_kernels.THREADS", 32)
    yield made
    assert made.live == 0


Runner = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def on_the_device(memory: HostMemory, runner: Runner, batches: Batches, growth: str = "double") -> ActivationStats:
    with Observer(memory) as observer, Shown(runner, memory) as shown:
        return observe_all(shown, observer, batches, growth)


def on_both(memory: HostMemory, batches: Batches, growth: str = "double", runner: Runner = network) -> ActivationStats:
    """Batches -> statistics of both passes, which are the same to the byte."""
    expected = collect(runner, batches, growth=growth)
    found = on_the_device(memory, runner, batches, growth)
    for name, tensor in expected.tensors.items():
        assert found.tensors[name] == tensor, name
    assert found.to_bytes() == expected.to_bytes()
    return found


@pytest.mark.parametrize("growth", GROWTH)
@pytest.mark.parametrize("size", [1, 2, 7, 23])
@pytest.mark.parametrize("zeros", [0, 3, 8])
def test_statistics_equal_those_of_the_cpu(memory: HostMemory, growth: str, size: int, zeros: int) -> None:
    x = data()
    x[:zeros] = 0
    stats = on_both(memory, cut(x, size), growth)
    assert stats.tensors["x"].histogram.total == x.size


@pytest.mark.parametrize("growth", GROWTH)
def test_nobody_asks_for_the_name_of_a_rule(memory: HostMemory, monkeypatch: pytest.MonkeyPatch, growth: str) -> None:
    monkeypatch.setitem(GROWTH, "mine", GROWTH[growth])
    on_both(memory, cut(data(), 7), "mine")


def test_elements_at_a_limit_that_their_own_batch_outgrows_go_where_tensorrt_puts_them(memory: HostMemory) -> None:
    x = np.array([[1, 1, 0.5], [1, 0.2, 1], [1, 1, 2.5], [2.5, 4, 1]], np.float32)
    for size in (1, 2, 3, 4):
        on_both(memory, cut(x, size))


@pytest.mark.parametrize("growth", GROWTH)
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 3e38])
def test_subnormals_and_the_largest_floats(memory: HostMemory, growth: str, scale: float) -> None:
    x = (np.random.default_rng(0).uniform(-1, 1, (6, 50)) * scale).astype(np.float32)
    for size in (1, 2, 4):
        on_both(memory, cut(x, size), growth, lambda batch: {"x": batch["x"]})


@pytest.mark.parametrize("growth", GROWTH)
def test_padding_counts_for_tensorrt_and_for_nothing_else(memory: HostMemory, growth: str) -> None:
    x = data(8)
    x[7] *= 4  # padding is larger than all data
    batches = [Batch({"x": x[:4]}, samples="abcd"), Batch({"x": x[4:]}, samples="efgh", valid=2)]
    stats = on_both(memory, batches, growth)
    assert stats.samples == tuple("abcdef")


def test_names_of_samples_and_progress_are_those_of_the_cpu(memory: HostMemory) -> None:
    done: list[list[int]] = [[], []]
    batches = cut(data(5), 2)
    collect(network, batches, progress=done[0].append)
    with Observer(memory) as observer, Shown(network, memory) as shown:
        observe_all(shown, observer, batches, progress=done[1].append)
    assert done[0] == done[1] == [1, 2, 3, 4, 5]


def test_a_sample_runs_once_but_in_the_batch_that_sets_a_limit(memory: HostMemory) -> None:
    with Observer(memory) as observer, Shown(network, memory) as shown:
        observe_all(shown, observer, cut(data(12), 4))
    assert shown.runs == 12 + 4  # "dead" never has a limit, and is not worth a second run


def test_of_the_batch_that_sets_a_limit_samples_of_zeros_run_once(memory: HostMemory) -> None:
    x = data(8)
    x[[0, 1, 2, 3, 5]] = 0
    with Observer(memory) as observer, Shown(network, memory) as shown:
        found = observe_all(shown, observer, cut(x, 4))
    assert shown.runs == 8 + 3
    assert found == collect(network, cut(x, 4))


def test_a_second_run_that_comes_out_larger_grows_no_limit(
    memory: HostMemory, caplog: pytest.LogCaptureFixture
) -> None:
    x = np.array([[1, -1, 0.5, 0.25], [0.75, 1, 0.1, 0], [0.2, 2, 1, 1.5], [3, 0, 1, 0]], np.float32)
    again = (
        x * np.array([[3, 1, 1, 1], [1, np.nextafter(np.float32(1), np.float32(2)), 1, 1]], np.float32)[[0, 1, 0, 1]]
    )
    ran = []

    def unsteady(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ran.append(batch)
        values = again[len(ran) - 3][None] if len(ran) in (3, 4) else batch["x"]
        return {"x": batch["x"], "wide": values * 4, "half": values / 2}

    found = on_the_device(memory, unsteady, cut(x, 2))
    assert len(ran) == 6
    steady = collect(lambda batch: {"x": batch["x"], "wide": batch["x"] * 4, "half": batch["x"] / 2}, cut(x, 2))
    assert found.to_bytes() == steady.to_bytes()
    for name in ("wide", "half"):
        assert caplog.text.count(f"tensor '{name}' came out larger") == 1
    assert "'x'" not in caplog.text


@pytest.mark.parametrize("tensor", ["y", "odd"])
def test_tensors_that_vary_are_the_error_that_the_cpu_raises(memory: HostMemory, tensor: str) -> None:
    def fickle(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        third = batch["x"][0, 0] == 3
        names = ["x", *(["y"] if tensor != "y" or not third else []), *(["odd"] if tensor == "odd" and third else [])]
        return dict.fromkeys(names, batch["x"])

    batches = cut(np.arange(1, 6, dtype=np.float32)[:, None], 2)
    messages = []
    for collected in (lambda: collect(fickle, batches), lambda: on_the_device(memory, fickle, batches)):
        with pytest.raises(ModelError) as caught:
            collected()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith("sample 2: shows")


def spoiled(value: float, above: float = 3) -> Runner:
    def network(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        bad = batch["x"] + np.where(batch["x"] > above, np.float32(value), 0)
        return {"x": batch["x"], "first": bad, "second": bad * 2}

    return network


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("size", [1, 2])
def test_nan_and_inf_name_the_sample_and_the_first_tensor(memory: HostMemory, value: float, size: int) -> None:
    batches = cut(np.arange(1, 6, dtype=np.float32)[:, None], size)
    messages = []
    for collected in (lambda: collect(spoiled(value), batches), lambda: on_the_device(memory, spoiled(value), batches)):
        with pytest.raises(NonFiniteError) as caught:
            collected()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"sample 3: tensor 'first' holds {value}")


@pytest.mark.parametrize("above", [-9, 1, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_minus_inf_inside_the_network_masks_its_tensor(memory: HostMemory, above: float, size: int) -> None:
    x = np.linspace(0, 5, 6, dtype=np.float32).reshape(6, 1) * np.ones((1, 9), np.float32)
    stats = on_both(memory, cut(x, size), runner=spoiled(-np.inf, above))
    assert np.isinf(stats.tensors["first"].amax) == (above < 5)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_tensor_of_every_kind_gives_the_same_bytes(memory: HostMemory, size: int) -> None:
    """Nan that reaches no output among them."""
    x = np.array([[1, 1, 0.5], [0, 0, 0], [2, 3, 1], [7, 1, 1], [8, 1, 2], [1, 6.5, 1], [2, 4, 8]], np.float32)
    stats = on_both(memory, cut(x, size), runner=in_parts.network)
    assert np.isnan(stats.tensors["hole"].amax)


def test_nan_that_reaches_an_output_is_an_error(memory: HostMemory) -> None:
    class Spoiled(in_parts.Network):
        def decisive(self, names: Collection[str]) -> set[str]:
            return {"hole"}

    with pytest.raises(NonFiniteError, match="sample 1: tensor 'hole' holds nan"):
        on_the_device(memory, Spoiled(), cut(np.array([[1.0], [7.0]], np.float32), 2))


def test_minus_inf_in_an_input_is_an_error(memory: HostMemory) -> None:
    x = np.array([[1.0], [-np.inf]], np.float32)
    with pytest.raises(NonFiniteError, match="sample 1: tensor 'x' holds -inf"):
        on_the_device(memory, network, cut(x, 1))


def test_no_batches_are_an_error(memory: HostMemory) -> None:
    with pytest.raises(DataError, match="no batches"):
        on_the_device(memory, network, [])


def test_an_empty_tensor_is_seen_and_has_nothing(memory: HostMemory) -> None:
    stats = on_both(memory, cut(data(3), 2), runner=lambda batch: {"x": batch["x"], "none": batch["x"][:, :0]})
    assert stats.tensors["none"].histogram.total == 0


def test_everything_is_freed_after_an_error(memory: HostMemory) -> None:
    def fails(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise BackendError("no room")

    with pytest.raises(BackendError, match="no room"):
        on_the_device(memory, fails, cut(data(3), 2))
    with pytest.raises(NonFiniteError):
        on_the_device(memory, spoiled(np.nan, 1), cut(data(3), 2))
    assert memory.live == 0


PROGRAM = """
import json, sys
import numpy as np
from fakecuda import fakelib
from fakecuda.hostkernels import Shown
from fakecuda.report import report
from calibrators.device_kernels import Observer, throughput
from calibrators.gpu_stats import observe_all
from calibrators.memory import open_memory
from trtcal.model.open import FloatRunner, open_model
from trtcal.passes.collect import collect
fakelib.lazy(True)

def network(batch):
    x = batch["x"]
    return {"x": x, "relu": np.maximum(x, 0), "dead": np.maximum(-np.abs(x), 0), "wide": x[..., None] * [1, 30]}

x = np.random.default_rng(0).laplace(size=(9, 3000))
x = np.rint(x * 8).astype(np.float32) / 8
batches = [{"x": x[i : i + 2]} for i in range(0, 9, 2)]
memory = open_memory()
with Observer(memory) as observer, Shown(network, memory) as shown:
    found = observe_all(shown, observer, batches)
    rate = throughput(observer, elements=5000, runs=1)
memory.close()
report(same=found.to_bytes() == collect(network, batches).to_bytes(), launches=fakelib.calls("cuLaunchKernel"),
       live=fakelib.snapshot(), fast=rate > 0)
"""


@pytest.mark.parametrize(("name", "capability"), [("cuda", "90"), ("cuda", "86"), ("pycuda", "130")])
def test_through_nvrtc_and_the_driver_the_bytes_are_the_same(name: str, capability: str) -> None:
    """Genuine bindings and NVRTC; the fake driver puts work off, and runs the kernel that g++ made."""
    found = fakecuda.run(PROGRAM, trt=None, memory=name, kernels=True, FAKECUDA_CC=capability)
    assert found["launches"] > 9 * 4
    assert {**found, "launches": 0} == {"same": True, "launches": 0, "live": {}, "fast": True}


FAULTS = """
import functools, sys
import numpy as np
from fakecuda import fakelib
from fakecuda.hostkernels import Shown
from fakecuda.report import failure, report
import calibrators.device_kernels as kernels
import calibrators.memory.cuda as backend
from calibrators.gpu_stats import observe_all
from calibrators.memory import open_memory
kernels.compile_kernel = functools.cache(kernels.compile_kernel)
backend.libraries = functools.cache(lambda found=backend.libraries: [next(found())])
kernels.THREADS = 32
batches = [{"x": np.arange(1, 7, dtype=np.float32).reshape(2, 3) * k} for k in (1, 5)]
def network(batch):
    return {"x": batch["x"], "relu": np.maximum(batch["x"], 0), "wide": batch["x"] * 30}

def script():
    memory = open_memory()
    try:
        with kernels.Observer(memory) as observer, Shown(network, memory) as shown:
            observe_all(shown, observer, batches)
    finally:
        fakelib.fail()
        memory.close()

results, n = [], 0
while not results or results[-1][0]:
    n += 1
    fakelib.fail(f"{sys.argv[1]}:{n}:2:100")
    failed = failure(script)
    results.append([failed and failed["type"], fakelib.snapshot()])
report(results=results)
"""


@pytest.mark.parametrize(
    "function",
    ["cuMemAlloc", "cuMemHostAlloc", "cuMemcpyHtoD", "cuMemcpyDtoH", "cuMemsetD8", "cuLaunchKernel", "cuStreamSync"],
)
def test_cuda_may_fail_at_any_call_and_nothing_is_left_on_the_device(function: str) -> None:
    results = fakecuda.run(FAULTS, function, trt=None, kernels=True)["results"]
    assert len(results) > 3
    assert results[:-1] == [["BackendError", {}]] * (len(results) - 1)
    assert results[-1] == [None, {}]


@pytest.mark.slow(reason="a real model")
def test_the_recogniser_of_pp_ocr_gives_the_same_bytes(memory: HostMemory) -> None:
    graph = open_model(recogniser())
    lines = np.random.default_rng(0).normal(size=(3, 3, 48, 64)).astype(np.float32)
    with FloatRunner(graph) as runner:
        stats = on_both(memory, batched(lines, 2, graph.inputs[0].name), runner=runner)
    assert len(stats.tensors) > 100

"""Engines under the genuine bindings, on the fake TensorRT 10; what its engines compute, trtfake.c says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakecuda
import pytest

from calibrators import Engine, versions
from trtcal.errors import BackendError

pytestmark = pytest.mark.slow(reason="a process per test")

START = """
from calibrators import Engine
from onnx import TensorProto as T

def made(model=None, shapes=None, **more):
    open("m.onnx", "wb").write(onnx_model() if model is None else model)
    return build_engine("m.onnx", precision="fp32", shapes=shapes, **more).plan

def images(count, seed=0):
    return np.random.default_rng(seed).integers(-3, 4, (count, *SHAPE)).astype(np.float32)

def expected(*inputs):
    sums = sum(array.reshape(len(array), -1).astype(np.float64).sum(1) for array in inputs)
    return np.stack([sums, 2 * sums], 1).astype(np.float32)

def ranges(low, best, high):
    return {"image": [(size, *SHAPE) for size in (low, best, high)]}
"""


def drive(folder: Path, program: str, **settings: Any) -> Any:
    return fakecuda.drive(folder, START + program, **settings)


@pytest.mark.parametrize(
    ("trt", "memory", "lazy"),
    [
        *((trt, "cuda", "0") for trt in fakecuda.TENSORRT_10),
        (fakecuda.TENSORRT, "cuda", "1"),
        (fakecuda.TENSORRT, "pycuda", "1"),
    ],
)
def test_a_batch_of_any_size_is_answered_row_by_row(tmp_path: Path, trt: str, memory: str, lazy: str) -> None:
    found = drive(
        tmp_path,
        """
sizes = {}
for name, plan in {"dynamic": made(shapes=ranges(2, 4, 4)), "static": made(onnx_model(3))}.items():
    with Engine(plan) as engine:
        for size in (1, 2, 3, 4, 5, 10):
            answer = engine({"image": images(size)})
            sizes[f"{name} {size}"] = list(answer) == ["y"] and bool((answer["y"] == expected(images(size))).all())
        inputs = [str(spec) for spec in engine.inputs]
report(sizes=sizes, inputs=inputs, outputs=engine.outputs, live=live())
""",
        trt=trt,
        memory=memory,
        FAKECUDA_LAZY=lazy,
    )
    assert all(found["sizes"].values()), found["sizes"]
    assert len(found["sizes"]) == 12
    assert found["inputs"] == ["image: float32 (N, 3, 8, 8)"]
    assert found["outputs"] == ["y"]
    assert found["live"] == {}


def test_the_answer_belongs_to_the_caller_and_buffers_are_made_once(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
with Engine(made(shapes=ranges(1, 4, 8))) as engine:
    first = engine({"image": images(8)})["y"]
    before = fakelib.live("total"), live()
    for size in (1, 8, 3):
        engine({"image": images(size, seed=1)})
    report(kept=bool((first == expected(images(8))).all()), before=before, after=(fakelib.live("total"), live()))
""",
    )
    assert found["kept"]
    assert found["before"] == found["after"]


def test_several_inputs_may_come_in_any_order_and_layout(tmp_path: Path) -> None:
    assert drive(
        tmp_path,
        """
with Engine(made(onnx_model(2, inputs=("a", "b")))) as engine:
    a, b = images(4), np.asfortranarray(images(4, seed=1))
    report(same=bool((engine({"b": b, "a": a[::-1][::-1]})["y"] == expected(a, b)).all()))
""",
    )["same"]


def test_a_batch_that_does_not_fit_is_told_what_would(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
grid = onnx_model(shape=(3, "h", 8))
plan = made(grid, shapes={"image": [(1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 16, 8)]})
with Engine(plan, name="m.engine") as engine:
    def feed(**batch): return failure(lambda: engine(batch))
    image = np.zeros((2, 3, 8, 8), np.float32)
    report(
        inputs=str(engine.inputs[0]),
        tall=feed(image=np.zeros((9, 3, 20, 8), np.float32)), rank=feed(image=image[0]),
        none=feed(), other=feed(image=image, mask=image), empty=feed(image=image[:0]), scalar=feed(image=np.float32(1)),
    )
""".replace("onnx_model(shape", "flexible(shape").replace(
            "grid =",
            """
def flexible(shape):
    import onnx
    model = onnx.load_model_from_string(onnx_model())
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = shape[1]
    return model.SerializeToString()
grid =""",
        ),
    )
    assert found["inputs"] == "image: float32 (N, 3, ?, 8)"
    assert {entry["type"] for name, entry in found.items() if name != "inputs"} == {"ModelError"}
    assert (
        "m.engine: input 'image' is (9, 3, 20, 8), the engine takes (1, 3, 8, 8) to (4, 3, 16, 8)"
        in found["tall"]["message"]
    )
    assert "is (3, 8, 8), the engine takes" in found["rank"]["message"]
    assert found["none"]["message"] == "m.engine: takes image; got nothing"
    assert found["other"]["message"] == "m.engine: takes image; got image, mask"
    assert "at least one sample" in found["empty"]["message"]
    assert "got image ()" in found["scalar"]["message"]


def test_inputs_of_different_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
import onnx
model = onnx.load_model_from_string(onnx_model(2, inputs=("a", "b")))
with Engine(made(model.SerializeToString())) as engine:
    failed = failure(lambda: engine({"a": images(4), "b": images(3)}))
model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 3
with Engine(made(model.SerializeToString())) as engine:
    never = failure(lambda: engine({"a": images(6), "b": images(6)}))
report(failed=failed, never=never)
""",
    )
    assert {entry["type"] for entry in found.values()} == {"ModelError"}
    assert "as many in every input; got a (4, 3, 8, 8), b (3, 3, 8, 8)" in found["failed"]["message"]
    assert "'a' is (6, 3, 8, 8), the engine takes (2, 3, 8, 8); input 'b'" in found["never"]["message"]


def test_the_profile_that_takes_most_of_the_batch_is_used(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
log = Log()
builder = trt.Builder(log)
network = builder.create_network(0)
parser = trt.OnnxParser(network, log)
assert parser.parse(onnx_model())
config = builder.create_builder_config()
for low, high in ((1, 2), (4, 8)):
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (low, *SHAPE), (high, *SHAPE), (high, *SHAPE))
    config.add_optimization_profile(profile)
runs = {}
with Engine(bytes(builder.build_serialized_network(network, config))) as engine:
    for size in (1, 2, 3, 8, 9, 1):
        before = fakelib.calls("cuMemcpyDtoHAsync_v2")
        same = bool((engine({"image": images(size)})["y"] == expected(images(size))).all())
        runs[size] = same and fakelib.calls("cuMemcpyDtoHAsync_v2") - before
    refused = failure(lambda: engine({"image": images(2)[..., :4]}))
report(runs=runs, refused=refused)
""",
    )
    assert found["runs"] == {"1": 1, "2": 1, "3": 1, "8": 1, "9": 2}
    assert "takes (1, 3, 8, 8) to (2, 3, 8, 8) or (4, 3, 8, 8) to (8, 3, 8, 8)" in found["refused"]["message"]


def test_dtypes_are_converted_where_no_value_changes_and_refused_where_one_would(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
def outcome(onnx_type, array):
    with Engine(made(onnx_model(2, dtype=onnx_type))) as engine:
        try:
            answer = engine({"image": array})["y"]
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return bool((answer == expected(array)).all())
x = images(2)
report(
    same={
        "float64 as float32": outcome(T.FLOAT, x.astype(np.float64)), "float32 as float16": outcome(T.FLOAT16, x),
        "float16": outcome(T.FLOAT16, x.astype(np.float16)), "int64 as int32": outcome(T.INT32, x.astype(np.int64)),
        "int64": outcome(T.INT64, x.astype(np.int64)), "int8": outcome(T.INT8, x.astype(np.int8)),
        "bool": outcome(T.BOOL, x > 0), "uint8 as float32": outcome(T.FLOAT, np.abs(x).astype(np.uint8)),
    },
    refused=[
        outcome(T.FLOAT, x.astype(np.float64) + 0.1), outcome(T.FLOAT16, x + 70000), outcome(T.INT8, x + 200),
        outcome(T.INT32, x.astype(np.int64) + 2**31), outcome(T.INT32, x + 0.5), outcome(T.BOOL, x),
        outcome(T.FLOAT, x.astype(np.int64) + 2**24 + 1),
    ],
)
""",
    )
    assert found["same"] == dict.fromkeys(found["same"], True)
    assert all(text.startswith("ModelError: the engine: input 'image': ") for text in found["refused"]), found[
        "refused"
    ]
    assert "is none of int32; convert the data to int32" in found["refused"][3]


def test_outputs_whose_size_the_data_decide_are_answered_whole(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
os.environ["TRTFAKE_ROWS"] = "1"
with Engine(made(shapes=ranges(1, 4, 4))) as engine:
    results = []
    for seed in range(3):
        x = images(4, seed)
        want = expected(x)
        results.append(bool(np.array_equal(engine({"image": x})["y"], want[want[:, 0] > 0])))
    nothing = engine({"image": -np.abs(images(2)) - 1})["y"].shape
    parts = failure(lambda: engine({"image": np.concatenate([images(4) - 9, images(4)])}))
    engine.latency({"image": images(4)}, runs=3)
with Engine(made(shapes=ranges(1, 4, 4))) as engine:
    fakelib.fail("cuMemAlloc_v2:2")  # the input's buffer is the first
    room = failure(lambda: engine({"image": images(4) + 9}))
    fakelib.fail()
    again = engine({"image": images(4) + 9})["y"].shape
report(results=results, nothing=nothing, parts=parts, room=room, again=again, live=live())
""",
        FAKECUDA_LAZY="1",
    )
    assert found["results"] == [True, True, True]
    assert found["nothing"] == [0, 2]
    assert "without a row per sample" in found["parts"]["message"]
    assert found["room"]["type"] == "BackendError"
    assert "cuMemAlloc failed with CUDA_ERROR_OUT_OF_MEMORY" in found["room"]["message"]
    assert found["again"] == [4, 2]
    assert found["live"] == {}


def test_an_output_without_a_row_per_sample_is_not_cut_into_parts(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
import onnx
model = onnx.load_model_from_string(onnx_model())
model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
with Engine(made(model.SerializeToString(), shapes=ranges(2, 4, 4)), name="m.engine") as engine:
    report(whole=engine({"image": images(4)})["y"].shape,
           parts=failure(lambda: engine({"image": images(8)})), filled=failure(lambda: engine({"image": images(1)})))
""",
    )
    assert found["whole"] == [1, 2]
    for name in ("parts", "filled"):
        assert found[name]["type"] == "ModelError"
        assert "m.engine: output 'y' is (1, 2)" in found[name]["message"]


def test_an_engine_that_is_not_taken_says_why_and_what_to_do(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
plan = made(onnx_model(2))
open("m.engine", "wb").write(plan)
def opened(what="m.engine", **how):
    os.environ.update(how)
    failed = failure(lambda: Engine(what))
    for name in how: del os.environ[name]
    return failed
results = {
    **{load: opened(TRTFAKE_LOAD=load) for load in ("version", "device", "plugin")},
    **{step: opened(TRTFAKE_FAIL=step) for step in ("runtime", "context")},
    **{io: opened(TRTFAKE_IO=io) for io in ("host", "layout", "fp8", "implicit")},
    "gpu": failure(lambda: Engine("m.engine", device=9)),
    "garbage": opened(b"garbage"), "cut": opened(plan[:-9]), "missing": opened("no.engine"), "folder": opened("."),
}
report(live=live(), **results)
""",
    )
    assert found.pop("live") == {}
    said = {name: f"{entry['type']}: {entry['message']}" for name, entry in found.items()}
    assert said["version"].startswith(
        f"BackendError: m.engine: TensorRT {fakecuda.TENSORRT} does not take this engine: "
    )
    assert "Serialized Engine Version: 213" in said["version"]
    assert said["version"].endswith("build it again with this TensorRT")
    assert "expecting compute 9.0 got compute 8.6" in said["device"]
    assert said["device"].endswith("build it on this GPU")
    assert said["plugin"].endswith("load the library of its plugins before it")
    assert "cuDeviceGet failed with CUDA_ERROR_INVALID_DEVICE" in said["gpu"]
    assert said["garbage"].startswith("BackendError: the engine: ")
    assert said["garbage"].endswith("it is no engine, or only the beginning of one")
    assert "ends early" in said["cut"]
    assert said["runtime"].startswith("BackendError: TensorRT cannot make a runtime")
    assert "cannot make a context to run m.engine: trtfake: injected" in said["context"]
    assert said["host"].startswith("ModelError: m.engine: 'image' is a shape")
    assert "'image' is laid out as CHW32" in said["layout"]
    assert "'image' is FP8, which NumPy has not" in said["fp8"]
    assert "implicit batch" in said["implicit"]
    assert said["missing"] == "ModelError: no.engine: cannot be read: No such file or directory"
    assert said["folder"] == "ModelError: .: cannot be read: Is a directory"


def test_an_engine_that_does_not_run_says_so_and_can_be_closed(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
with Engine(made(onnx_model(2)), name="m.engine") as engine:
    os.environ["TRTFAKE_FAIL"] = "enqueue"
    failed = failure(lambda: engine({"image": images(2)}))
    slow = failure(engine.latency)
    del os.environ["TRTFAKE_FAIL"]
    fakelib.fail("cuStreamSynchronize:2")  # the fake's own wait is the first
    asynchronous = failure(lambda: engine({"image": images(2)}))
    fakelib.fail()
    fine = bool((engine({"image": images(2)})["y"] == expected(images(2))).all())
closed = failure(lambda: engine({"image": images(2)}))
engine.close()
report(failed=failed, slow=slow, asynchronous=asynchronous, fine=fine, closed=closed, live=live())
""",
    )
    assert found["failed"]["type"] == found["slow"]["type"] == found["asynchronous"]["type"] == "BackendError"
    assert "m.engine: TensorRT cannot run" in found["failed"]["message"]
    assert "illegal memory access" in found["failed"]["message"]
    assert "cuStreamSynchronize failed" in found["asynchronous"]["message"]
    assert found["fine"]
    assert found["closed"]["type"] == "RuntimeError"
    assert found["live"] == {}


def test_without_tensorrt_or_a_driver_there_is_one_clear_line(tmp_path: Path) -> None:
    program = """
from calibrators import Engine
from fakecuda.report import failure, report
report(failed=failure(lambda: Engine(b"plan")))
"""
    missing = fakecuda.run(program, trt=None, cwd=tmp_path)["failed"]
    assert missing["type"] == "CalibratorsUnavailable"
    assert "TensorRT is not installed" in missing["message"]
    driver = fakecuda.run(program, FAKECUDA_FAIL="cuInit:1", cwd=tmp_path)["failed"]
    assert driver["type"] == "BackendError"
    assert "cuInit failed" in driver["message"]
    # A stub of TensorRT 11, but its bindings are real.
    newest = fakecuda.run(program, trt=fakecuda.TENSORRT_11, cwd=tmp_path)["failed"]
    assert newest["type"] == "BackendError"
    assert "TensorRT cannot make a runtime" in newest["message"]


def test_a_tensorrt_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "tensorrt", lambda: SimpleNamespace(__version__="8.4.3"))
    with pytest.raises(BackendError, match=r"TensorRT 8\.4\.3 is older than 8\.5"):
        Engine(b"plan", memory="host")


@pytest.mark.parametrize(("device", "active"), [({}, [0, 1]), ({"device": 0}, [1, 0])])
def test_it_runs_on_the_current_device_unless_told_another(
    tmp_path: Path, device: dict[str, int], active: list[int]
) -> None:
    found = drive(
        tmp_path,
        f"""
from ctypes import CDLL, byref, c_int, c_void_p
plan, driver, own, flags, on = made(onnx_model(2)), CDLL("libcuda.so.1"), c_void_p(), c_int(), c_int()
driver.cuInit(0)
driver.cuCtxCreate_v2(byref(own), 0, 1)
active = []
with Engine(plan, **{device}) as engine:
    engine({{"image": images(2)}})
    for number in (0, 1):
        driver.cuDevicePrimaryCtxGetState(number, byref(flags), byref(on))
        active.append(on.value)
report(active=active)
""",
        FAKECUDA_DEVICES="2",
    )
    assert found == {"active": active}


def test_latency_counts_the_runs_it_was_asked_for(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
from dataclasses import asdict
waits = lambda: fakelib.calls("cuEventElapsedTime") + fakelib.calls("cuEventElapsedTime_v2")
with Engine(made(shapes=ranges(1, 4, 8))) as engine:
    own = engine.latency()
    before = waits()
    fed = engine.latency({"image": images(20)}, warmup=0, runs=7)
    report(own=asdict(own), fed=asdict(fed), timed=waits() - before, layers=engine.layers(),
           wrong=[failure(lambda: engine.latency(**how)) for how in ({"runs": 0}, {"warmup": -1})], live=live())
""",
    )
    assert (found["own"]["batch_size"], found["own"]["runs"]) == (4, 100)
    assert (found["fed"]["batch_size"], found["fed"]["runs"], found["timed"]) == (8, 7, 7)
    assert 0 < found["own"]["p50_ms"] <= found["own"]["p90_ms"] <= found["own"]["p99_ms"]
    assert found["layers"] == {"fp32": 1}
    assert [entry["type"] for entry in found["wrong"]] == ["ValueError", "ValueError"]
    assert "event" not in found["live"]


def test_threads_take_turns_and_somebody_elses_memory_stays_open(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
from concurrent.futures import ThreadPoolExecutor
from calibrators.memory import open_memory
memory = open_memory("cuda")
with Engine(made(shapes=ranges(1, 2, 4)), memory=memory) as engine, ThreadPoolExecutor(4) as pool:
    answers = list(pool.map(lambda seed: engine({"image": images(5, seed)})["y"], range(20)))
same = all(bool((answer == expected(images(5, seed))).all()) for seed, answer in enumerate(answers))
context = fakelib.context()
open_still = live()
memory.close()
report(same=same, context=context, open=open_still, live=live())
""",
    )
    assert found["same"]
    assert found["context"] == 0
    assert found["open"] == {"context": 1, "stream": 1}
    assert found["live"] == {}

"""Which tensors an engine shows, with a stand-in for TensorRT whose engines ONNX Runtime runs in host memory."""

from __future__ import annotations

import json
import logging
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakecuda
import numpy as np
import onnx
import pytest
from fakecuda import ort_tensorrt, setup_env
from fakecuda.hostkernels import kernel_memory
from models import batched, conv_model, images, make_model, save
from onnx import TensorProto, helper
from sequences import cloud, clouds, detector, heard, lstm, steps

from calibrators.gpu_stats import collect_on_gpu
from calibrators.memory import HostMemory
from trtcal.errors import BackendError, DataError, ModelError
from trtcal.model.batch_axis import model_inputs
from trtcal.model.open import FloatRunner, open_model
from trtcal.passes.collect import collect
from trtcal.passes.sharing import resolved
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.batches import Batch
from trtcal.samples.streams import batches_of
from trtcal.spec import InputSpec

node = helper.make_node


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostMemory]:
    """Host memory with the kernel, and the stand-in in TensorRT's place."""
    try:
        made = kernel_memory(setup_env.kernels())
    except setup_env.Unavailable as error:
        pytest.skip(str(error))
    monkeypatch.setattr("calibrators.device_kernels.THREADS", 32)
    monkeypatch.setitem(sys.modules, "tensorrt", ort_tensorrt)
    monkeypatch.delitem(sys.modules, "calibrators.trtlog", raising=False)
    monkeypatch.setattr(ort_tensorrt, "BUILT", [])
    monkeypatch.setattr(ort_tensorrt, "REFUSED", set())
    yield made
    monkeypatch.delitem(sys.modules, "calibrators.trtlog", raising=False)
    assert made.live == 0


Batches = list[dict[str, np.ndarray]]


def on_both(path: Path, batches: Batches, memory: HostMemory, **options: int) -> ActivationStats:
    """Model and batches -> statistics of both passes, which are the same to the byte."""
    graph = resolved(open_model(path), batches)
    with FloatRunner(graph) as runner:
        expected = collect(runner, batches_of(batches, graph.inputs))
    found = collect_on_gpu(path, batches, memory=memory, **options)
    assert list(found.tensors) == list(expected.tensors)
    for name, tensor in expected.tensors.items():
        assert found.tensors[name] == tensor, name
    assert found.to_bytes() == expected.to_bytes()
    return found


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_every_tensor_is_shown_whatever_batch_the_file_fixes(
    memory: HostMemory, tmp_path: Path, batch: int | str
) -> None:
    path = save(conv_model(batch), tmp_path / "m.onnx")
    stats = on_both(path, batched(images(8), 4), memory)
    assert list(stats.tensors) == ["image", "conv", "relu", "sum", "logits"]
    assert len(ort_tensorrt.BUILT) == 1


def test_values_are_fp32_without_tf32(memory: HostMemory, tmp_path: Path) -> None:
    on_both(save(conv_model(), tmp_path / "m.onnx"), batched(images(3), 1), memory)
    assert ort_tensorrt.BUILT[0]["flags"] == []  # nor FP16, which would be as free to round


def test_a_model_that_is_in_no_file_is_collected_too(memory: HostMemory, tmp_path: Path) -> None:
    path = save(conv_model(), tmp_path / "m.onnx")
    expected = on_both(path, batched(images(3), 1), memory)
    assert collect_on_gpu(path.read_bytes(), batched(images(3), 1), memory=memory).to_bytes() == expected.to_bytes()


@pytest.mark.parametrize("limit", [1, 1100, 3000, 10**9])
def test_outputs_that_do_not_fit_are_shown_by_several_engines(memory: HostMemory, tmp_path: Path, limit: int) -> None:
    on_both(save(conv_model(), tmp_path / "m.onnx"), batched(images(4), 2), memory, limit=limit, workspace=1 << 20)
    shown = [built["outputs"] for built in ort_tensorrt.BUILT]
    assert shown[0] == ["conv", "relu", "sum", "logits"]
    parts = {1: 4, 1100: 3, 3000: 2, 10**9: 0}[limit]
    assert len(shown) == 1 + parts
    assert not parts or [name for part in shown[1:] for name in part] == shown[0]
    assert {built["workspace"] for built in ort_tensorrt.BUILT} == {1 << 20}


def test_an_engine_that_shows_too_much_is_gone_before_the_others_are_built(
    memory: HostMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: weakref.WeakSet[Any] = weakref.WeakSet()
    alive = []
    deserialize, build = ort_tensorrt.Runtime.deserialize_cuda_engine, ort_tensorrt.Builder.build_serialized_network

    def deserialized(self: Any, plan: Any) -> Any:
        engine = deserialize(self, plan)
        engines.add(engine)
        return engine

    def built(self: Any, *arguments: Any) -> Any:
        alive.append(len(engines))
        return build(self, *arguments)

    monkeypatch.setattr(ort_tensorrt.Runtime, "deserialize_cuda_engine", deserialized)
    monkeypatch.setattr(ort_tensorrt.Builder, "build_serialized_network", built)
    on_both(save(conv_model(), tmp_path / "m.onnx"), batched(images(1), 1), memory, limit=1)
    assert alive == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("limit", [1, 10**9])
def test_scratch_memory_is_there_for_one_engine_at_a_time(
    memory: HostMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    contexts: weakref.WeakSet[Any] = weakref.WeakSet()
    made, alive = [], []
    create, execute = ort_tensorrt.Engine.create_execution_context, ort_tensorrt.Context.execute_async_v3

    def created(self: Any) -> Any:
        made.append(len(contexts))
        context = create(self)
        contexts.add(context)
        return context

    def executed(self: Any, stream: int) -> bool:
        alive.append(len(contexts))
        return execute(self, stream)

    monkeypatch.setattr(ort_tensorrt.Engine, "create_execution_context", created)
    monkeypatch.setattr(ort_tensorrt.Context, "execute_async_v3", executed)
    on_both(save(conv_model(), tmp_path / "m.onnx"), batched(images(3), 1), memory, limit=limit)
    assert set(made) == {0}
    assert alive == [1] * (12 if limit == 1 else 3)
    assert len(made) == (13 if limit == 1 else 1)  # one that fits is kept


def test_all_engines_of_a_pass_come_from_one_builder(
    memory: HostMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builders: weakref.WeakSet[Any] = weakref.WeakSet()
    made = []
    start = ort_tensorrt.Builder.__init__

    def started(self: Any, log: Any) -> None:
        made.append(1)
        builders.add(self)
        start(self, log)

    monkeypatch.setattr(ort_tensorrt.Builder, "__init__", started)
    collect_on_gpu(dynamic(tmp_path), iter(of_widths(5, 9, 3)), memory=memory, limit=1)
    assert len(ort_tensorrt.BUILT) == 9
    assert (len(made), len(builders)) == (1, 0)


def dynamic(tmp_path: Path) -> Path:
    nodes = [node("Relu", ["x"], ["relu"]), node("Mul", ["relu", "relu"], ["y"])]
    return save(make_model(nodes, {"x": ["N", 3, "W"]}, ["y"]), tmp_path / "m.onnx")


def of_widths(*widths: int) -> Batches:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(2, 3, width)).astype(np.float32)} for width in widths]


def test_data_that_can_be_read_twice_need_one_engine_for_all_their_shapes(memory: HostMemory, tmp_path: Path) -> None:
    on_both(dynamic(tmp_path), of_widths(5, 5, 9, 7, 3, 9), memory)
    assert [built["profile"]["x"] for built in ort_tensorrt.BUILT] == [((1, 3, 3), (1, 3, 5), (1, 3, 9))]


def test_samples_of_other_shapes_widen_the_profile(memory: HostMemory, tmp_path: Path) -> None:
    batches = of_widths(5, 5, 9, 7, 3, 9)
    found = collect_on_gpu(dynamic(tmp_path), iter(batches), memory=memory)
    assert found.to_bytes() == on_both(dynamic(tmp_path), batches, memory).to_bytes()
    del ort_tensorrt.BUILT[3:]
    profiles = [built["profile"]["x"] for built in ort_tensorrt.BUILT]
    assert profiles == [
        ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        ((1, 3, 5), (1, 3, 9), (1, 3, 9)),
        ((1, 3, 3), (1, 3, 3), (1, 3, 9)),
    ]


def test_a_batch_that_is_built_into_the_graph_is_filled_with_copies(
    memory: HostMemory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = np.array([2, 2, 192], np.int64)  # not at the front, where it would be found and replaced
    nodes = [
        node("Relu", ["image"], ["relu"]),
        node("Reshape", ["relu", "shape"], ["pairs"]),
        node("ReduceMax", ["pairs"], ["largest"], axes=[2], keepdims=0),
        node("Neg", ["largest"], ["y"]),
    ]
    path = save(make_model(nodes, {"image": [4, 3, 8, 8]}, ["y"], {"shape": shape}), tmp_path / "m.onnx")
    on_both(path, batched(images(4), 4), memory)
    assert caplog.text.count("its batch size 4 is built into the graph") == 2  # said by both
    assert ort_tensorrt.BUILT[-1]["profile"]["image"][1] == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("model", "feeds"),
    [
        (lstm("T", "batch"), [{"x": steps(8)[i : i + 4].transpose(1, 0, 2)} for i in (0, 4)]),
        (lstm("d0", "d1"), [{"x": steps(8)[i : i + 4].transpose(1, 0, 2)} for i in (0, 4)]),
        (cloud(32, [1, 5]), [{"x": sample} for sample in clouds(4)]),
    ],
    ids=["named", "found", "whole"],
)
def test_samples_lie_where_the_model_has_them(
    memory: HostMemory, tmp_path: Path, model: onnx.ModelProto, feeds: Batches
) -> None:
    opened = resolved(open_model(save(model, tmp_path / "m.onnx")), list(batches_of(feeds, axis_of(model))))
    rows = list(batches_of(feeds, opened.inputs))
    with FloatRunner(opened) as runner:
        expected = collect(runner, rows)
    assert collect_on_gpu(opened, rows, memory=memory).to_bytes() == expected.to_bytes()
    assert len(expected.samples) == sum(len(batch.samples) for batch in rows)


def axis_of(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The inputs with the batch where the data have it, whatever the file tells."""
    return model_inputs(model, {"x": None if model.graph.node[0].op_type == "MatMul" else 1})


def test_a_fixed_input_is_fed_with_every_sample(memory: HostMemory, tmp_path: Path) -> None:
    opened = open_model(save(detector(), tmp_path / "m.onnx")).asked(inputs=["sr=8000"])
    rows = [Batch({name: array[i : i + 3] for name, array in heard(6).items()}) for i in (0, 3)]
    with FloatRunner(resolved(opened, rows)) as runner:
        expected = collect(runner, rows)
    found = collect_on_gpu(opened, rows, memory=memory)
    for name, tensor in found.tensors.items():
        assert tensor == expected.tensors[name], name
    assert {"x", "state", "m", "a", "y"} <= set(found.tensors)


def test_copies_that_would_change_a_range_are_refused(memory: HostMemory, tmp_path: Path) -> None:
    nodes = [
        node("Reshape", ["image", "shape"], ["pairs"]),
        node("ReduceMean", ["pairs"], ["mean"], axes=[0], keepdims=1),
        node("Sub", ["pairs", "mean"], ["y"]),
    ]
    path = save(make_model(nodes, {"image": [4, 3, 8, 8]}, ["y"], {"shape": np.array([8, 96])}), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="copies of one sample cannot stand for the others"):
        collect_on_gpu(path, batched(images(4), 4), memory=memory)


def test_integers_bools_and_shapes_are_left_alone(memory: HostMemory, tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Cast", ["ids"], ["numbers"], to=TensorProto.FLOAT),
        node("Greater", ["x", "numbers"], ["mask"]),
        node("Where", ["mask", "x", "numbers"], ["y"]),
        node("Reshape", ["y", "shape"], ["z"]),
    ]
    model = make_model(nodes, {"x": ["N", 4], "ids": ["N", 4]}, ["z", "mask"], dtypes={"ids": TensorProto.INT64})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.BOOL
    path = save(model, tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    feed = {"x": rng.normal(size=(5, 4)).astype(np.float32), "ids": rng.integers(-3, 3, (5, 4))}
    stats = on_both(path, [feed], memory)
    assert list(stats.tensors) == ["x", "numbers", "y"]


def test_a_tensor_that_tensorrt_knows_by_a_later_name_is_found(memory: HostMemory, tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["relu"]),
        node("Identity", ["relu"], ["same"]),
        node("Identity", ["same"], ["again"]),
        node("Neg", ["again"], ["y"]),
    ]
    path = save(make_model(nodes, {"x": ["N", 4]}, ["y"]), tmp_path / "m.onnx")
    stats = on_both(path, [{"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}], memory)
    assert list(stats.tensors) == ["x", "relu", "y"]
    assert ort_tensorrt.BUILT[0]["outputs"] == ["again", "y"]


def test_an_engine_need_not_have_every_input(memory: HostMemory, tmp_path: Path) -> None:
    nodes = [node("Relu", ["a"], ["first"]), node("Neg", ["b"], ["second"]), node("Add", ["first", "second"], ["y"])]
    path = save(make_model(nodes, {"a": ["N", 300], "b": ["N", 300]}, ["y"]), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    feed = {name: rng.normal(size=(2, 300)).astype(np.float32) for name in "ab"}
    on_both(path, [feed], memory, limit=1)
    assert [built["outputs"] for built in ort_tensorrt.BUILT[1:]] == [["first"], ["second"], ["y"]]


def test_a_model_in_fp16_is_counted_in_float32(
    memory: HostMemory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [node("Relu", ["x"], ["relu"]), node("Mul", ["relu", "relu"], ["y"])]
    half = TensorProto.FLOAT16
    model = make_model(nodes, {"x": ["N", 50]}, ["y"], dtypes={"x": half})
    model.graph.output[0].type.tensor_type.elem_type = half
    path = save(model, tmp_path / "m.onnx")
    on_both(path, [{"x": np.random.default_rng(0).normal(size=(3, 50)).astype(np.float16)}], memory)
    assert [built["flags"] for built in ort_tensorrt.BUILT] == [["FP16"]]
    assert caplog.text.count("has tensors in FP16; TensorRT may run any layer so") == 1


def test_a_tensor_that_was_folded_away_is_named(
    memory: HostMemory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        node("ConstantOfShape", ["size"], ["ones"]),
        node("Neg", ["ones"], ["folded"]),
        node("Add", ["x", "folded"], ["y"]),
    ]
    path = save(make_model(nodes, {"x": ["N", 4]}, ["y"], {"size": np.array([4])}), tmp_path / "m.onnx")
    with caplog.at_level(logging.INFO, "calibrators.visible"):
        stats = collect_on_gpu(path, [{"x": np.ones((2, 4), np.float32)}], memory=memory)
    assert list(stats.tensors) == ["x", "y"]
    assert "TensorRT's network lacks 2 tensors: ones, folded" in caplog.text


def test_a_shape_that_depends_on_the_data_is_refused(memory: HostMemory, tmp_path: Path) -> None:
    nodes = [
        node("NonZero", ["x"], ["places"]),
        node("Cast", ["places"], ["nonzero"], to=TensorProto.FLOAT),
        node("Relu", ["x"], ["y"]),
    ]
    path = save(make_model(nodes, {"x": ["N", 4]}, ["y"]), tmp_path / "m.onnx")
    with pytest.raises(BackendError, match="'nonzero' depends on the data; collect its ranges on the CPU"):
        collect_on_gpu(path, [{"x": np.ones((2, 4), np.float32)}], memory=memory)


def test_what_the_parser_does_not_know_is_said_in_its_words(memory: HostMemory, tmp_path: Path) -> None:
    ort_tensorrt.REFUSED.add("Gemm")
    path = save(conv_model(), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx: TensorRT's parser cannot read it: No importer .* Gemm"):
        collect_on_gpu(path, batched(images(2), 1), memory=memory)


def test_data_that_do_not_fit_are_refused(memory: HostMemory, tmp_path: Path) -> None:
    path = save(conv_model(), tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"expected \(3, 8, 8\)"):
        collect_on_gpu(path, batched(images(2, size=9), 1), memory=memory)
    with pytest.raises(DataError, match="no batches"):
        collect_on_gpu(path, [], memory=memory)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_demo_model_gives_the_same_bytes(memory: HostMemory, batch: int) -> None:
    from trtcal import demo

    on_both(demo.model_path(), batched(demo.calibration_images()[:6], batch), memory)


GENUINE = """
from calibrators.gpu_stats import collect_on_gpu
from calibrators.memory import open_memory
from trtcal.passes.collect import collect
from trtcal.samples.streams import batches_of
from trtcal.model.open import open_model
fakelib.lazy(True)
Path("m.onnx").write_bytes(onnx_model())
data = [{"image": np.random.default_rng(seed).integers(-9, 9, (2, *SHAPE)).astype(np.float32)} for seed in range(3)]

def network(batch):
    # What trtfake.c computes; it knows no shape of a tensor that is no output of the file, and takes it for a scalar.
    total = batch["image"].sum(dtype=np.float64)
    return {"image": batch["image"], "conv": total, "relu": total, "y": np.array([[total, 2 * total]])}

expected = collect(network, batches_of(data, open_model("m.onnx").inputs)).to_bytes()
memory = open_memory()
same = [collect_on_gpu("m.onnx", data, memory=memory, limit=limit).to_bytes() == expected for limit in (None, 1, 600)]
memory.close()
report(same=same, live=live(), builds=fakelib.calls("cuLaunchKernel") > 0)
"""


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_through_genuine_bindings_nvrtc_and_driver_the_bytes_are_those_of_the_cpu(tmp_path: Path, trt: str) -> None:
    done = fakecuda.start_driven(tmp_path, GENUINE, trt=trt, kernels=True)
    assert done.returncode == 0, done.stderr
    assert "not written" not in done.stderr  # a method of TensorRT's that the double has not
    assert json.loads(done.stdout.splitlines()[-1]) == {"same": [True] * 3, "live": {}, "builds": True}


@pytest.mark.parametrize("step", ["builder", "network", "config", "build", "context", "enqueue"])
def test_what_tensorrt_does_not_make_is_an_error_and_everything_is_freed(tmp_path: Path, step: str) -> None:
    program = """
from calibrators.gpu_stats import collect_on_gpu
from calibrators.memory import open_memory
Path("m.onnx").write_bytes(onnx_model())
memory = open_memory()
failed = failure(lambda: collect_on_gpu("m.onnx", batches(1), memory=memory))
memory.close()
report(failed=failed, live=live())
"""
    found = fakecuda.drive(tmp_path, program, kernels=True, TRTFAKE_FAIL=step)
    assert found["failed"]["type"] == "BackendError"
    assert found["failed"]["message"].startswith(("TensorRT ca", "m.onnx: TensorRT built no engine"))
    assert found["live"] == {}


def names(trt: str) -> str:
    """A program that looks for everything that `visible.py` asks of TensorRT's classes."""
    return f"""
        import json
        import {trt} as trt
        wanted = {{
            "INetworkDefinition": "num_layers get_layer num_inputs get_input num_outputs get_output "
                                  "mark_output unmark_output",
            "ILayer": "num_outputs get_output",
            "ITensor": "name dtype shape is_shape_tensor is_network_output",
            "IBuilderConfig": "clear_flag set_flag set_memory_pool_limit add_optimization_profile",
            "Builder": "create_network create_builder_config create_optimization_profile build_serialized_network",
            "IOptimizationProfile": "set_shape",
            "OnnxParser": "parse num_errors get_error",
            "Runtime": "deserialize_cuda_engine",
            "ICudaEngine": "create_execution_context num_io_tensors get_tensor_name",
            "IExecutionContext": "set_input_shape get_tensor_shape set_tensor_address execute_async_v3",
            "BuilderFlag": "TF32 FP16",
        }}
        missing = [f"{{kind}}.{{name}}" for kind, names in wanted.items() for name in names.split()
                   if not hasattr(getattr(trt, kind), name)]
        dtype = "setter" if trt.ITensor.dtype.fset else ""
        words = trt.OnnxParser.parse.__doc__ + trt.IExecutionContext.execute_async_v3.__doc__
        print(json.dumps([missing, dtype, "path" in words, "stream_handle" in words]))
    """


@pytest.mark.parametrize("version", fakecuda.TENSORRT_10)
def test_every_name_that_is_used_is_one_of_tensorrt_10(version: str) -> None:
    assert fakecuda.run(names("tensorrt_bindings"), trt=version) == [[], "setter", True, True]


def test_every_name_that_is_used_is_one_of_tensorrt_8(tmp_path: Path) -> None:
    assert fakecuda.run_on_tensorrt8(names("tensorrt"), tmp_path) == [[], "setter", True, True]

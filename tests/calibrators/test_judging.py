"""Engines judged end to end: the fake TensorRT 10 under the genuine bindings, its engines computed by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakecuda
import pytest

pytestmark = pytest.mark.slow(reason="builds engines in processes of their own")

START = """
import json, os, shutil, sys
from pathlib import Path
import numpy as np
from fakecuda import fakelib, ortexec
from fakecuda.report import failure, report
from trtcal.cli import main
from trtcal.demo import calibration_images, labelled_images, model_path

ortexec.install()
shutil.copy(model_path(), "m.onnx")
images, labels = labelled_images()
np.savez("l.npz", image=images[:20], labels=labels[:20])
np.save("c.npy", calibration_images()[:12])

def run(*arguments):
    sys.argv = ["trtcal", "--quiet", *arguments]
    try:
        main()
        return 0
    except SystemExit as stop:
        return stop.code or 0

SWEEP = ("m.onnx", "--data", "c.npy", "--eval-data", "l.npz", "--batch-sizes", "1,4", "--orders", "given",
         "--growths", "double", "--methods", "entropy,minmax")
"""


def drive(folder: Path, program: str, **settings: Any) -> Any:
    return fakecuda.run(START + program, cwd=folder, **settings)


def start(folder: Path, program: str, **settings: Any) -> Any:
    return fakecuda.start(START + program, cwd=folder, **settings)


def test_a_sweep_of_engines_that_compute_as_the_cpu_does_finds_what_the_cpu_finds(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
codes = run("sweep", *SWEEP, "-o", "engines", "--engine"), run("sweep", *SWEEP, "-o", "cpu", "--no-race")
trials = [Path(folder, "trials.csv").read_text() for folder in ("engines", "cpu")]
report(codes=codes, same=trials[0] == trials[1], trials=len(trials[0].splitlines()), errors="Error" in trials[0],
       key=json.loads(Path("engines/settings.json").read_text())["judged by"],
       timings=Path("engines/timing.cache").exists(), live=fakelib.snapshot())
""",
    )
    assert found["codes"] == [0, 0]
    assert found["same"]
    assert found["trials"] == 5
    assert not found["errors"]
    assert found["timings"]
    assert found["key"].endswith(f"TensorRT {fakecuda.TENSORRT} on FakeCUDA test double (sm_80)")
    assert found["live"] == {}


def test_judgements_name_the_gpu_that_the_engines_run_on(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
from ctypes import CDLL, byref, c_void_p
from calibrators.judging import identity
from calibrators.memory import open_memory
driver, own = CDLL("libcuda.so.1"), c_void_p()
first = identity()
driver.cuCtxCreate_v2(byref(own), 0, 1)
memory = open_memory(device=0)
report(names=[first, identity(), identity(memory)], open=memory.vacant() > 0)
""",
        FAKECUDA_DEVICES="2",
    )
    first, second = "FakeCUDA test double (sm_80)", "FakeCUDA test double 1 (sm_80)"
    assert found["names"] == [f"TensorRT {fakecuda.TENSORRT} on {name}" for name in (first, second, first)]
    assert found["open"]


def test_all_engines_of_a_sweep_come_from_one_builder(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
from ctypes import CDLL
import calibrators.judging as judging
from calibrators import trtlog
new_builder, build, builders, built = trtlog.new_builder, judging.build_engine, [], []
def counted(*arguments, **named):
    built.append(CDLL("libnvinfer.so.10").trtfake_live(0))  # of builders
    return build(*arguments, **named)
trtlog.new_builder = lambda: builders.append(1) or new_builder()
judging.build_engine = counted
code = run("sweep", *SWEEP, "-o", "s", "--engine")
left = CDLL("libnvinfer.so.10").trtfake_live(0)
report(code=code, builders=len(builders), built=built, left=left, live=fakelib.snapshot())
""",
    )
    assert found == {"code": 0, "builders": 1, "built": [1, 1, 1], "left": 0, "live": {}}


def test_an_interrupted_sweep_builds_only_the_engines_it_has_not_judged(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
import calibrators.judging as judging
build, built = judging.build_engine, []
def counted(*arguments, **named):
    if len(built) == 2: raise KeyboardInterrupt
    built.append(named["timing_cache"])
    return build(*arguments, **named)
judging.build_engine = counted
first = run("sweep", *SWEEP, "-o", "s", "--engine")
judged = len(Path("s/judgements.jsonl").read_text().splitlines()) - 1
built.clear()
second = run("sweep", *SWEEP, "-o", "s", "--engine", "--resume")
judging.identity = lambda: "TensorRT 9 on another GPU"
Path("s/judgements.jsonl").write_text("")
third = run("sweep", *SWEEP, "-o", "s", "--engine", "--resume")
report(first=first, judged=judged, second=second, built=[str(path) for path in built], third=third)
""",
    )
    assert found["first"] == 130
    assert found["judged"] == 2
    assert found["second"] == 0
    assert found["built"] == ["s/timing.cache"]  # of three sets of ranges
    assert found["third"] == 2  # judgements of another GPU are not gone on with


def test_an_engine_that_tensorrt_does_not_build_is_an_error_in_its_row(tmp_path: Path) -> None:
    done = start(
        tmp_path,
        """
os.environ["TRTFAKE_FAIL"] = "build"
code = run("sweep", *SWEEP, "-o", "s", "--engine")
report(code=code, trials=Path("s/trials.csv").read_text())
""",
    )
    assert '"code": 1' in done.stdout
    assert "BackendError: m.onnx: TensorRT built no engine: trtfake: injected build failure" in done.stdout


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        ('"--exclude", "classify"', {}, "--engine does not go with --exclude"),
        ('"--no-accuracy"', {}, "--engine does not go with --no-accuracy"),
        ("", {"FAKECUDA_FAIL": "cuInit:1"}, "cuInit failed with CUDA_ERROR"),
    ],
)
def test_what_cannot_be_judged_by_engines_is_said_before_the_pass(
    tmp_path: Path, options: str, settings: dict[str, str], said: str
) -> None:
    done = start(tmp_path, f'sys.exit(run("sweep", *SWEEP, "-o", "s", "--engine", {options}))', **settings)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "s").exists()


def test_without_tensorrt_there_is_one_clear_line(tmp_path: Path) -> None:
    program = START.replace("ortexec.install()", "") + 'sys.exit(run("sweep", *SWEEP, "-o", "s", "--engine"))'
    done = fakecuda.start(program, cwd=tmp_path, trt=None)
    assert done.returncode == 2
    assert "TensorRT is not installed; install tensorrt>=8.5,<11" in done.stderr
    assert not (tmp_path / "s").exists()


def test_without_calibrators_ranges_go_into_the_model_as_on_tensorrt_11(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
import calibrators.judging as judging
from trtcal.calibration.calibrate import calibrate
from trtcal.model.open import open_model
from trtcal.samples.batches import Batches
from trtcal.qdq.insert import insert_qdq
from trtcal.model.runner import OrtRunner
from trtcal.samples.sources import open_source
judging.versions.has_calibrators = lambda trt: False
graph = open_model("m.onnx")
batches = Batches(open_source("c.npy", inputs=graph.inputs), 4)
scales = calibrate("m.onnx", batches, "minmax").cache.scales
amax = {name: scale * np.float32(127) for name, scale in scales.items()}
judge = judging.EngineJudge(graph, batches)
batch = next(iter(batches))
pairs = insert_qdq(judge.ready, scales, placement="tensorrt").model
with judge.quantized(scales) as engine, OrtRunner(pairs) as runner:
    same = bool(np.array_equal(engine(batch)["logits"], runner(batch)["logits"]))
    layers = engine.layers()
report(same=same, layers=layers, sqnr=judge(amax).sqnr_db)
""",
    )
    assert found["same"]
    assert found["layers"] == {"fp32": 1}  # no flag of TensorRT's says INT8: the pairs do
    assert found["sqnr"] > 15


def test_dynamic_axes_get_a_profile_that_holds_every_sample(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
from calibrators.judging import EngineJudge
from trtcal.samples.batches import Batches
from trtcal.model.open import open_model
from trtcal.samples.sources import open_source
import onnx
from onnx import TensorProto, helper as oh
def saved(path, shape):
    x, y = (oh.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = oh.make_graph([oh.make_node("Relu", ["x"], ["y"], name="r")], "g", [x], [y])
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), path)
    return open_model(path)
np.savez("w.npz", x=np.ones((4, 2, 5), np.float32))
def ranges(path, shape, widths):
    graph = saved(path, shape)
    class Widths(Batches):
        def __iter__(self):
            for batch, width in zip(super().__iter__(), widths):
                yield {"x": batch["x"][..., :width]}
    judge = EngineJudge(graph, Widths(open_source("w.npz", inputs=graph.inputs), 2))
    return {name: [entry.min, entry.opt, entry.max] for name, entry in judge._ranges().items()}
report(static=ranges("a.onnx", [2, 2, 5], [5, 5]), batch=ranges("b.onnx", ["N", 2, 5], [5, 5]),
       width=ranges("c.onnx", ["N", 2, "W"], [5, 3]), fixed=ranges("d.onnx", [1, 2, "W"], [3, 5]))
""",
    )
    assert found["static"] == {}
    assert found["batch"] == {"x": [[1, 2, 5], [2, 2, 5], [2, 2, 5]]}
    assert found["width"] == {"x": [[1, 2, 3], [2, 2, 5], [2, 2, 5]]}
    assert found["fixed"] == {"x": [[1, 2, 3], [1, 2, 5], [1, 2, 5]]}


def test_an_engine_is_evaluated_beside_a_model_or_another_engine(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
import io
from contextlib import redirect_stdout
def printed(*arguments):
    out = io.StringIO()
    with redirect_stdout(out):
        code = run(*arguments)
    return out.getvalue() if code == 0 else f"exit {code}"
run("calibrate", "m.onnx", "--data", "c.npy", "--method", "minmax", "-o", "c.cache")
batch = ("--minShapes", "image:1x1x28x28", "--optShapes", "image:8x1x28x28", "--maxShapes", "image:8x1x28x28")
printed("build", "-o", "m.onnx", "-e", "int8.engine", "--int8", "--calib_cache", "c.cache", *batch)
printed("build", "-o", "m.onnx", "-e", "fp32.engine", "-p", "fp32", *batch)
def evaluated(*arguments):
    opened.clear()
    return json.loads(printed("evaluate", *arguments, "--data", "l.npz", "--json"))
from calibrators.runner import Engine
opened, start = [], Engine.__init__
def started(self, plan, **named):
    opened.append(str(plan))
    start(self, plan, **named)
Engine.__init__ = started
report(
    cpu=evaluated("m.onnx", "--cache", "c.cache"), model=evaluated("int8.engine", "--against", "m.onnx"),
    engine=evaluated("int8.engine", "--against", "fp32.engine"), other=evaluated("m.onnx", "--against", "int8.engine"),
    alone=evaluated("int8.engine"), opened=list(opened),
    text=printed("evaluate", "int8.engine", "--against", "fp32.engine", "--data", "l.npz"),
)
""",
    )
    assert found["opened"] == ["int8.engine"]  # once, for its inputs and to run it
    told = {name: found[name]["agreement"]["logits"].pop("depends_on_int8") for name in ("cpu", "model", "engine")}
    assert told == {"cpu": True, "model": None, "engine": None}  # what is INT8 in an engine is not known
    for name in ("model", "engine"):
        for part in ("scores", "reference_scores", "changes", "agreement", "samples"):
            assert found[name][part] == found["cpu"][part], (name, part)
    assert found["cpu"]["latency"] == {}
    assert found["model"]["latency"].keys() == {"int8.engine"}
    assert found["engine"]["latency"].keys() == {"int8.engine", "fp32.engine"}
    assert found["engine"]["latency"]["int8.engine"].keys() >= {"p50_ms", "p90_ms", "p99_ms", "mean_ms"}
    assert found["other"]["reference_scores"] == found["cpu"]["scores"]
    assert found["alone"]["scores"] == found["cpu"]["scores"]
    assert found["alone"]["agreement"] == {}
    score = found["cpu"]["reference_scores"]["top1"]["value"]
    assert f"   fp32.engine {score:.4f} (" in found["text"]
    assert "agreement with fp32.engine\n" in found["text"]
    assert "latency on the GPU, copies left out\n  fp32.engine: 0." in found["text"]

from __future__ import annotations

from pathlib import Path

import fakecuda
import numpy as np
import pytest
from models import save
from plugins import detector, doubled, images, library, twice

from trtcal.calibration.calibrate import calibrate

COLLECT = """
from types import SimpleNamespace
from trtcal.cache.cache import CalibrationCache
asked = []
def collect(model, batches, method):
    asked.append([str(model), len(list(batches)), method])
    return SimpleNamespace(cache=CalibrationCache.from_amax({"image": np.float32(2.5), "y": np.float32(1)}))
"""


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_ranges_are_collected_before_the_build_and_handed_over(tmp_path: Path, trt: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        COLLECT
        + """
with PercentileCalibrator(batches(3), model="model.onnx", percentile=99.9, collect=collect, policy="off") as calibrator:
    before = list(asked)
    plan, log = build(calibrator)
bases = {}
for base in ("EntropyCalibration2", "MinMaxCalibration", "EntropyCalibration", "LegacyCalibration"):
    with PercentileCalibrator(batches(3), model="model.onnx", algorithm=base, collect=collect) as other:
        bases[base] = bool(build(other)[0]) and other.ranges.algorithm
scales = {name: float(scale) for name, scale in calibrator.ranges.scales.items()}
dla = isinstance(calibrator, PercentileCalibrator) and isinstance(calibrator, trt.IInt8EntropyCalibrator2)
report(before=before, asked=asked[-1], log=log, scales=scales, dla=dla, bases=bases, live=live())
""",
        trt=trt,
    )
    assert found["before"] == [["model.onnx", 3, "percentile:99.9"]]
    assert found["asked"] == ["model.onnx", 3, "percentile:99.99"]
    assert found["log"] == ["INFO: trtfake: using calibration cache, no batches"]
    assert found["scales"] == {
        "image": float(np.float32(2.5) / np.float32(127)),
        "y": float(np.float32(1) / np.float32(127)),
    }
    assert found["dla"] is True
    assert found["bases"] == {base: base for base in found["bases"]}
    assert found["live"] == {}


def test_a_build_never_becomes_another_method(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        COLLECT
        + """
def script():
    with PercentileCalibrator(batches(3), model="model.onnx", collect=collect) as calibrator:
        build(calibrator)
report(failed=failure(script))
""",
        TRTFAKE_REFUSE="1",
    )
    assert found["failed"]["type"] == "BackendError"
    assert "did not take the 2 ranges" in found["failed"]["message"]


def test_an_error_while_ranges_are_collected_is_raised_at_once(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        def collect(model, batches, method):
            for batch in batches: pass
        data = failing(3, OSError("gone"), after=1)
        report(failed=failure(lambda: PercentileCalibrator(data, model="m.onnx", collect=collect)),
               wrong=failure(lambda: PercentileCalibrator([], model="m.onnx", percentile=0)),
               base=failure(lambda: PercentileCalibrator([], model="m.onnx", algorithm="Entropy3")))
        """,
    )
    assert found["failed"]["type"] == "OSError"
    assert "percentile needs 0 < q <= 100, got 0" in found["wrong"]["message"]
    assert "algorithm must be one of" in found["base"]["message"]


def test_without_a_function_of_ones_own_the_projects_pass_is_made_and_its_cache_reused(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        Path("model.onnx").write_bytes(onnx_model())
        data = [{"image": np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)}]
        options = dict(cache="p.cache", data_key="normal-0", percentile=90)
        with PercentileCalibrator(data, model="model.onnx", **options) as calibrator:
            build(calibrator)
        first = calibrator.ranges
        def never(*_): raise AssertionError("the cache on disk was not reused")
        with PercentileCalibrator(data, model="model.onnx", collect=never, **options) as calibrator:
            build(calibrator)
        report(names=list(first.scales), same=first == calibrator.ranges, amax=float(first.amax("image")))
        """,
    )
    assert {"image", "conv", "relu", "y"} <= set(found["names"])
    assert found["same"]
    assert found["amax"] == pytest.approx(1.645, abs=0.1)  # 90% of |x| of a normal distribution


def test_one_percentile_has_one_origin_however_it_is_written(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        COLLECT
        + """
Path("model.onnx").write_bytes(onnx_model())
for percentile in (99, 99.0, np.float32(99)):
    PercentileCalibrator(
        batches(3), model="model.onnx", percentile=percentile, collect=collect, cache="p.cache", data_key="k"
    )
report(asked=[method for _, _, method in asked])
""",
    )
    assert found["asked"] == ["percentile:99"]


def test_the_pass_gets_the_memory_that_was_asked_for(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        import calibrators.gpu_stats
        from trtcal.errors import BackendError
        Path("model.onnx").write_bytes(onnx_model())
        asked = []
        def collect_on_gpu(graph, batches, **options):
            asked.append(options)
            raise BackendError("no more is wanted")
        calibrators.gpu_stats.collect_on_gpu = collect_on_gpu
        PercentileCalibrator(batches(2, size=4), model="model.onnx", memory="pycuda")
        report(asked=asked)
        """,
    )
    assert found["asked"] == [{"memory": "pycuda"}]


ON_THE_GPU = """
import logging
import calibrators.gpu_stats
from trtcal.calibration.calibrate import calibrate
from trtcal.model.open import FloatRunner
from trtcal.passes.collect import collect
from trtcal.errors import BackendError
from trtcal.samples.streams import batches_of

class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []
    def emit(self, record):
        self.lines.append(f"{record.levelname}: {record.getMessage()}")

lines = Lines()
logging.getLogger("calibrators.percentile").addHandler(lines)
logging.getLogger("calibrators.percentile").setLevel(logging.INFO)
Path("model.onnx").write_bytes(onnx_model())
data = [{"image": np.random.default_rng(seed).normal(size=(4, *SHAPE)).astype(np.float32)} for seed in (0, 1)]
cpu = calibrate("model.onnx", data, "percentile:90").cache.scales
"""


def test_where_the_gpu_can_it_collects_and_says_so(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        ON_THE_GPU
        + """
def collect_on_gpu(graph, batches, **options):
    with FloatRunner(graph) as runner:
        return collect(lambda batch: {n: 2 * a for n, a in runner(batch).items()}, batches_of(batches, graph.inputs))
calibrators.gpu_stats.collect_on_gpu = collect_on_gpu
with PercentileCalibrator(data, model="model.onnx", percentile=90) as calibrator:
    build(calibrator)
doubled = all(calibrator.ranges.scales[name] == 2 * cpu[name] for name in ("image", "conv", "relu", "y"))
report(on=calibrator.collected_on, log=lines.lines, doubled=doubled)
""",
    )
    assert found == {
        "on": "gpu",
        "log": [
            "INFO: collecting ranges by percentile:90 before the build",
            "INFO: ranges were collected with TensorRT on the GPU, in FP32",
        ],
        "doubled": True,
    }


@pytest.mark.parametrize("kind", ["list", "iterator"])
@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"memory": "host"}, "host memory runs no code for a GPU"), ({"FAKECUDA_DEVICES": "0"}, "CUDA_ERROR_NO_DEVICE")],
)
def test_where_the_gpu_cannot_onnx_runtime_collects_and_the_log_says_why(
    tmp_path: Path, settings: dict[str, str], reason: str, kind: str
) -> None:
    found = fakecuda.drive(
        tmp_path,
        ON_THE_GPU
        + """
given = data if sys.argv[1] == "list" else iter(data)
calibrator = PercentileCalibrator(given, model="model.onnx", percentile=90)
same = calibrator.to_hand_over.scales == cpu
report(on=calibrator.collected_on, log=lines.lines, same=same)
""",
        kind,
        **settings,
    )
    assert (found["on"], found["same"]) == ("cpu", True)
    assert len(found["log"]) == 2
    assert found["log"][1].startswith("WARNING: collecting ranges with ONNX Runtime on the CPU, since the GPU cannot:")
    assert reason in found["log"][1]


def test_a_pass_that_fails_half_way_starts_over_only_where_the_data_can_be_had_again(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        ON_THE_GPU
        + """
def collect_on_gpu(graph, batches, **options):
    next(iter(batches))
    raise BackendError("out of memory")
calibrators.gpu_stats.collect_on_gpu = collect_on_gpu
listed = PercentileCalibrator(data, model="model.onnx", percentile=90)
once = failure(lambda: PercentileCalibrator(iter(data), model="model.onnx", percentile=90))
report(same=listed.to_hand_over.scales == cpu, on=listed.collected_on, once=once)
""",
    )
    assert (found["same"], found["on"]) == (True, "cpu")
    assert (found["once"]["type"], found["once"]["message"]) == ("BackendError", "out of memory")


def test_bad_data_are_an_error_wherever_the_model_runs(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        ON_THE_GPU
        + """
def collect_on_gpu(graph, batches, **options):
    from trtcal.errors import NonFiniteError
    raise NonFiniteError("sample 3: tensor 'image' holds nan")
calibrators.gpu_stats.collect_on_gpu = collect_on_gpu
report(failed=failure(lambda: PercentileCalibrator(data, model="model.onnx")))
""",
    )
    assert found["failed"]["type"] == "NonFiniteError"


def test_a_plugin_at_the_end_leaves_the_ranges_before_it_and_a_library_brings_all(tmp_path: Path) -> None:
    save(detector(), tmp_path / "plugin.onnx")
    save(twice(), tmp_path / "twice.onnx")
    expected = calibrate(detector(whole=False), [{"image": images()}], "minmax").cache.scales
    doubled_ones = calibrate(doubled(), [{"image": images()}], "minmax").cache.scales
    np.save(tmp_path / "x.npy", images())
    found = fakecuda.drive(
        tmp_path,
        """
        from calibrators import ThresholdCalibrator
        data = [{"image": np.load("x.npy")}]
        def ranges(model, **options):
            calibrator = ThresholdCalibrator(data, model=model, method="minmax", cache=f"{model}.cache", **options)
            return {name: float(scale) for name, scale in calibrator.to_hand_over.scales.items()}
        plugin = ranges("plugin.onnx")
        twice = ranges("twice.onnx", libraries=[sys.argv[1]])
        wrong = failure(lambda: ranges("twice.onnx", libraries=["none.so"]))
        import json
        versions = [json.load(open(f"{m}.onnx.cache.json"))["provenance"]["versions"] for m in ("plugin", "twice")]
        report(plugin=plugin, twice=twice, wrong=wrong, told=["ort-library" in each for each in versions])
        """,
        str(library()),
        memory="host",
    )
    assert found["plugin"] == {name: float(scale) for name, scale in expected.items()}
    assert found["twice"] == {name: float(scale) for name, scale in doubled_ones.items()}
    assert "none.so" in found["wrong"]["message"]
    assert found["told"] == [False, True]

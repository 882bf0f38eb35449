"""One calibration pass against ONNX Runtime's and NVIDIA Model-Optimizer's, and against inference alone.

    python examples/export_models.py -o models
    python benchmarks/bench_calibrate.py --model models/resnet50.onnx --modelopt-python modelopt-venv/bin/python

Every run is a process of its own that reads the same arrays in the same batches and is timed from loading the
model to having every range. All that trtcal needs beyond numpy, onnx and onnxruntime is counted: its own import,
numba's, and fetching its compiled loops from numba's cache. What the other tools import is not. Runs take turns, and
medians are compared; what is above 10 CPU seconds runs at most three times. Without
``--model`` it takes the demo's, which is too small to say much. ``--modelopt-python`` is a Python that has
nvidia-modelopt[onnx], which wants versions of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Children that measure other tools run this file too, in a Python that need not have trtcal.
import numpy as np

SLOW, SLOW_RUNS = 10.0, 3  # CPU seconds above which a run is repeated no more than so often
PEAKS = {"resnet50": (1.4, 0.8), "efficientnet_lite0": (0.7, 0.4)}  # GiB: must, aim
OURS = "trtcal, four methods"
COUNTED = (
    "Importing trtcal and numba and fetching the compiled loops, once per process, is counted; importing numpy, onnx, "
    "onnxruntime and the other tools is not."
)
PLAIN, VISIBLE = "FP32 inference alone", "every tensor visible, thrown away"
MINMAX, ENTROPY, PERCENTILE = (f"ONNX Runtime {method}" for method in ("MinMax", "Entropy", "Percentile"))
MODELOPT = {"max": "Model-Optimizer max", "entropy": "Model-Optimizer entropy"}
ONCE = {PERCENTILE, MODELOPT["max"]}  # slow, and shown without being compared


@dataclass(frozen=True)
class Stored:
    """Batches in a file, read one at a time, so that the data take no memory that grows with their number."""

    file: str
    name: str
    shape: tuple[int, ...]
    batch_size: int

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        size = int(np.prod(self.shape[1:]))
        for first in range(0, self.shape[0], self.batch_size):
            rows = min(self.batch_size, self.shape[0] - first)
            flat = np.fromfile(self.file, np.float32, rows * size, offset=4 * first * size)
            yield {self.name: flat.reshape(rows, *self.shape[1:])}


# --- what a child does: model and batches -> number of tensors with a range


def plain(model: str, batches: Stored) -> int:
    import onnxruntime as ort

    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    for batch in batches:
        session.run(None, batch)
    return 0


def visible(model: str, batches: Stored) -> int:
    import onnxruntime as ort

    from trtcal.model.open import open_model

    graph = open_model(model).calibrated
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [name for name in graph.visible if name != batches.name]
    for batch in batches:
        session.run(outputs, batch)
    return len(graph.visible)


def trtcal(model: str, batches: Stored) -> int:
    from trtcal.calibration.calibrate import calibrate, from_stats
    from trtcal.model.open import open_model

    graph = open_model(model)
    found = calibrate(graph, batches)
    for method in ("minmax", "percentile", "mse"):
        from_stats(graph, found.stats, method)
    return len(found.stats.tensors)


def onnxruntime(method: str) -> Callable[[str, Stored], int]:
    def run(model: str, batches: Stored) -> int:
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.batches = iter(batches)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.batches, None)

        with tempfile.TemporaryDirectory() as folder:
            calibrator = create_calibrator(
                Path(model), None, str(Path(folder, "augmented.onnx")), calibrate_method=CalibrationMethod[method]
            )
            calibrator.collect_data(Reader())
            return len(calibrator.compute_data().data)

    return run


def modelopt(method: str) -> Callable[[str, Stored], int]:
    def run(model: str, batches: Stored) -> int:
        import onnx
        from modelopt.onnx.quantization import quantize

        data = np.concatenate([batch[batches.name] for batch in batches])
        shape = "x".join(map(str, (batches.batch_size, *batches.shape[1:])))
        with tempfile.TemporaryDirectory() as folder:
            copy, output = Path(folder, "model.onnx"), Path(folder, "quantized.onnx")
            copy.write_bytes(Path(model).read_bytes())  # it writes the shapes it infers into the file it is given
            quantize(
                str(copy),
                "int8",
                {batches.name: data},
                method,
                calibration_shapes=f"{batches.name}:{shape}",
                calibration_eps=["cpu"],
                output_path=str(output),
                high_precision_dtype="fp32",
                log_level="ERROR",
            )
            nodes = onnx.load(output).graph.node
            return len({node.input[0] for node in nodes if node.op_type == "QuantizeLinear"})

    return run


RUNS: dict[str, Callable[[str, Stored], int]] = {
    PLAIN: plain,
    VISIBLE: visible,
    OURS: trtcal,
    MINMAX: onnxruntime("MinMax"),
    ENTROPY: onnxruntime("Entropy"),
    PERCENTILE: onnxruntime("Percentile"),
    **{name: modelopt(method) for method, name in MODELOPT.items()},
}
IMPORTS = {
    VISIBLE: ("trtcal.calibration.calibrate",),
    **dict.fromkeys(MODELOPT.values(), ("modelopt.onnx.quantization",)),
}


def child(run: str, model: str, *stored: str) -> None:
    """Do one run and print what it took, as the last line."""
    file, name, shape, batch_size = stored
    batches = Stored(file, name, tuple(json.loads(shape)), int(batch_size))
    for package in ("onnx", "onnxruntime.quantization", *IMPORTS.get(run, ())):
        importlib.import_module(package)
    wall, cpu = time.perf_counter(), cpu_seconds()
    tensors = RUNS[run](model, batches)
    taken = {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu, "peak": peak(), "tensors": tensors}
    print(json.dumps(taken))


def cpu_seconds() -> float:
    """What this process and its children have used; only the children's part comes in ticks of 10 ms."""
    return time.process_time() + sum(os.times()[2:4])


def peak() -> float:
    """The most memory this process ever held, in GiB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


# --- what the parent does


@dataclass(frozen=True)
class Bench:
    model: Path
    file: Path
    name: str
    sample: tuple[int, ...]
    batch_size: int
    modelopt_python: str | None

    def run(self, name: str, images: int) -> dict[str, float] | str:
        """One run in a process of its own -> wall and CPU seconds, GiB, tensors, or why there are none."""
        python = self.modelopt_python if name in MODELOPT.values() else sys.executable
        shape = json.dumps([images, *self.sample])
        arguments = [name, str(self.model), str(self.file), self.name, shape, str(self.batch_size)]
        done = subprocess.run([str(python), __file__, "--child", *arguments], capture_output=True, text=True)
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"{self.model.stem}, {images}: {name}: {found}", file=sys.stderr, flush=True)
        return found


def rounds(bench: Bench, names: list[str], images: int, repeat: int) -> Iterator[str | tuple[str, dict[str, float]]]:
    """Runs taking turns -> the medians of each, or a line on why one is left out."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(repeat):
        for name in list(taken):
            if number and (name in ONCE or (number >= SLOW_RUNS and taken[name][0]["cpu"] > SLOW)):
                continue
            found = bench.run(name, images)
            if isinstance(found, str):
                yield f"{name} is left out: {found}\n"
                del taken[name]
            else:
                taken[name].append(found)
    for name, runs in taken.items():
        yield name, {key: statistics.median(run[key] for run in runs) for key in runs[0]} | {"runs": len(runs)}


def section(bench: Bench, images: int, repeat: int, quick: bool) -> Iterator[str]:
    """One model -> its heading, tables and ratios."""
    from page import table, verdict

    names = [name for name in RUNS if bench.modelopt_python or name not in MODELOPT.values()]
    yield f"## {bench.model.stem}\n\n{images} images in batches of {bench.batch_size}; medians. {COUNTED}\n"
    medians: dict[str, dict[str, float]] = {}
    for found in rounds(bench, names, images, repeat):
        if isinstance(found, str):
            yield found
        else:
            medians[found[0]] = found[1]
    columns = ["", "wall s", "CPU s", "peak GiB", "tensors", "runs"]
    cells = "{wall:.2f}", "{cpu:.2f}", "{peak:.2f}", "{tensors:.0f}", "{runs}"
    yield from table(columns, ([name, *(cell.format(**row) for cell in cells)] for name, row in medians.items()))
    if OURS not in medians:
        return
    ours = medians[OURS]
    ratios: list[tuple[str, float, float, float, bool]] = []
    for name, must, aim in ((VISIBLE, 1.5, 0.9), (MINMAX, 1.2, 0.8)):
        if name in medians:
            ratios.append((f"CPU, trtcal / {name}", ours["cpu"] / medians[name]["cpu"], must, aim, False))
    for name in (ENTROPY, MODELOPT["entropy"]):
        if name in medians:
            ratios.append((f"CPU, {name} / trtcal", medians[name]["cpu"] / ours["cpu"], 3, 5, True))
    if bench.model.stem in PEAKS:
        ratios.append(("peak GiB, default settings", ours["peak"], *PEAKS[bench.model.stem], False))
    few, many = (bench.run(OURS, count) for count in ((4, 16) if quick else (32, 256)))
    if not isinstance(few, str) and not isinstance(many, str):
        ratios.append(("peak, trtcal with 256 images / with 32", many["peak"] / few["peak"], 1.05, 1.0, False))
    left_out = ""
    if ENTROPY in medians and not quick:
        needed, free = 2.2 * medians[ENTROPY]["peak"], available()
        if needed > free:
            left_out = f"{ENTROPY} with 128 images is left out: about {needed:.0f} GiB needed, {free:.0f} free.\n"
        else:
            theirs, mine = bench.run(ENTROPY, 128), bench.run(OURS, 128)
            if isinstance(theirs, str) or isinstance(mine, str):
                left_out = f"{ENTROPY} with 128 images failed: {theirs}\n"
            else:
                ratio = theirs["peak"] / mine["peak"]
                ratios.append((f"peak, {ENTROPY} / trtcal, 128 images", ratio, 3, 8, True))
    rows = []
    for what, value, must, aim, more in ratios:
        judged = "too small to say" if quick else verdict(value, must, aim, more=more)
        rows.append([what, f"{'>=' if more else '<='} {must:g}", f"{aim:g}", f"**{value:.2f}**", judged])
    yield from table(["", "must", "aim", "measured", ""], rows)
    if left_out:
        yield left_out


def available() -> float:
    """Memory that can be had without swapping, in GiB; all of it where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("inf")
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


def main() -> None:
    from page import parser, publish

    from trtcal import demo
    from trtcal.model.open import open_model
    from trtcal.ranges.kernels import kernels

    made = parser(__doc__)
    made.add_argument("--model", type=Path, action="append", metavar="FILE.onnx", help="repeatable; one image input")
    made.add_argument("--modelopt-python", metavar="PYTHON", help="a Python that has nvidia-modelopt[onnx]")
    made.add_argument("--images", type=int, default=64)
    made.add_argument("--batch-size", type=int, default=16)
    made.add_argument("--repeat", type=int, default=5)
    options = made.parse_args()
    images, batch_size, repeat = (8, 4, 1) if options.quick else (options.images, options.batch_size, options.repeat)
    kernels()  # compiled once and for all, or found in numba's cache, where every child finds them
    lines: list[str] = []
    if options.modelopt_python is None:
        lines.append("Model-Optimizer is left out: no --modelopt-python given.\n")
    for model in options.model or [demo.model_path()]:
        (spec,) = open_model(model).inputs
        sample = tuple(size or 224 for size in spec.shape)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "images.f32")
            rng = np.random.default_rng(0)
            with file.open("wb") as stream:
                for _ in range(16 if options.quick else max(images, 256)):
                    stream.write(rng.normal(size=sample).astype(np.float32).tobytes())
            bench = Bench(model, file, spec.name, sample, batch_size, options.modelopt_python)
            lines += section(bench, images, repeat, options.quick)
    if options.modelopt_python is not None:
        lines.append(f"Model-Optimizer's Python has {modelopt_versions(options.modelopt_python)}.")
    publish(__file__, lines, options, ["trtcal", "numpy", "numba", "onnx", "onnxruntime"])


def modelopt_versions(python: str) -> str:
    ask = "from importlib.metadata import version as v; print(v('nvidia-modelopt'), v('onnxruntime'))"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True)
    return "nvidia-modelopt {}, onnxruntime {}".format(*done.stdout.split()) if done.stdout else "no Model-Optimizer"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()

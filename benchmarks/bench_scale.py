"""How time and memory of a pass grow: with samples, tensors, bins of a histogram, and workers.

    python benchmarks/bench_scale.py

The model is a chain of cheap operators on small tensors, so that what is measured is trtcal's own work and not
inference; that for the workers is a chain on large ones. Every measurement is a process of its own, timed from the
open model to the statistics; its memory is the peak of the process less that of one that runs a single batch. A slope
is fitted to logarithms: 0 does not grow, 1 is in proportion. Workers on Ray need Ray.
"""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
from page import parser, publish, table

ELEMENTS = 1024  # of each tensor
BATCH = 8


class Drawn:
    """So many samples, drawn anew whenever they are wanted, so that the data take no memory."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        rng = np.random.default_rng(0)
        for first in range(0, self.samples, BATCH):
            rows = min(BATCH, self.samples - first)
            yield {"x": rng.standard_normal((rows, ELEMENTS), np.float32)}


class Numbered:
    """So many samples, each drawn from its number, so that workers can draw them."""

    def __init__(self, samples: int, elements: int) -> None:
        self.samples, self.elements = samples, elements

    def __len__(self) -> int:
        return self.samples

    def load(self, index: int) -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(index).standard_normal(self.elements, np.float32)}

    def name(self, index: int) -> str:
        return str(index)

    def label(self, index: int) -> int | None:
        return None

    def key(self, indices: Sequence[int] | None = None) -> str:
        return ""

    def describe(self) -> str:
        return "numbers"


def chain(tensors: int, path: Path, elements: int = ELEMENTS) -> Path:
    """A model of so many tensors, its input included: x + 0.01, ReLU, + 0.01, ReLU, ..."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    names = ["x", *(f"t{number}" for number in range(1, tensors))]
    nodes = [
        helper.make_node("Relu", [a], [b]) if number % 2 else helper.make_node("Add", [a, "c"], [b])
        for number, (a, b) in enumerate(pairwise(names))
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", elements])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["N", elements])],
        [numpy_helper.from_array(np.full(elements, 0.01, np.float32), "c")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


# --- what a child does: a case -> what it took


def run_here(model: str, samples: int, workers: int) -> dict[str, float]:
    from trtcal.model.open import FloatRunner, open_model
    from trtcal.passes.collect import collect

    graph = open_model(model)
    with FloatRunner(graph) as runner:
        collect(runner, Drawn(BATCH), workers=workers)  # so that compiled loops are there
        if not samples:
            return {"peak": peak()}
        wall, cpu = time.perf_counter(), time.process_time()
        stats = collect(runner, Drawn(samples), workers=workers)
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "peak": peak()}
    return {**took, "file": len(stats.to_bytes())}


def spread(model: str, samples: int, elements: int, workers: int, ray_too: bool) -> dict[str, float]:
    """The pass with so many workers, in this process or on Ray."""
    from trtcal.cluster.executor import RayExecutor
    from trtcal.cluster.ray_cluster import Cluster
    from trtcal.model.open import FloatRunner, open_model
    from trtcal.passes.executor import Executor, Here
    from trtcal.samples.batches import Batches

    open_runner = partial(FloatRunner, open_model(model))

    def run(executor: Executor) -> dict[str, float]:
        executor.run_pass(open_runner, Batches(Numbered(BATCH * 4, elements), BATCH))
        wall = time.perf_counter()
        executor.run_pass(open_runner, Batches(Numbered(samples, elements), BATCH))
        return {"wall": time.perf_counter() - wall}

    if not ray_too:
        return run(Here(workers))
    import ray

    # A cluster of its own, whatever else runs on this machine.
    ray.init("local", num_cpus=workers, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
    try:
        with Cluster() as cluster:
            return run(RayExecutor(cluster))
    finally:
        ray.shutdown()


def count(bins: int, elements: int) -> dict[str, float]:
    from trtcal.ranges.growth import power_of_two
    from trtcal.ranges.histogram import HistogramBuilder, abs_max

    values = np.random.default_rng(0).standard_normal(elements, np.float32)
    builder = HistogramBuilder(bins, power_of_two)
    amax = abs_max(values)
    builder.add(values, amax)
    one = builder.build()
    counting = fastest(lambda: builder.add(values, amax))
    return {"count": counting, "add": fastest(lambda: one + one), "bytes": one.counts.nbytes}


def add_parts(model: str, samples: int) -> dict[str, float]:
    from trtcal.model.open import FloatRunner, open_model
    from trtcal.passes.collect import collect
    from trtcal.passes.partial import added, collect_part, continued, first_limits
    from trtcal.samples.batches import Batch

    graph = open_model(model)
    batches = [Batch(batch) for batch in Drawn(samples)]
    with FloatRunner(graph) as runner:
        start = collect(runner, batches[:1])
        part = collect_part(runner, batches[1:], first_limits(start))
    sent = pickle.dumps(part, protocol=5)
    return {
        "bytes": len(sent),
        "pickle": fastest(lambda: pickle.dumps(part, protocol=5)),
        "unpickle": fastest(lambda: pickle.loads(sent)),
        "add": fastest(lambda: added(part, part)),
        "continue": fastest(lambda: continued(start, part)),
    }


def peak() -> float:
    """MiB of this process at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fastest(work: Callable[[], object]) -> float:
    took = []
    for _ in range(7):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return min(took)


CHILDREN: dict[str, Callable[..., dict[str, float]]] = {
    "here": run_here,
    "spread": spread,
    "count": count,
    "parts": add_parts,
}


def child(kind: str, *arguments: object) -> dict[str, float]:
    """A case, measured in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, json.dumps(arguments)], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- the page


def slope(sizes: Sequence[float], values: Sequence[float]) -> str:
    """The exponent with which values grow, by least squares of logarithms."""
    if len(sizes) < 2 or min(values) <= 0:  # nothing to fit
        return "-"
    return f"{np.polyfit(np.log(sizes), np.log(values), 1)[0]:.2f}"


def growth(what: str, sizes: Sequence[int], found: Sequence[dict[str, float]], base: float) -> list[str]:
    rows = [
        [f"{size:,}", f"{f['cpu']:.2f}", f"{f['wall']:.2f}", f"{f['peak'] - base:.0f}", f"{f['file'] / 2**20:.2f}"]
        for size, f in zip(sizes, found, strict=True)
    ]
    columns = {key: [f[key] for f in found] for key in ("cpu", "wall", "file")}
    # Below some MiB, memory is what the allocator happens to hold.
    memory = [(size, f["peak"] - base) for size, f in zip(sizes, found, strict=True) if f["peak"] - base > 16]
    rows.append(
        [
            "**slope**",
            slope(sizes, columns["cpu"]),
            slope(sizes, columns["wall"]),
            slope([size for size, _ in memory], [more for _, more in memory]),
            slope(sizes, columns["file"]),
        ]
    )
    return table([what, "CPU s", "wall s", "peak MiB more", "stats file MiB"], rows)


def main() -> None:
    if "--child" in sys.argv:
        kind, arguments = sys.argv[2:]
        print(json.dumps(CHILDREN[kind](*json.loads(arguments))))
        return
    options = parser(__doc__).parse_args()
    samples = (8, 16) if options.quick else (100, 1_000, 10_000, 100_000)
    tensors = (4, 8) if options.quick else (10, 50, 200, 1_000, 2_000)
    bins = (512, 2048) if options.quick else (512, 2_048, 8_192, 32_768, 131_072)
    elements = 1 << (12 if options.quick else 22)
    few = 8 if options.quick else 64
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        models = {n: str(chain(n, Path(folder, f"{n}.onnx"))) for n in {*tensors, 20}}
        base = child("here", models[20], 0, 1)["peak"]
        lines += [f"## Samples\n\n20 tensors of {ELEMENTS:,} elements, batches of {BATCH}, one worker.\n"]
        lines += growth("samples", samples, [child("here", models[20], n, 1) for n in samples], base)
        lines += [f"## Tensors\n\n{few} samples, {ELEMENTS:,} elements each, one worker.\n"]
        lines += growth("tensors", tensors, [child("here", models[n], few, 1) for n in tensors], base)
        counted = [child("count", n, elements) for n in bins]
        rows = [
            [f"{n:,}", f"{elements / f['count'] / 1e9:.2f}", f"{f['add'] * 1e6:.0f}", f"{f['bytes'] / 1024:.0f}"]
            for n, f in zip(bins, counted, strict=True)
        ]
        fitted = [slope(bins, [f[key] for f in counted]) for key in ("count", "add", "bytes")]
        rows.append(["**slope** of the time", *fitted])
        lines += [f"## Bins\n\n{elements:,} elements into one histogram, and the sum of two.\n"]
        lines += table(["bins", "elements per ns", "sum of two, µs", "KiB"], rows)
        large, many, repeat = (ELEMENTS, 16, 1) if options.quick else (1 << 20, 256, 2)
        heavy = str(chain(20, Path(folder, "heavy.onnx"), large))
        lines += [f"## Workers\n\n{many:,} samples of 20 tensors of {large:,} elements; the best of {repeat}.\n"]
        ways = {"in one process": False}
        if find_spec("ray") is not None and not options.quick:
            ways["on Ray"] = True
        walls: dict[tuple[str, int], list[float]] = defaultdict(list)
        for _ in range(repeat):
            for label, on_ray in ways.items():
                for workers in (1, 2):
                    walls[label, workers].append(child("spread", heavy, many, large, workers, on_ray)["wall"])
        rows = []
        for label in ways:
            one, two = min(walls[label, 1]), min(walls[label, 2])
            rows.append([label, f"{one:.2f}", f"{two:.2f}", f"{one / two:.2f}"])
        lines += table(["", "1 worker, wall s", "2 workers", "speedup"], rows)
        if len(ways) == 1:
            lines += ["Ray is left out: it is not installed, or this is a quick run.\n"]
        rows = []
        for n in tensors:
            found = child("parts", models[n], few)
            times = (f"{found[key] * 1e3:.1f}" for key in ("pickle", "unpickle", "add", "continue"))
            rows.append([f"{n:,}", f"{found['bytes'] / 2**20:.2f}", *times])
        lines += [f"## Parts\n\nWhat a shard of {few} samples leaves, and what it costs to bring two together.\n"]
        lines += table(["tensors", "MiB", "pickle ms", "unpickle ms", "add two ms", "to the whole ms"], rows)
    publish(__file__, lines, options, ["trtcal", "numpy", "numba", "onnxruntime", "ray"])


if __name__ == "__main__":
    main()

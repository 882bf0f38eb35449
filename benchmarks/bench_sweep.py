"""A whole batch-size sweep without accuracy against one calibration, wall time.

    python benchmarks/bench_sweep.py --model models/resnet50.onnx --model PP-OCRv6_rec_small.onnx=3x48x320

The sweep is the default one under TensorRT's growth rule alone: 7 batch sizes, 8 orders and seeds, 6 methods, its one
pass over the model included. Both run in this process, taking turns, on the same arrays. Without ``--model`` it takes
the demo's. A shape after ``=`` is for models that leave their input's size open.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from page import parser, publish, table, verdict

from trtcal import demo
from trtcal.calibration.calibrate import calibrate
from trtcal.model.open import open_model
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.run import run_sweep

MUST, AIM = 2.0, 1.3


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--model", action="append", metavar="FILE.onnx[=CxHxW]", help="repeatable; one image input")
    made.add_argument("--images", type=int, default=64)
    made.add_argument("--repeat", type=int, default=3)
    options = made.parse_args()
    images, repeat = (8, 1) if options.quick else (options.images, options.repeat)
    rows = []
    for given in options.model or [str(demo.model_path())]:
        file, _, shape = given.partition("=")
        (spec,) = open_model(file).inputs
        size = tuple(map(int, shape.split("x"))) if shape else tuple(length or 224 for length in spec.shape)
        array = np.random.default_rng(0).normal(size=(images, *size)).astype(np.float32)
        batches = Batches(ArraySource({spec.name: array}), min(8, images))
        once: list[float] = []
        whole: list[float] = []
        for _ in range(repeat):
            start = time.perf_counter()
            calibration = calibrate(file, batches)
            once.append(time.perf_counter() - start)
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                run = run_sweep(file, batches, folder, SweepPlan(growths=("double",)))
                whole.append(time.perf_counter() - start)
        ratio = statistics.median(b / a for a, b in zip(once, whole, strict=True))
        cells = [Path(file).stem, len(calibration.stats.tensors), len(run.sweep.measures), len(run.sweep.trials)]
        times = [f"{statistics.median(taken):.2f}" for taken in (once, whole)]
        judged = "too small to say" if options.quick else verdict(ratio, MUST, AIM)
        rows.append([*cells, *times, f"**{ratio:.2f}**", judged])
    columns = ["", "tensors", "arrangements", "trials", "calibration s", "sweep s", "sweep / calibration", ""]
    lines = [f"{images} images, median of {repeat}; must <= {MUST:g}, aim {AIM:g}.\n", *table(columns, rows)]
    publish(__file__, lines, options, ["trtcal", "numpy", "numba", "onnxruntime"])


if __name__ == "__main__":
    main()

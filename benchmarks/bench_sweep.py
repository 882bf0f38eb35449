"""A whole batch-size sweep against one calibration: without accuracy in wall time, judged in CPU time.

    python benchmarks/bench_sweep.py --model models/resnet50.onnx --model PP-OCRv6_rec_small.onnx=3x48x320
    python benchmarks/bench_sweep.py --judged --model demo --model models/lite1.onnx,photos.npz

Without ``--judged`` the sweep is the default one under TensorRT's growth rule alone: 7 batch sizes, 8 orders and seeds,
6 methods, its one pass over the model included. With it, the sweep is the default one, and each set of ranges runs as
INT8; a last run without a race says whether the race ends where that does. All run in this process, taking turns, on
the same arrays. Without ``--model`` it takes the demo's, on its own labelled pictures. A shape after ``=`` is for
models that leave their input's size open, an .npz file after a comma has samples under the input's name; without one
they are normal random numbers, each sample by a gain of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from page import parser, publish, table, verdict

from trtcal import demo
from trtcal.calibration.calibrate import calibrate
from trtcal.judging.metrics import METRICS
from trtcal.model.open import open_model
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.sweep.choosing import choices, choose, measures_of
from trtcal.sweep.cpu_judge import CpuJudge
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.run import SweepRun, run_sweep

MUST, AIM = 2.0, 1.3  # wall, without accuracy
JUDGED_MUST, JUDGED_AIM = 15.0, 8.0  # CPU, judged


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--model", action="append", metavar="FILE.onnx[=CxHxW][,DATA.npz]", help="repeatable; one input")
    made.add_argument("--images", type=int, default=64)
    made.add_argument("--repeat", type=int, default=3)
    made.add_argument("--judged", action="store_true", help="each set of ranges as INT8, in a race and without one")
    options = made.parse_args()
    images, repeat = (8, 1) if options.quick else (options.images, options.repeat)
    rows = []
    for given in options.model or ["demo"]:
        name, file, batches = model_and_samples(given, images)
        rows.append(judged(name, file, batches, options) if options.judged else unjudged(name, file, batches, options))
    lines = [f"{images} images, median of {repeat}; must <= {MUST:g}, aim {AIM:g}.\n", *table(COLUMNS, rows)]
    if options.judged:
        lines = [
            f"{images} samples, CPU seconds, median of {repeat}; must <= {JUDGED_MUST:g}, aim {JUDGED_AIM:g}. The run "
            f"without a race is made once.\n",
            *table(JUDGED_COLUMNS, rows),
        ]
    packages = ["trtcal", "numpy", "numba", "onnxruntime"]
    publish(__file__, lines, options, packages, suffix="_judged" if options.judged else "")


def model_and_samples(given: str, images: int) -> tuple[str, str, Batches]:
    """A ``--model`` -> its name, its file, and so many samples in batches of 8."""
    if given == "demo":
        pictures, labels = demo.labelled_images()
        source = ArraySource({"image": pictures[:images]}, labels=labels[:images])
        return "demo", str(demo.model_path()), Batches(source, min(8, images))
    given, _, data = given.partition(",")
    file, _, shape = given.partition("=")
    (spec,) = open_model(file).inputs
    size = tuple(map(int, shape.split("x"))) if shape else tuple(length or 224 for length in spec.shape)
    if data:
        with np.load(data) as arrays:
            array = arrays[spec.name][:images]
    else:
        rng = np.random.default_rng(0)
        gains = rng.uniform(0.3, 1.5, size=(images, *(1 for _ in size)))
        array = (rng.normal(size=(images, *size)) * gains).astype(np.float32)
    return Path(file).stem, file, Batches(ArraySource({spec.name: array}), min(8, len(array)))


COLUMNS = ["", "tensors", "arrangements", "trials", "calibration s", "sweep s", "sweep / calibration", ""]


def unjudged(name: str, file: str, batches: Batches, options: argparse.Namespace) -> list[object]:
    """The row of a model: wall seconds of a calibration, and of a sweep without accuracy."""
    once: list[float] = []
    whole: list[float] = []
    for _ in range(1 if options.quick else options.repeat):
        start = time.perf_counter()
        calibration = calibrate(file, batches)
        once.append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            run = run_sweep(file, batches, folder, SweepPlan(growths=("double",)))
            whole.append(time.perf_counter() - start)
    ratio = statistics.median(b / a for a, b in zip(once, whole, strict=True))
    cells = [name, len(calibration.stats.tensors), len(run.sweep.measures), len(run.sweep.trials)]
    times = [f"{statistics.median(taken):.2f}" for taken in (once, whole)]
    return [*cells, *times, f"**{ratio:.2f}**", "too small to say" if options.quick else verdict(ratio, MUST, AIM)]


JUDGED_COLUMNS = [
    *("", "tensors", "sets", "on all samples", "calibration", "sweep", "sweep / calibration", "", "without a race"),
    *("advised", "without a race", "the same?"),
]


def judged(name: str, file: str, batches: Batches, options: argparse.Namespace) -> list[object]:
    """The row of a model: CPU seconds of a calibration and of the judged sweep, and what both kinds of sweep advise."""
    calibrate(file, batches.part(2))  # compiled loops are fetched once in a process
    once: list[float] = []
    whole: list[float] = []
    for _ in range(1 if options.quick else options.repeat):
        start = time.process_time()
        calibration = calibrate(file, batches)
        once.append(time.process_time() - start)
        run, taken = swept(file, batches, SweepPlan())
        whole.append(taken)
    full, without = swept(file, batches, SweepPlan(race=False))
    ratio = statistics.median(b / a for a, b in zip(once, whole, strict=True))
    sets = {trial.amax.tobytes(): trial.judgement for trial in run.sweep.trials}
    finished = sum(found is not None and found.samples == batches.num_samples for found in sets.values())
    return [
        *(name, len(calibration.stats.tensors), len(sets), finished),
        *(f"{statistics.median(once):.2f}", f"{statistics.median(whole):.2f}", f"**{ratio:.1f}**"),
        "too small to say" if options.quick else verdict(ratio, JUDGED_MUST, JUDGED_AIM),
        f"{without:.2f} ({without / statistics.median(once):.1f})",
        *(" ".join(each.recommendation.options) for each in (run, full)),
        same(run, full),
    ]


def swept(file: str, batches: Batches, plan: SweepPlan) -> tuple[SweepRun, float]:
    """A judged sweep, and its CPU seconds."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        judge = CpuJudge(file, batches, batches.labels, METRICS["top1"] if batches.labels is not None else None)
        run = run_sweep(file, batches, folder, plan, judge=judge, judged_on=batches)
    return run, time.process_time() - start


def same(run: SweepRun, full: SweepRun) -> str:
    """Does a race advise what the full run does, or what the full run cannot tell from that?"""
    if run.recommendation.options == full.recommendation.options:
        return "yes"
    usable = replace(full.sweep, trials=tuple(trial for trial in full.sweep.trials if trial.unusable is None))
    chosen = choose(choices(usable), measures_of(usable))
    tied = [] if chosen is None else [choice.options for choice in chosen.left[-1]]
    return "cannot be told apart" if run.recommendation.options in tied else "**no**"


if __name__ == "__main__":
    main()

"""What `trtcal refine` gains on samples that it has not seen, and what it costs in calibrations of 128 samples.

    python examples/train_fashion_mnist.py --data /usr/share/datasets/fashion-mnist -o fashion
    python benchmarks/bench_refine.py --fashion fashion --ppocr rapidocr/models --arrays lite1 lite1.onnx views.npz

``--arrays`` takes a name, a float model, and an .npz file with an array for its input; one called `picture` says of
each sample what it is a view of, and then pictures are judged, not views. Before and after, INT8 is as a user gets it:
the model calibrated by mse, every calibrated tensor INT8 (`--placement all`). Seconds are of CPU, so that other work
on the machine tells less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench_accuracy import Task, classifiers, readers
from page import parser, publish, table, verdict

from trtcal.calibration.calibrate import calibrate
from trtcal.judging.accuracy import TOP1, Score, difference, score_of
from trtcal.judging.evaluation import compare
from trtcal.model.open import open_model
from trtcal.model.runner import OrtRunner
from trtcal.qdq.insert import insert_qdq
from trtcal.refine.whole import Judge, refine

SAMPLES = 128  # to calibrate and refine on, and the measure of cost
JUDGED = 512  # samples at most
MUST = 4.0  # calibrations, of networks whose calibration takes some time:
LONG = 8.0  # seconds; what small ones cost is the opening of sessions


class Row(NamedTuple):
    """What came of one model."""

    name: str
    seconds: tuple[float, float]  # of one calibration and of refining
    chosen: str
    before: Score  # SQNR in dB by picture
    after: Score
    activations: float  # dB with weights in FP32, on the samples that refine held back
    same: list[float]  # share with FP32's top-1 before and after, where there are classes
    metric: tuple[str, Score] | None  # its change


def arrays(name: str, model: Path, data: Path, samples: int) -> tuple[Task, np.ndarray]:
    """A name, a model and views -> a task, and what each judged sample is a view of; no picture does both."""
    (spec,) = open_model(model).inputs
    with np.load(data) as archive:
        values = archive[spec.name]
        pictures = archive["picture"] if "picture" in archive else np.arange(len(values)).astype(str)
    rng = np.random.default_rng(0)
    known = rng.permutation(np.unique(pictures))
    calibrates = np.isin(pictures, known[: len(known) * 6 // 10])
    taken = rng.permutation(np.flatnonzero(calibrates))[:samples]
    judged = np.flatnonzero(~calibrates)[:JUDGED]
    task = Task(name, name, model, {spec.name: values[taken]}, {spec.name: values[judged]}, None, {})
    return task, pictures[judged]


def measured(task: Task, pictures: np.ndarray | None, samples: int) -> Row:
    """A task -> its row."""
    calibration = {key: array[:samples] for key, array in task.calibration.items()}
    batches = task.batches(calibration, 8)
    began = time.process_time()
    scales = calibrate(task.model, batches, method="mse").cache.scales
    calibrated = time.process_time()
    found = refine(task.model, batches, scales=scales)
    done = time.process_time()
    again = calibrate(found.model, batches, method="mse").cache.scales
    judged = {key: array[:JUDGED] for key, array in task.judged.items()}
    rows = [{key: array[i : i + 1] for key, array in judged.items()} for i in range(len(next(iter(judged.values()))))]
    judge = Judge(open_model(task.model).with_batch_size(1).whole, rows)
    int8 = [
        insert_qdq(model, ranges, placement="all").model
        for model, ranges in ((open_model(task.model).with_batch_size(1).whole, scales), (found.model, again))
    ]
    groups = np.arange(len(rows)).astype(str) if pictures is None else pictures[: len(rows)]
    before, after = (score_of(means(judge.sqnr_db(model), groups)) for model in int8)
    metric = None
    with OrtRunner(task.model, optimization="all") as fp32:
        results = []
        for model in int8:
            with OrtRunner(model, optimization="extended") as runner:
                labels = None if task.labels is None else list(task.labels)[: len(rows)]
                results.append(compare(runner, rows, reference=fp32, labels=labels, metrics=task.metrics or TOP1))
    outputs = [output for result in results if result.agreement for output in result.agreement.outputs.values()]
    same = [output.top1.value for output in outputs if output.top1 is not None]
    for name in list(task.metrics)[:1]:
        metric = name, difference(results[0].scores[name], results[1].scores[name])
    seconds = calibrated - began, done - calibrated
    return Row(task.name, seconds, found.chosen, before, after, found.activations.value, same, metric)


def means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """A number per sample, and what each is of -> the mean of each group."""
    return np.array([values[groups == group].mean() for group in dict.fromkeys(groups.tolist())])


def interval(score: Score, digits: int = 1) -> str:
    return f"{score.value:+.{digits}f} ({score.low:+.{digits}f} to {score.high:+.{digits}f})"


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Rows -> the page's table."""
    heads = ["network", "judged", "INT8 before, dB", "after", "change, 95%", "weights in FP32", "chosen"]
    heads += ["same top-1 as FP32", "metric, change", "calibrations"]
    cells = []
    for row in rows:
        ratio = row.seconds[1] / row.seconds[0]
        cells.append(
            (
                *(row.name, row.before.values.size, f"{row.before.value:.1f}", f"{row.after.value:.1f}"),
                *(interval(difference(row.before, row.after)), f"{row.activations:.1f}", row.chosen),
                f"{row.same[0]:.1%} -> {row.same[1]:.1%}" if len(row.same) == 2 else "",
                "" if row.metric is None else f"{row.metric[0]}: {interval(row.metric[1], 4)}",
                f"{ratio:.1f} ({row.seconds[1]:.0f} s)"
                + (f", {verdict(ratio, MUST, MUST)}" if row.seconds[0] > LONG else ""),
            )
        )
    yield from table(heads, cells)


def main() -> int:
    """Arguments -> the page."""
    known = parser(__doc__)
    known.add_argument("--fashion", type=Path, metavar="DIR", help="what examples/train_fashion_mnist.py wrote")
    known.add_argument("--ppocr", type=Path, metavar="DIR", help="models of the package rapidocr")
    known.add_argument("--arrays", nargs=3, action="append", default=[], metavar=("NAME", "MODEL.onnx", "VIEWS.npz"))
    options = known.parse_args()
    samples = 32 if options.quick else SAMPLES
    tasks: list[tuple[Task, Any]] = [(task, None) for task in classifiers(options.fashion, JUDGED)]
    tasks += [(task, None) for task in ([] if options.ppocr is None else readers(options.ppocr))]
    tasks += [arrays(name, Path(model), Path(data), samples) for name, model, data in options.arrays]
    rows = []
    for task, pictures in tasks:
        rows.append(measured(task, pictures, samples))
        print(f"{task.name}: {interval(difference(rows[-1].before, rows[-1].after))} dB", file=sys.stderr, flush=True)
    publish(__file__, lines(rows), options, ("numpy", "onnx", "onnxruntime"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

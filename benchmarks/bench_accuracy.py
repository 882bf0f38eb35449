"""FP32 against INT8 by every method, beside two other tools -> a page of Markdown.

    python examples/train_fashion_mnist.py --data /usr/share/datasets/fashion-mnist -o fashion
    python benchmarks/bench_accuracy.py --fashion fashion --ppocr rapidocr/models \\
        --modelopt modelopt-venv/bin/python -o docs/accuracy.md

``--ppocr`` is the folder with PP-OCRv6_rec_small.onnx and PP-OCRv6_det_small.onnx of the package rapidocr 3.10.
``--modelopt`` is a Python that has nvidia-modelopt[onnx], which wants versions of its own (torch for CPU will do,
and neither cupy nor onnxruntime-gpu). What is not given is left out; the demo needs nothing. About ten minutes.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from rendered_text import Printer

from trtcal import demo
from trtcal.calibration.calibrate import calibrate, from_stats
from trtcal.judging.accuracy import TOP1, Score, difference
from trtcal.judging.evaluation import Evaluation, compare
from trtcal.judging.metrics import Metric, Outputs
from trtcal.model.open import open_model
from trtcal.model.runner import OrtRunner
from trtcal.qdq.insert import MIN_OPSET, insert_qdq
from trtcal.qdq.weights import weight_method

ENTROPIES = ("entropy, batch 8", "entropy, batch 64", "entropy, power-of-two growth")
METHODS = ("minmax", "percentile:99.999", "percentile:99.99", "percentile:99.9", "mse")
WEIGHTS = ("percentile:99.9", "entropy")
COMPARED = (
    ("entropy, batch 64", "entropy, batch 8"),
    ("entropy, power-of-two growth", "entropy, batch 8"),
    ("entropy, batch 8", "minmax"),
    ("percentile:99.999", "minmax"),
    ("percentile:99.99", "minmax"),
    ("percentile:99.9", "minmax"),
    ("mse", "minmax"),
)
MODELOPT = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
model, data, method, output = sys.argv[1:]
quantize(model, "int8", dict(np.load(data)), method, calibration_eps=["cpu"], output_path=output,
         high_precision_dtype="fp32", log_level="ERROR")
"""

Predict = Callable[[Mapping[str, np.ndarray]], Outputs]


@dataclass(frozen=True)
class Task:
    """A model, arrays to calibrate it on and to judge it by, and by what."""

    name: str
    title: str
    model: Path
    calibration: dict[str, np.ndarray]
    judged: dict[str, np.ndarray]
    labels: Any
    metrics: Mapping[str, Metric]

    def batches(self, arrays: dict[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
        """Arrays -> batches; the last may be short."""
        length = len(next(iter(arrays.values())))
        return [{key: array[i : i + size] for key, array in arrays.items()} for i in range(0, length, size)]


class Remembered:
    """The FP32 model, run once for each batch."""

    def __init__(self, runner: OrtRunner) -> None:
        self.runner = runner
        self.answers: dict[int, Outputs] = {}

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Outputs:
        """Batch -> what the model said of it the first time; the caller keeps the batch."""
        if id(batch) not in self.answers:
            self.answers[id(batch)] = self.runner(batch)
        return self.answers[id(batch)]


# --- tasks


def classifiers(fashion: Path | None, samples: int) -> Iterator[Task]:
    """The demo, and the models of examples/train_fashion_mnist.py."""
    images, labels = demo.labelled_images()
    calibration = {"image": demo.calibration_images()}
    title = "`trtcal demo`: convolutions, a residual sum, a depthwise convolution"
    yield Task("demo", title, demo.model_path(), calibration, {"image": images}, labels, TOP1)
    if fashion is None:
        return
    calibration = {"image": np.load(fashion / "calibration.npz")["image"]}
    with np.load(fashion / "labelled.npz") as archive:
        judged, labels = {"image": archive["image"][:samples]}, archive["labels"][:samples]
    for name, title in (
        ("cnn", "plain convolutions, batch norm and ReLU"),
        ("mobile", "depthwise convolutions and HardSwish"),
        ("attention", "a transformer on patches"),
    ):
        yield Task(name, f"Fashion-MNIST: {title}", fashion / f"{name}.onnx", calibration, judged, labels, TOP1)


def readers(ppocr: Path) -> Iterator[Task]:
    """PP-OCR's recogniser on lines and its detector on pages, both drawn here."""
    model = ppocr / "PP-OCRv6_rec_small.onnx"
    (characters,) = (entry.value for entry in onnx.load(model).metadata_props if entry.key == "character")
    alphabet = ["", *characters.split("\n"), " "]
    printer = Printer(0)
    lines = [printer.line() for _ in range(64 + 192)]
    x = np.stack([to_input(picture) for picture, _ in lines])
    texts = [text.replace(" ", "") for _, text in lines]

    def read(outputs: Outputs) -> list[str]:
        return [decode(scores, alphabet).replace(" ", "") for scores in next(iter(outputs.values()))]

    def exact(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
        return np.array([found == label for found, label in zip(read(outputs), labels, strict=True)], np.float64)

    def errors(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
        return np.array([edits(f, label) / len(label) for f, label in zip(read(outputs), labels, strict=True)])

    metrics = {"lines read exactly": exact, "character error rate": errors}
    title = "PP-OCRv6 recogniser (small) on drawn lines of text, spaces not counted"
    yield Task("recogniser", title, model, {"x": x[:64]}, {"x": x[64:]}, texts[64:], metrics)
    pages = np.stack([to_input(printer.page(256)) for _ in range(64 + 32)])
    title = "PP-OCRv6 detector (small) on drawn pages of 256 x 256; agreement with FP32 only, nothing labelled"
    yield Task("detector", title, ppocr / "PP-OCRv6_det_small.onnx", {"x": pages[:64]}, {"x": pages[64:]}, None, {})


def to_input(picture: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) -> BGR float32 (3, H, W) in -1..1, as rapidocr feeds it."""
    return ((picture[..., ::-1].astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)


def decode(scores: np.ndarray, alphabet: list[str]) -> str:
    """CTC scores (steps, characters) -> text: the best of each step, repeats and blanks left out."""
    best = scores.argmax(axis=1)
    kept = best[(best != 0) & (best != np.concatenate([[-1], best[:-1]]))]
    return "".join(alphabet[index] for index in kept)


def edits(found: str, wanted: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


# --- models


def calibrated(task: Task) -> dict[str, Mapping[str, np.float32]]:
    """Task -> scales by each of trtcal's methods, in the order of the table."""
    graph = open_model(task.model)
    eight = calibrate(graph, task.batches(task.calibration, 8))
    power = calibrate(graph, task.batches(task.calibration, 8), growth="power-of-two")
    large = calibrate(graph, task.batches(task.calibration, 64))
    scales = {name: found.cache.scales for name, found in zip(ENTROPIES, (eight, large, power), strict=True)}
    return scales | {name: from_stats(graph, eight.stats, name).cache.scales for name in METHODS}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches, as ONNX Runtime's quantization asks for them."""

    def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Nothing -> the next batch, None at the end."""
        return next(self.batches, None)


def peers(task: Task, modelopt: str | None, folder: Path) -> Iterator[tuple[str, Path | str]]:
    """Task -> (tool and method, the Q/DQ model that it makes, or why it makes none)."""
    # A copy, since Model-Optimizer 0.47 writes the shapes that it infers into the file it is given; of opset 13,
    # since ONNX Runtime writes scales per channel into older models, which then do not load.
    model, prepared = folder / f"{task.name}.onnx", folder / f"{task.name}.prepared.onnx"
    onnx.save(open_model(task.model).with_opset(MIN_OPSET).whole, model)
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    for method in ("MinMax", "Entropy", "Percentile"):
        output = folder / f"{task.name}.{method}.onnx"
        try:
            quantize_static(
                prepared,
                output,
                Reader(task.batches(task.calibration, 8)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[method],
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},  # as TensorRT wants them
            )
        except Exception as error:  # whatever a tool raises is its result here
            yield f"ONNX Runtime, {method}", f"{type(error).__name__}: {error}"
        else:
            yield f"ONNX Runtime, {method}", output
    if modelopt is None:
        return
    np.savez(folder / "calibration.npz", **task.calibration)  # type: ignore[arg-type]
    for method in ("max", "entropy"):
        output = folder / f"{task.name}.modelopt.{method}.onnx"
        arguments = [str(model), str(folder / "calibration.npz"), method, str(output)]
        done = subprocess.run([modelopt, "-c", MODELOPT, *arguments], capture_output=True, text=True)
        problem = (done.stderr.strip().splitlines() or ["no model and no message"])[-1]
        yield f"Model-Optimizer, {method}", output if output.is_file() else problem


def measured(task: Task, modelopt: str | None) -> dict[str, dict[str, Evaluation | str]]:
    """Task -> row -> placement -> what came of it."""
    model = onnx.load(task.model)
    judged = task.batches(task.judged, 50 if task.metrics is TOP1 else 4)
    rows: dict[str, dict[str, Evaluation | str]] = {}
    with OrtRunner(model) as fp32, tempfile.TemporaryDirectory() as folder:
        reference = Remembered(fp32)

        def judge(quantized: onnx.ModelProto | Path) -> Evaluation:
            with OrtRunner(quantized) as runner:
                return compare(runner, judged, reference=reference, labels=task.labels, metrics=task.metrics)

        scales = calibrated(task)
        for name, found in scales.items():
            rows[name] = {p: judge(insert_qdq(model, found, placement=p).model) for p in ("all", "tensorrt")}
            say(task, name)
        for name in WEIGHTS:
            method = weight_method(name)
            rows[f"minmax, weights by {name}"] = {
                p: judge(insert_qdq(model, scales["minmax"], placement=p, weights=method).model)
                for p in ("all", "tensorrt")
            }
        for name, made in peers(task, modelopt, Path(folder)):
            try:
                rows[name] = {"own": made if isinstance(made, str) else judge(made)}
            except Exception as error:  # a model that does not run is a result, too
                rows[name] = {"own": str(error).replace(f"{folder}/", "")}
            say(task, name)
    return rows


def say(task: Task, name: str) -> None:
    print(f"{task.name}: {name}", file=sys.stderr, flush=True)


# --- the page


def section(task: Task, rows: Mapping[str, Mapping[str, Evaluation | str]]) -> Iterator[str]:
    """One task -> its heading and table."""
    calibration, count = (len(next(iter(arrays.values()))) for arrays in (task.calibration, task.judged))
    yield f"## {task.name}\n\n{task.title}; {calibration} samples to calibrate, {count} others to judge.\n"
    first = next(found for row in rows.values() for found in row.values() if not isinstance(found, str))
    for name, score in first.reference.items():
        yield f"FP32 {name}: **{percent(score)}**.\n"
    columns = [*task.metrics, *(f"change of {name}" for name in task.metrics), "SQNR"]
    placements = [f"{name}, Q/DQ" for name in columns[len(task.metrics) :]]
    yield "| method | " + " | ".join(columns + placements) + " |"
    yield "|---|" + "---|" * len(columns + placements)
    for name, row in rows.items():
        cells = [name]
        main = row.get("all", row.get("own"))
        if isinstance(main, str):
            cells.append(f"no result: {main[:160]}".replace("|", "/"))
        elif main is not None:
            cells += [percent(score) for score in main.scores.values()] + changes(main)
        if "tensorrt" in row and not isinstance(row["tensorrt"], str):
            cells += changes(row["tensorrt"])
        yield "| " + " | ".join(cells + [""] * (1 + len(columns + placements) - len(cells))) + " |"
    yield ""


def changes(found: Evaluation) -> list[str]:
    """Evaluation -> the change of each score, and the SQNR of the outputs, as cells."""
    assert found.agreement is not None
    power = [output.sqnr_db for output in found.agreement.outputs.values()]
    return [points(score) for score in found.changes.values()] + [f"{min(power):.1f} dB"]


def percent(score: Score) -> str:
    return f"{score.value:.2%} ({score.low:.2%} to {score.high:.2%})"


def points(score: Score) -> str:
    """A difference of shares -> percentage points; bold where its interval leaves zero out."""
    text = f"{100 * score.value:+.2f} ({100 * score.low:+.2f} to {100 * score.high:+.2f})"
    return f"**{text}**" if score.low > 0 or score.high < 0 else text


def summary(results: Mapping[str, Mapping[str, Mapping[str, Evaluation | str]]], tasks: list[Task]) -> Iterator[str]:
    """All tasks that have labels -> a table of the best and the worst of trtcal's methods."""
    yield "## In short\n"
    yield "| model | score | FP32 | minmax | best method | worst method | changes that are nil |"
    yield "|---|---|---|---|---|---|---|"
    for task in tasks:
        rows = {name: results[task.name][name]["all"] for name in (*ENTROPIES, *METHODS)}
        for name in list(task.metrics)[:1]:
            found = {key: row.changes[name] for key, row in rows.items() if isinstance(row, Evaluation)}
            first = next(row for row in rows.values() if isinstance(row, Evaluation)).reference[name]
            best, worst = (pick(found, key=lambda key: found[key].value) for pick in (max, min))
            nil = sum(score.low <= 0 <= score.high for score in found.values())
            cells = [task.name, name, percent(first), points(found["minmax"])]
            cells += [f"{key}: {points(found[key])}" for key in (best, worst)]
            yield "| " + " | ".join([*cells, f"{nil} of {len(found)}"]) + " |"
    yield ""


def comparisons(
    results: Mapping[str, Mapping[str, Mapping[str, Evaluation | str]]], tasks: list[Task]
) -> Iterator[str]:
    """Methods against each other, on the same samples, for every task that has labels."""
    judged = [(task, name) for task in tasks for name in list(task.metrics)[:1]]
    yield "## Methods against each other\n"
    yield "Differences between two methods on the same samples, placement `all`, in percentage points of the first"
    note = " (the detector has none)" if len(judged) < len(tasks) else ""
    yield f"score of each model's table{note}.\n"
    yield "| first minus second | " + " | ".join(task.name for task, _ in judged) + " |"
    yield "|---|" + "---|" * len(judged)
    shown = total = 0
    for first, second in COMPARED:
        cells = []
        for task, name in judged:
            a, b = (results[task.name][method]["all"] for method in (first, second))
            assert isinstance(a, Evaluation)
            assert isinstance(b, Evaluation)
            gap = difference(b.scores[name], a.scores[name])
            cells.append(points(gap))
            total += 1
            shown += gap.low > 0 or gap.high < 0
        yield f"| {first} – {second} | " + " | ".join(cells) + " |"
    yield f"\n{shown} of these {total} differences are distinguishable from none; the other {total - shown} are nil"
    yield "as far as these samples tell. With 95% intervals, one in twenty nil effects looks like one.\n"


def head(options: argparse.Namespace, seconds: float) -> Iterator[str]:
    """The command, versions and date, and how to read the page."""
    command = "python benchmarks/bench_accuracy.py"
    command += " --fashion fashion" * (options.fashion is not None)
    command += " --ppocr rapidocr/models" * (options.ppocr is not None)
    command += " --modelopt modelopt-venv/bin/python" * (options.modelopt is not None)
    versions = [f"{name} {version(name)}" for name in ("numpy", "onnx", "onnxruntime")]
    if options.modelopt is not None:
        ask = "from importlib.metadata import version as v; print(v('nvidia-modelopt'), v('onnxruntime'))"
        found = subprocess.run([options.modelopt, "-c", ask], capture_output=True, text=True, check=True)
        modelopt, runtime = found.stdout.split()
        versions.append(f"nvidia-modelopt {modelopt} (with onnxruntime {runtime})")
    yield "# Accuracy: FP32 against INT8\n"
    yield "Made by `benchmarks/bench_accuracy.py`; do not edit.\n"
    if options.fashion is not None:
        yield "```bash\npython examples/train_fashion_mnist.py --data /usr/share/datasets/fashion-mnist -o fashion"
        yield f"{command} -o docs/accuracy.md\n```\n"
    else:
        yield f"```bash\n{command} -o docs/accuracy.md\n```\n"
    versions.insert(0, f"Python {platform.python_version()}")
    yield f"{datetime.date.today()}, {', '.join(versions)}; {seconds / 60:.0f} minutes.\n"
    yield NOTES


NOTES = """\
Every model runs in the same ONNX Runtime without graph optimization, where Q/DQ is computed exactly as written.
Activations are symmetric int8 with one scale, weights int8 with one scale per output channel, by max|w| unless the
row says otherwise. Intervals hold 95%: of a score, by resampling the samples; of a change, by resampling the paired
differences, which is narrower. **Bold** changes are distinguishable from none, percentage points throughout. SQNR is
that of the outputs to FP32.

- The first columns are placement `all`: every calibrated tensor that an INT8-capable layer reads, as TensorRT 8 to 10
  run a cache. The columns "Q/DQ" are placement `tensorrt`, where TensorRT 10 and 11 want the pairs. Other tools place
  pairs by rules of their own, so their rows differ by that, too.
- Entropy is TensorRT's, for batches of the given size in the given order. As TensorRT does, it clips values that sit
  in spikes, such as what a first layer makes of a constant background.
- The recogniser spells its layer normalization out in single operators, and `all` quantizes the sums with epsilon in
  it; TensorRT may keep such layers in float.
- ONNX Runtime's and Model-Optimizer's entropy start with 128 bins and 128 levels, a single candidate, so that they
  are close to or equal to their minmax: a good result of theirs under that name says nothing of entropy.
- Model-Optimizer is asked for float32 outside INT8; its default is FP16. ONNX Runtime is asked for symmetric int8.
- PP-OCR's models are those of the package rapidocr 3.10; what they read is drawn with Pillow's own font.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, metavar="DIR", help="what examples/train_fashion_mnist.py wrote")
    parser.add_argument("--ppocr", type=Path, metavar="DIR", help="folder of rapidocr's models")
    parser.add_argument("--modelopt", metavar="PYTHON", help="a Python that has nvidia-modelopt[onnx]")
    parser.add_argument("--samples", type=int, default=10000, help="of Fashion-MNIST's test images; default: all")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    options = parser.parse_args()
    start = time.monotonic()
    tasks = list(classifiers(options.fashion, options.samples))
    if options.ppocr is not None:
        tasks += readers(options.ppocr)
    results = {task.name: measured(task, options.modelopt) for task in tasks}
    body = list(summary(results, tasks))
    body += [line for task in tasks for line in section(task, results[task.name])]
    body += comparisons(results, tasks)
    text = "\n".join([*head(options, time.monotonic() - start), *body])
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

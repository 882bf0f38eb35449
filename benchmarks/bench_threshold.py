"""Milliseconds per tensor of the entropy threshold search, against its NumPy twin and ONNX Runtime's.

    python benchmarks/bench_threshold.py

Histograms of 2048 bins and 128 levels. ONNX Runtime bins signed values, so that its search tries 961 thresholds
where TensorRT's tries 1921, and by default it has 128 bins, which leaves a single one.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
from page import parser, publish, table, verdict

from trtcal.ranges import thresholds
from trtcal.ranges.histogram import NUM_BINS, Histogram, HistogramBuilder, abs_max
from trtcal.ranges.kernels import Kernels, numpy_abs_max_bits, numpy_add_counts, numpy_divergences

MUST, AIM = 5.0, 1.0  # milliseconds
PLAIN = Kernels(numpy_abs_max_bits, numpy_add_counts, numpy_divergences)


def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=1 << 18)
    return {
        "normal": normal,
        "Laplace": rng.laplace(size=1 << 18),
        "after ReLU": np.maximum(normal, 0),
        "sigmoid": 1 / (1 + np.exp(-3 * normal)),
        "few values": rng.integers(0, 17, 1 << 18) / 16,
    }


def histogram(x: np.ndarray) -> Histogram:
    """Values -> TensorRT's histogram of them."""
    values = x.astype(np.float32)
    builder = HistogramBuilder(NUM_BINS, lambda limit, amax: max(limit, amax))
    builder.add(values, abs_max(values))
    return builder.build()


def milliseconds(search: Callable[[], object], repeat: int) -> float:
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        search()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def main() -> None:
    options = parser(__doc__).parse_args()
    repeat = 1 if options.quick else 21
    lines: list[str] = []
    try:
        from onnxruntime.quantization.calibrate import HistogramCollector
    except ImportError as error:
        lines.append(f"ONNX Runtime is left out: {error}\n")
        HistogramCollector = None
    rows, ours = [], []
    for name, x in list(samples().items())[: 2 if options.quick else None]:
        hist = histogram(x)
        thresholds.entropy(hist)
        ours.append(milliseconds(functools.partial(thresholds.entropy, hist), repeat))
        found = thresholds.entropy(hist)
        with mock.patch.object(thresholds, "kernels", return_value=PLAIN):
            plain = milliseconds(functools.partial(thresholds.entropy, hist), max(repeat // 4, 1))
            if thresholds.entropy(hist) != found:
                raise AssertionError(f"{name}: the compiled search and its twin disagree")
        cells = [name, f"**{ours[-1]:.2f}**", f"{plain:.1f}", f"{plain / ours[-1]:.0f}"]
        if HistogramCollector is not None:
            # In the order that its search takes them: counts, edges, smallest, largest, threshold.
            largest = float(np.abs(x).max())
            counts, edges = np.histogram(x, NUM_BINS + 1, (-largest, largest))
            given = (counts, edges, x.min(), x.max(), largest)
            collector = HistogramCollector("entropy", True, NUM_BINS, 128, 99.999, "same")
            theirs = milliseconds(functools.partial(collector.get_entropy_threshold, given, 128), 1)
            cells += [f"{theirs:.0f}", f"{theirs / ours[-1]:.0f}"]
        rows.append(cells)
    columns = ["ms per tensor", "trtcal", "without numba", "times", "ONNX Runtime's search", "times"]
    lines += ["Medians.\n", *table(columns[: len(rows[0])], rows)]
    judged = "too small to say" if options.quick else verdict(max(ours), MUST, AIM)
    cells = ["slowest of the above, trtcal", f"<= {MUST:g} ms", f"{AIM:g} ms", f"**{max(ours):.2f} ms**", judged]
    lines += table(["", "must", "aim", "measured", ""], [cells])
    publish(__file__, lines, options, ["trtcal", "numpy", "numba", "onnxruntime"])


if __name__ == "__main__":
    main()

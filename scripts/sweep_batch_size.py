"""The batch-size experiment as a script: what the calibration batch size does to a model's histograms and accuracy.

    python scripts/sweep_batch_size.py                      the demo model, judged on its labelled images
    python scripts/sweep_batch_size.py MODEL.onnx --data PATH [the options of trtcal sweep]

Without arguments it runs in about a minute and leaves report.html in demo-sweep/.
"""

from __future__ import annotations

import sys

from trtcal import demo
from trtcal.calibration import open_graph
from trtcal.cli import app
from trtcal.data import Batches
from trtcal.metrics import METRICS
from trtcal.sources import ArraySource
from trtcal.sweeprun import CpuJudge, run_sweep


def main() -> None:
    if sys.argv[1:]:
        app(["sweep", *sys.argv[1:]])
    images, labels = demo.labelled_images()
    judged = Batches(ArraySource({"image": images}, labels=labels), 100)
    run = run_sweep(
        demo.model_path(),
        Batches(ArraySource({"image": demo.calibration_images()}), 8),
        "demo-sweep",
        growths=("double", "power-of-two"),
        judge=CpuJudge(open_graph(demo.model_path()), judged, judged.labels, METRICS["top1"]),
    )
    print(run.recommendation.headline, *run.recommendation.evidence, sep="\n")
    print(f"{run.folder}/report.html")


if __name__ == "__main__":
    main()

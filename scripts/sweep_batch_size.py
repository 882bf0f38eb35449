"""The batch-size experiment as a script: what the calibration batch size does to a model's histograms and accuracy.

    python scripts/sweep_batch_size.py                      the demo model, judged on its labelled images
    python scripts/sweep_batch_size.py MODEL.onnx --data PATH [the options of trtcal sweep]

Without arguments it takes a minute or two and leaves report.html in demo-sweep/.
"""

from __future__ import annotations

import sys

from trtcal import demo
from trtcal.cli import app
from trtcal.judging.metrics import METRICS
from trtcal.model.open import open_model
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.sweep.cpu_judge import CpuJudge
from trtcal.sweep.run import run_sweep


def main() -> None:
    if sys.argv[1:]:
        app(["sweep", *sys.argv[1:]])
    images, labels = demo.labelled_images()
    judged = Batches(ArraySource({"image": images}, labels=labels), 100)
    run = run_sweep(
        demo.model_path(),
        Batches(ArraySource({"image": demo.calibration_images()}), 8),
        "demo-sweep",
        judge=CpuJudge(open_model(demo.model_path()), judged, judged.labels, METRICS["top1"]),
        judge_key="the demo's labelled images",
        judged_on=judged,
        force=True,
        progress=told,
    )
    print(run.recommendation.headline, *run.recommendation.evidence, sep="\n")
    print(f"{run.folder}/report.html")


def told(stage: str, done: int, total: int) -> None:
    """A line at every tenth of a stage."""
    if done * 10 // total != (done - 1) * 10 // total:
        print(f"{stage}: {done} of {total}", file=sys.stderr)


if __name__ == "__main__":
    main()

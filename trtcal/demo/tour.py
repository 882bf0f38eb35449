"""What ``trtcal demo`` does: calibrate the model that comes with the package, and judge the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trtcal import demo
from trtcal.calibration.calibrate import calibrate, from_stats
from trtcal.calibration.file import CacheFile, calibrate_to_file
from trtcal.judging.accuracy import Score, evaluate, simulate
from trtcal.model.open import open_model
from trtcal.model.runner import OrtRunner
from trtcal.passes.collector import Progress
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource

BATCH_SIZE, LARGE_BATCH_SIZE = 8, 64


@dataclass(frozen=True)
class Tour:
    """The cache file and the top-1 accuracy of each row, FP32 first."""

    file: CacheFile
    rows: Mapping[str, Score]

    def __str__(self) -> str:
        width = max(map(len, self.rows))
        table = [
            f"  {name:{width}}  {score.value:6.2%}  ({score.low:.1%} to {score.high:.1%})"
            for name, score in self.rows.items()
        ]
        path = self.file.path
        state = "up to date, " if self.file.reused else ""
        spikes = ", whose values sit in spikes"
        clipped = [f"  entropy clips {share:.1%} of {name}{spikes}" for name, share in self.file.clipped.items()]
        return "\n".join(
            [
                f"{path}: {state}{len(self.file.cache.scales)} tensors, {self.file.cache.header}",
                f"Top-1 accuracy on {len(next(iter(self.rows.values())).values)} labelled images (95% interval):",
                *table,
                *clipped,
                "The same data in batches of another size is another calibration for TensorRT's entropy;",
                "minmax, percentile and mse do not change with it. TensorRT itself clips spikes like that.",
                "",
                "Next:",
                f"  trtcal cache show {path}",
                "  trtcal calibrate MODEL.onnx --data FOLDER --preset imagenet -o model.cache",
                "  trtcal sweep --help",
            ]
        )


def tour(path: str | Path, progress: Progress | None = None) -> Tour:
    """Write the demo's cache to ``path`` -> accuracy in FP32 and in INT8 by every method, on held-out images."""
    source = ArraySource({"image": demo.calibration_images()})
    batches = Batches(source, BATCH_SIZE)
    model = open_model(demo.model_path())
    file = calibrate_to_file(model, batches, path)
    large = calibrate(model, Batches(source, LARGE_BATCH_SIZE), progress=progress)
    stats = large.stats  # all methods but entropy have the same from either batch size
    caches = {
        f"INT8 entropy, batch {BATCH_SIZE} (this cache)": file.cache,
        f"INT8 entropy, batch {LARGE_BATCH_SIZE}": large.cache,
        "INT8 minmax": from_stats(model, stats, "minmax").cache,
        "INT8 percentile 99.99": from_stats(model, stats, "percentile:99.99").cache,
        "INT8 mse": from_stats(model, stats, "mse").cache,
    }
    images, labels = demo.labelled_images()
    judged = [{"image": part} for part in np.array_split(images, 20)]
    with OrtRunner(model.whole) as runner:
        rows = {"FP32": evaluate(runner, judged, labels).scores["top1"]}
    for name, cache in caches.items():
        with simulate(model, cache.scales) as runner:
            rows[name] = evaluate(runner, judged, labels).scores["top1"]
    return Tour(file, rows)

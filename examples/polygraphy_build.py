"""Polygraphy with one of our calibrators: CreateConfig tells it the shapes, and a failed feed fails the script.

    python examples/polygraphy_build.py model.onnx samples.npz model.engine

``samples.npz`` holds one array per input, the first axis counts samples. Polygraphy's own Calibrator takes a failing
loader for the end of the data and writes the truncated cache.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, NetworkFromOnnxPath, Profile

from calibrators import MinMaxCalibrator

BATCH_SIZE = 4


class Batches:
    """Any re-iterable of {input: array} will do."""

    def __init__(self, path: str) -> None:
        with np.load(path) as arrays:
            self.arrays = dict(arrays)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        count = min(map(len, self.arrays.values())) // BATCH_SIZE * BATCH_SIZE  # full batches only
        for start in range(0, count, BATCH_SIZE):
            yield {name: array[start : start + BATCH_SIZE] for name, array in self.arrays.items()}


def main(model: str, samples: str, engine: str) -> None:
    batches = Batches(samples)
    profile = Profile()
    for name, array in batches.arrays.items():
        shape = array.shape[1:]
        profile.add(name, min=(1, *shape), opt=(BATCH_SIZE, *shape), max=(BATCH_SIZE, *shape))
    with MinMaxCalibrator(batches, cache=f"{engine}.cache", policy="write") as calibrator:
        config = CreateConfig(int8=True, fp16=True, calibrator=calibrator, profiles=[profile])
        plan = EngineBytesFromNetwork(NetworkFromOnnxPath(model), config)()
    Path(engine).write_bytes(plan)
    print(f"{engine}: calibrated on {calibrator.feed.samples} samples")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    main(*sys.argv[1:4])

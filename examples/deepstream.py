"""A calibration cache for DeepStream, made without TensorRT or a GPU, and the nvinfer configuration that uses it.

    python examples/deepstream.py model.onnx images/ config_infer.txt --trt-version 8.6.1

DeepStream builds the engine on the device with the ranges of ``int8-calib-file``. Where TensorRT is installed, the
cache is first tried in a build here, so that ranges which TensorRT does not take are noticed now and not on the device.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from calibrators import CachedCalibrator, CalibratorsUnavailable, build_engine
from trtcal import SampleOptions, calibrate, open_model

# What nvinfer does to a frame, y = net-scale-factor * (x - offsets), must be what was done to the pictures here.
# Relative paths start at the folder of this file.
CONFIG = """[property]
gpu-id=0
onnx-file={model}
int8-calib-file={cache}
batch-size={batch}
# 0: FP32, 1: INT8, 2: FP16
network-mode=1
net-scale-factor=0.00392156862745098
# 0: RGB, 2: grey
model-color-format={color}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("config", type=Path)
    parser.add_argument("--trt-version", default="8.6.1", help="TensorRT on the device")
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()

    samples = SampleOptions(data=options.images, preset="0-1", batch_size=options.batch_size, samples=500)
    inputs = open_model(options.model).inputs
    batches = samples.open(inputs)
    ranges = calibrate(options.model, batches, "entropy", trt_version=options.trt_version).cache
    cache = options.config.with_suffix(".cache")
    try:
        built = build_engine(options.model, calibrator=CachedCalibrator(ranges), batch_size=options.batch_size)
        print(f"TensorRT takes the ranges; {len(built.coverage.costly)} tensors stay without one")
    except CalibratorsUnavailable as missing:
        print(f"not tried in a build here: {missing}")
    ranges.save(cache)
    channels = inputs[0].shape[0]
    config = CONFIG.format(
        model=os.path.relpath(options.model, options.config.parent),
        cache=cache.name,
        batch=options.batch_size,
        color=2 if channels == 1 else 0,
    )
    options.config.write_text(config)
    print(f"{cache}: {len(ranges.scales)} tensors\n{options.config}: for nvinfer")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    main()

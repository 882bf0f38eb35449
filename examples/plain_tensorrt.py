"""TensorRT's own API with a calibrator: an INT8 engine from an ONNX model and a folder of pictures.

    python examples/plain_tensorrt.py model.onnx images/ model.engine

The engine file is written after the ``with`` block. TensorRT takes an exception in a calibrator for the end of the data
and builds on; leaving the block raises what happened, so that no engine calibrated on half of the data is ever written.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import tensorrt as trt

from calibrators import EntropyCalibrator
from trtcal import SampleOptions, open_model

BATCH_SIZE = 8


def main(model: str, images: str, engine: str) -> None:
    inputs = open_model(model).inputs
    batches = SampleOptions(data=images, preset="imagenet", batch_size=BATCH_SIZE, samples=500).open(inputs)

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    explicit = 0 if int(trt.__version__.split(".")[0]) >= 10 else 1  # the flag EXPLICIT_BATCH, before TensorRT 10
    network = builder.create_network(explicit)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(model):
        raise SystemExit("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))

    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.INT8)
    config.set_flag(trt.BuilderFlag.FP16)  # where FP16 is faster than INT8, TensorRT may take it
    # The batch that is calibrated is the OPT shape of this profile; get_batch_size() is ignored.
    profile = builder.create_optimization_profile()
    for spec in inputs:
        shape = [size for size in spec.shape if size is not None]
        profile.set_shape(spec.name, (1, *shape), (BATCH_SIZE, *shape), (BATCH_SIZE, *shape))
    config.add_optimization_profile(profile)
    config.set_calibration_profile(profile)

    with EntropyCalibrator(batches, cache=f"{engine}.cache", model=model) as calibrator:
        calibrator.expect_network(network, profile)  # or a batch of another shape would be read as far as it goes
        config.int8_calibrator = calibrator
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SystemExit("TensorRT built no engine; its log says why")
    Path(engine).write_bytes(plan)
    print(f"{engine}: calibrated on {calibrator.feed.samples} pictures, or by {engine}.cache")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    main(*sys.argv[1:4])

#!/usr/bin/env python3
"""Build a TensorRT engine from an ONNX model; a drop-in for NVIDIA's sample of this name.

    python scripts/build_engine.py --onnx model.onnx --engine model.engine --precision int8 \
        --calib_input images/ --calib_cache model.cache --calib_preprocessor imagenet
"""

from __future__ import annotations

import sys

from calibrators.command import main

if __name__ == "__main__":
    sys.exit(main())

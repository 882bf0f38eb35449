"""Weights and biases of a float model, changed so that INT8 comes nearer to FP32."""

from trtcal.refine.whole import Refinement, refine

__all__ = ["Refinement", "refine"]

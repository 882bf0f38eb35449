"""Weights rounded to the grid that TensorRT takes, each column's error made up for by those that follow.

TensorRT quantizes the weights of convolutions by max|w| / 127 per output channel, to -127..127 (NVIDIA/TensorRT#1421,
#1796). Weights that are whole multiples of that step, with the largest of a channel on +-127, come through unchanged;
and so do they after a batch normalization has been folded into them, since its factor per output channel changes the
step and the weights alike.

Source of the compensation: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022), in its closed form by the Cholesky factor of the inverse second moments.
"""

from __future__ import annotations

import numpy as np

LEVELS = 127
DAMPING = 0.01  # of the mean second moment, added to all, so that they can be inverted
BLOCK = 64  # columns whose errors reach the later ones together


def steps(rows: np.ndarray) -> np.ndarray:
    """Rows (..., k) -> max|w| / 127 of each, (..., 1) float32; 1 for a row of zeros or of denormal numbers."""
    step = np.abs(rows).max(axis=-1, keepdims=True, initial=0).astype(np.float32) / np.float32(LEVELS)
    return np.asarray(np.where(step < np.finfo(np.float32).tiny, np.float32(1), step))


def integers(rows: np.ndarray) -> np.ndarray:
    """Rows (..., k) -> the int8 values that TensorRT makes of them."""
    return np.asarray(np.clip(np.rint(rows / steps(rows)), -LEVELS, LEVELS).astype(np.int8))


def nearest(rows: np.ndarray) -> np.ndarray:
    """Rows (..., k) float32 -> the same, each weight on the nearest step."""
    return np.asarray((integers(rows) * steps(rows)).astype(np.float32))


def compensated(rows: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Rows (groups, channels, k) and second moments (groups, k, k) of what they multiply -> rows on their steps.

    The columns are rounded one by one, those with the most energy first; what rounding one of them changes in the
    output, the others make up for as well as they can. The largest weight of a row stays on +-127 steps, or TensorRT
    would find another step for it.
    """
    groups, channels, k = rows.shape
    step = steps(rows)
    held = np.abs(rows).argmax(axis=-1)  # (groups, channels)
    dead = np.abs(rows).max(axis=-1, initial=0) < step[..., 0] * LEVELS / 2  # a row of zeros, whose step says nothing
    energy = np.diagonal(moments, axis1=1, axis2=2).astype(np.float64)
    order = np.argsort(-energy, axis=1, kind="stable")  # (groups, k)
    factor = _factor(moments, order)
    w = np.take_along_axis(rows.astype(np.float64), order[:, None, :], axis=2)
    place = np.argsort(order, axis=1)  # where each column stands in that order
    held_at = np.take_along_axis(place, held, axis=1)
    sign = np.sign(np.take_along_axis(rows, held[..., None], axis=2))[..., 0]
    wide = step[..., 0].astype(np.float64)
    q = np.zeros_like(w)
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        errors = np.empty((groups, channels, end - begin))
        for j in range(begin, end):
            found = np.clip(np.rint(w[..., j] / wide), -LEVELS, LEVELS)
            q[..., j] = np.where((held_at == j) & ~dead, sign * LEVELS, found)
            error = (w[..., j] - q[..., j] * wide) / factor[:, j, j, None]
            errors[..., j - begin] = error
            w[..., j + 1 : end] -= error[..., None] * factor[:, None, j, j + 1 : end]
        if end < k:
            w[..., end:] -= errors @ factor[:, begin:end, end:]
    out = np.empty_like(q)
    np.put_along_axis(out, np.broadcast_to(order[:, None, :], out.shape), q, axis=2)
    return np.asarray(out.astype(np.float32) * step)


def _factor(moments: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Second moments (groups, k, k) and an order of the columns -> upper Cholesky factor of the inverse, so ordered."""
    h = moments.astype(np.float64)
    diagonal = np.einsum("gii->gi", h)
    empty = diagonal <= 0
    diagonal[empty] = 1  # a column that is never used is rounded by itself
    diagonal += DAMPING * diagonal.mean(axis=1, keepdims=True)
    h = np.take_along_axis(np.take_along_axis(h, order[:, :, None], axis=1), order[:, None, :], axis=2)
    return np.swapaxes(np.linalg.cholesky(np.linalg.inv(h)), 1, 2)

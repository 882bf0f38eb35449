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
    order = np.argsort(energy, axis=1, kind="stable")  # (groups, k), the most energy last
    factor = _factor(moments, order)
    diagonal = np.diagonal(factor, axis1=1, axis2=2)  # (groups, k)
    # From here on columns come first: (groups, k, channels).
    w = np.take_along_axis(np.swapaxes(rows, 1, 2).astype(np.float64), order[..., None], axis=1)
    place = np.argsort(order, axis=1)  # where each column stands in that order
    held_at = np.where(dead, -1, np.take_along_axis(place, held, axis=1))
    ends = np.sign(np.take_along_axis(rows, held[..., None], axis=2))[..., 0] * LEVELS
    wide = step[..., 0].astype(np.float64)
    q = np.empty_like(w)
    owed = np.zeros_like(w)  # what the columns behind have left to make up for
    for begin in range((k - 1) // BLOCK * BLOCK, -1, -BLOCK):
        end = min(begin + BLOCK, k)
        errors = np.empty((groups, end - begin, channels))
        for j in range(end - 1, begin - 1, -1):
            found = np.rint((w[:, j] + owed[:, j] / diagonal[:, j, None]) / wide)
            np.minimum(np.maximum(found, -LEVELS, out=found), LEVELS, out=found)
            q[:, j] = np.where(held_at == j, ends, found)
            errors[:, j - begin] = w[:, j] - q[:, j] * wide
            owed[:, begin:j] += factor[:, begin:j, j, None] * errors[:, None, j - begin]
        owed[:, :begin] += factor[:, :begin, begin:end] @ errors
    out = np.empty_like(q)
    np.put_along_axis(out, np.broadcast_to(order[..., None], out.shape), q, axis=1)
    return np.asarray(np.ascontiguousarray(np.swapaxes(out, 1, 2)).astype(np.float32) * step)


def _factor(moments: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Second moments (groups, k, k) and an order of the columns -> their upper Cholesky factor, so ordered."""
    h = moments.astype(np.float64)
    diagonal = np.einsum("gii->gi", h)
    empty = diagonal <= 0
    diagonal[empty] = 1  # a column that is never used is rounded by itself
    diagonal += DAMPING * diagonal.mean(axis=1, keepdims=True)
    h = np.take_along_axis(np.take_along_axis(h, order[:, :, None], axis=1), order[:, None, :], axis=2)
    try:
        # A third of the time, and no rounding is so fine a matter.
        return np.swapaxes(np.linalg.cholesky(h.astype(np.float32)).astype(np.float64), 1, 2)
    except np.linalg.LinAlgError:
        return np.swapaxes(np.linalg.cholesky(h), 1, 2)

"""Metrics: outputs of n samples and their labels -> a number per sample, or one for the whole set.

A new metric is one function and one line in :data:`METRICS`; a user's own comes in by :func:`load_metric`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from trtcal.errors import DataError
from trtcal.files.scripts import load_function

Outputs = dict[str, np.ndarray]

Metric = Callable[[Outputs, np.ndarray], "np.ndarray | float"]
"""(outputs of n samples, their n labels) -> one number per sample, shape (n,), or one number for all of them."""


def top_k(outputs: Outputs, labels: np.ndarray, k: int) -> np.ndarray:
    """Class scores (N, classes) and integer labels (N,) -> 1.0 where the label is among the k largest, else 0.0.

    Of equal scores, frequent in INT8, the lower class comes first, as argmax has it; a label whose score is nan is
    missed. DataError for a label that is no class; ValueError where the scores are not (N, classes), or not the only
    output.
    """
    if len(outputs) != 1:
        raise ValueError(
            f"top_k cannot know which of the outputs {', '.join(outputs)} holds the scores; give it that one alone, in "
            f"a metric of your own (metric.py:function)"
        )
    ((name, array),) = outputs.items()
    scores = class_scores(array)
    if scores is None:
        raise ValueError(f"top_k needs scores of shape (N, classes); output {name!r} is {array.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or not np.logical_and(labels >= 0, labels < scores.shape[1]).all():
        wrong = next((label for label in labels.tolist() if label not in range(scores.shape[1])), labels.dtype)
        raise DataError(f"label {wrong!r} is none of the classes 0..{scores.shape[1] - 1} of output {name!r}")
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    ahead = ~(scores <= own) | ((scores == own) & before)  # ~(a <= b) rather than a > b: nan is ahead of all
    hits: np.ndarray = (ahead.sum(axis=1) < k).astype(np.float64)
    return hits


METRICS: dict[str, Metric] = {"top1": partial(top_k, k=1), "top5": partial(top_k, k=5)}


def metric(spec: str) -> Metric:
    """A name in :data:`METRICS`, or ``"metric.py:function"`` -> the metric; ValueError names the choices."""
    if spec in METRICS:
        return METRICS[spec]
    if ".py" not in spec:
        raise ValueError(f"unknown metric {spec!r}; choose one of {', '.join(METRICS)}, or metric.py:function")
    return load_metric(spec)


def load_metric(spec: str) -> Metric:
    """``"metric.py:function"`` -> the function; DataError names what is missing, ValueError another form.

    It is called as ``function(outputs, labels)`` with a dict of arrays (n, ...) and an array of n labels, and
    returns an array of n numbers, one per sample, or one number for all of them. To tell which, it is called
    on the first batch; one that returns a single number is called again, once, on everything. What it raises
    becomes a DataError that names it.
    """
    function = load_function(spec)

    def checked(outputs: Outputs, labels: np.ndarray) -> np.ndarray | float:
        try:
            result = function(outputs, labels)
            return result if isinstance(result, float) else np.asarray(result, np.float64)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(f"metric {spec}: failed on {len(labels)} samples with {what}") from error

    return checked


def class_scores(array: np.ndarray) -> np.ndarray | None:
    """(N, classes), from that or from (N, classes, 1, 1); None from other shapes and from a single class."""
    if array.ndim < 2 or array.shape[1] < 2 or array[0:1, 0:1].size != len(array[0:1]):
        return None
    return array.reshape(array.shape[:2])

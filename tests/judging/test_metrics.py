from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtcal.errors import DataError
from trtcal.judging.metrics import METRICS, class_scores, load_metric, metric, top_k


def f32(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 7)), elements=st.integers(-2, 2)),
    st.integers(1, 7),
)
def test_top_k_is_membership_in_a_stable_sort(scores: np.ndarray, k: int) -> None:
    labels = np.array([int(abs(row.sum())) % scores.shape[1] for row in scores])
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    expected = [float(label in row) for label, row in zip(labels, ranked, strict=True)]
    np.testing.assert_array_equal(top_k({"y": scores}, labels, k), expected)


def test_of_equal_scores_the_first_is_the_prediction_as_argmax_has_it() -> None:
    outputs = {"y": np.zeros((2, 3), np.float32)}
    np.testing.assert_array_equal(METRICS["top1"](outputs, np.array([0, 1])), [1, 0])
    np.testing.assert_array_equal(METRICS["top5"](outputs, np.array([0, 2])), [1, 1])


def test_nan_is_never_a_hit() -> None:
    scores = f32([[np.nan, 1, 2], [np.nan] * 3, [3, np.nan, 1]])
    np.testing.assert_array_equal(top_k({"y": scores}, np.array([0, 0, 0]), 1), [0, 0, 0])


def test_scores_with_trailing_ones_are_scores() -> None:
    scores = f32([[1, 3], [5, 2]]).reshape(2, 2, 1, 1)
    np.testing.assert_array_equal(top_k({"y": scores}, np.array([1, 1]), 1), [1, 0])


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3, 2), (4, 3, 2, 2), ()])
def test_other_shapes_are_no_class_scores(shape: tuple[int, ...]) -> None:
    assert class_scores(np.zeros(shape)) is None
    with pytest.raises(ValueError, match=r"scores of shape \(N, classes\)"):
        top_k({"y": np.zeros(shape)}, np.zeros(4, np.int64), 1)


def test_of_several_outputs_none_is_taken_for_the_scores() -> None:
    outputs = {"boxes": np.zeros((1, 4)), "scores": f32([[0, 1]])}
    with pytest.raises(ValueError, match="which of the outputs boxes, scores holds the scores; give it that one alone"):
        top_k(outputs, np.array([1]), 1)


@pytest.mark.parametrize("label", [-1, 3, 1000])
def test_a_label_that_is_no_class_is_an_error_and_not_a_miss(label: int) -> None:
    with pytest.raises(DataError, match=rf"label {label} is none of the classes 0..2 of output 'y'"):
        top_k({"y": np.zeros((2, 3))}, np.array([0, label]), 1)


def test_labels_that_are_no_integers_are_an_error() -> None:
    with pytest.raises(DataError, match="label 'cat'"):
        top_k({"y": np.zeros((1, 3))}, np.array(["cat"]), 1)


def test_a_metric_comes_out_of_a_file(tmp_path: Path) -> None:
    script = tmp_path / "metric.py"
    script.write_text("def error(outputs, labels):\n    return abs(outputs['y'][:, 0] - labels)\n")
    metric = load_metric(f"{script}:error")
    np.testing.assert_array_equal(metric({"y": f32([[1], [5]])}, np.array([2, 2])), [1, 3])
    with pytest.raises(DataError, match="no function 'missing'; it has error"):
        load_metric(f"{script}:missing")


def test_a_metric_goes_by_its_name_or_its_file(tmp_path: Path) -> None:
    assert metric("top5") is METRICS["top5"]
    (tmp_path / "m.py").write_text("def count(outputs, labels):\n    return float(len(labels))\n")
    assert metric(f"{tmp_path / 'm.py'}:count")({}, np.arange(3)) == 3


def test_an_unknown_metric_is_an_error_that_lists_them() -> None:
    with pytest.raises(ValueError, match=r"unknown metric 'mAP'; choose one of top1, top5, or metric\.py:function"):
        metric("mAP")


def test_what_a_metric_of_the_user_s_raises_names_it(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "def bad(outputs, labels):\n    raise RuntimeError('one\\ntwo')\ndef end(outputs, labels):\n    exit(3)\n"
    )
    with pytest.raises(DataError, match=r"metric .*m\.py:bad: failed on 3 samples with RuntimeError: one two$"):
        metric(f"{tmp_path / 'm.py'}:bad")({}, np.arange(3))
    with pytest.raises(DataError, match=r"metric .*m\.py:end: failed on 3 samples with SystemExit: 3$"):
        metric(f"{tmp_path / 'm.py'}:end")({}, np.arange(3))

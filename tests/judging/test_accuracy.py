from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import batched, conv_model, images

from trtcal.errors import DataError, ModelError, NonFiniteError
from trtcal.judging import accuracy
from trtcal.judging.accuracy import Reference, Score, agreement, bootstrap, bootstraps, difference, evaluate, simulate
from trtcal.judging.metrics import METRICS, Outputs
from trtcal.model.runner import OrtRunner
from trtcal.qdq.insert import insert_qdq
from trtcal.samples.batches import Batch


def f32(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


SCORES = f32([[0, 1, 2], [5, 1, 0], [0, 7, 1], [1, 2, 9], [3, 1, 1]])
LABELS = np.array([2, 0, 0, 2, 1])  # right, right, wrong, right, wrong
TOP1 = MappingProxyType({"top1": METRICS["top1"]})


def echo(batch: Mapping[str, np.ndarray]) -> Outputs:
    """A model that gives its input back."""
    return {"y": batch["x"]}


def padded(array: np.ndarray, size: int) -> list[Batch]:
    """Array -> Batches of exactly ``size``; the last is filled up with the first rows. Row i is called "row i"."""
    batches = []
    for first in range(0, len(array), size):
        rows = [row % len(array) for row in range(first, first + size)]
        valid = min(size, len(array) - first)
        batches.append(Batch({"x": array[rows]}, samples=[f"row {row}" for row in rows], valid=valid))
    return batches


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_batch_size_and_padding_change_nothing(size: int) -> None:
    found = evaluate(echo, padded(SCORES, size), LABELS)
    assert found.samples == ("row 0", "row 1", "row 2", "row 3", "row 4")
    np.testing.assert_array_equal(found.scores["top1"].values, [1, 1, 0, 1, 0])
    assert found.scores["top1"].value == 0.6
    plain = evaluate(echo, batched(SCORES, size, "x"), LABELS)
    assert plain.samples == ("0", "1", "2", "3", "4")
    assert (plain.scores["top1"].low, plain.scores["top1"].high) == (
        found.scores["top1"].low,
        found.scores["top1"].high,
    )


def test_labels_go_by_sample_name_or_by_position() -> None:
    by_name = {f"row {row}": label for row, label in reversed(list(enumerate(LABELS.tolist())))} | {"unused": 9}
    for labels in (by_name, LABELS, LABELS.tolist(), tuple(LABELS)):
        assert evaluate(echo, padded(SCORES, 2), labels).scores["top1"].value == 0.6


def test_a_missing_label_names_its_sample() -> None:
    with pytest.raises(DataError, match=r"sample row 4 has no label \(4 samples have one\)"):
        evaluate(echo, padded(SCORES, 2), {f"row {row}": 0 for row in range(4)})


def test_too_few_or_too_many_labels_are_an_error() -> None:
    with pytest.raises(DataError, match="4 labels, and more samples: row 4 has none"):
        evaluate(echo, padded(SCORES, 2), LABELS[:4])
    with pytest.raises(DataError, match="6 labels for 5 samples"):
        evaluate(echo, padded(SCORES, 2), [*LABELS, 0])


def test_no_samples_are_an_error() -> None:
    with pytest.raises(DataError, match="no samples"):
        evaluate(echo, [], [])
    with pytest.raises(DataError, match="no samples"):
        agreement(echo, echo, [])


def test_several_metrics_take_one_pass() -> None:
    passes = 0

    def once() -> Iterator[Batch]:
        nonlocal passes
        passes += 1
        yield from padded(SCORES, 2)

    found = evaluate(echo, once(), LABELS, METRICS)
    assert passes == 1
    assert {name: score.value for name, score in found.scores.items()} == {"top1": 0.6, "top5": 1.0}


def test_a_metric_over_the_whole_set_sees_it_at_once_without_padding() -> None:
    def spread(outputs: Outputs, labels: np.ndarray) -> float:
        return float(np.ptp(outputs["y"]) + 100 * len(labels))

    score = evaluate(echo, padded(SCORES, 2), LABELS, {"spread": spread, **TOP1}).scores
    assert score["spread"].value == 509
    assert math.isnan(score["spread"].low)
    assert score["spread"].values.size == 0
    assert score["top1"].value == 0.6


def test_labels_may_be_texts_or_lists() -> None:
    def length(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
        assert labels.ndim == 1
        return np.array([len(label) for label in labels], np.float64)

    for labels in (["a", "bc", "", "def", "g"], [[1], [2, 3], [], [4, 5, 6], [7]], [[1, 2]] * 5):
        expected = [len(label) for label in labels]
        found = evaluate(echo, padded(SCORES, 2), labels, {"length": length})
        np.testing.assert_array_equal(found.scores["length"].values, expected)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda n: np.zeros(n + 1), ValueError, r"'m' gave shape \(3,\) for 2 samples; expected .* \(2,\)"),
        (lambda n: np.zeros((n, 1)), ValueError, r"'m' gave shape \(2, 1\) for 2 samples"),
        (lambda n: np.array([0, np.nan])[:n], DataError, "'m' is nan for sample row 1"),
    ],
)
def test_a_metric_that_answers_wrongly_is_named(
    result: Callable[[int], np.ndarray], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate(echo, padded(SCORES, 2), LABELS, {"m": lambda outputs, labels: result(len(labels))})


def test_a_metric_that_changes_its_mind_is_refused() -> None:
    answers = iter([np.zeros(2), np.array(1.0)])
    with pytest.raises(ValueError, match=r"gave shape \(\) for 2 samples"):
        evaluate(echo, padded(SCORES, 2), LABELS, {"m": lambda outputs, labels: next(answers)})


def test_outputs_of_several_shapes_cannot_go_to_a_metric_in_one_array() -> None:
    batches = [{"x": np.zeros((2, 3))}, {"x": np.zeros((2, 4))}]
    with pytest.raises(DataError, match=r"'y' has rows of several shapes \(\(3,\), \(4,\)\).*one number per sample"):
        evaluate(echo, batches, [0] * 4, {"m": lambda outputs, labels: 0.0})


def test_an_output_without_a_row_per_sample_cannot_lose_its_padding() -> None:
    def total(batch: Mapping[str, np.ndarray]) -> Outputs:
        return {"sum": batch["x"].sum(axis=0)}

    with pytest.raises(ModelError, match=r"'sum' has shape \(3,\) for a batch of 4.*partial='drop'"):
        evaluate(total, padded(SCORES, 4), LABELS, {"m": lambda outputs, labels: 0.0})


def test_an_error_of_the_model_comes_through() -> None:
    def broken(batch: Mapping[str, np.ndarray]) -> Outputs:
        raise ModelError("it is broken")

    with pytest.raises(ModelError, match="it is broken"):
        evaluate(broken, padded(SCORES, 2), LABELS)


# --- agreement ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_reference_runs_once_and_measures_others_as_agreement_and_evaluate_do(size: int) -> None:
    runs = 0

    def first(batch: Mapping[str, np.ndarray]) -> Outputs:
        nonlocal runs
        runs += 1
        return echo(batch)

    batches = padded(SCORES, size)
    reference = Reference(first, batches, LABELS, ("top1", METRICS["top1"]))
    for factor in (-1, 0.5):

        def other(batch: Mapping[str, np.ndarray], factor: float = factor) -> Outputs:
            return {"y": np.square(batch["x"]) * f32(factor)}

        found, score = reference.compare(other)
        expected = agreement(echo, other, batches)
        assert found.samples == expected.samples
        y, z = found.outputs["y"], expected.outputs["y"]
        assert (y.sqnr_db, y.cosine, y.max_abs_error) == (z.sqnr_db, z.cosine, z.max_abs_error)
        assert score is not None
        np.testing.assert_array_equal(score.values, evaluate(other, batches, LABELS).scores["top1"].values)
    own = reference.score()
    assert own is not None
    np.testing.assert_array_equal(own.values, [1, 1, 0, 1, 0])
    assert (runs, reference.samples) == (len(batches), len(SCORES))


def test_noise_per_sample_adds_up_to_the_sqnr_and_rows_are_needed_for_it() -> None:
    def other(batch: Mapping[str, np.ndarray]) -> Outputs:
        x = batch["x"]
        return {"y": x + f32(0.5) * (x > 4), "whole": x.sum(keepdims=True)[0] + 1, "zero": x * 0 + (x == 9)}

    def first(batch: Mapping[str, np.ndarray]) -> Outputs:
        x = batch["x"]
        return {"y": x, "whole": x.sum(keepdims=True)[0], "zero": x * 0}

    found = agreement(first, other, batched(SCORES, 2, "x")).outputs
    noise = found["y"].noise
    assert noise is not None
    np.testing.assert_allclose(noise, np.array([0, 0.25, 0.25, 0.25, 0]) / (np.square(SCORES).sum() / 5))
    assert found["y"].sqnr_db == pytest.approx(-10 * np.log10(noise.mean()))
    assert found["whole"].noise is None
    np.testing.assert_array_equal(found["zero"].noise, [0, 0, 0, np.inf, 0])


def test_a_reference_without_labels_or_metric_has_no_score() -> None:
    for reference in (
        Reference(echo, padded(SCORES, 2), None, ("top1", METRICS["top1"])),
        Reference(echo, padded(SCORES, 2), LABELS),
    ):
        assert reference.score() is None
        assert reference.compare(echo)[1] is None


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_agreement_is_that_of_all_values_together(size: int) -> None:
    def other(batch: Mapping[str, np.ndarray]) -> Outputs:
        return {"y": np.where(batch["x"] == 0, -0.5, batch["x"] + 0.25)}

    found = agreement(echo, other, padded(SCORES, size))
    a, b = SCORES.astype(np.float64), other({"x": SCORES})["y"]
    y = found.outputs["y"]
    assert found.samples == ("row 0", "row 1", "row 2", "row 3", "row 4")
    assert y.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))
    assert y.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert y.max_abs_error == 0.5
    assert y.top1 is not None
    assert y.top1.value == 1


def test_a_model_agrees_with_itself_without_noise() -> None:
    y = agreement(echo, echo, padded(SCORES, 2)).outputs["y"]
    assert (y.sqnr_db, y.max_abs_error) == (math.inf, 0)
    assert y.cosine == pytest.approx(1)


@pytest.mark.parametrize(
    ("factor", "of", "expected"), [(0, 0, (math.inf, 1.0)), (1, 0, (0.0, 0.0)), (0, 1, (-math.inf, 0.0))]
)
def test_silence_has_its_own_numbers(factor: float, of: float, expected: tuple[float, float]) -> None:
    def times(factor: float) -> Callable[[Mapping[str, np.ndarray]], Outputs]:
        return lambda batch: {"y": batch["x"] * np.float32(factor)}

    y = agreement(times(factor), times(of), padded(SCORES, 2)).outputs["y"]
    assert (y.sqnr_db, y.cosine) == expected


def test_top1_agreement_counts_samples_and_has_an_interval() -> None:
    def other(batch: Mapping[str, np.ndarray]) -> Outputs:
        changed = batch["x"].copy()
        changed[changed[:, 1] == 7] = [9, 0, 0]
        return {"y": changed}

    top1 = agreement(echo, other, padded(SCORES, 2)).outputs["y"].top1
    assert top1 is not None
    np.testing.assert_array_equal(top1.values, [1, 1, 0, 1, 1])
    assert top1.low <= top1.value == 0.8 <= top1.high


def test_an_output_that_is_no_class_scores_has_no_top1() -> None:
    y = agreement(echo, echo, batched(np.ones((4, 2, 3), np.float32), 2, "x")).outputs["y"]
    assert y.top1 is None
    assert y.sqnr_db == math.inf


def test_an_output_without_a_row_per_sample_has_no_top1() -> None:
    def product(batch: Mapping[str, np.ndarray]) -> Outputs:
        return {"y": batch["x"].T @ batch["x"]}

    assert agreement(product, product, batched(SCORES, 2, "x")).outputs["y"].top1 is None


def test_models_with_other_outputs_or_shapes_are_refused() -> None:
    with pytest.raises(ModelError, match="outputs differ: y and z"):
        agreement(echo, lambda batch: {"z": batch["x"]}, padded(SCORES, 2))
    with pytest.raises(ModelError, match=r"'y' is \(2, 3\) of one model and \(2, 2\) of the other"):
        agreement(echo, lambda batch: {"y": batch["x"][:, :2]}, padded(SCORES, 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inf_and_nan_name_output_and_sample(bad: float) -> None:
    scores = SCORES.copy()
    scores[3, 1] = bad
    with pytest.raises(NonFiniteError, match="'y' holds inf or nan for sample row 3"):
        agreement(echo, echo, padded(scores, 2))


# --- intervals ------------------------------------------------------------------------------------------


@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-1e3, 1e3)), st.integers(0, 5))
def test_the_interval_lies_within_the_data_and_is_repeatable(values: np.ndarray, seed: int) -> None:
    low, high = bootstrap(values, resamples=50, seed=seed)
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9
    assert (low, high) == bootstrap(values, resamples=50, seed=seed)
    inner_low, inner_high = bootstrap(values, resamples=50, seed=seed, confidence=0.5)
    assert low <= inner_low <= inner_high <= high


def test_the_interval_is_about_two_standard_errors_to_each_side() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [bootstrap(rng.random(80) < 0.8, confidence=0.9, resamples=200, seed=i) for i in range(200)]
    assert 0.85 < np.mean([low <= 0.8 <= high for low, high in intervals]) < 0.96


def drawn_one_by_one(values: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """The bootstrap as its definition has it."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(values.size, size=values.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@pytest.mark.parametrize("samples", [1, 7, 130, 2000])
@pytest.mark.parametrize("at_once", [1, 1000, accuracy.AT_ONCE])
def test_many_intervals_at_once_are_those_of_one_draw_after_the_other(
    samples: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "AT_ONCE", at_once)
    rng = np.random.default_rng(3)
    shares = [rng.random(samples) < share for share in (0, 0.3, 0.9, 0.95, 1)]
    others = [rng.normal(size=samples), rng.integers(-1, 2, samples), rng.normal(size=samples) * 1e300, shares[1] * 0.1]
    for rows in (np.array(shares), np.array([*shares, *others]), np.array(others)):
        found = bootstraps(rows, confidence=0.9, resamples=60, seed=5)
        assert found == [drawn_one_by_one(row, 0.9, 60, 5) for row in rows.astype(np.float64)]
        assert found == [bootstrap(row, confidence=0.9, resamples=60, seed=5) for row in rows]


def test_no_rows_have_no_intervals() -> None:
    assert bootstraps(np.zeros((0, 3))) == []


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([], {}),
        ([[1.0]], {}),
        ([1.0, np.nan], {}),
        ([1.0], {"confidence": 0.0}),
        ([1.0], {"confidence": 1.0}),
        ([1.0], {"resamples": 0}),
    ],
)
def test_an_interval_of_nothing_is_refused(values: list[Any], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="bootstrap needs"):
        bootstrap(np.array(values), **options)


def score(values: Sequence[float]) -> Score:
    return Score(float(np.mean(values)), 0, 0, 0.95, np.array(values))


def test_a_difference_pairs_the_samples() -> None:
    before, after = score([1, 0, 1, 0] * 25), score([1, 0, 1, 0] * 24 + [1, 0, 0, 0])
    drop = difference(before, after)
    assert drop.value == pytest.approx(-0.01)
    assert -0.04 < drop.low <= drop.value <= drop.high == 0, "unpaired, the interval would span 0.27"


@pytest.mark.parametrize(("before", "after"), [([1.0], [1.0, 0.0]), ([], [])])
def test_a_difference_of_other_samples_is_refused(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match="scores of the same samples"):
        difference(score(before) if before else Score(0, 0, 0, 0.95, np.empty(0)), score(after or [1.0]))


# --- simulation -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scales() -> dict[str, np.float32]:
    model = conv_model()
    with OrtRunner(visible(model)) as runner:
        tensors = {"image": images(8), **runner({"image": images(8)})}
    return {name: np.float32(np.abs(value).max()) / np.float32(127) for name, value in tensors.items()}


def visible(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.output.extend(onnx.ValueInfoProto(name=n.output[0]) for n in model.graph.node[:-1])
    return model


def test_simulation_runs_the_q_dq_model_as_it_is_written(scales: dict[str, np.float32]) -> None:
    model = conv_model()
    for placement in ("tensorrt", "all"):
        qdq = insert_qdq(model, scales, placement=placement, exclude=["Gemm"]).model
        with simulate(model, scales, placement=placement, exclude=["Gemm"]) as int8, OrtRunner(qdq) as expected:
            np.testing.assert_array_equal(
                int8({"image": images(3)})["logits"], expected({"image": images(3)})["logits"]
            )


def test_the_faster_level_computes_the_same_to_rounding_and_int8_differs_by_much_more(
    scales: dict[str, np.float32],
) -> None:
    model = conv_model()
    batches = batched(images(8), 4)
    with simulate(model, scales) as exact, simulate(model, scales, optimization="extended") as fast:
        assert agreement(exact, fast, batches).outputs["logits"].sqnr_db > 100
        with OrtRunner(model) as float32:
            found = agreement(float32, exact, batches).outputs["logits"]
    assert 20 < found.sqnr_db < 60
    assert found.cosine > 0.99


def test_full_optimization_is_refused(scales: dict[str, np.float32]) -> None:
    with pytest.raises(ValueError, match="'all' changes the arithmetic"):
        simulate(conv_model(), scales, optimization="all")

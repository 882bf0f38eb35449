from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtcal.refine.rounding import compensated, integers, nearest, steps


def moments_of(columns: np.ndarray) -> np.ndarray:
    return np.swapaxes(columns, 1, 2) @ columns


def correlated(rng: np.random.Generator, groups: int, positions: int, k: int) -> np.ndarray:
    mixed = rng.normal(size=(groups, positions, k)) @ rng.normal(size=(groups, k, k))
    return np.asarray(mixed + rng.normal(size=(groups, positions, k)), np.float32)


@pytest.mark.parametrize(("groups", "channels", "k"), [(1, 5, 9), (4, 1, 9), (2, 3, 200), (1, 1, 1)])
def test_the_output_is_nearer_than_with_weights_on_the_nearest_step(groups: int, channels: int, k: int) -> None:
    rng = np.random.default_rng(k)
    better = []
    for _ in range(5):
        rows = rng.normal(size=(groups, channels, k)).astype(np.float32)
        columns = correlated(rng, groups, 4 * k, k)
        exact = np.einsum("gpk,gok->gop", columns, rows)
        errors = [
            float(np.square(exact - np.einsum("gpk,gok->gop", columns, made)).sum())
            for made in (nearest(rows), compensated(rows, moments_of(columns)))
        ]
        better.append(errors[1] / errors[0] if errors[0] else 1.0)
    assert max(better) <= 1 + 1e-6 or k < 10
    assert np.mean(better) < (0.7 if k > 1 else 1.01)


@given(
    rows=st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6), min_size=n, max_size=n)
    ),
    seed=st.integers(0, 99),
    factors=st.lists(st.floats(-50, 50, width=32).filter(lambda f: abs(f) > 1e-3), min_size=4, max_size=4),
)
def test_tensorrts_rule_makes_the_same_integers_of_the_result_also_behind_a_folded_batch_norm(
    rows: list[list[float]], seed: int, factors: list[float]
) -> None:
    w = np.array(rows, np.float32)[None]
    columns = correlated(np.random.default_rng(seed), 1, 30, 6)
    made = compensated(w, moments_of(columns))
    meant = np.rint(made / steps(w)).astype(int)
    assert np.array_equal(integers(made), meant)
    assert np.abs(meant).max() == 127 or not w.any() or np.abs(w).max() < 1e-36
    folded = made * np.array(factors, np.float32)[: len(rows)].reshape(1, -1, 1)
    sign = np.sign(factors)[: len(rows)].reshape(1, -1, 1).astype(int)
    assert np.array_equal(integers(folded), meant * sign)


def test_the_largest_weight_of_a_row_stays_on_127_steps() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(2, 8, 40)).astype(np.float32)
    made = compensated(rows, moments_of(correlated(rng, 2, 100, 40)))
    largest = np.abs(rows).argmax(axis=-1)[..., None]
    steps_there = np.rint(np.take_along_axis(made, largest, -1) / steps(rows))
    assert np.array_equal(steps_there, 127 * np.sign(np.take_along_axis(rows, largest, -1)))
    assert np.abs(made / steps(rows)).max() < 127.001


def test_columns_that_are_never_used_and_rows_of_zeros_are_no_trouble() -> None:
    rng = np.random.default_rng(4)
    columns = correlated(rng, 1, 50, 10)
    columns[..., 3] = 0
    rows = rng.normal(size=(1, 3, 10)).astype(np.float32)
    rows[0, 1] = 0
    made = compensated(rows, moments_of(columns))
    assert np.isfinite(made).all()
    assert not made[0, 1].any()
    assert np.array_equal(made[..., 3], nearest(rows)[..., 3])
    assert np.isfinite(compensated(rows, np.zeros((1, 10, 10)))).all()


def test_without_correlation_each_weight_goes_to_its_nearest_step() -> None:
    rows = np.random.default_rng(5).normal(size=(1, 4, 12)).astype(np.float32)
    assert np.array_equal(compensated(rows, np.eye(12)[None]), nearest(rows))


def test_blocks_change_nothing_but_rounding_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(1, 6, 90)).astype(np.float32)
    moments = moments_of(correlated(rng, 1, 300, 90))
    whole = compensated(rows, moments)
    monkeypatch.setattr("trtcal.refine.rounding.BLOCK", 7)
    assert np.mean(compensated(rows, moments) == whole) > 0.99

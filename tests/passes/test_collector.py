"""What all passes keep account of, on a CPU; the GPU is held to the same bytes by `test_gpu_stats.py`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from network import cut, data

from trtcal.errors import ModelError, NonFiniteError
from trtcal.passes import collector
from trtcal.passes.collect import collect
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.batches import Batch

Network = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]

X = np.array([[1, -1, 0.5, 0.25], [0.75, 1, 0.1, 0], [0.2, 2, 1, 1.5], [3, 0, 1, 0]], np.float32)


def fickle(extra: set[int], lost: set[int]) -> Network:
    """A network that shows a tensor too many, or one too few, in some of its runs."""
    runs = iter(range(100))

    def network(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        run = next(runs)
        names = ["x", *(["y"] if run not in lost else []), *(["odd"] if run in extra else [])]
        return dict.fromkeys(names, batch["x"])

    return network


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_tensor_that_only_later_samples_have_is_an_error_that_names_both(size: int) -> None:
    with pytest.raises(ModelError, match=r"^sample 2: shows a tensor 'odd', which sample 0 does not; statistics need"):
        collect(fickle({2}, set()), cut(X, size))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_tensor_that_a_later_sample_lacks_is_an_error_that_names_both(size: int) -> None:
    with pytest.raises(ModelError, match=r"^sample 3: shows no tensor 'y', which sample 0 does; statistics need"):
        collect(fickle(set(), {3}), cut(X, size))


def test_one_tensor_gone_and_another_come_is_an_error_too() -> None:
    with pytest.raises(ModelError, match=r"^sample 1: shows a tensor 'odd'"):
        collect(fickle({1}, {1}), cut(X, 2))


def test_a_pass_that_goes_on_needs_the_tensors_it_began_with() -> None:
    begun = collect(lambda batch: {"x": batch["x"], "y": batch["x"]}, [{"x": X[:2]}])
    with pytest.raises(ModelError, match=r"shows no tensor 'y', which the part of the pass that is there already does"):
        collect(lambda batch: {"x": batch["x"]}, cut(X, 2), start=begun)
    with pytest.raises(ModelError, match=r"shows a tensor 'z', which the part of the pass"):
        collect(lambda batch: dict.fromkeys("xyz", batch["x"]), cut(X, 2), start=begun)


def test_a_tensor_that_is_gone_when_a_sample_runs_again_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "HELD_BYTES", 0)
    with pytest.raises(ModelError, match=r"^sample 0: shows no tensor 'y' when it runs again"):
        collect(fickle(set(), {2, 3}), cut(X, 2))


def twice(again: np.ndarray) -> Network:
    """A network that multiplies the third and the fourth run, which are the first two samples again."""
    factors = iter([1, 1, *again, 1, 1])

    def network(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"x": batch["x"], "wide": (batch["x"] * next(factors) * 4).astype(np.float32)}

    return network


def steady() -> ActivationStats:
    return collect(lambda batch: {"x": batch["x"], "wide": batch["x"] * 4}, cut(X, 2))


@pytest.mark.parametrize("factor", [1 + 2**-20, 3, 2.0**60])
def test_a_second_run_that_comes_out_larger_grows_no_limit(
    factor: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(collector, "HELD_BYTES", 0)
    largest = np.where(np.abs(X) == 1, factor, 1)[:2].astype(np.float32)
    found = collect(twice(largest[:, None]), cut(X, 2))
    assert found.to_bytes() == steady().to_bytes()
    assert caplog.text.count("tensor 'wide' came out larger when the first batch ran again") == 1
    assert "'x'" not in caplog.text


def test_a_second_run_that_comes_out_smaller_is_counted_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "HELD_BYTES", 0)
    found = collect(twice(np.array([0.5, 1])), cut(X, 2)).tensors["wide"]
    expected = steady().tensors["wide"]
    assert np.array_equal(found.sample_amax, expected.sample_amax)
    assert found.sample_peaks.tolist() == [0, *expected.sample_peaks[1:]]
    assert found.batch_grid is not None
    assert expected.batch_grid is not None
    assert found.batch_grid.limit == expected.batch_grid.limit
    assert found.batch_grid.total == expected.batch_grid.total == found.histogram.total


@pytest.mark.parametrize("factor", [np.inf, -np.inf, np.nan])
def test_a_second_run_that_is_no_longer_finite_is_an_error(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "HELD_BYTES", 0)
    x = np.abs(X) + 1
    with pytest.raises(NonFiniteError, match=rf"^sample 1: tensor 'wide' holds {factor}"):
        collect(twice(np.array([1, factor])), cut(x, 2))


def test_a_batch_too_large_to_be_held_is_let_go_of_as_soon_as_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.concatenate([np.arange(1, 9, dtype=np.float32)[:, None], data(8)], axis=1)
    ran: list[float] = []

    def growing(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        number = batch["x"][0, 0]
        ran.append(number)
        return {"x": np.repeat(batch["x"], 10 if number == 4 else 1, axis=1)}

    row = x[0].nbytes + collector.ROW_BYTES
    found = []
    for budget, again in ((0, 5), (5 * row, 5), (20 * row, 0)):  # the first three rows promise less than the fourth is
        ran.clear()
        monkeypatch.setattr(collector, "HELD_BYTES", budget)
        found.append(collect(growing, [{"x": x[:5]}, {"x": x[5:]}]).to_bytes())
        assert ran == [1, 2, 3, 4, 5, *range(1, again + 1), 6, 7, 8]
    assert found[0] == found[1] == found[2]


class Replacing:
    """A network of which "hole" holds what it is told where x > 2, and "y" what follows of it; y is its output."""

    def __init__(self, hole: float, y: float = 0) -> None:
        self.hole, self.y = np.float32(hole), np.float32(y)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = batch["x"]
        return {"x": x, "hole": np.where(x > 2, self.hole, x), "y": np.where(x > 2, self.y, x)}

    def decisive(self, names: list[str]) -> set[str]:
        return {"y"} & set(names)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("held", [0, 1 << 30])
def test_nan_that_does_not_reach_an_output_leaves_its_tensor_alone_without_histograms(
    size: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "HELD_BYTES", held)
    found, clean = (collect(Replacing(hole), cut(X, size)) for hole in (np.nan, 0))
    for name in ("x", "y"):
        assert found.tensors[name] == clean.tensors[name]
    hole = found.tensors["hole"]
    np.testing.assert_array_equal(hole.sample_amax, [1, 1, 2, np.nan])
    assert hole.sample_peaks.tolist() == [2, 1, 1, 0]
    assert hole.histogram.total == 0
    assert hole.batch_grid is not None
    assert hole.batch_grid.total == 0


def test_nan_that_reaches_an_output_is_an_error_that_names_the_first_tensor() -> None:
    with pytest.raises(NonFiniteError, match=r"^sample 3: tensor 'hole' holds nan, and no tensor before it"):
        collect(Replacing(np.nan, np.nan), cut(X, 2))
    with pytest.raises(NonFiniteError, match=r"^sample 3: tensor 'y' holds nan"):
        collect(Replacing(0, np.nan), cut(X, 2))


class Both(Replacing):
    def __init__(self) -> None:
        super().__init__(0)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**super().__call__(batch), "both": np.array([np.nan, np.inf, 1], np.float32)}


def test_inf_beside_a_nan_or_after_it_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match=r"^sample 3: tensor 'y' holds inf"):
        collect(Replacing(np.nan, np.inf), cut(X, 2))
    with pytest.raises(NonFiniteError, match=r"^sample 0: tensor 'both' holds inf"):
        collect(Both(), cut(X, 2))


def test_nan_in_padding_masks_its_tensor_and_belongs_to_no_sample() -> None:
    batch = Batch({"x": X}, samples="abcd", valid=3)
    hole = collect(Replacing(np.nan), [batch]).tensors["hole"]
    assert hole.sample_amax.tolist() == [1, 1, 2]
    assert hole.histogram.total == 0
    with pytest.raises(NonFiniteError, match=r"^d: tensor 'hole' holds nan"):
        collect(Replacing(np.nan, np.nan), [batch])


def test_a_pass_goes_on_from_statistics_of_a_tensor_that_holds_nan() -> None:
    x = X[::-1]
    whole = collect(Replacing(np.nan), cut(x, 1))
    begun = ActivationStats.from_bytes(collect(Replacing(np.nan), cut(x[:2], 1)).to_bytes())
    assert collect(Replacing(np.nan), cut(x, 1), start=begun).to_bytes() == whole.to_bytes()


def test_nan_that_no_runner_speaks_for_is_an_error() -> None:
    network = Replacing(np.nan)
    with pytest.raises(NonFiniteError, match=r"^sample 3: tensor 'hole' holds nan"):
        collect(lambda batch: network(batch), cut(X, 2))

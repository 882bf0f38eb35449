from __future__ import annotations

import numpy as np
import pytest
from replays import samples
from sweeps import GRID, STATS, X, network, stats_of

from trtcal.errors import StatsError
from trtcal.passes.collect import collect
from trtcal.ranges.histogram import NUM_BINS
from trtcal.ranges.measuring import MEASURED
from trtcal.ranges.thresholds import METHODS, Method, entropy, entropy_bin, method, spelt
from trtcal.sweep.emulation import groups, replay
from trtcal.sweep.trials import (
    ORDERS,
    Configuration,
    configurations,
    limits_of,
    loudness,
    sweep,
    uneven_samples,
)


def test_every_arrangement_and_method_is_a_trial_and_masks_are_left_out() -> None:
    result = sweep(STATS, GRID)
    assert result.tensors == ("x", "relu", "dead")
    assert len(result.trials) == len(GRID) * len(spelt(swept=True))
    assert list(result.measures) == GRID


def test_trials_whose_thresholds_are_unusable_are_marked() -> None:
    """Of x, percentile:50 clips a half, which is too much of any tensor; percentile:98 too much of an input alone."""

    def marked(*inputs: str) -> set[str]:
        trials = sweep(STATS, GRID, ("minmax", "percentile:50", "percentile:98"), inputs=inputs).trials
        return {trial.method for trial in trials if trial.unusable is not None}

    assert marked() == {"percentile:50"}
    assert marked("x") == {"percentile:50", "percentile:98"}
    worst = next(t for t in sweep(STATS, GRID, ("percentile:50",), inputs=["x"]).trials)
    assert worst.unusable is not None
    assert worst.unusable.startswith("the threshold of x clips 4")


def test_entropy_of_the_pass_s_own_arrangement_is_close_to_the_stream_s() -> None:
    result = sweep(STATS, GRID, streamed_batch_size=4)
    measures = result.measures[Configuration(4, "given", None)]
    batch_grid = STATS.tensors["x"].batch_grid
    assert batch_grid is not None
    assert measures.limit[0] == batch_grid.limit
    assert result.off is not None
    assert result.off[0] == pytest.approx(abs(measures.amax[0] / entropy(batch_grid) - 1))


def test_only_a_method_and_a_rule_that_see_batches_depend_on_the_arrangement() -> None:
    result = sweep(STATS, GRID)
    for name in spelt(swept=True):
        for growth in ("double", "power-of-two"):
            distinct = {
                trial.amax.tobytes()
                for trial in result.trials
                if trial.method == name and trial.configuration.growth == growth
            }
            assert (len(distinct) > 1) == (method(name).depends_on_batches and growth == "double")
    for name, amax in result.invariant.items():
        assert amax[0] == method(name)(STATS.tensors["x"].histogram)


def test_the_measures_say_what_happened_to_the_histogram() -> None:
    measures = sweep(STATS, GRID).measures[Configuration(1, "given", None)]
    maxima = STATS.tensors["x"].sample_amax
    assert measures.first_amax[0] == maxima[0]
    assert measures.doublings[0] == np.ceil(np.log2(maxima.max() / maxima[0]))
    assert maxima[int(measures.last_growth[0])] > measures.limit[0] / 2
    assert measures.slack[0] == pytest.approx(measures.limit[0] / maxima.max())
    assert 128 <= measures.m[0] <= 2048
    assert measures.m[2] == -1  # dead
    assert measures.empty[0] == pytest.approx(
        1 - np.count_nonzero(np.histogram(np.abs(X), 2048, (0, measures.limit[0]))[0]) / 2048, abs=0.01
    )
    assert 0 <= measures.js[0] < 1


def test_exact_counts_make_every_entropy_trial_the_one_of_a_calibration_by_itself() -> None:
    from trtcal.passes.second_pass import count_exactly

    x = samples(22)
    stats = stats_of(x)
    grid, _ = configurations((1, 4, 8), tuple(ORDERS), 2, ("double",), 22)
    shapes = count_exactly(network, [{"x": x}], limits_of(stats, grid), uneven_samples(stats, grid))
    result = sweep(stats, grid, ("entropy",), shapes=shapes)
    for trial in result.trials:
        order = ORDERS[trial.configuration.order](stats, trial.configuration.seed or 0)
        alone = collect(network, [{"x": x[rows]} for rows in groups(order, trial.configuration.batch_size)])
        for name, amax in zip(result.tensors, trial.amax, strict=True):
            batch_grid = alone.tensors[name].batch_grid
            assert batch_grid is not None
            assert amax == (entropy(batch_grid) if batch_grid.limit else 0)
    assert result.exact


def test_the_largest_first_is_the_loudest_sample() -> None:
    ranks = loudness(STATS)
    assert ORDERS["largest-first"](STATS, 0)[0] == np.argmax(ranks)
    assert ORDERS["largest-last"](STATS, 0)[-1] == np.argmax(ranks)
    assert sorted(ORDERS["shuffled"](STATS, 3)) == list(range(24))
    assert ORDERS["shuffled"](STATS, 3).tolist() != ORDERS["shuffled"](STATS, 4).tolist()


def test_batch_sizes_beyond_the_samples_are_left_out_and_said() -> None:
    grid, notes = configurations((1, 64, 8, 128), ("given", "shuffled"), 3, ("double",), 24)
    assert {a.batch_size for a in grid} == {1, 8}
    assert len(grid) == 2 * (1 + 3)
    assert notes == ["batch sizes 64, 128 are left out: there are only 24 samples"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1,), ("sorted",), 1, ("double",), 9), "unknown order 'sorted'; choose among given, shuffled"),
        (((1,), ("given",), 1, ("triple",), 9), "unknown growth rule 'triple'"),
        (((0,), ("given",), 1, ("double",), 9), "at least 1"),
        (((), ("given",), 1, ("double",), 9), "at least 1"),
        (((16,), ("given",), 1, ("double",), 9), "9 samples, fewer than the smallest batch size, 16"),
    ],
)
def test_a_grid_that_makes_no_sense_says_why(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configurations(*arguments)  # type: ignore[arg-type]


def test_thresholds_that_are_known_and_threads_change_nothing() -> None:
    plain = sweep(STATS, GRID, streamed_batch_size=4)
    other = sweep(STATS, GRID, streamed_batch_size=4, known=dict(plain.invariant), workers=3)
    assert [trial.amax.tobytes() for trial in other.trials] == [trial.amax.tobytes() for trial in plain.trials]
    assert list(other.invariant) == list(plain.invariant)
    for one, two in zip(plain.measures.values(), other.measures.values(), strict=True):
        assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in vars(one))
    marked = {name: np.full(3, number, np.float32) for number, name in enumerate(spelt(swept=True))}
    assert sweep(STATS, GRID, known=marked).invariant["mse"].tolist() == marked["mse"].tolist()


@pytest.mark.parametrize(
    ("given", "once", "note"),
    [
        (
            ("percentile", "entropy", "percentile:99.99"),
            ["percentile:99.99", "entropy"],
            "percentile and percentile:99.99 are the same method, which is compared once",
        ),
        (("mse", "minmax", "mse"), ["mse", "minmax"], "method mse was given 2 times and is compared once"),
    ],
)
def test_one_method_written_twice_is_compared_once_and_said(given: tuple[str, ...], once: list[str], note: str) -> None:
    result = sweep(STATS, GRID, given)
    assert [trial.method for trial in result.trials] == once * len(GRID)
    assert list(result.invariant) == once
    assert result.notes == (note,)
    assert sweep(STATS, GRID, once).notes == ()


def test_a_method_that_is_no_entropy_sees_the_batches_where_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the limit: what only the histogram that TensorRT would have tells."""
    half = Method(lambda hist: np.float32(hist.limit / 2), "half of the range", depends_on_batches=True)
    monkeypatch.setitem(METHODS, "half", half)
    result = sweep(STATS, GRID, ("half", "entropy", "half"), workers=2)
    for trial in result.trials:
        measures = result.measures[trial.configuration]
        expected = measures.amax if trial.method == MEASURED else np.float32(measures.limit / 2)
        assert np.array_equal(trial.amax, expected), trial
    assert result.invariant["half"][0] == STATS.tensors["x"].histogram.limit / 2
    again = replay(STATS.tensors["x"], np.arange(24), 4).histogram
    assert (again.num_bins, again.limit) == (NUM_BINS, result.measures[Configuration(4, "given", None)].limit[0])


def test_the_bins_kept_are_those_of_the_search() -> None:
    made = replay(STATS.tensors["x"], np.arange(24), 4)
    assert sweep(STATS, GRID).measures[Configuration(4, "given", None)].m[0] == entropy_bin(made.histogram.counts)


def test_statistics_without_a_range_are_refused() -> None:
    masks = collect(lambda batch: {"mask": batch["x"] - np.float32(np.inf)}, [{"x": X}])
    with pytest.raises(StatsError, match="none of the 1 tensors has a finite range"):
        sweep(masks, GRID)

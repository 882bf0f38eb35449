from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sweeps import GRID, STATS

from trtcal.errors import StatsError
from trtcal.judging.accuracy import bootstrap
from trtcal.sweep import store as sweepfile
from trtcal.sweep.emulation import RULES
from trtcal.sweep.judge import judged
from trtcal.sweep.recommend import recommend
from trtcal.sweep.trials import Judgement, configurations, sweep

SWEEP = judged(sweep(STATS, GRID, streamed_batch_size=4), lambda amax: Judgement(np.array([1.0, 0.0]), None, np.inf))


ROWS = sweepfile.rows(SWEEP)
CONTENT = sweepfile.content(
    SWEEP,
    ROWS,
    STATS,
    recommend(SWEEP, STATS),
    model="m",
    data="d",
    provenance={"trtcal": "0", "seed": None},
    drift={"mse": {"samples": [1], "change_median": [np.inf], "change_max": [np.nan]}},
    thumbnails={"s0": "data:,"},
)


def test_the_table_has_a_row_per_trial_and_the_columns_that_were_promised() -> None:
    table = list(csv.DictReader(io.StringIO(sweepfile.to_csv(ROWS).decode())))
    assert len(table) == len(SWEEP.trials)
    promised = "batch_size,order,seed,method,growth,amax_change_max,accuracy,accuracy_low,accuracy_high,agreement"
    assert {*promised.split(","), "sqnr_db", "error"} <= set(table[0])
    assert (table[0]["accuracy"], table[0]["agreement"], table[0]["sqnr_db"]) == ("0.5", "", "inf")


def test_each_trial_has_the_intervals_of_its_own_values() -> None:
    rng = np.random.default_rng(0)
    judgements = [
        Judgement((rng.random(40) < 0.8).astype(float), rng.random(30), 1.0),
        Judgement(rng.integers(0, 2, 40).astype(float), None, 1.0),
        Judgement(np.array([0.5]), np.ones(30), 1.0),
    ]
    plain = sweep(STATS, GRID)
    trials = [replace(trial, judgement=judgements[number % 3]) for number, trial in enumerate(plain.trials)]
    for trial, row in zip(trials, sweepfile.rows(replace(plain, trials=tuple(trials))), strict=True):
        for name in ("accuracy", "agreement"):
            values = getattr(trial.judgement, name)
            low, high = (None, None) if values is None or values.size == 1 else bootstrap(values)
            assert row[name] == (None if values is None else values.mean())
            assert (row[f"{name}_low"], row[f"{name}_high"]) == (low, high)
            assert (row["sqnr_db_low"], row["sqnr_db_high"]) == (None, None)


def test_an_sqnr_with_noise_per_sample_has_an_interval_and_columns_at_the_end() -> None:
    noise = np.random.default_rng(0).lognormal(-5, 1, 40)
    sqnr = float(-10 * np.log10(noise.mean()))
    by_noise = judged(sweep(STATS, GRID[:2]), lambda amax: Judgement(None, None, sqnr, noise))
    row = sweepfile.rows(by_noise)[0]
    added = ["sqnr_db_low", "sqnr_db_high", "judged_samples", "dropped", "judged_as"]
    assert list(row)[-5:] == added == list(sweepfile.COLUMNS)[-5:]
    low, high = bootstrap(noise)
    assert row["sqnr_db_low"] == pytest.approx(-10 * np.log10(high))
    assert row["sqnr_db_high"] == pytest.approx(-10 * np.log10(low))
    assert row["sqnr_db_low"] < sqnr < row["sqnr_db_high"]
    endless = judged(sweep(STATS, GRID[:2]), lambda amax: Judgement(None, None, -np.inf, np.array([np.inf, 0.0])))
    assert sweepfile.rows(endless)[0]["sqnr_db_high"] == np.inf


@pytest.mark.parametrize("exact", [False, True])
def test_what_is_not_counted_for_an_arrangement_is_called_approximate(exact: bool) -> None:
    grid, _ = configurations((4, 5), ("given",), 1, tuple(RULES), 24)
    for partial in ("pad", "drop"):
        made = replace(sweep(STATS, grid, ("entropy", "minmax", "mse"), partial=partial), exact=exact)
        for row in sweepfile.rows(made):
            drops = partial == "drop" and row["batch_size"] == 5
            if row["method"] == "minmax":
                expected = False
            elif row["method"] == "mse":
                expected = drops
            else:
                expected = not exact and (row["growth"] != "power-of-two" or drops)
            assert row["approximate"] == expected, row


def test_the_json_is_strict_and_holds_what_its_docstring_says(tmp_path: Path) -> None:
    (tmp_path / "trials.json").write_bytes(sweepfile.to_json(CONTENT))
    loaded = sweepfile.load_json(tmp_path / "trials.json")
    documented = sweepfile.__doc__ or ""
    for key in loaded:
        assert f"``{key}``" in documented, key
    assert loaded["trials"][0]["sqnr_db"] is None
    tensors = len(loaded["tensors"])
    assert all(len(configuration["amax"]) == tensors for configuration in loaded["arrangements"])
    assert all(sum(h["counts"]) > 0 for h in loaded["histograms"])
    json.dumps(loaded, allow_nan=False)
    assert loaded == CONTENT
    assert repr(loaded) == repr(CONTENT)  # lists, not tuples: what reads the file may be given this instead


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"format": "trtcal-sweep-9"}', b"\xff", b"[" * 100000])
def test_what_is_no_sweep_is_refused_by_name(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "trials.json").write_bytes(text)
    with pytest.raises(StatsError, match=r"trials\.json"):
        sweepfile.load_json(tmp_path / "trials.json")
    with pytest.raises(StatsError, match=r"gone\.json: cannot be read"):
        sweepfile.load_json(tmp_path / "gone.json")


def test_a_formula_in_an_error_is_harmless_in_a_spreadsheet() -> None:
    def judge(amax: object) -> Judgement:
        raise RuntimeError("x")

    failed = judged(sweep(STATS, GRID[:1]), judge)
    object.__setattr__(failed.trials[0], "error", '=HYPERLINK("x")')
    table = list(csv.DictReader(io.StringIO(sweepfile.to_csv(sweepfile.rows(failed)).decode())))
    assert table[0]["error"] == '\'=HYPERLINK("x")'


def test_a_journal_is_read_back_up_to_a_broken_line() -> None:
    amax = np.array([1.5, 2.5], np.float32)
    one = sweepfile.judgement_line(amax, Judgement(np.array([1.0]), None, 3.5))
    two = sweepfile.judgement_line(amax * 2, Judgement(None, np.array([0.0, 1.0]), None))
    found = sweepfile.read_journal(one + two + b'{"amax": "00')
    assert set(found) == {amax.tobytes(), (amax * 2).tobytes()}
    assert found[amax.tobytes()].sqnr_db == 3.5
    assert sweepfile.read_journal(b"broken\n" + one) == {}


def test_a_journal_holds_the_noise_of_each_sample_and_may_be_older_than_that() -> None:
    amax, noise = np.array([1.5], np.float32), np.array([0.25, 0.0, 1e-9, np.inf])
    line = sweepfile.judgement_line(amax, Judgement(None, np.ones(4), 6.0, noise))
    found = sweepfile.read_journal(line)[amax.tobytes()]
    assert found.noise is not None
    np.testing.assert_array_equal(found.noise, noise)
    older = json.loads(line)
    del older["noise"]
    found = sweepfile.read_journal(json.dumps(older).encode())[amax.tobytes()]
    assert (found.noise, found.sqnr_db) == (None, 6.0)


def test_a_journal_has_a_judgement_for_each_number_of_samples() -> None:
    amax = np.array([1.5], np.float32)
    lines = b"".join(sweepfile.judgement_line(amax, Judgement(None, np.ones(n), 6.0, None, n)) for n in (2, 4))
    assert [(key, one.samples) for key, one in sweepfile.read_judgements(lines)] == [
        (amax.tobytes(), 2),
        (amax.tobytes(), 4),
    ]
    assert sweepfile.read_journal(lines)[amax.tobytes()].samples == 4


def test_what_a_race_left_out_is_in_the_table() -> None:
    made = sweep(STATS, GRID[:2], ("minmax",))
    first = replace(made.trials[0], judgement=Judgement(None, np.ones(16), 6.0, None, 16), dropped="worse than mse")
    second = replace(made.trials[1], judged_as="minmax, double, batches of 1, given")
    table = sweepfile.rows(replace(made, trials=(first, second)))
    lines = list(csv.DictReader(io.StringIO(sweepfile.to_csv(table).decode())))
    assert [(row["judged_samples"], row["dropped"], row["judged_as"]) for row in lines] == [
        ("16", "worse than mse", ""),
        ("", "", "minmax, double, batches of 1, given"),
    ]

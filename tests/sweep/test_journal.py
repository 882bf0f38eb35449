from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from trtcal.errors import OutputError
from trtcal.sweep.journal import Journal
from trtcal.sweep.trials import Judgement

AMAX = np.array([1.5, 0.25], np.float32)
JUDGEMENT = Judgement(None, None, 12.5)


def test_an_interrupted_sweep_finds_what_was_judged(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    Journal(path, "k", resume=False).note(AMAX, JUDGEMENT)
    done = Journal(path, "k", resume=True).done
    assert list(done) == [AMAX.tobytes()]
    assert done[AMAX.tobytes()].sqnr_db == 12.5


def test_judgements_of_something_else_or_of_a_sweep_that_begins_anew_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    Journal(path, "k", resume=False).note(AMAX, JUDGEMENT)
    content = path.read_bytes()
    assert not Journal(path, "another", resume=True).done
    path.write_bytes(content)
    assert not Journal(path, "k", resume=False).done
    assert not Journal(path, "k", resume=True).done


def test_a_line_that_was_cut_off_is_judged_again_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    journal = Journal(path, "k", resume=False)
    journal.note(AMAX, JUDGEMENT)
    journal.note(AMAX * 2, JUDGEMENT)
    path.write_bytes(path.read_bytes()[:-5])
    again = Journal(path, "k", resume=True)
    assert list(again.done) == [AMAX.tobytes()]
    again.note(AMAX * 3, JUDGEMENT)
    assert list(Journal(path, "k", resume=True).done) == [AMAX.tobytes(), (AMAX * 3).tobytes()]


def test_a_disk_that_is_full_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "judgements.jsonl", "k", resume=False)
    journal.path = tmp_path / "gone" / "judgements.jsonl"
    with caplog.at_level(logging.WARNING):
        journal.note(AMAX, JUDGEMENT)
    assert "an interruption will cost judgements" in caplog.text


def test_a_journal_that_cannot_begin_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"judgements\.jsonl"):
        Journal(tmp_path / "gone" / "judgements.jsonl", "k", resume=False)

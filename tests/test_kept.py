from __future__ import annotations

import logging

import pytest

from calibrators.kept import FirstError
from trtcal.errors import BackendError, DataError


def test_nothing_is_raised_where_nothing_was_kept() -> None:
    kept = FirstError()
    kept.reraise()
    assert not kept


def test_the_first_error_is_kept_and_later_ones_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    kept = FirstError()
    kept.keep(OSError("first"), "batch 3")
    kept.keep(OSError("second"), "batch 4")
    with pytest.raises(DataError, match="batch 3: OSError: first") as raised:
        kept.reraise()
    assert isinstance(raised.value.__cause__, OSError)
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.ERROR, "batch 3: first; no cache will be written"),
        (logging.ERROR, "batch 4: second (after an earlier error)"),
    ]


def test_errors_of_this_project_keep_their_type() -> None:
    kept = FirstError()
    kept.keep(BackendError("out of memory"), "batch 1")
    with pytest.raises(BackendError, match=r"^batch 1: out of memory$"):
        kept.reraise()


def test_ctrl_c_stays_ctrl_c() -> None:
    kept = FirstError()
    kept.keep(KeyboardInterrupt(), "batch 2")
    with pytest.raises(KeyboardInterrupt, match="batch 2: KeyboardInterrupt"):
        kept.reraise()


def test_an_exit_goes_through_as_it_is() -> None:
    kept = FirstError()
    kept.keep(SystemExit(3), "batch 2")
    with pytest.raises(SystemExit) as raised:
        kept.reraise()
    assert raised.value.code == 3


def test_an_unusual_base_exception_goes_through_as_it_is() -> None:
    kept = FirstError()
    error = GeneratorExit()
    kept.keep(error, "batch 2")
    with pytest.raises(GeneratorExit):
        kept.reraise()


def test_the_traceback_of_a_strangers_error_is_logged_and_that_of_our_own_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    FirstError().keep(OSError("x"), "batch 1")
    FirstError().keep(DataError("x"), "batch 1")
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]

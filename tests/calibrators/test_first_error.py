from __future__ import annotations

import logging

import pytest

from calibrators.first_error import FirstError
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


def test_an_error_that_cannot_be_printed_or_made_again_is_raised_all_the_same() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    class Pair(DataError):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(one + two)

    for error, words in ((Silent(), "here: Silent"), (Pair("a", "b"), "here: ab")):
        first = FirstError()
        first.keep(error, "here")
        with pytest.raises(DataError, match=f"^{words}$"):
            first.reraise()


@pytest.mark.parametrize("code", [0, None])
def test_an_exit_that_calls_itself_a_success_is_an_error(code: int | None) -> None:
    first = FirstError()
    first.keep(SystemExit(code), "here")
    with pytest.raises(DataError, match="here: the loader ended the program"):
        first.reraise()

"""The first error of a calibration, kept because TensorRT swallows it.

TensorRT's Python bindings catch every exception that a calibrator raises, KeyboardInterrupt too, print it, and take it
for the end of the data: the build goes on with what it has and hands over a cache (seen on the bindings 8.6.0, 10.0.1
and 10.16). So the first one is kept here and raised once the builder has returned.
"""

from __future__ import annotations

import logging

from trtcal.errors import DataError, TrtcalError

logger = logging.getLogger(__name__)


class FirstError:
    """Keeps one error and where it happened; later ones are logged only."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.where = ""

    def __bool__(self) -> bool:
        return self.error is not None

    def keep(self, error: BaseException, where: str) -> None:
        """Error and place -> kept, if it is the first, and logged at ERROR."""
        first = self.error is None
        if first:
            self.error, self.where = error, where
        text = _text(error)
        logger.error(
            "%s: %s%s", where, text, "; no cache will be written" if first else " (after an earlier error)",
            exc_info=None if isinstance(error, TrtcalError | KeyboardInterrupt) else error,
        )  # fmt: skip

    def reraise(self) -> None:
        """Raises the kept error, if there is one, with its place; its own type where that tells something.

        A TrtcalError and a KeyboardInterrupt keep their type; SystemExit goes through as it is unless it calls itself a
        success; anything else that a loader raised becomes a DataError, with the original as its cause.
        """
        error = self.error
        if error is None:
            return
        if isinstance(error, SystemExit):
            if error.code:
                raise error
            raise DataError(f"{self.where}: the loader ended the program with SystemExit({error.code})") from error
        message = f"{self.where}: {_text(error)}"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(message) from error
        if isinstance(error, TrtcalError):
            try:
                same = type(error)(message)
            except TypeError:  # a subclass with arguments of its own
                raise DataError(message) from error
            raise same from error
        if not isinstance(error, Exception):
            raise error
        name = type(error).__name__
        text = _text(error)
        raise DataError(f"{self.where}: {name}: {text}" if text != name else f"{self.where}: {name}") from error


def _text(error: BaseException) -> str:
    """Error -> what it says, or its name; an error that cannot be printed must not hide that there was one."""
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__

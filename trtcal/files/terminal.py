"""Text with names out of files in it, for a terminal or a spreadsheet: shown, and not obeyed."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

# Control characters, which move the cursor, clear the screen or ring; the line ends of Unicode; the marks that turn
# the direction of writing; and surrogates, which stand for bytes that are no text.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def line(text: str) -> str:
    """Text -> one line: what a terminal would obey, line ends included, stands there as Python escapes it."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def lines(texts: Iterable[str]) -> str:
    """Texts -> a line each."""
    return "\n".join(map(line, texts))


def put(text: str, file: TextIO | None = None) -> None:
    """Text -> a line on standard output, or on another stream, at once.

    SystemExit, in silence, where nobody reads there any more, as behind ``| head -1``.
    """
    file = file or sys.stdout
    try:
        print(text, file=file, flush=True)
    except BrokenPipeError:
        # Python tries again at exit to write what is left, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        raise SystemExit(1) from None


def cell(value: Any) -> Any:
    """Value for a CSV file -> the same; text that a spreadsheet would take for a formula has an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


class LineFormatter(logging.Formatter):
    """A log's messages as lines; the traceback of an exception stays below its message."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Record -> its line."""
        return line(super().formatMessage(record))

"""What an interrupted run leaves for the next one, under a key of what it was made from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trtcal.errors import OutputError, TrtcalError
from trtcal.files.atomic import write_bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")


def save(path: str | Path, data: bytes) -> None:
    """Bytes -> the file; where it cannot be written, a warning: a full disk ends the convenience, not the run."""
    try:
        write_bytes(path, data)
    except OutputError as error:
        logger.warning("%s; an interruption will cost what was done so far", error)


def load(path: str | Path, key: str, parse: Callable[[bytes], tuple[T, object]]) -> T | None:
    """File -> what ``parse`` finds in its bytes, if it was left under this key.

    ``parse`` gives the content and its key. None, with the reason in the log, where nothing can be used: where the file
    is missing, another run's, or damaged, which ``parse`` says by a TrtcalError that names the file.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        content, found = parse(path.read_bytes())
    except (OSError, TrtcalError) as error:
        logger.warning("%s; starting over", error)
        return None
    if found != key:
        logger.info("%s: left by a run over something else; starting over", path)
        return None
    return content

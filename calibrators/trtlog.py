"""TensorRT's log -> Python's logging, and kept for the questions that only the log answers."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable
from typing import Any

from calibrators.versions import tensorrt
from trtcal.errors import BackendError

logger = logging.getLogger("calibrators.tensorrt")

_LEVELS = {
    "INTERNAL_ERROR": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "VERBOSE": logging.DEBUG,
}
_KEPT = 20_000
_MISSING = re.compile(r"Missing scale and zero-point for tensor (.+?), expect fall back")

_Base: Any = tensorrt().ILogger


class Log(_Base):  # type: ignore[misc]
    """Passes TensorRT's lines on to the logger ``calibrators.tensorrt`` and keeps the last ones of a build."""

    def __init__(self) -> None:
        _Base.__init__(self)
        self.lines: deque[tuple[str, str]] = deque(maxlen=_KEPT)

    def log(self, severity: Any, message: str) -> None:
        """Called by TensorRT, from any thread; an exception in here would end the process."""
        name = str(severity.name)
        if name != "VERBOSE":
            self.lines.append((name, message))
        logger.log(_LEVELS.get(name, logging.INFO), "%s", message)

    def errors(self) -> list[str]:
        """Lines at ERROR and above since the last `clear`."""
        return [message for name, message in self.lines if name in ("ERROR", "INTERNAL_ERROR")]

    def words(self) -> str:
        """The last errors in TensorRT's own words, for the end of a sentence."""
        return "; ".join(self.errors()[-3:]) or "it gives no reason; see the log of calibrators.tensorrt"

    def without_scale(self) -> list[str]:
        """Tensors that TensorRT says it has no scale for, in order, each once."""
        found = (_MISSING.search(message) for _, message in self.lines)
        return list(dict.fromkeys(match[1] for match in found if match))

    def clear(self) -> None:
        """Forget the lines of the build before."""
        self.lines.clear()


LOG = Log()
"""The one log of the process: TensorRT keeps the first logger it is given and ignores later ones."""


def new_builder() -> Any:
    """A `trt.Builder` that logs to `LOG`. Making one loads kernels, for seconds on TensorRT 8, and it builds often."""
    return made(lambda: tensorrt().Builder(LOG), "a builder")


def made(make: Callable[[], Any], what: str) -> Any:
    """What TensorRT makes, or BackendError with its words where it makes nothing."""
    try:
        thing = make()
    except TypeError:  # the bindings' way to say that a constructor got nothing, as where there is no GPU
        thing = None
    if thing is None:
        raise BackendError(f"TensorRT cannot make {what}: {LOG.words()}")
    return thing

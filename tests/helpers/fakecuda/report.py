"""How a test program tells its test what happened: JSON on the last line of its output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def failure(action: Callable[[], Any]) -> dict[str, str] | None:
    """What an action raises -> its type and message; None when it does not raise."""
    try:
        action()
    except BaseException as error:
        return {"type": type(error).__name__, "message": str(error), "cause": type(error.__cause__).__name__}
    return None


def report(**results: Any) -> None:
    """The results -> the last line of the output."""
    sys.stdout.flush()
    print(json.dumps(results, default=lambda value: value.decode() if isinstance(value, bytes) else repr(value)))

"""What a step finds out: one finding per question, judged against an expectation where there is one."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtcal.errors import BackendError

if TYPE_CHECKING:
    from acceptance.networks import Model

NOT_MEASURED = "not measured"
"""The verdict on everything that test doubles answered."""


class Skip(Exception):
    """The question cannot be put here; the message says why."""


@dataclass(frozen=True)
class Finding:
    """A question, what was got, and what was expected.

    ``verdict``: ``ok`` or ``differs`` where something was expected, else ``measured``; ``skipped`` with the reason in
    ``got``; ``error`` with the exception; NOT_MEASURED where test doubles answered.
    """

    question: str
    got: Any
    expected: Any = None
    verdict: str = "measured"
    details: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """For JSON, without empty parts."""
        return {key: value for key, value in asdict(self).items() if value is not None and value != {}}


def measured(question: str, got: Any, **details: Any) -> Finding:
    """A number to be kept, of which nothing was promised."""
    return Finding(question, got, details=details)


def compared(question: str, got: Any, expected: Any, same: bool | None = None, **details: Any) -> Finding:
    """What was got beside what was promised; ``same`` where equality is not the test."""
    holds = got == expected if same is None else same
    return Finding(question, got, expected, "ok" if holds else "differs", details)


@dataclass
class Context:
    """What a step may use: TensorRT, the models, a scratch folder, and how long it has."""

    trt: Any
    models: Sequence[Model]
    folder: Path
    doubles: Sequence[str]
    deadline: float

    @property
    def small(self) -> bool:
        """Whether the smallest case will do, because nobody believes test doubles anyway."""
        return bool(self.doubles)

    @property
    def seconds_left(self) -> float:
        """Until the step ought to end by itself."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Step:
    """A group of questions that share a process; ``seconds`` is the longest it may take."""

    name: str
    what: str
    run: Callable[[Context], Iterable[Finding]]
    seconds: float


def attempt(question: str, ask: Callable[[], Finding | Iterable[Finding]]) -> Iterator[Finding]:
    """Findings of one question; an exception is one of them, and the next question is asked all the same."""
    try:
        found = ask()
        yield from [found] if isinstance(found, Finding) else found
    except Skip as reason:
        yield Finding(question, str(reason), verdict="skipped")
    except Exception as error:
        lines = traceback.format_exc().splitlines()
        yield Finding(question, f"{type(error).__name__}: {error}", verdict="error", details={"trace": lines[-6:]})


@contextmanager
def beyond_doubles(context: Context, what: str) -> Iterator[None]:
    """For what test doubles cannot do: our own complaint about it skips the question there, and only there."""
    try:
        yield
    except BackendError as error:
        if not context.doubles:
            raise
        raise Skip(f"the test doubles {what}: {error}") from error


def as_rehearsed(finding: Finding) -> Finding:
    """What test doubles answered: kept, to show that the question can be put, and judged by nobody."""
    if finding.verdict in ("skipped", "error"):
        return finding
    return replace(finding, verdict=NOT_MEASURED)


_WORST_FIRST = ("error", "differs", NOT_MEASURED, "ok", "measured", "skipped")


def status(findings: Iterable[dict[str, Any]]) -> str:
    """Findings of a step -> the one word for it."""
    verdicts = {finding["verdict"] for finding in findings}
    return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), "empty")

"""What help says of the library's tables: methods, growth rules, orders and formats, read when help is asked for.

Help is written with placeholders, ``{methods}``, because the tables come with NumPy, which a command line that is only
parsed does not need. :class:`Command` fills them in, and so does the generator of docs/cli.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from typer.core import TyperCommand


def _methods() -> str:
    from trtcal.ranges.thresholds import METHODS, usages

    return _listed({usage: METHODS[name].description for name, usage in usages().items()})


def _moved() -> str:
    from trtcal.ranges.thresholds import METHODS

    return _or(name for name, row in METHODS.items() if row.depends_on_batches)


def _controls() -> str:
    from trtcal.ranges.thresholds import METHODS

    return _or(name for name, row in METHODS.items() if not row.clips)


def _swept() -> str:
    from trtcal.ranges.thresholds import spelt

    return ",".join(spelt(swept=True))


def _growths() -> str:
    from trtcal.ranges.growth import GROWTH

    return _listed({name: f"{row.label}: {row.description}" for name, row in GROWTH.items()})


def _replayed() -> str:
    from trtcal.sweep.emulation import RULES

    return _listed({name: f"{row.label}: {row.description}" for name, row in RULES.items()})


def _orders() -> str:
    from trtcal.sweep.trials import ORDERS

    return ", ".join(ORDERS)


def _formats() -> str:
    from trtcal.cache.formats import FORMATS

    return _or(FORMATS)


def _written_formats() -> str:
    from trtcal.cache.formats import FORMATS

    return _or(name for name, row in FORMATS.items() if row.format is not None)


def _weights() -> str:
    from trtcal.qdq.weights import weight_methods

    return weight_methods()


TEXTS: dict[str, Callable[[], str]] = {
    "{methods}": _methods,
    "{methods that depend on batches}": _moved,
    "{methods that never clip}": _controls,
    "{swept}": _swept,
    "{growths}": _growths,
    "{replayed growths}": _replayed,
    "{orders}": _orders,
    "{methods for weights}": _weights,
    "{formats}": _formats,
    "{written formats}": _written_formats,
}


class Command(TyperCommand):
    """A command whose help names what the library's tables hold."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page."""
        fill(self)
        super().format_help(ctx, formatter)


def fill(command: Any) -> None:
    """Put the texts of the tables into the help of a command's options."""
    for param in command.params:
        for name in ("help", "show_default"):
            text = getattr(param, name, None)
            if isinstance(text, str):
                for placeholder, words in TEXTS.items():
                    if placeholder in text:
                        text = text.replace(placeholder, words())
                setattr(param, name, text)


def _listed(rows: Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({description})" for name, description in rows.items())


def _or(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last

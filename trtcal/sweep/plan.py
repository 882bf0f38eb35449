"""A sweep's settings, spelt once: options of the command, keys of a zoo's row, settings.json, parameters in MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from operator import index
from typing import Any

from trtcal.files.remote import is_url, shown

GRID = ("batch_sizes", "orders", "seeds", "methods", "growths", "exact")
"""Fields that decide the trials; how these are evaluated, the key of the judge tells by content."""


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a sweep compares, and by what it evaluates that; the defaults are those of ``trtcal sweep``.

    ``batch_sizes``, ``orders``, ``growths`` and ``methods`` are compared with each other, shuffled samples in as many
    orders as there are ``seeds``, and counted, not replayed, where ``exact``. With ``accuracy`` the model runs as INT8,
    without the layers in ``exclude``, on ``eval_samples`` of ``eval_data`` (None: all; the calibration samples), scored
    by ``metric``. No methods stand for all of them. Values of the grid may be given as text, ``"1,4,16"``. Raises
    ValueError for a name that is none and a number below 1.
    """

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    orders: tuple[str, ...] = ("given", "shuffled", "largest-first", "largest-last")
    seeds: int = 5
    methods: tuple[str, ...] = ()
    growths: tuple[str, ...] = ("double", "power-of-two")
    exact: bool = False
    accuracy: bool = True
    metric: str = "top1"
    eval_data: str | None = None
    eval_samples: int | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from trtcal.sweep.trials import check_grid, distinct_methods

        object.__setattr__(self, "batch_sizes", _whole_numbers("batch_sizes", self.batch_sizes))
        for name in ("orders", "methods", "growths"):
            object.__setattr__(self, name, tuple(_several(getattr(self, name))))
        if not self.methods:
            object.__setattr__(self, "methods", tuple(choice.name for choice in distinct_methods()[0]))
        exclude: str | Iterable[str] = self.exclude  # names of layers may hold commas
        object.__setattr__(self, "exclude", (exclude,) if isinstance(exclude, str) else tuple(exclude))
        check_grid(self.batch_sizes, self.orders, self.seeds, self.growths, self.methods)
        if self.eval_samples is not None and self.eval_samples < 1:
            raise ValueError(f"eval_samples must be at least 1, got {self.eval_samples}")

    def settings(self) -> dict[str, Any]:
        """Nothing -> the fields as JSON has them, each method once, URLs without passwords and signatures."""
        from trtcal.sweep.trials import distinct_methods

        found = {item.name: getattr(self, item.name) for item in fields(SweepPlan)}
        found["methods"] = [choice.name for choice in distinct_methods(self.methods)[0]]
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
        if self.eval_data is not None and is_url(self.eval_data):
            found["eval_data"] = shown(self.eval_data)
        return found

    def changed(self, settings: object) -> list[str]:
        """The settings of another plan -> names of what differs in the grid; of it all, where they are none."""
        other = settings if isinstance(settings, Mapping) else {}
        return [name for name, value in self.settings().items() if name in GRID and other.get(name) != value]


def _several(given: str | Iterable[Any]) -> list[Any]:
    return given.split(",") if isinstance(given, str) else list(given)


def _whole_numbers(name: str, given: str | Iterable[Any]) -> tuple[int, ...]:
    try:
        return tuple(int(value) if isinstance(value, str) else index(value) for value in _several(given))
    except (ValueError, TypeError):
        flag = name.replace("_", "-")
        raise ValueError(f"--{flag}: expected whole numbers joined by commas, got {given!r}") from None

"""A sweep's settings, spelt once: options of the command, keys of a zoo's row, settings.json, parameters in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from trtcal.files.remote import is_url, shown
from trtcal.files.settings import option, take_values

GRID = ("batch_sizes", "orders", "seeds", "methods", "growths", "exact")
"""Fields that decide the trials; how these are evaluated, the key of the judge tells by content."""

QUICK = {"batch_sizes": "1,8,32", "orders": "given"}
"""What ``trtcal sweep --quick`` compares, unless it is told otherwise."""

QUICK_SAMPLES = 32
"""With how many samples it calibrates, and on how many it judges."""

EXCLUDE = "Layers that stay in float: name, op type or output, or a pattern such as '/head/*'. Repeatable."


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a sweep compares, and by what it evaluates that; the defaults are those of ``trtcal sweep``.

    ``batch_sizes``, ``orders``, ``growths`` and ``methods`` are compared with each other, shuffled samples in as many
    orders as there are ``seeds``, and counted, not replayed, where ``exact``. With ``accuracy`` the model runs as INT8,
    without the layers in ``exclude``, on ``eval_samples`` of ``eval_data`` (None: all; the calibration samples), scored
    by ``metric``; on fewer, with ``race``, where these show that others are better. No methods stand for all of them.
    Values of the grid may be given as text, ``"1,4,16"``. Raises ValueError for a name that is none and a number below
    1.
    """

    batch_sizes: tuple[int, ...] = option(
        "Calibration batch sizes to compare.", "N,N,...", default=(1, 2, 4, 8, 16, 32, 64), least=1
    )
    orders: tuple[str, ...] = option(
        "Orders of the samples: {orders}.",
        "NAME,...",
        default=("given", "shuffled", "largest-first", "largest-last"),
        joined=True,
    )
    seeds: int = option("Number of shuffles.", "N", default=5, least=1)
    methods: tuple[str, ...] = option(
        "Threshold methods: {methods}. The control is {methods that never clip}.",
        "NAME,...",
        default=(),
        otherwise="{swept}",
        joined=True,
    )
    growths: tuple[str, ...] = option(
        "How the histogram of {methods that depend on batches} grows: {replayed growths}.",
        "NAME,...",
        default=("double", "power-of-two"),
        joined=True,
    )
    exact: bool = option("A second pass, bit-equal to calibrating each configuration by itself.", default=False)
    accuracy: bool = option("Run the model as INT8 with every distinct set of ranges.", default=True)
    metric: str = option(
        "top1, top5, or metric.py:function, where more is better; needs labels.", "NAME", default="top1"
    )
    eval_data: str | None = option(
        "Samples to judge by, prepared as --data is; --labels is about them then.",
        "PATH",
        otherwise="the calibration samples",
    )
    eval_samples: int | None = option(
        "Judge by so many of them, spread over all and over their classes.", "N", least=1, otherwise="all"
    )
    race: bool = option("Judge on all samples only what a few of them do not show to be worse.", default=True)
    exclude: tuple[str, ...] = option(EXCLUDE, "NAME|OPTYPE|PATTERN", default=())

    def __post_init__(self) -> None:
        from trtcal.sweep.trials import check_grid, distinct_methods

        take_values(self, SweepPlan)
        if not self.methods:
            object.__setattr__(self, "methods", tuple(choice.name for choice in distinct_methods()[0]))
        check_grid(self.batch_sizes, self.orders, self.seeds, self.growths, self.methods)

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

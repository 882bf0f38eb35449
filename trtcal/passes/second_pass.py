"""A second pass that makes replays exact: every element counted on every limit that is asked about.

The first pass says which limits there are, because they follow from the samples' maxima alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from trtcal.passes.collect import Run, as_float32, run_rows
from trtcal.passes.collector import Progress, as_batch
from trtcal.ranges.histogram import NUM_BINS, HistogramBuilder, abs_max


class ExactCounts:
    """Counts of one tensor on each of its limits, and those of single samples that not every replay has once."""

    def __init__(self, limits: Collection[float]) -> None:
        self.total = {limit: np.zeros(NUM_BINS, np.int64) for limit in limits}
        self.single: dict[int, dict[float, np.ndarray]] = {}
        self.samples = 0

    def add(self, values: np.ndarray, sample: int, keep: bool) -> None:
        """Count one sample; ``keep`` its own counts as well."""
        own: dict[float, np.ndarray] = {}
        amax = abs_max(values)
        for limit, total in self.total.items():
            builder = HistogramBuilder(NUM_BINS, lambda _, __, limit=limit: limit)  # type: ignore[misc]
            builder.add(values, amax)
            total += builder.counts
            if keep:
                own[limit] = builder.counts
        if keep:
            self.single[sample] = own
        self.samples = max(self.samples, sample + 1)

    def __call__(self, limit: float, rows: np.ndarray) -> np.ndarray:
        """A :data:`trtcal.sweep.emulation.Shape`: samples that are there once come from the total."""
        counts = self.total[limit].copy()
        for sample, times in enumerate(np.bincount(rows, minlength=self.samples)):
            if times != 1:
                counts += (int(times) - 1) * self.single[sample][limit]
        return counts


def count_exactly(
    runner: Run,
    batches: Iterable[Mapping[str, np.ndarray]],
    limits: Mapping[str, Collection[float]],
    keep: Collection[int] = (),
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, ExactCounts]:
    """Tensor -> limits to count it on; the runner and batches of the first pass -> exact counts.

    ``keep`` names the samples, by their place in the pass, whose own counts replays will ask for: those
    that padding repeats or that are dropped.
    """
    counts = {name: ExactCounts(of) for name, of in limits.items()}
    kept = frozenset(keep)
    sample = 0
    for batch in batches:
        for _, answer in run_rows(runner, batch, range(as_batch(batch).valid), workers):
            for name, tensor in counts.items():
                tensor.add(as_float32(answer[name]), sample, sample in kept)
            sample += 1
            if progress is not None:
                progress(sample)
    return counts

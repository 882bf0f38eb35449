"""How far thresholds are, after so many samples, from those of all samples."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from trtcal.files.atomic import write_bytes
from trtcal.ranges.measuring import thresholds
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import spelt
from trtcal.sweep.trials import usable


class Looks:
    """Thresholds of a pass as it goes on, in a file that a pass with the same key goes on with."""

    def __init__(self, path: str | Path, key: str) -> None:
        self.path, self.key = Path(path), key
        self._taken = _read(self.path, key)  # number of samples -> method -> thresholds

    def __contains__(self, samples: int) -> bool:
        return samples in self._taken

    def take(self, stats: ActivationStats, workers: int) -> dict[str, np.ndarray]:
        """Statistics so far -> method -> thresholds of its usable tensors, float32; noted, and written."""
        found = thresholds([tensor.histogram for tensor in usable(stats).values()], spelt(), workers)
        self._taken[len(stats.samples)] = {name: amax.astype(np.float64).tolist() for name, amax in found.items()}
        write_bytes(self.path, json.dumps({"key": self.key, "snapshots": self._taken}).encode())
        return found

    def drift(self, tensors: int) -> dict[str, Any]:
        """Number of usable tensors -> method -> ``samples``, and the relative ``change_median`` and ``change_max``.

        One of another number of tensors was taken before a mask showed itself, or is of another sweep: left out.
        """
        taken = {n: methods for n, methods in self._taken.items() if all(len(a) == tensors for a in methods.values())}
        if not taken:
            return {}
        drift: dict[str, Any] = {}
        for name, last in taken[max(taken)].items():
            final = np.array(last)
            ranged = (final > 0) & np.isfinite(final)  # an inf is no range, with which nothing can agree
            rows: dict[str, list[float]] = {"samples": [], "change_median": [], "change_max": []}
            for samples, methods in sorted(taken.items()):
                with np.errstate(over="ignore"):  # inf is far enough
                    change = np.abs(np.array(methods[name])[ranged] / final[ranged] - 1)
                rows["samples"].append(samples)
                rows["change_median"].append(float(np.median(change)) if change.size else 0.0)
                rows["change_max"].append(float(change.max(initial=0)))
            drift[name] = rows
        return drift


def _read(path: Path, key: str) -> dict[int, dict[str, list[float]]]:
    try:
        content = json.loads(path.read_bytes())
        if content["key"] == key:
            return {
                int(samples): {name: _finite(methods[name]) for name in spelt()}
                for samples, methods in content["snapshots"].items()
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        pass  # not there, of something else or broken: the pass makes it anew
    return {}


def _finite(amax: Iterable[Any]) -> list[float]:
    values = [float(value) for value in amax]
    if not all(map(math.isfinite, values)):
        raise ValueError("thresholds are finite")
    return values

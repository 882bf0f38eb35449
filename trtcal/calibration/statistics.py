"""A file that keeps the statistics of a pass: which runs they serve, and when others may take their place."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from trtcal.cache.provenance import ARRANGEMENT, Difference, Provenance, statistics_differences
from trtcal.calibration.calibrate import on_fine_grid
from trtcal.errors import OutputError, StatsError
from trtcal.model.overwriting import Kind, check_output
from trtcal.ranges.stats import ActivationStats, read

logger = logging.getLogger(__name__)

OUT_OF_DATE = ("model_sha256", "data_key", "samples_used", "versions")
"""Fields of a provenance: statistics that differ in one are replaced as the cache is."""


@dataclass(frozen=True, eq=False)
class StatisticsFile:
    """What is in such a file, if anything, and what differs between the run it is of and another.

    ``key`` is the one that the statistics were made under; ``differences`` is None where nothing can be read from it.
    """

    path: Path
    stats: ActivationStats | None = None
    key: str | None = None
    differences: list[Difference] | None = None

    @classmethod
    def read(cls, path: Path, made: Provenance) -> StatisticsFile:
        """File and the run -> what is there; nothing where it cannot be read, which keeps it from being replaced."""
        if not path.exists():
            return cls(path)
        try:
            stats, header = read(path)
        except StatsError as error:
            logger.warning("%s; starting over", error)
            return cls(path)
        key = header.get("key")
        if not isinstance(key, str):
            return cls(path, stats)
        return cls(path, stats, key, statistics_differences(key, made))

    def serving(self, made: Provenance) -> ActivationStats | None:
        """The statistics, where the run's cache follows from them; their growth is then the run's."""
        if self.stats is None or self.differences is None:
            return None
        ignored = ARRANGEMENT if on_fine_grid(made.method, made.growth) else ()
        if any(found.field not in ignored for found in self.differences):
            return None
        return replace(self.stats, growth=made.growth)

    def check_replaceable(self, *, force: bool) -> str | None:
        """Nothing -> why statistics that are there will be replaced; OutputError where nothing may be lost unasked.

        Those of another model or of other samples are replaced as the cache is. With other settings on the same
        samples they are as good as they were, and with no word of their origin they may be anybody's.
        """
        check_output(self.path, STATISTICS)
        if not self.path.exists() or not self.path.stat().st_size:
            return None
        how = "replace it (--force), or choose another file"
        if self.differences is None:
            untold = "nothing in it says what it was made from"
            if self.key is not None:
                untold = "it was left by another version of trtcal"
            if not force:
                raise OutputError(f"{self.path}: exists, and {untold}; {how}")
            return untold
        why = "; ".join(found.text for found in self.differences)
        if not force and not any(found.field in OUT_OF_DATE for found in self.differences):
            raise OutputError(f"{self.path}: holds statistics of the same samples with other settings ({why}); {how}")
        return why


def _is_statistics(path: Path) -> bool:
    try:
        ActivationStats.load(path)
    except StatsError:
        return False
    return True


STATISTICS = Kind("file of statistics", _is_statistics)

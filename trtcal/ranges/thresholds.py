"""Threshold methods: histogram of |x| -> amax, the |x| that maps to 127.

A new method is one function and one row of :data:`METHODS`. The command line, sweeps, the report, the documentation
and the contract tests read that table; nobody asks for a method's name.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from trtcal.errors import SettingError
from trtcal.ranges.histogram import NUM_BINS, Histogram
from trtcal.ranges.kernels import kernels, x_log_x

NUM_LEVELS = 128  # magnitudes that int8 tells apart: 0..127
FIRST_KEPT = 128  # bins that TensorRT's entropy keeps at least
DEFAULT_PERCENTILE = 99.99
TIE = 1e-12  # divergences that differ by less are equal, and the largest threshold wins


class Parameter(NamedTuple):
    """The number that may stand after a method's name and a colon.

    ``keyword``: of the threshold function. ``default``: what it is unless given. ``swept``: what a sweep compares
    unless told otherwise. ``check``: (number, its text) -> ValueError for one that it cannot be, or was surely not
    meant.
    """

    keyword: str
    default: float
    swept: tuple[float, ...]
    check: Callable[[float, str], None]


@dataclass(frozen=True)
class Method:
    """A way to choose thresholds; calling it with a histogram gives the amax.

    ``threshold``: histogram of |x| -> amax, with the parameter by keyword. ``description``: what the threshold is, in
    one line, for help, documentation and the report. ``algorithm``: TensorRT's calibrator that does the same, "" where
    there is none. ``depends_on_batches``: it wants TensorRT's own histogram, which batch size and order change; all
    others take the finer one, which they do not. ``clips``: False where the threshold is the largest |x|, which no
    grouping of samples changes, so that it is the control of a sweep. ``warning``: what people are told where it clips
    much. ``name``: how it is spelt, parameter included; :func:`method` sets it, rows of :data:`METHODS` have none.
    """

    threshold: Callable[..., np.float32]
    description: str
    algorithm: str = ""
    depends_on_batches: bool = False
    clips: bool = True
    parameter: Parameter | None = None
    warning: str = ""
    name: str = ""

    def __call__(self, hist: Histogram) -> np.float32:
        """Histogram of |x| -> amax."""
        return self.threshold(hist)

    @property
    def header(self) -> str:
        """The calibrator that a cache's header names; one that DLA and DeepStream take where TensorRT has none."""
        return self.algorithm or "EntropyCalibration2"


def minmax(hist: Histogram) -> np.float32:
    """Largest |x| seen: nothing is clipped. What TensorRT's MinMax calibrator does."""
    return hist.amax


def percentile(hist: Histogram, q: float = DEFAULT_PERCENTILE) -> np.float32:
    """Upper edge of the bin that holds the q-th percentile of |x|, at most the largest |x|; q in (0, 100].

    ``q`` outside that raises ValueError.
    """
    check_range(q, str(q))
    cumulative = np.cumsum(hist.counts)
    rank = math.ceil(Fraction(str(q)) * int(cumulative[-1]) / 100)  # exactly: 99.9% of 1000 are 999 and no more
    held = int(np.searchsorted(cumulative, rank))
    return np.float32(min((held + 1) * hist.bin_width, float(hist.amax)))


def entropy(hist: Histogram) -> np.float32:
    """Threshold of least Kullback-Leibler divergence, bit for bit as TensorRT's entropy calibrators set it.

    Wants TensorRT's 2048 bins; a finer histogram is merged to them. The amax is the *middle* of the bin
    after the chosen one, ``(m + 0.5) * limit / 2048`` in float32, so data that is not clipped at all gets a
    little more than its largest |x|. ValueError for fewer than the 128 bins that it keeps at least.
    Source: "8-bit inference with TensorRT" (S. Migacz, GTC 2017) for the idea; start, levels, rounding and ties
    as seen in caches of TensorRT 7 to 10, on 185 tensors of three networks among others (docs/parity.md).
    """
    if hist.num_bins < FIRST_KEPT:
        raise ValueError(f"entropy keeps at least {FIRST_KEPT} bins, but the histogram has {hist.num_bins}")
    hist = hist.coarse(min(NUM_BINS, hist.num_bins))
    if math.isinf(hist.limit):
        return np.float32(np.inf)
    m = entropy_bin(hist.counts)
    if m is None:
        return hist.amax
    return np.float32(entropy_amax(m, hist.limit, hist.num_bins))


def entropy_amax(m: int | np.ndarray, limit: float | np.ndarray, num_bins: int) -> np.ndarray:
    """Bins kept of so many over [0, limit) -> amax, float32; inf where the middle of a bin is past the largest one."""
    f32 = np.float32
    with np.errstate(over="ignore"):
        return (np.asarray(m, f32) + f32(0.5)) * np.asarray(limit / num_bins).astype(f32)


def mse(hist: Histogram) -> np.float32:
    """Threshold of least mean squared error after rounding |x| to 127 equal steps and clipping above.

    The error is that of bin centres on at most 2048 bins; candidates are the upper edges from bin 64 on.
    """
    hist = hist.coarse(min(NUM_BINS, hist.num_bins))
    centre = np.arange(hist.num_bins) + 0.5  # in bins, so that limits of any size keep their precision
    candidates, begin = _mse_grid(hist.num_bins)
    cumulative, moment, square = map(_prefix, (hist.counts, hist.counts * centre, hist.counts * centre**2))
    # The error of |x| on level v is x**2 - 2vx + v**2. The first is the same for all candidates; the others grow by
    # 2 step x and (2j - 1) step**2 from level j - 1 to j, for all elements that are on level j or above. With 127 times
    # the step all of it is whole numbers, so that candidates that are equally good, as for a constant, are equal.
    above = cumulative[-1] - cumulative, moment[-1] - moment, square[-1] - square

    def error(rows: slice) -> np.ndarray:
        counted = above[0].take(begin[rows]) @ (2 * np.arange(NUM_LEVELS - 1) + 1.0)
        summed = above[1].take(begin[rows]) @ np.ones(NUM_LEVELS - 1)  # faster than its sum
        return np.asarray(candidates[rows] * (candidates[rows] * counted - 2 * (NUM_LEVELS - 1) * summed))

    # What clipping alone costs falls as candidates rise: below the first that may be as good as some, none is.
    clipping = above[2][candidates] - 2 * candidates * above[1][candidates] + candidates**2 * above[0][candidates]
    bound = above[2][0] * (1 + 1e-9) + error(slice(None, None, 32)).min() / (NUM_LEVELS - 1) ** 2
    first = int(np.argmax(clipping <= bound))
    best = first + int(np.argmin(error(slice(first, None))))
    return np.float32(min(candidates[best] * hist.bin_width, float(hist.amax)))


@functools.cache
def _mse_grid(num_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidate thresholds in bins (M,), the bins at which int8 levels 1 to 127 begin (M, 127)."""
    candidates = np.arange(min(64, num_bins), num_bins + 1)
    step = candidates / (NUM_LEVELS - 1)
    middle = np.arange(1, NUM_LEVELS) - 0.5
    begin = np.clip(np.ceil(middle * step[:, None] - 0.5), 0, num_bins).astype(np.intp)
    return candidates, begin


def check_range(q: float, text: str) -> None:
    """SettingError, which is a ValueError, for what is no percentile."""
    if not 0 < q <= 100:
        raise SettingError(f"percentile needs 0 < q <= 100, got {text}")


def _check_percent(q: float, text: str) -> None:
    check_range(q, text)
    if q <= 1:
        raise ValueError(
            f"percentile:{text} counts in percent and would clip {100 - q:g}% of all values; "
            f"did you mean percentile:{100 * q:.15g}?"
        )


METHODS: dict[str, Method] = {
    "entropy": Method(
        entropy,
        "least Kullback-Leibler divergence, as TensorRT's",
        algorithm="EntropyCalibration2",
        depends_on_batches=True,
        warning="Entropy, TensorRT's own as well, clips values that sit in spikes; minmax and percentile do not.",
    ),
    "minmax": Method(minmax, "largest |x|, as TensorRT's", algorithm="MinMaxCalibration", clips=False),
    "percentile": Method(
        percentile,
        "Q % of all |x| lie below, 99.99 unless given",
        parameter=Parameter("q", DEFAULT_PERCENTILE, (99.9, 99.99, 99.999), _check_percent),
    ),
    "mse": Method(mse, "least mean squared error of rounding and clipping"),
}


def method(spec: str) -> Method:
    """``"entropy"``, ``"percentile"`` or ``"percentile:99.9"`` -> the method, with its parameter and its one spelling.

    SettingError, which is a ValueError, names the choices, or says what is wrong with the parameter.
    """
    name, colon, text = spec.partition(":")
    row = METHODS.get(name)
    if row is None:
        choices = ", ".join(f"{name} or {usage}" if usage != name else name for name, usage in usages().items())
        raise SettingError(f"unknown method {spec!r}; choose one of {choices}")
    if row.parameter is None:
        if colon:
            raise SettingError(f"method {name} takes no parameter, got {spec!r}")
        return replace(row, name=name)
    try:
        number = float(text) if colon else row.parameter.default
    except ValueError:
        raise SettingError(f"{name} needs a number after the colon, got {text!r}") from None
    try:
        row.parameter.check(number, text)
    except ValueError as error:
        raise SettingError(str(error)) from None
    bound = functools.partial(row.threshold, **{row.parameter.keyword: number})
    return replace(row, threshold=bound, name=f"{name}:{number:.15g}")


def usages() -> dict[str, str]:
    """Name of each method -> how it is written where its parameter, a capital letter, is given."""
    return {name: f"{name}:{row.parameter.keyword.upper()}" if row.parameter else name for name, row in METHODS.items()}


def spelt(*, swept: bool = False) -> tuple[str, ...]:
    """Nothing -> the names of all methods, each with its default parameter, or with all that sweeps compare."""
    names: list[str] = []
    for name, row in METHODS.items():
        numbers = row.parameter.swept if swept and row.parameter else ()
        names += [f"{name}:{number:.15g}" for number in numbers] or [method(name).name]
    return tuple(names)


def entropy_bin(counts: np.ndarray) -> int | None:
    """:func:`entropy_bins` for one histogram, (num_bins,)."""
    return entropy_bins(np.asarray(counts)[None])[0]


def entropy_bins(counts: np.ndarray) -> list[int | None]:
    """Counts (histograms, num_bins) -> number m of bins kept, 128 <= m <= num_bins, of least divergence KL(P||Q).

    None for no counts.

    For each m, P is ``counts[:m]`` with everything above added to its last bin. Q spreads each of 128 equal
    levels of ``counts[:m]``, *without* what lies above, evenly over the level's non-empty bins. Bin 0 counts
    as much as bin 1. An m that keeps a single non-empty bin and clips what lies above is no candidate: its divergence
    would be 0 whatever it clips. Of equal divergences the largest m wins.
    """
    h = np.array(counts, np.float64)
    h[:, 0] = h[:, 1]
    divergences, found = kernels().divergences, []
    for row in zip(h, _prefix(h), _prefix(h > 0), _prefix(x_log_x(h)), strict=True):
        empty = row[1][-1] == 0
        found.append(None if empty else FIRST_KEPT + last_minimum(divergences(*row, FIRST_KEPT, NUM_LEVELS)))
    return found


def last_minimum(values: np.ndarray) -> int:
    """Index of the last value that is less than the least one plus 1e-12; of the last value if all are inf."""
    equal = np.flatnonzero(values < values.min() + TIE)
    return int(equal[-1]) if equal.size else values.size - 1


def _prefix(values: np.ndarray) -> np.ndarray:
    """(..., n) -> sums of the first 0, 1, ..., n values, (..., n + 1)."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, axis=-1, dtype=np.float64, out=sums[..., 1:])
    return sums

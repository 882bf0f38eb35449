"""Activation statistics: what one pass over the data leaves, and all that later steps need of it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from trtcal.errors import StatsError
from trtcal.files.atomic import write_bytes
from trtcal.files.brief import brief
from trtcal.files.npy import archive_headers
from trtcal.ranges.growth import GROWTH
from trtcal.ranges.histogram import FINE_BINS, NUM_BINS, Histogram

FORMAT = "trtcal-stats-1"
MAX_BYTES = 8 << 30
"""Of arrays in a file, which a few megabytes may claim: some 30,000 tensors."""


@dataclass(frozen=True, eq=False)
class TensorStats:
    """What one tensor did.

    ``sample_amax``: largest |x| of each sample, (S,) float32; ``sample_peaks``: how many of its elements have
    that magnitude, (S,) int64. ``histogram``: all elements on the fine,
    batch-invariant grid. ``batch_grid``: TensorRT's own histogram for the batch size and order of the pass
    (padding rows included, as TensorRT sees them); None in merged statistics, whose order nobody fixed.
    Where a sample holds -inf, as masks do, or nan, both histograms are empty.
    """

    sample_amax: np.ndarray
    sample_peaks: np.ndarray
    histogram: Histogram
    batch_grid: Histogram | None

    @property
    def amax(self) -> np.float32:
        """Largest |x| of all samples; inf for a mask, nan where a sample holds one."""
        return np.float32(self.sample_amax.max(initial=0))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorStats):
            return NotImplemented
        return (
            np.array_equal(self.sample_amax, other.sample_amax, equal_nan=True)
            and np.array_equal(self.sample_peaks, other.sample_peaks)
            and self.histogram == other.histogram
            and self.batch_grid == other.batch_grid
        )

    __hash__ = None  # type: ignore[assignment]
    __repr__ = brief


@dataclass(frozen=True)
class ActivationStats:
    """What all tensors did, sample by sample.

    ``samples`` names the rows in the order they were run. ``tensors`` is in the graph's order. ``batches``
    counts the batches behind ``batch_grid``, ``growth`` is its rule.
    """

    samples: tuple[str, ...]
    tensors: Mapping[str, TensorStats]
    growth: str = "double"
    batches: int = 0

    __repr__ = brief

    def merged(self, other: ActivationStats) -> ActivationStats:
        """Statistics of both sets of samples, on the batch-invariant grid alone; StatsError for different tensors."""
        if list(self.tensors) != list(other.tensors):
            odd = sorted(set(self.tensors) ^ set(other.tensors))
            raise StatsError(
                f"statistics of different tensors do not add: {odd[0]!r} is in only one of them"
                if odd
                else "statistics whose tensors are in different orders do not add"
            )
        tensors = {
            name: TensorStats(
                np.concatenate([one.sample_amax, other.tensors[name].sample_amax]),
                np.concatenate([one.sample_peaks, other.tensors[name].sample_peaks]),
                _sum(one, other.tensors[name]),
                None,
            )
            for name, one in self.tensors.items()
        }
        return ActivationStats(self.samples + other.samples, tensors, "power-of-two", 0)

    def to_bytes(self, **extra: Any) -> bytes:
        """The statistics as an ``.npz`` archive; equal statistics give equal bytes."""
        tensors = self.tensors.values()
        batch_grid = [tensor.batch_grid for tensor in tensors]
        header = {
            "format": FORMAT,
            "samples": self.samples,
            "tensors": list(self.tensors),
            "growth": self.growth,
            "batches": self.batches,
            "streamed": [histogram is not None for histogram in batch_grid],
            **extra,
        }
        arrays: dict[str, Any] = {
            "header": np.frombuffer(_json(header), np.uint8),
            "sample_amax": np.array([t.sample_amax for t in tensors], np.float32).reshape(-1, len(self.samples)),
            "sample_peaks": np.array([t.sample_peaks for t in tensors], np.int64).reshape(-1, len(self.samples)),
            **_pack("histogram", [tensor.histogram for tensor in tensors], FINE_BINS),
            **_pack("streamed", [histogram for histogram in batch_grid if histogram is not None], NUM_BINS),
        }
        buffer = io.BytesIO()
        # The fastest compression: a fifth of the default one's time for a fifth more bytes.
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "<bytes>") -> ActivationStats:
        """Inverse of :meth:`to_bytes`; StatsError names what is wrong with the archive."""
        return parse(data, name)[0]

    def save(self, path: str | Path) -> None:
        """Write the file, replacing it atomically."""
        write_bytes(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> ActivationStats:
        """File -> statistics; StatsError names the file."""
        return read(path)[0]


def _json(header: dict[str, Any]) -> bytes:
    # A file's name need be no UTF-8; what stands for its bytes then is written as JSON's escapes.
    return json.dumps(header, ensure_ascii=False).encode(errors="backslashreplace")


def merge(parts: Iterable[ActivationStats]) -> ActivationStats:
    """Statistics of disjoint sets of samples -> statistics of all, whatever the split; StatsError if they differ."""
    parts = list(parts)
    if not parts:
        raise ValueError("nothing to merge")
    return reduce(ActivationStats.merged, parts)


def _sum(one: TensorStats, two: TensorStats) -> Histogram:
    if not np.isfinite(one.amax) or not np.isfinite(two.amax):
        return Histogram(np.zeros(one.histogram.num_bins, np.int64), 0.0, np.float32(0))
    return one.histogram + two.histogram


def read(path: str | Path) -> tuple[ActivationStats, dict[str, Any]]:
    """File -> statistics and header, as :func:`parse`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StatsError(f"{path}: cannot be read: {error.strerror}") from error
    return parse(data, str(path))


def parse(data: bytes, name: str = "<bytes>") -> tuple[ActivationStats, dict[str, Any]]:
    """Bytes of a statistics file -> statistics and header; StatsError names what is wrong with it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(header.nbytes for header in archive_headers(archive, "its archive").values())
        if size > MAX_BYTES:
            raise StatsError(
                f"{name}: its arrays take {size / 2**30:.3g} GiB once unpacked, and at most "
                f"{MAX_BYTES / 2**30:.3g} GiB are read; calibrate fewer tensors at once"
            )
        with np.load(io.BytesIO(data), allow_pickle=False) as members:
            arrays = {key: members[key] for key in members.files}
        header = json.loads(arrays.pop("header").tobytes())
        if header["format"] != FORMAT:
            raise StatsError(f"{name}: is in format {header['format']!r}, this trtcal reads {FORMAT!r}")
        return _from_arrays(header, arrays), header
    except StatsError:
        raise
    except Exception as error:  # zipfile, zlib, NumPy and json raise a dozen kinds over damaged bytes
        raise StatsError(f"{name}: is not a complete file of activation statistics: {error}") from error


def _from_arrays(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> ActivationStats:
    samples, names, flags = tuple(header["samples"]), list(header["tensors"]), list(header["streamed"])
    if header["growth"] not in GROWTH or len(flags) != len(names) or len(set(names)) != len(names):
        raise ValueError("its header contradicts itself")
    if not all(isinstance(text, str) for text in (*samples, *names)):
        raise ValueError("its samples and tensors are no names")
    sample_amax, sample_peaks = arrays["sample_amax"], arrays["sample_peaks"]
    for array, dtype in ((sample_amax, np.float32), (sample_peaks, np.int64)):
        if array.shape != (len(names), len(samples)) or array.dtype != dtype:
            raise ValueError(f"{len(names)} tensors and {len(samples)} samples, but maxima {array.shape}")
        if (array < 0).any():
            raise ValueError("its maxima hold impossible values")
    fine = _unpack("histogram", arrays, FINE_BINS, len(names))
    if any(histogram.total for histogram, maxima in zip(fine, sample_amax, strict=True) if np.isnan(maxima).any()):
        raise ValueError("its maxima are nan where elements are counted")
    batch_grid = iter(_unpack("streamed", arrays, NUM_BINS, sum(map(bool, flags))))
    tensors = {
        name: TensorStats(maxima, peaks, histogram, next(batch_grid) if flag else None)
        for name, maxima, peaks, histogram, flag in zip(names, sample_amax, sample_peaks, fine, flags, strict=True)
    }
    return ActivationStats(samples, tensors, header["growth"], int(header["batches"]))


def _pack(name: str, histograms: list[Histogram], num_bins: int) -> dict[str, np.ndarray]:
    counts = [histogram.counts for histogram in histograms]
    return {
        f"{name}_counts": np.stack(counts) if counts else np.zeros((0, num_bins), np.int64),
        f"{name}_limit": np.array([histogram.limit for histogram in histograms], np.float64),
        f"{name}_amax": np.array([histogram.amax for histogram in histograms], np.float32),
    }


def _unpack(name: str, arrays: dict[str, np.ndarray], num_bins: int, number: int) -> list[Histogram]:
    counts, limit, amax = (arrays[f"{name}_{part}"] for part in ("counts", "limit", "amax"))
    if counts.shape != (number, num_bins) or limit.shape != (number,) or amax.shape != (number,):
        raise ValueError(f"{number} histograms of {num_bins} bins expected, found {counts.shape}")
    if (
        counts.dtype != np.int64
        or counts.min(initial=0) < 0
        or (counts.sum(axis=1, dtype=np.float64) >= 2**63).any()
        or not ((limit >= 0).all() and (amax >= 0).all())  # nor nan
    ):
        raise ValueError("its histograms hold impossible values")
    return [Histogram(*row) for row in zip(counts, limit, amax, strict=True)]

"""The calibration cache: one scale per tensor, in the text form that TensorRT reads and writes.

The form is specified in ``docs/cache-format.md``. ``CalibrationCache.parse`` and ``.format`` are pure;
``load`` and ``save`` add the file. Reading is tolerant and reports what it tolerated; writing is exact.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from trtcal.errors import CacheError, CacheFormatError, NoScaleError
from trtcal.files import atomic
from trtcal.files.brief import brief

ALGORITHMS = ("EntropyCalibration2", "MinMaxCalibration", "EntropyCalibration", "LegacyCalibration")
"""The names that TensorRT's four calibrators write into the header."""

_EXAMPLE = "'TRT-8601-EntropyCalibration2'"
_HEADER = re.compile(r"TRT-([^-\r\n]+)-([^\r\n]+)")
_BARE_HEADER = re.compile(r"[0-9]+")
_HEX = re.compile(r"(0[xX])?0*([0-9a-fA-F]{1,8})")
_CANONICAL_HEX = re.compile(r"0|[1-9a-f][0-9a-f]{0,7}")


@dataclass(frozen=True, eq=False)
class CalibrationCache(Mapping[str, np.float32]):
    """Scales per tensor and the header they stand under; two are equal if they write the same bytes.

    It maps tensors to their scales: ``len(cache)``, ``cache["tensor"]``, ``for name in cache``. Any scale that float32
    can hold may be present, 0, inf and nan too: TensorRT writes them.
    Raises CacheError where the header or a name cannot be written to a cache and read back.
    """

    version: str
    """The header's number, "8601" for TensorRT 8.6.1 (see ``version_number``), or odd text as "8XXX"."""
    algorithm: str
    """One of ``ALGORITHMS``, or what an odd header says; "" if the header is a bare number."""
    scales: Mapping[str, np.float32]
    """Tensor name -> amax / 127, read-only, in file order."""
    tolerated: tuple[str, ...] = field(default=(), repr=False)
    """What ``parse`` let pass although TensorRT would not write it so; a sentence each."""

    def __post_init__(self) -> None:
        _check_unicode("header", self.header)
        if _split_header(self.header) != (self.version, self.algorithm):
            raise CacheError(f"expected a header such as {_EXAMPLE}, got {_shown(self.header)}")
        for name in self.scales:
            _check_name(name)
        # Through an array of float32, not through Python's float, which would change a nan's payload.
        scales = {name: np.asarray(scale, np.float32)[()] for name, scale in self.scales.items()}
        object.__setattr__(self, "scales", MappingProxyType(scales))

    @classmethod
    def from_amax(
        cls,
        amax: Mapping[str, np.float32],
        *,
        trt_version: str = "8.6.1",
        algorithm: str = "EntropyCalibration2",
    ) -> CalibrationCache:
        """Largest |x| to represent, per tensor -> cache for that TensorRT and calibrator, in the order given.

        Raises ValueError where an amax is negative, inf or nan, where the version is not one (see
        ``version_number``) or the algorithm is not one of ``ALGORITHMS``.
        """
        number = header_number(trt_version)
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
        scales = {}
        for name, value in amax.items():
            with np.errstate(over="ignore"):  # what overflows float32 is refused as inf below
                value32 = np.float32(value)
            if not 0 <= value32 < np.inf:
                raise ValueError(f"amax of tensor {name!r} must be finite and not negative, got {value}")
            scales[name] = np.abs(value32) / np.float32(127)  # abs: no sign on a zero
        return cls(number, algorithm, scales)

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview, *, name: str = "<bytes>") -> CalibrationCache:
        """Text of a cache -> its scales; ``name`` stands for the file in messages.

        Byte order mark, CR LF, a missing last line end, blank lines, spaces around a value, upper case,
        "0x", leading zeros, odd headers and repeated names (the last value counts) are accepted and
        noted in ``tolerated``. Anything else raises CacheFormatError with the number of the line.
        """
        return _parse(bytes(data), name)

    def format(self) -> bytes:
        """Cache -> text as TensorRT writes it, from which ``parse`` makes an equal cache."""
        bits = np.array(list(self.scales.values()), np.float32).view(np.uint32).tolist()
        entries = (f"{name}: {value:x}\n" for name, value in zip(self.scales, bits, strict=True))
        return f"{self.header}\n{''.join(entries)}".encode()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationCache:
        """File -> cache; raises CacheError where it cannot be read, CacheFormatError where it is not one."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise CacheError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error
        return cls.parse(data, name=os.fspath(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Cache -> file, replaced in one step; raises OutputError where it cannot be written."""
        atomic.write_bytes(path, self.format())

    @property
    def header(self) -> str:
        """First line of the file, for example "TRT-8601-EntropyCalibration2"."""
        return f"TRT-{self.version}-{self.algorithm}" if self.algorithm else self.version

    def amax(self, name: str) -> np.float32:
        """Tensor name -> the |x| that maps to 127, rounded to float32; NoScaleError where it has no scale."""
        # Inf from a scale near float32's largest value and nan from a nan are the answer, not a mishap.
        with np.errstate(over="ignore", invalid="ignore"):
            return self[name] * np.float32(127)

    def __getitem__(self, name: str) -> np.float32:
        if name not in self.scales:
            close = difflib.get_close_matches(str(name), self.scales, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise NoScaleError(f"the cache has no scale for tensor {name!r} among its {len(self.scales)}{hint}")
        return self.scales[name]

    def __contains__(self, name: object) -> bool:
        return name in self.scales

    def __iter__(self) -> Iterator[str]:
        return iter(self.scales)

    def __len__(self) -> int:
        return len(self.scales)

    __repr__ = brief

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CalibrationCache) and self.format() == other.format()

    def __hash__(self) -> int:
        return hash(self.format())

    def __reduce__(self) -> tuple[object, ...]:
        # A read-only mapping does not pickle, and worker processes hand caches around.
        return type(self), (self.version, self.algorithm, dict(self.scales), self.tolerated)


def header_number(trt_version: str) -> str:
    """:func:`version_number` of a TensorRT that reads caches; ValueError for 11 and later, which do not."""
    number = version_number(trt_version)
    if int(number) >= 110000:
        raise ValueError(
            f"TensorRT {trt_version} has no calibrators and reads no calibration cache; put the ranges into a "
            f"Q/DQ model (trtcal qdq)"
        )
    return number


def version_number(version: str) -> str:
    """TensorRT version -> the header's number: "8.6.1" -> "8601", "10.3.0" or "10.3" -> "100300".

    A fourth part, NVIDIA's build number, is not in the header and is left out. Raises ValueError
    where the text is not such a version or a part does not fit into its digits.
    """
    match = re.fullmatch(r"([0-9]+)\.([0-9]+)(?:\.([0-9]+))?(?:\.[0-9]+)?", version)
    if match is None:
        raise ValueError(f"expected a TensorRT version such as 8.6.1 or 10.3.0, got {version!r}")
    major, minor, patch = (int(part or 0) for part in match.groups())
    # TensorRT 10 gave the minor version two digits: NV_TENSORRT_VERSION in NVIDIA's headers.
    minors, factor = (10, 1000) if major < 10 else (100, 10000)
    if major < 1 or minor >= minors or patch >= 100:
        raise ValueError(f"no calibration cache header can hold TensorRT version {version!r}")
    return str(major * factor + minor * 100 + patch)


def dotted_version(number: str) -> str:
    """Header's number -> TensorRT version: "8601" -> "8.6.1"; ValueError where it stands for none."""
    if re.fullmatch(r"[1-9][0-9]{3}", number) is None and re.fullmatch(r"[1-9][0-9]{5,}", number) is None:
        raise ValueError(f"expected the number of a TensorRT version such as 8601 or 100300, got {number!r}")
    major, rest = divmod(int(number), 1000 if len(number) == 4 else 10000)
    return f"{major}.{rest // 100}.{rest % 100}"


def text_lines(data: bytes, name: str, notes: Notes) -> Iterator[tuple[int, str]]:
    """Text -> (number, line) of every line that is not blank; CacheFormatError for one that is not UTF-8.

    ``notes`` hears of a byte order mark, CR LF, blank lines and a missing last line end.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        notes.add("byte order mark", 1)
        data = data[3:]
    # Only LF ends a line: str.splitlines() would also cut at characters that a tensor's name may hold.
    lines = data.split(b"\n")
    if lines[-1]:
        notes.add("no line end after the last line", len(lines))
    else:
        lines.pop()
    for number, raw in enumerate(lines, 1):
        if raw.endswith(b"\r"):
            notes.add("line ends with CR LF", number)
            raw = raw[:-1]
        if not raw.strip():
            notes.add("blank line", number)
            continue
        try:
            yield number, raw.decode()
        except UnicodeDecodeError as error:
            raise CacheFormatError(
                f"{name}:{number}: expected the text of a calibration cache, got bytes that are not UTF-8"
            ) from error


def _parse(data: bytes, name: str) -> CalibrationCache:
    notes = Notes()
    header: tuple[str, str] | None = None
    bits: dict[str, int] = {}
    for number, line in text_lines(data, name, notes):
        where = f"{name}:{number}"
        if header is None:
            header = _parse_header(line, where, number, notes)
        else:
            tensor, value = _parse_entry(line, where, number, notes)
            if tensor in bits:
                notes.repeated(tensor, number)
            bits[tensor] = value
    if header is None:
        raise CacheFormatError(f"{name}: expected a calibration cache, got an empty file")
    values = np.array(list(bits.values()), np.uint32).view(np.float32)
    return CalibrationCache(*header, dict(zip(bits, values, strict=True)), notes.sentences())


def _parse_header(line: str, where: str, number: int, notes: Notes) -> tuple[str, str]:
    text = line.strip()
    if text != line:
        notes.add("spaces around the header", number)
    parts = _split_header(text)
    if parts is None:
        raise CacheFormatError(f"{where}: expected a header such as {_EXAMPLE}, got {_shown(line)}")
    version, algorithm = parts
    if not algorithm:
        notes.add(f"header {text!r} without a calibrator, as TensorRT 3 and 4 wrote it", number)
        return parts
    if not _BARE_HEADER.fullmatch(version):
        notes.add(f"version {version!r} in the header is not a number", number)
    if algorithm not in ALGORITHMS:
        notes.add(f"calibrator {algorithm!r} in the header is not one of TensorRT's", number)
    return parts


def _split_header(text: str) -> tuple[str, str] | None:
    """Header -> (version, algorithm), or None where it is neither a usual nor a bare one."""
    if _BARE_HEADER.fullmatch(text):
        return text, ""
    match = _HEADER.fullmatch(text)
    return (match[1], match[2]) if match and text == text.strip() else None


def _parse_entry(line: str, where: str, number: int, notes: Notes) -> tuple[str, int]:
    # At the last colon, because names hold colons ("scope::conv: 0").
    tensor, colon, value = line.rpartition(":")
    digits = value.strip()
    match = _HEX.fullmatch(digits)
    if not (colon and tensor and match) or "\r" in tensor:
        raise CacheFormatError(f"{where}: expected '<tensor>: <hex>', got {_shown(line)}")
    if value != f" {digits}":
        notes.add("not exactly one space before the value and none after it", number)
    if not _CANONICAL_HEX.fullmatch(digits):
        notes.add("value in upper case, with 0x or with leading zeros", number)
    return tensor, int(match[2], 16)


def _check_name(name: str) -> None:
    _check_unicode("tensor name", name)
    if not name:
        raise CacheError("a tensor without a name cannot be written to a calibration cache")
    if "\n" in name or "\r" in name:
        raise CacheError(f"tensor name {_shown(name)} holds a line end, which a calibration cache cannot")


def _check_unicode(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CacheError(f"{what} {_shown(text)} cannot be written as UTF-8") from error


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:60]}...{text[-57:]}")


class Notes:
    """Collects what was tolerated: one sentence per kind, however many lines are concerned."""

    def __init__(self) -> None:
        self._lines: dict[str, list[int]] = {}

    def add(self, kind: str, line: int) -> None:
        """One more line of that kind."""
        self._lines.setdefault(kind, []).append(line)

    def repeated(self, tensor: str, line: int) -> None:
        """A tensor that came before."""
        self.add(f"tensor {_shown(tensor)} again, its last value counts", line)

    def sentences(self) -> tuple[str, ...]:
        """The notes, in the order in which their kinds first came."""
        return tuple(
            f"{kind} (line {first}{f' and {len(others)} more' if others else ''})"
            for kind, (first, *others) in self._lines.items()
        )

"""What a calibration cache was made from, kept beside it as ``<cache>.json``.

A cache says nothing of its origin, so a stale one is easily taken for a fresh one. The sidecar names
everything that decided its content. It also holds the cache's own hash: a cache that was edited or
replaced, or a run that died between the two files, leaves a pair that does not match, never a sidecar
that vouches for the wrong cache.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from trtcal import __version__
from trtcal.errors import CacheError, CacheFormatError, ModelError
from trtcal.files import atomic

FORMAT = 1
"""Number of the sidecar's layout; rises when an older trtcal would misread a newer file."""

DECISIVE_VERSIONS = ("trtcal", "onnxruntime", "onnxruntime-gpu")
"""Packages whose version may change a scale's bits; the others are recorded for the reader only."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything that decides the content of a calibration cache.

    Mappings and sequences become what JSON makes of them (a tuple a list), so that a provenance equals
    itself after a round trip. Raises TypeError or ValueError where a value has no JSON form (inf, nan).
    """

    model: str
    """File name of the model, for the reader."""
    model_sha256: str
    """See the function ``model_sha256``."""
    data: str
    """Where the samples came from, for the reader."""
    data_key: str
    """Identifies the samples and their content; equal keys mean equal data."""
    samples_used: int
    samples_available: int
    """For the reader: a folder may grow without touching the samples that were used."""
    preprocess: Mapping[str, Any]
    method: str
    growth: str
    batch_size: int
    order: str
    seed: int | None
    """None where the order draws no random numbers."""
    partial: str
    shapes: Mapping[str, Any]
    """Input name -> shape the model was run with."""
    header: str
    """The cache's first line: TensorRT version and calibrator."""
    versions: Mapping[str, str]
    """Package -> version, see ``installed_versions``."""

    def __post_init__(self) -> None:
        for name in ("preprocess", "shapes", "versions"):
            value = json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False))
            object.__setattr__(self, name, value)

    def to_json(self) -> bytes:
        """Provenance -> UTF-8 JSON; equal values give equal bytes."""
        return _dump(asdict(self))

    def differences(self, other: Provenance) -> list[str]:
        """What stands in the way of taking a cache made from ``self`` for one made from ``other``.

        A sentence each, old value first; an empty list where nothing that decides the cache differs.
        """
        found = []
        if self.model_sha256 != other.model_sha256:
            found.append(f"model: content differs ({_change(self.model, other.model)})")
        if self.data_key != other.data_key:
            found.append(f"data: samples differ ({_change(self.data, other.data)})")
        for label, old, new in (
            ("samples used", self.samples_used, other.samples_used),
            ("method", self.method, other.method),
            ("growth", self.growth, other.growth),
            ("batch size", self.batch_size, other.batch_size),
            ("order", self.order, other.order),
            ("seed", self.seed, other.seed),
            ("partial batch", self.partial, other.partial),
            ("header", self.header, other.header),
        ):
            if old != new:
                found.append(f"{label}: {_change(old, new)}")
        found += _mapping_differences("preprocess", self.preprocess, other.preprocess)
        found += _mapping_differences("shape of", self.shapes, other.shapes)
        found += _mapping_differences(
            "version of",
            {name: self.versions.get(name) for name in DECISIVE_VERSIONS},
            {name: other.versions.get(name) for name in DECISIVE_VERSIONS},
        )
        return found


@dataclass(frozen=True)
class Reuse:
    """Whether a cache on disk can stand for a new run, and if not, why not."""

    reasons: tuple[str, ...] = ()
    """What is missing, unknown or different; empty where the cache can be reused."""

    @property
    def ok(self) -> bool:
        """True where a new run would write the same cache."""
        return not self.reasons


def installed_versions() -> dict[str, str]:
    """Versions of trtcal and of the packages that its results pass through; absent ones are left out."""
    versions = {"trtcal": __version__}
    for name in ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu"):
        try:
            versions[name] = package_version(name)
        except PackageNotFoundError:  # onnxruntime comes under one of its two names
            continue
    return versions


def model_sha256(files: Iterable[str | os.PathLike[str]]) -> str:
    """The ONNX file, then its external data files -> one SHA-256, the file's own if it is alone.

    Files are streamed, so size does not matter. Raises ModelError, naming the file that cannot be read.
    """
    digests = []
    for file in files:
        try:
            digests.append(_sha256(file))
        except OSError as error:
            raise ModelError(f"{os.fspath(file)}: cannot be read: {error.strerror or error}") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def sidecar_path(cache_path: str | os.PathLike[str]) -> Path:
    """``model.cache`` -> ``model.cache.json``."""
    path = Path(cache_path)
    return path.with_name(f"{path.name}.json")


def save_with_sidecar(
    cache: bytes,
    provenance: Provenance,
    path: str | os.PathLike[str],
    findings: Mapping[str, Any] | None = None,
) -> None:
    """Content of a cache and its origin -> ``path`` and its sidecar; OutputError where one cannot be written.

    The sidecar comes first: it holds the new cache's hash, so whatever happens between the two it vouches for no
    other file, and no cache of ours ever lies there without one. Where there is no room for both, neither is
    touched. ``findings`` are kept with it, for the reader.
    """
    sidecar = _dump(
        {
            "format": FORMAT,
            "cache_sha256": hashlib.sha256(cache).hexdigest(),
            "provenance": asdict(provenance),
            "findings": dict(findings or {}),
        }
    )
    with atomic.staged(sidecar_path(path), [sidecar]) as put_sidecar, atomic.staged(path, [cache]) as put_cache:
        put_sidecar()
        put_cache()


def read_sidecar(path: str | os.PathLike[str]) -> tuple[Provenance, dict[str, Any]] | None:
    """Cache -> its origin and what was found while it was made; None where no sidecar vouches for this very file."""
    try:
        content = sidecar_path(path).read_bytes()
        cache_sha256, made_from = _parse_sidecar(content, str(sidecar_path(path)))
        if _sha256(path) != cache_sha256:
            return None
    except (OSError, CacheFormatError):
        return None
    findings = json.loads(content).get("findings")
    return made_from, findings if _are_findings(findings) else {}


def _are_findings(value: object) -> bool:
    """Are those that trtcal looks at of the types that it writes?"""
    if not isinstance(value, dict):
        return False
    unusable, clipped, hidden = value.get("unusable", {}), value.get("clipped", {}), value.get("hidden", 0)
    return (
        isinstance(unusable, dict)
        and isinstance(hidden, int)
        and isinstance(clipped, dict)
        and all(isinstance(share, float) and math.isfinite(share) for share in clipped.values())
    )


def check(path: str | os.PathLike[str], provenance: Provenance) -> Reuse:
    """Cache on disk and the run that is wanted -> whether the cache is already what the run would make.

    Only a cache or a sidecar that exists and cannot be read raises (CacheError); a sidecar that is
    missing, damaged or of a newer format makes the cache's origin unknown, which is a reason like others.
    """
    sidecar = sidecar_path(path)
    try:
        if not Path(path).exists():
            return Reuse((f"no cache at {os.fspath(path)}",))
        if not sidecar.exists():
            return Reuse((f"origin unknown: {sidecar} is missing",))
        found_sha256 = _sha256(path)
    except OSError as error:
        raise CacheError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error
    try:
        content = sidecar.read_bytes()
    except OSError as error:
        raise CacheError(f"{sidecar}: cannot be read: {error.strerror or error}") from error
    try:
        cache_sha256, made_from = _parse_sidecar(content, str(sidecar))
    except CacheFormatError as error:
        return Reuse((f"origin unknown: {error}",))
    if found_sha256 != cache_sha256:
        return Reuse((f"origin unknown: {os.fspath(path)} is not the file that {sidecar.name} is about",))
    return Reuse(tuple(made_from.differences(provenance)))


def _sha256(path: str | os.PathLike[str]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _dump(value: dict[str, Any]) -> bytes:
    return f"{json.dumps(value, indent=2, sort_keys=True, allow_nan=False)}\n".encode()


def _load(data: bytes, name: str) -> Any:
    try:
        value = json.loads(data, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise CacheFormatError(f"{name}: expected JSON, got {error}") from error
    if not _is_shallow(value, 20):  # or it could be read and not be shown, compared and written
        raise CacheFormatError(f"{name}: holds values in more than 20 levels; expected what trtcal writes")
    return value


def _is_shallow(value: object, levels: int) -> bool:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not below or (levels > 0 and all(_is_shallow(item, levels - 1) for item in below))


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant}, which is not JSON")


def _parse_sidecar(data: bytes, name: str) -> tuple[str, Provenance]:
    """Content of a sidecar -> (hash of the cache it was written for, origin of that cache)."""
    value = _load(data, name)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise CacheFormatError(f"{name}: expected a sidecar of format {FORMAT}, got {found!r}")
    cache_sha256 = value.get("cache_sha256")
    if not isinstance(cache_sha256, str):
        raise CacheFormatError(f"{name}: expected text under 'cache_sha256', got {cache_sha256!r}")
    return cache_sha256, _provenance(value.get("provenance"), name)


def _provenance(value: object, name: str) -> Provenance:
    if not isinstance(value, dict):
        raise CacheFormatError(f"{name}: expected an object that describes a cache, got {value!r:.60}")
    expected = {field.name: _JSON_TYPES[str(field.type)] for field in fields(Provenance)}
    for key in sorted({*expected, *value}):
        if key not in value:
            raise CacheFormatError(f"{name}: {key!r} is missing")
        if key not in expected:
            raise CacheFormatError(f"{name}: {key!r} is not known to trtcal {__version__}")
        if not isinstance(value[key], expected[key]):
            raise CacheFormatError(f"{name}: {key!r} has a value of the wrong type, {value[key]!r:.60}")
    try:
        return Provenance(**value)
    except ValueError as error:  # 1e999 is JSON, and is read as inf
        raise CacheFormatError(f"{name}: holds a value that cannot be written again: {error}") from error


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "int | None": (int, type(None)),
    "Mapping[str, Any]": (dict,),
    "Mapping[str, str]": (dict,),
}


def _mapping_differences(label: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{label} {key}: {_change(old.get(key), new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _change(old: object, new: object) -> str:
    """Both values if they differ, the one if it only stands beside a difference elsewhere."""
    before, after = ("none" if value is None else str(value) for value in (old, new))
    return before if before == after else f"{before} -> {after}"

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, NamedTuple

from trtcal import __version__
from trtcal.errors import CacheError, CacheFormatError
from trtcal.files import atomic
from trtcal.model.open import LIBRARIES
from trtcal.model.read import sha256_of
from trtcal.samples.batches import Batches, declared_length

FORMAT = 1
"""Number of the sidecar's layout; rises when an older trtcal would misread a newer file."""

DECISIVE_VERSIONS = ("trtcal", "onnxruntime", "onnxruntime-gpu", LIBRARIES)
"""Packages whose version may change a scale's bits; the others are recorded for the reader only."""

FOR_THE_READER = ("model", "data", "samples_available")
"""Fields that decide nothing."""

AFTER_THE_PASS = ("method", "header")
"""Fields that are chosen when the statistics of the pass are there; all others decide these."""

ARRANGEMENT = ("growth", "batch_size", "order", "seed", "partial")
"""Fields on which TensorRT's own histogram depends; the maxima of samples and the fine histogram do not."""

_LABELS = {
    "samples_used": "samples used",
    "method": "method",
    "growth": "growth",
    "batch_size": "batch size",
    "order": "order",
    "seed": "seed",
    "partial": "partial batch",
    "header": "header",
}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything that decides the content of a calibration cache.

    Mappings and sequences become what JSON makes of them (a tuple a list), so that a provenance equals
    itself after a round trip. Raises TypeError or ValueError where a value has no JSON form (inf, nan).
    """

    model: str
    """File name of the model, for the reader."""
    model_sha256: str
    """See :attr:`trtcal.model.open.Model.sha256`."""
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
    """Package -> version, see ``installed_versions``; SHA-256 of libraries of custom operators, where there are any."""

    def __post_init__(self) -> None:
        for name in ("preprocess", "shapes", "versions"):
            value = json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False))
            object.__setattr__(self, name, value)

    def to_json(self) -> bytes:
        """Provenance -> UTF-8 JSON; equal values give equal bytes."""
        return _dump(asdict(self))

    def decisive(self) -> dict[str, Any]:
        """What decides the cache, by field."""
        found = {name: value for name, value in asdict(self).items() if name not in FOR_THE_READER}
        found["versions"] = {name: self.versions[name] for name in DECISIVE_VERSIONS if name in self.versions}
        return found

    def statistics_key(self) -> str:
        """What decides the statistics of the pass, as JSON; with an equal key they serve any method, and a sweep."""
        made = {name: value for name, value in self.decisive().items() if name not in AFTER_THE_PASS}
        return json.dumps(made, sort_keys=True, allow_nan=False)

    def differences(self, other: Provenance) -> list[str]:
        """What stands in the way of taking a cache made from ``self`` for one made from ``other``.

        A sentence each, old value first; an empty list where nothing that decides the cache differs.
        """
        names = {"model_sha256": (self.model, other.model), "data_key": (self.data, other.data)}
        return [found.text for found in _differences(self.decisive(), other.decisive(), names)]


class Difference(NamedTuple):
    """A field of a `Provenance` that is not the same, and a sentence about it."""

    field: str
    text: str


def statistics_differences(key: str, wanted: Provenance) -> list[Difference] | None:
    """The key that statistics were made under, and a run -> what of it differs from the run; None for no such key.

    Earlier versions of trtcal had keys that nothing can be read from.
    """
    try:
        made, now = _load(key, "the key"), json.loads(wanted.statistics_key())
    except CacheFormatError:
        return None
    if not isinstance(made, dict) or made.keys() != now.keys():
        return None
    if any(isinstance(value, dict) is not isinstance(made[name], dict) for name, value in now.items()):
        return None
    names = {"model_sha256": (wanted.model, wanted.model), "data_key": (wanted.data, wanted.data)}
    return list(_differences(made, now, names))


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], names: Mapping[str, tuple[str, str]]
) -> Iterator[Difference]:
    """Decisive fields of two runs, and what models and data are called in both -> what differs."""
    if old["model_sha256"] != new["model_sha256"]:
        yield Difference("model_sha256", f"model: content differs ({_change(*names['model_sha256'])})")
    if old["data_key"] != new["data_key"]:
        yield Difference("data_key", f"data: samples differ ({_change(*names['data_key'])})")
    for field, label in _LABELS.items():
        if old.get(field) != new.get(field):
            yield Difference(field, f"{label}: {_change(old.get(field), new.get(field))}")
    for field, label in (("preprocess", "preprocess"), ("shapes", "shape of"), ("versions", "version of")):
        for text in _mapping_differences(label, old[field], new[field]):
            yield Difference(field, text)


def origin(
    batches: Iterable[Any],
    *,
    files: Sequence[str | os.PathLike[str]],
    method: str,
    growth: str,
    header: str,
    shapes: Mapping[str, Any] | None = None,
    data_key: str | None = None,
    batch_size: int | None = None,
) -> Provenance:
    """The run that is about to begin -> its provenance.

    ``files``: the model's, then those of its weights; none where nobody said which. `Batches` say all of themselves;
    of any others, ``data_key`` is what changes with the samples, and ``batch_size`` how many are in a batch. What is
    not known is empty or 0. Raises ModelError where the model cannot be read.
    """
    samples = (declared_length(batches) or 0) * (batch_size or 0)
    known: dict[str, Any] = {
        "data": type(batches).__name__,
        "samples_used": samples,
        "samples_available": samples,
        "preprocess": {},
        "order": "as in the data key",
        "seed": None,
        "partial": "as in the data key",
    }
    if isinstance(batches, Batches):
        accounting = batches.accounting()
        preprocess = getattr(batches.source, "preprocess", None)
        known = {
            "data": batches.source.describe(),
            "samples_used": accounting.used,
            "samples_available": accounting.available,
            # A folder of pictures hashes its files, so what is done to them has to be said as well.
            "preprocess": {} if preprocess is None else preprocess.to_dict(),
            "order": batches.order,
            "seed": batches.seed,
            "partial": batches.partial,
        }
        data_key = batches.key() if data_key is None else data_key
        batch_size = batches.batch_size if batch_size is None else batch_size
    return Provenance(
        model=Path(files[0]).name if files else "",
        model_sha256=sha256_of(files) if files else "",
        data_key=data_key or "",
        method=method,
        growth=growth,
        batch_size=batch_size or 0,
        shapes=shapes or {},
        header=header,
        versions=installed_versions(),
        **known,
    )


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
    why, methods = value.get("unusable_thresholds", {}), value.get("usable_methods", [])
    return (
        isinstance(unusable, dict)
        and isinstance(hidden, int)
        and isinstance(clipped, dict)
        and all(isinstance(share, float) for share in clipped.values())
        and isinstance(why, dict)
        and isinstance(methods, list)
        and all(isinstance(text, str) for text in (*why.values(), *methods))
        and _is_closing(value.get("closing", {}))
        and isinstance(value.get("chosen", {}), dict)
        and _is_finite(value)
    )


def _is_finite(value: object) -> bool:
    """Is every number in it one that JSON has? 1e999 is read as inf."""
    if isinstance(value, (dict, list)):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _is_closing(value: object) -> bool:
    if not isinstance(value, dict) or not value:
        return value == {}
    if "left_out" in value:
        return isinstance(value["left_out"], str)
    samples, sqnr_db, agreement = (value.get(name) for name in ("samples", "sqnr_db", "agreement"))
    return (
        isinstance(samples, int)
        and 0 < samples < 1 << 32
        and (isinstance(sqnr_db, float) or sqnr_db in ("inf", "-inf"))
        and (agreement is None or (isinstance(agreement, float) and 0 <= agreement <= 1))
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


def _load(data: bytes | str, name: str) -> Any:
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

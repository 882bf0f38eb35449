"""Calibrate into a file: reuse what is already there, resume what was interrupted, replace in one step."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.doctor import another_model, of_another_version
from trtcal.cache.formats import CACHE, load
from trtcal.cache.provenance import (
    FORMAT,
    Provenance,
    Reuse,
    check,
    origin,
    read_sidecar,
    save_with_sidecar,
    sidecar_path,
)
from trtcal.calibration.calibrate import TRT_VERSION, from_stats, on_fine_grid, unusable_in_words
from trtcal.calibration.statistics import StatisticsFile
from trtcal.errors import CacheError, OutputError
from trtcal.files.atomic import write_bytes
from trtcal.files.brief import brief
from trtcal.model.open import FloatRunner, Model, Source, open_model
from trtcal.model.overwriting import check_distinct, check_output, json_of, only_writer
from trtcal.passes.collect import load_checkpoint, save_checkpoint
from trtcal.passes.collector import Progress
from trtcal.passes.executor import Executor, Here
from trtcal.passes.sharing import resolved
from trtcal.ranges.growth import growth_rule
from trtcal.ranges.measuring import MEASURED
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import method as threshold_method
from trtcal.samples.batches import Batches
from trtcal.spec import built_in_batch_size

logger = logging.getLogger(__name__)

UNCHOSEN = MEASURED  # stands for a method that is not chosen yet: its statistics serve every other


class Closing(Protocol):
    """What looks at a cache when it is written; ``always`` where one that is up to date shall be looked at as well."""

    @property
    def always(self) -> bool:
        """Also where it costs more than the calibration?"""

    def __call__(self, cache: CalibrationCache, seconds_per_sample: float | None, /) -> Mapping[str, Any]:
        """A cache, and what a sample of the pass took (None: there was none) -> plain data."""


class Choosing(Protocol):
    """What chooses the method when the pass is made; ``key`` says what it judges by."""

    @property
    def key(self) -> str:
        """Equal for what chooses alike from the same statistics."""

    def __call__(self, model: Model, stats: ActivationStats, growth: str, /) -> Choice:
        """Model, statistics of the pass, and its growth rule -> the method, and why."""


class Choice(NamedTuple):
    """A method, and plain data for the sidecar: why it is that one, and how near INT8 by its cache is to FP32."""

    method: str
    why: Mapping[str, Any]
    closing: Mapping[str, Any]


@dataclass(frozen=True)
class CacheFile:
    """What came of :func:`calibrate_to_file`.

    ``reused`` says that the cache on disk already was what the run would have made; otherwise ``reasons`` say
    why it was not. ``unusable``, ``clipped``, ``hidden``, ``unusable_thresholds`` and ``usable_methods`` are those of
    `Calibration`. ``closing`` is what was found of the finished cache, {} where nothing was asked; ``chosen`` why its
    method is what it is, where a `Choosing` chose it. ``stats`` are those of the pass, where they were asked for.
    """

    path: Path
    cache: CalibrationCache
    provenance: Provenance
    reused: bool
    reasons: tuple[str, ...]
    unusable: Mapping[str, str]
    clipped: Mapping[str, float]
    hidden: int
    unusable_thresholds: Mapping[str, str] = field(default_factory=dict)
    usable_methods: tuple[str, ...] = ()
    closing: Mapping[str, Any] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    stats: ActivationStats | None = None

    __repr__ = brief


def calibrate_to_file(
    model: Source,
    batches: Batches,
    path: str | Path,
    method: str | Choosing = "entropy",
    *,
    growth: str = "double",
    trt_version: str = TRT_VERSION,
    algorithm: str | None = None,
    force: bool = False,
    strict: bool = False,
    stats: str | Path | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda line: None,
    closing: Closing | None = None,
    with_stats: bool = False,
) -> CacheFile:
    """Model and batches -> cache at ``path`` with the sidecar that says what it was made from.

    A cache whose sidecar names the same model, samples, preprocessing, method, batch size and order is
    kept, unless ``force``. A file that is no cache is never replaced, and a cache without a sidecar, which
    somebody else made, only with ``force``. An interruption leaves ``<path>.partial.npz``, from which the next
    run goes on; it never leaves a cache. ``stats`` names a file that keeps the statistics, from which a later
    run by another method starts without running the model, and by a method that does not depend on batches also for
    another batch size, order or growth. Such a file of another model or other samples is replaced; one of other
    settings, or that does not say what it is of, only with ``force``. The pass runs on the ``executor`` (default:
    here, one sample per core at once). ``announce`` hears before the run why it is needed, and what it will replace.
    Unusable thresholds (:mod:`trtcal.ranges.clipping`) are a warning; where it is ``strict`` they are a CacheError
    instead, no cache is written, and a run by another method goes on from what was gathered. ``closing`` looks at the
    cache when it is written; what it says changes nothing in it. A ``method`` that is a `Choosing` is chosen from the
    statistics, and then the sidecar names the one chosen. Asked to give them back ``with_stats``, a cache that is up to
    date is made again.

    Raises OutputError where the path cannot be written or another run is writing it, and what
    :func:`trtcal.calibration.calibrate.calibrate` raises.
    """
    choosing = None if isinstance(method, str) else method
    growth_rule(growth)
    path = Path(path)
    before = None if choosing is None else read_sidecar(path)
    wanted = method if isinstance(method, str) else UNCHOSEN
    if before is not None and before[1].get("chosen"):
        wanted = before[0].method
    name, header = _header(wanted, trt_version, algorithm)
    model = open_model(model)
    inside = sum(name in model.originals.tensors for name in model.calibrated.order)
    if inside:
        logger.warning(
            "%s: %d tensors are inside functions of the model; TensorRT may call them otherwise, and then it finds no "
            "ranges for them (docs/models.md)",
            model.name,
            inside,
        )
    built_in = built_in_batch_size(model.inputs)
    gathering = name if choosing is None else UNCHOSEN
    if built_in not in (None, batches.batch_size) and not on_fine_grid(gathering, growth):
        logger.warning(
            "%s: has batch size %d built in, with which TensorRT calibrates, and %s in batches of %d is another "
            "calibration; give batches of %d, or a model whose batch axis is dynamic",
            model.name, built_in, gathering, batches.batch_size, built_in,
        )  # fmt: skip
    made_from = _origin(model, batches, name, growth, header)
    key = made_from.statistics_key()
    there = None if stats is None else StatisticsFile.read(Path(stats), made_from)
    gathered = None if there is None else there.serving(replace(made_from, method=gathering))
    stats_there = there is None or gathered is not None
    reuse = check(path, made_from)
    if choosing is not None and (before is None or before[1].get("chosen", {}).get("by") != choosing.key):
        reuse = Reuse((*reuse.reasons, "its method is to be chosen"))
    kept = read_sidecar(path) if reuse.ok and stats_there and not force and not with_stats else None
    if kept is not None:
        known = CacheFile(path, CalibrationCache.load(path), made_from, True, (), **_found(kept[1]))
        _shout(known, strict)
        asked = closing is not None and closing.always and "samples" not in known.closing
        return _closed(known, closing if asked else None, None)
    wanted_stats = "its statistics are asked for" if with_stats else "its statistics are not kept yet"
    reasons = reuse.reasons or ("asked to by force" if force else wanted_stats,)
    # Found out before a long pass, not after it.
    check_cache_output(path, force=force)
    replaced = None
    if there is not None:
        replaced = there.check_replaceable(force=force) if gathered is None else None
        names = {"the cache": path, "its sidecar": sidecar_path(path), "its checkpoint": partial_path(path)}
        check_distinct([*names.items(), ("the statistics", there.path)])
    with only_writer(path):
        if path.exists():
            announce(f"{path}: calibrating again: {'; '.join(reasons)}")
        if replaced is not None:
            announce(f"{stats}: its statistics will be replaced: {replaced}")
        clock: _Clock | None = None
        try:
            if gathered is None:
                clock = _Clock(progress)
                gathered = _statistics(model, batches, growth, key, path, executor or Here(), clock, announce)
            else:
                announce(f"{stats}: statistics of these samples are already there; the model need not run")
        except KeyboardInterrupt:
            if load_checkpoint(partial_path(path), key) is not None:  # and not left by a run with other settings
                announce(f"{partial_path(path)}: kept; the same command goes on from it")
            raise
        if stats is not None and not stats_there:
            write_bytes(stats, gathered.to_bytes(key=key))
        choice = Choice(name, {}, {})
        if choosing is not None:
            choice = _choice(
                choosing, model, gathered, growth, None if stats is not None else (partial_path(path), key)
            )
            name, header = _header(choice.method, trt_version, algorithm)
            made_from = replace(made_from, method=name, header=header)
        made = from_stats(model, gathered, name, trt_version=trt_version, algorithm=algorithm)
        findings: dict[str, Any] = {
            "unusable": dict(made.unusable),
            "clipped": dict(made.clipped),
            "hidden": made.hidden,
            "unusable_thresholds": dict(made.unusable_thresholds),
            "usable_methods": made.usable_methods,
            **({"chosen": dict(choice.why), "closing": dict(choice.closing)} if choice.why else {}),
        }
        new = CacheFile(path, made.cache, made_from, False, tuple(reasons), **findings)
        if with_stats:
            new = replace(new, stats=gathered)
        try:
            _shout(new, strict)
        except CacheError:
            if stats is None:  # of which the run by another method can make use
                save_checkpoint(gathered, partial_path(path), key)
            raise
        save_with_sidecar(made.cache.format(), made_from, path, findings)
        with suppress(OSError):
            partial_path(path).unlink(missing_ok=True)  # last of all: what failed before can go on from it
        looking = None if choice.closing else closing
        return _closed(new, looking, None if clock is None else clock.seconds_per_sample)


def partial_path(path: str | Path) -> Path:
    """Where an interrupted run leaves its statistics: ``model.cache`` -> ``model.cache.partial.npz``."""
    path = Path(path)
    return path.with_name(f"{path.name}.partial.npz")


def _found(findings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "unusable": findings.get("unusable", {}),
        "clipped": findings.get("clipped", {}),
        "hidden": findings.get("hidden", 0),
        "unusable_thresholds": findings.get("unusable_thresholds", {}),
        "usable_methods": tuple(findings.get("usable_methods", ())),
        "closing": findings.get("closing", {}),
        "chosen": findings.get("chosen", {}),
    }


def _header(method: str, trt_version: str, algorithm: str | None) -> tuple[str, str]:
    """A method's one spelling, and the header of a cache by it."""
    threshold = threshold_method(method)
    empty = CalibrationCache.from_amax({}, trt_version=trt_version, algorithm=algorithm or threshold.header)
    return threshold.name, empty.header


def _choice(
    choosing: Choosing, model: Model, stats: ActivationStats, growth: str, checkpoint: tuple[Path, str] | None
) -> Choice:
    """What is chosen; where that is not to be, the statistics are kept for the next run, so that no pass is lost."""
    try:
        return choosing(model, stats, growth)
    except BaseException:
        if checkpoint is not None:
            save_checkpoint(stats, *checkpoint)
        raise


class _Clock:
    """Progress of a pass, which learns from it what a sample takes once all is loaded and compiled."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._began = progress, (0, time.monotonic())
        self._seen: list[tuple[int, float]] = []

    def __call__(self, done: int) -> None:
        self._seen = [*self._seen[:1], (done, time.monotonic())]
        if self._progress is not None:
            self._progress(done)

    @property
    def seconds_per_sample(self) -> float | None:
        """From the first that was told of to the last, or where there was but one, from the beginning."""
        if not self._seen:
            return None
        (first, began), (last, ended) = self._seen[0] if len(self._seen) > 1 else self._began, self._seen[-1]
        return (ended - began) / max(last - first, 1)


def _closed(file: CacheFile, closing: Closing | None, seconds_per_sample: float | None) -> CacheFile:
    """The file, looked at. The sidecar does not hear of it: whether it is looked at is a matter of time."""
    if closing is None:
        return file
    return replace(file, closing=closing(file.cache, seconds_per_sample))


def _shout(file: CacheFile, strict: bool) -> None:
    """A warning where thresholds are unusable, or a CacheError."""
    said = unusable_in_words(file.provenance.method, file.provenance.growth, file)
    if said is None:
        return
    if not strict:
        logger.warning("%s: %s", file.path, said)
        return
    raise CacheError(f"{file.path}: {'is there, but' if file.reused else 'not written:'} {said}")


def _origin(model: Model, batches: Batches, method: str, growth: str, header: str) -> Provenance:
    made = origin(batches, files=[], method=method, growth=growth, header=header, shapes=model.shapes)
    versions = {**made.versions, **model.library_versions}
    return replace(made, model=model.short_name, model_sha256=model.sha256, versions=versions)


def statistics_key(model: Model, batches: Batches, growth: str = "double") -> str:
    """What statistics of a pass belong to: they serve whatever method, and a sweep, with an equal key."""
    return _origin(model, batches, "", growth, "").statistics_key()


def _statistics(
    model: Model,
    batches: Batches,
    growth: str,
    key: str,
    path: Path,
    executor: Executor,
    progress: Progress | None,
    announce: Callable[[str], None],
) -> ActivationStats:
    interrupted = partial_path(path)
    resumed = load_checkpoint(interrupted, key)
    if resumed is not None:
        announce(f"{interrupted}: going on after {len(resumed.samples)} samples")
    return executor.run_pass(
        partial(FloatRunner, resolved(model, batches)),
        batches,
        growth=growth,
        checkpoint=interrupted,
        checkpoint_key=key,
        keep_checkpoint=True,
        progress=progress,
    )


def check_cache_output(
    path: str | Path,
    inputs: Iterable[str | os.PathLike[str] | None] = (),
    *,
    force: bool,
    how: str = "replace it (--force)",
) -> None:
    """Cache to write and files it is made from -> nothing; OutputError where something would be lost.

    A file that is no cache is never replaced, nor one beside it that is no sidecar; a cache without a sidecar, which
    somebody else made, only by ``force``, and ``how`` says what to do then.
    """
    path, inputs = Path(path), list(inputs)
    check_output(path, CACHE, inputs)
    check_output(sidecar_path(path), SIDECAR, inputs)
    if path.exists() and not sidecar_path(path).exists() and not force:
        raise OutputError(
            f"{path}: exists, and nothing beside it says what it was made from; {how}, or choose another file"
        )


def ranges_for(model: Model, path: str | os.PathLike[str]) -> Mapping[str, np.float32]:
    """Model and a file of ranges in any format -> its scales; a warning where they are of another model.

    CacheError where the model has not one of the tensors.
    """
    scales = load(path)[0].scales
    said = another_model(scales, model)
    if said is not None and not any(name in model.calibrated.sources for name in scales):
        raise CacheError(f"{os.fspath(path)}: {said}")
    made = read_sidecar(path)
    said = said or of_another_version(None if made is None else made[0], model)
    if said is not None:
        logger.warning("%s: %s", os.fspath(path), said)
    return scales


SIDECAR = json_of("account of where a cache comes from", FORMAT, "cache_sha256")

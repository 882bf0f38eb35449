"""Calibrate into a file: reuse what is already there, resume what was interrupted, replace in one step."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from trtcal.atomic import write_bytes
from trtcal.cache import CalibrationCache
from trtcal.calibration import TRT_VERSION, Calibration, FloatRunner, default_algorithm, from_stats, open_graph
from trtcal.collector import Progress, collect, load_checkpoint
from trtcal.data import Batches
from trtcal.errors import OutputError
from trtcal.graph import CalibrationGraph, external_files
from trtcal.provenance import Provenance, check, installed_versions, model_sha256, save_with_sidecar
from trtcal.stats import ActivationStats
from trtcal.thresholds import method as threshold_method


@dataclass(frozen=True)
class CacheFile:
    """What came of :func:`calibrate_to_file`.

    ``calibration`` is None where the cache on disk already was what the run would have made; otherwise
    ``reasons`` say why it was not.
    """

    path: Path
    cache: CalibrationCache
    provenance: Provenance
    calibration: Calibration | None
    reasons: tuple[str, ...]


def calibrate_to_file(
    model: str | Path,
    batches: Batches,
    path: str | Path,
    method: str = "entropy",
    *,
    growth: str = "double",
    trt_version: str = TRT_VERSION,
    algorithm: str | None = None,
    force: bool = False,
    stats: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> CacheFile:
    """ONNX file and batches -> cache at ``path`` with the sidecar that says what it was made from.

    A cache whose sidecar names the same model, samples, preprocessing, method, batch size and order is
    kept, unless ``force``. An interruption leaves ``<path>.partial.npz``, from which the next run goes on;
    it never leaves a cache. ``stats`` names a file that keeps the statistics, from which a later run by
    another method starts without running the model. ``announce`` hears why a run is needed before it
    begins.

    Raises OutputError where the path cannot be written or another run is writing it, and what
    :func:`trtcal.calibration.calibrate` raises.
    """
    threshold_method(method)
    path = Path(path)
    with _only_writer(path):
        graph = open_graph(model)
        algorithm = algorithm or default_algorithm(method)
        header = CalibrationCache.from_amax({}, trt_version=trt_version, algorithm=algorithm).header
        accounting = batches.accounting()
        preprocess = getattr(batches.source, "preprocess", None)  # pictures have one
        origin = Provenance(
            model=graph.path.name,
            model_sha256=model_sha256([graph.path, *(graph.path.parent / f for f in external_files(graph.model))]),
            data=batches.source.describe(),
            data_key=batches.key(),
            samples_used=accounting.used,
            samples_available=accounting.available,
            preprocess=preprocess.to_dict() if preprocess is not None else {},
            method=method,
            growth=growth,
            batch_size=batches.batch_size,
            order=batches.order,
            seed=batches.seed,
            partial=batches.partial,
            shapes={spec.name: list(spec.shape) for spec in graph.inputs},
            header=header,
            versions=installed_versions(),
        )
        reuse = check(path, origin)
        if reuse.ok and not force:
            return CacheFile(path, CalibrationCache.load(path), origin, None, ())
        reasons = ("asked to by force",) if reuse.ok else reuse.reasons
        if path.exists():
            announce(f"{path}: calibrating again: {'; '.join(reasons)}")
        _refuse_unwritable(path)
        gathered = _statistics(graph, batches, origin, path, stats, workers, progress, announce)
        calibration = from_stats(graph, gathered, method, trt_version=trt_version, algorithm=algorithm)
        save_with_sidecar(calibration.cache.format(), origin, path)
        return CacheFile(path, calibration.cache, origin, calibration, reasons)


def partial_path(path: str | Path) -> Path:
    """Where an interrupted run leaves its statistics: ``model.cache`` -> ``model.cache.partial.npz``."""
    path = Path(path)
    return path.with_name(f"{path.name}.partial.npz")


def _statistics(
    graph: CalibrationGraph,
    batches: Batches,
    origin: Provenance,
    path: Path,
    stats: str | Path | None,
    workers: int | None,
    progress: Progress | None,
    announce: Callable[[str], None],
) -> ActivationStats:
    # What decides the statistics; the method and the header are chosen afterwards.
    key = hashlib.sha256(replace(origin, method="", header="", data="", model="").to_json()).hexdigest()
    kept = load_checkpoint(stats, key) if stats is not None else None
    if kept is not None:
        announce(f"{stats}: statistics of these samples are already there; the model need not run")
        return kept
    partial = partial_path(path)
    resumed = load_checkpoint(partial, key)
    if resumed is not None:
        announce(f"{partial}: going on after {len(resumed.samples)} samples")
    with FloatRunner(graph) as runner:
        gathered = collect(
            runner,
            batches,
            growth=origin.growth,
            workers=workers or os.cpu_count() or 1,
            checkpoint=partial,
            checkpoint_key=key,
            progress=progress,
        )
    if stats is not None:
        write_bytes(stats, gathered.to_bytes(key=key))
    return gathered


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the one lock that all runs writing this file share; OutputError where another holds it."""
    from filelock import FileLock, Timeout

    name = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    user = os.getuid() if hasattr(os, "getuid") else ""  # or the first user's file would shut the second out
    lock = FileLock(Path(tempfile.gettempdir()) / f"trtcal-{user}-{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"{path}: another run is writing this cache; wait for it, or choose another file") from error
    try:
        yield
    finally:
        lock.release()


def _refuse_unwritable(path: Path) -> None:
    """Find out before a long pass what would be an error after it."""
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{path}: cannot be written: it is a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"the folder {folder} does not exist" if not folder.exists() else error.strerror
        raise OutputError(f"{path}: cannot be written: {reason}") from error

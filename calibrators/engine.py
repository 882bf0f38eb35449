"""ONNX model and calibrator -> engine, with the batch that was really calibrated, or an error and no engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrators import versions
from calibrators.coverage import Coverage, classify, complete, refuse_foreign
from calibrators.overwriting import check_build_outputs
from calibrators.shapes import (
    NetworkInput,
    Range,
    Shape,
    calibration_shapes,
    inference_ranges,
    network_inputs,
    static_batch,
)
from trtcal.cache.cache import CalibrationCache
from trtcal.errors import BackendError, DataError, ModelError
from trtcal.files import atomic
from trtcal.files.brief import brief
from trtcal.model.overwriting import only_writer

if TYPE_CHECKING:
    from calibrators.calibrator import Calibrator
    from trtcal.model.open import Model, Source

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class BuiltEngine:
    """A plan and the facts of its build."""

    plan: bytes = field(repr=False)
    """The serialized engine."""
    batch_size: int | None
    """The one true batch size that was calibrated with; None where nothing was calibrated or inputs disagree."""
    calibrated: Mapping[str, Shape]
    """Input -> full shape that it was calibrated with; empty where ranges were handed over."""
    profile: Mapping[str, Range]
    """Input -> shapes that the engine takes; empty for a static model."""
    ranges: CalibrationCache | None
    """The ranges of the build."""
    coverage: Coverage
    """What became of tensors without a range."""

    __repr__ = brief


def build_engine(
    model: Source,
    engine: str | os.PathLike[str] | None = None,
    *,
    calibrator: Calibrator | None = None,
    precision: str = "int8",
    fp16: bool = True,
    shapes: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    rewrite_batch: bool = False,
    workspace: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    dla_core: int | None = None,
    gpu_fallback: bool = False,
    builder: Any = None,
) -> BuiltEngine:
    """ONNX model -> engine; written to ``engine``, in one step, only where everything went well.

    TensorRT reads the model's file itself; one that was never in a file is handed over as `open_model` makes it.

    ``precision``: one of `PRECISIONS`; "int8" needs a ``calibrator``, and with ``fp16`` layers may run in FP16 where
    that is faster than INT8. ``shapes``: input -> shape or (min, opt, max) of the engine, for dynamic axes.

    What is calibrated is the batch that the calibrator feeds: the calibration profile is made from it for all inputs,
    it is checked against a static model, every later batch is checked against it, and it is logged. ``batch_size``
    makes it an error if that is another one, and fills a dynamic batch axis where the calibrator feeds nothing. A
    static batch that differs is an error; ``rewrite_batch`` makes the axis dynamic for calibration, and the engine
    keeps the model's batch.

    ``workspace``: bytes of scratch memory. ``timing_cache``: file to read and extend. ``dla_core``: run on that DLA,
    with ``gpu_fallback`` for layers it does not know. ``builder``: a `calibrators.trtlog.new_builder` to share with
    other builds on this thread; by default each makes its own.

    Raises the calibrator's kept error once the builder has returned; OutputError where a result would replace what is
    no result, or another run is writing it; BackendError with TensorRT's own words where it
    builds nothing; ModelError and DataError for a model that cannot be parsed and data that do not fit it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if (precision == "int8") != (calibrator is not None):
        raise ValueError("a calibrator goes with precision 'int8', and only with that")
    if calibrator is not None and not hasattr(calibrator, "fed_shapes"):
        raise TypeError(f"expected a calibrator of this package, got {type(calibrator).__qualname__}")
    model = _file_or_model(model)
    _refuse_losses(model, engine, calibrator, timing_cache)
    trt = versions.tensorrt()
    if calibrator is not None:
        versions.base_class(calibrator.algorithm)
        if dla_core is not None and calibrator.algorithm != "EntropyCalibration2":
            raise ValueError(f"DLA takes EntropyCalibration2 only, the calibrator is {calibrator.algorithm}")
    recipe = _Recipe(fp16, workspace, timing_cache, dla_core, gpu_fallback)
    ranges = {name: Range.of(value) for name, value in (shapes or {}).items()}
    with ExitStack() as locks:
        if engine is not None:
            locks.enter_context(only_writer(engine))
        try:
            if calibrator is not None and calibrator.cache_path is not None and calibrator.to_hand_over is None:
                locks.enter_context(only_writer(calibrator.cache_path))
            built = _build(trt, builder, model, calibrator, precision, recipe, ranges, batch_size, rewrite_batch)
        finally:
            if calibrator is not None and (calibrator.was_asked or calibrator.failure):  # else for another attempt
                calibrator.close()
        if engine is not None:
            atomic.write_bytes(engine, built.plan)
    return built


def _file_or_model(model: Source) -> Path | Model:
    from trtcal.model.open import open_model

    if isinstance(model, (str, os.PathLike)):
        return Path(model)
    opened = open_model(model)
    return opened.path or opened


def _refuse_losses(
    model: Path | Model,
    engine: str | os.PathLike[str] | None,
    calibrator: Calibrator | None,
    timing_cache: str | os.PathLike[str] | None,
) -> None:
    """OutputError, before any work, where a result would lie over the model, the data, another result or a stranger."""
    cache = None if calibrator is None else calibrator.cache_path
    data = () if calibrator is None else calibrator.data_paths
    check_build_outputs([model, *data], engine=engine, timing_cache=timing_cache, cache=cache)


@dataclass(frozen=True)
class _Recipe:
    """How TensorRT is to build, apart from calibration."""

    fp16: bool
    workspace: int | None
    timing_cache: str | os.PathLike[str] | None
    dla_core: int | None
    gpu_fallback: bool

    def apply(self, trt: Any, config: Any, precision: str) -> None:
        if self.workspace is not None:
            versions.set_workspace(trt, config, self.workspace)
        if precision == "fp16" or (precision == "int8" and self.fp16):
            versions.set_flag(trt, config, "FP16")
        if self.dla_core is not None:
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = self.dla_core
        if self.gpu_fallback:
            versions.set_flag(trt, config, "GPU_FALLBACK")
        versions.set_detailed(trt, config)
        versions.leave_out_tactics(trt, config)
        _load_timing_cache(config, self.timing_cache)


def _build(
    trt: Any,
    builder: Any,
    model: Path | Model,
    calibrator: Calibrator | None,
    precision: str,
    recipe: _Recipe,
    ranges: Mapping[str, Range],
    batch_size: int | None,
    rewrite_batch: bool,
) -> BuiltEngine:
    from calibrators.trtlog import LOG, made, new_builder

    LOG.clear()
    if builder is None:
        builder = new_builder()
    fed = {} if calibrator is None else calibrator.fed_shapes()
    # The parser owns the weights that the network points to, so it is kept until the build is over.
    network, _parser, fixed = _parse(trt, builder, model, fed, rewrite_batch)
    inputs = network_inputs(trt, network)
    if calibrator is not None:
        calibrator.fed_shapes([item.name for item in inputs])  # raises for one of them that is no array
    config = made(builder.create_builder_config, "a builder configuration")
    recipe.apply(trt, config, precision)
    calibrated = calibration_shapes(inputs, fed, ranges, batch_size)
    profile = {}
    if any(item.dynamic for item in inputs):
        profile = inference_ranges(inputs, calibrated, ranges, fixed)
        config.add_optimization_profile(_profile(builder, profile))
    coverage, true_batch = Coverage(), None
    if calibrator is not None:
        versions.set_flag(trt, config, "INT8")
        versions.set_calibrator(config, calibrator)
        if profile:
            exact = _profile(builder, {name: Range.of(shape) for name, shape in calibrated.items()})
            if not versions.set_calibration_profile(config, exact):
                raise BackendError(f"TensorRT does not take the calibration profile {calibrated}: {LOG.words()}")
        coverage = _prepare(calibrator, network, inputs, calibrated)
        true_batch = _true_batch(calibrated)
        if calibrator.to_hand_over is None:
            logger.info(
                "calibration batch size %s: %s",
                true_batch if true_batch is not None else "differs by input",
                ", ".join(f"{name} {shape}" for name, shape in calibrated.items()),
            )
    plan = builder.build_serialized_network(network, config)
    if calibrator is not None and (plan is not None or calibrator.failure):
        calibrator.raise_if_failed()
    if plan is None:
        raise BackendError(f"{_name(model)}: TensorRT built no engine: {LOG.words()}")
    _save_timing_cache(config, recipe.timing_cache)
    on_data = calibrator is not None and calibrator.written is not None
    return BuiltEngine(
        plan=bytes(plan),
        batch_size=true_batch if on_data else None,
        calibrated=calibrated if on_data else {},
        profile=profile,
        ranges=None if calibrator is None else calibrator.ranges,
        coverage=_with_log(coverage, LOG, network),
    )


def _with_log(coverage: Coverage, log: Any, network: Any) -> Coverage:
    """Coverage -> the same with the tensors that TensorRT itself says it has no scale for."""
    missing = [name for name in log.without_scale() if name not in (*coverage.benign, *coverage.costly)]
    benign, costly = classify(missing, network)
    return Coverage(coverage.added, {**coverage.benign, **benign}, {**coverage.costly, **costly})


def _parse(
    trt: Any, builder: Any, model: Path | Model, fed: Mapping[str, Shape], rewrite_batch: bool
) -> tuple[Any, Any, int | None]:
    """ONNX model -> network, the parser that owns its weights, and the batch the model had if its axis was changed."""
    from calibrators.trtlog import made
    from trtcal.model.open import open_model

    name = _name(model)
    if isinstance(model, Path) and not model.is_file():
        raise ModelError(f"{name}: no such file")
    network = made(lambda: versions.create_network(trt, builder), "a network")
    parser = _parser(trt, network)
    if isinstance(model, Path):
        _parsed(parser, parser.parse_from_file(str(model)), name)
    else:
        _parsed(parser, parser.parse(model.proto.SerializeToString()), name)
    if not (rewrite_batch and fed):
        return network, parser, None
    inputs = network_inputs(trt, network)
    fixed = static_batch(inputs)
    if fixed is None or all(shape[0] == fixed for shape in fed.values() if shape):
        return network, parser, None
    logger.info("%s: fixes batch size %d; its batch axis is made dynamic for calibration", name, fixed)
    network = made(lambda: versions.create_network(trt, builder), "a network")
    parser = _parser(trt, network)
    rewritten = open_model(model).with_batch_size(None).proto.SerializeToString()
    beside = [str(model)] if isinstance(model, Path) else []  # for weights that lie in files
    _parsed(parser, parser.parse(rewritten, *beside), name)
    return network, parser, fixed


def _name(model: Path | Model) -> str:
    return str(model) if isinstance(model, Path) else model.name


def _parsed(parser: Any, ok: bool, name: str) -> None:
    if not ok:
        problems = "; ".join(parser.get_error(number).desc() for number in range(parser.num_errors))
        raise ModelError(f"{name}: TensorRT's parser cannot read it: {problems or 'no reason given'}")


def _profile(builder: Any, ranges: Mapping[str, Range]) -> Any:
    profile = builder.create_optimization_profile()
    for name, entry in ranges.items():
        profile.set_shape(name, entry.min, entry.opt, entry.max)
    return profile


def _prepare(
    calibrator: Calibrator, network: Any, inputs: Sequence[NetworkInput], calibrated: Mapping[str, Shape]
) -> Coverage:
    """Tell the calibrator what the network reads, and complete ranges that it hands over."""
    from calibrators.cached import HandedOver

    if calibrator.to_hand_over is not None:
        refuse_foreign(calibrator.to_hand_over, network)
    calibrator.expect({item.name: (calibrated[item.name], item.dtype) for item in inputs})
    if not isinstance(calibrator, HandedOver):
        return Coverage()
    completed, coverage = complete(calibrator.to_hand_over, network)
    calibrator.hand_over(completed)
    return coverage


def _true_batch(calibrated: Mapping[str, Shape]) -> int | None:
    sizes = {shape[0] for shape in calibrated.values() if shape}
    return sizes.pop() if len(sizes) == 1 else None


def _parser(trt: Any, network: Any) -> Any:
    from calibrators.trtlog import LOG, made

    return made(lambda: trt.OnnxParser(network, LOG), "an ONNX parser")


def _load_timing_cache(config: Any, path: str | os.PathLike[str] | None) -> None:
    if path is None:
        return
    try:
        data = Path(path).read_bytes() if Path(path).exists() else b""
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        logger.warning("%s: not a timing cache for this TensorRT and GPU; building without it", path)


def _save_timing_cache(config: Any, path: str | os.PathLike[str] | None) -> None:
    cache = None if path is None else config.get_timing_cache()
    if path is not None and cache is not None:
        atomic.write_bytes(path, bytes(cache.serialize()))

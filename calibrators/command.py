"""The build as a command: ``scripts/build_engine.py`` and ``trtcal build`` are this."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrators.engine import BuiltEngine, build_engine
from calibrators.layout import FedBatches, as_fed
from calibrators.options import MOST_SAMPLES, algorithm, method, parser, ranges, sample_options
from calibrators.overwriting import check_build_outputs
from calibrators.shapes import Shape
from trtcal.errors import DataError, SettingError, TrtcalError
from trtcal.files import terminal

if TYPE_CHECKING:
    from calibrators.calibrator import Calibrator
    from trtcal.samples.batches import Batches

logger = logging.getLogger(__name__)


def main(
    argv: Sequence[str] | None = None, *, prog: str | None = None, echo: Callable[[str], None] = terminal.put
) -> int:
    """Arguments -> exit code; prints what was built, or on standard error one line that says why not."""
    known = parser(prog)
    options = known.parse_args(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(terminal.LineFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if options.verbose:
        for name in ("trtcal", "calibrators"):
            logging.getLogger(name).setLevel(logging.DEBUG)
    else:
        logging.getLogger("calibrators.tensorrt").setLevel(logging.WARNING)
    try:
        run(options, echo)
    except (TrtcalError, ValueError, OSError) as error:
        print(terminal.line(f"{known.prog}: error: {error}"), file=sys.stderr)
        return 2
    except MemoryError:
        print(f"{known.prog}: error: out of memory; smaller batches need less", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{known.prog}: interrupted", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace, echo: Callable[[str], None]) -> BuiltEngine:
    """Parsed options -> built engine, written, with a report of it line by line to ``echo``."""
    shapes = ranges(options)
    calibrator = None
    if options.calib_input is not None and options.precision != "int8":
        raise ValueError(f"--calib_input goes with --precision int8, not with {options.precision}")
    _refuse_losses(options)
    if options.precision == "int8":
        calibrator = _calibrator(options, {name: entry.opt for name, entry in shapes.items()})
    built = build_engine(
        options.onnx,
        options.engine,
        calibrator=calibrator,
        precision=options.precision,
        fp16=options.fp16,
        shapes=shapes,
        batch_size=options.calib_batch_size,
        rewrite_batch=options.rewrite_batch,
        workspace=options.workspace,
        timing_cache=options.timing_cache,
        dla_core=options.dla_core,
        gpu_fallback=options.gpu_fallback,
    )
    for line in report(options, built):
        echo(terminal.line(line))
    return built


def _refuse_losses(options: argparse.Namespace) -> None:
    """OutputError where a result would lie over an input or another result; before ranges are collected."""
    cached = options.precision == "int8" and options.policy != "off"
    check_build_outputs(
        [options.onnx, options.calib_input, options.labels],
        engine=options.engine,
        timing_cache=options.timing_cache,
        cache=options.calib_cache if cached else None,
    )


def report(options: argparse.Namespace, built: BuiltEngine) -> list[str]:
    """Options and what came of them -> lines for people."""
    lines = [f"{options.engine}: {len(built.plan):,} bytes, {options.precision}"]
    if built.calibrated:
        shapes = ", ".join(f"{name} {shape}" for name, shape in built.calibrated.items())
        lines.append(
            f"calibration batch size: {built.batch_size if built.batch_size is not None else 'differs'} ({shapes})"
        )
    if built.ranges is not None:
        lines.append(f"ranges: {len(built.ranges.scales)} tensors, {built.ranges.header}")
    for title, tensors in (
        ("tensors got the range of a tensor they equal", built.coverage.added),
        ("tensors without a range that need none", built.coverage.benign),
        ("TENSORS WITHOUT A RANGE that fall back to FP16 or FP32", built.coverage.costly),
    ):
        if tensors:
            lines.append(f"{len(tensors)} {title}:")
            lines += [f"  {name}: {reason}" for name, reason in list(tensors.items())[:10]]
            lines += [f"  and {len(tensors) - 10} more"] * (len(tensors) > 10)
    lines += _inspected(options, built)
    if built.ranges is not None and options.policy != "off" and Path(options.calib_cache).exists():
        lines += snippets(options.onnx, options.calib_cache)
    return lines


def _inspected(options: argparse.Namespace, built: BuiltEngine) -> list[str]:
    from calibrators.runner import Engine

    try:
        engine = Engine(built.plan, memory=options.memory, name=os.fspath(options.engine))
    except TrtcalError as error:
        return [f"layers and latency are not known: {error}"]
    lines = []
    with engine:
        counts = engine.layers()
        if counts:
            lines.append(f"layers: {', '.join(f'{count} {precision}' for precision, count in counts.items())}")
        else:
            lines.append("layers per precision are not known: TensorRT's inspector does not tell")
        if options.latency and options.dla_core is None:
            try:
                time = engine.latency()
                lines.append(f"latency: median {time.p50_ms:.3f} ms, 99% under {time.p99_ms:.3f} ms, {time.runs} runs")
            except TrtcalError as error:
                lines.append(f"latency is not known: {error}")
    return lines


def snippets(onnx: Path, cache: Path) -> list[str]:
    """Model and cache -> how DeepStream and ONNX Runtime are told to use them."""
    folder = cache.resolve().parent
    return [
        "DeepStream (nvinfer configuration):",
        "  [property]",
        f"  onnx-file={onnx}",
        f"  int8-calib-file={cache}",
        "  network-mode=1",
        "ONNX Runtime (TensorRT execution provider):",
        '  ("TensorrtExecutionProvider", {',
        '      "trt_int8_enable": True, "trt_fp16_enable": True,',
        '      "trt_int8_use_native_calibration_table": True,',
        f'      "trt_int8_calibration_table_name": {cache.name!r}, "trt_engine_cache_path": {os.fspath(folder)!r},',
        "  })",
    ]


def _calibrator(options: argparse.Namespace, opt: Mapping[str, Shape]) -> Calibrator:
    from calibrators import CachedCalibrator, EntropyCalibrator, LegacyCalibrator, MinMaxCalibrator, ThresholdCalibrator

    name, arguments = method(options)
    if options.calib_input is None:
        if options.calib_cache.exists() and options.policy in ("auto", "read"):
            logger.info("%s: used without data, whatever it was made from", options.calib_cache)
            return CachedCalibrator(options.calib_cache)
        raise DataError(
            f"INT8 needs data or ranges: --calib_input PATH, or a cache that exists (there is no {options.calib_cache})"
        )
    kinds: tuple[Any, ...] = EntropyCalibrator, MinMaxCalibrator, LegacyCalibrator
    by_algorithm: dict[str, Callable[..., Calibrator]] = {kind.algorithm: kind for kind in kinds}
    own = by_algorithm.get(algorithm(name))
    batches = _batches(options, opt)
    if own is None and isinstance(batches, FedBatches):
        raise SettingError(
            f"--method {name}: a build collects ranges for models alone that count samples on the first axis of every "
            f"input; run trtcal calibrate --method {name} with the same options, and give its cache: --calib_cache"
        )
    kind = own or partial(ThresholdCalibrator, method=name, libraries=options.ort_library or ())
    return kind(
        batches,
        model=options.onnx,
        memory=options.memory,
        cache=None if options.policy == "off" else options.calib_cache,
        policy=options.policy,
        **arguments,
    )


def _batches(options: argparse.Namespace, opt: Mapping[str, Shape]) -> Batches:
    """Data options and OPT shapes -> batches for the model's network."""
    from trtcal.model.open import open_model
    from trtcal.passes.sharing import resolved

    shapes = [f"{name}:{'x'.join(map(str, shape[1:]))}" for name, shape in opt.items() if shape[1:]]
    found = sample_options(options, shapes)
    model = open_model(options.onnx, libraries=found.ort_library).asked(found.batch_axis, found.input)
    batches = found.open(model.inputs, at_most=MOST_SAMPLES)
    return as_fed(batches, resolved(model, batches, judged=True))

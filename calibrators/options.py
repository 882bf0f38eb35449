"""The options of the build command, and what their values are spelt like.

They are those of NVIDIA's sample ``build_engine.py``; beside each stands its dashed form, and trtexec's and
Polygraphy's spelling where it differs.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NamedTuple

from calibrators.engine import PRECISIONS
from calibrators.memory import BACKENDS
from calibrators.shapes import Range, Shape
from calibrators.store import POLICIES
from calibrators.versions import BASES
from trtcal.errors import SettingError
from trtcal.files.settings import size_in_bytes
from trtcal.ranges import thresholds
from trtcal.ranges.thresholds import usages
from trtcal.samples.options import KNOBS, SampleOptions

MOST_SAMPLES = 5000  # the default of NVIDIA's sample
BATCH_SIZE = 8  # the same
METHOD = "entropy"  # the default of TensorRT

logger = logging.getLogger(__name__)

# What NVIDIA's sample, trtexec and Polygraphy call an option that describes samples, beside our own name for it.
_ALIASES = {
    "data": ("--calib_input", "--calib-input"),
    "samples": ("--calib_num_images", "--calib-num-images"),
    "batch_size": ("--calib_batch_size", "--calib-batch-size"),
    "preset": ("--calib_preprocessor",),
}


class OfTensorRT(NamedTuple):
    """A method that trtcal does not have: TensorRT's calibrator for it, and the options that it takes."""

    algorithm: str
    options: tuple[str, ...]


TENSORRT_ALONE = {"legacy": OfTensorRT("LegacyCalibration", ("quantile", "cutoff"))}


class _Parser(argparse.ArgumentParser):
    """Takes ``--preset -1-1`` and ``--mean -1,-1,-1`` for what they are; argparse sees an option in such a value."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Words of a command line, without the command -> namespace, and the words that are nothing known."""
        words = list(sys.argv[1:] if args is None else args)
        for at in range(len(words) - 1, 0, -1):
            if re.match(r"-[\d.]", words[at]) and re.fullmatch(r"--[\w-]+", words[at - 1]):
                words[at - 1 : at + 1] = [f"{words[at - 1]}={words[at]}"]
        return super().parse_known_args(words, namespace)


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Nothing -> the command's options."""
    made = _Parser(
        prog=prog,
        allow_abbrev=False,
        description="Build a TensorRT engine from an ONNX model, in INT8 with calibration.",
        epilog="Exit codes: 0 the engine was written; 2 it was not, and the last line says why; 130 interrupted.",
    )
    add = made.add_argument
    add("-o", "--onnx", required=True, type=Path, metavar="FILE", help="the model")
    add("-e", "--engine", "--saveEngine", required=True, type=Path, metavar="FILE", help="the engine to write")
    add("-p", "--precision", default="fp16", choices=PRECISIONS, help="default: fp16")
    add("--int8", dest="precision", action="store_const", const="int8", help="the same as --precision int8")
    add("--best", dest="precision", action="store_const", const="int8", help="the same: INT8, and FP16 where faster")
    add("--fp16", dest="fp16", action="store_true", default=True, help="FP16 beside INT8, where faster (default)")
    add("--no-fp16", dest="fp16", action="store_false", help="INT8 and FP32 only")
    add("-v", "--verbose", action="store_true", help="TensorRT's whole log")

    data = made.add_argument_group("calibration data")
    add = data.add_argument
    for item in fields(SampleOptions):
        _add_sample_option(data, item)
    add("--preprocess", action="append", default=[], metavar="KNOB=VALUE", help="change one knob of the preset")
    add(
        "--calib_cache",
        "--calib-cache",
        "--calibration-cache",
        "--calib",
        type=Path,
        metavar="FILE",
        default=Path("calibration.cache"),
        help="the ranges; default: calibration.cache",
    )
    add(
        "--policy",
        default="auto",
        choices=POLICIES,
        help=f"for the cache: {'; '.join(map(': '.join, POLICIES.items()))}",
    )
    add("--force", dest="policy", action="store_const", const="write", help="the same as --policy write")

    how = made.add_argument_group("calibration")
    add = how.add_argument
    add("--method", metavar="NAME", help=f"{', '.join(_choices())}; default: {METHOD}")
    add(
        "--calib-base-cls",
        "--calibration-base-class",
        dest="method",
        type=_method_of_base,
        metavar="CLASS",
        help="the method as the name of TensorRT's class",
    )
    for name, row in thresholds.METHODS.items():
        if row.parameter is not None:
            meaning = row.description.replace("%", "%%")
            add(f"--{name}", type=float, metavar=row.parameter.keyword.upper(), help=f"method {name}: {meaning}")
    add("--quantile", type=float, help="of method legacy; default: 0.9999")
    add("--regression-cutoff", "--cutoff", dest="cutoff", type=float, help="of method legacy; default: 1")
    add("--rewrite-batch", action="store_true", help="calibrate a model of fixed batch size with another one")
    add("--memory", choices=BACKENDS, help="device memory through this package; default: the one that is installed")

    build = made.add_argument_group("build")
    add = build.add_argument
    for side in ("min", "opt", "max"):
        add(
            f"--{side}Shapes",
            f"--{side}-shapes",
            f"--trt-{side}-shapes",
            dest=f"{side}_shapes",
            nargs="+",
            default=[],
            metavar="INPUT:SIZES",
            help=f"{side} shape of dynamic inputs, batch included: x:1x3x224x224,y:1x10",
        )
    add("--shapes", dest="fixed_shapes", nargs="+", default=[], metavar="INPUT:SIZES", help="all three at once")
    sizes = "or with a suffix K, M or G"
    add("-w", dest="workspace", type=_bytes, metavar="SIZE", help=f"scratch memory: GiB as in NVIDIA's sample, {sizes}")
    add("--workspace", type=_mebibytes, metavar="SIZE", help=f"scratch memory: MiB as in trtexec, {sizes}")
    add("--memPoolSize", dest="workspace", type=_pool, metavar="workspace:SIZE", help=f"the same: MiB, {sizes}")
    add("--timing-cache", "--timingCacheFile", type=Path, metavar="FILE", help="timings to reuse and extend")
    add("--dla-core", "--useDLACore", type=int, metavar="N", help="run on this DLA; calibrates with entropy only")
    add(
        "--gpu-fallback",
        "--allow-gpu-fallback",
        "--allowGPUFallback",
        action="store_true",
        help="run on the GPU what the DLA cannot",
    )
    add("--no-latency", dest="latency", action="store_false", help="do not run the engine after the build")
    return made  # fmt: skip


def _add_sample_option(data: argparse._ArgumentGroup, item: Field[Any]) -> None:
    """A field of `SampleOptions` as an option of the command; what is not given stays None."""
    text = {
        "batch_size": f"samples per batch, which the batch that really runs is made to be; default: {BATCH_SIZE} with "
        f"data; without, it fills a dynamic batch axis",
        "samples": f"{item.metadata['help']} Default: all, at most {MOST_SAMPLES}.",
    }.get(item.name, item.metadata["help"])
    data.add_argument(
        *_ALIASES.get(item.name, ()),
        f"--{item.name.replace('_', '-')}",
        metavar=item.metadata["metavar"],
        action="append" if item.default == () else "store",
        type=_positive if item.metadata["least"] == 1 else str,
        default=None,
        help=text.replace("%", "%%"),
    )


def sample_options(options: argparse.Namespace, shapes: Sequence[str] = ()) -> SampleOptions:
    """Parsed options, and shapes that profiles give besides -> what the samples are."""
    given = {}
    for item in fields(SampleOptions):
        name = _ALIASES.get(item.name, (item.name,))[0].lstrip("-")
        given[item.name] = getattr(options, name)
    given["shape"] = [*(given["shape"] or ()), *shapes]
    given |= dict(knob(text) for text in options.preprocess)
    return SampleOptions(**{name: value for name, value in given.items() if value is not None})


def knob(text: str) -> tuple[str, Any]:
    """ "resize-to=232", "mean=0.5,0.5,0.5", "color=BGR" -> name and value of a preset's field."""
    name, _, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if name not in KNOBS:
        known = ", ".join(KNOBS).replace("_", "-")
        raise ValueError(
            f"--preprocess {text}: expected KNOB=VALUE with one of {known}; size and channels are those of the model's "
            f"input, and --layout says its axes"
        )
    kinds: dict[str, Callable[[str], Any]] = {"resize_to": int, "pad_value": int, "scale": float}
    kinds |= dict.fromkeys(("mean", "std"), lambda v: tuple(float(part) for part in v.split(",")))
    try:
        return name, kinds.get(name, str)(value.strip())
    except ValueError:
        raise ValueError(f"--preprocess {text}: expected KNOB=VALUE with a number for {name}") from None


def method(options: argparse.Namespace) -> tuple[str, dict[str, float]]:
    """--method, --percentile, --quantile, --cutoff -> the method as trtcal spells it, and what its calibrator takes.

    ValueError where they contradict each other. As in Polygraphy, what is of method legacy alone has no effect on
    others; that is warned of.
    """
    spec: str = options.method or METHOD
    for name, row in thresholds.METHODS.items():
        number = getattr(options, name) if row.parameter is not None else None
        if number is None:
            continue
        if options.method not in (None, name):
            raise SettingError(f"--{name} {number:g} goes with method {name} alone, not with {spec}")
        spec = f"{name}:{number}"
    name, colon, _ = spec.partition(":")
    if name not in {*thresholds.METHODS, *TENSORRT_ALONE}:
        raise SettingError(f"method must be one of {', '.join(_choices())}, got {spec!r}")
    alone = TENSORRT_ALONE.get(name)
    if alone is not None and colon:
        raise SettingError(f"method {name} takes no parameter, got {spec!r}")
    arguments = {}
    for owner, (_, keys) in TENSORRT_ALONE.items():
        given = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
        if owner == name:
            arguments = given
        elif given:
            flags = ", ".join(f"--{key}" for key in given)
            logger.warning("%s: without effect, for the method is %s and not %s", flags, name, owner)
    return name if alone is not None else thresholds.method(spec).name, arguments


def algorithm(method: str) -> str:
    """Method, as :func:`method` gives it -> TensorRT's calibrator for it; "" where the threshold is trtcal's own."""
    alone = TENSORRT_ALONE.get(method)
    return thresholds.method(method).algorithm if alone is None else alone.algorithm


def _choices() -> list[str]:
    return [*usages().values(), *TENSORRT_ALONE]


def ranges(options: argparse.Namespace) -> dict[str, Range]:
    """--minShapes, --optShapes, --maxShapes -> ranges; what is left out is the OPT shape, or the nearest given.

    --shapes stands for all three.
    """
    if options.fixed_shapes:
        if options.min_shapes or options.opt_shapes or options.max_shapes:
            raise ValueError("--shapes says all of --minShapes, --optShapes and --maxShapes; give it or them")
        return {name: Range.of(shape) for name, shape in _shapes(options.fixed_shapes, "").items()}
    low, best, high = (_shapes(getattr(options, f"{side}_shapes"), side) for side in ("min", "opt", "max"))
    made = {}
    for name in {**best, **high, **low}:
        opt = best.get(name) or high.get(name) or low[name]
        made[name] = Range(low.get(name, opt), opt, high.get(name, opt))
    return made


def _shapes(texts: Sequence[str], side: str) -> dict[str, Shape]:
    """["x:1x3x224x224,y:1x10"] (trtexec) or ["x:[1,3,224,224]", "y:[1,10]"] (Polygraphy) -> shapes."""
    shapes = {}
    for text in texts:
        # Names may hold colons and commas; a shape is digits, "x", and commas only inside brackets.
        for name, bracketed, plain in re.findall(r"(.+?):(?:\[([\d,\s]*)\]|([\dx]+))(?:,|$)", text):
            sizes = re.findall(r"\d+", bracketed or plain)
            shapes[name.strip("'\" ")] = tuple(int(size) for size in sizes)
        if not re.fullmatch(r"(.+?:(\[[\d,\s]*\]|[\dx]+)(,|$))+", text):
            flag = f"--{side}Shapes" if side else "--shapes"
            raise ValueError(f"{flag} {text}: expected INPUT:SIZES such as x:1x3x224x224")
    return shapes


def _method_of_base(text: str) -> str:
    names = {BASES[of]: name for name in (*thresholds.METHODS, *TENSORRT_ALONE) if (of := algorithm(name))}
    if text not in names:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}, got {text!r}")
    return names[text]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _bytes(text: str, *, unit: str = "G") -> int:
    try:
        return size_in_bytes(text, unit)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _mebibytes(text: str) -> int:
    return _bytes(text, unit="M")


def _pool(text: str) -> int:
    name, _, size = text.partition(":")
    if name != "workspace" or "," in size:
        raise argparse.ArgumentTypeError(f"expected workspace:SIZE, the only pool that can be set here, got {text!r}")
    return _mebibytes(size)

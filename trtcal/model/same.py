"""Do two models compute the same? Both are run on the same data, and the first node that differs is named."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.calibrated import with_outputs
from trtcal.model.nodes import dtype_of, label
from trtcal.model.runner import OrtRunner

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference, as a share of a tensor's largest |x|. Kernels of two opsets may round apart."""

SIZES = (8, 32, 224, 1)  # of axes that the model leaves open but the batch; what a network accepts is its own affair
SAMPLES = 2  # random ones; what an If does not take with one, it may with the other
ROWS = 2  # of a sample, where it is a batch: watched tensors of a large one would not fit into memory

MOST_ELEMENTS = 1 << 27  # of an input, which are 1 GiB while they are drawn

Feed = Mapping[str, np.ndarray]


def check_same(
    before: ModelProto,
    after: ModelProto,
    *,
    watched: Iterable[str] = (),
    samples: Iterable[Feed] | None = None,
    folder: str | Path | None = None,
    libraries: Sequence[Path] = (),
) -> None:
    """Two models with the same inputs -> nothing; ModelError names the first node of ``before`` that differs.

    Compared are the outputs, and of other tensors those ``watched``, on the first of ``samples`` (``{input: array}``),
    or else on random ones: whole numbers are 0 or 1, which are valid token ids, indices and masks. ``folder`` is where
    weights lie, ``libraries`` have custom operators. Where ONNX Runtime cannot run ``before``, or its outputs are
    random, the log says that nothing was compared; where it cannot run ``after`` alone, that is a ModelError.
    """
    names = [name for name in dict.fromkeys(watched) if name in _made(before) and name in _made(after)]
    try:
        with OrtRunner(with_outputs(before, names), folder=folder, threads=1, libraries=libraries) as runner:
            feeds = _runnable(runner, before) if samples is None else _given(samples, before)
            expected = [runner(feed) for feed in feeds]
    except ModelError as error:
        logger.warning("what the model computes is not compared with what it computed before: %s", error)
        return
    with OrtRunner(
        with_outputs(after, names), folder=folder, threads=1, name="the changed model", libraries=libraries
    ) as runner:
        for feed, values in zip(feeds, expected, strict=True):
            if not _same(values, runner(feed)):
                _refuse_different(before, after, feed, folder, libraries)


def _refuse_different(
    before: ModelProto, after: ModelProto, feed: Feed, folder: str | Path | None, libraries: Sequence[Path]
) -> None:
    """The first tensor that differs, in the order of the graph, and who makes it."""
    makers = {name: node for node in before.graph.node for name in node.output if name in _made(after)}
    names = [name for name in makers if name]
    with (
        OrtRunner(with_outputs(before, names), folder=folder, threads=1, libraries=libraries) as first,
        OrtRunner(with_outputs(after, names), folder=folder, threads=1, libraries=libraries) as second,
    ):
        expected, again, found = first(feed), first(feed), second(feed)
    for name in names:
        if not _same(expected[name], again[name]):
            logger.warning("what the model computes is random from %s on, and is not compared", label(makers[name]))
            return
        if not _same(expected[name], found[name]):
            raise ModelError(
                f"{label(makers[name])}: {name!r} is something else after the model was changed"
                f"{_difference(expected[name], found[name])}; export the model again with a newer opset"
            )
    raise ModelError("the model's outputs are something else after it was changed, while no node's are")


def _given(samples: Iterable[Feed], model: ModelProto) -> list[dict[str, np.ndarray]]:
    """The first of the samples, and of them the first rows where the model leaves the first axis of all inputs open."""
    shapes = [value.type.tensor_type.shape.dim for value in _inputs(model)]
    is_open = all(dims and not dims[0].dim_value for dims in shapes)
    return [
        {name: array[:ROWS] if is_open else array for name, array in feed.items()} for feed in islice(samples, SAMPLES)
    ]


def _inputs(model: ModelProto) -> list[ValueInfoProto]:
    """Those that are to be fed: in old files, constants are among the inputs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _runnable(runner: OrtRunner, model: ModelProto) -> list[dict[str, np.ndarray]]:
    """Random samples that the model takes; the first ModelError where there are none."""
    problem: ModelError | None = None
    for size, spread in product(SIZES, ("normal", "uniform", "ones")):
        try:
            feeds = [dict(_random(model, size, spread, seed)) for seed in range(SAMPLES)]
            for feed in feeds:
                runner(feed)
        except ModelError as error:
            problem = problem or error
        else:
            return feeds
    assert problem is not None
    raise problem


def _random(model: ModelProto, size: int, spread: str, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """A value for each input; axes that are left open are 2 if they come first, else ``size``, as often as named."""
    rng = np.random.default_rng(seed)
    named: dict[str, int] = {}
    for value in _inputs(model):
        tensor = value.type.tensor_type
        shape = []
        for position, dim in enumerate(tensor.shape.dim):
            length = dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else 0
            if not length:
                length = named.setdefault(dim.dim_param or f"{value.name} {position}", size if position else 2)
            shape.append(length)
        if math.prod(shape) > MOST_ELEMENTS:
            raise ModelError(f"input {value.name!r} of shape {shape} is too large to try the model on random values")
        dtype = dtype_of(tensor.elem_type, value.name)
        if spread == "ones":
            yield value.name, np.ones(shape, dtype)
        elif dtype.kind == "f":
            drawn = rng.normal(size=shape) if spread == "normal" else rng.uniform(size=shape)
            yield value.name, drawn.astype(dtype)
        else:
            yield value.name, rng.integers(0, 2, shape).astype(dtype)


def _made(model: ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output if name}


def _same(first: Any, second: Any) -> bool:
    """Two tensors, or two sequences or maps of them: do they agree, but for rounding?"""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_same, first, second))
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f":
        return bool((a == b).all())
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return False
    return bool((np.abs(a[finite] - b[finite]) <= TOLERANCE * np.abs(a[finite]).max(initial=0)).all())


def _difference(first: Any, second: Any) -> str:
    """In what two tensors differ, where that is quickly said."""
    if not isinstance(first, np.ndarray) or not isinstance(second, np.ndarray):
        return ""
    if first.shape != second.shape or first.dtype != second.dtype:
        return f" ({first.dtype} {first.shape} before, {second.dtype} {second.shape} after)"
    if first.dtype.kind not in "fiu":
        return ""
    with np.errstate(invalid="ignore"):
        gaps = np.abs(first.astype(np.float64) - second.astype(np.float64))
    return f" (by up to {gaps[np.isfinite(gaps)].max(initial=0):.3g})"

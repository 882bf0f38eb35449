"""The one door for models: a file, a ModelProto or its bytes -> :class:`Model`, which every command works on."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from trtcal.errors import ModelError
from trtcal.files.brief import brief, few
from trtcal.model.batch_axis import (
    Axes,
    batch_size,
    model_inputs,
    model_outputs,
    output_axes,
    set_batch_size,
)
from trtcal.model.calibrated import CalibrationGraph, calibration_graph, refuse_quantized, with_outputs
from trtcal.model.feeding import NOTHING_SAID, Feeding, asked
from trtcal.model.file import load_weights
from trtcal.model.names import NO_ORIGINALS, Originals
from trtcal.model.opset import opset_of, raise_opset
from trtcal.model.prepare import prepared
from trtcal.model.read import check_weights, external_files, load_model, model_of, sha256_of
from trtcal.model.runner import Optimization, OrtRunner, Runner, check_libraries
from trtcal.model.topology import decisive
from trtcal.model.unknown import Unknown, reached, some, unknown_in
from trtcal.spec import InputSpec, OutputSpec

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

LIBRARIES = "ort-library"
"""Where versions of packages are listed, the name of the libraries of custom operators."""

Found = TypeVar("Found")

Source: TypeAlias = "str | os.PathLike[str] | bytes | ModelProto | Model"
"""What a model may be given as: the path of an ONNX file, the content of one, a ModelProto, or a Model."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model as every command works on it. Nobody changes ``proto`` or what is made from it.

    ``name`` is for messages: the path, where there is one. ``files`` are its file, then those that hold its weights;
    there are none where the model was never in a file. ``originals`` says what the file calls nodes, and tensors inside
    If, Loop and Scan, that had to get names of their own (:mod:`trtcal.model.prepare`). ``feeding`` says how the model
    is fed where that is not what its file tells. ``libraries`` are files of custom operators for ONNX Runtime, and
    ``unknown`` says which operators it does not know even so. What is made from the model is made when it is first
    asked for, and kept.
    """

    proto: ModelProto
    name: str
    path: Path | None = None
    files: tuple[Path, ...] = ()
    originals: Originals = NO_ORIGINALS
    feeding: Feeding = NOTHING_SAID
    libraries: tuple[Path, ...] = ()

    __repr__ = brief

    @property
    def folder(self) -> Path | None:
        """Where weights lie that are in files."""
        return None if self.path is None else self.path.parent

    @property
    def short_name(self) -> str:
        """The name without its folders."""
        return self.name if self.path is None else self.path.name

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What samples are to give, without what `Feeding` fixes; ModelError for an input that is no tensor."""
        specs = self._with_name(lambda proto: model_inputs(proto, self.feeding.axes))
        found = tuple(spec for spec in specs if spec.name not in self.feeding.fixed)
        if not found:
            raise ModelError(f"{self.name}: every input is fixed (--input), and so no sample could differ from another")
        return found

    @cached_property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """What it answers with, as far as the file says."""
        return self._with_name(model_outputs)

    @cached_property
    def batch_size(self) -> int | None:
        """The batch size that the inputs fix, None where it is dynamic; ModelError where they disagree."""
        return self._with_name(lambda proto: batch_size(proto, self.inputs))

    @cached_property
    def output_axes(self) -> Axes:
        """Which axis of each output counts samples; None where none does, or nobody can tell."""
        found = self.feeding.outputs
        return output_axes(self.proto, self.inputs) if found is None else found

    @property
    def shapes(self) -> dict[str, Any]:
        """Input -> what a model is run with, for an account of it: the shape of a sample, in that of the input ("N" for
        the batch axis) where that is another than the first, and what is fixed.
        """
        shapes: dict[str, Any] = {
            spec.name: list(spec.full("N")) if spec.axis else list(spec.shape) for spec in self.inputs
        }
        for name, value in self.feeding.fixed.items():
            digest = hashlib.sha256(value.tobytes()).hexdigest()
            shapes[name] = f"= {value.reshape(-1)[0] if value.size == 1 else digest}"
        return shapes

    @property
    def by_rows(self) -> bool:
        """Are samples run one by one wherever the model runs, since not all inputs count them on the first axis?"""
        return bool(self.feeding.fixed) or any(spec.axis != 0 for spec in self.inputs)

    def fed(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Samples, ``{input: (N, ...)}``, -> what the model takes; a whole input is one sample alone."""
        specs = {spec.name: spec for spec in self.inputs}
        made = {name: specs[name].fed(array) if name in specs else array for name, array in rows.items()}
        return {**made, **self.feeding.fixed}

    def asked(self, batch_axes: Sequence[str] = (), inputs: Sequence[str] = ()) -> Model:
        """The model fed as ``--batch-axis NAME=AXIS`` and ``--input NAME=VALUE`` say; SettingError if it cannot be."""
        if not batch_axes and not inputs:
            return self
        return replace(self, feeding=self._with_name(lambda proto: asked(proto, batch_axes, inputs)))

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the files, or else of the serialized model."""
        return sha256_of(self.files) if self.files else hashlib.sha256(self.proto.SerializeToString()).hexdigest()

    @cached_property
    def calibrated(self) -> CalibrationGraph:
        """What there is to calibrate; ModelError for a model that is quantized already."""
        self._with_name(refuse_quantized)  # before it is asked what ONNX makes of pairs behind unknown operators
        lost = self.unknown.tensors
        return self._with_name(lambda proto: calibration_graph(proto, self.folder, lost=lost, part=self.reached))

    @cached_property
    def unknown(self) -> Unknown:
        """Operators that ONNX Runtime does not know, and what depends on them."""
        return self._with_name(lambda proto: unknown_in(proto, self.libraries))

    def reached(self, made: ModelProto) -> ModelProto:
        """The model, or one that was made from it -> what of it ONNX Runtime can compute, itself where that is all."""
        return reached(made, self.unknown.ops, self.unknown.ends) if self.unknown else made

    def for_judging(self) -> Model:
        """The model as it can be compared with another: what of it ONNX Runtime can compute, itself where that is all.

        Its outputs are the others, or where there are none what goes into operators that ONNX Runtime does not know; a
        warning says so. ModelError where that is nothing, and as `refuse_faulty`.
        """
        self.tell(judged=True)
        if not self.unknown:
            return self
        axes = {spec.name: spec.axis for spec in self.inputs}  # which the outputs that are gone may have told
        feeding = replace(self.feeding, axes={**self.feeding.axes, **axes})
        return replace(self, proto=self.reached(self.proto), feeding=feeding)

    def runner(
        self,
        made: ModelProto | None = None,
        *,
        optimization: Optimization = "disabled",
        threads: int | None = None,
    ) -> Runner:
        """A runner for samples of the model, or of one that was ``made`` from it, as `OrtRunner`."""
        proto = self.whole if made is None else made
        return for_rows(OrtRunner(proto, optimization=optimization, threads=threads, libraries=self.libraries), self)

    @cached_property
    def library_versions(self) -> dict[str, str]:
        """`library_versions` of its own."""
        return library_versions(self.libraries)

    def refuse_faulty(self) -> None:
        """ModelError, with the node, for an operator of a newer opset than the model's, or in other letters."""
        if self.unknown.fault:
            raise ModelError(f"{self.name}: {self.unknown.fault}")

    def tell(self, *, judged: bool) -> None:
        """Warn of operators that ONNX Runtime does not know: what is not calibrated, or not ``judged``.

        ModelError where no tensor can be computed without them, or none that there is to judge, and as `refuse_faulty`.
        """
        found = self.unknown
        if not found:
            return
        self.refuse_faulty()
        if not found.reaches:
            raise ModelError(
                f"{self.name}: no floating-point tensor can be computed from its inputs without operators that ONNX "
                f"Runtime does not know: {found}{found.advice}"
            )
        if judged and found.missing and not found.ends:
            raise ModelError(
                f"{self.name}: there is nothing to compare: its outputs, and all that operators read which ONNX "
                f"Runtime does not know, depend on these alone: {found}{found.advice}"
            )
        text = self.compared if judged else self._uncalibrated()
        if text:
            logger.warning("%s: %s", self.name, text)

    @property
    def compared(self) -> str:
        """What INT8 can be compared with FP32 on, in words; nothing where that are all outputs."""
        found = self.unknown
        if not found.missing:
            return ""
        whole = len(found.missing) == len(self.outputs)
        return (
            f"ONNX Runtime does not know {found}, and cannot compute {some(found.missing)}; compared "
            f"{'is what goes in there' if whole else 'are the other outputs'}: "
            f"{some([value.name for value in found.ends])}{found.advice}"
        )

    def _uncalibrated(self) -> str:
        found = self.unknown
        lost = found.uncalibrated or tuple(found.tensors)
        them = "them" if len(found.ops) > 1 else "it"
        noun = f"tensor that depends on {them} gets" if len(lost) == 1 else f"tensors that depend on {them} get"
        return f"ONNX Runtime does not know {found}; {len(lost)} {noun} no range: {some(lost)}{found.advice}"

    @cached_property
    def whole(self) -> ModelProto:
        """The model with all its weights in memory; ModelError where a file of them cannot be read."""
        return self.proto if self.path is None or not self.has_external_data else load_weights(self.proto, self.path)

    @cached_property
    def has_external_data(self) -> bool:
        """Do weights lie in files beside the model's?"""
        return bool(external_files(self.proto))

    def with_weights(self) -> Model:
        """The model with all its weights in memory, itself where they are: for processes that have no such files."""
        return replace(self, proto=self.whole) if self.has_external_data else self

    def decisive(self, names: Collection[str]) -> frozenset[str]:
        """Some of its tensors -> those that its outputs are, or are made from by tensors that are not among these.

        A nan in one of them is what the model answers with; one anywhere else the graph itself replaces.
        """
        outputs = [spec.name for spec in self.outputs]
        return frozenset(decisive(self.proto.graph, outputs, names) if names else ())

    def fed_like(self, other: Model) -> Model:
        """The model fed as another of the same inputs is, whose axes somebody chose and fixed."""
        names = {value.name for value in self.proto.graph.input}
        axes = {name: axis for name, axis in other.feeding.axes.items() if name in names}
        fixed = {name: value for name, value in other.feeding.fixed.items() if name in names}
        return replace(self, feeding=Feeding(axes, other.feeding.asked & names, fixed)) if axes or fixed else self

    def with_batch_size(self, size: int | None) -> Model:
        """The model for batches of ``size``, itself where it takes them; with None, for any number of samples."""
        if self.batch_size in (None, size):
            return self
        # In the file that comes of it, sizes and names that the axes were known by are gone.
        axes = {spec.name: spec.axis for spec in self.inputs}
        feeding = replace(self.feeding, axes={**self.feeding.axes, **axes}, outputs=self.output_axes)
        return replace(self, proto=set_batch_size(self.proto, size, self.folder, self.inputs), feeding=feeding)

    def with_opset(self, opset: int, samples: Iterable[Mapping[str, np.ndarray]] | None = None) -> Model:
        """The model in at least this opset, itself where it is; ModelError where it would compute something else.

        That is looked for on ``samples``, ``{input: (N, ...)}``, or on random ones: see
        :func:`trtcal.model.opset.raise_opset`.
        """
        if opset_of(self.proto) >= opset:
            return self
        if samples is not None and self.by_rows:
            samples = (self.fed(row) for batch in samples for row in single_rows(batch))

        def look(proto: ModelProto) -> ModelProto:
            return raise_opset(
                proto, opset, samples=samples, folder=self.folder, libraries=self.libraries, part=self.reached
            )

        return replace(self, proto=self._with_name(look))

    def _with_name(self, look: Callable[[ModelProto], Found]) -> Found:
        try:
            return look(self.proto)
        except ModelError as error:
            raise ModelError(f"{self.name}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: without what can be made again."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def library_versions(files: Sequence[str | os.PathLike[str]]) -> dict[str, str]:
    """Libraries of custom operators -> what results depend on besides packages' versions: their content, if any."""
    return {LIBRARIES: " ".join(sha256_of([file]) for file in files)} if files else {}


def single_rows(batch: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Samples, ``{input: (N, ...)}``, -> each of them, ``{input: (1, ...)}``."""
    for row in range(len(next(iter(batch.values())))):
        yield {name: array[row : row + 1] for name, array in batch.items()}


def open_model(
    source: Source,
    name: str = "model",
    *,
    path: str | os.PathLike[str] | None = None,
    libraries: Sequence[str | os.PathLike[str]] = (),
) -> Model:
    """A path, the content of an ONNX file, a ModelProto or a Model -> a Model.

    ``name`` stands for a model without a path in messages; ``path`` says which file's content is given: weights beside
    that may be missing until somebody wants them. ``libraries`` are files of custom operators for ONNX Runtime.
    ModelError, with the name, for what is damaged, not ONNX or older than opset 9, and for weights in files that are
    missing or that nobody has loaded into a ModelProto; SettingError for a library that cannot be loaded.
    """
    if libraries:
        return replace(open_model(source, name, path=path), libraries=check_libraries(libraries))
    if isinstance(source, Model):
        return source
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        proto = load_model(path)
        files = (path, *(path.parent / file for file in external_files(proto)))
        return _opened(proto, str(path), path, files, ours=True)
    if not isinstance(source, (bytes, bytearray, memoryview)) and not hasattr(source, "SerializeToString"):
        kind = type(source).__name__
        raise TypeError(f"expected a path, the content of an ONNX file, a ModelProto or a Model, got {kind}")
    ours = isinstance(source, bytes)
    if path is None:
        return _opened(model_of(source, name), name, ours=ours)
    path = Path(path)
    proto = model_of(source, str(path), in_file=True)
    names = external_files(proto)
    for file in names:
        if (path.parent / file).exists():
            check_weights(path, file)
    return _opened(proto, str(path), path, (path, *(path.parent / file for file in names)), ours=ours)


def _opened(
    proto: ModelProto, name: str, path: Path | None = None, files: tuple[Path, ...] = (), *, ours: bool
) -> Model:
    try:
        proto, originals = prepared(proto, ours=ours, folder=None if path is None else path.parent)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    return Model(proto, name, path, files, originals)


class FloatRunner:
    """Runs the FP32 model on one sample and answers with every float tensor to calibrate, inputs first.

    With ``only``, of these tensors alone. A batch size that is built into the graph is filled with copies of the
    sample, where `trtcal.passes.sharing` has shown that this changes no range.
    """

    def __init__(self, model: Model, only: Iterable[str] | None = None) -> None:
        self._model, self._copies = model, model.feeding.copies
        single = model if self._copies > 1 else model.with_batch_size(1)
        if single is not model:
            logger.info("%s: has the batch size %d; running it with 1", model.name, model.batch_size)
        if only is None:
            visible, proto = single.calibrated.visible, single.calibrated.model
        else:
            visible = tuple(only)
            proto = with_outputs(single.reached(single.proto), visible)
        runner = OrtRunner(proto, threads=1, folder=model.folder, name=model.name, libraries=model.libraries)
        floats = {spec.name for spec in model.inputs if np.issubdtype(spec.dtype, np.floating)}
        floats |= {name for name, value in model.feeding.fixed.items() if np.issubdtype(value.dtype, np.floating)}
        self._inputs = tuple(name for name in visible if name in floats)
        inputs = {value.name for value in model.proto.graph.input}
        runner.outputs = runner.floats(name for name in visible if name not in inputs)
        self._runner = runner

    def __call__(self, batch: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """One sample, ``{input: (1, ...)}`` -> its tensors in topological order."""
        rows: Mapping[str, np.ndarray] = batch
        if self._copies > 1:
            rows = {name: np.repeat(array, self._copies, axis=0) for name, array in batch.items()}
        answer = self._runner(self._model.fed(rows))
        given = {**batch, **self._model.feeding.fixed}
        return {**{name: given[name] for name in self._inputs}, **answer}

    def decisive(self, names: Collection[str]) -> Collection[str]:
        """`Model.decisive`."""
        return self._model.decisive(names)

    def __enter__(self) -> FloatRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()


class ByRow:
    """A runner of a `Model.by_rows` model, for batches of samples, ``{input: (N, ...)}``: each sample runs by itself.

    Outputs have their samples on the first axis as well, wherever the model has them.
    """

    def __init__(self, runner: Runner, model: Model) -> None:
        self._runner, self._model = runner, model

    def __call__(self, batch: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """Samples -> their outputs; ModelError where these differ in shape, and so cannot stand in one array."""
        answers = [self._runner(self._model.fed(row)) for row in single_rows(batch)]
        return {name: self._stacked(name, [answer[name] for answer in answers]) for name in answers[0]}

    def _stacked(self, name: str, arrays: list[np.ndarray]) -> np.ndarray:
        axis = self._model.output_axes.get(name, 0)
        rows = []
        for array in arrays:
            counts = axis is not None and axis < array.ndim and array.shape[axis] == 1
            rows.append(np.moveaxis(array, axis, 0) if counts and axis is not None else array[None])
        shapes = {array.shape for array in rows}
        if len(shapes) > 1:
            found = few([str(shape) for shape in sorted(shapes)])
            raise ModelError(f"{self._model.name}: output {name!r} has other shapes for other samples ({found})")
        return np.concatenate(rows)

    def __enter__(self) -> ByRow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._runner.__exit__(kind, error, trace)


def for_rows(runner: Runner, model: Model) -> Runner:
    """A runner of the model's graph, or of one made from it -> one that takes samples, ``{input: (N, ...)}``."""
    return ByRow(runner, model) if model.by_rows else runner

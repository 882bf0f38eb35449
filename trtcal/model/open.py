"""The one door for models: a file, a ModelProto or its bytes -> :class:`Model`, which every command works on."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.batch_axis import batch_size, model_inputs, model_outputs, set_batch_size
from trtcal.model.calibrated import CalibrationGraph, calibration_graph, with_outputs
from trtcal.model.file import load_weights
from trtcal.model.names import NO_ORIGINALS, Originals
from trtcal.model.opset import opset_of, raise_opset
from trtcal.model.prepare import prepared
from trtcal.model.read import check_weights, external_files, load_model, model_of, sha256_of
from trtcal.model.runner import OrtRunner
from trtcal.model.topology import decisive
from trtcal.spec import InputSpec, OutputSpec

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

Source: TypeAlias = "str | os.PathLike[str] | bytes | ModelProto | Model"
"""What a model may be given as: the path of an ONNX file, the content of one, a ModelProto, or a Model."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model as every command works on it. Nobody changes ``proto`` or what is made from it.

    ``name`` is for messages: the path, where there is one. ``files`` are its file, then those that hold its weights;
    there are none where the model was never in a file. ``originals`` says what the file calls nodes, and tensors inside
    If, Loop and Scan, that had to get names of their own (:mod:`trtcal.model.prepare`). What is made from the model is
    made when it is first asked for, and kept.
    """

    proto: ModelProto
    name: str
    path: Path | None = None
    files: tuple[Path, ...] = ()
    originals: Originals = NO_ORIGINALS

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
        """What is to be fed; ModelError for an input that is no tensor or has no batch axis."""
        return self._with_name(model_inputs)

    @cached_property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """What it answers with, as far as the file says."""
        return self._with_name(model_outputs)

    @cached_property
    def batch_size(self) -> int | None:
        """The batch size that the inputs fix, None where it is dynamic; ModelError where they disagree."""
        return self._with_name(batch_size)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the files, or else of the serialized model."""
        return sha256_of(self.files) if self.files else hashlib.sha256(self.proto.SerializeToString()).hexdigest()

    @cached_property
    def calibrated(self) -> CalibrationGraph:
        """What there is to calibrate; ModelError for a model that is quantized already."""
        return self._with_name(lambda proto: calibration_graph(proto, self.folder))

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
        return frozenset(decisive(self.calibrated.model.graph, outputs, names) if names else ())

    def with_batch_size(self, size: int | None) -> Model:
        """The model for batches of ``size``, itself where it takes them; with None, for any number of samples."""
        if self.batch_size in (None, size):
            return self
        return replace(self, proto=set_batch_size(self.proto, size, self.folder))

    def with_opset(self, opset: int, samples: Iterable[Mapping[str, np.ndarray]] | None = None) -> Model:
        """The model in at least this opset, itself where it is; ModelError where it would compute something else.

        That is looked for on ``samples``, or on random ones: see :func:`trtcal.model.opset.raise_opset`.
        """
        if opset_of(self.proto) >= opset:
            return self
        raised = self._with_name(lambda proto: raise_opset(proto, opset, samples=samples, folder=self.folder))
        return replace(self, proto=raised)

    def _with_name(self, look: Callable[[ModelProto], Found]) -> Found:
        try:
            return look(self.proto)
        except ModelError as error:
            raise ModelError(f"{self.name}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: without what can be made again."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def open_model(source: Source, name: str = "model", *, path: str | os.PathLike[str] | None = None) -> Model:
    """A path, the content of an ONNX file, a ModelProto or a Model -> a Model.

    ``name`` stands for a model without a path in messages; ``path`` says which file's content is given: weights beside
    that may be missing until somebody wants them. ModelError, with the name, for what is damaged, not ONNX or
    older than opset 9, and for weights in files that are missing or that nobody has loaded into a ModelProto.
    """
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
        proto, originals = prepared(proto, ours=ours)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    return Model(proto, name, path, files, originals)


class FloatRunner:
    """Runs the FP32 model on one sample and answers with every float tensor to calibrate, inputs first.

    With ``only``, of these tensors alone. A batch size that cannot be taken out of the graph is filled with copies of
    the sample. That changes no range: every element is there as many times more.
    """

    def __init__(self, model: Model, only: Iterable[str] | None = None) -> None:
        self._model = model
        self._only = None if only is None else tuple(only)
        self._copies = 1
        self._lock = threading.Lock()
        single = model.with_batch_size(1)
        if single is not model:
            logger.info("%s: has the batch size %d; running it with 1", model.name, model.batch_size)
        try:
            self._open(single)
        except ModelError as error:
            self._fall_back(error)

    def __call__(self, batch: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """One sample, ``{input: (1, ...)}`` -> its tensors in topological order."""
        copies = self._copies
        try:
            answer = self._run(batch, copies)
        except ModelError as error:
            with self._lock:
                if self._copies == copies:  # no other thread has fallen back meanwhile
                    self._fall_back(error)
            answer = self._run(batch, self._copies)
        return {**{name: batch[name] for name in self._inputs}, **answer}

    def decisive(self, names: Collection[str]) -> Collection[str]:
        """`Model.decisive`."""
        return self._model.decisive(names)

    def _run(self, batch: Mapping[str, np.ndarray], copies: int) -> dict[str, np.ndarray]:
        if copies == 1:
            return self._runner(batch)
        return self._runner({name: np.repeat(array, copies, axis=0) for name, array in batch.items()})

    def _open(self, model: Model) -> None:
        if self._only is None:
            visible, proto = model.calibrated.visible, model.calibrated.model
        else:
            visible, proto = self._only, with_outputs(model.proto, self._only)
        runner = OrtRunner(proto, threads=1, folder=model.folder, name=model.name)
        fed = {spec.name for spec in model.inputs if np.issubdtype(spec.dtype, np.floating)}
        self._inputs = tuple(name for name in visible if name in fed)
        runner.outputs = runner.floats(name for name in visible if name not in fed)
        self._runner = runner

    def _fall_back(self, error: ModelError) -> None:
        """From batch 1 to the batch size of the file; where that is 1 already, the error stands."""
        fixed = self._model.batch_size or 1
        if fixed == 1 or self._copies > 1:
            raise error
        logger.warning(
            "%s: its batch size %d is built into the graph; running each sample as a batch of %d copies",
            self._model.name,
            fixed,
            fixed,
        )
        self._open(self._model)
        self._copies = fixed

    def __enter__(self) -> FloatRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

"""ONNX file -> what to calibrate, and what runs it sample by sample."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trtcal.errors import ModelError
from trtcal.model.batch_axis import batch_size, set_batch_size
from trtcal.model.calibrated import CalibrationGraph, calibration_graph
from trtcal.model.read import load_model
from trtcal.model.runner import OrtRunner

logger = logging.getLogger(__name__)


def open_graph(path: str | Path) -> CalibrationGraph:
    """ONNX file -> what to calibrate, runnable sample by sample whatever batch size the file fixes."""
    graph = calibration_graph(path)
    fixed = batch_size(graph.model)
    if fixed not in (None, 1):
        logger.info("%s: has the batch size %d; running it with 1", path, fixed)
        graph = calibration_graph(path, set_batch_size(graph.model, 1, graph.path.parent))
    return graph


class FloatRunner:
    """Runs the FP32 model on one sample and answers with every float tensor to calibrate, inputs first.

    A batch size that cannot be taken out of the graph is filled with copies of the sample. That changes no
    range: every element is there as many times more.
    """

    def __init__(self, graph: CalibrationGraph) -> None:
        self._graph = graph
        self._copies = 1
        self._lock = threading.Lock()
        try:
            self._open(graph)
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

    def _run(self, batch: Mapping[str, np.ndarray], copies: int) -> dict[str, np.ndarray]:
        if copies == 1:
            return self._runner(batch)
        return self._runner({name: np.repeat(array, copies, axis=0) for name, array in batch.items()})

    def _open(self, graph: CalibrationGraph) -> None:
        runner = OrtRunner(graph.model, threads=1, folder=graph.path.parent, name=str(graph.path))
        fed = {spec.name for spec in graph.inputs if np.issubdtype(spec.dtype, np.floating)}
        self._inputs = tuple(name for name in graph.visible if name in fed)
        runner.outputs = runner.floats(name for name in graph.visible if name not in fed)
        self._runner = runner

    def _fall_back(self, error: ModelError) -> None:
        """From batch 1 to the batch size of the file; where that is 1 already, the error stands."""
        fixed = batch_size(load_model(self._graph.path)) or 1
        if fixed == 1 or self._copies > 1:
            raise error
        logger.warning(
            "%s: its batch size %d is built into the graph; running each sample as a batch of %d copies",
            self._graph.path,
            fixed,
            fixed,
        )
        self._open(calibration_graph(self._graph.path))
        self._copies = fixed

    def __enter__(self) -> FloatRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

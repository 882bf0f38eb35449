"""Runners: batch in, named arrays out.

A :class:`Runner` is anything that takes a mapping of input name -> array and answers with a mapping of
tensor name -> array, and is a context manager. :class:`OrtRunner` is the one for any CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from trtcal.errors import ModelError

if TYPE_CHECKING:
    from onnx import ModelProto

Optimization = Literal["disabled", "extended", "all"]

_FLOATS = {"tensor(float)", "tensor(float16)", "tensor(double)", "tensor(bfloat16)"}
_FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


class Runner(Protocol):
    """Batch -> {tensor: array}, in the graph's order where several tensors are visible."""

    def __call__(self, batch: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """Run one batch; arrays of the answer belong to the caller."""
        ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class OrtRunner:
    """ONNX Runtime on the CPU; safe to call from several threads at once.

    ``outputs`` chooses tensors to return (default: the model's outputs). ``optimization``:

    * ``"disabled"``: every tensor is computed as written, none is fused away; a Q/DQ graph equals plain
      fake-quant arithmetic bit for bit.
    * ``"extended"``: operators are fused, Q/DQ pairs are left alone.
    * ``"all"``: as fast as ONNX Runtime can; not for Q/DQ graphs, whose arithmetic it changes.

    ``folder`` is where weights lie that a model in memory keeps in files; ``name`` stands for it in messages.
    ``threads`` is the number inside one operator (default: all cores). A model that ONNX Runtime cannot
    load or run raises ModelError with its own message.
    """

    def __init__(
        self,
        model: str | Path | bytes | ModelProto,
        *,
        outputs: Iterable[str] | None = None,
        optimization: Optimization = "disabled",
        threads: int | None = None,
        folder: str | Path | None = None,
        name: str | None = None,
    ) -> None:
        import onnxruntime as ort

        self.name = name or (str(model) if isinstance(model, (str, Path)) else "model")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised; it need not be on the screen as well
        options.intra_op_num_threads = threads or 0
        options.graph_optimization_level = {
            "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
            "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
            "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        }[optimization]
        if optimization != "all":
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if not isinstance(model, (str, Path, bytes)):
            if folder is not None:
                model = _with_external_data(model, Path(folder), options)
            model = model.SerializeToString()
        try:
            session = ort.InferenceSession(
                os.fspath(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base but this one
            raise ModelError(f"{self.name}: ONNX Runtime cannot load it: {_first_line(error)}") from error
        self._session: Any = session
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = 4
        self._types = {output.name: output.type for output in session.get_outputs()}
        wanted = list(self._types if outputs is None else outputs)
        unknown = [name for name in wanted if name not in self._types]
        if unknown:
            raise ModelError(f"{self.name}: has no output {unknown[0]!r}; it has {', '.join(self._types)}")
        self.outputs: tuple[str, ...] = tuple(wanted)

    def __call__(self, batch: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """Run one batch; ModelError carries ONNX Runtime's message and the shapes that were fed."""
        if self._session is None:
            raise RuntimeError("this OrtRunner is closed")
        try:
            # ONNX Runtime takes an empty list of outputs for all of them.
            values = self._session.run(list(self.outputs), dict(batch), self._run_options) if self.outputs else []
        except Exception as error:
            fed = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in batch.items())
            raise ModelError(f"{self.name}: ONNX Runtime cannot run it on {fed}: {_first_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))

    def floats(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the names that are floating-point outputs here, in the given order."""
        return tuple(name for name in names if self._types.get(name) in _FLOATS)

    def close(self) -> None:
        """Give the session's memory back."""
        self._session = None

    def __enter__(self) -> OrtRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _with_external_data(model: ModelProto, folder: Path, options: Any) -> ModelProto:
    """Make weights that lie beside the model's file findable for a session that gets the model as bytes."""
    import onnx
    import onnxruntime as ort

    if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 21):  # which brought the option
        options.add_session_config_entry(_FOLDER_OPTION, str(folder.resolve()))
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.load_external_data_for_model(copy, str(folder))
    return copy

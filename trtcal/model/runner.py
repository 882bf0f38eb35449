"""Runners: batch in, named arrays out.

A :class:`Runner` is anything that takes a mapping of input name -> array and answers with a mapping of
tensor name -> array, and is a context manager. :class:`OrtRunner` is the one for any CPU.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from trtcal.errors import ModelError, SettingError
from trtcal.model.nodes import live

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

logger = logging.getLogger(__name__)

Optimization = Literal["disabled", "extended", "all"]

_NEW_OPSET = re.compile(
    r"Opset (?P<opset>\d+) is under development.*support for domain (?P<domain>\S+) is till opset (?P<newest>\d+)", re.S
)
_FLOATS = {"tensor(float)", "tensor(float16)", "tensor(double)"}
_PLAIN = {1: 4, 10: 2, 11: 8, 2: 1, 3: 1, 6: 4, 7: 8}  # float32, 16, 64, uint8, int8, int32, int64 in ONNX: bytes
_LARGE = 4096  # elements; constants below are shapes and axes, which ONNX Runtime looks at when it loads a model
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
    load or run raises ModelError with its own message. ``libraries`` are files of custom operators. Of a model in
    memory, nodes that no output depends on are neither loaded nor run, unless ``all_nodes`` asks whether they could be.
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
        libraries: Sequence[Path] = (),
        all_nodes: bool = False,
    ) -> None:
        import onnxruntime as ort

        self._weights: list[Any] = []
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
        _register(options, libraries)
        if folder is not None and not isinstance(model, (str, Path, bytes)):
            model = _with_external_data(model, Path(folder), options)
        try:
            if not isinstance(model, (str, Path, bytes)):
                model, self._weights = _without_weights(model, options, all_nodes)
            session = ort.InferenceSession(
                os.fspath(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base but this one
            raise ModelError(f"{self.name}: {_refusal(error, ort.__version__)}") from error
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
        """Those of the names that are floating-point outputs here, in the given order.

        bfloat16 is not among them, since ONNX Runtime has no NumPy array for it; the log names such outputs.
        """
        names = list(names)
        beyond = [name for name in names if self._types.get(name) == "tensor(bfloat16)"]
        if beyond:
            logger.warning(
                "%s: left out, since ONNX Runtime hands no bfloat16 to NumPy: %s; export the model in float32",
                self.name,
                ", ".join(beyond),
            )
        return tuple(name for name in names if self._types.get(name) in _FLOATS)

    def close(self) -> None:
        """Give the session's memory back."""
        self._session, self._weights = None, []

    def __enter__(self) -> OrtRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()


def check_libraries(files: Sequence[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """Files -> their paths; SettingError for one that ONNX Runtime cannot load as a library of custom operators."""
    import onnxruntime as ort

    found = tuple(Path(file).absolute() for file in files)
    for given, file in zip(files, found, strict=True):
        if not file.is_file():
            raise SettingError(f"--ort-library {os.fspath(given)}: there is no such file")
    _register(ort.SessionOptions(), found)
    return found


def _register(options: Any, libraries: Iterable[Path]) -> None:
    for file in libraries:
        try:
            options.register_custom_ops_library(os.fspath(file))
        except Exception as error:  # ONNX Runtime's exceptions share no base but this one
            raise SettingError(
                f"--ort-library {file}: ONNX Runtime cannot load it as a library of custom operators: "
                f"{_first_line(error)}"
            ) from error


def _refusal(error: Exception, version: str) -> str:
    """Why ONNX Runtime of this version cannot load a model; what it says of new opsets takes five sentences."""
    found = _NEW_OPSET.search(str(error))
    if found is None:
        return f"ONNX Runtime cannot load it: {_first_line(error)}"
    domain = "" if found["domain"] == "ai.onnx" else f" of {found['domain']}"
    return (
        f"ONNX Runtime cannot load it: the model says opset {found['opset']}{domain}, and ONNX Runtime {version} knows "
        f"opsets up to {found['newest']}; export it again with that one, or update onnxruntime"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _without_weights(model: ModelProto, options: Any, all_nodes: bool) -> tuple[bytes, list[Any]]:
    """Model -> its bytes without large weights, and those, which the session takes as they are.

    They would be copied twice on their way through the bytes. Some versions of ONNX Runtime copy them here as well,
    others go on reading them, so they must live as long as the session.

    ONNX Runtime refuses one that no node of the graph itself reads, and a name that comes twice; such stay where they
    are, as do any that do not fit their shape, for ONNX Runtime to say so.

    Unless it is to be ``all_nodes``, those that no output depends on are left out: beside such, ONNX Runtime 1.18
    without optimization gives other nodes' results wrongly.
    """
    import onnx
    import onnxruntime as ort

    graph = model.graph
    nodes = list(graph.node) if all_nodes else _live(list(graph.node), graph)
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    bare.graph.MergeFrom(
        onnx.GraphProto(
            name=graph.name,
            node=nodes,
            sparse_initializer=graph.sparse_initializer,
            input=graph.input,
            output=graph.output,
            value_info=graph.value_info,
        )
    )
    names, weights = [], []
    read = {name for node in nodes for name in node.input}
    times = Counter(tensor.name for tensor in graph.initializer)
    for tensor in graph.initializer:
        large = tensor.data_type in _PLAIN and math.prod(tensor.dims) >= _LARGE
        movable = large and tensor.name in read and times[tensor.name] == 1
        if not movable or len(tensor.raw_data) != math.prod(tensor.dims) * _PLAIN[tensor.data_type]:
            bare.graph.initializer.append(tensor)
            continue
        names.append(tensor.name)
        weights.append(ort.OrtValue.ortvalue_from_numpy(onnx.numpy_helper.to_array(tensor)))
        outside = bare.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        outside.data_location = onnx.TensorProto.EXTERNAL
        outside.external_data.add(key="location", value="memory")
    options.add_external_initializers(names, weights)
    return bare.SerializeToString(), weights


def _live(nodes: list[NodeProto], graph: GraphProto) -> list[NodeProto]:
    """Those of a graph's nodes that its outputs depend on; all, where that is none."""
    producer = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    needed = live(nodes, producer, (value.name for value in graph.output))
    return [node for number, node in enumerate(nodes) if number in needed] or nodes


def _with_external_data(model: ModelProto, folder: Path, options: Any) -> ModelProto:
    """Make weights that lie beside the model's file findable for a session that gets the model as bytes."""
    import onnx
    import onnxruntime as ort

    if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 21):  # which brought the option
        options.add_session_config_entry(_FOLDER_OPTION, str(folder.resolve()))
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        onnx.load_external_data_for_model(copy, str(folder))
    except (OSError, ValueError) as error:
        files = {
            item.value for each in model.graph.initializer for item in each.external_data if item.key == "location"
        }
        raise ModelError(f"{folder}: weights in {', '.join(sorted(files))} cannot be read: {error}") from error
    return copy

"""An FP32 engine that shows every tensor worth calibrating: sample in, addresses of its tensors on the device out.

TensorRT shows a tensor that is marked as an output, and then fuses no layer across it: values are those of the layers
as the network has them. All outputs need memory at once, so where they do not fit, several engines show a part each.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from calibrators import versions
from calibrators.buffers import Buffers
from calibrators.coverage import FLOATS
from calibrators.memory import DeviceMemory
from calibrators.shapes import Range, Shape, calibration_shapes, network_inputs
from trtcal.errors import BackendError, ModelError
from trtcal.files.brief import few
from trtcal.model.nodes import op_name
from trtcal.model.open import Model
from trtcal.model.topology import MOVES_VALUES
from trtcal.passes.sharing import with_copies
from trtcal.samples.conform import as_dtype

logger = logging.getLogger(__name__)

ALIGNMENT = 512  # bytes; TensorRT asks for 256
SHOWN = 8  # names in a line of the log
SHARE = 2  # of the free device memory, one part is for outputs; TensorRT needs scratch memory besides

# They move values about and change none, so that any of their outputs has its input's counts. TensorRT's parser makes
# no layer of some, and then one tensor has the last of their names.
MOVES = MOVES_VALUES - {"MaxPool"}  # which leaves values out
_FLOAT32 = np.dtype(np.float32)


class Visible(NamedTuple):
    """One tensor of one sample, in float32."""

    name: str
    address: int
    elements: int

    @property
    def kept_bytes(self) -> None:
        """None: the next group takes its place."""
        return


class VisibleEngine:
    """Runs samples through TensorRT in FP32, without TF32, and shows each tensor that there is to calibrate.

    Engines are built at the first sample, for its shapes and those of ``sizes``, and again for shapes outside of all
    before. ``sizes`` is what `calibrators.shapes.extremes` says of the samples to come, where it can be known.
    ``limit`` is how many bytes of outputs may exist at once (default: half of what is free), ``workspace`` that of
    `build_engine`. Scratch memory is there for one engine at a time, however many show a part each.

    A model in FP16 runs as it is: TensorRT is then free to compute any layer in FP16, and the log says so.

    What TensorRT's parser folds into constants, as computations with shapes, is no tensor there and is not shown; the
    log names it. Raises BackendError for a tensor whose shape depends on data, and with TensorRT's words where it
    builds or runs no engine; ModelError for a model that it cannot parse.
    """

    def __init__(
        self,
        model: Model,
        memory: DeviceMemory,
        *,
        limit: int | None = None,
        workspace: int | None = None,
        sizes: Mapping[str, tuple[Shape, Shape]] | None = None,
    ) -> None:
        self._trt = versions.tensorrt()
        self._copies = model.feeding.copies
        self._model, self._memory = model if self._copies > 1 else model.with_batch_size(1), memory
        self._as_it_is = model
        self._specs = {spec.name: spec for spec in model.inputs}
        self._limit, self._workspace, self._sizes = limit, workspace, sizes or {}
        self._builder: Any = None
        self._ranges: dict[str, Range] = {}
        self._parts: list[_Part] = []
        self._buffers = Buffers(memory, slots=1)

    def run(self, sample: Mapping[str, np.ndarray]) -> Iterator[list[Visible]]:
        """One sample, ``{input: (1, ...)}`` -> its tensors in topological order, inputs first, in groups.

        A group's tensors are there when `DeviceMemory.stream` has come so far, until the next group is asked for.
        """
        fed = self._fed(sample)
        shapes = {name: array.shape for name, array in fed.items()}
        if not self._parts or not all(
            all(low <= size <= high for low, size, high in zip(entry.min, shapes[name], entry.max, strict=True))
            for name, entry in self._ranges.items()
        ):
            self._build(sample)
            fed = self._fed(sample)
            shapes = {name: array.shape for name, array in fed.items()}
        inputs, shown = {}, []
        for name, dtype in self._parts[0].inputs.items():
            inputs[name] = self._place(name, fed[name], dtype)
            if name in self._model.calibrated.visible:
                address = inputs[name] if dtype == _FLOAT32 else self._place(f"{name} shown", fed[name], _FLOAT32)
                shown.append(Visible(name, address, sample.get(name, fed[name]).size))  # one of the copies
        if shown:
            yield shown
        for part in self._parts:
            yield self._execute(part, inputs, shapes)
            if len(self._parts) > 1:
                with self._memory.current():
                    self._memory.synchronize()  # no work may be under way in a context that goes
                    part.release_scratch()

    def _fed(self, sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the network takes for a sample, copies and fixed inputs included."""
        rows = {name: np.repeat(array, self._copies, axis=0) for name, array in sample.items()}
        return {name: np.asarray(array, order="C") for name, array in self._model.fed(rows).items()}

    def decisive(self, names: Collection[str]) -> Collection[str]:
        """`trtcal.model.open.Model.decisive`."""
        return self._model.decisive(names)

    def _place(self, place: str, array: np.ndarray, dtype: np.dtype) -> int:
        values = array if dtype.kind == "f" else as_dtype(array, dtype)
        return self._buffers.place_host(0, place, values, dtype, lambda _: None)

    def _execute(self, part: _Part, inputs: Mapping[str, int], shapes: Mapping[str, Shape]) -> list[Visible]:
        with self._memory.current():
            sizes = part.sizes(shapes)
            places, total = _places(sizes)
            arena = self._buffers.device(0, "", total)
            part.run({**inputs, **{name: arena + place for name, place in places.items()}}, self._memory.stream)
        return [Visible(name, arena + places[part.outputs[name]], sizes[part.outputs[name]]) for name in part.outputs]

    def _build(self, sample: Mapping[str, np.ndarray]) -> None:
        """Engines for the sample's shapes and those of the samples before."""
        while True:
            shapes = {name: array.shape for name, array in self._fed(sample).items()}
            self._ranges = {
                name: _wider(self._ranges.get(name) or self._known(name), shape) for name, shape in shapes.items()
            }
            try:
                with self._memory.current():
                    self._build_parts(shapes)
                return
            except (ModelError, BackendError) as error:
                self._free()
                fixed = self._as_it_is.batch_size or 1
                if fixed == 1 or self._copies > 1:
                    raise
                logger.debug("%s: no engine for one sample: %s", self._model.name, error)
                self._model, self._ranges = with_copies(self._as_it_is, sample), {}
                self._copies = self._model.feeding.copies

    def _known(self, name: str) -> Range | None:
        """What the samples to come need of an input, as far as it is known."""
        if name not in self._sizes:
            return None
        low, high = (self._specs[name].full(self._copies, sizes) for sizes in self._sizes[name])
        return Range(low, high, high)

    def _part(self, names: Sequence[str]) -> _Part:
        from calibrators.trtlog import new_builder

        if self._builder is None:
            self._builder = new_builder()
        return _Part(self._trt, self._builder, self._model, names, self._ranges, self._workspace)

    def _build_parts(self, shapes: Mapping[str, Shape]) -> None:
        self._free()
        names = [name for name in self._model.calibrated.visible if name not in shapes]
        part = self._part(names)
        self._parts.append(part)
        for flag in part.halves:
            logger.warning(
                "%s has tensors in %s; TensorRT may run any layer so, and ranges with it", self._model.name, flag
            )
        missing = [name for name in names if name not in part.outputs and name not in part.others]
        if missing:  # and so TensorRT asks for no range of theirs
            some = few(missing, SHOWN)
            logger.info("%s: TensorRT's network lacks %d tensors: %s", self._model.name, len(missing), some)
        largest = {name: entry.max for name, entry in self._ranges.items()}
        sizes = part.sizes(largest)
        limit = self._limit if self._limit is not None else self._memory.vacant() // SHARE
        groups = _groups(part.outputs, sizes, limit)
        if len(groups) > 1:
            logger.info("outputs of %d bytes do not fit; %d engines show a part each", _places(sizes)[1], len(groups))
            self._free()
            del part  # with its scratch memory, which the others need
            for group in groups:
                self._parts.append(self._part(group))

    def _free(self) -> None:
        with self._memory.current():
            self._parts.clear()

    def close(self) -> None:
        """Free engines and buffers; closing twice is allowed."""
        self._free()
        with self._memory.current():
            self._builder = None
        self._buffers.close()

    def __enter__(self) -> VisibleEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Part:
    """One engine; ``outputs``: ONNX name -> the name that TensorRT has for the tensor, in order."""

    def __init__(
        self,
        trt: Any,
        builder: Any,
        model: Model,
        names: Sequence[str],
        ranges: Mapping[str, Range],
        workspace: int | None,
    ) -> None:
        from calibrators.trtlog import LOG, made  # which needs TensorRT, as nothing else here does before it is used

        self._log = LOG
        LOG.clear()
        network = made(lambda: versions.create_network(trt, builder), "a network")
        parser = made(lambda: trt.OnnxParser(network, LOG), "an ONNX parser")
        path = [] if model.path is None else [str(model.path)]  # for weights that lie in files beside it
        if not parser.parse(_plain(model), *path):
            problems = "; ".join(parser.get_error(number).desc() for number in range(parser.num_errors))
            raise ModelError(f"{model.name}: TensorRT's parser cannot read it: {problems or 'no reason given'}")
        inputs = network_inputs(trt, network)
        self.inputs = _dtypes(network)
        fed = {name: entry.opt for name, entry in ranges.items()}
        calibration_shapes(inputs, fed, {}, None)  # raises for data that do not fit
        self.halves = [flag for flag in _halves(network) if hasattr(trt.BuilderFlag, flag)]  # 11 wants none
        self.outputs, self.others = _mark(trt, network, model, names)
        config = made(builder.create_builder_config, "a builder configuration")
        versions.leave_out_tactics(trt, config)
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, with 10 bits of mantissa
        for flag in self.halves:  # else TensorRT 8 refuses a network with these types
            versions.set_flag(trt, config, flag)
        if workspace is not None:
            versions.set_workspace(trt, config, workspace)
        if any(item.dynamic for item in inputs):
            profile = builder.create_optimization_profile()
            for name in self.inputs:
                profile.set_shape(name, ranges[name].min, ranges[name].opt, ranges[name].max)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BackendError(f"{model.name}: TensorRT built no engine that shows its tensors: {LOG.words()}")
        self._runtime = made(lambda: trt.Runtime(LOG), "a runtime")
        self._engine = made(lambda: self._runtime.deserialize_cuda_engine(plan), "an engine of its plan")
        self._context: Any = None
        # An input that nothing shown here depends on may be none of the engine's.
        self._names = {self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)}

    def release_scratch(self) -> None:
        """Give up the context, which holds the engine's scratch memory; `sizes` makes another one."""
        self._context = None

    def sizes(self, shapes: Mapping[str, Shape]) -> dict[str, int]:
        """Shapes of the inputs -> elements of each output, by TensorRT's name."""
        from calibrators.trtlog import made

        if self._context is None:
            self._context = made(self._engine.create_execution_context, "an execution context")
        for name, shape in shapes.items():
            if name in self._names and not self._context.set_input_shape(name, shape):
                raise BackendError(f"TensorRT does not take shape {shape} for input {name!r}: {self._log.words()}")
        sizes = {}
        for name in self.outputs.values():
            shape = tuple(self._context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise BackendError(f"the shape of tensor {name!r} depends on the data; collect its ranges on the CPU")
            sizes[name] = int(np.prod(shape, dtype=np.int64))
        return sizes

    def run(self, addresses: Mapping[str, int], stream: int) -> None:
        """Queue one inference; `sizes` has set the shapes."""
        placed = [self._context.set_tensor_address(name, addresses[name]) for name in self._names]
        if not all(placed) or not self._context.execute_async_v3(stream):
            raise BackendError(f"TensorRT cannot run the engine: {self._log.words()}")


def _mark(trt: Any, network: Any, model: Model, names: Iterable[str]) -> tuple[dict[str, str], frozenset[str]]:
    """Makes just the named float tensors outputs -> ONNX name to TensorRT's name, and the names of other types."""
    tensors = {}
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        for place in range(layer.num_outputs):
            tensor = layer.get_output(place)
            if tensor is not None:
                tensors[tensor.name] = tensor
    for tensor in [network.get_output(number) for number in range(network.num_outputs)]:
        network.unmark_output(tensor)
    moved: dict[str, list[str]] = {}
    for node in model.proto.graph.node:
        if op_name(node) in MOVES:
            moved.setdefault(node.input[0], []).append(node.output[0])
    outputs, others = {}, set()
    for name in names:
        found = _moved_to(name, moved, tensors)
        if found is None:
            continue
        tensor = tensors[found]
        # Marking a bool or a shape makes TensorRT 8 refuse the network, and there is nothing to calibrate in them.
        if tensor.is_shape_tensor or tensor.dtype.name not in FLOATS:
            others.add(name)
            continue
        outputs[name] = found
        if not tensor.is_network_output:
            network.mark_output(tensor)
        if tensor.dtype.name != "FLOAT":
            tensor.dtype = trt.float32
    if not outputs:
        raise BackendError(f"{model.name}: TensorRT's network has none of the tensors to calibrate")
    return outputs, frozenset(others)


def _halves(network: Any) -> list[str]:
    """Network -> names of the builder's flags for the types of 16 bits that its tensors have."""
    flags = {"HALF": "FP16", "BF16": "BF16"}
    tensors = [network.get_input(number) for number in range(network.num_inputs)]
    for layer in [network.get_layer(number) for number in range(network.num_layers)]:
        tensors += [layer.get_output(place) for place in range(layer.num_outputs)]
    found = {tensor.dtype.name for tensor in tensors if tensor is not None}
    return [flag for name, flag in flags.items() if name in found]


def _dtypes(network: Any) -> dict[str, np.dtype]:
    """Network -> what its inputs are fed as."""
    dtypes = {}
    for tensor in [network.get_input(number) for number in range(network.num_inputs)]:
        name = versions.io_dtype(tensor.dtype)
        if name is None:
            raise BackendError(f"input {tensor.name!r} is {tensor.dtype.name}, which NumPy does not have")
        dtypes[tensor.name] = np.dtype(name)
    return dtypes


def _moved_to(name: str, moved: Mapping[str, Sequence[str]], tensors: Mapping[str, Any]) -> str | None:
    """A tensor that TensorRT has under a name further down -> that name."""
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in tensors:
            return name
        waiting += reversed(moved.get(name, ()))
    return None


def _plain(model: Model) -> bytes:
    """The model without outputs that name no type, for which TensorRT's parser asks."""
    from trtcal.model.nodes import copied

    proto = copied(model.proto)
    kept = [value for value in model.proto.graph.output if value.type.WhichOneof("value") is not None]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    return bytes(proto.SerializeToString())


def _places(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Elements of each output -> its place in one allocation, and the bytes of that."""
    places, end = {}, 0
    for name, elements in sizes.items():
        places[name] = end
        end += -(-elements * 4 // ALIGNMENT) * ALIGNMENT
    return places, end


def _groups(outputs: Mapping[str, str], sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """ONNX names in order -> groups of neighbours whose outputs fit the limit; one too large is alone."""
    groups: list[list[str]] = [[]]
    for name in outputs:
        wanted = {outputs[other]: sizes[outputs[other]] for other in [*groups[-1], name]}
        if groups[-1] and _places(wanted)[1] > limit:
            groups.append([])
        groups[-1].append(name)
    return groups


def _wider(before: Range | None, shape: Shape) -> Range:
    """Shapes so far and another -> a range that takes all of them, at its best for the latest."""
    if before is None:
        return Range.of(shape)
    low, high = (
        tuple(map(best, bound, shape)) for best, bound in ((min, before.min), (max, before.max))
    )  # fmt: skip
    return Range(low, shape, high)

"""The networks that a GPU's tests build: one layer for questions, two made here, the demo, and models by path."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trtcal import demo

OPSET = 13  # read by TensorRT 8.5 to 10
GIVEN = "TRTCAL_GPU_MODELS"
"""Variable that holds further models, as `by_path` takes them, one a line: ``--model`` of scripts/gpu_acceptance.py."""

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Model:
    """An ONNX file with samples to calibrate on and, where it has them, labelled ones to judge it on."""

    name: str
    path: Path
    load: Callable[[], dict[str, np.ndarray]]
    load_labelled: Callable[[], tuple[dict[str, np.ndarray], np.ndarray]] | None = None

    @cached_property
    def samples(self) -> dict[str, np.ndarray]:
        """Input -> (samples, ...)."""
        return self.load()

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(iter(self.samples.values())))

    @property
    def data(self) -> bytes:
        """The file's bytes."""
        return self.path.read_bytes()

    def batches(self, rows: Sequence[int] | np.ndarray, size: int) -> list[Batch]:
        """Rows of the samples, in this order, as full batches; what is left over is left out."""
        rows = np.asarray(rows)
        parts = [rows[begin : begin + size] for begin in range(0, len(rows) - size + 1, size)]
        return [{name: np.ascontiguousarray(array[part]) for name, array in self.samples.items()} for part in parts]

    def orders(self, count: int) -> dict[str, np.ndarray]:
        """Two orders of the first ``count`` samples: as given, and with the largest last, which grows most."""
        loudness = np.zeros(min(count, self.count))
        for array in self.samples.values():
            loudness += np.abs(array[: loudness.size].reshape(loudness.size, -1).astype(np.float64)).mean(axis=1)
        return {"given": np.arange(loudness.size), "largest last": np.argsort(loudness, kind="stable")}


def names() -> list[str]:
    """The models' names: the demo first, then those that are given, then two that are made here."""
    return ["demo", *(Path(text.split(",")[0]).stem for text in os.environ.get(GIVEN, "").splitlines()), *MADE]


@cache
def model(name: str) -> Model:
    """One of `names` -> the model."""
    for text in os.environ.get(GIVEN, "").splitlines():
        if (given := by_path(text)).name == name:
            return given
    return demo_model() if name == "demo" else _made(name, *MADE[name]())


def by_path(text: str) -> Model:
    """``MODEL.onnx[,DATA.npz[,LABELLED.npz]]`` -> model; the data lie beside it as calibration.npz and labelled.npz
    where they are not named. Arrays go by input name; ``labels`` holds the labels.
    """
    path, *files = (Path(part) for part in text.split(","))
    data = files[0] if files else path.with_name("calibration.npz")
    labelled = files[1] if len(files) > 1 else path.with_name("labelled.npz")
    for file in (path, data):
        if not file.is_file():
            raise FileNotFoundError(f"--model {text}: there is no {file}")

    def load_labelled() -> tuple[dict[str, np.ndarray], np.ndarray]:
        arrays = _npz(labelled)
        labels = arrays.pop("labels")
        return arrays, labels

    return Model(path.stem, path, lambda: _npz(data), load_labelled if labelled.is_file() else None)


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays.items())


def _demo_labelled() -> tuple[dict[str, np.ndarray], np.ndarray]:
    images, labels = demo.labelled_images()
    return {"image": images}, labels


def demo_model() -> Model:
    """The package's own classifier."""
    return Model("demo", demo.model_path(), lambda: {"image": demo.calibration_images()}, _demo_labelled)


@cache
def large(*, small: bool) -> Model:
    """A network with about the work of a ResNet-18 for timings; a tiny one where nobody looks at them."""
    if small:
        return _made("large", residual((8, 16), 1, 32), (3, 32, 32))
    return _made("large", residual((64, 128, 256, 512), 2, 224), (3, 224, 224))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Of the models' files, for as long as the process lives."""
    return tempfile.TemporaryDirectory(prefix="gpu-tests-")


def _made(name: str, model: bytes, shape: tuple[int, ...]) -> Model:
    path = Path(_folder().name) / f"{name}.onnx"
    path.write_bytes(model)

    def load() -> dict[str, np.ndarray]:
        rng = np.random.default_rng(1)
        gain = rng.uniform(0.3, 2, size=(64, 1, 1, 1)).astype(np.float32)  # so that batches differ in their maxima
        return {"x": rng.standard_normal((64, *shape), np.float32) * gain}

    return Model(name, path, load)


def one_layer(batch: int | None, width: int) -> bytes:
    """A convolution with weight 1: x (batch, 1, 1, width) -> y, equal to it. None: a dynamic batch axis."""
    graph = _Graph()
    graph.add("Conv", ["x", graph.constant(np.ones((1, 1, 1, 1)))], output="y")
    return graph.finish((batch or "N", 1, 1, width))


def residual(stages: Sequence[int] = (16, 32, 64), blocks: int = 2, size: int = 64) -> bytes:
    """Residual blocks as in a ResNet, with random weights of sensible size: x (N, 3, size, size) -> y (N, 10)."""
    graph = _Graph()
    last, channels = graph.relu(graph.conv("x", 3, stages[0], 3, stride=2)), stages[0]
    last = graph.add("MaxPool", [last], kernel_shape=[2, 2], strides=[2, 2])
    for number, wide in enumerate(stages):
        for block in range(blocks):
            stride = 2 if number and not block else 1
            short = last if stride == 1 and wide == channels else graph.conv(last, channels, wide, 1, stride=stride)
            inner = graph.relu(graph.conv(last, channels, wide, 3, stride=stride))
            last, channels = graph.relu(graph.add("Add", [graph.conv(inner, wide, wide, 3), short])), wide
    last = graph.add("Flatten", [graph.add("GlobalAveragePool", [last])])
    graph.add("Gemm", [last, graph.weights(channels, 10)], output="y")
    return graph.finish(("N", 3, size, size))


def branches() -> bytes:
    """What a plain convolutional net has not: Concat, Sigmoid, Tanh, averages, Softmax, MatMul."""
    graph = _Graph()
    left = graph.add("Sigmoid", [graph.conv("x", 8, 16, 3)])
    right = graph.add("Tanh", [graph.conv("x", 8, 16, 1)])
    middle = graph.add("AveragePool", [graph.conv("x", 8, 8, 3)], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    last = graph.add("Concat", [left, right, middle], axis=1)
    last = graph.add("LeakyRelu", [graph.conv(last, 40, 32, 3, stride=2)], alpha=0.1)
    last = graph.add("Mul", [last, graph.add("Sigmoid", [graph.conv(last, 32, 32, 1)])])
    last = graph.add("Flatten", [graph.add("GlobalAveragePool", [last])])
    last = graph.add("Softmax", [graph.add("MatMul", [last, graph.weights(32, 16)])], axis=1)
    graph.add("MatMul", [last, graph.weights(16, 10)], output="y")
    return graph.finish(("N", 8, 16, 16))


MADE: dict[str, Callable[[], tuple[bytes, tuple[int, ...]]]] = {
    "residual": lambda: (residual(), (3, 64, 64)),
    "branches": lambda: (branches(), (8, 16, 16)),
}


class _Graph:
    """Grows an ONNX graph node by node; names of tensors are counted."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._rng = np.random.default_rng(0)

    def add(self, op: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        name = output or f"{op.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f"w_{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def weights(self, inputs: int, *outputs: int) -> str:
        """(inputs, *outputs) values that keep the size of what goes through."""
        return self.constant(self._rng.normal(size=(inputs, *outputs)) / np.sqrt(inputs))

    def conv(self, source: str, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> str:
        fan_in = inputs * kernel * kernel
        weights = self._rng.normal(size=(outputs, inputs, kernel, kernel)) * np.sqrt(1.5 / fan_in)
        bias = self._rng.normal(size=outputs) * 0.1
        return self.add(
            "Conv",
            [source, self.constant(weights), self.constant(bias)],
            kernel_shape=[kernel, kernel],
            pads=[kernel // 2] * 4,
            strides=[stride, stride],
        )

    def relu(self, source: str) -> str:
        return self.add("Relu", [source])

    def finish(self, shape: Sequence[int | str]) -> bytes:
        """Shape of x -> the model's bytes; y's shape is what ONNX infers."""
        import onnx
        from onnx import TensorProto, helper

        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(self._nodes, "g", [x], [y], self._initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        return bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())

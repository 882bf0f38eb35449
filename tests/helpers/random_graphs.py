"""Graphs drawn at random from the ops that networks are made of, all of which a runtime computes; equal seeds give
equal graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
from onnx import ModelProto
from specimens import SAMPLES, Net, Specimen

Shape = tuple[int, ...]
"""Of one sample; the batch comes before it."""


class _Drawing:
    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.net = Net(seed)
        self.opset = self.rng.choice((13, 13, 14, 15, 17))
        self.shapes: dict[str, Shape] = {"x": (self.rng.choice((2, 3, 4)), *[self.rng.choice((4, 6))] * 2)}
        self.shared: dict[tuple[int, ...], str] = {}

    def model(self, nodes: int) -> ModelProto:
        while len(self.net.nodes) < nodes:
            self._draw()
        read = {name for each in self.net.nodes for name in each.input}
        outputs = [name for name in self.shapes if name not in read and name != "x"]
        more = [name for name in self.shapes if name in read and name != "x"]
        if more and self.rng.random() < 0.3:
            outputs.append(self.rng.choice(more))
        self.rng.shuffle(outputs)
        return self.net.model({"x": ["N", *self.shapes["x"]]}, outputs, opset=self.opset)

    def _draw(self) -> None:
        name = self.rng.choice([*self.shapes, *list(self.shapes)[-3:]])
        shape = self.shapes[name]
        steps: list[Callable[[str, Shape], None]] = [self._pointwise, self._constant, self._join, self._moved]
        if len(shape) == 3:
            steps += [self._conv, self._conv, self._conv, self._pool, self._scaled, self._flat]
        else:
            steps += [self._linear, self._linear]
        self.rng.choice(steps)(name, shape)

    def _add(self, name: str, shape: Shape) -> None:
        self.shapes[name] = shape

    def _weights(self, *shape: int, fan_in: int) -> str:
        """New ones, or those of an earlier layer, perhaps behind an Identity."""
        if shape not in self.shared or self.rng.random() < 0.7:
            self.shared[shape] = self.net.weights(*shape, fan_in=fan_in)
        name = self.shared[shape]
        return self.net("Identity", name) if self.rng.random() < 0.1 else name

    def _bias(self, channels: int) -> list[str]:
        return [self.net.constant(np.linspace(-0.2, 0.2, channels))] if self.rng.random() < 0.6 else []

    def _conv(self, name: str, shape: Shape) -> None:
        channels, height, width = shape
        wide = self.rng.choice((2, 3, 4))
        if self.rng.random() < 0.2 and height * width <= 36:
            weights = self._weights(channels, wide, 2, 2, fan_in=channels)
            made = self.net("ConvTranspose", name, weights, *self._bias(wide), strides=[2, 2], kernel_shape=[2, 2])
            return self._add(made, (wide, 2 * height, 2 * width))
        group = channels if self.rng.random() < 0.2 else 1
        wide = channels if group > 1 else wide
        kernel = self.rng.choice((1, 3))
        weights = self._weights(wide, channels // group, kernel, kernel, fan_in=channels // group * kernel**2)
        pads, shape_ = [kernel // 2] * 4, [kernel, kernel]
        made = self.net("Conv", name, weights, *self._bias(wide), group=group, pads=pads, kernel_shape=shape_)
        if self.rng.random() < 0.3:
            made = self.net.normalized(made, wide)
        if self.rng.random() < 0.6:
            made = self.net("Relu", made)
        return self._add(made, (wide, height, width))

    def _pool(self, name: str, shape: Shape) -> None:
        op = self.rng.choice(("MaxPool", "AveragePool", "GlobalAveragePool"))
        if op == "GlobalAveragePool":
            return self._add(self.net(op, name), (shape[0], 1, 1))
        return self._add(self.net(op, name, kernel_shape=[3, 3], pads=[1] * 4), shape)

    def _scaled(self, name: str, shape: Shape) -> None:
        if shape[1] * shape[2] > 36:
            return None
        mode = self.rng.choice(("nearest", "linear"))
        scales = self.net.constant([1, 1, 2, 2])
        made = self.net("Resize", name, "", scales, mode=mode, coordinate_transformation_mode="asymmetric")
        return self._add(made, (shape[0], 2 * shape[1], 2 * shape[2]))

    def _flat(self, name: str, shape: Shape) -> None:
        if np.prod(shape) <= 150 and self.rng.random() < 0.4:
            self._add(self.net("Flatten", name), (int(np.prod(shape)),))

    def _linear(self, name: str, shape: Shape) -> None:
        width = self.rng.choice((4, 6))
        if self.rng.random() < 0.5:
            made = self.net("Gemm", name, self._weights(width, shape[0], fan_in=shape[0]), *self._bias(width), transB=1)
        else:
            made = self.net("MatMul", name, self._weights(shape[0], width, fan_in=shape[0]))
        self._add(made, (width,))

    def _pointwise(self, name: str, shape: Shape) -> None:
        op = self.rng.choice(("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "Softmax", "Abs", "Elu", "SiLU", "Erf"))
        if op == "Clip":
            made = self.net(op, name, self.net.constant(-0.5), self.net.constant(2))
        elif op == "Softmax":
            made = self.net(op, name, axis=self.rng.choice((1, -1)))
        elif op == "SiLU":
            made = self.net("Mul", name, self.net("Sigmoid", name))
        else:
            made = self.net(op, name)
        self._add(made, shape)

    def _constant(self, name: str, shape: Shape) -> None:
        """With one constant, on either side."""
        op = self.rng.choice(("Add", "Mul", "Sub"))
        constant = self.net.constant(np.linspace(0.5, 1.5, shape[-1]))
        self._add(self.net(op, *self.rng.choice(((name, constant), (constant, name)))), shape)

    def _join(self, name: str, shape: Shape) -> None:
        others = [other for other in self.shapes if self.shapes[other] == shape]
        other = self.rng.choice(others)
        if self.rng.random() < 0.5:
            return self._add(self.net(self.rng.choice(("Add", "Add", "Mul", "Sub", "Max")), name, other), shape)
        if shape[0] > 12:
            return None
        return self._add(self.net("Concat", name, other, axis=1), (2 * shape[0], *shape[1:]))

    def _moved(self, name: str, shape: Shape) -> None:
        op = self.rng.choice(("Transpose", "Reshape", "Unsqueeze", "Identity", "Split", "Slice", "Pad"))
        net = self.net
        if op == "Transpose" and len(shape) == 3:
            self._add(net(op, name, perm=[0, 1, 3, 2]), (shape[0], shape[2], shape[1]))
        elif op == "Reshape" and len(shape) == 3:
            turned = net(op, name, net.constant([0, shape[0] * shape[1], shape[2]], np.int64))
            self._add(net(op, turned, net.constant([-1, *shape], np.int64)), shape)
        elif op == "Unsqueeze":
            wide = net(op, name, net.constant([1], np.int64))
            self._add(net("Squeeze", wide, net.constant([1], np.int64)), shape)
        elif op == "Split" and shape[0] % 2 == 0:
            first = net(op, name, net.constant([shape[0] // 2] * 2, np.int64), outputs=2, axis=1)
            for half in (first, first.replace(".0", ".1")):
                self._add(half, (shape[0] // 2, *shape[1:]))
        elif op == "Slice" and shape[0] > 2:
            ends = [net.constant([n], np.int64) for n in (1, shape[0], 1)]
            self._add(net(op, name, *ends), (shape[0] - 1, *shape[1:]))
        elif op == "Pad" and len(shape) == 3 and shape[1] < 9:
            pads = net.constant([0, 0, 0, 0, 0, 0, 1, 1], np.int64)
            self._add(net(op, name, pads), (shape[0], shape[1] + 1, shape[2] + 1))
        else:
            self._add(net("Identity", name), shape)


def random_graph(seed: int, nodes: int = 14) -> Specimen:
    """Number of a graph -> the model, of so many nodes or some more, and samples for it."""
    drawing = _Drawing(seed)
    model = drawing.model(nodes)
    data = np.random.default_rng(seed).normal(size=(SAMPLES, *drawing.shapes["x"])).astype(np.float32)
    return Specimen(model, {"x": data * 2}, {"x": 0}, layers=2)

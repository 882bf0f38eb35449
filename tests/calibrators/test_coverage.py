from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakecuda
import numpy as np
import pytest

from calibrators.coverage import classify, complete
from trtcal.cache.cache import CalibrationCache


@dataclass
class Tensor:
    name: str
    kind: str = "FLOAT"
    is_shape_tensor: bool = False

    @property
    def dtype(self) -> Any:
        return SimpleNamespace(name=self.kind)


@dataclass
class Layer:
    """What the functions under test ask of a layer of TensorRT's."""

    kind: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    name: str = "layer"
    weights: np.ndarray | None = field(default=None)

    @property
    def type(self) -> Any:
        return SimpleNamespace(name=self.kind)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, number: int) -> Tensor:
        return self.inputs[number]

    def get_output(self, number: int) -> Tensor:
        return self.outputs[number]


class Network:
    def __init__(self, inputs: list[Tensor], layers: list[Layer]) -> None:
        self._inputs, self._layers = inputs, layers
        self.num_inputs, self.num_layers = len(inputs), len(layers)

    def get_input(self, number: int) -> Tensor:
        return self._inputs[number]

    def get_layer(self, number: int) -> Layer:
        return self._layers[number]


def chain(*steps: tuple[str, str]) -> Network:
    """("SHUFFLE", "a"), ... -> network from input x through these layers, each with one output."""
    tensors = [Tensor("x"), *(Tensor(name) for _, name in steps)]
    layers = [
        Layer(kind, [before], [after], name=f"make {after.name}")
        for (kind, _), before, after in zip(steps, tensors, tensors[1:], strict=False)
    ]
    return Network(tensors[:1], layers)


def cache(**amax: float) -> CalibrationCache:
    return CalibrationCache.from_amax({name: np.float32(value) for name, value in amax.items()})


def test_a_range_goes_forward_through_layers_that_change_no_value() -> None:
    found, coverage = complete(cache(x=1), chain(("SHUFFLE", "a"), ("IDENTITY", "b"), ("SHUFFLE", "c")))
    assert {found.scales[name] for name in "xabc"} == {found.scales["x"]}
    assert coverage.added == {"a": "x", "b": "a", "c": "b"}
    assert not coverage.costly


def test_a_range_goes_backward_too() -> None:
    found, coverage = complete(cache(x=1, y=2), chain(("MATRIX_MULTIPLY", "u"), ("SHUFFLE", "v"), ("SHUFFLE", "y")))
    assert found.amax("u") == found.amax("v") == found.amax("y")
    assert coverage.added == {"v": "y", "u": "v"}


def test_backward_then_forward_reaches_the_other_branch() -> None:
    x, u, v, y = (Tensor(name) for name in "xuvy")
    layers = [Layer("CONVOLUTION", [x], [u]), Layer("SHUFFLE", [u], [v]), Layer("SHUFFLE", [u], [y])]
    found, _ = complete(cache(x=1, y=2), Network([x], layers))
    assert found.amax("v") == found.amax("y")


def test_no_range_goes_through_a_layer_that_changes_values() -> None:
    found, coverage = complete(cache(x=1), chain(("ACTIVATION", "a"), ("SHUFFLE", "b")))
    assert set(found.scales) == {"x"}
    assert coverage.costly == {"a": "make a (activation)", "b": "make b (shuffle)"}


def test_ranges_that_are_there_are_left_alone() -> None:
    found, coverage = complete(cache(x=1, a=3), chain(("SHUFFLE", "a")))
    assert found == cache(x=1, a=3)
    assert not coverage.added


def test_constants_get_the_range_of_their_values() -> None:
    constant = Layer("CONSTANT", [], [Tensor("w_output")], weights=np.array([0.5, -2.0], np.float32))
    found, coverage = complete(cache(x=1), Network([Tensor("x")], [constant]))
    assert found.amax("w_output") == pytest.approx(2)
    assert coverage.added == {"w_output": "its own values"}


@pytest.mark.parametrize(
    "values", [np.zeros(2, np.float32), np.array([np.inf], np.float32), np.zeros(0, np.float32), np.array([1]), None]
)
def test_constants_without_a_range_of_their_own_are_listed(values: Any) -> None:
    constant = Layer("CONSTANT", [], [Tensor("w_output")], weights=values, name="w")
    found, coverage = complete(cache(x=1), Network([Tensor("x")], [constant]))
    assert "w_output" not in found.scales
    assert coverage.costly == {"w_output": "w (constant)"}


def test_what_is_never_quantized_is_benign_and_the_rest_is_costly() -> None:
    layer = Layer(
        "TOPK", [], [Tensor("values"), Tensor("indices", "INT32"), Tensor("size", is_shape_tensor=True)], "top"
    )
    names = ["indices", "size", "values", "fused", "mask"]
    benign, costly = classify(names, Network([Tensor("mask", "BOOL")], [layer]))
    assert benign == {
        "indices": "int32, never quantized",
        "size": "a shape, computed on the host",
        "mask": "bool, never quantized",
    }
    assert costly == {
        "values": "top (topk)",
        "fused": "not in the network that was parsed, so made while it was built",
    }


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_unnamed_tensors_of_the_parser_get_their_range_on_the_real_network_objects(tmp_path: Path, trt: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        Path("m.onnx").write_bytes(onnx_model())
        amax = b"TRT-8601-EntropyCalibration2\\nimage: 3c010a14\\nconv: 3c010a14\\nrelu: 3d010a14\\ny: 3c010a14\\n"
        built = build_engine("m.onnx", calibrator=CachedCalibrator(amax), batch_size=4)
        report(added=built.coverage.added, costly=built.coverage.costly,
               same=len({built.ranges.scales[n] for n in ("relu", "flat", *built.coverage.added)}))
        """,
        trt=trt,
        TRTFAKE_UNNAMED="1",
    )
    assert found == {
        "added": {"flat": "relu", "(Unnamed Layer* 3) [Shuffle]_output": "flat"},
        "costly": {},
        "same": 1,
    }

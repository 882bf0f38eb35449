"""Which tensors of TensorRT's network have a range, and what it means where one has none.

A cache made from an ONNX model names the model's tensors. TensorRT's parser makes more of them: reshapes around a
Gemm (``(Unnamed Layer* 3) [Shuffle]_output``), constants (``<initializer>_output``). Without a range each of them
makes a layer fall back to FP16 or FP32.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtcal.cache.cache import CalibrationCache
from trtcal.errors import CacheError
from trtcal.files.brief import brief, few

logger = logging.getLogger(__name__)

# Layers that move values about and change none, so that output and first input share a range.
CARRIERS = frozenset({"SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE"})
FLOATS = frozenset({"FLOAT", "HALF", "BF16"})


@dataclass(frozen=True)
class Coverage:
    """What became of the tensors of a network that the ranges did not name."""

    added: Mapping[str, str] = field(default_factory=dict)
    """Tensor -> where its range was taken from."""
    benign: Mapping[str, str] = field(default_factory=dict)
    """Tensor without a range -> why it needs none."""
    costly: Mapping[str, str] = field(default_factory=dict)
    """Tensor without a range -> the layer that falls back to FP16 or FP32 for it."""

    __repr__ = brief


def refuse_foreign(cache: CalibrationCache, network: Any) -> None:
    """Ranges and parsed network -> CacheError where not one tensor of the network is named."""
    tensors = _tensors(network)
    if not any(name in tensors for name in cache.scales):
        named, held = _short(cache.scales) or "no tensor", _short(tensors)
        raise CacheError(
            f"the cache names no tensor of the network, so it belongs to another model; it names {named}, the network "
            f"holds {held}"
        )


def complete(cache: CalibrationCache, network: Any) -> tuple[CalibrationCache, Coverage]:
    """Ranges and parsed network -> ranges for its further tensors too, and what stays without."""
    layers = list(_layers(network))
    scales = dict(cache.scales)
    added: dict[str, str] = {}
    for layer in layers:
        if _type(layer) == "CONSTANT" and layer.num_outputs:
            name = layer.get_output(0).name
            amax = None if name in scales else _largest(layer)
            if amax:
                scales[name] = np.float32(amax) / np.float32(127)
                added[name] = "its own values"
    # Forwards as far as ranges reach, then backwards: an unnamed tensor may stand before or after the one it equals.
    pairs = [
        (layer.get_input(0).name, layer.get_output(0).name)
        for layer in layers
        if _type(layer) in CARRIERS and layer.num_inputs and layer.get_input(0) is not None
    ]
    for source, target in [*pairs, *((after, before) for before, after in reversed(pairs)), *pairs]:
        if source in scales and target not in scales:
            scales[target] = scales[source]
            added[target] = source
    completed = CalibrationCache(cache.version, cache.algorithm, scales)
    missing = [name for name in _tensors(network) if name not in scales]
    benign, costly = classify(missing, network)
    coverage = Coverage(added, benign, costly)
    if added:
        logger.info("ranges added for %d tensors that the parser made: %s", len(added), _short(added))
    if costly:
        logger.warning("%d tensors have no range and cost speed: %s", len(costly), _short(costly))
    return completed, coverage


def classify(names: Iterable[str], network: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Tensors without a range -> (those that need none, with the reason; those that cost, with the layer)."""
    tensors = _tensors(network)
    benign, costly = {}, {}
    for name in names:
        tensor, layer = tensors.get(name, (None, "not in the network that was parsed, so made while it was built"))
        if tensor is None:
            costly[name] = layer
        elif tensor.is_shape_tensor:
            benign[name] = "a shape, computed on the host"
        elif tensor.dtype.name not in FLOATS:
            benign[name] = f"{tensor.dtype.name.lower()}, never quantized"
        else:
            costly[name] = layer
    return benign, costly


def _layers(network: Any) -> Iterator[Any]:
    for number in range(network.num_layers):
        yield network.get_layer(number)


def _tensors(network: Any) -> dict[str, tuple[Any, str]]:
    """Tensor name -> the tensor, and the layer that makes it."""
    found: dict[str, tuple[Any, str]] = {}
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        found[tensor.name] = tensor, "network input"
    for layer in _layers(network):
        for number in range(layer.num_outputs):
            tensor = layer.get_output(number)
            if tensor is not None:
                found[tensor.name] = tensor, f"{layer.name} ({_type(layer).lower()})"
    return found


def _type(layer: Any) -> str:
    return str(layer.type.name)


def _largest(layer: Any) -> float | None:
    """Constant layer -> largest |x| of its values; None where they are no finite floating-point numbers."""
    values = _constant_values(layer)
    if values is None or values.dtype.kind != "f" or not values.size:
        return None
    largest = float(np.abs(values).max())
    return largest if np.isfinite(largest) else None


def _constant_values(layer: Any) -> np.ndarray | None:
    from calibrators.versions import as_constant_layer

    weights = getattr(as_constant_layer(layer), "weights", None)
    return weights if isinstance(weights, np.ndarray) else None


def _short(names: Iterable[str]) -> str:
    return few(list(names), 10)

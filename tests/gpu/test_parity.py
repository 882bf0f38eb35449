"""Whole models: the caches that TensorRT writes against ours, tensor by tensor.

Activations of a GPU differ from a CPU's in their low bits, so that a threshold may move to another bin; a wrong rule
moves all of them. The entropy caches are compared a second time with our ranges from activations that the GPU
computes: what differs with the CPU's alone is a matter of low bits, what differs with both is a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import nets
import pytest
from builds import calibrated
from device import needs, small, without_gpu, without_kernels, without_tensorrt
from parity import KINDS, collecting_on_gpu, differences, inputs_of, limits_of, ours_for

from trtcal.cache.cache import CalibrationCache
from trtcal.calibration.calibrate import calibrate
from trtcal.model.open import Model, open_model
from trtcal.ranges.stats import ActivationStats

pytestmark = [pytest.mark.gpu, pytest.mark.seconds(3), needs(without_gpu(), without_tensorrt())]

SAMPLES = 16 if small() else 64
WAYS = [(4, "given"), *((size, order) for size in (16, 4, 1) for order in ("given", "largest last"))]
WAYS_OF = {name: WAYS[:1] if small() or name in nets.MADE else WAYS[1:] for name in nets.names()}
CASES = [(name, kind, *way) for name, ways in WAYS_OF.items() for kind in KINDS for way in ways]


@cache
def opened(name: str) -> Model:
    return open_model(nets.model(name).path)


def batches_of(name: str, size: int, order: str) -> list[nets.Batch]:
    model = nets.model(name)
    return model.batches(model.orders(SAMPLES)[order], size)


@cache
def stats_of(name: str, size: int, order: str) -> ActivationStats:
    return calibrate(opened(name), batches_of(name, size, order)).stats


@cache
def written(name: str, kind: str, size: int, order: str) -> CalibrationCache:
    """TensorRT's cache."""
    return calibrated(nets.model(name).data, batches_of(name, size, order), KINDS[kind].algorithm)


@pytest.mark.parametrize(("name", "kind", "size", "order"), CASES)
def test_the_cache_is_ours(
    name: str, kind: str, size: int, order: str, record_property: Callable[[str, object], None]
) -> None:
    model, stats = opened(name), stats_of(name, size, order)
    theirs = written(name, kind, size, order)
    record_property("cache", theirs.format().decode())
    limits, exact = limits_of(model, stats), inputs_of(model)
    assert not differences(ours_for(model, stats, kind), theirs, kind, limits, exact, record_property)


@needs(without_kernels())
@pytest.mark.seconds(15)
@pytest.mark.parametrize("name", nets.names())
def test_the_entropy_cache_is_ours_of_the_gpus_own_activations(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    model, found = opened(name), []
    with collecting_on_gpu(model) as collect:
        for size, order in WAYS_OF[name]:
            stats, notes = collect(batches_of(name, size, order)), {}
            ours, theirs = ours_for(model, stats, "entropy"), written(name, "entropy", size, order)
            limits, exact = limits_of(model, stats), inputs_of(model)
            found += differences(ours, theirs, "entropy", limits, exact, notes.__setitem__)
            record_property(f"batch {size}, {order}", notes)
    assert not found

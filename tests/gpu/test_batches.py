"""What a batch is, what the other calibrators make of the same data, and what becomes of odd data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builds import observe
from device import needs, without_gpu, without_tensorrt
from experiments import WIDTH, ZERO, check, hexadecimal, normal, our_scale

from trtcal.cache.cache import CalibrationCache

pytestmark = [pytest.mark.gpu, pytest.mark.seconds(2), needs(without_gpu(), without_tensorrt())]

Record = Callable[[str, object], None]

FOUR = [normal(20 + step, 1 + step / 4) for step in range(4)]
HALVES = [batch[:2] for batch in FOUR]
SINGLES = [row[None] for batch in FOUR for row in batch]

# What is built -> the batches that are fed, how, and those whose scale is expected.
BATCHES: dict[str, tuple[list[np.ndarray], dict[str, Any], list[np.ndarray]]] = {
    "get_batch_size says 16, the network has 4: it is ignored": (FOUR, {"claimed": 16}, FOUR),
    "get_batch_size says 1, the network has 4: it is ignored": (FOUR, {"claimed": 1}, FOUR),
    "dynamic batch, calibration profile of 4": (FOUR, {"profiles": (4,), "calibrate_with": 4}, FOUR),
    "dynamic batch, calibration profile of 2, buffers of 4: the first rows count": (
        FOUR,
        {"profiles": (4,), "calibrate_with": 2},
        HALVES,
    ),
    "the same data in batches of 1": (SINGLES, {}, SINGLES),
    "the same data in one batch": ([np.concatenate(FOUR)], {}, [np.concatenate(FOUR)]),
    "EntropyCalibrator (1) as EntropyCalibrator2": (FOUR, {"algorithm": "EntropyCalibration"}, FOUR),
}


@pytest.mark.parametrize("what", BATCHES)
def test_the_scale_is_that_of_the_batches_that_count(what: str, record_property: Record) -> None:
    fed, options, counted = BATCHES[what]
    observed = observe(fed, **options)
    observed.keep(record_property)
    check(counted, observed.scale())


def test_minmax_takes_the_largest_magnitude_of_all_batches(record_property: Record) -> None:
    observed = observe(FOUR, algorithm="MinMaxCalibration")
    observed.keep(record_property)
    assert hexadecimal(observed.scale()) == hexadecimal(our_scale(FOUR, "MinMaxCalibration"))


def test_where_no_profile_is_set_for_calibration_one_of_both_counts(record_property: Record) -> None:
    """NVIDIA's log says profile 0, other accounts say the last one: of two, of 4 and of 2."""
    observed = observe(FOUR, profiles=(4, 2))
    observed.keep(record_property)
    candidates = {"the first": FOUR, "the last": HALVES}
    found = [name for name, counted in candidates.items() if our_scale(counted) == observed.scale()]
    record_property("the profile that counts", found)
    assert len(found) == 1


def odd(value: float) -> list[np.ndarray]:
    spoilt = normal(30)
    spoilt.flat[3] = value
    return [spoilt, normal(31)]


@pytest.mark.parametrize("what", ["inf", "nan", "zeros"])
def test_odd_data_give_a_cache_or_none_and_no_crash(what: str, record_property: Record) -> None:
    observed = observe([ZERO, ZERO] if what == "zeros" else odd(float(what)))
    observed.keep(record_property)
    assert "get_batch" in observed.calls


@pytest.mark.parametrize(("quantile", "cutoff"), [(0.9999, 1.0), (0.99, 1.0), (0.5, 0.5)])
def test_legacy_takes_the_quantile_to_within_a_hundredth(
    quantile: float, cutoff: float, record_property: Record
) -> None:
    data = np.random.default_rng(40).laplace(size=(4, 1, 1, WIDTH)).astype(np.float32)
    observed = observe([data], algorithm="LegacyCalibration", quantile=quantile, cutoff=cutoff)
    observed.keep(record_property)
    assert observed.written is not None
    got, exact = float(CalibrationCache.parse(observed.written).amax("x")), float(np.quantile(np.abs(data), quantile))
    record_property("amax", {"got": got, "quantile of |x|": exact, "largest |x|": float(np.abs(data).max())})
    if cutoff == 1:  # with another one its regression decides, which nobody has published
        assert got == pytest.approx(exact, rel=0.01)
    else:
        assert got > 0

"""In what order TensorRT calls a calibrator, what it does with each kind of cache, and what becomes of failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from builds import observe
from device import needs, without_gpu, without_tensorrt
from experiments import check

from calibrators import versions
from trtcal.cache.cache import version_number

pytestmark = [pytest.mark.gpu, pytest.mark.seconds(2), needs(without_gpu(), without_tensorrt())]

Record = Callable[[str, object], None]


def batches(count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(4, 1, 1, 256)).astype(np.float32) * (number + 1) for number in range(count)]


def test_batches_are_asked_for_until_they_end_and_then_the_cache_is_written_once(record_property: Record) -> None:
    observed = observe(batches())
    observed.keep(record_property)
    record_property("the thread that asks for batches", sorted(observed.threads))
    counts = Counter(observed.calls)
    assert observed.built
    assert (counts["get_batch"], counts["write_calibration_cache"]) == (4, 1)
    assert observed.calls[-1] == "write_calibration_cache"
    assert counts["read_calibration_cache"] >= 1


@pytest.mark.parametrize("algorithm", ["MinMaxCalibration", "EntropyCalibration", "LegacyCalibration"])
def test_the_other_calibrators_are_asked_for_all_batches(algorithm: str, record_property: Record) -> None:
    observed = observe(batches(), algorithm=algorithm)
    observed.keep(record_property)
    assert observed.built
    assert observed.calls.count("get_batch") >= 4


ENTROPY = "EntropyCalibration2"
# What the cache is -> its text, and whether TensorRT is expected to take it; None where nobody knows.
CACHES: dict[str, tuple[str, bool | None]] = {
    "its own header": (f"TRT-OWN-{ENTROPY}\nx: 3c010a14\ny: 3c010a14\n", True),
    "another version of the same major": (f"TRT-NEAR-{ENTROPY}\nx: 3c010a14\ny: 3c010a14\n", True),
    "another major version": (f"TRT-FAR-{ENTROPY}\nx: 3c010a14\ny: 3c010a14\n", False),
    "TensorRT 7's header": (f"TRT-7103-{ENTROPY}\nx: 3c010a14\ny: 3c010a14\n", False),
    "another algorithm": ("TRT-OWN-MinMaxCalibration\nx: 3c010a14\ny: 3c010a14\n", False),
    "a header of letters": (f"TRT-8XXX-{ENTROPY}\nx: 3c010a14\ny: 3c010a14\n", None),
    "a bare number as header": ("1\nx: 3c010a14\ny: 3c010a14\n", None),
    "no scale for y": (f"TRT-OWN-{ENTROPY}\nx: 3c010a14\n", True),
    "scales for tensors that are not there": (f"TRT-OWN-{ENTROPY}\nx: 3c010a14\ny: 3c010a14\nghost: 3c010a14\n", None),
    "only tensors that are not there": (f"TRT-OWN-{ENTROPY}\nghost: 3c010a14\n", None),
    "CR LF line ends": (f"TRT-OWN-{ENTROPY}\r\nx: 3c010a14\r\ny: 3c010a14\r\n", None),
    "no last line end": (f"TRT-OWN-{ENTROPY}\nx: 3c010a14\ny: 3c010a14", None),
    "no bytes at all": ("", False),
}


def cache_of(what: str) -> bytes:
    own = version_number(versions.dotted(versions.tensorrt()))
    near, far = ("8501", "100300") if len(own) == 4 else ("100001", "8601")
    return CACHES[what][0].replace("OWN", own).replace("NEAR", near).replace("FAR", far).encode()


@pytest.mark.parametrize("what", CACHES)
def test_a_cache_is_used_without_a_batch_or_calibrated_anew(what: str, record_property: Record) -> None:
    observed = observe(batches(), cache=cache_of(what))
    observed.keep(record_property)
    asked = observed.calls.count("get_batch")
    got = "used" if observed.built and not asked else "calibrated anew" if observed.built else "no plan"
    record_property("got", got)
    assert asked or observed.built
    assert CACHES[what][1] in (None, {"used": True, "calibrated anew": False}.get(got))


def test_what_is_built_without_data_is_written_down(record_property: Record) -> None:
    for what, cache in {"no cache": None, "a cache that is refused": cache_of("another algorithm")}.items():
        observed = observe([], cache=cache)
        record_property(f"{what}, and no data", observed.__dict__)
        assert "get_batch" in observed.calls


def test_an_exception_is_swallowed_and_a_cache_of_the_batches_before_it_written(record_property: Record) -> None:
    observed = observe(batches(6), fail_at=2)
    observed.keep(record_property)
    check(batches(2), observed.scale())


def test_an_exception_in_the_first_batch_never_reaches_who_builds(record_property: Record) -> None:
    observed = observe(batches(6), fail_at=0)
    observed.keep(record_property)
    assert observed.calls.count("get_batch") >= 1

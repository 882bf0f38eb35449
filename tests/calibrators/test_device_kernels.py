"""The CUDA kernel's own source, compiled by g++, against the CPU's loops; and NVRTC's opinion of it."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from fakecuda import setup_env
from fakecuda.hostkernels import kernel_memory
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibrators.device_kernels import (
    NOTHING,
    SOURCE,
    SUMMARY_BYTES,
    TABLE_BYTES,
    Observer,
    Seen,
    Span,
    below,
    throughput,
)
from calibrators.memory import Attribute, HostMemory
from trtcal.errors import BackendError
from trtcal.ranges.growth import double, power_of_two
from trtcal.ranges.histogram import FINE_BINS, NUM_BINS, HistogramBuilder, abs_max

BOTH = {Attribute.SHARED_MEMORY_OPT_IN: 232448}  # room for a block's own fine grid, as on a GPU of a data centre
LITTLE = {Attribute.SHARED_MEMORY_OPT_IN: 49152}  # none


class Bench:
    """An observer, and room for one tensor."""

    def __init__(self, memory: HostMemory) -> None:
        self.memory, self.observer = memory, Observer(memory)
        self.room = memory.allocate(TABLE_BYTES + SUMMARY_BYTES)

    def observe(
        self, values: np.ndarray, fine: Span = NOTHING, batch_grid: Span = NOTHING, *, fresh: bool = True
    ) -> Seen:
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if fresh:
            self.memory.clear(self.room, TABLE_BYTES)
        self.memory.clear(self.room + TABLE_BYTES, SUMMARY_BYTES)
        self.observer.observe(flat.ctypes.data, flat.size, self.room, self.room + TABLE_BYTES, fine, batch_grid)
        return self.observer.summaries(self.room + TABLE_BYTES, 1)[0]

    @property
    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        return self.observer.counts(self.room)


@pytest.fixture(params=[BOTH, LITTLE], ids=["own-fine-grid", "shared-fine-grid"], scope="module")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    try:
        memory = kernel_memory(setup_env.kernels(), request.param)
    except setup_env.Unavailable as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        # Small blocks, so that small arrays fill several.
        patch.setattr("calibrators.device_kernels.THREADS", 32)
        patch.setattr("calibrators.device_kernels.ELEMENTS", 2)
        made = Bench(memory)
        yield made
    made.observer.close()
    memory.free(made.room)
    assert memory.live == 0


def on_the_cpu(values: np.ndarray, limit: float, num_bins: int) -> np.ndarray:
    """The elements strictly below the limit, counted by the CPU's own way for this limit."""
    counted = values[np.abs(values).astype(np.float64) < limit]
    builder = HistogramBuilder(num_bins, lambda *_: limit)
    builder.add(counted, abs_max(counted))
    return builder.counts


def check(bench: Bench, values: np.ndarray, fine: float, batch_grid: float) -> None:
    magnitude = np.abs(values)
    seen = bench.observe(values, below(fine), below(batch_grid))
    largest = magnitude.max(initial=0)
    assert seen == (largest, (magnitude == largest).sum(), False)
    np.testing.assert_array_equal(bench.counts[0], on_the_cpu(values, fine, FINE_BINS))
    np.testing.assert_array_equal(bench.counts[1], on_the_cpu(values, batch_grid, NUM_BINS))


TINY, HUGE = np.float32(1e-45), np.finfo(np.float32).max
SPECIAL = [0.0, -0.0, TINY, -3 * TINY, np.finfo(np.float32).tiny, 1.0, -1.0, np.nextafter(np.float32(1), np.float32(0))]
floats = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-4, 4, width=32),
    st.sampled_from([float(x) for x in [*SPECIAL, HUGE, -HUGE]]),
    st.integers(-149, 127).map(lambda e: 2.0**e),
    st.integers(0, 32768).map(lambda i: i / 32768),
)
arrays = hnp.arrays(np.float32, st.integers(1, 300), elements=floats)


@given(values=arrays, limit=st.one_of(st.none(), st.integers(-148, 128)))
def test_the_fine_grid_equals_the_cpus(bench: Bench, values: np.ndarray, limit: int | None) -> None:
    fine = power_of_two(0.0, abs_max(values)) if limit is None else 2.0**limit
    if fine:
        check(bench, values, fine, 1.0)


@given(values=arrays, limit=st.one_of(st.none(), floats.filter(bool)), doublings=st.integers(0, 3))
def test_the_streamed_grid_equals_the_cpus(
    bench: Bench, values: np.ndarray, limit: float | None, doublings: int
) -> None:
    start = float(values[0]) if limit is None else limit
    if start:
        batch_grid = double(abs(start), min(float(HUGE), abs(start) * 2.0**doublings))
        if batch_grid <= float(HUGE):
            check(bench, values, 1.0, batch_grid)


@pytest.mark.parametrize("limit", [2.0**128, float("inf")], ids=["2**128", "inf"])
def test_a_limit_past_the_largest_float32_counts_as_on_the_cpu(bench: Bench, limit: float) -> None:
    values = np.array(
        [HUGE, -HUGE, HUGE / 3, 1, 0, 2.0**127, 2.0**116, np.nextafter(np.float32(2.0**117), np.float32(0))], np.float32
    )
    bench.observe(values, below(2.0**128), below(limit))
    np.testing.assert_array_equal(bench.counts[0], on_the_cpu(values, 2.0**128, FINE_BINS))
    np.testing.assert_array_equal(bench.counts[1], on_the_cpu(values, limit, NUM_BINS))


@pytest.mark.parametrize("threads", [1, 31, 1024])
@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 16385, 70001])
def test_every_element_is_counted_once_whatever_the_size(
    bench: Bench, size: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibrators.device_kernels.THREADS", threads)
    monkeypatch.setattr("calibrators.device_kernels.ELEMENTS", 16)
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    values[:: max(size // 7, 1)] = 0
    values[-1] = -np.abs(values).max() - 1
    check(bench, values, power_of_two(0, abs_max(values)), float(np.abs(values[: size // 2 + 1]).max()) or 1.0)


def test_bin_edges_and_their_neighbours_fall_where_the_cpu_puts_them(bench: Bench) -> None:
    for limit in (1.0, np.float32(0.7), np.float32(3e-39), np.float32(2.5e38)):
        edges = (np.arange(NUM_BINS + 1, dtype=np.float64) * limit / NUM_BINS).astype(np.float32)
        values = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, HUGE)])
        values = values[values <= np.float32(limit)]
        check(bench, values, 1.0, float(limit))


def test_a_kernel_that_multiplies_by_the_inverse_would_be_seen() -> None:
    """``x * (bins / limit)`` is another bin than ``x / limit * bins`` for some of the edges above."""
    limit = np.float32(0.7)
    edges = (np.arange(NUM_BINS, dtype=np.float64) * limit / NUM_BINS).astype(np.float32)
    multiplied = np.bincount((edges * (np.float32(NUM_BINS) / limit)).astype(np.int64), minlength=NUM_BINS)
    assert (on_the_cpu(edges, float(limit), NUM_BINS) != multiplied).any()


@given(values=arrays, first=st.integers(-20, 3))
def test_a_second_read_counts_what_the_first_had_no_bin_for(bench: Bench, values: np.ndarray, first: int) -> None:
    """Counts under a limit, merged into a larger one, and the rest read again, are those of one read."""
    fine = [2.0**first, power_of_two(2.0**first, abs_max(values))]
    bench.observe(values, below(fine[0]))
    merged = HistogramBuilder(FINE_BINS, lambda *_: 0)
    merged.counts, merged.limit = bench.counts[0], fine[0]
    grown = merged.build().grown(fine[1])
    bench.observe(values, below(fine[1], below(fine[0])))
    np.testing.assert_array_equal(grown.counts + bench.counts[0], on_the_cpu(values, fine[1], FINE_BINS))


def test_counts_are_added_to_what_is_there(bench: Bench) -> None:
    values = np.linspace(-1, 1, 999, dtype=np.float32)
    bench.observe(values, below(2.0), below(1.5))
    once = bench.counts
    bench.observe(values, below(2.0), below(1.5), fresh=False)
    for before, after in zip(once, bench.counts, strict=True):
        np.testing.assert_array_equal(after, 2 * before)


def test_a_limit_of_zero_counts_zeros_alone(bench: Bench) -> None:
    values = np.array([0, -0.0, TINY, 1, -HUGE], np.float32)
    bench.observe(values, below(0.0), below(0.0))
    assert [grid.sum() for grid in bench.counts] == [2, 2]
    bench.observe(values, below(2.0**128, below(0.0)), below(float(HUGE), below(0.0)))
    assert [grid.sum() for grid in bench.counts] == [3, 2]  # the rest, but for what equals the limit


@pytest.mark.parametrize(
    ("values", "amax", "peaks", "positive"),
    [
        ([1, np.nan, np.inf], np.nan, 1, True),
        ([1, -np.inf, -np.inf], np.inf, 2, False),
        ([np.inf, -np.inf], np.inf, 2, True),
        ([-2, 2, 1], 2, 2, False),
        ([0, -0.0], 0, 2, False),
    ],
)
def test_inf_and_nan_are_told_apart(bench: Bench, values: list[float], amax: float, peaks: int, positive: bool) -> None:
    seen = bench.observe(np.array(values), below(4.0), below(4.0))
    np.testing.assert_equal(seen.amax, np.float32(amax))
    assert (seen.peaks, seen.positive_inf) == (peaks, positive)


def test_nothing_is_launched_for_an_empty_tensor(bench: Bench) -> None:
    assert bench.observe(np.zeros(0), below(1.0), below(1.0)) == (0, 0, False)


def test_a_tensor_too_large_for_the_counters_is_refused(bench: Bench) -> None:
    with pytest.raises(BackendError, match="more than the 4294967295"):
        bench.observer.observe(bench.room, 2**32, bench.room, bench.room, NOTHING, NOTHING)


def test_throughput_is_bytes_in_a_second(bench: Bench) -> None:
    assert throughput(bench.observer, elements=5000, runs=1) > 0


def test_a_kernel_that_counts_wrong_is_found_out_before_it_is_used() -> None:
    memory = HostMemory()
    memory.functions["observe"] = lambda *_: None
    with pytest.raises(BackendError, match="counts wrong on this device"):
        Observer(memory)
    assert memory.live == 0


def test_without_a_kernel_host_memory_says_so() -> None:
    with pytest.raises(BackendError, match="host memory runs no code"):
        Observer(HostMemory())


def test_a_closed_observer_keeps_no_code_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        memory = kernel_memory(setup_env.kernels())
    except setup_env.Unavailable as error:
        pytest.skip(str(error))
    loaded, load = [], memory.load

    def remembered(*arguments: Any) -> Any:
        function = partial(load(*arguments))
        loaded.append(weakref.ref(function))
        return function

    monkeypatch.setattr(memory, "load", remembered)
    with Observer(memory) as observer:
        assert loaded[0]() is not None
    assert loaded[0]() is None, observer


def test_the_grids_of_the_source_are_those_of_the_library() -> None:
    source = SOURCE.read_text(encoding="utf-8")
    found = dict(re.findall(r"#define (\w+_BINS) (\d+)", source))
    assert found == {"FINE_BINS": str(FINE_BINS), "STREAMED_BINS": str(NUM_BINS)}

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import oracle
import pytest
from network import Batches, cut, data, network

from trtcal.errors import DataError, NonFiniteError
from trtcal.passes import collect as pass_here
from trtcal.passes import collector
from trtcal.passes.collect import collect
from trtcal.ranges.growth import GROWTH
from trtcal.ranges.stats import ActivationStats, merge
from trtcal.samples.batches import Batch


@pytest.mark.parametrize("size", [1, 2, 4, 7, 23])
@pytest.mark.parametrize("zeros", [0, 3, 8])
def test_the_streamed_histogram_is_tensorrts_for_this_batch_size(size: int, zeros: int) -> None:
    x = data()
    x[:zeros] = 0
    stats = collect(network, cut(x, size))
    for name, tensor in stats.tensors.items():
        reference = oracle.Hist()
        for batch in cut(x, size):
            reference.update(network(batch)[name].astype(np.float32))
        assert tensor.batch_grid is not None
        assert tensor.batch_grid.limit == float(reference.R)
        assert np.array_equal(tensor.batch_grid.counts[1:], reference.h[1:])
        assert tensor.batch_grid.counts[0] == reference.h[0] + reference.zeros


def test_any_batch_size_order_and_number_of_workers_gives_the_same_fine_statistics() -> None:
    x = data()
    whole = collect(network, cut(x, 4))
    shuffled = np.random.default_rng(1).permutation(len(x))
    for name, tensor in whole.tensors.items():
        for size in (1, 5, 23):
            assert collect(network, cut(x, size)).tensors[name].histogram == tensor.histogram
        reordered = collect(network, cut(x[shuffled], 4)).tensors[name]
        assert reordered.histogram == tensor.histogram
        assert np.array_equal(reordered.sample_amax, tensor.sample_amax[shuffled])
    for workers in (2, 5):
        assert collect(network, cut(x, 4), workers=workers) == whole


def test_each_sample_keeps_its_own_maximum() -> None:
    x = data()
    stats = collect(network, cut(x, 6))
    assert np.array_equal(stats.tensors["relu"].sample_amax, np.maximum(x, 0).max(axis=1))
    assert stats.tensors["wide"].amax == np.abs(x).max() * 30
    assert stats.samples == tuple(f"sample {i}" for i in range(len(x)))
    peaks = (np.abs(x) == np.abs(x).max(axis=1, keepdims=True)).sum(axis=1)
    assert np.array_equal(stats.tensors["x"].sample_peaks, peaks)
    assert peaks.max() > 1


def test_padding_is_seen_by_tensorrt_and_by_nobody_else() -> None:
    x = data(6)
    last = Batch({"x": x[[4, 5, 5, 5]]}, samples=("e", "f", "f", "f"), valid=2)
    padded = collect(network, [{"x": x[:4]}, last])
    plain = collect(network, cut(x, 4))
    for name, tensor in plain.tensors.items():
        assert padded.tensors[name].histogram == tensor.histogram
        assert np.array_equal(padded.tensors[name].sample_amax, tensor.sample_amax)
    as_fed = collect(network, [{"x": x[:4]}, {"x": x[[4, 5, 5, 5]]}])
    assert padded.tensors["x"].batch_grid == as_fed.tensors["x"].batch_grid
    assert padded.samples == ("sample 0", "sample 1", "sample 2", "sample 3", "e", "f")


@pytest.mark.parametrize("growth", GROWTH)
def test_the_growth_rule_decides_the_streams_limit(growth: str) -> None:
    x = data()
    stats = collect(network, cut(x, 4), growth=growth)
    limit = 0.0
    for batch in cut(x, 4):
        limit = GROWTH[growth].grow(limit, float(np.abs(batch["x"]).max()))
    assert stats.growth == growth
    assert stats.tensors["x"].batch_grid is not None
    assert stats.tensors["x"].batch_grid.limit == limit


def awkward(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A tensor of every kind: fed, dead for a while, masked early or late, and of different sizes."""
    x = batch["x"]
    late = np.where(x.max() > 5, x, 0)
    mask = np.where(np.arange(x.size) < (x.max() > 4.5), -np.inf, x)
    return {"x": x, "late": late, "dead": x * 0, "mask": mask, "wide": x[..., None] * np.arange(1, 9), "half": x / 2}


@pytest.mark.parametrize("size", [1, 2, 7, 23])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("zeros", [0, 5])
def test_what_is_held_and_what_is_run_again_changes_nothing(
    size: int, workers: int, zeros: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = data()
    x[:zeros] = 0
    batches = cut(x, size)
    batches[-1] = Batch({"x": np.concatenate([batches[-1]["x"], x[6:8]])}, valid=len(batches[-1]["x"]))
    stats, runs = [], []
    for budget in (0, 3000, 1 << 30):
        ran: list[int] = []

        def counting(batch: dict[str, np.ndarray], ran: list[int] = ran) -> dict[str, np.ndarray]:
            ran.append(1)
            return awkward(batch)

        monkeypatch.setattr(collector, "HELD_BYTES", budget)
        stats.append(collect(counting, batches, workers=workers).to_bytes())
        runs.append(len(ran))
    assert stats[0] == stats[1] == stats[2]
    assert runs[2] == len(x) + 2  # everything fits, so nothing runs twice
    if size > 1:
        assert runs[2] <= runs[1] <= runs[0]
        assert runs[2] < runs[0]


def test_a_tensor_of_zeros_is_worth_no_second_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "HELD_BYTES", 0)
    runs = []

    def counting(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        runs.append(float(batch["x"][0, 0]))
        return {"dead": batch["x"] * 0, "late": batch["x"] * (batch["x"][:, :1] == 4)}

    x = np.arange(6, dtype=np.float32)[:, None] + np.zeros((6, 3), np.float32)
    collect(counting, cut(x, 3))
    assert runs == [0, 1, 2, 3, 4, 5, 4]


def test_a_batch_that_is_held_is_let_go_of_when_it_is_counted() -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = []

    def watched(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        most.append(sum(reference() is not None for reference in alive))
        y = batch["x"] * 2
        alive.append(weakref.ref(y))
        return {"y": y}

    collect(watched, cut(data(12), 4))
    assert most[3] == 3
    assert max(most[4:]) <= 1


def test_nan_inside_the_network_names_the_sample_and_the_first_tensor() -> None:
    def network(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        spoiled = batch["x"] + (np.nan if batch["x"].max() > 3 else 0)
        return {"x": batch["x"], "first": spoiled, "second": spoiled * 2}

    with pytest.raises(NonFiniteError, match=r"^sample 3: tensor 'first' holds nan, and no tensor before it"):
        collect(network, cut(np.arange(1, 6, dtype=np.float32)[:, None], 2))


def masked(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"x": batch["x"], "mask": np.where(batch["x"] > 0, batch["x"], -np.inf)}


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_mask_in_any_sample_leaves_a_tensor_without_histograms(order: list[int], size: int) -> None:
    x = np.abs(data(5)) + 1
    x[[1, 4], 7] = -1
    tensor = collect(masked, cut(x[order], size)).tensors["mask"]
    assert np.isinf(tensor.sample_amax).tolist() == [i in (1, 4) for i in order]
    assert tensor.histogram.total == 0
    assert tensor.batch_grid is not None
    assert tensor.batch_grid.total == 0
    assert (
        merge([collect(masked, cut(x[[0, 2]], 2)), collect(masked, cut(x[[1]], 1))]).tensors["mask"].histogram.total
        == 0
    )


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_an_input_that_is_not_finite_is_an_error(value: float) -> None:
    x = data()
    x[5, 0] = value
    with pytest.raises(NonFiniteError, match=rf"^sample 5: tensor 'x' holds {value}, and no tensor before it"):
        collect(network, cut(x, 4))


def test_inf_inside_the_network_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match=r"^sample 0: tensor 'y' holds inf"):
        collect(lambda batch: {"x": batch["x"], "y": np.abs(batch["x"]) * np.inf}, cut(np.ones((2, 3), np.float32), 1))


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({}, "no inputs"),
        ({"x": np.zeros((0, 3))}, "x: 0"),
        ({"x": np.float32(3)}, "x: 0"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((3, 3))}, "x: 2, y: 3"),
    ],
)
def test_a_batch_without_a_common_batch_axis_is_refused(batch: dict[str, np.ndarray], found: str) -> None:
    with pytest.raises(DataError, match=found):
        collect(network, [batch])


def test_no_batches_are_an_error() -> None:
    with pytest.raises(DataError, match="nothing to calibrate on"):
        collect(network, [])


def interrupted(batches: Batches, after: int) -> Iterator[dict[str, np.ndarray]]:
    yield from batches[:after]
    raise KeyboardInterrupt


def test_an_interrupted_pass_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_here, "SNAPSHOT_SECONDS", 0)
    path, batches, runs = tmp_path / "partial.npz", cut(data(), 4), []

    def counting(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        runs.append(1)
        return network(batch)

    whole = collect(network, batches)
    with pytest.raises(KeyboardInterrupt):
        collect(network, interrupted(batches, 4), checkpoint=path, checkpoint_key="k")
    assert path.exists()
    resumed = collect(counting, batches, checkpoint=path, checkpoint_key="k")
    assert resumed.to_bytes() == whole.to_bytes()
    assert len(runs) < len(data())
    assert not path.exists()


def test_a_checkpoint_of_something_else_or_a_broken_one_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pass_here, "SNAPSHOT_SECONDS", 0)
    path, batches = tmp_path / "partial.npz", cut(data(), 4)
    whole = collect(network, batches)
    with pytest.raises(KeyboardInterrupt):
        collect(network, interrupted(batches, 4), checkpoint=path, checkpoint_key="other")
    with caplog.at_level("INFO"):
        assert collect(network, batches, checkpoint=path, checkpoint_key="mine") == whole
    assert "something else" in caplog.text
    path.write_bytes(b"broken")
    assert collect(network, batches, checkpoint=path, checkpoint_key="mine") == whole
    assert "starting over" in caplog.text


def test_a_long_pass_leaves_a_checkpoint_before_anything_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill would leave: seen from inside the pass."""
    monkeypatch.setattr(pass_here, "SNAPSHOT_SECONDS", 0)
    monkeypatch.setattr(pass_here, "CHECKPOINT_SECONDS", 0)
    path, seen = tmp_path / "partial.npz", []

    def watching(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(len(ActivationStats.load(path).samples) if path.exists() else 0)
        return network(batch)

    collect(watching, cut(data(8), 1), checkpoint=path)
    assert seen == list(range(8))


def test_workers_run_ahead_but_not_without_bound() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def slow(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return network(batch)

    collect(slow, cut(data(), 23), workers=3)
    assert 2 <= most <= 3
    assert threading.active_count() == 1 or not any("trtcal-run" in thread.name for thread in threading.enumerate())


def test_a_look_comes_at_powers_of_two_and_at_the_end_even_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_here, "SNAPSHOT_SECONDS", 0)
    batches = cut(data(23), 3)

    def looks(source: object, **options: object) -> list[int]:
        seen: list[int] = []
        with contextlib.suppress(KeyboardInterrupt):
            collect(network, source, look=lambda stats: seen.append(len(stats.samples)), **options)  # type: ignore[arg-type]
        return seen

    assert looks(batches) == [3, 6, 9, 18, 23]
    path = tmp_path / "partial.npz"
    assert looks(interrupted(batches, 4), checkpoint=path) + looks(batches, checkpoint=path) == [3, 6, 9, 18, 23]


def test_progress_counts_samples_once() -> None:
    done: list[int] = []
    collect(network, cut(data(7), 3), progress=done.append)
    assert done == list(range(1, 8))

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtcal.errors import StatsError, TrtcalError
from trtcal.passes.collect import collect
from trtcal.ranges.stats import ActivationStats, merge


def double_and_root(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"x": batch["x"], "double": batch["x"] * 2, "root": np.sqrt(np.abs(batch["x"]))}


def stats_of(x: np.ndarray, batch_size: int = 2) -> ActivationStats:
    return collect(double_and_root, [{"x": x[i : i + batch_size]} for i in range(0, len(x), batch_size)])


def data(number: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).laplace(size=(number, 5)).astype(np.float32)


def test_statistics_survive_their_file(tmp_path: Path) -> None:
    stats = stats_of(data())
    stats.save(tmp_path / "s.npz")
    assert ActivationStats.load(tmp_path / "s.npz") == stats
    assert ActivationStats.from_bytes(stats.to_bytes()) == stats
    merged = merge([stats, stats])
    assert ActivationStats.from_bytes(merged.to_bytes()) == merged


def test_equal_statistics_make_equal_bytes() -> None:
    assert stats_of(data()).to_bytes() == stats_of(data()).to_bytes()
    assert stats_of(data()).to_bytes() != stats_of(data(seed=1)).to_bytes()


def test_merging_parts_gives_the_whole_but_for_the_order_of_a_stream() -> None:
    x = data(9)
    whole = stats_of(x)
    for cut in (1, 4, 8):
        merged = merge([stats_of(x[:cut]), stats_of(x[cut:])])
        for name, tensor in whole.tensors.items():
            assert np.array_equal(merged.tensors[name].sample_amax, tensor.sample_amax)
            assert merged.tensors[name].histogram == tensor.histogram
            assert merged.tensors[name].batch_grid is None
    assert merge([whole]) == whole


def test_statistics_of_different_tensors_do_not_merge() -> None:
    a = stats_of(data())
    b = ActivationStats(a.samples, {"x": a.tensors["x"]})
    with pytest.raises(StatsError, match="'double' is in only one of them"):
        merge([a, b])
    with pytest.raises(StatsError, match="different orders"):
        merge([a, ActivationStats(a.samples, dict(reversed(a.tensors.items())))])
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])


def test_every_truncation_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    content = stats_of(data()).to_bytes()
    path = tmp_path / "s.npz"
    for length in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:length])
        with pytest.raises(StatsError, match=r"s\.npz: is not a complete file"):
            ActivationStats.load(path)


@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_flipped_byte_is_a_value_or_an_error_of_trtcal(position: int, value: int) -> None:
    content = bytearray(CONTENT)
    content[position % len(content)] = value
    try:
        stats = ActivationStats.from_bytes(bytes(content))
    except TrtcalError:
        return
    assert isinstance(stats, ActivationStats)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_an_error_of_trtcal(content: bytes) -> None:
    with pytest.raises(StatsError):
        ActivationStats.from_bytes(content)


def test_a_tensor_that_holds_nan_survives_its_file_and_merging() -> None:
    class Roots:
        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            with np.errstate(invalid="ignore"):
                return {"x": batch["x"], "root": np.sqrt(batch["x"] - 1)}

        def decisive(self, names: object) -> set[str]:
            return {"x"}

    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    stats = collect(Roots(), [{"x": x}])
    assert np.isnan(stats.tensors["root"].amax)
    assert ActivationStats.from_bytes(stats.to_bytes()) == stats
    parts = [collect(Roots(), [{"x": x[:1]}]), collect(Roots(), [{"x": x[1:]}])]
    assert not np.isnan(parts[1].tensors["root"].amax)
    merged = merge(parts).tensors["root"]
    assert np.array_equal(merged.sample_amax, stats.tensors["root"].sample_amax, equal_nan=True)
    assert merged.histogram == stats.tensors["root"].histogram


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("histogram_counts", lambda a: a[:, :16]),
        ("histogram_counts", lambda a: -a),
        ("histogram_limit", lambda a: a * np.nan),
        ("sample_amax", lambda a: a[:, 1:]),
        ("sample_amax", lambda a: -a),
        ("sample_amax", lambda a: a * np.nan),
        ("histogram_amax", lambda a: -a),
        ("histogram_counts", lambda a: a + 2**60),
        ("header", lambda a: np.frombuffer(a.tobytes().replace(b'"root"', b"3"), np.uint8)),
        ("streamed_counts", lambda a: a[1:]),
        ("header", lambda a: np.frombuffer(b"[]", np.uint8)),
        ("header", lambda a: np.frombuffer(b'{"format": "trtcal-stats-9"}', np.uint8)),
        ("header", lambda a: np.array([object()])),
    ],
)
def test_contents_that_contradict_each_other_are_refused(key: str, change: object) -> None:
    with np.load(io.BytesIO(CONTENT)) as archive:
        arrays = dict(archive)
    assert callable(change)
    arrays[key] = change(arrays[key])
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with pytest.raises(StatsError, match="<bytes>"):
        ActivationStats.from_bytes(buffer.getvalue())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StatsError, match=r"gone\.npz: cannot be read"):
        ActivationStats.load(tmp_path / "gone.npz")


CONTENT = stats_of(data()).to_bytes()


def test_the_name_of_a_sample_need_be_no_text(tmp_path: Path) -> None:
    stats = stats_of(data(2))
    odd = ActivationStats(("b\udcff\ud800.png", "größe"), stats.tensors, stats.growth, stats.batches)
    assert ActivationStats.from_bytes(odd.to_bytes()) == odd

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtcal.errors import DataError, NonFiniteError
from trtcal.samples.arrays import ArraySource
from trtcal.samples.batches import Accounting, Batch, Batches, Sample, Samples, Stream, key_of, sample_digest


class Numbers:
    """Samples 0, 1, 2, ...; what was loaded is written down."""

    def __init__(self, count: int, names: Sequence[str] | None = None) -> None:
        self.count, self.names = count, names
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> dict[str, np.ndarray]:
        self.loaded.append(index)
        return {"x": np.array([index], np.float32)}

    def name(self, index: int) -> str:
        return self.names[index] if self.names else f"s{index}"

    def label(self, index: int) -> int | None:
        return index % 3

    def key(self, indices: Sequence[int] | None = None) -> str:
        chosen = range(self.count) if indices is None else indices
        return key_of(sample_digest(self.name(i), {"x": np.array([i], np.float32)}) for i in chosen)

    def describe(self) -> str:
        return "numbers"


class Flow:
    """The same as a stream, in groups of the given sizes."""

    def __init__(self, *sizes: int) -> None:
        self.sizes, self.runs = sizes, 0

    def blocks(self) -> Iterator[list[Sample]]:
        self.runs += 1
        start = 0
        for size in self.sizes:
            yield [Sample(f"s{i}", {"x": np.array([i], np.float32)}, i % 3) for i in range(start, start + size)]
            start += size

    def describe(self) -> str:
        return "a flow"


class Broken(Numbers):
    def __init__(self, count: int, at: int, error: BaseException) -> None:
        super().__init__(count)
        self.at, self.error = at, error

    def load(self, index: int) -> dict[str, np.ndarray]:
        if index == self.at:
            raise self.error
        return super().load(index)


def rows(batches: Batches) -> list[list[int]]:
    return [batch["x"].ravel().astype(int).tolist() for batch in batches]


def decoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("trtcal-decode")]


@pytest.fixture(autouse=True)
def _no_thread_outlives_its_iteration() -> Iterator[None]:
    yield
    assert not decoders()


# --- Batch


def test_a_batch_is_a_dict_that_knows_its_samples() -> None:
    batch = Batch({"x": np.zeros((3, 2))}, samples=["a", "b", "b"], valid=2)
    assert isinstance(batch, dict)
    assert (batch.samples, batch.valid) == (("a", "b", "b"), 2)


def test_a_plain_batch_is_all_valid() -> None:
    batch = Batch({"x": np.zeros((3, 2)), "y": np.zeros(3)})
    assert (batch.samples, batch.valid) == (("0", "1", "2"), 3)


def test_a_batch_survives_pickling() -> None:
    batch = pickle.loads(pickle.dumps(Batch({"x": np.arange(2)}, samples=["a", "b"], valid=1)))
    assert (batch["x"].tolist(), batch.samples, batch.valid) == ([0, 1], ("a", "b"), 1)


@pytest.mark.parametrize(
    ("arrays", "more"),
    [
        ({"x": np.zeros(2), "y": np.zeros(3)}, {}),
        ({}, {}),
        ({"x": np.zeros(2)}, {"samples": ["a"]}),
        ({"x": np.zeros(2)}, {"valid": 3}),
        ({"x": np.zeros(2)}, {"valid": -1}),
    ],
)
def test_a_batch_that_does_not_add_up_is_refused(arrays: dict[str, np.ndarray], more: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"a batch needs|rows have"):
        Batch(arrays, **more)  # type: ignore[arg-type]


# --- grouping and accounting

CASES = [
    (7, 3, "pad", [[0, 1, 2], [3, 4, 5], [6, 6, 6]], 1, Accounting(7, 7, 3, 3, 2, 0)),
    (7, 3, "wrap", [[0, 1, 2], [3, 4, 5], [6, 0, 1]], 1, Accounting(7, 7, 3, 3, 2, 0)),
    (7, 3, "drop", [[0, 1, 2], [3, 4, 5]], 3, Accounting(7, 6, 2, 3, 0, 1)),
    (6, 3, "error", [[0, 1, 2], [3, 4, 5]], 3, Accounting(6, 6, 2, 3, 0, 0)),
    (2, 5, "pad", [[0, 1, 1, 1, 1]], 2, Accounting(2, 2, 1, 5, 3, 0)),
    (2, 5, "wrap", [[0, 1, 0, 1, 0]], 2, Accounting(2, 2, 1, 5, 3, 0)),
    (3, 1, "pad", [[0], [1], [2]], 1, Accounting(3, 3, 3, 1, 0, 0)),
]


@pytest.mark.parametrize("kind", ["samples", "stream"])
@pytest.mark.parametrize(("count", "size", "partial", "expected", "valid", "accounting"), CASES)
def test_the_last_batch_is_what_partial_says(
    kind: str,
    count: int,
    size: int,
    partial: str,
    expected: list[list[int]],
    valid: int,
    accounting: Accounting,
) -> None:
    source = Numbers(count) if kind == "samples" else Flow(*[2] * (count // 2), *[1] * (count % 2))
    batches = Batches(source, size, partial=partial)  # type: ignore[arg-type]
    made = list(batches)
    assert [batch["x"].ravel().astype(int).tolist() for batch in made] == expected
    assert [batch.samples for batch in made] == [tuple(f"s{i}" for i in row) for row in expected]
    assert [batch.valid for batch in made] == [size] * (len(expected) - 1) + [valid]
    assert batches.accounting() == accounting
    assert len(batches) == len(expected)
    assert batches.num_samples == sum(batch.valid for batch in made) == accounting.used
    assert batches.batch_size == size
    assert batches.sample_names == tuple(f"s{i}" for i in range(accounting.used))
    assert batches.labels == tuple(i % 3 for i in range(accounting.used))


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.integers(1, 7),
    st.sampled_from(["pad", "wrap"]),
    st.none() | st.integers(1, 20),
)
def test_a_stream_makes_the_same_batches_as_samples(
    sizes: list[int], size: int, partial: str, limit: int | None
) -> None:
    if limit is not None:
        limit = min(limit, sum(sizes))
    stream = Batches(Flow(*sizes), size, partial=partial, samples=limit)  # type: ignore[arg-type]
    # Cut short, a stream has the first of its samples, and never learns what else there was.
    samples = Batches(Numbers(limit or sum(sizes)), size, partial=partial)  # type: ignore[arg-type]
    assert rows(stream) == rows(samples)
    assert stream.key() == samples.key()
    assert stream.accounting() == replace(samples.accounting(), chosen="the first of a stream" if limit else "")


@pytest.mark.parametrize(
    ("accounting", "sentence"),
    [
        (Accounting(100, 100, 7, 16, 12, 0), "100 samples: 7 batches of 16, last one padded with 12 repeats"),
        (Accounting(16, 15, 1, 16, 1, 0), "15 of 16 samples: 1 batch of 16, last one padded with 1 repeat"),
        (Accounting(100, 96, 6, 16, 0, 4), "96 of 100 samples: 6 batches of 16, 4 left over and dropped"),
        (Accounting(8, 8, 2, 4, 0, 0), "8 samples: 2 batches of 4"),
        (Accounting(9, 8, 2, 4, 0, 0, "evenly spaced"), "8 of 9 samples, evenly spaced: 2 batches of 4"),
    ],
)
def test_accounting_reads_as_a_sentence(accounting: Accounting, sentence: str) -> None:
    assert str(accounting) == sentence


# --- order


def test_sorted_goes_by_the_bytes_of_the_names() -> None:
    source = Numbers(5, names=["b10", "b9", "a", "é", "B"])
    assert rows(Batches(source, 5, order="sorted")) == [[4, 2, 0, 1, 3]]


def test_shuffled_is_numpys_permutation_of_the_seed() -> None:
    expected = np.random.default_rng(7).permutation(9).tolist()
    assert rows(Batches(Numbers(9), 9, order="shuffled", seed=7)) == [expected]
    assert rows(Batches(Numbers(9), 9, order="shuffled", seed=8)) != [expected]


def test_an_order_of_ones_own_may_repeat_and_leave_out() -> None:
    batches = Batches(Numbers(5), 2, order=np.array([4, 0, 4]))  # type: ignore[arg-type]
    assert rows(batches) == [[4, 0], [4, 4]]
    assert batches.labels == (1, 0, 1)


class Plain(Numbers):
    """The same without classes."""

    def label(self, index: int) -> int | None:
        return None


def test_a_part_is_spread_over_the_samples_in_their_order() -> None:
    batches = Batches(Plain(9), 4, samples=4)
    assert rows(batches) == [[1, 3, 5, 7]]
    assert str(batches.accounting()) == "4 of 9 samples, evenly spaced: 1 batch of 4"
    assert rows(Batches(Plain(9), 4, order=[8, 0, 7, 1, 6, 2], samples=3)) == [[0, 1, 2, 2]]
    assert rows(Batches(Plain(9), 4, samples=9)) == rows(Batches(Plain(9), 4))


def test_a_part_is_spread_over_the_classes() -> None:
    sorted_by_class = Batches(ArraySource({"x": np.arange(40.0)[:, None]}, labels=np.arange(40) // 10), 4, samples=8)
    assert rows(sorted_by_class) == [[2, 7, 12, 17], [22, 27, 32, 37]]
    assert sorted_by_class.labels == (0, 0, 1, 1, 2, 2, 3, 3)
    assert str(sorted_by_class.accounting()) == "8 of 40 samples, spread over 4 classes: 2 batches of 4"
    known = Batches(Plain(8), 2, samples=2, labels={f"s{i}": "ab"[i > 5] for i in range(8)})
    assert rows(known) == [[3, 7]]


def test_a_part_is_taken_after_ordering() -> None:
    batches = Batches(Plain(9), 4, order="shuffled", seed=3, samples=4)
    assert rows(batches) == [np.random.default_rng(3).permutation(9)[[1, 3, 5, 7]].tolist()]
    assert str(batches.accounting()) == "4 of 9 samples: 1 batch of 4"


def test_batches_have_a_part_of_their_own_samples_which_is_padded() -> None:
    batches = Batches(Plain(21), 4, order=[*range(20, 0, -2)], partial="drop")
    part = batches.part(3)
    assert rows(part) == [[18, 12, 8, 8]]
    assert str(part.accounting()) == "3 of 21 samples, evenly spaced: 1 batch of 4, last one padded with 1 repeat"
    assert (batches.partial, batches.num_samples) == ("drop", 8)
    assert rows(batches.part(99)) == rows(batches)  # and none of those that it drops
    assert rows(Batches(Numbers(9), 3).part(3)) == [[3, 4, 5]]
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        batches.part(0)


def test_a_part_of_a_stream_is_its_beginning() -> None:
    stream = Batches(Flow(4, 4), 3, samples=6)
    assert stream.num_samples == 6
    assert rows(stream.part(4)) == [[0, 1, 2], [3, 3, 3]]
    assert rows(stream.part(99)) == rows(stream) == [[0, 1, 2], [3, 4, 5]]
    assert stream.part(4).labels == (0, 1, 2, 0)


def test_more_samples_than_there_are_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert Batches(Numbers(3), 2, samples=10).num_samples == 3
    assert "10 samples asked for, 3 there" in caplog.text


@pytest.mark.parametrize("kind", ["samples", "stream"])
def test_every_iteration_yields_the_same(kind: str) -> None:
    source = Numbers(10) if kind == "samples" else Flow(4, 4, 2)
    batches = Batches(source, 3, order="shuffled" if kind == "samples" else "given")
    assert rows(batches) == rows(batches)
    for left, right in zip(batches, batches, strict=True):  # two at once do not disturb each other
        assert left.samples == right.samples


def test_the_key_is_of_the_samples_used_and_of_an_explicit_order() -> None:
    key = Batches(Numbers(6), 2).key()
    assert len(key) == 64
    assert key == Batches(Numbers(6), 3, partial="wrap").key()
    assert key == Batches(Numbers(6), 2, order="shuffled", seed=1).key()
    others = [
        Batches(Numbers(6), 2, order=[1, 0, 2, 3, 4, 5]),
        Batches(Numbers(6), 2, samples=4),  # not the first four, nor are they known by that number alone
        Batches(Numbers(4), 2),
        Batches(Numbers(6), 5, partial="drop"),
        Batches(Numbers(6, names="abcdef"), 2),
    ]
    assert len({key, *(batches.key() for batches in others)}) == 6


# --- streams


def test_a_stream_may_keep_its_own_batches() -> None:
    batches = Batches(Flow(3, 2, 4), None, samples=8)
    assert rows(batches) == [[0, 1, 2], [3, 4], [5, 6, 7]]
    assert batches.batch_size == 3
    assert batches.accounting() == Accounting(8, 8, 3, 3, 0, 0, "the first of a stream")


def test_an_endless_stream_is_cut_and_never_read_beyond() -> None:
    class Endless(Flow):
        def blocks(self) -> Iterator[list[Sample]]:
            for i in range(6):
                yield [Sample(f"s{i}", {"x": np.array([i], np.float32)}, None)]
            pytest.fail("read on")

    batches = Batches(Endless(), 4, samples=6)
    assert rows(batches) == [[0, 1, 2, 3], [4, 5, 5, 5]]
    assert batches.labels is None


def test_counting_a_stream_takes_one_run() -> None:
    flow = Flow(4, 4)
    batches = Batches(flow, 3)
    assert flow.runs == 0
    assert (len(batches), batches.num_samples, len(batches.key()), batches.labels) is not None
    assert flow.runs == 1


@pytest.mark.parametrize("order", ["sorted", "shuffled", [1, 0], np.arange(2)])
def test_a_stream_cannot_be_ordered(order: str) -> None:
    wanted = order if isinstance(order, str) else "taken by sample numbers"
    said = f"a flow: a stream comes in its own order and cannot be {wanted}; order it where it is made"
    with pytest.raises(DataError, match=said):
        Batches(Flow(2), 1, order=order)  # type: ignore[arg-type]


@pytest.mark.parametrize("count_first", [False, True])
def test_a_stream_that_does_not_start_anew_is_noticed(count_first: bool) -> None:
    class Once(Flow):
        def blocks(self) -> Iterator[list[Sample]]:
            return super().blocks() if self.runs == 0 else iter([])

    batches = Batches(Once(2, 2), 2)
    if count_first:
        assert len(batches) == 2
    else:
        assert rows(batches) == [[0, 1], [2, 3]]
    with pytest.raises(DataError, match="4 samples the first time, 0 now"):
        rows(batches)


# --- refusals


@pytest.mark.parametrize("kind", ["samples", "stream"])
@pytest.mark.parametrize(
    ("count", "partial", "words"),
    [
        (3, "drop", "3 samples make no batch of 4"),
        (5, "error", "5 samples do not fill batches of 4, 1 are left over"),
        (0, "pad", "no samples at all"),
        (0, "drop", "no samples at all"),
    ],
)
def test_samples_that_make_no_batch_are_refused(kind: str, count: int, partial: str, words: str) -> None:
    source = Numbers(count) if kind == "samples" else Flow(*[1] * count)
    for use in (rows, len, Batches.accounting):
        with pytest.raises(DataError, match=words):
            use(Batches(source, 4, partial=partial))  # type: ignore[arg-type]


def test_an_empty_stream_is_refused_with_batches_of_its_own() -> None:
    for use in (rows, len):
        with pytest.raises(DataError, match="no samples at all"):
            use(Batches(Flow(), None))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": None}, "single samples"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"partial": "skip"}, "pad, wrap, drop, error"),
        ({"order": "random"}, "given, sorted, shuffled"),
        ({"order": [0, 9]}, r"0\.\.4"),
        ({"order": [-1]}, r"0\.\.4"),
        ({"order": []}, r"0\.\.4"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Batches(Numbers(5), **{"batch_size": 2, **arguments})  # type: ignore[arg-type]


def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(TypeError, match="IterableSource"):
        Batches([{"x": np.zeros(1)}], 1)  # type: ignore[arg-type]
    assert isinstance(Numbers(1), Samples)
    assert not isinstance(Numbers(1), Stream)
    assert isinstance(Flow(), Stream)
    assert not isinstance(Flow(), Samples)


def test_samples_of_different_shapes_cannot_share_a_batch() -> None:
    class Growing(Numbers):
        def load(self, index: int) -> dict[str, np.ndarray]:
            return {"x": np.zeros((index + 1, 2), np.float32)}

    with pytest.raises(DataError, match=r"'s0' \(1, 2\) and 's1' \(2, 2\) differ in input 'x'.*batch size 1"):
        list(Batches(Growing(2), 2))
    assert [batch["x"].shape for batch in Batches(Growing(2), 1)] == [(1, 1, 2), (1, 2, 2)]


def test_samples_of_different_inputs_cannot_share_a_batch() -> None:
    class Odd(Numbers):
        def load(self, index: int) -> dict[str, np.ndarray]:
            return {"xy"[index]: np.zeros(1)}

    with pytest.raises(DataError, match=r"'s0' and 's1' have different inputs, \['x'\] and \['y'\]"):
        list(Batches(Odd(2), 2))


# --- errors and threads


def test_an_error_surfaces_at_its_batch_with_its_sample_and_cause() -> None:
    cause = RuntimeError("bad disk")
    iterator = iter(Batches(Broken(10, at=5, error=cause), 2))
    assert next(iterator).samples == ("s0", "s1")
    assert next(iterator).samples == ("s2", "s3")
    with pytest.raises(DataError, match="sample 's5' cannot be loaded: RuntimeError: bad disk") as caught:
        next(iterator)
    assert caught.value.__cause__ is cause
    with pytest.raises(StopIteration):
        next(iterator)


def test_errors_of_our_own_pass_as_they_are() -> None:
    with pytest.raises(NonFiniteError, match=r"^nan in s1$"):
        list(Batches(Broken(3, at=1, error=NonFiniteError("nan in s1")), 2))


def test_of_two_broken_samples_the_first_in_order_is_named() -> None:
    class BothBroken(Numbers):
        def load(self, index: int) -> dict[str, np.ndarray]:
            time.sleep(0.02 if index == 1 else 0)
            raise OSError(f"number {index}")

    with pytest.raises(DataError, match="'s1'"):
        list(Batches(BothBroken(3), 3, order=[1, 0, 2]))


def test_decoding_runs_two_batches_ahead_and_no_further() -> None:
    source = Numbers(40)
    iterator = iter(Batches(source, 4))
    next(iterator)
    deadline = time.monotonic() + 10
    while len(source.loaded) < 12 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert sorted(source.loaded) == list(range(12))
    del iterator


def test_a_repeated_sample_is_decoded_once_for_its_batch() -> None:
    source = Numbers(5)
    assert rows(Batches(source, 4)) == [[0, 1, 2, 3], [4, 4, 4, 4]]
    assert sorted(source.loaded) == [0, 1, 2, 3, 4]


def test_leaving_early_ends_the_threads() -> None:
    source = Numbers(100)
    for _ in Batches(source, 4):
        break
    assert not decoders()
    assert len(source.loaded) <= 12
    iterator = iter(Batches(source, 4))
    next(iterator)
    assert decoders()
    iterator.close()  # type: ignore[attr-defined]
    assert not decoders()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_ends_the_threads(interruption: type[BaseException]) -> None:
    def work() -> None:
        for number, _ in enumerate(Batches(Numbers(100), 4)):
            if number == 2:
                raise interruption

    with pytest.raises(interruption):
        work()
    assert not decoders()


def test_an_interruption_inside_the_wait_ends_the_threads() -> None:
    with pytest.raises(KeyboardInterrupt):
        list(Batches(Broken(100, at=30, error=KeyboardInterrupt()), 4))
    assert not decoders()


def test_the_samples_of_a_batch_are_decoded_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    together = threading.Barrier(4, timeout=30)

    class Meeting(Numbers):
        def load(self, index: int) -> dict[str, np.ndarray]:
            together.wait()  # four threads, or never
            return super().load(index)

    assert rows(Batches(Meeting(8), 4)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_arrays_in_memory_go_through_unchanged() -> None:
    array = np.random.default_rng(0).normal(size=(10, 3, 4)).astype(np.float32)
    batches = Batches(ArraySource({"x": array}), 5)
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), array)


def test_samples_that_leave_most_classes_out_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    source = ArraySource({"x": np.zeros((40, 2), np.float32)}, labels=np.arange(40) // 4)
    for order, samples in (("given", None), ("given", 40), ("given", 6), ("shuffled", 10)):
        Batches(source, 4, order=order, samples=samples)  # type: ignore[arg-type]
    Batches(ArraySource({"x": np.zeros((40, 2), np.float32)}), 4, samples=1)
    Batches(source, 4).part(5)
    assert not caplog.records
    for order in ("given", "shuffled"):
        Batches(source, 4, order=order, samples=5)  # type: ignore[arg-type]
        assert caplog.messages.pop() == "5 samples are of 5 of 10 classes; more would be of more"
    Batches(source, 4, samples=1)
    assert caplog.messages[-1] == "1 sample is of 1 of 10 classes; more would be of more"


def test_a_part_of_another_mix_of_classes_says_so() -> None:
    rare = ArraySource({"x": np.zeros((40, 2), np.float32)}, labels=[0] * 36 + [1] * 4)
    assert Batches(rare, 4, samples=8).mix == "50% of them are of class 0, of all samples 90%"
    assert [Batches(rare, 4, samples=number).mix for number in (None, 40, 39)] == [None] * 3
    assert Batches(rare, 4).part(2).mix is not None
    even = ArraySource({"x": np.zeros((40, 2), np.float32)}, labels=np.arange(40) % 4)
    assert Batches(even, 4, samples=8).mix is None


@pytest.mark.parametrize(("samples", "size"), [(16, 8), (5, 2), (1, 1), (64, 16), (200, 8)])
def test_the_first_of_a_spread_order_stand_for_all(samples: int, size: int) -> None:
    labels = np.arange(100) // 25  # sorted by class, as folders are
    batches = Batches(ArraySource({"x": np.arange(100, dtype=np.float32)[:, None]}, labels=labels), size)
    made, places = batches.first_spread(samples)
    assert sorted(places) == list(range(100))
    whole = np.concatenate([batch["x"][: batch.valid, 0] for batch in made]).astype(int)
    assert whole.tolist() == places
    assert made.sample_names == tuple(batches.sample_names[place] for place in places)
    assert made.key() == batches.key()
    count = -(-samples // size) * size
    while count < 100:
        there = np.bincount(labels[places[:count]], minlength=4)
        assert there.max() - there.min() <= 1 + np.log2(count)  # a turn more, at each doubling
        assert there.sum() == count
        count *= 2


def test_dropped_samples_stay_out_of_a_spread_order() -> None:
    batches = Batches(ArraySource({"x": np.arange(10, dtype=np.float32)[:, None]}), 4, partial="drop")
    made, places = batches.first_spread(4)
    assert sorted(places) == list(range(8))
    assert sorted(np.concatenate([batch["x"][:, 0] for batch in made])) == list(range(8))

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from calibrators.feed import Feed
from calibrators.intake import expected_inputs
from calibrators.memory import HostMemory
from trtcal.errors import BackendError, DataError, NonFiniteError
from trtcal.samples.batches import Batch

X = {"x": ((2, 3), "float32")}


def batches(count: int, size: int = 2) -> list[dict[str, np.ndarray]]:
    return [{"x": np.full((size, 3), k + 1, np.float32)} for k in range(count)]


class Watched(HostMemory):
    """Host memory whose uploads arrive only when they are waited for, as they may on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self._queue: list[tuple[int, np.ndarray]] = []

    def upload(self, address: int, staging: Any) -> None:
        self.log.append("upload")
        self._queue.append((address, staging))

    def synchronize(self, stream: int | None = None) -> None:
        self.log.append("wait")
        for address, staging in self._queue:
            super().upload(address, staging)
        self._queue.clear()


def drain(feed: Feed, memory: HostMemory, name: str = "x") -> list[np.ndarray]:
    """What TensorRT would read of one input: the bytes at its pointer, before the next call."""
    read = []
    while pointers := feed.next([name]):
        expected = feed.expected[name]
        data = memory.read(pointers[0], expected.nbytes)
        read.append(np.frombuffer(data, expected.dtype).reshape(expected.shape))
    return read


def feed_once(value: np.ndarray) -> None:
    Feed([{"x": value}], inputs=X, memory="host").next(["x"])


def test_every_batch_arrives_once_and_in_order() -> None:
    memory = HostMemory()
    read = drain(Feed(batches(5), memory=memory), memory)
    assert [array[0, 0] for array in read] == [1, 2, 3, 4, 5]


def test_pointers_come_in_the_order_of_the_names() -> None:
    memory = HostMemory()
    first = {"a": np.full((1, 1), 1, np.float32), "b": np.full((1, 1), 2, np.float32)}
    for names in (["a", "b"], ["b", "a"]):
        pointers = Feed([first], memory=memory).next(names)
        values = [np.frombuffer(memory.read(p, 4), np.float32)[0] for p in pointers]
        assert values == [first[name][0, 0] for name in names]


def test_the_copy_of_the_next_batch_is_under_way_before_this_one_is_handed_over() -> None:
    memory = Watched()
    feed = Feed(batches(2), memory=memory)
    feed.next(["x"])
    assert memory.log == ["upload", "wait", "upload"]


def test_a_copy_is_waited_for_before_its_pointer_is_handed_over() -> None:
    memory = Watched()
    assert [array[0, 0] for array in drain(Feed(batches(4), memory=memory), memory)] == [1, 2, 3, 4]


def test_a_batch_stays_unchanged_while_the_next_one_is_copied() -> None:
    memory = HostMemory()
    feed = Feed(batches(3), memory=memory)
    first = feed.next(["x"])[0]
    second = feed.next(["x"])[0]
    third = feed.next(["x"])[0]
    assert first != second
    assert first == third


def test_a_long_feed_allocates_nothing_after_its_second_batch() -> None:
    memory = HostMemory()
    feed = Feed(({"x": np.zeros((2, 3), np.float32)} for _ in range(10_000)), memory=memory)
    feed.next(["x"])
    feed.next(["x"])
    seen = set()
    while feed.next(["x"]):
        seen.add(memory.live)
    assert seen == {4}
    assert feed.consumed == 10_000


def test_everything_is_freed_at_the_end_of_the_data() -> None:
    memory = HostMemory()
    feed = Feed(batches(3), memory=memory)
    drain(feed, memory)
    assert memory.live == 0
    assert feed.next(["x"]) == []


def test_everything_is_freed_by_close() -> None:
    memory = HostMemory()
    feed = Feed(batches(3), memory=memory)
    feed.next(["x"])
    feed.close()
    feed.close()
    assert memory.live == 0


def test_everything_is_freed_after_an_error_in_the_loader() -> None:
    def broken() -> Iterator[dict[str, np.ndarray]]:
        yield from batches(2)
        raise OSError("disk gone")

    memory = HostMemory()
    feed = Feed(broken(), memory=memory)
    with pytest.raises(OSError, match="disk gone"):
        drain(feed, memory)
    assert memory.live == 0
    assert feed.where == "batch 3"


def test_the_loader_is_closed_with_the_feed() -> None:
    closed = []

    def loader() -> Iterator[dict[str, np.ndarray]]:
        try:
            yield from batches(5)
        finally:
            closed.append(True)

    feed = Feed(loader(), memory="host")
    feed.next(["x"])
    feed.close()
    assert closed == [True]


def test_one_allocation_after_the_other_may_fail_and_nothing_is_left() -> None:
    class Scarce(HostMemory):
        def __init__(self, allowed: int) -> None:
            super().__init__()
            self.allowed = allowed

        def _take(self) -> None:
            self.allowed -= 1
            if self.allowed < 0:
                raise BackendError("out of memory")

        def allocate(self, nbytes: int) -> int:
            self._take()
            return super().allocate(nbytes)

        def allocate_staging(self, nbytes: int) -> Any:
            self._take()
            return super().allocate_staging(nbytes)

    for allowed in range(4):
        memory = Scarce(allowed)
        feed = Feed(batches(3), memory=memory)
        with pytest.raises(BackendError, match="out of memory"):
            drain(feed, memory)
        assert memory.live == 0
    memory = Scarce(4)
    assert len(drain(Feed(batches(3), memory=memory), memory)) == 3


def test_rows_are_counted_without_padding() -> None:
    data = {"x": np.zeros((2, 3), np.float32)}
    memory = HostMemory()
    feed = Feed([Batch(data), Batch(data, samples=("a", "a"), valid=1)], memory=memory)
    drain(feed, memory)
    assert (feed.consumed, feed.samples) == (2, 3)


# The batch size


def test_the_batch_size_of_a_loader_is_believed_without_reading_it() -> None:
    class Loader(list[Any]):
        batch_size = 16

    assert Feed(Loader()).batch_size == 16


def test_the_batch_size_is_read_off_the_first_batch_which_is_then_not_lost() -> None:
    memory = HostMemory()
    feed = Feed(iter(batches(3, size=5)), memory=memory)
    assert feed.known_batch_size is None
    assert feed.batch_size == 5
    assert [array[0, 0] for array in drain(feed, memory)] == [1, 2, 3]


def test_the_batch_size_of_an_empty_loader_is_an_error() -> None:
    with pytest.raises(DataError, match="no batch at all"):
        _ = Feed([]).batch_size


def test_an_empty_loader_is_an_error_and_not_an_end() -> None:
    with pytest.raises(DataError, match="no batch at all"):
        Feed([], memory="host").next(["x"])


# What is checked before a pointer leaves


def test_a_shorter_last_batch_is_refused_and_the_way_out_named() -> None:
    memory = HostMemory()
    feed = Feed([*batches(1, size=4), *batches(1, size=3)], memory=memory)
    with pytest.raises(DataError, match=r"'x': the shape is \(3, 3\), the first batch had \(4, 3\).*pad.*drop_last"):
        drain(feed, memory)


def test_more_rows_than_the_network_reads_are_refused() -> None:
    with pytest.raises(DataError, match=r"the network reads \(2, 3\); TensorRT would read only the first rows"):
        feed_once(np.zeros((8, 3), np.float32))


def test_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"the shape is \(2, 4\), the network reads \(2, 3\)$"):
        feed_once(np.zeros((2, 4), np.float32))


def test_a_missing_input_is_named_beside_what_is_there() -> None:
    with pytest.raises(DataError, match=r"asks for input 'y'; the batch holds \['x'\]"):
        Feed(batches(1), memory="host").next(["x", "y"])


def test_an_input_that_the_description_lacks_is_named() -> None:
    with pytest.raises(DataError, match=r"asks for input 'y'; inputs= describes \['x'\]"):
        Feed(batches(1), inputs=X, memory="host").next(["y"])


def test_what_else_a_batch_holds_is_left_alone() -> None:
    memory = HostMemory()
    batch = {**batches(1)[0], "label": np.arange(2), "path": ["a", "b"]}
    assert len(drain(Feed([batch], memory=memory), memory)) == 1


def test_other_names_in_a_later_call_are_an_error() -> None:
    feed = Feed([{"x": np.zeros((1, 1)), "y": np.zeros((1, 1))}] * 3, memory="host")
    feed.next(["x", "y"])
    with pytest.raises(DataError, match="asked for inputs"):
        feed.next(["y", "x"])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e300])
def test_inf_and_nan_are_refused_with_the_sample(value: float) -> None:
    array = np.zeros((2, 3), np.float64)
    array[1, 2] = value
    batch = Batch({"x": array}, samples=("a.png", "b.png"))
    with pytest.raises(NonFiniteError, match=r"sample 'b.png' holds .*(inf|nan) at \(1, 2\)"):
        Feed([batch], memory="host").next(["x"])


def test_errors_can_tell_the_batch_and_its_samples() -> None:
    good = Batch({"x": np.zeros((2, 3))}, samples=("a", "b"))
    bad = Batch({"x": np.full((2, 3), np.nan)}, samples=("c", "d"))
    feed = Feed([good, bad], memory="host")
    with pytest.raises(NonFiniteError):
        feed.next(["x"])
    assert feed.where == "batch 2 (samples c, d)"


def test_none_in_the_data_is_not_their_end() -> None:
    good, other = batches(2)
    feed = Feed([good, None, other], memory="host")  # type: ignore[list-item]
    with pytest.raises(TypeError, match="got NoneType"):
        feed.next(["x"])  # the second is loaded ahead
    assert feed.where == "batch 2"
    assert not feed.exhausted


def test_a_loader_that_ends_before_its_length_is_an_error() -> None:
    class Short(list[Any]):
        def __len__(self) -> int:
            return 3

    memory = HostMemory()
    feed = Feed(Short(batches(2)), memory=memory)
    feed.next(["x"])
    with pytest.raises(DataError, match=r"says that it has 3 batches \(its len\(\)\), and ended after 2"):
        feed.next(["x"])
    assert not feed.exhausted
    assert memory.live == 0


def test_a_length_that_cannot_be_told_is_not_asked_for_again() -> None:
    class Stream(list[Any]):
        def __len__(self) -> int:
            raise TypeError("a stream has no length")

    memory = HostMemory()
    assert len(drain(Feed(Stream(batches(2)), memory=memory), memory)) == 2


def test_only_the_end_of_the_data_counts_as_their_end() -> None:
    feed = Feed(batches(2), memory="host")
    feed.next(["x"])
    assert not feed.exhausted
    feed.close()
    with pytest.raises(BackendError, match="closed before"):
        feed.next(["x"])
    whole = Feed(batches(1), memory="host")
    assert whole.next(["x"])
    assert not whole.exhausted
    assert whole.next(["x"]) == []
    assert whole.exhausted


@pytest.mark.parametrize("size", [0, -3, "4", 2.0, True, 2**40])
def test_a_batch_size_that_is_none_is_refused_at_once(size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        Feed(batches(1), batch_size=size)


def test_another_batch_size_than_was_said_is_an_error() -> None:
    with pytest.raises(DataError, match="batch_size=17 was said, the batch has 2 rows"):
        Feed(batches(1), batch_size=17, memory="host").next(["x"])


def test_a_memory_of_no_name_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="memory must be one of"):
        Feed(batches(1), memory="bogus")


def test_a_batch_without_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="the first batch has 0 rows"):
        Feed([{"x": np.zeros((0, 3), np.float32)}]).batch_size  # noqa: B018
    with pytest.raises(DataError, match="without a row"):
        Feed([{"x": np.zeros((0, 3), np.float32)}], memory="host").next(["x"])


@pytest.mark.parametrize("protocol", ["cuda", "dlpack"])
def test_the_batch_size_of_an_array_that_has_no_shape_of_its_own_is_known(protocol: str) -> None:
    class Cuda:
        __cuda_array_interface__ = {"shape": (5, 3), "typestr": "<f4", "data": (4096, False), "version": 3}  # noqa: RUF012

    class Pack:
        array = np.zeros((5, 3), np.float32)

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__()

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    value = Cuda() if protocol == "cuda" else Pack()
    assert Feed([{"label": "cat", "x": value}]).batch_size == 5


def test_an_entry_that_is_no_array_is_an_error_where_it_is_an_input() -> None:
    feed = Feed([{"x": np.zeros((2, 3)), "label": ["a", "b"]}])
    assert feed.first_shapes(["x"]) == {"x": (2, 3)}
    with pytest.raises(TypeError, match=r"input 'label': cannot feed a builtins.list"):
        feed.first_shapes(["x", "label"])


def test_a_loader_of_pairs_is_told_how_to_become_one_of_mappings() -> None:
    with pytest.raises(TypeError, match=r"got tuple.*'input': x"):
        Feed([(np.zeros(3), 1)], memory="host").next(["x"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="got tuple"):
        Feed([(np.zeros(3), 1)]).first_shapes()  # type: ignore[list-item]


@pytest.mark.parametrize("batches", ["folder", {"x": np.zeros(3)}, 7])
def test_what_is_no_iterable_of_batches_is_refused_at_once(batches: Any) -> None:
    with pytest.raises(TypeError, match="iterable of mappings"):
        Feed(batches)


def test_a_shape_that_is_not_complete_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="must be complete"):
        expected_inputs({"x": ((-1, 3), "float32")})


def test_the_network_cannot_be_described_once_the_feed_has_begun() -> None:
    feed = Feed(batches(2), memory="host")
    feed.next(["x"])
    with pytest.raises(ValueError, match="has begun"):
        feed.expect(X)


def test_the_backend_in_use_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="calibrators")
    Feed(batches(1), memory="host").next(["x"])
    assert "memory backend 'host'" in caplog.text

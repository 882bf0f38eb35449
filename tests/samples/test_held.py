from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from trtcal.samples.batches import Batches
from trtcal.samples.held import Held, in_order
from trtcal.samples.sources import ArraySource
from trtcal.samples.streams import IterableSource
from trtcal.spec import InputSpec


class Counted(ArraySource):
    loads = 0

    def load(self, index: int) -> dict[str, np.ndarray]:
        type(self).loads += 1
        return super().load(index)


X = np.arange(10, dtype=np.float32).reshape(10, 1)


@pytest.fixture
def batches() -> Batches:
    Counted.loads = 0
    return Batches(Counted({"x": X}), 3)


def seen(held: Iterator[dict[str, np.ndarray]]) -> list[float]:
    return [float(batch["x"][0, 0]) for batch in held]


def test_samples_that_fit_are_read_once(batches: Batches) -> None:
    held = Held(batches)
    assert seen(held.some(0, 2)) == [0, 3]
    assert seen(held.some(1, 4)) == [3, 6, 9]
    assert seen(iter(held)) == [0, 3, 6, 9]
    assert Counted.loads == 10


def test_what_does_not_fit_is_read_again_and_is_the_same(batches: Batches) -> None:
    held = Held(batches, at_most=25)  # two batches of 12 bytes
    for first, last in ((0, 4), (1, 3), (3, 4), (0, None), (2, 2)):
        assert seen(held.some(first, last)) == [0, 3, 6, 9][first:last]
    assert len(held._kept) == 2


def test_a_later_part_may_come_first(batches: Batches) -> None:
    held = Held(batches)
    assert seen(held.some(2, 4)) == [6, 9]
    assert seen(held.some(0, None)) == [0, 3, 6, 9]


def test_a_stream_is_gone_through_again() -> None:
    held = Held(
        Batches(IterableSource([{"x": X[:4]}, {"x": X[4:]}], inputs=[InputSpec("x", np.dtype("float32"), (1,))]), 3),
        at_most=0,
    )
    assert seen(held.some(2, 4)) == [6, 9]
    assert seen(held.some(0, 1)) == [0]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_work_is_done_in_order_whatever_ends_first(workers: int) -> None:
    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    assert list(in_order(work, range(20), workers)) == [number * number for number in range(20)]


def test_no_more_is_taken_than_can_be_worked_on() -> None:
    taken, done = [], threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        done.release()
        return number

    found = in_order(work, items(), 2)
    assert next(found) == 0
    assert len(taken) <= 4
    found.close()  # type: ignore[attr-defined]


def test_what_fails_is_raised_in_its_place() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    found = in_order(work, range(9), 2)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(found)

from __future__ import annotations

import threading

import pytest

from trtcal.passes.ordered import in_order


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_results_come_in_the_order_of_the_items_and_no_more_are_taken_than_have_room(workers: int) -> None:
    taken = 0

    def items() -> object:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield number

    found = []
    for result in in_order(lambda number: number * 2, items(), workers):  # type: ignore[arg-type, operator]
        found.append(result)
        assert taken <= len(found) + workers
    assert found == [2 * number for number in range(20)]


def test_two_items_are_worked_on_at_once() -> None:
    together = threading.Barrier(2, timeout=30)
    assert len(list(in_order(lambda number: together.wait(), range(4), 2))) == 4


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda number: 1 // number, [2, 0, 1], 2))

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtcal.samples.spread import evenly, spread

CLASSES = st.lists(st.sampled_from([None, 0, 1, 2, "x"]), min_size=1, max_size=60)


def test_without_classes_the_samples_are_evenly_spaced() -> None:
    assert spread([None] * 100, 4) == [12, 37, 62, 87]
    assert spread([None] * 10, 3) == [1, 5, 8]
    assert spread([None] * 9, 1) == [4]
    assert spread([7] * 10, 3) == [1, 5, 8]


def test_classes_have_equal_parts_evenly_spaced_within_each() -> None:
    folders = [0] * 10 + [1] * 10 + [2] * 20
    assert spread(folders, 6) == [2, 7, 12, 17, 25, 35]
    assert spread([row % 2 for row in range(12)], 4) == [2, 3, 8, 9]


def test_a_class_that_has_no_more_leaves_its_turns_to_the_others() -> None:
    classes = ["rare"] * 2 + ["a"] * 50 + ["b"] * 50
    assert Counter(classes[place] for place in spread(classes, 22)) == {"rare": 2, "a": 10, "b": 10}


def test_of_more_classes_than_samples_some_that_are_evenly_spaced_have_one_each() -> None:
    classes = [row // 10 for row in range(100)]
    assert [classes[place] for place in spread(classes, 2)] == [2, 7]
    assert [classes[place] for place in spread(classes, 5)] == [1, 3, 5, 7, 9]
    turns = Counter(classes[place] for place in spread(classes, 12))
    assert [one for one in turns if turns[one] == 2] == [2, 7]


def test_samples_without_a_class_are_one_class_more() -> None:
    classes = [None] * 80 + ["a"] * 20
    assert Counter(classes[place] for place in spread(classes, 10)) == {None: 5, "a": 5}


@given(CLASSES, st.integers(1, 70))
def test_what_is_chosen_is_fair_in_order_and_complete(classes: list[object], count: int) -> None:
    chosen = spread(classes, count)  # type: ignore[arg-type]
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(classes))
    there = Counter(classes)
    taken = Counter(classes[place] for place in chosen)
    assert len(taken) == min(len(there), count)
    most = max(taken.values())
    assert all(taken[one] in (most, most - 1) or taken[one] == there[one] for one in there)
    assert spread(classes, count) == chosen  # type: ignore[arg-type]


@given(st.integers(1, 1000), st.data())
def test_evenly_spaced_places_are_apart_by_the_same_but_for_rounding(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    places = evenly(total, count)
    gaps = {after - before for before, after in pairwise(places)}
    assert gaps <= {total // count, -(-total // count)}
    # As far from the end as from the beginning.
    assert abs(places[0] - (total - 1 - places[-1])) <= 1


@pytest.mark.parametrize("count", [1, 3, 12])
def test_a_long_list_of_few_classes_takes_few_rounds(count: int) -> None:
    classes = [place % count for place in range(200_000)]
    assert len(spread(classes, 100_000)) == 100_000

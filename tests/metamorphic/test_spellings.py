"""One model written in many ways gets one answer: ranges, pairs, what INT8 costs, and which layers cost it."""

from __future__ import annotations

from random import Random

import pytest
from alike import BOUNDED, SEEDS, check_alike, several
from hypothesis import given, settings
from hypothesis import strategies as st
from specimens import LARGER, TINY, specimen
from spellings import LAST, TRANSFORMATIONS, applied, plain

ALL = (*TRANSFORMATIONS, *LAST)


@pytest.mark.parametrize("transformation", ALL)
@pytest.mark.parametrize("name", TINY)
def test_a_model_that_is_written_otherwise_gets_the_same_answers(name: str, transformation: str) -> None:
    check_alike(name, [transformation], seed=1)


@settings(max_examples=12, **BOUNDED)
@given(name=st.sampled_from(list(TINY)), chosen=several(5), seed=SEEDS)
def test_and_so_it_does_in_several_ways_at_once(name: str, chosen: list[str], seed: int) -> None:
    check_alike(name, chosen, seed)


def test_each_way_can_be_taken_with_some_model_that_is_made_here() -> None:
    left = set(ALL) - {"constants as initializers"}  # which PP-OCR has as nodes
    for name in (*TINY, *LARGER):
        each = specimen(name)
        for transformation in sorted(left):
            with applied(plain(each.model, each.axes), [transformation], Random(1)) as (_, spelling):
                left -= set(spelling.applied)
    assert not left

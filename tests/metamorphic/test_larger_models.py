"""Larger models, made here, in every spelling: convolutions of all kinds, recurrence, branches, an old opset."""

from __future__ import annotations

import pytest
from alike import BOUNDED, SEEDS, check_alike, several
from hypothesis import given, settings
from hypothesis import strategies as st
from specimens import LARGER, TINY
from spellings import LAST, TRANSFORMATIONS

pytestmark = pytest.mark.exhaustive(reason="eight larger models in every spelling; tiny ones are in test_spellings.py")


@pytest.mark.parametrize("transformation", [*TRANSFORMATIONS, *LAST])
@pytest.mark.parametrize("name", LARGER)
def test_a_larger_model_that_is_written_otherwise_gets_the_same_answers(name: str, transformation: str) -> None:
    check_alike(name, [transformation], seed=2)


@settings(max_examples=60, **BOUNDED)
@given(name=st.sampled_from([*TINY, *LARGER]), chosen=several(8), seed=SEEDS)
def test_and_so_it_does_in_many_ways_at_once(name: str, chosen: list[str], seed: int) -> None:
    check_alike(name, chosen, seed)

"""One model written in many ways gets one answer: ranges, pairs, what INT8 costs, and which layers cost it."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import pytest
from answers import Answer, answers, difference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from specimens import LARGER, TINY, specimen
from spellings import LAST, TRANSFORMATIONS, applied, plain

EXHAUSTIVE = pytest.mark.exhaustive(reason="twelve larger models, some of them real ones, in every spelling")
MODELS = [*TINY, *(pytest.param(name, marks=EXHAUSTIVE) for name in LARGER)]
ALL = {**TRANSFORMATIONS, **LAST}
# The same examples in every run, and none is made simpler: that takes minutes, and each already is a list of names.
BOUNDED: dict[str, Any] = {"derandomize": True, "database": None, "phases": (Phase.explicit, Phase.generate)}


@cache
def expected(name: str) -> Answer:
    """What trtcal says of a model as it is."""
    each = specimen(name)
    return answers(each.model, each.data, plain(each.model, each.axes).names, layers=each.layers)


def compared(name: str, chosen: list[str], seed: int) -> tuple[str | None, int]:
    """A model in another spelling -> how its answer differs, and how many of the transformations could be applied."""
    each = specimen(name)
    with applied(plain(each.model, each.axes), chosen, Random(seed)) as (source, spelling):
        if not spelling.applied:
            return None, 0
        found = answers(source, each.data, spelling.names, layers=each.layers)
    return difference(expected(name), found), len(spelling.applied)


@pytest.mark.parametrize("transformation", ALL)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_written_otherwise_gets_the_same_answers(name: str, transformation: str) -> None:
    problem, count = compared(name, [transformation], seed=1)
    if not count:
        pytest.skip("the model has nothing to write so")
    assert problem is None


@settings(max_examples=12, **BOUNDED)
@given(
    name=st.sampled_from(list(TINY)),
    chosen=st.lists(st.sampled_from(list(TRANSFORMATIONS)), min_size=2, max_size=5),
    last=st.lists(st.sampled_from(list(LAST)), max_size=2, unique=True),
    seed=st.integers(0, 2**16),
)
def test_and_so_it_does_in_several_ways_at_once(name: str, chosen: list[str], last: list[str], seed: int) -> None:
    problem, _ = compared(name, [*chosen, *last], seed)
    assert problem is None


@EXHAUSTIVE
@settings(max_examples=60, **BOUNDED)
@given(
    name=st.sampled_from([name for name in [*TINY, *LARGER] if not name.startswith("PP-OCR")]),
    chosen=st.lists(st.sampled_from(list(TRANSFORMATIONS)), min_size=2, max_size=8),
    last=st.lists(st.sampled_from(list(LAST)), max_size=2, unique=True),
    seed=st.integers(0, 2**16),
)
def test_and_so_do_larger_models(name: str, chosen: list[str], last: list[str], seed: int) -> None:
    problem, _ = compared(name, [*chosen, *last], seed)
    assert problem is None


def test_each_way_can_be_taken_with_some_model_that_is_made_here() -> None:
    made = [name for name in [*TINY, *LARGER] if not name.startswith("PP-OCR")]
    left = set(ALL) - {"constants as initializers"}  # which PP-OCR has as nodes
    for name in made:
        each = specimen(name)
        for transformation in sorted(left):
            with applied(plain(each.model, each.axes), [transformation], Random(1)) as (_, spelling):
                left -= set(spelling.applied)
    assert not left

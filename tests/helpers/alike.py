"""A model in another spelling: does trtcal say the same of it?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import pytest
from answers import Answer, answers, difference
from hypothesis import Phase
from hypothesis import strategies as st
from specimens import specimen
from spellings import LAST, TRANSFORMATIONS, applied, plain

# The same examples in every run, and none is made simpler: that takes minutes, and each already is a list of names.
BOUNDED: dict[str, Any] = {"derandomize": True, "database": None, "phases": (Phase.explicit, Phase.generate)}
SEEDS = st.integers(0, 2**16)


def several(most: int) -> st.SearchStrategy[list[str]]:
    """Names of two transformations or more, up to so many, and of those that come last."""
    first = st.lists(st.sampled_from(list(TRANSFORMATIONS)), min_size=2, max_size=most)
    last = st.lists(st.sampled_from(list(LAST)), max_size=2, unique=True)
    return st.tuples(first, last).map(lambda both: [*both[0], *both[1]])


@cache
def expected(name: str) -> Answer:
    """What trtcal says of a model as it is."""
    each = specimen(name)
    return answers(each.model, each.data, plain(each.model, each.axes).names, layers=each.layers)


def check_alike(name: str, chosen: Sequence[str], seed: int) -> None:
    """Names of a model and of transformations -> nothing; AssertionError where another answer comes of them.

    Skips the test where the model has nothing that could be written so.
    """
    each = specimen(name)
    with applied(plain(each.model, each.axes), chosen, Random(seed)) as (source, spelling):
        if not spelling.applied and len(chosen) == 1:
            pytest.skip("the model has nothing to write so")
        found = answers(source, each.data, spelling.names, layers=each.layers)
    problem = difference(expected(name), found)
    assert problem is None, f"{name}, {', '.join(spelling.applied)}: {problem}"

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtcal.growth import GROWTH, double, growth_rule, power_of_two
from trtcal.histogram import growth_factor

positive = st.floats(min_value=2.0**-149, max_value=float(np.finfo(np.float32).max), width=32)


@pytest.mark.parametrize("rule", GROWTH.values(), ids=GROWTH)
@given(first=positive, second=positive)
def test_a_rule_holds_the_data_never_shrinks_and_grows_by_powers_of_two(
    rule: object, first: float, second: float
) -> None:
    assert callable(rule)
    limit = rule(0.0, first)
    assert limit >= first
    grown = rule(limit, second)
    assert grown >= max(limit, second)
    assert growth_factor(limit, grown) >= 1


def test_tensorrt_takes_the_first_maximum_as_it_is_and_doubles() -> None:
    assert double(0.0, 1.54) == float(np.float32(1.54))
    assert double(1.0, 1.0) == 1.0
    assert double(1.0, 1.0000001) == 2.0
    assert double(1.5, 5.9) == 6.0
    assert double(0.0, 0.0) == 0.0


def test_past_the_largest_float32_tensorrts_limit_is_inf() -> None:
    assert double(3e38, 3.2e38) == math.inf


@given(values=st.lists(positive, min_size=1, max_size=20))
def test_the_power_of_two_grid_does_not_depend_on_order(values: list[float]) -> None:
    def run(sequence: list[float]) -> float:
        limit = 0.0
        for value in sequence:
            limit = power_of_two(limit, value)
        return limit

    assert run(values) == run(values[::-1]) == power_of_two(0.0, max(values)) > max(values)
    assert run(values) <= 2 * max(values)


def test_an_unknown_rule_is_refused_with_the_names() -> None:
    with pytest.raises(ValueError, match=r"unknown growth rule 'tripple'; choose one of double, power-of-two"):
        growth_rule("tripple")

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import in_parts
import network
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import batched, conv_model, images, save
from sweeps import STATS

from trtcal.calibration.calibrate import calibrate
from trtcal.passes.collect import collect
from trtcal.ranges.growth import GROWTH, Rule, double, growth_rule, power_of_two
from trtcal.ranges.histogram import growth_factor
from trtcal.sweep.emulation import REPLAYED, RULES
from trtcal.sweep.recommend import recommend
from trtcal.sweep.trials import configurations, sweep

positive = st.floats(min_value=2.0**-149, max_value=float(np.finfo(np.float32).max), width=32)


@pytest.mark.parametrize("rule", GROWTH.values(), ids=GROWTH)
@given(first=positive, second=positive)
def test_a_rule_holds_the_data_never_shrinks_and_grows_by_powers_of_two(
    rule: Rule, first: float, second: float
) -> None:
    limit = rule.grow(0.0, first)
    assert limit >= first
    grown = rule.grow(limit, second)
    assert grown >= max(limit, second)
    assert growth_factor(limit, grown) >= 1


@pytest.mark.parametrize("rule", GROWTH.values(), ids=GROWTH)
@given(first=positive, second=positive, third=positive)
def test_values_in_turn_grow_a_limit_as_far_as_their_largest_at_once(
    rule: Rule, first: float, second: float, third: float
) -> None:
    for limit in (rule.grow(0.0, first), *([0.0] if rule.invariant else [])):
        assert rule.grow(rule.grow(limit, second), third) == rule.grow(limit, max(second, third))


def test_no_rule_of_a_pass_foresees() -> None:
    assert not any(rule.foresees for rule in GROWTH.values())


def test_replays_know_every_rule_of_a_pass_and_their_own() -> None:
    assert set(RULES) == {*GROWTH, *REPLAYED}
    assert {name for name, rule in RULES.items() if rule.invariant} >= {"power-of-two", "exact"}
    assert [name for name, rule in RULES.items() if rule.tensorrt] == ["double"]
    assert [name for name, rule in RULES.items() if rule.fine] == ["power-of-two"]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_is_described_in_one_line(rule: Rule) -> None:
    assert rule.label
    assert rule.description
    assert "\n" not in rule.label + rule.description


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
    with pytest.raises(ValueError, match=f"unknown growth rule 'tripple'; choose one of {', '.join(GROWTH)}$"):
        growth_rule("tripple")


# --- nobody asks for a name


@pytest.fixture(params=GROWTH)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A rule's name; the rule is called "mine", too."""
    known: str = request.param
    monkeypatch.setitem(GROWTH, "mine", GROWTH[known])
    return known


@pytest.mark.parametrize("size", [1, 3, 23])
def test_a_pass_with_a_rule_of_another_name_is_the_same(name: str, size: int) -> None:
    batches = network.cut(network.data(), size)
    mine = collect(network.network, batches, growth="mine")
    assert replace(mine, growth=name) == collect(network.network, batches, growth=name)


BATCHES = [
    in_parts.batch([0.5, 1, 1], [1, 0, 0]),
    in_parts.batch([3, 3, 1], [6, 1, 1], valid=1),
    in_parts.batch([1, 1, 1], [0, 1, 1]),
    in_parts.batch([6, 4, 0]),
    in_parts.batch([2, 2, 7]),  # "late", which began with 6, has to be counted again
]


def test_parts_by_a_rule_of_another_name_add_to_the_whole(name: str) -> None:
    mine = in_parts.in_parts(BATCHES, [1, 3], "mine", [0])
    assert replace(mine, growth=name) == collect(in_parts.network, BATCHES, growth=name)


def quadruple(limit: float, amax: float) -> float:
    while limit and amax > limit:
        limit *= 4
    return limit or amax


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3]])
def test_parts_add_by_a_rule_that_neither_doubles_nor_is_invariant(
    monkeypatch: pytest.MonkeyPatch, cuts: list[int]
) -> None:
    monkeypatch.setitem(GROWTH, "quadruple", Rule(quadruple, "by four", "the limit times four until the value fits"))
    whole = collect(in_parts.network, BATCHES, growth="quadruple")
    assert whole.tensors["x"].batch_grid is not None
    assert whole.tensors["x"].batch_grid.limit == 16
    assert in_parts.in_parts(BATCHES, cuts, "quadruple", [0]) == whole


def test_ranges_by_a_rule_of_another_name_are_the_same(name: str, tmp_path: Path) -> None:
    model, batches = save(conv_model(), tmp_path / "m.onnx"), batched(images(8), 4)
    mine = calibrate(model, batches, growth="mine")
    assert (mine.cache, mine.clipped) == ((known := calibrate(model, batches, growth=name)).cache, known.clipped)


def test_a_sweep_over_a_rule_of_another_name_and_its_advice_are_the_same(name: str) -> None:
    results = []
    for growth in (name, "mine"):
        grid, _ = configurations((1, 4), ("given", "shuffled"), 2, (growth,), 24)
        results.append(sweep(replace(STATS, growth=growth), grid, ("entropy", "minmax"), streamed_batch_size=4))
    known, mine = results
    assert [trial.amax.tobytes() for trial in mine.trials] == [trial.amax.tobytes() for trial in known.trials]
    assert np.array_equal(mine.off, known.off)
    assert recommend(mine, STATS) == recommend(known, STATS)

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from trtcal.ranges.thresholds import spelt
from trtcal.sweep.plan import GRID, SweepPlan
from trtcal.sweep.trials import ORDERS


def test_text_and_lists_make_the_same_plan() -> None:
    plan = SweepPlan(batch_sizes=(1, 4), orders=("given",), methods=("mse", "minmax"), growths=("exact",))
    text: Any = {"batch_sizes": "1,4", "orders": "given", "methods": "mse,minmax", "growths": "exact"}
    lists: Any = {name: value.split(",") for name, value in text.items()}
    assert plan == SweepPlan(**text) == SweepPlan(**lists)
    assert hash(plan) == hash(SweepPlan(**text))


def test_the_defaults_compare_everything() -> None:
    assert SweepPlan().orders == tuple(ORDERS)
    assert SweepPlan().methods == SweepPlan(methods=()).methods == tuple(spelt(swept=True))


def test_what_is_left_of_a_plan_in_json_makes_it_again() -> None:
    plan = SweepPlan(batch_sizes=(2,), exact=True, exclude=("/head/Gemm, second",), eval_samples=3, metric="m.py:f")
    assert SweepPlan(**json.loads(json.dumps(plan.settings()))) == plan
    assert list(plan.settings()) == [item.name for item in fields(SweepPlan)]


def test_passwords_and_signatures_are_in_no_settings() -> None:
    found = SweepPlan(eval_data="s3://user:cret@bucket/x?sig=cret").settings()
    assert found["eval_data"] == "s3://bucket/x"
    assert SweepPlan(eval_data="a?b").settings()["eval_data"] == "a?b"  # a file's name is no URL


def test_settings_hold_each_method_once_however_it_is_spelt() -> None:
    plan = SweepPlan(methods=("percentile", "percentile:99.99", "percentile:99.990"))
    assert plan.settings()["methods"] == ["percentile:99.99"]
    assert plan.changed(SweepPlan(methods=("percentile:99.99",)).settings()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_sizes", (1,)),
        ("orders", ("given",)),
        ("seeds", 1),
        ("methods", ("mse",)),
        ("growths", ("double",)),
        ("exact", True),
    ],
)
def test_what_differs_in_the_grid_is_named(field: str, value: Any) -> None:
    other: Any = {field: value}
    assert SweepPlan().changed(SweepPlan(**other).settings()) == [field]


def test_a_plan_like_another_differs_in_nothing_and_from_none_in_all() -> None:
    like = SweepPlan(metric="top5", accuracy=False, eval_data="x", eval_samples=1, exclude=("y",))
    assert SweepPlan().changed(like.settings()) == []
    for none in (None, 3, [], {}):
        assert SweepPlan().changed(none) == list(GRID)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_sizes": "1,x"},
            "--batch-sizes 1,x: expected whole numbers from 1 on joined by commas",
        ),
        ({"batch_sizes": (1.5,)}, r"--batch-sizes \(1.5,\): expected whole numbers from 1 on"),
        ({"batch_sizes": (0,)}, r"--batch-sizes \(0,\): expected whole numbers from 1 on"),
        ({"seeds": 0}, "--seeds 0: expected a whole number from 1 on"),
        ({"exact": 1}, "--exact 1: expected true or false"),
        ({"orders": "given,upwards"}, "unknown order 'upwards'; choose among given, "),
        ({"growths": "triple"}, "unknown growth rule 'triple'; choose one of "),
        ({"methods": "entropy,kl"}, "unknown method 'kl'"),
        ({"eval_samples": 0}, "--eval-samples 0: expected a whole number from 1 on"),
    ],
)
def test_what_cannot_be_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SweepPlan(**options)

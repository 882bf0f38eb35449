from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from calibrators.inspection import layers_per_precision

TRT = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON=1))


def engine(text: str) -> Any:
    """An engine whose inspector answers with this."""
    inspector = SimpleNamespace(get_engine_information=lambda _: text)
    return SimpleNamespace(create_engine_inspector=lambda: inspector)


def described(*formats: str) -> str:
    return json.dumps({"Layers": [{"Name": f, "Outputs": [{"Format/Datatype": f}]} for f in formats]})


def test_layers_are_counted_by_the_type_of_their_first_output() -> None:
    text = described(
        "Thirty-two wide channel vectorized row major Int8 format",
        "Int8 NC/32HW32",
        "Row major linear FP16 format",
        "Half",
        "Row major linear FP32",
        "Float",
        "Int32",
        "Something new",
    )
    assert layers_per_precision(TRT, engine(text)) == {"int8": 2, "fp16": 2, "fp32": 2, "int32": 1, "other": 1}


@pytest.mark.parametrize("text", ["", "null", "{}", '{"Layers": ["conv", "relu"]}', '{"Layers": []}', "[]"])
def test_an_inspector_that_does_not_tell_is_no_error(text: str) -> None:
    assert layers_per_precision(TRT, engine(text)) is None

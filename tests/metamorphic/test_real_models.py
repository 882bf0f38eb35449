"""Real models in every spelling: the demo, and PP-OCR's three from the wheel rapidocr."""

from __future__ import annotations

import pytest
from alike import check_alike
from specimens import REAL
from spellings import LAST, TRANSFORMATIONS

pytestmark = pytest.mark.exhaustive(reason="models of hundreds of layers in every spelling")


@pytest.mark.parametrize("transformation", [*TRANSFORMATIONS, *LAST])
@pytest.mark.parametrize("name", REAL)
def test_a_real_model_that_is_written_otherwise_gets_the_same_answers(name: str, transformation: str) -> None:
    check_alike(name, [transformation], seed=3)

"""The rules of the histogram and of the search, each on a network of one layer whose input is known exactly.

So nothing but the algorithm decides the scale that TensorRT writes for the input, and every bit of it is compared.
Where it is another one, the failure names each change of one rule that would give it (`acceptance.rules`).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from builds import observe
from device import needs, without_gpu, without_tensorrt
from experiments import EXPERIMENTS, Experiment, bins, check, our_histogram

pytestmark = [pytest.mark.gpu, pytest.mark.seconds(2), needs(without_gpu(), without_tensorrt())]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str)
def test_the_scale_is_ours_to_the_last_bit(
    experiment: Experiment, record_property: Callable[[str, object], None]
) -> None:
    batches = experiment.batches()
    observed = observe(batches)
    observed.keep(record_property)
    got, limit = observed.scale(), our_histogram(batches).limit
    record_property("limit", limit)
    record_property("bins", None if got is None else bins(got, limit))
    check(batches, got)

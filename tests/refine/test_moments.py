from __future__ import annotations

import numpy as np
import pytest
from models import make_model
from onnx import helper

from trtcal.model.topology import Graph
from trtcal.refine import moments as module
from trtcal.refine.layers import Weights, refinable
from trtcal.refine.moments import grouped, moments

node = helper.make_node
RNG = np.random.default_rng(0)


def network(groups: int = 1) -> list[Weights]:
    w = RNG.normal(size=(4, 4 // groups, 3, 3)).astype(np.float32)
    model = make_model(
        [node("Conv", ["x", "w"], ["y"], "conv", group=groups), node("Conv", ["y", "w"], ["z"], "again", group=groups)],
        {"x": [1, 4, 9, 9]},
        ["z"],
        {"w": w},
    )
    return refinable(Graph(model))[0]


@pytest.mark.parametrize("groups", [1, 4])
def test_second_moments_are_sums_over_all_positions_samples_and_layers_that_share_weights(groups: int) -> None:
    (each,) = network(groups)
    samples = [{"x": RNG.normal(size=(1, 4, 9, 9)).astype(np.float32)} for _ in range(3)]
    shown = [{**sample, "y": RNG.normal(size=(1, 4, 7, 7)).astype(np.float32)} for sample in samples]
    found = moments(shown, 3, [each])["w"]
    expected = np.zeros((groups, each.k, each.k))
    for tensors in shown:
        for reader in each.readers:
            columns = reader.columns(tensors[reader.source], 10**9, RNG)
            expected += np.einsum("gpi,gpj->gij", columns, columns)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_no_more_rows_than_wanted_are_taken_and_every_sample_gives_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_ROWS", 0)
    monkeypatch.setattr(module, "MOST_ROWS", 40)
    (each,) = network()
    samples = [{"x": np.full((1, 4, 9, 9), 10.0**number, np.float32)} for number in range(4)]
    found = moments([{**sample, "y": sample["x"] * 0} for sample in samples], 4, [each])["w"]
    # 40 rows over 4 samples and 2 layers are 5 each; y is zero.
    assert found[0, 0, 0] == pytest.approx(5 * sum(10.0 ** (2 * number) for number in range(4)), rel=1e-5)


def test_groups_hold_what_fits_and_a_large_one_stands_alone() -> None:
    (each,) = network()
    size = 8 * each.k**2
    assert [len(group) for group in grouped([each] * 5, 2 * size)] == [2, 2, 1]
    assert [len(group) for group in grouped([each] * 3, 1)] == [1, 1, 1]
    assert list(grouped([], 10)) == []

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_parts import batch, in_parts, network

from trtcal.errors import NonFiniteError
from trtcal.passes.collect import collect
from trtcal.passes.partial import added, collect_part, continued, first_limits, uncounted
from trtcal.ranges.growth import GROWTH
from trtcal.samples.batches import Batch

LEVELS = [0, 0, 0, 0.25, 0.5, 1, -1, 1.5, 2, -2, 3, -3, 4, 6, 8]


@st.composite
def passes(draw: st.DrawFn) -> list[Batch]:
    """Batches of any size, with few levels, so that many elements lie on limits; padding anywhere."""
    batches = []
    top = st.sampled_from([[0], LEVELS[:6], LEVELS[:11], LEVELS])
    for number in range(draw(st.integers(1, 9))):
        rows = draw(st.integers(1, 4))
        levels = draw(top)
        x = np.array(draw(st.lists(st.sampled_from(levels), min_size=3 * rows, max_size=3 * rows)), np.float32)
        valid = draw(st.sampled_from([rows, rows, rows, 1, 0] if number else [rows]))
        names = [f"{number}.{row}" for row in range(rows)]
        batches.append(Batch({"x": x.reshape(rows, 3)}, samples=names, valid=min(valid, rows)))
    return batches


@settings(max_examples=150, deadline=None)
@given(passes(), st.lists(st.integers(0, 9)), st.sampled_from(sorted(GROWTH)), st.lists(st.integers(0, 9), max_size=8))
def test_parts_of_a_pass_give_the_bytes_of_the_whole(
    batches: list[Batch], cuts: list[int], growth: str, order: list[int]
) -> None:
    whole = collect(network, batches, growth=growth)
    assert in_parts(batches, cuts, growth, order).to_bytes() == whole.to_bytes()


SILENT = batch([0.5, 1, 1], [1, 0, 0], name="silent")


def test_a_tensor_that_begins_with_zeros_is_counted_again_only_where_limits_do_not_fit() -> None:
    start = collect(network, [SILENT])
    three, six = (collect_part(network, [batch([x, 0, 1])], first_limits(start)) for x in (3, 6))
    four = collect_part(network, [batch([4, 3, 3])], first_limits(start))
    assert uncounted(start, added(three, six)) == {}
    assert uncounted(start, added(three, four)) == {"late": 3.0}
    assert uncounted(start, added(four, three)) == {"late": 4.0}


def test_what_is_counted_again_goes_in_beside_the_zeros_that_are_not() -> None:
    batches = [SILENT, batch([3, 3, 1]), batch([1, 1, 1], [0, 1, 1]), batch([8, 4, 0])]
    for order in ([0, 0], [1, 0], [0, 1]):
        assert in_parts(batches, [1, 2], "double", order) == collect(network, batches)


def test_an_element_at_a_limit_stays_low_only_where_the_whole_pass_has_it_as_the_limit() -> None:
    """The part alone takes 2 for outgrown by its own 4; in the pass 8 came before, and 2 was never the limit."""
    begin, grow, part = batch([1, 1, 1]), batch([8, 0, 0]), [batch([2, 2, 1]), batch([4, 0, 0])]
    for batches in ([begin, *part], [begin, grow, *part], [begin, *part, grow]):
        assert in_parts(batches, [len(batches) - 3], "double", []) == collect(network, batches)


@pytest.mark.parametrize("far", [1025, 2048, 2049, 5000])
def test_limits_may_grow_by_as_much_as_there_are_bins_and_more(far: float) -> None:
    batches = [batch([1, 1, 0.5]), batch([1, 1, 1]), batch([2, 2, 0]), batch([far, 0, 0])]
    for cuts in ([], [1], [2], [1, 2]):
        assert in_parts(batches, cuts, "double", [0]) == collect(network, batches)


def test_padding_counts_for_tensorrt_and_for_no_sample() -> None:
    start, padded = collect(network, [SILENT]), batch([3, 1, 1], [6, 6, 6], valid=1)
    part = collect_part(network, [padded], first_limits(start))
    assert part.samples == ("b0",)
    assert part.tensors["x"].sample_amax.tolist() == [3]
    assert part.tensors["x"].batch_amax.tolist() == [6]
    assert part.tensors["x"].batch_peaks.tolist() == [3]
    assert continued(start, part) == collect(network, [SILENT, padded])


def test_what_is_wrong_with_a_sample_of_a_part_is_said_as_of_the_whole() -> None:
    bad = batch([1, 1, 1], [1, np.nan, 1], name="bad")
    with pytest.raises(NonFiniteError, match=r"^bad1: tensor 'x' holds nan"):
        collect_part(network, [SILENT, bad], first_limits(collect(network, [SILENT])))


def test_any_number_of_workers_gives_the_same_part() -> None:
    start = collect(network, [batch([3, 1, 1])])
    batches = [batch([3, 3, 1], [1, 0, 1], [4, 4, 4]), batch([8, 4, 0], [7, 7, 7], valid=1)]
    one, three = (collect_part(network, batches, first_limits(start), workers=workers) for workers in (1, 3))
    assert continued(start, one) == continued(start, three)

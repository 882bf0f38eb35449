"""Our thresholds are those of TensorRT 7.2.2 and 8.5.1, on the 185 histograms of networks that they calibrated."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import oracle
import pytest
import refute_rules
from acceptance import rules, truth

from trtcal.ranges.histogram import Histogram
from trtcal.ranges.kernels import numpy_divergences, x_log_x
from trtcal.ranges.thresholds import FIRST_KEPT, NUM_LEVELS, entropy, entropy_bins

TENSORS = truth.load()
# Where two divergences are nearly the same, the low bits of the activations decide: TensorRT's m, and ours.
NEAR_TIES = {
    ("resnet", "(Unnamed Layer* 59) [ElementWise]_output"): (901, 898),
    ("resnet", "(Unnamed Layer* 75) [Scale]_output"): (1131, 1122),
}
# Tensors whose scale has all of TensorRT's bits, by network.
SAME_BITS: dict[str, list[str]] = {
    "lenet": [
        "data",
        "conv1",
        "ip2",
        "prob",
    ],
    "resnet": [
        "data",
        "(Unnamed Layer* 0) [Convolution]_output",
        "(Unnamed Layer* 4) [Convolution]_output",
        "(Unnamed Layer* 5) [Scale]_output",
        "(Unnamed Layer* 6) [Scale]_output",
        "group0_block0_conv0",
        "(Unnamed Layer* 13) [Convolution]_output",
        "(Unnamed Layer* 14) [Scale]_output",
        "(Unnamed Layer* 17) [Convolution]_output",
        "(Unnamed Layer* 20) [ElementWise]_output",
        "group0_block1_sum",
        "(Unnamed Layer* 22) [Convolution]_output",
        "(Unnamed Layer* 26) [Convolution]_output",
        "(Unnamed Layer* 27) [Scale]_output",
        "(Unnamed Layer* 32) [Scale]_output",
        "group1_block0_conv0",
        "(Unnamed Layer* 39) [Scale]_output",
        "(Unnamed Layer* 44) [Scale]_output",
        "(Unnamed Layer* 53) [Scale]_output",
        "group2_block0_conv1",
        "(Unnamed Layer* 69) [Scale]_output",
        "fc",
        "softmax",
    ],
    "case1": [
        "x",
        "/conv1/Conv_output_0",
        "/relu1/Relu_output_0",
        "/bn1/BatchNormalization_output_0",
        "(Unnamed Layer* 9) [Matrix Multiply]_output",
        "(Unnamed Layer* 10) [Constant]_output",
        "(Unnamed Layer* 11) [Shuffle]_output",
        "/fc1/Gemm_output_0",
        "/relu3/Relu_output_0",
        "(Unnamed Layer* 14) [Constant]_output",
        "(Unnamed Layer* 16) [Constant]_output",
        "(Unnamed Layer* 17) [Shuffle]_output",
    ],
    "case2": [
        "x",
        "/conv1/Conv_output_0",
        "/relu1/Relu_output_0",
        "(Unnamed Layer* 9) [Constant]_output",
        "(Unnamed Layer* 10) [Shuffle]_output",
        "(Unnamed Layer* 13) [Constant]_output",
        "(Unnamed Layer* 15) [Constant]_output",
        "(Unnamed Layer* 16) [Shuffle]_output",
    ],
    "case3": [
        "x",
        "/conv1/Conv_output_0",
        "(Unnamed Layer* 8) [Constant]_output",
        "(Unnamed Layer* 9) [Shuffle]_output",
        "(Unnamed Layer* 12) [Constant]_output",
        "(Unnamed Layer* 13) [Matrix Multiply]_output",
        "(Unnamed Layer* 14) [Constant]_output",
        "(Unnamed Layer* 15) [Shuffle]_output",
        "y",
    ],
    "case4": [
        "x",
        "/conv1/Conv_output_0",
        "(Unnamed Layer* 8) [Constant]_output",
        "(Unnamed Layer* 9) [Shuffle]_output",
        "(Unnamed Layer* 12) [Constant]_output",
        "(Unnamed Layer* 14) [Constant]_output",
        "(Unnamed Layer* 15) [Shuffle]_output",
    ],
    "case5": [
        "x",
        "/conv1/Conv_output_0",
        "(Unnamed Layer* 7) [Constant]_output",
        "(Unnamed Layer* 8) [Shuffle]_output",
        "(Unnamed Layer* 11) [Constant]_output",
        "(Unnamed Layer* 12) [Matrix Multiply]_output",
        "(Unnamed Layer* 13) [Constant]_output",
        "(Unnamed Layer* 14) [Shuffle]_output",
        "y",
        "(Unnamed Layer* 22) [Softmax]_output",
        "(Unnamed Layer* 25) [TopK]_output_1",
    ],
}


def ours(tensor: truth.Tensor) -> np.float32:
    amax = np.float32(tensor.limit)  # of the histogram; no threshold of entropy needs the largest |x|
    return entropy(Histogram(tensor.counts, float(tensor.limit), amax)) / np.float32(127)


def all_divergences(counts: np.ndarray) -> np.ndarray:
    """KL(P||Q) of every candidate, by the number of bins kept."""
    h = counts.astype(np.float64)
    h[0] = h[1]
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in (h, h > 0, x_log_x(h))]
    found = numpy_divergences(h, *sums, FIRST_KEPT, NUM_LEVELS)
    return np.concatenate([np.full(FIRST_KEPT, np.inf), found])


def test_the_histograms_are_those_of_two_tensorrts() -> None:
    assert Counter((tensor.version, tensor.network) for tensor in TENSORS) == {
        ("7.2.2", "lenet"): 7,
        ("7.2.2", "resnet"): 85,
        **{("8.5.1", f"case{number}"): count for number, count in zip(range(1, 6), (20, 19, 18, 18, 18), strict=True)},
    }
    assert Counter(tensor.doublings for tensor in TENSORS if tensor.version == "7.2.2") == {0: 2, 1: 89, 2: 1}
    assert {tensor.doublings for tensor in TENSORS if tensor.version == "8.5.1"} == {0}
    for tensor in TENSORS:  # TensorRT's threshold is the middle of a bin of its histogram
        kept = float(tensor.scale) * 127 * rules.BINS / float(tensor.limit) - 0.5
        assert abs(kept - tensor.kept) <= truth.CLOSE * tensor.kept


def test_entropy_keeps_tensorrt_s_bins_of_all_but_two_near_ties() -> None:
    kept = entropy_bins(np.array([tensor.counts for tensor in TENSORS]))
    other = {(t.network, t.name): (t.kept, m) for t, m in zip(TENSORS, kept, strict=True) if t.kept != m}
    assert other == NEAR_TIES


@pytest.mark.parametrize("tensor", [t for t in TENSORS if (t.network, t.name) in NEAR_TIES], ids=lambda t: t.name)
def test_a_near_tie_is_one_of_less_than_a_ten_millionth(tensor: truth.Tensor) -> None:
    found = all_divergences(tensor.counts)
    theirs, mine = NEAR_TIES[tensor.network, tensor.name]
    assert 0 < found[theirs] - found[mine] < 1e-7


def test_scales_are_tensorrt_s_within_three_millionths() -> None:
    apart = [
        abs(float(ours(tensor)) / float(tensor.scale) - 1)
        for tensor in TENSORS
        if (tensor.network, tensor.name) not in NEAR_TIES
    ]
    assert len(apart) == 183
    assert max(apart) <= truth.CLOSE


def test_74_scales_have_tensorrt_s_bits() -> None:
    assert sum(map(len, SAME_BITS.values())) == 74
    same: dict[str, list[str]] = {}
    for tensor in TENSORS:
        if ours(tensor) == tensor.scale:
            same.setdefault(tensor.network, []).append(tensor.name)
    assert same == SAME_BITS


def test_the_reference_and_the_rules_written_out_agree_with_the_product() -> None:
    """On each tensor that collapses, each network's first, and both near ties."""
    low = [tensor for tensor in TENSORS if tensor.kept < 800]
    first = [next(tensor for tensor in TENSORS if tensor.network == network) for network in ("lenet", "case1")]
    near = [tensor for tensor in TENSORS if (tensor.network, tensor.name) in NEAR_TIES]
    for tensor in [*low[:6], *first, *near]:
        (m,) = entropy_bins(tensor.counts[None])
        assert m == oracle.entropy_bin(tensor.counts) == rules.bins_kept(tensor.counts, rules.Rules())


# By how many of some tensors each changed rule is refuted; scripts/refute_rules.py counts all of them.
PART = [*TENSORS[::16], *(t for t in TENSORS if t.network in ("case3", "case5") and re.search("TopK|Softmax", t.name))]
REFUTED: dict[str, int] = {
    "zeros counted as they are": 4,
    "bin 0 empty": 2,
    "bin 0 the greater of itself and bin 1": 4,
    "bin 0 the lesser of itself and bin 1": 0,
    "the search starts at 64": 0,
    "it starts at 127": 0,
    "it starts at 129": 0,
    "it stops at 2047": 5,
    "bins merge by i // (m // 128), as in MXNet and ONNX Runtime": 10,
    "outliers in Q as well": 14,
    "outliers dropped": 14,
    "terms with Q = 0 skipped": 13,
    "windows of one bin allowed": 1,
    "the same, and the first of equal minima": 2,
    "the first of equal minima": 0,
    "windows of at least 3 bins": 0,
    "windows of at least 8 bins": 0,
    "windows of at least 9 bins": 1,
    "divergences in float32, one sum after the other": 4,
    "the threshold at the edge of bin m": 16,
    "the threshold at the edge of bin m + 1": 16,
    "ranges grow by 4": 5,
    "the range of all batches *": 0,
    "ranges are squared *": 5,
    "ranges are powers of two *": 15,
}


def test_changed_rules_are_refuted_on_a_part_of_the_tensors() -> None:
    found = truth.answers(PART, [("", rules.Rules()), *refute_rules.CHANGED.items()])
    assert found.pop("") == [True] * 16
    assert {name: agree.count(False) for name, agree in found.items()} == REFUTED


def test_the_table_of_refuted_rules_stands_in_the_documentation() -> None:
    page = refute_rules.PAGE.read_text(encoding="utf-8").split(refute_rules.BEGIN)[1].split(refute_rules.END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()[2:]]
    assert [name for name, *_ in rows] == list(refute_rules.CHANGED)
    for name, *counts in rows:
        assert sum(map(int, counts)) >= REFUTED[name]


@pytest.mark.exhaustive(reason="breaks every rule on 185 histograms")
def test_the_table_of_refuted_rules_is_what_the_histograms_say() -> None:
    done = subprocess.run([sys.executable, refute_rules.__file__, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rules_that_show_in_values_alone_are_not_answered() -> None:
    for name in ("index", "zero_batch", "merge"):
        changed = replace(rules.Rules(), **{name: rules.ALTERNATIVES[name][0]})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="does not show in histograms"):
            truth.agrees(TENSORS[0], changed)
    with pytest.raises(ValueError, match="does not show in histograms"):
        truth.agrees(TENSORS[0], replace(rules.Rules(), growth="square-max"))

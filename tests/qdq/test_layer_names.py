from __future__ import annotations

import shlex

import pytest
from onnx import helper

from trtcal.qdq.layer_names import beyond_trtexec, for_exclude, for_polygraphy, for_trtexec, tensorrt_name

AWKWARD = ["/conv 1/Conv", "a:b", "x[0]", "it$", "plain"]


def test_a_node_is_called_as_tensorrt_s_parser_calls_it() -> None:
    assert tensorrt_name(helper.make_node("Relu", ["x"], ["y"], "relu1")) == "relu1"
    assert tensorrt_name(helper.make_node("Relu", ["x"], ["y"])) == "node_of_y"


def test_a_shell_gives_trtexec_every_name_and_precision() -> None:
    constraint, option = shlex.split(for_trtexec(AWKWARD))
    assert constraint == "--precisionConstraints=obey"
    # As trtexec reads it: parts at commas, the precision behind the last colon.
    pairs = [part.rpartition(":") for part in option.removeprefix("--layerPrecisions=").split(",")]
    assert [(name, precision) for name, _, precision in pairs] == [(name, "fp16") for name in AWKWARD]


@pytest.mark.parametrize("name", ["a,b", "a'b"])
def test_names_that_trtexec_cannot_read_are_left_out_and_told(name: str) -> None:
    assert beyond_trtexec([name, "plain"]) == (name,)
    assert for_trtexec([name, "plain"]) == "--precisionConstraints=obey --layerPrecisions=plain:fp16"


def test_polygraphy_reads_the_names_back() -> None:
    args = pytest.importorskip("polygraphy.tools.args.util")
    words = shlex.split(for_polygraphy([*AWKWARD, "a,b", "a'b"]))
    assert words[:3] == ["--precision-constraints", "obey", "--layer-precisions"]
    expected = dict.fromkeys([*AWKWARD, "a,b", "a'b"], "float16")
    assert args.parse_arglist_to_dict(words[3:], allow_empty_key=False) == expected


def test_a_shell_gives_exclude_every_pattern() -> None:
    words = shlex.split(for_exclude([*AWKWARD, "a'b"]))
    assert words[::2] == ["--exclude"] * 6
    assert words[1::2] == [*AWKWARD, "a'b"]

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import batched, conv_model, images, make_model, save
from onnx import TensorProto, helper
from qdq_models import body_model

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.doctor import SEVERITIES, Finding, check, diff, merge, rename, retarget
from trtcal.cache.provenance import Provenance
from trtcal.calibration.calibrate import calibrate
from trtcal.errors import CacheError
from trtcal.model.open import Model, open_model

HEADER = "TRT-8601-EntropyCalibration2"


def cache_of(scales: dict[str, float], header: str = HEADER) -> CalibrationCache:
    _, version, algorithm = header.split("-")
    return CalibrationCache(version, algorithm, {name: np.float32(scale) for name, scale in scales.items()})


def kinds(findings: list[Finding]) -> list[tuple[str, str | None]]:
    return [(finding.severity, finding.tensor) for finding in findings]


def messages(findings: list[Finding]) -> str:
    return "\n".join(finding.message for finding in findings)


# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "severity"),
    [
        (0.0, "warning"),
        (1e-40, "warning"),
        (math.inf, "error"),
        (-math.inf, "error"),
        (math.nan, "error"),
        (-1.0, "error"),
    ],
)
def test_a_scale_that_nothing_can_use_is_found_by_name(scale: float, severity: str) -> None:
    assert kinds(check(cache_of({"fine": 0.01, "also": 0.02, "bad": scale}))) == [(severity, "bad")]


def test_the_range_of_a_mask_made_of_the_lowest_float_is_found() -> None:
    """Exporters write finfo(float32).min where -inf would do; entropy and mse end a little below it."""
    scales = {"scores": 0.1, "masked": float(np.finfo(np.float32).max) / 127 * 0.99, "large": 8e27}
    findings = check(cache_of({**scales, "large": 7e27}))
    assert kinds(findings) == [("warning", "masked")]
    assert "its range reaches 3.4e+38, as masks made of the lowest float do" in messages(findings)
    assert kinds(check(cache_of(scales))) == [("warning", "masked"), ("warning", "large")]


def test_a_sound_cache_has_no_findings() -> None:
    assert check(cache_of({"a": 0.01, "b": 1e-6, "c": 50.0})) == []


def test_a_cache_without_tensors_is_an_error() -> None:
    assert [(found.severity, found.tensor) for found in check(cache_of({}))] == [("error", None)]


def test_what_was_tolerated_when_reading_is_a_warning() -> None:
    findings = check(CalibrationCache.parse(f"{HEADER}\r\nx: 3C010204\r\n".encode()))
    assert kinds(findings) == [("warning", None)] * 2
    assert "CR LF" in messages(findings)


def test_errors_come_first() -> None:
    findings = check(cache_of({"a": 0.01, "zero": 0, "inf": np.inf}, "TRT-8601-MinMaxCalibration"))
    order = [SEVERITIES.index(finding.severity) for finding in findings]
    assert order == sorted(order)
    assert set(order) == {0, 1, 2}


real_scales = st.lists(st.floats(2.0**-16, 2.0**7, width=32), min_size=3, max_size=30)


def swapped(values: list[float]) -> dict[str, float]:
    return {str(i): scale for i, scale in enumerate(np.array(values, np.float32).byteswap())}


def test_little_endian_hex_is_suspected_once_and_not_tensor_by_tensor() -> None:
    # 1/127, the entropy threshold of data up to 1, and others, as little-endian hex.
    findings = check(cache_of(swapped([0.007874016, 0.007875938, 0.13, 0.0213, 1.19])))
    assert kinds(findings) == [("error", None)]
    assert "little-endian" in findings[0].message


@given(real_scales)
def test_scales_of_usual_size_are_never_taken_for_little_endian(values: list[float]) -> None:
    assert "endian" not in messages(check(cache_of({str(i): value for i, value in enumerate(values)})))


@pytest.mark.parametrize("wrong", [lambda scale: scale * 127, lambda scale: 1 / scale], ids=["amax", "127/amax"])
def test_other_numbers_than_scales_are_suspected(wrong: object) -> None:
    scales = {"a": 0.38, "b": 0.059, "c": 0.02, "d": 0.11}
    assert callable(wrong)
    findings = check(cache_of({name: wrong(scale) for name, scale in scales.items()}))
    assert kinds(findings) == [("warning", None)]
    assert "amax / 127, should" in findings[0].message


@pytest.fixture(params=["", "ai.onnx"])
def bounded(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"], domain=request.param),
        helper.make_node("Relu", ["s"], ["y"], domain=request.param),
    ]
    return open_model(save(make_model(nodes, {"x": ["N", 4]}, ["y"]), tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("scale", "what"), [(0.5, "; amax may"), (1.0, "; amax may"), (127.0, "; 127 / amax may"), (10.0, "; another")]
)
def test_a_range_beyond_what_an_op_can_give_is_an_error(bounded: Model, scale: float, what: str) -> None:
    found = [f for f in check(cache_of({"x": 0.1, "s": scale, "y": 0.1}), model=bounded) if f.severity == "error"]
    assert kinds(found) == [("error", "s")]
    assert what in found[0].message


@pytest.mark.parametrize("amax", [0.3, 1.0, 1024.5 / 1024, 1.9])
def test_ranges_that_tensorrt_writes_for_a_bounded_op_pass(bounded: Model, amax: float) -> None:
    assert check(cache_of({"x": 0.1, "s": amax / 127, "y": amax / 127}), model=bounded) == []


# --- the header ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "version", "expected"),
    [
        (HEADER, "8.6.1", None),
        (HEADER, "8.5", None),
        ("TRT-100300-EntropyCalibration2", "10.14.1", None),
        (HEADER, "10.3.0", "retarget --trt-version 10.3.0"),
        ("TRT-100300-EntropyCalibration2", "8.5", "is not of TensorRT 8"),
        ("TRT-8XXX-EntropyCalibration2", "8.5", "'TRT-8XXX-EntropyCalibration2' is not of TensorRT 8"),
        (HEADER, "11.0", "trtcal qdq"),
    ],
)
def test_the_header_is_held_against_the_tensorrt_that_will_read_it(
    header: str, version: str, expected: str | None
) -> None:
    findings = check(cache_of({"x": 0.1}, header), trt_version=version)
    assert kinds(findings) == ([("error", None)] if expected else [])
    assert (expected or "") in messages(findings)


def test_a_bare_header_is_no_header_of_today() -> None:
    findings = check(CalibrationCache.parse(b"1\nx: 3c010204\n"), trt_version="8.6.1")
    assert ("error", None) in kinds(findings)
    assert "names no calibrator" in messages(findings)


def test_an_algorithm_that_dla_and_deepstream_do_not_take_is_noted() -> None:
    findings = check(cache_of({"x": 0.1}, "TRT-8601-MinMaxCalibration"))
    assert kinds(findings) == [("note", None)]
    assert "DLA" in messages(findings)


def test_a_wrong_version_is_the_caller_s_mistake() -> None:
    with pytest.raises(ValueError, match="TensorRT version"):
        check(cache_of({}), trt_version="8")


# --- the model ----------------------------------------------------------------------------------------


@pytest.fixture
def graph(tmp_path: Path) -> Model:
    return open_model(save(conv_model(), tmp_path / "m.onnx"))


@pytest.fixture
def complete(graph: Model) -> CalibrationCache:
    return calibrate(graph, batched(images(4), 4), "minmax", algorithm="EntropyCalibration2").cache


def without(cache: CalibrationCache, *names: str) -> CalibrationCache:
    scales = {name: scale for name, scale in cache.scales.items() if name not in names}
    return CalibrationCache(cache.version, cache.algorithm, scales)


def test_a_cache_made_for_the_model_fits_it(graph: Model, complete: CalibrationCache) -> None:
    assert check(complete, model=graph, trt_version="8.6.1") == []


@pytest.mark.parametrize(
    ("missing", "severity", "why"),
    [
        ("image", "warning", "the Conv that reads it"),
        ("flat", "warning", "the Gemm that reads it"),
        ("pool", "warning", "the Add that reads it"),
        ("conv", "note", "no layer reads it as INT8"),  # inside the kernel of the convolution
        ("logits", "note", "no layer reads it as INT8"),
    ],
)
def test_a_missing_range_matters_where_an_int8_layer_reads_it(
    graph: Model, complete: CalibrationCache, missing: str, severity: str, why: str
) -> None:
    findings = check(without(complete, missing), model=graph)
    assert kinds(findings) == [(severity, missing)]
    assert why in findings[0].message


def test_integers_need_no_range(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64), helper.make_node("Shape", ["x"], ["s"])]
    graph = open_model(save(make_model(nodes, {"x": ["N", 4]}, ["i", "s"]), tmp_path / "m.onnx"))
    findings = check(cache_of({"x": 0.1}), model=graph)
    assert kinds(findings) == [("note", "i"), ("note", "s")]
    assert "integers" in messages(findings)


def test_layers_inside_an_if_are_named_since_no_range_reaches_them() -> None:
    model = open_model(body_model())
    cache = calibrate(model, [{"x": np.ones((1, 1, 2, 2), np.float32)}], method="minmax").cache
    (finding,) = [finding for finding in check(cache, model=model) if finding.severity == "warning"]
    assert finding.tensor == "inner"
    assert "has no range: inside If 'switch', which stays in float; if one branch is always taken" in finding.message


def test_a_tensor_that_the_model_has_not_is_a_warning(graph: Model, complete: CalibrationCache) -> None:
    assert kinds(check(merge([complete, cache_of({"ghost": 0.1})]), model=graph)) == [("warning", "ghost")]


def test_names_that_tensorrt_makes_up_are_but_noted(graph: Model, complete: CalibrationCache) -> None:
    made_up = {"(Unnamed Layer* 4) [Shuffle]_output": 0.1, "ONNXTRT_Broadcast_output": 0.1, "w_output": 0.1}
    findings = check(merge([complete, cache_of(made_up)]), model=graph)
    assert kinds(findings) == [("note", "(Unnamed Layer* 4) [Shuffle]_output"), ("note", "ONNXTRT_Broadcast_output")]


def test_the_cache_of_another_model_is_one_error(graph: Model) -> None:
    findings = check(cache_of({"a": 0.1, "c": 0.1, "image": 0.1}), model=graph)
    assert kinds(findings) == [("error", None)]
    assert "lacks 2 of its 3 tensors: 'a', 'c'" in messages(findings)


def test_that_a_cache_is_of_another_model_comes_before_all_else(graph: Model) -> None:
    cache = cache_of({"a": np.inf, "c": np.nan, "image": 0.1})
    findings = check(cache, model=graph, trt_version="11.0")
    assert "is of another model" in findings[0].message
    assert [finding.severity for finding in findings] == ["error"] * 4


def test_a_cache_of_another_version_of_the_model_says_so_first(graph: Model) -> None:
    settings = {
        "method": "entropy",
        "growth": "double",
        "batch_size": 8,
        "order": "given",
        "seed": None,
        "partial": "pad",
    }
    samples = {"data": "d", "data_key": "k", "samples_used": 1, "samples_available": 1, "preprocess": {}, "shapes": {}}
    made = Provenance(model="retrained.onnx", model_sha256="0" * 64, header="h", versions={}, **settings, **samples)  # type: ignore[arg-type]
    findings = check(cache_of({"image": 0.1}), model=graph, made_from=made)
    assert (findings[0].severity, findings[0].tensor) == ("warning", None)
    assert findings[0].message == "was made from another model, or another version of it: retrained.onnx"
    same = replace(made, model_sha256=graph.sha256)
    assert len(check(cache_of({"image": 0.1}), model=graph, made_from=same)) == len(findings) - 1


# --- diff ---------------------------------------------------------------------------------------------


def test_the_largest_change_comes_first_and_what_is_missing_last() -> None:
    first = cache_of({"same": 1, "half": 2, "only a": 1, "more": 1, "gone": 1})
    second = cache_of({"same": 1, "half": 1, "more": 3, "only b": 5, "gone": 0})
    rows = [(row.tensor, row.ratio) for row in diff(first, second)]
    assert rows == [
        ("gone", 0.0),
        ("more", 3.0),
        ("half", 0.5),
        ("same", 1.0),
        ("only a", None),
        ("only b", None),
    ]


scale_values = st.sampled_from([0.0, 1e-40, 0.5, 2.0, np.inf, np.nan, -1.0]) | st.floats(0, 1000, width=32)
caches = st.dictionaries(st.sampled_from("abcdef"), scale_values).map(cache_of)


@given(caches, caches)
def test_diff_has_every_tensor_once_and_turns_around(first: CalibrationCache, second: CalibrationCache) -> None:
    rows = {row.tensor: row for row in diff(first, second)}
    back = {row.tensor: row for row in diff(second, first)}
    assert rows.keys() == back.keys() == first.scales.keys() | second.scales.keys()
    assert len(rows) == len(diff(first, second))
    for name, row in rows.items():
        ratio, inverse = row.ratio, back[name].ratio
        assert (ratio is None) == (inverse is None)
        if ratio is not None and inverse is not None and 0 < ratio < np.inf:
            assert inverse == pytest.approx(1 / ratio)


@given(caches)
def test_a_cache_does_not_differ_from_itself(cache: CalibrationCache) -> None:
    assert all(row.ratio == 1 for row in diff(cache, cache))


# --- merge, rename, retarget --------------------------------------------------------------------------


@given(st.lists(caches, min_size=1, max_size=4))
def test_merging_gives_every_tensor_its_last_scale(parts: list[CalibrationCache]) -> None:
    merged = merge(parts)
    assert merged.header == parts[0].header
    expected: dict[str, np.float32] = {}
    for part in parts:
        expected |= part.scales
    assert list(merged.scales) == list(expected)
    np.testing.assert_array_equal(list(merged.scales.values()), list(expected.values()))


def test_merging_nothing_is_the_caller_s_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        merge([])


def test_renaming_keeps_order_and_scales_and_can_swap() -> None:
    cache = cache_of({"a": 1, "b": 2, "c": 3})
    assert list(rename(cache, {"a": "b", "b": "a"}).scales.items()) == [("b", 1), ("a", 2), ("c", 3)]
    assert rename(cache, {}) == cache
    assert rename(rename(cache, {"a": "x"}), {"x": "a"}) == cache


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"conv_1": "x"}, "no scale for tensor 'conv_1' .*did you mean 'conv1'"),
        ({"a": "b"}, "'b' would be the name of two tensors"),
        ({"a": ""}, "without a name"),
        ({"a": "x\ny"}, "line end"),
    ],
)
def test_a_renaming_that_cannot_be_is_refused(mapping: dict[str, str], message: str) -> None:
    with pytest.raises(CacheError, match=message):
        rename(cache_of({"conv1": 1, "a": 1, "b": 2}), mapping)


def test_retargeting_changes_the_header_and_nothing_else() -> None:
    cache = cache_of({"a": 1, "b": np.nan})
    other = retarget(cache, trt_version="10.3.0", algorithm="MinMaxCalibration")
    assert other.header == "TRT-100300-MinMaxCalibration"
    assert retarget(other, trt_version="8.6.1", algorithm="EntropyCalibration2") == cache
    assert retarget(cache, trt_version="10.3.0").header == "TRT-100300-EntropyCalibration2"
    assert retarget(cache, algorithm="LegacyCalibration").header == "TRT-8601-LegacyCalibration"


def test_a_retargeted_cache_passes_the_check_it_failed() -> None:
    cache = cache_of({"a": 1})
    assert check(cache, trt_version="10.3")
    assert not check(retarget(cache, trt_version="10.3"), trt_version="10.3")


@pytest.mark.parametrize(
    ("header", "arguments", "message"),
    [
        (b"TRT-8601-MinMaxCalibration\n", {"trt_version": "8"}, "TensorRT version"),
        (b"TRT-8601-MinMaxCalibration\n", {"trt_version": "11.0"}, "TensorRT 11.0 has no calibrators"),
        (b"TRT-8601-MinMaxCalibration\n", {"algorithm": "minmax"}, "algorithm must be one of"),
        (b"1\n", {"trt_version": "8.6.1"}, "'1' names no calibrator"),
    ],
)
def test_a_header_that_cannot_be_is_refused(header: bytes, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retarget(CalibrationCache.parse(header), **arguments)

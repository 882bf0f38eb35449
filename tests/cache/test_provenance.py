from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trtcal
from trtcal.cache.provenance import (
    Provenance,
    check,
    installed_versions,
    model_sha256,
    read_sidecar,
    save_with_sidecar,
    sidecar_path,
)
from trtcal.errors import CacheError, ModelError, OutputError

MADE = Provenance(
    model="net.onnx",
    model_sha256="ab" * 32,
    data="photos/",
    data_key="cd" * 32,
    samples_used=100,
    samples_available=250,
    preprocess={"resize": [256, 256], "mean": [0.485, 0.456, 0.406], "layout": "NCHW"},
    method="entropy",
    growth="double",
    batch_size=8,
    order="given",
    seed=None,
    partial="pad",
    shapes={"image": [8, 3, 224, 224]},
    header="TRT-8601-EntropyCalibration2",
    versions={"trtcal": "0.1.0", "onnxruntime": "1.18.0", "numpy": "1.26.4", "onnx": "1.16.0"},
)
CACHE = b"TRT-8601-EntropyCalibration2\ndata: 3c010204\n"


def changed(**fields: Any) -> Provenance:
    return dataclasses.replace(MADE, **fields)


text = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
provenances = st.builds(
    Provenance,
    model=text,
    model_sha256=text,
    data=text,
    data_key=text,
    samples_used=st.integers(0),
    samples_available=st.integers(0),
    preprocess=st.dictionaries(text, json_values, max_size=4),
    method=text,
    growth=text,
    batch_size=st.integers(1),
    order=text,
    seed=st.none() | st.integers(),
    partial=text,
    shapes=st.dictionaries(text, st.lists(st.integers(1), max_size=4), max_size=2),
    header=text,
    versions=st.dictionaries(text, text, max_size=3),
)


# --- the value ----------------------------------------------------------------------------------------


@given(provenances)
def test_a_provenance_comes_back_from_a_sidecar_equal(
    tmp_path_factory: pytest.TempPathFactory, provenance: Provenance
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.cache"
    save_with_sidecar(CACHE, provenance, path)
    kept = read_sidecar(path)
    assert kept is not None
    again, _ = kept
    assert again == provenance
    assert again.differences(provenance) == []
    assert again.to_json() == provenance.to_json()


def test_json_does_not_depend_on_the_order_of_keys_and_ends_its_last_line() -> None:
    data = MADE.to_json()
    assert data == changed(preprocess=dict(reversed(list(MADE.preprocess.items())))).to_json()
    assert data.endswith(b"}\n")
    assert list(json.loads(data)) == sorted(json.loads(data))


def test_a_tuple_counts_as_the_list_that_json_makes_of_it() -> None:
    given_tuples = changed(shapes={"image": (8, 3, 224, 224)}, preprocess={**MADE.preprocess, "resize": (256, 256)})
    assert given_tuples == MADE


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), (object(), TypeError)])
def test_a_setting_without_a_json_form_is_refused(value: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        changed(preprocess={"mean": value})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000,
        MADE.to_json().replace(b'"batch_size"', b'"batchsize"'),
        MADE.to_json().replace(b'"batch_size": 8', b'"batch_size": "8"'),
        MADE.to_json().replace(b'"seed": null', b'"seed": NaN'),
        MADE.to_json().replace(b'"entropy"', b"null"),
        MADE.to_json().replace(b"{", b'{"later": 1,', 1),
    ],
    ids=["empty", "binary", "cut", "list", "null", "deep", "renamed", "type", "nan", "none", "unknown"],
)
def test_what_is_no_provenance_makes_the_origin_unknown_by_file_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "net.cache"
    save_with_sidecar(CACHE, MADE, path)
    sidecar = b'{"format": 1, "cache_sha256": "%s", "provenance": %s}'
    cache_sha256 = hashlib.sha256(CACHE).hexdigest().encode()
    sidecar_path(path).write_bytes(sidecar % (cache_sha256, MADE.to_json()))
    assert check(path, MADE).ok
    sidecar_path(path).write_bytes(sidecar % (cache_sha256, data))
    (reason,) = check(path, MADE).reasons
    assert reason.startswith(f"origin unknown: {sidecar_path(path)}: ")
    assert read_sidecar(path) is None


# --- what differs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_sha256": "x"}, "model: content differs (net.onnx)"),
        ({"model_sha256": "x", "model": "new.onnx"}, "model: content differs (net.onnx -> new.onnx)"),
        ({"data_key": "x"}, "data: samples differ (photos/)"),
        ({"data_key": "x", "data": "more/"}, "data: samples differ (photos/ -> more/)"),
        ({"samples_used": 50}, "samples used: 100 -> 50"),
        ({"method": "minmax"}, "method: entropy -> minmax"),
        ({"growth": "power-of-two"}, "growth: double -> power-of-two"),
        ({"batch_size": 16}, "batch size: 8 -> 16"),
        ({"order": "sorted"}, "order: given -> sorted"),
        ({"seed": 0}, "seed: none -> 0"),
        ({"partial": "drop"}, "partial batch: pad -> drop"),
        ({"header": "TRT-100300-X"}, "header: TRT-8601-EntropyCalibration2 -> TRT-100300-X"),
        ({"preprocess": {**MADE.preprocess, "layout": "NHWC"}}, "preprocess layout: NCHW -> NHWC"),
        ({"preprocess": {**MADE.preprocess, "crop": 224}}, "preprocess crop: none -> 224"),
        ({"shapes": {"image": [8, 3, 64, 64]}}, "shape of image: [8, 3, 224, 224] -> [8, 3, 64, 64]"),
        ({"versions": {**MADE.versions, "onnxruntime": "1.30"}}, "version of onnxruntime: 1.18.0 -> 1.30"),
        ({"versions": {**MADE.versions, "trtcal": "9"}}, "version of trtcal: 0.1.0 -> 9"),
    ],
)
def test_a_change_is_named_with_the_old_value_first(fields: dict[str, Any], sentence: str) -> None:
    assert MADE.differences(changed(**fields)) == [sentence]


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "renamed.onnx"},
        {"data": "moved/"},
        {"samples_available": 300},
        {"versions": {**MADE.versions, "numpy": "2.4.6", "onnx": "1.23.2"}},
    ],
    ids=["model's name", "data's place", "more samples unused", "numpy and onnx"],
)
def test_what_does_not_decide_the_scales_is_no_difference(fields: dict[str, Any]) -> None:
    assert MADE.differences(changed(**fields)) == []


def test_every_field_is_a_difference_or_is_listed_as_none() -> None:
    for_the_reader = {"model", "data", "samples_available"}
    for field in dataclasses.fields(Provenance):
        old = getattr(MADE, field.name)
        new = {"trtcal": "other"} if isinstance(old, dict) else 7 if isinstance(old, int | None) else "other"
        assert bool(MADE.differences(changed(**{field.name: new}))) == (field.name not in for_the_reader), field.name


def test_several_changes_are_all_named() -> None:
    other = changed(batch_size=16, method="minmax", seed=1)
    assert MADE.differences(other) == ["method: entropy -> minmax", "batch size: 8 -> 16", "seed: none -> 1"]


# --- hashes and versions ------------------------------------------------------------------------------


def test_a_lone_model_file_has_the_hash_that_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"x" * (3 << 20) + b"tail")
    assert model_sha256([tmp_path / "net.onnx"]) == hashlib.sha256(b"x" * (3 << 20) + b"tail").hexdigest()


def test_external_data_counts_and_so_does_the_border_between_files(tmp_path: Path) -> None:
    def hashed(*contents: bytes) -> str:
        files = [tmp_path / str(number) for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        return model_sha256(files)

    hashes = [hashed(b"ab"), hashed(b"ab", b""), hashed(b"a", b"b"), hashed(b"b", b"a"), hashed(b"a", b"c")]
    assert len(set(hashes)) == len(hashes)
    assert hashed(b"a", b"b") == hashes[2]


def test_a_model_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"weights\.bin: cannot be read: No such file"):
        model_sha256([tmp_path / "net.onnx", str(tmp_path / "weights.bin")])


def test_installed_versions_name_the_packages_that_results_pass_through() -> None:
    versions = installed_versions()
    assert versions["trtcal"] == trtcal.__version__
    assert {"numpy", "onnx", "onnxruntime"} <= versions.keys()


# --- the pair of files --------------------------------------------------------------------------------


def test_a_sidecar_lies_beside_its_cache() -> None:
    assert sidecar_path("out/model.cache") == Path("out/model.cache.json")
    assert sidecar_path(Path("cal.bin")) == Path("cal.bin.json")


def test_an_unchanged_run_reuses_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "model.cache"
    save_with_sidecar(CACHE, MADE, path)
    assert path.read_bytes() == CACHE
    assert check(path, MADE).ok
    assert check(str(path), MADE).reasons == ()


def test_a_sidecar_is_stable_json_that_names_the_hash_of_its_cache(tmp_path: Path) -> None:
    path = tmp_path / "model.cache"
    save_with_sidecar(CACHE, MADE, path)
    first = sidecar_path(path).read_bytes()
    save_with_sidecar(CACHE, MADE, path)
    assert sidecar_path(path).read_bytes() == first
    assert json.loads(first) == {
        "format": 1,
        "cache_sha256": hashlib.sha256(CACHE).hexdigest(),
        "provenance": json.loads(MADE.to_json()),
        "findings": {},
    }
    assert read_sidecar(path) == (MADE, {})
    save_with_sidecar(CACHE, MADE, path, {"clipped": {"x": 0.5}})
    assert read_sidecar(path) == (MADE, {"clipped": {"x": 0.5}})
    path.write_bytes(CACHE + b"edited: 0\n")
    assert read_sidecar(path) is None
    assert read_sidecar(tmp_path / "gone.cache") is None


def test_a_changed_run_does_not_reuse_and_says_what_changed(tmp_path: Path) -> None:
    save_with_sidecar(CACHE, MADE, tmp_path / "model.cache")
    reuse = check(tmp_path / "model.cache", changed(batch_size=16, seed=3))
    assert not reuse.ok
    assert reuse.reasons == ("batch size: 8 -> 16", "seed: none -> 3")


def test_a_missing_cache_is_made(tmp_path: Path) -> None:
    assert check(tmp_path / "model.cache", MADE).reasons == (f"no cache at {tmp_path / 'model.cache'}",)


def test_a_cache_without_a_sidecar_is_of_unknown_origin(tmp_path: Path) -> None:
    (tmp_path / "model.cache").write_bytes(CACHE)
    (reason,) = check(tmp_path / "model.cache", MADE).reasons
    assert reason.startswith("origin unknown: ")
    assert "model.cache.json is missing" in reason


@pytest.mark.parametrize("replacement", [CACHE + b"more: 0\n", b""])
def test_an_edited_or_replaced_cache_is_noticed(tmp_path: Path, replacement: bytes) -> None:
    path = tmp_path / "model.cache"
    save_with_sidecar(CACHE, MADE, path)
    path.write_bytes(replacement)
    (reason,) = check(path, MADE).reasons
    assert "is not the file that model.cache.json is about" in reason


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 2}',
        b'{"format": 1}',
        b'{"format": 1, "cache_sha256": "x", "provenance": 3}',
    ],
)
def test_a_damaged_or_newer_sidecar_makes_the_origin_unknown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.cache"
    save_with_sidecar(CACHE, MADE, path)
    sidecar_path(path).write_bytes(content)
    (reason,) = check(path, MADE).reasons
    assert reason.startswith(f"origin unknown: {sidecar_path(path)}: ")


def test_a_cache_that_cannot_be_read_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "model.cache").mkdir()
    (tmp_path / "model.cache.json").write_bytes(b"{}")
    with pytest.raises(CacheError, match=r"model\.cache: cannot be read"):
        check(tmp_path / "model.cache", MADE)


@pytest.mark.parametrize(
    ("call", "done", "kept"),
    [("fsync", 0, True), ("fsync", 1, True), ("replace", 0, True), ("replace", 1, False)],
    ids=["writing the sidecar", "writing the cache", "before the sidecar is in place", "between sidecar and cache"],
)
@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_a_run_that_dies_never_leaves_a_cache_with_a_wrong_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, done: int, kept: bool, stop: BaseException
) -> None:
    path = tmp_path / "model.cache"
    save_with_sidecar(CACHE, MADE, path)
    new = changed(batch_size=16)
    real, left = getattr(os, call), iter([None] * done)

    def dying(*arguments: object) -> None:
        if next(left, stop) is stop:
            raise stop
        real(*arguments)

    monkeypatch.setattr(os, call, dying)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        save_with_sidecar(CACHE + b"new: 0\n", new, path)
    assert path.read_bytes() == CACHE
    assert check(path, MADE).ok == kept  # where it is not, the sidecar vouches for no file that is there
    assert not check(path, new).ok
    assert sorted(os.listdir(tmp_path)) == ["model.cache", "model.cache.json"]


def test_two_runs_whose_writes_cross_are_noticed(tmp_path: Path) -> None:
    other = changed(batch_size=16)
    save_with_sidecar(CACHE + b"other: 0\n", other, tmp_path / "model.cache")
    late = (tmp_path / "model.cache.json").read_bytes()
    save_with_sidecar(CACHE, MADE, tmp_path / "model.cache")
    (tmp_path / "model.cache.json").write_bytes(late)
    assert not check(tmp_path / "model.cache", MADE).ok
    assert not check(tmp_path / "model.cache", other).ok

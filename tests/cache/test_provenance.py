from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import conv_model
from PIL import Image

import trtcal
from trtcal.cache.provenance import (
    Provenance,
    check,
    installed_versions,
    origin,
    read_sidecar,
    save_with_sidecar,
    sidecar_path,
    statistics_differences,
)
from trtcal.errors import CacheError, ModelError, OutputError
from trtcal.model.read import model_files
from trtcal.samples.batches import Batches
from trtcal.samples.images import ImageFolder
from trtcal.samples.preprocess import preset

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


# --- statistics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "minmax", "header": "TRT-100300-MinMaxCalibration"},  # chosen after the pass
        {"model": "renamed.onnx", "data": "elsewhere/"},
        {"samples_available": 251},  # a file more in the folder, which is not used
        {"versions": {**MADE.versions, "numpy": "2.4.0", "onnx": "1.20.0"}},
        {"versions": {"trtcal": "0.1.0", "onnxruntime": "1.18.0"}},
    ],
)
def test_what_does_not_decide_statistics_is_not_in_their_key(fields: dict[str, Any]) -> None:
    assert changed(**fields).statistics_key() == MADE.statistics_key()
    assert statistics_differences(MADE.statistics_key(), changed(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"model_sha256": "00" * 32}, [("model_sha256", "model: content differs (net.onnx)")]),
        ({"data_key": "00" * 32}, [("data_key", "data: samples differ (photos/)")]),
        ({"batch_size": 16, "seed": 1}, [("batch_size", "batch size: 8 -> 16"), ("seed", "seed: none -> 1")]),
        ({"growth": "power-of-two"}, [("growth", "growth: double -> power-of-two")]),
        ({"partial": "wrap"}, [("partial", "partial batch: pad -> wrap")]),
        ({"order": "sorted"}, [("order", "order: given -> sorted")]),
        ({"samples_used": 99}, [("samples_used", "samples used: 100 -> 99")]),
        ({"shapes": {"image": [8, 3, 64, 64]}}, [("shapes", "shape of image: [8, 3, 224, 224] -> [8, 3, 64, 64]")]),
        ({"preprocess": {}}, [("preprocess", f"preprocess {name}: {value} -> none") for name, value in
                              [("layout", "NCHW"), ("mean", "[0.485, 0.456, 0.406]"), ("resize", "[256, 256]")]]),
        ({"versions": {**MADE.versions, "onnxruntime": "1.19.0"}},
         [("versions", "version of onnxruntime: 1.18.0 -> 1.19.0")]),
    ],
)  # fmt: skip
def test_what_decides_statistics_is_in_their_key_and_is_named(
    fields: dict[str, Any], found: list[tuple[str, str]]
) -> None:
    assert changed(**fields).statistics_key() != MADE.statistics_key()
    assert statistics_differences(MADE.statistics_key(), changed(**fields)) == found


@pytest.mark.parametrize(
    "key",
    [
        hashlib.sha256(b"the key of an earlier trtcal").hexdigest(),
        "",
        "{}",
        "[1]",
        "\ud800",
        "[" * 5000,
        MADE.to_json().decode(),
        json.dumps({**json.loads(MADE.statistics_key()), "versions": 3}),
    ],
)
def test_a_key_that_nothing_can_be_read_from_tells_nothing(key: str) -> None:
    assert statistics_differences(key, MADE) is None


# --- the run that begins --------------------------------------------------------------------------------


def begun(batches: Any = (), **changes: Any) -> Provenance:
    options: dict[str, Any] = {"files": [], "batch_size": 2, "method": "m", "growth": "g", "header": "TRT-1-x"}
    return origin(batches, **{**options, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        Image.fromarray(np.full((8, 8, 3), number * 10, np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def of_folder(folder: Path, name: str = "0-1", **options: Any) -> Provenance:
    return begun(Batches(ImageFolder(folder, preset(name, size=(8, 8)), input_name="x"), 2, **options))


def test_what_nobody_said_is_empty() -> None:
    nothing = begun(batch_size=None)
    assert (nothing.model, nothing.model_sha256, nothing.data_key, nothing.samples_used) == ("", "", "", 0)
    assert (nothing.batch_size, nothing.order, nothing.data) == (0, "as in the data key", "tuple")
    of_three = begun([1, 2, 3], data_key="cats")
    assert (of_three.data_key, of_three.samples_used, of_three.samples_available) == ("cats", 6, 6)


def test_the_model_is_known_by_its_content(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"one")
    one = begun(files=[model])
    model.write_bytes(b"two")
    two = begun(files=[model])
    assert one.model == "m.onnx"
    assert one.differences(two) == ["model: content differs (m.onnx)"]


def test_a_model_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.onnx"):
        begun(files=model_files(tmp_path / "absent.onnx"))


def test_weights_in_files_of_their_own_belong_to_the_model(tmp_path: Path) -> None:
    onnx.save(conv_model(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    one = begun(files=model_files(tmp_path / "m.onnx"))
    (tmp_path / "w.bin").write_bytes(bytes((tmp_path / "w.bin").stat().st_size))
    assert begun(files=model_files(tmp_path / "m.onnx")).model_sha256 != one.model_sha256


def test_a_folder_of_pictures_supplies_its_own_key_and_its_sizes(folder: Path) -> None:
    assert of_folder(folder) == of_folder(folder)
    assert of_folder(folder).samples_used == 4
    assert begun(Batches(ImageFolder(folder, preset("0-1", size=(8, 8)), input_name="x"), 3), batch_size=None) == (
        dataclasses.replace(of_folder(folder), batch_size=3)
    )
    assert of_folder(folder, samples=3).samples_available == 4


def test_a_picture_that_changes_changes_the_origin(folder: Path) -> None:
    before = of_folder(folder)
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(folder / "2.png")
    assert any(line.startswith("data: samples differ") for line in before.differences(of_folder(folder)))


def test_what_is_done_to_the_pictures_belongs_to_the_origin(folder: Path) -> None:
    found = of_folder(folder).differences(of_folder(folder, "-1-1"))
    assert found
    assert all(line.startswith("preprocess ") for line in found)


@pytest.mark.parametrize("options", [{"order": "shuffled", "seed": 3}, {"samples": 3}])
def test_order_and_number_of_samples_belong_to_the_origin(folder: Path, options: dict[str, Any]) -> None:
    assert of_folder(folder).differences(of_folder(folder, **options))


def test_what_becomes_of_a_last_short_batch_belongs_to_the_origin(folder: Path) -> None:
    pad, wrap = (of_folder(folder, samples=3, partial=partial) for partial in ("pad", "wrap"))
    assert pad.differences(wrap) == ["partial batch: pad -> wrap"]


# --- hashes and versions ------------------------------------------------------------------------------


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

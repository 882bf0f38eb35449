from __future__ import annotations

import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtcal.errors import DataError, NonFiniteError
from trtcal.samples import arrays
from trtcal.samples.arrays import ArrayFolder, ArraySource
from trtcal.samples.batches import Batches, Samples
from trtcal.spec import InputSpec

IMAGE = InputSpec("x", np.dtype("float32"), (3, 4, 5))
IDS = InputSpec("ids", np.dtype("int64"), (None,))
MASK = InputSpec("mask", np.dtype("bool"), (None,))
rng = np.random.default_rng(0)


def values(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def folder(path: Path, *inputs: InputSpec) -> ArrayFolder:
    return ArrayFolder(path, inputs=inputs or [IMAGE])


def loaded(source: Samples, name: str = "x") -> np.ndarray:
    return np.stack([source.load(index)[name] for index in range(len(source))])


def names(source: Samples) -> list[str]:
    return [source.name(index) for index in range(len(source))]


# --- single files


def test_in_a_npy_file_the_first_axis_is_the_samples(tmp_path: Path) -> None:
    array = values(11, 3, 4, 5)
    np.save(tmp_path / "x.npy", array)
    source = folder(tmp_path / "x.npy")
    np.testing.assert_array_equal(loaded(source), array)
    assert names(source)[:2] == ["x.npy[00]", "x.npy[01]"]
    assert names(source) == sorted(names(source))
    assert source.label(0) is None
    assert source.describe() == f"11 samples of {tmp_path / 'x.npy'}"


def test_fortran_order_and_other_dtypes_are_read(tmp_path: Path) -> None:
    array = values(2, 3, 4, 5)
    np.save(tmp_path / "x.npy", np.asfortranarray(array.astype(">f8")))
    np.testing.assert_array_equal(loaded(folder(tmp_path / "x.npy")), array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_npz_file_feeds_every_input_by_name(save: object, tmp_path: Path) -> None:
    ids, mask = rng.integers(0, 9, (6, 7)), rng.integers(0, 2, (6, 7)).astype(bool)
    save(tmp_path / "x.npz", ids=ids, mask=mask, labels=np.arange(6) * 2)  # type: ignore[operator]
    source = folder(tmp_path / "x.npz", IDS, MASK)
    batches = Batches(source, 4)
    first = next(iter(batches))
    np.testing.assert_array_equal(first["ids"], ids[:4])
    np.testing.assert_array_equal(first["mask"], mask[:4])
    assert batches.labels == (0, 2, 4, 6, 8, 10)


def test_labels_that_are_an_input_are_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", label=np.arange(3), labels=np.arange(3) + 5)
    source = folder(tmp_path / "x.npz", InputSpec("labels", np.dtype("int64"), ()))
    assert [source.label(i) for i in range(3)] == [0, 1, 2]
    assert loaded(source, "labels").tolist() == [5, 6, 7]


# --- folders


def test_in_a_folder_the_rank_tells_samples_from_blocks(tmp_path: Path) -> None:
    single, block = values(3, 4, 5), values(2, 3, 4, 5)
    (tmp_path / "sub").mkdir()
    np.save(tmp_path / "b.npy", single)
    np.save(tmp_path / "sub/a.npy", block)
    np.savez(tmp_path / "c.npz", x=single + 1, label=7)
    np.savez(tmp_path / "d.npz", x=block + 1, label=[8, 9])
    source = folder(tmp_path)
    assert names(source) == ["b.npy", "c.npz", "d.npz[0]", "d.npz[1]", "sub/a.npy[0]", "sub/a.npy[1]"]
    np.testing.assert_array_equal(loaded(source), np.stack([single, single + 1, *(block + 1), *block]))
    assert [source.label(i) for i in range(6)] == [None, 7, 8, 9, None, None]
    assert Batches(source, 2).labels is None


def test_one_batch_axis_of_one_is_a_block_of_one(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values(1, 3, 4, 5))
    assert names(folder(tmp_path)) == ["a.npy[0]"]


def test_arrays_of_any_order_give_the_same_batches(tmp_path: Path) -> None:
    blocks = [values(3, 3, 4, 5) for _ in range(4)]
    for number, block in enumerate(blocks):
        np.savez(tmp_path / f"{number}.npz", x=block)
    everything = np.concatenate(blocks)
    batches = list(Batches(folder(tmp_path), 4, order="shuffled", seed=2))
    order = np.random.default_rng(2).permutation(12)
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), everything[order])


def test_a_sample_outlives_its_file(tmp_path: Path) -> None:
    array = values(2, 3, 4, 5)
    np.save(tmp_path / "x.npy", array)
    sample = folder(tmp_path / "x.npy").load(1)["x"]
    np.save(tmp_path / "x.npy", array * 0)
    np.testing.assert_array_equal(sample, array[1])
    assert type(sample) is np.ndarray


def test_npy_files_are_mapped_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", values(2, 3, 4, 5))
    asked: list[tuple[Any, ...]] = []
    memmap = np.memmap

    def spy(path: Path, *how: Any) -> Any:
        asked.append(how)
        return memmap(path, *how)

    source = folder(tmp_path)
    monkeypatch.setattr(np, "memmap", spy)
    source.load(0)
    assert asked == [(np.dtype(np.float32), "r", 128, (2, 3, 4, 5), "C")]


def test_headers_are_read_once_and_not_by_the_threads_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where several threads read headers, CPython 3.11 now and then fails in its own parser."""
    np.save(tmp_path / "a.npy", values(6, 3, 4, 5))
    np.savez(tmp_path / "b.npz", x=values(6, 3, 4, 5))
    np.savez(tmp_path / "c.npz", x=values(3, 4, 5))
    source = folder(tmp_path)

    def never(*_: object, **__: object) -> Any:
        raise AssertionError("a header is read again")

    monkeypatch.setattr("ast.literal_eval", never)
    assert sum(batch.valid for batch in Batches(source, 4)) == 13


def test_the_key_is_of_names_and_values_and_not_of_the_place(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    np.save(tmp_path / "one/a.npy", values(3, 3, 4, 5))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    key = folder(tmp_path / "one").key()
    assert folder(tmp_path / "two").key() == folder(tmp_path / "two/a.npy").key() == key
    assert folder(tmp_path / "two").key([1]) != key
    np.save(tmp_path / "two/a.npy", values(3, 3, 4, 5))
    assert folder(tmp_path / "two").key() != key


# --- refusals


def test_an_empty_folder_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no \.npy or \.npz files; saw 1 \.png"):
        folder(tmp_path)


def test_no_samples_at_all_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", values(0, 3, 4, 5))
    with pytest.raises(DataError, match="no samples, the first axis of the arrays is 0"):
        folder(tmp_path / "x.npy")


@pytest.mark.parametrize(("shape", "rank"), [((3, 4, 5), "x.npy"), ((4, 5), "."), ((2, 2, 3, 4, 5), ".")])
def test_a_rank_that_fits_neither_way_is_refused(shape: tuple[int, ...], rank: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", values(*shape))
    with pytest.raises(DataError, match=r"x\.npy: shape .*; expected x: float32 \(N, 3, 4, 5\) with N samples"):
        folder(tmp_path / rank)


def test_wrong_channels_are_refused_with_sample_and_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", values(2, 1, 4, 5))
    with pytest.raises(DataError, match=r"'x\.npy\[0\]', input 'x': .*takes 3 channels, the array has 1"):
        list(Batches(folder(tmp_path / "x.npy"), 1))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inf_and_nan_are_named_with_their_sample(value: float, tmp_path: Path) -> None:
    array = values(4, 3, 4, 5)
    array[2, 1, 0, 3] = value
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(NonFiniteError, match=r"'x\.npy\[2\]', input 'x': 1 of 60 .*at \(1, 0, 3\)"):
        list(Batches(folder(tmp_path / "x.npy"), 2))


def test_npy_holds_one_input_only(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"x\.npy: one array, the model takes 'ids', 'mask': use \.npz"):
        folder(tmp_path / "x.npy", IDS, MASK)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"ids": np.zeros((2, 3), int)}, "no array 'mask', it holds 'ids'"),
        ({"arr_0": np.zeros((2, 3), int)}, "no array 'ids', it holds 'arr_0'"),
        ({}, "no array 'ids', it holds nothing"),
        (
            {"ids": np.zeros((2, 3), int), "mask": np.zeros((2, 3), bool), "types": np.zeros(2)},
            "array 'types' is no input of the model, which takes 'ids', 'mask'",
        ),
        ({"ids": np.zeros((2, 3), int), "mask": np.zeros((4, 3), bool)}, r"\('ids' 2, 'mask' 4\)"),
        ({"ids": np.zeros((2, 3), int), "mask": np.zeros(3, bool)}, r"shape \(3,\)"),
        (
            {"ids": np.zeros((2, 3), int), "mask": np.zeros((2, 3), bool), "labels": np.zeros(3, int)},
            r"'labels' is int64 \(3,\), expected integers of shape \(2,\)",
        ),
        (
            {"ids": np.zeros((2, 3), int), "mask": np.zeros((2, 3), bool), "labels": np.zeros(2)},
            "'labels' is float64",
        ),
    ],
)
def test_a_npz_file_that_does_not_fit_is_refused(members: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **members)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=rf"x\.npz: .*{words}"):
        folder(tmp_path / "x.npz", IDS, MASK)


def test_a_sample_and_a_block_in_one_file_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", ids=np.zeros((2, 3), int), mask=np.zeros(3, bool))
    with pytest.raises(DataError, match=r"different numbers of samples \('ids' 2, 'mask' one\)"):
        folder(tmp_path, IDS, MASK)


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    trap = np.array([Trap()] * 2, dtype=object)
    np.save(tmp_path / "x.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=trap, allow_pickle=True)
    (tmp_path / "y.npy").write_bytes(pickle.dumps(trap))
    (tmp_path / "y.npz").write_bytes(pickle.dumps(trap))
    for name in ("x.npy", "x.npz", "y.npy", "y.npz"):
        with pytest.raises(DataError, match=rf"{name[0]}\{name[1:]}: "):
            folder(tmp_path / name, InputSpec("x", np.dtype("f4"), ()))


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY", b"PK\x03\x04" + bytes(50)])
def test_what_is_no_array_file_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"x\{name[1:]}: cannot be read"):
        folder(tmp_path / name)


def test_truncated_files_are_refused_before_they_are_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", values(4, 3, 4, 5))
    np.savez(tmp_path / "x.npz", x=values(4, 3, 4, 5))
    for name in ("x.npy", "x.npz"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match=rf"x\{name[1:]}: "):
            folder(path)


def header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("shape", [(10**12, 3, 4, 5), (2**40, 2**40, 2**40, 5), (1, 3, 4, 5)])
def test_an_array_that_claims_more_than_its_file_holds_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(header(shape) + bytes(8))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header(shape) + bytes(8))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(DataError, match=rf"x\{name[1:]}.*: claims \d+ bytes .*, there are 8; it is truncated"):
            folder(tmp_path / name)


def test_a_zip_that_unpacks_to_more_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_NPZ_BYTES", 3 * 3 * 4 * 5 * 4)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((2, 3, 4, 5), np.float32))
    assert len(folder(tmp_path)) == 2
    for number in range(5):  # single samples are read one by one, so they do not add up
        np.savez(tmp_path / f"b{number}.npz", x=values(3, 4, 5))
    assert len(folder(tmp_path)) == 7
    np.savez_compressed(tmp_path / "c.npz", x=np.zeros((2, 3, 4, 5), np.float32))
    with pytest.raises(DataError, match=r"c\.npz: .*save them as \.npy"):
        folder(tmp_path)


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=values(2, 3, 4, 5))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(DataError, match=r"x\.npz: cannot be read"):
        folder(tmp_path / "x.npz")


@pytest.mark.parametrize("dtype", ["U3", "M8[s]", "c8", [("a", "f4")]])
def test_what_is_no_number_is_refused(dtype: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3, dtype=dtype))
    with pytest.raises(DataError, match=r"x\.npy: holds .*, expected numbers"):
        folder(tmp_path / "x.npy", InputSpec("x", np.dtype("f4"), ()))


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_a_table_with_greek_columns_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3, dtype=[("β", "f4")]))
    with pytest.raises(DataError, match=r"x\.npy: npy format \(3, 0\)"):
        folder(tmp_path / "x.npy", InputSpec("x", np.dtype("f4"), ()))


# --- memory


def test_arrays_in_memory_are_samples() -> None:
    array = values(12, 3, 4, 5)
    source = ArraySource({"x": array}, labels=range(12))
    assert isinstance(source, Samples)
    np.testing.assert_array_equal(loaded(source), array)
    assert names(source)[:3] == ["00", "01", "02"]
    assert [source.label(i) for i in range(12)] == list(range(12))
    assert ArraySource({"x": array}).label(0) is None
    assert source.describe() == "12 samples in memory"
    assert source.key() == ArraySource({"x": array.copy()}).key() != ArraySource({"x": array + 1}).key()


def test_arrays_in_memory_are_held_against_the_model() -> None:
    source = ArraySource({"x": np.zeros((2, 3, 4, 5))}, inputs=[IMAGE])
    assert source.load(0)["x"].dtype == np.float32
    with pytest.raises(DataError, match="'y', which the model does not take"):
        ArraySource({"x": np.zeros((2, 3, 4, 5)), "y": np.zeros(2)}, inputs=[IMAGE]).load(0)
    with pytest.raises(NonFiniteError, match="sample '1', input 'x'"):
        ArraySource({"x": np.array([0, np.nan])}).load(1)


@pytest.mark.parametrize(
    ("given", "labels"), [({"x": np.zeros(2), "y": np.zeros(3)}, None), ({"x": np.zeros(2)}, [1]), ({}, None)]
)
def test_arrays_of_different_lengths_are_refused(given: dict[str, np.ndarray], labels: list[int] | None) -> None:
    with pytest.raises(ValueError, match="one length"):
        ArraySource(given, labels=labels)

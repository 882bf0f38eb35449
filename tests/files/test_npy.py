from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from trtcal.errors import DataError
from trtcal.files.npy import Header, archive_headers, read_header


def npy(shape: tuple[int, ...], content: bytes = b"", descr: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


def header_of(data: bytes) -> Header:
    return read_header(io.BytesIO(data), len(data), "file")


def test_a_header_says_what_the_file_holds() -> None:
    header = header_of(npy((2, 3), bytes(24)))
    assert header == ((2, 3), np.dtype("f4"), False, 128)
    assert header.nbytes == 24
    assert header_of(npy((), bytes(4))).shape == ()
    assert header_of(npy((10**12, 0))).nbytes == 0


@pytest.mark.parametrize("shape", [(10**12,), (2**62, 4), (-1, -1), (-1, 0), (2,), (10**30,)])
def test_a_shape_that_the_size_does_not_bear_out_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"^file: claims"):
        header_of(npy(shape, bytes(4)))


@pytest.mark.parametrize("descr", ["|O", "<U3", "<c8", "<M8[s]", "|V4"])
def test_what_is_no_number_is_refused(descr: str) -> None:
    with pytest.raises(DataError, match="expected numbers; pickled objects are never loaded"):
        header_of(npy((1,), bytes(12), descr))


def archive(**members: bytes) -> zipfile.ZipFile:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)
    return zipfile.ZipFile(buffer)


def test_headers_of_an_archive_are_read_without_its_arrays(tmp_path: Path) -> None:
    zeros = npy((10**6,), bytes(4 * 10**6))
    with archive(x=zeros, y=npy((2,), bytes(8))) as opened:
        headers = archive_headers(opened, "file")
    assert {name: header[:2] for name, header in headers.items()} == {
        "x": ((10**6,), np.dtype("f4")), "y": ((2,), np.dtype("f4")),
    }  # fmt: skip


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.array(3.5),
        np.zeros((0, 3)),
        np.array([True, False]),
        np.arange(1 << 21, dtype=np.uint8).reshape(2, -1)[:, ::2],
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_arrays_are_what_numpy_reads(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", x=array)
    data = (tmp_path / "x.npy").read_bytes()
    header = header_of(data)
    with zipfile.ZipFile(tmp_path / "x.npz") as opened, opened.open("x.npy") as stream:
        unpacked = header.unpacked(stream)
    for found in (header.mapped(tmp_path / "x.npy"), header.unpacked(io.BytesIO(data)), unpacked):
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found, array)
    if array.size:
        with pytest.raises(ValueError, match="bytes are there"):
            header.unpacked(io.BytesIO(data[:-1]))


def test_a_checksum_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(100_000, np.uint8))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[50_000] = 7
    (tmp_path / "x.npz").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "x.npz") as opened:
        header = archive_headers(opened, "file")["x"]
        with opened.open("x.npy") as stream, pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
            header.unpacked(stream)


def test_what_numpy_writes_is_read_whatever_it_compresses_to(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", x=np.zeros(4 << 20, np.uint8), y=np.arange(7), z=np.zeros((0, 3)))
        with zipfile.ZipFile(tmp_path / "x.npz") as opened:
            assert archive_headers(opened, "file")["x"].nbytes == 4 << 20


def test_a_member_that_cannot_be_as_large_as_it_says_is_refused() -> None:
    size = 10 << 30
    with archive(x=npy((size // 4,), bytes(100))) as opened:
        (member,) = opened.infolist()
        member.file_size = len(npy((size // 4,))) + size  # as the archive's directory would say
        with pytest.raises(DataError, match=r"'x' claims 10737418368 bytes, which .* cannot hold"):
            archive_headers(opened, "file")


def test_one_name_stands_for_one_array() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("x.npy", npy((1,), bytes(4)))
        with pytest.warns(UserWarning, match="Duplicate name"):
            made.writestr("x.npy", npy((1,), bytes(4)))
    with zipfile.ZipFile(buffer) as opened, pytest.raises(DataError, match="'x' is there twice; keep one"):
        archive_headers(opened, "file")


def test_only_what_numpy_compresses_with_is_unpacked() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as made:
        made.writestr("x.npy", npy((1,), bytes(4)))
    with zipfile.ZipFile(buffer) as opened, pytest.raises(DataError, match="compressed in a way that NumPy does not"):
        archive_headers(opened, "file")

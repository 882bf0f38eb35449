"""What NumPy's files claim to hold, and whether their size bears it out, before anything of that size is made."""

from __future__ import annotations

import math
import os
import zipfile
from typing import IO, Literal, NamedTuple

import numpy as np

from trtcal.errors import DataError

# Deflate makes at most 1032 bytes of one; what else zipfile reads makes more, and NumPy does not write it.
_MAX_RATIO = 1032
_CHUNK = 1 << 20  # bytes unpacked at once


class Header(NamedTuple):
    """Shape and type of an array in a file, whether its first axis is the fastest, and where its values begin.

    Read once, in one thread: NumPy reads headers with Python's own parser, of which CPython 3.11 now and then says
    "SystemError: AST constructor recursion depth mismatch" where several threads parse at once.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def order(self) -> Literal["C", "F"]:
        """The order as NumPy calls it."""
        return "F" if self.fortran_order else "C"

    def mapped(self, path: str | os.PathLike[str]) -> np.ndarray:
        """The ``.npy`` file that the header is of -> its array, read-only and read where it is looked at."""
        return np.memmap(path, self.dtype, "r", self.offset, self.shape, self.order)

    def unpacked(self, stream: IO[bytes]) -> np.ndarray:
        """Stream of the file that the header is of -> its array; ValueError where it ends too early."""
        values = np.empty(math.prod(self.shape), self.dtype)
        view, filled = values.view(np.uint8).data, 0
        stream.read(self.offset)
        while filled < len(view):
            count = stream.readinto(view[filled : filled + _CHUNK])  # type: ignore[attr-defined]
            if not count:
                raise ValueError(f"{filled} of {len(view)} bytes are there")
            filled += count
        stream.read(1)  # nothing; at the end an archive holds its checksum against what was read
        return values.reshape(self.shape, order=self.order)


def read_header(stream: IO[bytes], size: int, where: str) -> Header:
    """Stream of ``size`` bytes -> its npy header; DataError, beginning with ``where``, unless the size bears it out.

    A file may claim any shape in a few bytes, and NumPy would allocate it.
    """
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise DataError(f"{where}: npy format {version}, which is for tables; save arrays of numbers")
    header = Header(shape, dtype, fortran_order, stream.tell())
    if dtype.kind not in "biuf":
        raise DataError(f"{where}: holds {dtype}, expected numbers; pickled objects are never loaded")
    if min(shape, default=0) < 0 or stream.tell() + header.nbytes != size:
        raise DataError(
            f"{where}: claims {header.nbytes} bytes in shape {shape}, there are {size - stream.tell()}; "
            "it is truncated or not what it says"
        )
    return header


def archive_headers(archive: zipfile.ZipFile, where: str) -> dict[str, Header]:
    """Archive of arrays -> the header of each by its name, without reading any array.

    What they say may be relied on, but is not small: 10 MB of zeros unpack to 10 GB. DataError, beginning with
    ``where``, for a member that cannot be as large as it says.
    """
    headers: dict[str, Header] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{where}: array {name!r} is compressed in a way that NumPy does not; save it again")
        if member.file_size > _MAX_RATIO * member.compress_size + 64:
            raise DataError(
                f"{where}: array {name!r} claims {member.file_size} bytes, which {member.compress_size} cannot hold; "
                "it is damaged, or made to fill the memory"
            )
        if name in headers:
            raise DataError(f"{where}: array {name!r} is there twice; keep one")
        with archive.open(member) as stream:
            headers[name] = read_header(stream, member.file_size, f"{where}: array {name!r}")
    return headers

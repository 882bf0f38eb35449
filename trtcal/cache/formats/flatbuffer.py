"""ONNX Runtime's ``calibration.flatbuffers``, as its TensorRT provider reads it: pairs of strings.

The schema (``ort_trt_int8_cal_table.fbs`` and ``CalTableFlatBuffers`` in ONNX Runtime) in full::

    table KeyValue { key: string; value: string; }
    table TrtTable { dict: [KeyValue]; }
    root_type TrtTable;

Written and read by hand: it is this little, and a reader of unknown files has to check every offset, which
generated code does not. The layout is that of FlatBuffers' "Binary format" page; all numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from trtcal.errors import CacheFormatError

_KEY, _VALUE = 4, 6  # offsets of a table's first and second field in its vtable


def parse(data: bytes, name: str = "<bytes>") -> list[tuple[str, str]]:
    """FlatBuffer -> (key, value) pairs in file order; CacheFormatError where it is not such a table."""
    buffer = _Buffer(data)
    try:
        elements = buffer.vector(buffer.field(buffer.follow(0), _KEY))
        return [(buffer.string(buffer.field(at, _KEY)), buffer.string(buffer.field(at, _VALUE))) for at in elements]
    except (ValueError, struct.error) as error:
        raise CacheFormatError(f"{name}: expected a calibration table of ONNX Runtime, got {error}") from error


def format(pairs: Sequence[tuple[str, str]]) -> bytes:
    """(key, value) pairs -> FlatBuffer that lists them in this order."""
    texts = [text.encode() for pair in pairs for text in pair]
    root, vector = 12, 20
    tables = vector + 4 + 4 * len(pairs) + 8  # behind the vtable that all of them share
    strings = tables + 12 * len(pairs)
    starts = []
    for text in texts:
        starts.append(strings)
        strings += 4 + len(text) // 4 * 4 + 4  # length, text, and 1 to 4 zeros that end and align it

    parts = [struct.pack("<IHHHHiI", root, 6, 8, 4, 0, root - 4, vector - (root + 4)), struct.pack("<I", len(pairs))]
    parts += [struct.pack("<I", tables + 12 * i - (vector + 4 + 4 * i)) for i in range(len(pairs))]
    parts.append(struct.pack("<HHHH", 8, 12, 4, 8))
    for i in range(len(pairs)):
        at = tables + 12 * i
        key, value = starts[2 * i : 2 * i + 2]
        parts.append(struct.pack("<iII", at - (tables - 8), key - (at + 4), value - (at + 8)))
    for text in texts:
        parts.append(struct.pack("<I", len(text)) + text + bytes(4 - len(text) % 4))
    return b"".join(parts)


class _Buffer:
    """Bytes in which offsets are followed only to where there is something; else ValueError or struct.error."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = 2 * len(data)  # of text; equal values may share their place, but not all with all

    def follow(self, at: int) -> int:
        """Position of an offset -> position it leads to."""
        return at + self._number("<I", at)

    def field(self, table: int, slot: int) -> int:
        """Table and slot in its vtable -> position that the field, an offset, leads to."""
        vtable = table - self._number("<i", table)
        size = self._number("<H", vtable)
        offset = self._number("<H", vtable + slot) if slot + 2 <= size else 0
        if offset == 0:
            raise ValueError("a table that lacks a field")
        return self.follow(table + offset)

    def vector(self, at: int) -> list[int]:
        """Position of a vector of offsets -> the positions they lead to."""
        length = self._number("<I", at)
        if length > len(self._data) // 4:
            raise ValueError(f"a list of {length} entries in {len(self._data)} bytes")
        return [self.follow(at + 4 + 4 * i) for i in range(length)]

    def string(self, at: int) -> str:
        """Position of a string -> its text."""
        end = at + 4 + self._number("<I", at)
        if end > len(self._data):
            raise ValueError("a string that runs past the end")
        self._left -= end - at
        if self._left < 0:
            raise ValueError("strings that lie over each other")
        return self._data[at + 4 : end].decode()

    def _number(self, kind: str, at: int) -> int:
        if at < 0:
            raise ValueError("an offset that leads before the beginning")
        number: int = struct.unpack_from(kind, self._data, at)[0]
        return number

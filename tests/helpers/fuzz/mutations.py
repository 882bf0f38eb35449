"""Bytes of a valid file -> bytes of a file that somebody damaged or forged; the randomness comes from the caller."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

Mutation = Callable[[bytes, Random], bytes]

TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"\r",
        b"\n\n",
        b"\x1b[2J",
        b"\xe2\x80\xa8",
        b":",
        b"; ",
    ),
    *(b"nan", b"-inf", b"Infinity", b"1e999", b"-1e-999", b"7f800000", b"0x", b"-", b"1" * 4400, b":"),
    *(
        b"[" * 1500,
        b'{"a":' * 1500,
        b'"',
        b"\\ud800",
        b"../../etc/passwd",
        b"/etc/passwd",
        b"=1+1",
        b"18446744073709551616",
    ),
)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**31,
        -(2**63),
        2**64,
        10**400,
        0.5,
        -0.0,
        1e-320,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "\0", "\ud800", "\x1b[31m", "nan", "a" * 3000, "<script>", "../x", "line\nline", "-inf"),
    *(float("nan"), float("inf"), [], {}, [1], [[]], {"x": 1}, [None], ["x"] * 3, [0.5] * 40),
)
NAMES = (
    "",
    "x",
    "\ud7ff",
    "a\nb",
    "\x1b[31m",
    "../../etc/passwd",
    "/etc/passwd",
    "weights.bin",
    "link.bin",
    "nan",
    "n" * 2000,
)
INTEGERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, -(2**31))


def damaged(data: bytes, rng: Random) -> bytes:
    """Cut off, flipped, spliced, repeated, or with something nasty in between; one to three times."""
    for _ in range(rng.randint(1, 3)):
        start, end = sorted(rng.randint(0, len(data)) for _ in range(2))
        kind = rng.randrange(8)
        if kind == 0:
            data = data[:start]
        elif kind == 1 and data:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 2:
            data = data[:start] + rng.choice(TOKENS) + data[start:]
        elif kind == 3:
            data = data[:start] + rng.choice(TOKENS) + data[end:]
        elif kind == 4:
            data = data[:start] + data[end:]
        elif kind == 5:
            data = data[:end] + data[start:end] * rng.choice((1, 2, 30)) + data[end:]
        elif kind == 6:
            lines = data.split(b"\n")
            rng.shuffle(lines)
            data = b"\n".join(lines)
        else:
            number = rng.choice(INTEGERS).to_bytes(4, "little", signed=True)
            data = data[:start] + number + data[start + 4 :]
    return data[: 1 << 18]


def damaged_json(data: bytes, rng: Random) -> bytes:
    """Mostly JSON in which values have other types, are missing, repeated or nested too deep."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return damaged(data, rng)
    if rng.random() < 0.15:
        return damaged(data, rng)
    try:
        for _ in range(rng.randint(1, 3)):
            tree = _changed(tree, rng)
        text = json.dumps(tree, ensure_ascii=rng.random() < 0.8)
    except RecursionError:  # too deep to be written is too deep to be changed
        return damaged(data, rng)
    if rng.random() < 0.05:
        text = text.replace('"x"', "[" * 985 + "]" * 985, 1)
    return text.encode(errors="surrogatepass")


def _changed(tree: Any, rng: Random) -> Any:
    """A tree with one place changed, wherever it is."""
    where: list[tuple[Any, Any]] = []

    def walk(node: Any, depth: int = 0) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in list(pairs)[:200]:
            where.append((node, key))
            if isinstance(value, (dict, list)) and depth < 40:
                walk(value, depth + 1)

    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.03:
        return rng.choice(VALUES)
    walk(tree)
    node, key = rng.choice(where)
    kind = rng.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    elif kind == 2 and isinstance(node, dict):
        node[str(rng.choice(VALUES))[:50]] = copy.deepcopy(node[key])
    elif kind == 3:
        other, place = rng.choice(where)
        node[key] = copy.deepcopy(other[place]) if place in range(len(other)) or isinstance(other, dict) else None
    else:
        node[key] = copy.deepcopy(rng.choice(VALUES))
    return tree


def damaged_model(data: bytes, rng: Random) -> bytes:
    """Mostly a well-formed protobuf message whose fields contradict each other."""
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return damaged(data, rng)
    if rng.random() < 0.15:
        return damaged(data, rng)
    for _ in range(rng.randint(1, 3)):
        _change_message(model, rng)
    return model.SerializeToString()


def _change_message(message: Any, rng: Random) -> None:
    """Walk down to some field and clear, repeat, move or set it."""
    while True:
        fields = message.ListFields()
        if not fields:
            return
        field, value = rng.choice(fields)
        if hasattr(value, "append"):
            kind = rng.randrange(4)
            if not len(value):
                return
            at = rng.randrange(len(value))
            if kind == 0:
                del value[at]
            elif kind == 1:
                value.append(value[at]) if not hasattr(value, "add") else value.add().CopyFrom(value[at])
            elif hasattr(value, "add"):
                message = value[at]
                continue
            else:
                value[at] = _scalar(field, value[at], rng)
            return
        if field.message_type is not None:
            if rng.random() < 0.15:
                message.ClearField(field.name)
                return
            message = value
            continue
        if rng.random() < 0.2:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, _scalar(field, value, rng))
        return


def _scalar(field: Any, value: Any, rng: Random) -> Any:
    """Another value for a field of a message, of the type that the field has."""
    if field.enum_type is not None:
        return rng.choice([number.number for number in field.enum_type.values])
    if isinstance(value, str) or field.type == field.TYPE_STRING:  # bytes where it is no UTF-8
        return rng.choice(NAMES)
    if isinstance(value, bytes):
        return damaged(value, rng)
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))
    return rng.choice(INTEGERS)


def damaged_npy(data: bytes, rng: Random) -> bytes:
    """Mostly an array whose header claims something else."""
    if rng.random() < 0.3:
        return damaged(data, rng)
    descr = rng.choice(("<f4", "<f8", "|u1", "<i8", "|O", "<U5", "<c8", "<f2", ">f4", "|b1", "<M8[s]", "|V8", "<f16"))
    sizes = (0, 1, 2, 3, 4, 8, -1, 2**20, 2**31, 2**40, 2**62, 10**30)
    shape = tuple(rng.choice(sizes) for _ in range(rng.randint(0, 5)))
    header = repr({"descr": descr, "fortran_order": rng.random() < 0.3, "shape": shape})
    body = data[128:] if rng.random() < 0.5 else bytes(rng.choice((0, 1, 8, 192, 768)))
    text = damaged(header.encode(), rng)[:3000] if rng.random() < 0.2 else header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def damaged_npz(data: bytes, rng: Random) -> bytes:
    """Mostly a whole archive of damaged arrays; at times one that lies about their sizes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except Exception:
        return damaged(data, rng)
    if rng.random() < 0.15 or not members:
        return damaged(data, rng)
    name = rng.choice(list(members))
    kind = rng.randrange(6)
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[rng.choice(("labels.npy", "label.npy", "x", "../x.npy", "n" * 300))] = members[name]
    elif kind == 2 and name.startswith("header"):
        text = damaged_json(np.load(io.BytesIO(members[name])).tobytes(), rng)
        members[name] = npy(np.frombuffer(text, np.uint8))
    else:
        members[name] = damaged_npy(members[name], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    made = buffer.getvalue()
    if rng.random() < 0.2:  # the central directory says 10 GiB, or that it is encrypted
        at = made.rfind(b"PK\x01\x02") + rng.choice((8, 10, 20, 24))
        made = made[:at] + rng.choice(INTEGERS).to_bytes(4, "little", signed=True) + made[at + 4 :]
    return made


def npy(array: np.ndarray) -> bytes:
    """Array -> content of its .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()

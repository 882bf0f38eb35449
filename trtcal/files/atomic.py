"""Write files whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trtcal.errors import OutputError

STALE_SECONDS = 3600.0
"""Age of a temporary file that nobody writes any more: its run was killed."""

_TEMPORARY = re.compile(r"\.trtcal-[0-9a-f]{16}\.tmp")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Bytes -> file, as :func:`write_chunks` does."""
    write_chunks(path, [data])


def write_chunks(path: str | os.PathLike[str], chunks: Iterable[bytes]) -> None:
    """Bytes, piece by piece -> file, replaced in one step: a reader sees the old content or the new, never a part.

    A link is followed, and an existing file keeps its permission bits. Whatever interrupts the
    writing (a full disk, Ctrl-C) leaves the old file as it was and no temporary file behind. A kill may leave one,
    ``.trtcal-*.tmp``, which the next write into the folder removes once it is an hour old.
    Raises OutputError, naming ``path``, where it cannot be written or is not a regular file.
    """
    with staged(path, chunks) as put:
        put()


@dataclass(frozen=True)
class Staged:
    """Content that is on the disk in ``file``, under a temporary name; calling it puts it into its place."""

    path: str | os.PathLike[str]
    target: Path
    file: Path

    def __call__(self) -> None:
        """Put it there."""
        with _naming(self.path, self.target):
            os.replace(self.file, self.target)


@contextmanager
def staged(path: str | os.PathLike[str], chunks: Iterable[bytes]) -> Iterator[Staged]:
    """As :func:`write_chunks`, in two steps: all is on the disk on entry, and in its place once it is told to be.

    For files that belong together: what can go wrong has gone wrong before the first of them is replaced.
    """
    target = Path(os.path.realpath(path))
    with _naming(path, target):
        temporary = _written_beside(target, chunks)
    try:
        yield Staged(path, target, temporary)
    finally:
        _remove(temporary)


def remove(path: str | os.PathLike[str]) -> None:
    """File -> nothing, whether it was there or not; of a link, what it leads to. OutputError where it stays."""
    target = Path(os.path.realpath(path))
    with _naming(path, target):
        target.unlink(missing_ok=True)


@contextmanager
def _naming(path: str | os.PathLike[str], target: Path) -> Iterator[None]:
    """A block whose OSErrors become OutputErrors that name the file to write, and not a temporary one."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if not target.parent.exists():
            reason = f"the folder {target.parent} does not exist"
        raise OutputError(f"{os.fspath(path)}: cannot be written: {reason}") from error


def _written_beside(target: Path, chunks: Iterable[bytes]) -> Path:
    """Content of ``target`` -> the temporary file that holds it."""
    mode = _mode(target)
    # Beside the target, because os.replace is atomic only within one file system. A short
    # name of its own, because the target's may already be as long as a name may be.
    temporary = target.with_name(f".trtcal-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            if mode is not None:
                os.chmod(temporary, mode)
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        # By the disk's own clock, which need not be this machine's.
        _remove_stale(target.parent, temporary.stat().st_mtime - STALE_SECONDS)
    except BaseException:
        _remove(temporary)
        raise
    return temporary


def _mode(target: Path) -> int | None:
    """Permission bits of an existing regular file; None where there is no file yet."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        # os.replace would put a file in the place of a device such as /dev/null.
        raise OutputError(f"{target}: cannot be written: it exists and is not a regular file")
    return stat.S_IMODE(status.st_mode)


def _remove_stale(folder: Path, before: float) -> None:
    """Remove the temporary files in the folder that were last written before then."""
    with suppress(OSError):  # a folder may be writable and not readable, and another run may be quicker
        for name in os.listdir(folder):
            if _TEMPORARY.fullmatch(name) and os.lstat(folder / name).st_mtime < before:
                _remove(folder / name)


def _remove(temporary: Path) -> None:
    """Remove it if it is there; that it stays is no reason to hide the error that led here."""
    with suppress(OSError):
        temporary.unlink(missing_ok=True)

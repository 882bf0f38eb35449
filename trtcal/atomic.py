"""Write a file whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from trtcal.errors import OutputError


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Bytes -> file, as :func:`write_chunks` does."""
    write_chunks(path, [data])


def write_chunks(path: str | os.PathLike[str], chunks: Iterable[bytes]) -> None:
    """Bytes, piece by piece -> file, replaced in one step: a reader sees the old content or the new, never a part.

    A link is followed, and an existing file keeps its permission bits. Whatever interrupts the
    writing (a full disk, Ctrl-C) leaves the old file as it was and no temporary file behind.
    Raises OutputError, naming ``path``, where it cannot be written or is not a regular file.
    """
    target = Path(os.path.realpath(path))
    try:
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
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        if not target.parent.exists():
            reason = f"the folder {target.parent} does not exist"
        raise OutputError(f"{path}: cannot be written: {reason}") from error


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

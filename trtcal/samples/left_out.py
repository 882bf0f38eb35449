"""What lies in a folder of samples and is not used: counted, and named by its kind."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

logger = logging.getLogger(__name__)

_SHOWN = 8  # kinds of files
_HEIF = "pip install pillow-heif"
_CONVERT = "convert them to PNG or JPEG"

# Pictures that decode() reads nowhere, or only where something else is installed.
_UNREAD = {
    **dict.fromkeys((".heic", ".heif", ".hif"), _HEIF),
    ".avif": "pip install 'pillow>=11.3'",
    **dict.fromkeys((".jxl", ".svg", ".exr", ".hdr", ".eps", ".wmf", ".pdf"), _CONVERT),
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"), _CONVERT),
}

# What commonly lies beside pictures and arrays: labels, annotations, notes.
_COMPANIONS = frozenset((".csv", ".db", ".html", ".ini", ".json", ".log", ".md", ".names", ".py", ".txt", ".xml"))
_COMPANIONS |= {".yaml", ".yml"}


def tell_left_out(folder: str, files: Sequence[str], used: Collection[str]) -> None:
    """Folder, the files in it and those of use -> a warning that counts the others by kind.

    Not for notes and labels alone, as long as they are no more than what is used; that is information.
    """
    used = set(used)
    others = [name for name in files if name not in used]
    if not others:
        return
    noted = all(_kind(name) in _COMPANIONS for name in others) and len(others) <= len(used)
    verb = "file was" if len(files) == 1 else "files was" if len(others) == 1 else "files were"
    text = f"{folder}: {len(others)} of {len(files)} {verb} left out: {by_kind(others)}"
    logger.log(logging.INFO if noted else logging.WARNING, "%s", text)


def by_kind(files: Sequence[str]) -> str:
    """Names of files -> how many there are of each kind, and what to do about pictures that cannot be read."""
    kinds = Counter(map(_kind, files)).most_common()
    said = [
        f"{count} {kind}" + (f" cannot be read, {_UNREAD[kind]}" if kind in _UNREAD else "")
        for kind, count in kinds[:_SHOWN]
    ]
    more = len(kinds) - _SHOWN
    return "; ".join(said + ([f"and files of {more} other kind{'s' if more > 1 else ''}"] if more > 0 else []))


def _kind(name: str) -> str:
    return PurePosixPath(name).suffix.lower() or "without extension"

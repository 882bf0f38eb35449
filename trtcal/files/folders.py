"""What lies in a folder of samples, and errors that name the file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from trtcal.errors import DataError, TrtcalError


def files_below(folder: str | os.PathLike[str]) -> list[str]:
    """Folder -> relative names, with slashes, of the regular files in and below it, sorted by their bytes.

    Hidden files and folders are left out. A link to a file inside is a file; a link to a folder
    inside is not walked, since its files are listed where they lie. Raises DataError for a link
    that leads out of the folder, and for folders that cannot be read.
    """
    top = Path(folder)
    if not top.is_dir():
        raise DataError(f"{folder}: no such folder")
    real = Path(os.path.realpath(top))
    found: list[str] = []
    try:
        for current, folders, files in os.walk(top, onerror=_raise):
            here = Path(current)
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in (*folders, *files):
                path = here / name
                if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(real):
                    raise DataError(
                        f"{path}: links to {os.path.realpath(path)}, outside the folder of samples; "
                        "put the file itself there, or remove the link"
                    )
            found += [
                (here / name).relative_to(top).as_posix()
                for name in files
                if not name.startswith(".") and (here / name).is_file()
            ]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from error
    return sorted(found, key=os.fsencode)


class LocalFolder:
    """Folder on this machine -> its files, as :class:`trtcal.files.remote.Remote` gives those behind a URL."""

    def __init__(self, path: str | os.PathLike[str], only: Sequence[str] | None = None) -> None:
        self.path = Path(path)
        self._only = only

    def __str__(self) -> str:
        return str(self.path)

    def files(self) -> list[str]:
        """Nothing -> :func:`files_below` it, or ``only`` those that were given."""
        return files_below(self.path) if self._only is None else list(self._only)

    def read(self, name: str) -> bytes:
        """Relative name of a file -> its content."""
        with reading(self.path / name):
            return (self.path / name).read_bytes()

    def where(self, name: str) -> str:
        """Relative name of a file -> its path for people."""
        return str(self.path / name)

    def folders(self) -> list[str]:
        """Nothing -> the folders in it, not below, empty ones too; hidden ones are left out."""
        return sorted(path.name for path in self.path.iterdir() if path.is_dir() and not path.name.startswith("."))


def seen(files: Sequence[str]) -> str:
    """Names of files -> what kinds there are, for an error that found none of the right kind."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "without extension" for name in files)
    return f"saw {', '.join(f'{n} {kind}' for kind, n in kinds.most_common(8)) or 'no files'}"


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Path -> a block whose errors, of whatever kind, become DataErrors that name the path."""
    try:
        yield
    except TrtcalError:
        raise
    except Exception as error:  # zipfile and numpy raise a dozen kinds on damaged files
        raise DataError(f"{os.fspath(path)}: cannot be read ({error}); replace or remove it") from error


def _raise(error: OSError) -> None:
    raise error

"""Files behind URLs (``s3://``, ``gs://``, ``hf://``, ``https://`` and others), by fsspec; only this file knows it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from trtcal.errors import BackendError, DataError, TrtcalError

_URL = re.compile(r"[a-z][a-z0-9+.-]+(://|::)", re.IGNORECASE)  # more than one letter: C: is a drive
# User and password, which may hold "@" or "/" as they came, and the query, in which signatures are, to its end.
_SECRETS = re.compile(r"(?<=://)(?:[^/]*@|[^/@:]+:(?!:|\d*(?:/|$))[^@]*@)|\?.*?(?=::|$)", re.DOTALL)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Is it a URL that fsspec opens, rather than a path on this machine?"""
    return isinstance(path, str) and _URL.match(path) is not None


def shown(url: str) -> str:
    """URL -> the same for people and files, without passwords and signatures."""
    return _SECRETS.sub("", url)


class Remote:
    """URL of a file or a folder -> what lies there.

    Credentials are found as fsspec's packages find them, in the environment and their own files. Raises BackendError
    where fsspec or the package for this kind of URL is missing, DataError, naming the URL, where nothing can be read.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or url
        self._fs, self._root = self._open()
        with self._errors(self.url):
            if not self._fs.exists(self._root):
                self._fs.info(self._root)  # some say here why not
                raise DataError(f"{self}: no such file or folder")
            # A web server says the same of files and folders: what has an extension is a file there.
            web = "http" in _protocols(self._fs)
            self.is_folder = (
                not PurePosixPath(urlsplit(self._root).path).suffix if web else bool(self._fs.isdir(self._root))
            )

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return PurePosixPath(shown(self._root)).name

    def files(self) -> list[str]:
        """Names, with slashes and relative to this folder, of the files in and below it, sorted by their bytes.

        Hidden ones are left out.
        """
        with self._errors(self.url):
            there = self._fs.find(self._root)
        root = self._root.rstrip("/") + "/"
        names = [path.removeprefix(root) for path in there if path.startswith(root)]
        shown_ = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
        return sorted(shown_, key=os.fsencode)

    def read(self, name: str = "") -> bytes:
        """Name of a file in this folder, none for a file itself -> its content."""
        with self._errors(self.where(name)):
            content: bytes = self._fs.cat_file(self._path(name))
            return content

    def copy(self, names: list[str]) -> Path:
        """Names of files in this folder, ``[""]`` for a file itself -> a temporary folder with copies of them.

        It is there for as long as this object is.
        """
        folder = self._copies
        for name in names:
            target = folder / (name or self.name)
            if not target.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"{self.where(name)}: leads out of the folder; rename it")
            with self._errors(self.where(name)):
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(self._path(name), str(target))
        return folder

    def where(self, name: str) -> str:
        """Name of a file in this folder -> its URL for people."""
        return f"{self}/{name}" if name else str(self)

    def __getstate__(self) -> dict[str, Any]:  # on the way to another process, which makes copies of its own
        return {key: value for key, value in self.__dict__.items() if key != "_copies"}

    @cached_property
    def _copies(self) -> Path:
        folder = tempfile.mkdtemp(prefix="trtcal-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def _open(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise BackendError(f"{self}: URLs need fsspec: pip install 'trtcal[remote]'") from error
        with self._errors(self.url):
            try:
                fs, root = url_to_fs(self.url)
            except ImportError as error:  # says itself which package is missing
                raise BackendError(f"{self}: {error}") from error
            except ValueError as error:
                raise DataError(f"{self}: {shown(str(error))}") from error
        return fs, str(root)

    @contextmanager
    def _errors(self, where: str) -> Iterator[None]:
        try:
            yield
        except TrtcalError:
            raise
        except FileNotFoundError as error:
            why = error.__cause__  # of fsspec, for a web server that refuses or does not answer as well
            if why is None or isinstance(why, FileNotFoundError) or getattr(why, "status", None) == 404:
                raise DataError(f"{shown(where)}: no such file or folder") from error
            raise _unreadable(where, why) from error
        except Exception as error:  # each of fsspec's packages has its own
            raise _unreadable(where, error) from error


def _unreadable(where: str, error: BaseException) -> DataError:
    what = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return DataError(f"{shown(where)}: cannot be read ({shown(what)}); check the URL and credentials")


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)

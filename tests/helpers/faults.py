"""A disk that fails on demand, below one folder and for this process: for tests of what a fault leaves behind.

Every call that Python makes on a file below the folder is a point: opening, reading, writing, syncing, renaming.
A run with `Disk` counts them; another one strikes at the n-th.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import logging
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\.trtcal-[0-9a-f]{16}\.tmp")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | getattr(os, "O_TMPFILE", 0) & ~getattr(os, "O_DIRECTORY", 0)
_KEPT = ("open", "mkdir", "rename", "replace")


class Disk:
    """While it is entered, counts the writes (or reads) below ``root`` and strikes at number ``at``.

    ``error`` is raised there and, if ``lasting``, at every later one, as on a full disk; ``strike`` is called instead.
    """

    def __init__(
        self,
        root: Path,
        kind: str = "write",
        *,
        at: int | None = None,
        error: int = errno.ENOSPC,
        lasting: bool = True,
        strike: Callable[[], Any] | None = None,
    ) -> None:
        self.root, self.kind, self.at, self.error = os.path.realpath(root), kind, at, error
        self.lasting, self.strike = lasting, strike
        self.points: list[str] = []
        """What each point was: the call and the name of the file."""

    @property
    def struck(self) -> str | None:
        """The point that went wrong, if the run came so far."""
        return self.points[self.at] if self.at is not None and self.at < len(self.points) else None

    def below(self, path: object) -> bool:
        if not isinstance(path, (str, os.PathLike)):
            return False
        return os.path.realpath(path).startswith(self.root + os.sep)

    def point(self, kind: str, call: str, path: object, before: Callable[[], Any] = lambda: None) -> None:
        if kind != self.kind or self.root == "":
            return
        name = _TEMPORARY.sub("*.tmp", os.path.relpath(os.path.realpath(path), self.root))  # type: ignore[call-overload]
        self.points.append(f"{call} {name}")
        number = len(self.points) - 1
        if self.at is None or number < self.at or (number > self.at and not self.lasting):
            return
        if self.strike is not None:
            self.strike()
            return
        before()
        filename = () if call in ("read", "write", "fsync") else (os.fspath(path),)  # type: ignore[call-overload]
        raise OSError(self.error, os.strerror(self.error), *filename)

    def __enter__(self) -> Disk:
        self._real = {name: getattr(os, name) for name in ("open", "replace", "rename", "mkdir", "fsync", "truncate")}
        self._open = builtins.open
        self._descriptors: dict[int, str] = {}
        builtins.open = io.open = self._opened  # type: ignore[assignment]
        os.open = self._os_open  # type: ignore[assignment]
        os.fsync = self._fsync  # type: ignore[assignment]
        for name in ("replace", "rename", "mkdir", "truncate"):
            setattr(os, name, self._counted(name))
        # On Python 3.10 pathlib keeps its own references to these functions.
        self._pathlib = getattr(pathlib, "_NormalAccessor", None)
        self._kept = {name: getattr(self._pathlib, name) for name in _KEPT} if self._pathlib else {}
        for name in self._kept:
            setattr(self._pathlib, name, staticmethod(self._opened if name == "open" else getattr(os, name)))
        return self

    def __exit__(self, *_: object) -> None:
        builtins.open = io.open = self._open
        for name, real in self._real.items():
            setattr(os, name, real)
        for name, real in self._kept.items():
            setattr(self._pathlib, name, staticmethod(real))

    def _counted(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            place = arguments[0] if name in ("replace", "rename") else path
            if self.below(place):
                self.point("write", name, place)
            return real(path, *arguments, **options)

        return call

    def _os_open(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if self.below(path) or (flags & _WRITES and os.path.realpath(path) == self.root):
            self.point("write" if flags & _WRITES else "read", "open", path)
        return self._real["open"](path, flags, *arguments, **options)  # type: ignore[no-any-return]

    def _fsync(self, descriptor: Any) -> None:
        if isinstance(descriptor, int) and descriptor in self._descriptors:
            self.point("write", "fsync", self._descriptors[descriptor])
        self._real["fsync"](descriptor)

    def _opened(self, file: Any, mode: str = "r", buffering: int = -1, *text: Any, **options: Any) -> Any:
        if not self.below(file) or options.get("opener"):
            return self._open(file, mode, buffering, *text, **options)
        writes = any(letter in mode for letter in "wax+")
        self.point("write" if writes else "read", "open", file)
        raw = _File(self, os.fspath(file), mode.replace("b", "").replace("t", ""))
        self._descriptors[raw.fileno()] = os.fspath(file)
        buffered: Any = (
            io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw) if writes else io.BufferedReader(raw)
        )
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, **options)


class _File(io.FileIO):
    def __init__(self, disk: Disk, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self.disk, self.path = disk, path

    def write(self, data: Any) -> int:
        half = bytes(data)[: len(data) // 2]
        self.disk.point("write", "write", self.path, lambda: super(_File, self).write(half))
        return super().write(data)

    def readinto(self, buffer: Any) -> int:
        self.disk.point("read", "read", self.path)
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self.disk.point("read", "read", self.path)
        return super().readall()

    def read(self, size: int | None = -1) -> bytes:
        self.disk.point("read", "read", self.path)
        return super().read(size)  # type: ignore[arg-type]


def command(folder: Path, *arguments: str, build: bool = False) -> tuple[int, str]:
    """Run ``trtcal ARGUMENTS`` (or the build's own command) in a folder, in this process -> exit code, standard error.

    What no handler takes is raised: to a user it would be a traceback.
    """
    err = io.StringIO()
    root = logging.getLogger()
    handlers, level, here, argv = root.handlers[:], root.level, os.getcwd(), sys.argv
    root.handlers[:] = []
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            try:
                if build:
                    from calibrators.command import main as build_main

                    code = build_main(list(arguments), prog="build")
                else:
                    from trtcal.cli import main

                    sys.argv = ["trtcal", *arguments]
                    main()
                    code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
    finally:
        os.chdir(here)
        sys.argv = argv
        root.handlers[:] = handlers
        root.setLevel(level)
    return code, err.getvalue()


def content(folder: Path) -> dict[str, bytes]:
    """Folder -> every file in it by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def copy_of(template: Path) -> Iterator[Path]:
    """Folder -> a copy beside it for the block."""
    copy = template.with_name(f"{template.name}-copy")
    shutil.copytree(template, copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from trtcal.errors import OutputError
from trtcal.files.atomic import remove, staged, write_bytes, write_chunks


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_writes_exactly_the_bytes_given(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.cache", b"\x00\r\n\xff")
    assert (tmp_path / "a.cache").read_bytes() == b"\x00\r\n\xff"
    assert names(tmp_path) == {"a.cache"}


def test_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    path.write_bytes(b"a much longer old content")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_accepts_a_path_as_text_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bytes("a.cache", b"x")
    assert (tmp_path / "a.cache").read_bytes() == b"x"


def test_accepts_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    write_bytes(tmp_path / ("n" * 255), b"x")
    assert names(tmp_path) == {"n" * 255}


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")
def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a.cache", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.cache").stat().st_mode) == 0o640


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")
def test_an_existing_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    path.write_bytes(b"old")
    path.chmod(0o604)
    write_bytes(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege on Windows")
@pytest.mark.parametrize("exists", [True, False], ids=["existing target", "dangling"])
def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "b.cache", tmp_path / "a.cache"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("interruption", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    path = tmp_path / "a.cache"
    path.write_bytes(b"old")

    def fail(_descriptor: int) -> None:
        raise interruption

    monkeypatch.setattr(os, "fsync", fail)
    expected = OutputError if isinstance(interruption, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"a.cache"}


def test_a_full_disk_is_named_with_its_path_and_its_cause_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=r"a\.cache: cannot be written: No space left on device") as caught:
        write_bytes(tmp_path / "a.cache", b"new")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_missing_folder_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .*missing does not exist"):
        write_bytes(tmp_path / "missing" / "a.cache", b"x")
    assert names(tmp_path) == set()


def test_a_file_in_the_place_of_the_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputError, match=r"a\.cache: cannot be written"):
        write_bytes(tmp_path / "file" / "a.cache", b"x")


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a regular file"):
        write_bytes(tmp_path, b"x")
    assert tmp_path.is_dir()


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX's")
def test_a_pipe_or_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="not a regular file"):
        write_bytes(tmp_path / "pipe", b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_pieces_are_written_one_after_the_other(tmp_path: Path) -> None:
    write_chunks(tmp_path / "a", (bytes([i]) for i in range(3)))
    assert (tmp_path / "a").read_bytes() == b"\x00\x01\x02"


def test_pieces_that_fail_leave_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("no more")

    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="no more"):
        write_chunks(tmp_path / "a", failing())
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == {"a"}


def test_files_that_belong_together_are_both_there_before_one_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"b: cannot be written: the folder .*nowhere does not exist"):  # noqa: SIM117
        with staged(tmp_path / "a", [b"new"]) as put, staged(tmp_path / "nowhere" / "b", [b"new"]):
            put()
    assert (tmp_path / "a").read_bytes() == b"old"
    with staged(tmp_path / "a", [b"new"]) as put_a, staged(tmp_path / "b", [b"new"]) as put_b:
        assert (tmp_path / "a").read_bytes() == b"old"
        put_a()
        put_b()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"new"}


def test_what_is_not_put_in_its_place_leaves_nothing(tmp_path: Path) -> None:
    with staged(tmp_path / "a", [b"x"]):
        pass
    assert names(tmp_path) == set()


def test_a_link_is_not_what_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "link").symlink_to("a")
    remove(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "a").exists()
    remove(tmp_path / "a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder: cannot be written"):
        remove(tmp_path / "folder")

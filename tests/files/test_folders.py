from __future__ import annotations

import os
from pathlib import Path

import pytest

from trtcal.errors import DataError
from trtcal.files.folders import files_below, reading, seen


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_files_come_sorted_by_their_bytes_whatever_the_disk_says(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b/1", "a", "B", "a.x", "b.x", "ü", "a-b/2", "10", "9")))
    assert files_below(tmp_path) == ["10", "9", "B", "a", "a-b/2", "a.x", "b.x", "b/1", "ü"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "a", tmp_path / ".b", tmp_path / ".c/d", tmp_path / "e/._f")
    assert files_below(tmp_path) == ["a"]


def test_what_is_no_regular_file_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert files_below(tmp_path) == ["a"]


def test_links_inside_are_followed_and_folders_not_walked_twice(tmp_path: Path) -> None:
    touch(tmp_path / "a/b")
    (tmp_path / "link").symlink_to(tmp_path / "a/b")
    (tmp_path / "again").symlink_to(tmp_path / "a")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert files_below(tmp_path) == ["a/b", "link"]


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path / "real/a/b")
    (tmp_path / "real/c").symlink_to("a/b")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert files_below(tmp_path / "link") == ["a/b", "c"]


@pytest.mark.parametrize("target", ["secret", "elsewhere"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_that_leads_out_is_refused(target: str, relative: bool, tmp_path: Path) -> None:
    touch(tmp_path / "secret", tmp_path / "elsewhere/a", tmp_path / "data/sub/a")
    goal = Path("../..") / target if relative else tmp_path / target
    (tmp_path / "data/sub/link").symlink_to(goal)
    with pytest.raises(DataError, match=rf"sub/link: links to .*{target}, outside the folder"):
        files_below(tmp_path / "data")


def test_a_neighbour_with_a_longer_name_is_outside(tmp_path: Path) -> None:
    touch(tmp_path / "data2/a", tmp_path / "data/b")
    (tmp_path / "data/link").symlink_to(tmp_path / "data2/a")
    with pytest.raises(DataError, match="outside"):
        files_below(tmp_path / "data")


@pytest.mark.parametrize("name", ["gone", "file"])
def test_what_is_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    touch(tmp_path / "file")
    with pytest.raises(DataError, match=f"{name}: no such folder"):
        files_below(tmp_path / name)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "locked/a")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="locked: cannot be listed: Permission denied"):
        files_below(tmp_path)


def test_seen_counts_kinds() -> None:
    assert seen([]) == "saw no files"
    assert seen(["a.txt", "b.TXT", "c/d", "e.h5"]) == "saw 2 .txt, 1 without extension, 1 .h5"


def test_reading_names_the_path_and_keeps_the_cause() -> None:
    with pytest.raises(DataError, match=r"x\.npy: cannot be read \(bad magic\)") as caught, reading("x.npy"):
        raise ValueError("bad magic")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(DataError, match=r"^as it was$"), reading("x.npy"):
        raise DataError("as it was")
    with pytest.raises(KeyboardInterrupt), reading("x.npy"):
        raise KeyboardInterrupt

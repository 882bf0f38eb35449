from __future__ import annotations

from pathlib import Path

import pytest

from trtcal.errors import DataError
from trtcal.samples.labels import Label, class_numbers, read_labels

# What a file says of pictures, line by line, is tested in test_images.py.


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "l.csv").write_text(text, encoding="utf-8")
    return tmp_path / "l.csv"


def test_labels_are_texts_as_they_stand_with_their_lines(tmp_path: Path) -> None:
    path = written(tmp_path, 'sample,label\nx.npy[0],"Package, small"\n\n./b,2024\n')
    assert read_labels(path, ["x.npy[0]", "b", "c"]) == {"x.npy[0]": Label("Package, small", 2), "b": Label("2024", 4)}


def test_a_first_line_that_names_a_sample_is_no_header(tmp_path: Path) -> None:
    assert read_labels(written(tmp_path, "sample,1\n"), ["sample"]) == {"sample": Label("1", 1)}


def test_an_unknown_sample_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"l\.csv:2: there is no sample 'c'; names are relative"):
        read_labels(written(tmp_path, "a,1\nc,1\n"), ["a"])


def test_rows_of_one_array_go_by_their_numbers(tmp_path: Path) -> None:
    names = [f"d/x.npz[{row:02}]" for row in range(11)]
    path = written(tmp_path, "row,label\n03,a\n10,b\n7,c\nd/x.npz[00],d\n")
    assert list(read_labels(path, names)) == [names[3], names[10], names[7], names[0]]
    assert list(read_labels(written(tmp_path, "0,a\n07,b\n"), ["00", "07"])) == ["00", "07"]
    with pytest.raises(DataError, match=r"l\.csv:2: 'd/x\.npz\[03\]' is there twice, first on line 1"):
        read_labels(written(tmp_path, "3,a\n03,b\n"), names)
    with pytest.raises(
        DataError, match=r"no sample '11'; the samples are d/x\.npz\[00\] to d/x\.npz\[10\], or 0 to 10"
    ):
        read_labels(written(tmp_path, "11,a\n"), names)


def test_of_several_files_a_number_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample '0'; names are relative to the folder"):
        read_labels(written(tmp_path, "0,a\n"), ["x.npy[0]", "y.npy[0]"])


def test_numbers_are_classes_and_names_are_numbered_in_sorted_order() -> None:
    assert class_numbers("l.csv", {"a": Label("7", 1), "b": Label("0", 2)}) == {"a": 7, "b": 0}
    assert class_numbers("l.csv", {"a": Label("dog", 1), "b": Label("cat", 2)}) == {"a": 1, "b": 0}


@pytest.mark.parametrize("text", ["-1", "1.5", "٣", ""])
def test_what_is_no_number_from_0_beside_numbers_is_an_error(text: str) -> None:
    with pytest.raises(DataError, match=r"l\.csv:[12]: label .* among names"):
        class_numbers("l.csv", {"a": Label("7", 1), "b": Label(text, 2)})

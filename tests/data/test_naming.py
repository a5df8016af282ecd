"""Names of class folders, as editors and users write them."""

from pathlib import Path

import pytest

from tvmatch.data.naming import read_class_names
from tvmatch.data.source import DataError


def names(tmp_path: Path, content: bytes, *folders: str) -> tuple[str, ...]:
    (tmp_path / "class_names.txt").write_bytes(content)
    return read_class_names(tmp_path / "class_names.txt", folders)


def test_what_windows_writes_before_the_first_line_is_no_part_of_a_folder(tmp_path):
    assert names(tmp_path, b"\xef\xbb\xbfa cat\r\nb dog\r\n", "a", "b") == ("cat", "dog")


def test_bytes_that_are_no_utf_8_name_the_file(tmp_path):
    with pytest.raises(DataError, match=r"class_names\.txt: cannot be read as text .*; save it as UTF-8\."):
        names(tmp_path, b"a K\xf6nig\n", "a")


def test_a_folder_may_have_blanks_in_its_name(tmp_path):
    lines = b"red apple fruit, apple\nred colour\nred hot  chilli pepper\nother thing\n"
    folders = "red", "red apple", "red hot"
    assert names(tmp_path, lines, *folders) == ("colour", "fruit", "chilli pepper")


def test_of_folders_that_fit_a_line_one_without_a_name_is_none(tmp_path):
    assert names(tmp_path, b"red apple\nred apple fruit\n", "red", "red apple") == ("apple", "fruit")
    with pytest.raises(DataError, match="no line for class folder 'red apple'"):
        names(tmp_path, b"red apple\n", "red", "red apple")

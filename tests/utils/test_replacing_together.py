"""Several files that are replaced together, or not at all."""

import os

import pytest

from castling.utils.files import replacing_together


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(folder, text):
    (folder / "a").write_text(text)
    (folder / "b").write_text(text)


def test_files_take_the_place_of_older_ones(tmp_path):
    write(tmp_path, "older")
    (tmp_path / "c").write_text("other")
    with replacing_together(tmp_path) as folder:
        write(folder, "newer")
        assert (tmp_path / "a").read_text() == "older"
    assert names(tmp_path) == ["a", "b", "c"]
    assert [(tmp_path / name).read_text() for name in "abc"] == ["newer", "newer", "other"]


def test_one_file_and_folders_are_replaced_too(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "old").write_text("old")
    with replacing_together(tmp_path) as folder:
        (folder / "package").mkdir()
        (folder / "package" / "new").write_text("new")
    assert names(tmp_path / "package") == ["new"]
    with replacing_together(tmp_path) as folder:
        (folder / "a").write_text("a")
    assert names(tmp_path) == ["a", "package"]


def test_an_interruption_leaves_older_files(tmp_path):
    write(tmp_path, "older")

    def interrupted():
        with replacing_together(tmp_path) as folder:
            write(folder, "newer")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "b").read_text() == "older"


def test_a_file_that_cannot_be_moved_undoes_those_before_it(tmp_path):
    write(tmp_path, "older")
    (tmp_path / "c").symlink_to("absent")  # a folder cannot be moved over a link

    def failing():
        with replacing_together(tmp_path) as folder:
            write(folder, "newer")
            (folder / "c").mkdir()

    with pytest.raises(OSError, match=str(tmp_path)):
        failing()
    assert names(tmp_path) == ["a", "b", "c"]
    assert (tmp_path / "a").read_text() == "older"
    assert (tmp_path / "b").read_text() == "older"
    assert (tmp_path / "c").is_symlink()


def test_errors_name_the_folder(tmp_path):
    with (
        pytest.raises(FileNotFoundError) as caught,
        replacing_together(tmp_path) as folder,
        open(folder / "absent" / "file", "w"),
    ):
        pass
    assert caught.value.filename == str(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), replacing_together(tmp_path / "file"):
        pass
    assert os.listdir(tmp_path) == ["file"]

"""Files: whole or not at all, named when they cannot be written, replaced only if told."""

import errno

import pytest

from castling.utils.files import naming, read_csv, refuse_existing, replacing, write_csv


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as full, replacing(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(tmp_path / "a.bin")
    assert full.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as missing, naming(tmp_path / "a"):
        (tmp_path / "b").read_bytes()
    assert missing.value.filename == str(tmp_path / "b")


def test_existing_files_are_refused_unless_told(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refuse_existing([tmp_path / "new"], overwrite=False)
    refuse_existing([tmp_path / "link"], overwrite=True)
    with pytest.raises(FileExistsError, match=r"link exists.*--overwrite"):
        refuse_existing([tmp_path / "new", tmp_path / "link"], overwrite=False)


def test_tables_come_back_and_broken_ones_are_named(tmp_path):
    path = tmp_path / "t.csv"
    write_csv(path, ("a", "b"), [{"a": 1, "b": "x,\ny"}, {"a": 2}])
    assert read_csv(path) == [{"a": "1", "b": "x,\ny"}, {"a": "2", "b": ""}]
    for broken in ("", "a,b\n1\n", "a,b\n1,2,3\n", "a,b\n1,2"):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"t\.csv is empty or damaged"):
            read_csv(path)

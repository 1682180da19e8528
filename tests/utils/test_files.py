"""Files: whole or not at all, named when they cannot be written, replaced only if told."""

import errno
import os

import pytest

from castling.utils.files import (
    is_stream,
    naming,
    parse_json,
    read_csv,
    refuse_existing,
    replacing,
    replacing_together,
    write_csv,
    write_text,
)


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


def test_a_pipe_is_written_to_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "all of it")
        assert os.read(reader, 100) == b"all of it"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    with (
        pytest.raises(FileExistsError, match="device or pipe"),
        replacing_together(tmp_path) as temporary,
    ):
        (temporary / "pipe").write_text("x")
    assert pipe.is_fifo()


def test_json_that_is_nested_too_deeply_is_a_value_error():
    assert parse_json('{"a": [1]}') == {"a": [1]}
    for text in ("[" * 100_000, "{", ""):
        with pytest.raises(ValueError, match=r"nested|Expecting"):
            parse_json(text)


def test_open_files_are_streams(tmp_path):
    assert is_stream("/dev/null")
    with (tmp_path / "plain").open("w") as file:
        assert is_stream(f"/dev/fd/{file.fileno()}")
    assert not is_stream(tmp_path / "plain")
    assert not is_stream(tmp_path)
    assert not is_stream(tmp_path / "absent")

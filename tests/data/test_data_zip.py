"""Zip files as programs of all systems write them, damaged ones and bombs."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from castling.data import DataError, FolderConfig, open_source
from castling.data.zip_store import MAX_FILE_BYTES, ZipStore

Make = Callable[..., Path]


def _png(size: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(stream, "PNG")
    return stream.getvalue()


def _zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_names_are_read_as_programs_write_them(tmp_path: Path) -> None:
    names = {
        "./": b"",
        "./cat/": b"",
        "./cat/1.png": _png(),
        "cat//2.png": _png(),
        "dog\\1.png": _png(),
        "dog/./2.png": _png(),
        "/etc/3.png": _png(),
        "../dog/4.png": _png(),
        "dog/../../5.png": _png(),
        "C:\\dog\\6.png": _png(),
        "__MACOSX/cat/._1.png": b"x",
        "dog/.hidden.png": b"x",
    }
    source = open_source(FolderConfig(path=str(_zip(tmp_path / "set.zip", names))))
    paths = [source.path("train", index) for index in range(source.info.splits["train"])]
    assert paths == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]
    assert source.sample("train", 2).image.shape == (3, 4, 4)
    text = "\n".join(source.info.notes)
    assert "point out of the archive: /etc/3.png, ../dog/4.png, dog/../../5.png" in text
    assert "(4 in all)" in text or "C:" in text
    assert "__MACOSX" in text
    assert ".hidden.png" in text


def test_of_two_entries_of_one_name_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, size in (("a/1.png", 3), ("./a/1.png", 5), ("b/1.png", 3)):
            archive.writestr(name, _png(size))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("b/1.png", _png(6))
    source = open_source(FolderConfig(path=str(path)))
    assert [source.size("train", index) for index in range(2)] == [(5, 5), (6, 6)]
    assert "earlier entries of the same name: a/1.png, b/1.png" in "\n".join(source.info.notes)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("chat-\u00e9t\u00e9".encode(), "chat-\u00e9t\u00e9"),  # UTF-8 that is not marked as such
        ("\u00e9t\u00e9".encode("cp437"), "\u00e9t\u00e9"),  # the code page of the format
    ],
)
def test_names_without_a_mark_of_their_encoding(tmp_path: Path, raw: bytes, shown: str) -> None:
    placeholder = "x" * len(raw)
    names = {f"{placeholder}/1.png": _png(), "b/1.png": _png()}
    path = _zip(tmp_path / "set.zip", names)
    path.write_bytes(path.read_bytes().replace(placeholder.encode(), raw))
    assert open_source(FolderConfig(path=str(path))).info.classes == ["b", shown]


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    path = _zip(tmp_path / "set.zip", {"a/1.png": _png(), "b/1.png": _png()})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("a/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../b/1.png")
    source = open_source(FolderConfig(path=str(path)))
    assert source.info.splits == {"train": 2}
    assert "links in the archive: a/link.png" in "\n".join(source.info.notes)


def test_an_encrypted_archive_is_refused_at_once(tmp_path: Path) -> None:
    path = _zip(tmp_path / "set.zip", {"a/1.png": _png(), "b/1.png": _png()})
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(mark, at + 1)) >= 0:
            content[at + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.zip is encrypted \(a/1\.png, b/1\.png\)"):
        open_source(FolderConfig(path=str(path)))


def _claim(path: Path, name: str, size: int) -> None:
    """Let the directory claim another unpacked size."""
    content = bytearray(path.read_bytes())
    at = content.index(name.encode(), content.index(b"PK\x01\x02")) - 46
    content[at + 24 : at + 28] = struct.pack("<I", size)
    path.write_bytes(content)


def test_an_entry_that_claims_too_much_is_not_unpacked(tmp_path: Path) -> None:
    path = _zip(tmp_path / "set.zip", {"a/1.png": _png(), "b/1.png": _png()})
    _claim(path, "a/1.png", 2 * MAX_FILE_BYTES)
    store = ZipStore(path)
    with pytest.raises(DataError, match=r"set\.zip:a/1\.png claims 2,000,000,000 bytes"):
        store.open("a/1.png")
    assert store.open("b/1.png").read() == _png()


def test_an_entry_that_holds_more_than_it_claims_is_unpacked_no_further(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("a/1.png", "w") as stream:
            for _ in range(500):
                stream.write(bytes(1_000_000))
        archive.writestr("b/1.png", _png())
    _claim(path, "a/1.png", 1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"a/1\.png cannot be read"):
        ZipStore(path).open("a/1.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize("cut", [10, 40, 200])
def test_half_an_archive_is_named(tmp_path: Path, cut: int) -> None:
    path = _zip(tmp_path / "set.zip", {"a/1.png": _png(), "b/1.png": _png()})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"set\.zip is not a whole zip file"):
        open_source(FolderConfig(path=str(path)))


def test_a_folder_and_its_archive_are_divided_alike(make_folder: Make, zip_folder: Make) -> None:
    folder = make_folder({"cat": 5, "dog": 5})
    loose = open_source(FolderConfig(path=str(folder)))
    packed = open_source(FolderConfig(path=str(zip_folder(folder))))
    for index in range(10):
        assert loose.path("train", index) == packed.path("train", index)
        assert loose.content("train", index) == packed.content("train", index)

"""Every real folder and file is listed once, whatever links lead to it; foreign files are not."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from castling.data import DataError, DataModule, FolderConfig, open_source
from castling.data.files import list_images
from castling.data.listing import list_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")

Make = Callable[..., Path]
Open = Callable[..., DataModule]
CONTENT = {"cat": 6, "dog": 6}


def _files(root: Path) -> tuple[list[str], list[str]]:
    images, notes = list_images(root)
    return [image.relative_to(root).as_posix() for image in images], notes


@pytest.mark.parametrize("target", [".", "..", "../..", "latest"])
def test_a_link_to_a_folder_that_holds_it_adds_nothing(make_folder: Make, target: str) -> None:
    root = make_folder(CONTENT)
    plain, none = _files(root)
    assert (len(plain), none) == (12, [])
    os.symlink(target, root / "cat" / "latest")
    found, notes = _files(root)
    assert found == plain
    assert len(notes) == 1
    assert "cat/latest" in notes[0]
    source = open_source(FolderConfig(path=str(root)))
    assert source.info.splits == {"train": 12}
    assert "cat/latest" in source.info.notes[0]


def test_many_crossing_links_end(make_folder: Make) -> None:
    names = {f"c{n}": 2 for n in range(8)}
    root = make_folder(names)
    for one in names:
        for other in names:
            os.symlink(root / other, root / one / f"to-{other}")
    source = open_source(FolderConfig(path=str(root)))
    assert source.info.splits == {"train": 16}
    # Real folders keep their own class, whatever the order of the names.
    assert source.labels("train").tolist() == [n for n in range(8) for _ in range(2)]
    assert "56" not in "".join(source.info.classes)
    assert any("read already" in note for note in source.info.notes)


def test_a_link_out_of_the_folder_is_followed_once(make_folder: Make) -> None:
    root, outside = make_folder(CONTENT), make_folder({"more": 3}, "elsewhere")
    os.symlink(outside / "more", root / "cat" / "first")
    os.symlink(outside / "more", root / "dog" / "second")
    os.symlink(outside / "more" / "1.png", root / "dog" / "one.png")
    os.symlink(root, outside / "more" / "back")
    source = open_source(FolderConfig(path=str(root)))
    paths = [source.path("train", index) for index in range(source.info.splits["train"])]
    assert [path for path in paths if "first" in path] == [f"cat/first/{n}.png" for n in range(3)]
    assert len(paths) == 15
    assert any("dog/one.png" in note for note in source.info.notes)


def test_splits_may_be_links_into_a_pool_that_is_not_used(make_folder: Make) -> None:
    root = make_folder({"pool": {"x": 8}})
    for n in range(8):
        place = root / ("train" if n < 6 else "val") / ("cat" if n % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        os.symlink(root / "pool" / "x" / f"{n}.png", place / f"{n}.png")
    source = open_source(FolderConfig(path=str(root)))
    assert source.info.splits == {"train": 6, "val": 2}
    assert not any("links" in note for note in source.info.notes)


def test_classes_of_splits_may_be_links_to_folders(make_folder: Make) -> None:
    root = make_folder({"pool": {"a": 2, "b": 3, "c": 2, "d": 1}})
    for split, names in (("train", "ab"), ("val", "cd")):
        (root / split).mkdir()
        for label, name in zip(("cat", "dog"), names, strict=True):
            os.symlink(f"../pool/{name}", root / split / label)
    assert open_source(FolderConfig(path=str(root))).info.splits == {"train": 5, "val": 3}
    os.symlink("train", root / "test")  # the same images once more are no test split
    with pytest.raises(DataError, match=r"test; put each image"):
        open_source(FolderConfig(path=str(root)))


def test_broken_links_pipes_and_sockets_are_never_opened(make_folder: Make) -> None:
    root = make_folder(CONTENT)
    os.symlink("nowhere.png", root / "cat" / "broken.png")
    os.symlink("self.png", root / "cat" / "self.png")
    os.mkfifo(root / "cat" / "pipe.png")
    os.symlink("/dev/zero", root / "dog" / "device.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(root / "dog")  # names of sockets are short
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
        found, notes = _files(root)
        assert len(found) == 12
        text = "\n".join(notes)
        for name in ("broken.png", "self.png", "pipe.png", "device.png", "socket.png"):
            assert name in text
        assert open_source(FolderConfig(path=str(root))).info.splits == {"train": 12}


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "set.zip")
    with pytest.raises(DataError, match="pipe"):
        open_source(FolderConfig(path=str(tmp_path / "set.zip")))


def test_files_of_systems_and_servers_are_left_out(make_folder: Make) -> None:
    root = make_folder(CONTENT)
    image = (root / "cat" / "0.png").read_bytes()
    for path in (
        "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.png",
        "dog/@eaDir/0.png",
        "cat/.thumbnails/0.png",
        ".ipynb_checkpoints/0.png",
        "lost+found/0.png",
        "__MACOSX/cat/0.png",
        "$RECYCLE.BIN/0.png",
        "cat/._0.png",
        "dog/._1.png",
        "dog/.hidden.png",
        "dog/.DS_Store",
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(image)
    found, notes = _files(root)
    assert found == [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(6)]
    folders = next(note for note in notes if "file servers" in note)
    images = next(note for note in notes if "hidden images" in note)
    assert "@eaDir (2 times)" in folders
    assert folders.endswith("(6 in all)")
    assert "._* (2 times)" in images
    assert ".hidden.png" in images
    assert "DS_Store" not in "".join(notes)
    source = open_source(FolderConfig(path=str(root)))
    assert source.info.splits == {"train": 12}
    assert list(source.info.notes) == notes


def test_links_between_levels_are_resolved_to_names_of_the_listing(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "1.png").touch()
    os.symlink("b/1.png", tmp_path / "a" / "1.png")
    os.symlink("a/b", tmp_path / "c")
    listing = list_folder(tmp_path)
    assert listing.files == ["a/1.png", "a/b/1.png", "c/1.png"]
    assert listing.links == {"a/1.png": "a/b/1.png", "c/1.png": "a/b/1.png"}
    assert listing.folders == ["a", "a/b", "c"]

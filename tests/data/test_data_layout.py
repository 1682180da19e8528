"""Which top folders are splits and which are classes; what is refused before training."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from castling.data import DataError, FolderConfig, image_endings, is_image, open_source, source_from
from castling.data.split_folders import find_splits

Make = Callable[..., Path]


def _tree(*files: str) -> tuple[list[str], list[str]]:
    folders = {parent.as_posix() for file in files for parent in Path(file).parents}
    return sorted(files), sorted(folders - {"."})


def _found(*files: str, layout: str = "auto") -> tuple[dict[str, str], list[str]]:
    return find_splits(*_tree(*files), layout, "set")  # type: ignore[arg-type]


CLASSES = ({"train": ""}, [])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("cat/1.jpg", "dog/1.jpg"), CLASSES),
        (("cat/x/1.jpg", "dog/x/1.jpg"), CLASSES),
        # Train holds images directly, so it is no split.
        (("bus/1.jpg", "car/1.jpg", "train/1.jpg"), CLASSES),
        (("bus/x/1.jpg", "car/x/1.jpg", "train/1.jpg"), CLASSES),
        (("train/a/1.jpg", "train/b/1.jpg"), ({"train": "train"}, [])),
        (("Training/a/1.jpg", "valid/a/1.jpg"), ({"train": "Training", "val": "valid"}, [])),
        (("train/a/1.jpg", "docs/readme.txt"), ({"train": "train"}, ["ignored .*: docs"])),
        (
            ("train/a/1.jpg", "test/a/1.jpg", "extra/a/1.jpg"),
            ({"train": "train", "test": "test"}, ["ignored .*: extra"]),
        ),
        # Test images without classes, as competitions hand them out.
        (
            ("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg", "test/1.jpg"),
            ({"train": "train", "val": "val"}, ["test/ holds images without classes"]),
        ),
        (
            ("train/a/1.jpg", "train/b/1.jpg", "test/unknown/1.jpg"),
            ({"train": "train"}, ["test/ holds images without classes"]),
        ),
    ],
)
def test_the_whole_layout_decides(
    files: tuple[str, ...], expected: tuple[dict[str, str], list[str]]
) -> None:
    splits, notes = _found(*files)
    assert splits == expected[0]
    assert len(notes) == len(expected[1])
    for note, pattern in zip(notes, expected[1], strict=True):
        assert re.search(pattern, note)


@pytest.mark.parametrize(
    "files",
    [
        ("bus/a/1.jpg", "car/a/1.jpg", "train/a/1.jpg"),  # a class called train, or one split?
        ("cat/1.jpg", "dog/1.jpg", "test/1.jpg"),  # a class called test, or unlabelled images?
        ("cat/1.jpg", "dog/1.jpg", "val/cat/1.jpg", "val/dog/1.jpg"),
        ("train/1.jpg", "test/1.jpg"),  # two classes, or images without classes?
        ("train/1.jpg", "test/1.jpg", "sample/1.jpg"),
    ],
)
def test_what_may_be_either_is_asked_for(files: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"--data\.source\.layout splits or --data\.source\.layout"):
        _found(*files)
    assert _found(*files, layout="classes") == CLASSES


def test_the_user_decides(make_folder: Make) -> None:
    names = ("bus", "car", "train")
    root = make_folder({f"{name}": {"a": 2, "b": 2} for name in names}, "vehicles")
    classes = open_source(FolderConfig(path=str(root), layout="classes"))
    assert (classes.info.classes, classes.info.splits) == (list(names), {"train": 12})
    splits = open_source(source_from({"name": "folder", "path": str(root), "layout": "splits"}))
    assert (splits.info.classes, splits.info.splits) == (["a", "b"], {"train": 4})
    assert "bus, car" in splits.info.notes[0]
    with pytest.raises(ValueError, match=r"data\.source\.layout is 'flat'; .*splits, classes"):
        FolderConfig(path=str(root), layout="flat")  # type: ignore[arg-type]


def test_a_missing_train_folder_says_how_to_train_on_such_classes() -> None:
    with pytest.raises(DataError, match=r"no train folder; .*layout classes"):
        _found("val/a/1.jpg", "test/a/1.jpg")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_class_that_cannot_be_written_is_refused_and_a_file_escaped(make_folder: Make) -> None:
    root = make_folder({"cat": 3, "dog": 3})
    bad = os.path.join(os.fsencode(root), b"dog", b"z\xe9.png")
    Image.new("RGB", (4, 4)).save(root / "new.png")
    os.rename(root / "new.png", bad)
    source = open_source(FolderConfig(path=str(root)))
    assert source.path("train", 6) == r"dog/z\xe9.png"
    assert source.name("train", 6).endswith(r"dog/z\xe9.png")
    assert source.sample("train", 6).image.shape == (3, 4, 4)
    os.rename(os.path.join(os.fsencode(root), b"cat"), os.path.join(os.fsencode(root), b"c\xe9t"))
    with pytest.raises(DataError, match=r"class folder .*c\\xe9t is not UTF-8"):
        open_source(FolderConfig(path=str(root)))


def test_every_ending_that_pillow_decodes_is_an_image() -> None:
    for name in ("a.jfif", "a.JPE", "a.jpeg", "a.avif", "a.heic", "a.HIF", "a.jxl", "a.webp"):
        assert is_image(name)
    for name in ("a.tif", "a.mpo", "a.jp2", "a.psd", "a.tga", "a.fli", "a.png", "x/y.bmp"):
        assert is_image(name)
    for name in ("a.pdf", "a.eps", "a.ps", "a.mpg", "a.wmf", "a.h5", "a.txt", "png", "a.zip", "a."):
        assert not is_image(name)
    Image.init()
    decoded = {
        ending.lstrip(".")
        for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
    }
    assert image_endings() - decoded <= {"avif", "avifs", "heic", "heif", "hif", "jxl", "mpo"}
    assert decoded <= image_endings()


def test_kinds_of_endings_train_together(tmp_path: Path) -> None:
    for name, kinds in (("cat", ("jfif", "jpe")), ("dog", ("jpg", "webp"))):
        (tmp_path / name).mkdir()
        for index in range(4):
            ending = kinds[index % 2]
            kind = "WEBP" if ending == "webp" else "JPEG"
            Image.new("RGB", (5, 4)).save(tmp_path / name / f"{index}.{ending}", kind)
    source = open_source(FolderConfig(path=str(tmp_path)))
    assert source.info.splits == {"train": 8}
    assert source.info.notes == ()


@pytest.mark.parametrize(
    ("loose", "note"),
    [
        (
            ["train/photo.jpg"],
            "1 file was ignored: it is no image, or lies in no class folder: train/photo.jpg",
        ),
        (
            ["train/dog/note.txt", "train/cat/README", "train/photo.jpg", "train/cat/z.txt"],
            "4 files were ignored: they are no images, or lie in no class folder (jpg, no ending, "
            "txt); the first is train/cat/README",
        ),
    ],
)
def test_ignored_files_are_counted_and_the_first_is_named(
    make_folder: Make, loose: list[str], note: str
) -> None:
    root = make_folder({"train/cat": 2, "train/dog": 2})
    for name in loose:
        (root / name).write_bytes(b"")
    assert open_source(FolderConfig(path=str(root))).info.notes == (note,)

"""Folders and zip files: what is read, and what is refused before training."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.pictures import picture

from castling.data import DataError, DataModule, FolderConfig, source_problems

Make = Callable[..., Path]
Open = Callable[..., DataModule]
SPLIT = {"train": {"cat": 6, "dog": 6}, "val": {"cat": 2, "dog": 2}, "test": {"cat": 3, "dog": 3}}


@pytest.fixture
def open_folder(open_data: Open) -> Open:
    return lambda path, **options: open_data(Path(path), **{"image_size": 8, **options})


def test_folder_with_three_splits(make_folder: Make, open_folder: Open) -> None:
    data = open_folder(make_folder(SPLIT))
    assert data.classes == ["cat", "dog"]
    assert data.sizes == {"train": 12, "val": 4, "test": 6}
    assert data.has_test
    assert data.notes == ()
    sample = data.dataset("val")[3]
    assert (sample.image.shape, sample.image.dtype) == ((3, 8, 8), torch.uint8)
    assert sample.target["label"] == 1
    assert sample.original_size == (10, 12)
    assert data.dataset("train").selection.labels.tolist() == [0] * 6 + [1] * 6


def test_zip_equals_folder(make_folder: Make, zip_folder: Make, open_folder: Open) -> None:
    folder = make_folder(SPLIT)
    for top in ("", "pack/deeper/"):
        packed = open_folder(zip_folder(folder, top))
        loose = open_folder(folder)
        assert packed.classes == loose.classes
        for split in ("train", "val", "test"):
            ours, theirs = packed.dataset(split), loose.dataset(split)
            assert len(ours) == len(theirs)
            for index in range(len(ours)):
                assert ours[index].target["label"] == theirs[index].target["label"]
                assert torch.equal(ours[index].image, theirs[index].image)


def test_folder_of_classes_is_split_without_leakage(make_folder: Make, open_folder: Open) -> None:
    folder = make_folder({"cat": 20, "dog": 30})
    data = open_folder(folder, val_fraction=0.2, test_fraction=0.1)
    parts = [data.dataset(split) for split in ("train", "val", "test")]
    names = [{part.name(index) for index in range(len(part))} for part in parts]
    sizes = [len(part) for part in names]
    assert sum(sizes) == len(set.union(*names)) == 50
    assert all(set(part.selection.labels) == {0, 1} for part in parts)
    # By position shares are met exactly, as in earlier versions.
    exact = open_folder(folder, val_fraction=0.2, test_fraction=0.1, by="position")
    assert exact.sizes == {"train": 35, "val": 10, "test": 5}
    assert exact.dataset("val").selection.labels.tolist().count(0) == 4
    assert len(data.notes) == len(exact.notes) == 2


def test_test_serves_for_validation_and_says_so(make_folder: Make, open_folder: Open) -> None:
    folder = make_folder({"train": {"a": 10, "b": 10}, "test": {"a": 2, "b": 2}})
    data = open_folder(folder)
    assert not data.has_test
    assert "test" not in data.sizes
    assert data.dataset("val") is data.dataset("test")
    assert any("test images serve for validation" in note for note in data.notes)
    held = open_folder(folder, val_fraction=0.2, by="position")
    assert held.sizes == {"train": 16, "val": 4, "test": 4}
    assert all("train" in held.dataset("val").name(index) for index in range(4))


def test_validation_serves_for_test_and_says_so(make_folder: Make, open_folder: Open) -> None:
    data = open_folder(make_folder({"train": {"a": 4, "b": 4}, "valid": {"a": 2, "b": 2}}))
    assert not data.has_test
    assert "test" not in data.sizes
    assert data.dataset("val") is data.dataset("test")
    assert any("there is no test split" in note for note in data.notes)


def test_train_folder_alone_is_split(make_folder: Make, open_folder: Open) -> None:
    folder = make_folder({"train": {"a": 10, "b": 10}})
    assert open_folder(folder, by="position").sizes == {"train": 16, "val": 2, "test": 2}
    assert sum(open_folder(folder).sizes.values()) == 20


def test_readable_names(make_folder: Make, open_folder: Open) -> None:
    folder = make_folder(
        {"train": {"n01": 3, "n02": 3, "n03": 3}, "val": dict.fromkeys(("n01", "n02", "n03"), 1)}
    )
    entries = [{"wnid": "n03", "name": "crane"}, {"wnid": "n01", "name": "crane"}]
    (folder / "classes.json").write_text(json.dumps({"classes": entries}))
    assert open_folder(folder).classes == ["crane (n01)", "n02", "crane (n03)"]
    (folder / "classes.json").write_text(json.dumps({"n02": "tench"}))
    assert open_folder(folder).classes == ["n01", "tench", "n03"]
    (folder / "classes.json").write_text(json.dumps({"classes": ["n01", "n02", "n03"]}))
    assert open_folder(folder).classes == ["n01", "n02", "n03"]
    for content, complaint in (
        ("{", "valid JSON"),
        ("[1]", "must hold"),
        ('{"x": "y"}', "none of"),
        ('{"n01": "\\ud800"}', r"names a class '.*ud800'"),
        ("[" * 100_000, "valid JSON"),
    ):
        (folder / "classes.json").write_text(content)
        with pytest.raises(DataError, match=rf"classes\.json.*{complaint}"):
            open_folder(folder)


def test_hidden_and_foreign_files_are_no_images(make_folder: Make, open_folder: Open) -> None:
    folder = make_folder(SPLIT)
    (folder / "train" / "cat" / "readme.txt").write_text("x")
    (folder / "train" / "cat" / "._0.png").write_text("x")
    (folder / "__MACOSX" / "train").mkdir(parents=True)
    (folder / "docs").mkdir()
    data = open_folder(folder)
    assert data.sizes["train"] == 12
    assert source_problems(FolderConfig(path=str(folder))) == list(data.notes)
    assert any(note.startswith("1 file was ignored: it is no image") for note in data.notes)
    assert any("docs" in note for note in data.notes)


def test_absent_path(open_folder: Open) -> None:
    with pytest.raises(FileNotFoundError, match="no folder or zip file at nowhere/at_all"):
        open_folder(Path("nowhere/at_all"))


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder(make_folder: Make, open_folder: Open) -> None:
    folder = make_folder(SPLIT)
    (folder / "train" / "cat").chmod(0)
    try:
        with pytest.raises(PermissionError, match="cat"):
            open_folder(folder)
    finally:
        (folder / "train" / "cat").chmod(0o755)


def test_no_images(tmp_path: Path, open_folder: Open) -> None:
    with pytest.raises(DataError, match="no images"):
        open_folder(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match="folder named by its class"):
        open_folder(tmp_path)


def test_empty_class(make_folder: Make, zip_folder: Make, open_folder: Open) -> None:
    folder = make_folder({"train": {"cat": 2, "dog": 0, "emu": 1}, "val": {"cat": 1, "emu": 1}})
    for source in (folder, zip_folder(folder)):
        with pytest.raises(DataError, match=r"no images: .*train/dog"):
            open_folder(source)


def test_one_class(make_folder: Make, open_folder: Open) -> None:
    with pytest.raises(DataError, match=r"one class only \(cat\)"):
        open_folder(make_folder({"train": {"cat": 3}, "val": {"cat": 2}}))


def test_classes_that_differ_between_splits(make_folder: Make, open_folder: Open) -> None:
    folder = make_folder({"train": {"a": 2, "b": 2, "c": 2}, "val": {"a": 1, "b": 1, "d": 1}})
    with pytest.raises(DataError, match=r"only in train/: c; only in val/: d"):
        open_folder(folder)


def test_missing_train_and_double_val(make_folder: Make, open_folder: Open) -> None:
    with pytest.raises(DataError, match="no train folder"):
        open_folder(make_folder({"val": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}))
    classes = {"a": 1, "b": 1}
    with pytest.raises(DataError, match="both val"):
        open_folder(make_folder({"train": classes, "val": classes, "valid": classes}, "double"))


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_damaged_header_is_named_before_training(
    make_folder: Make, cache: str, open_folder: Open
) -> None:
    folder = make_folder(SPLIT)
    (folder / "train" / "dog" / "4.png").write_bytes(b"no image")
    (folder / "test" / "cat" / "0.png").write_bytes(b"")
    expected = r"1 of 12 training images and 1 of 6 test images are damaged"
    with pytest.raises(DataError, match=rf"{expected}(?s:.*)dog/4\.png(?s:.*)test/cat/0\.png"):
        open_folder(folder, cache=cache)
    (folder / "train" / "dog" / "4.png").unlink()
    with pytest.raises(DataError, match=r"test/cat/0\.png is empty"):
        open_folder(folder, cache=cache)


def _cut_short(file: Path) -> None:
    stream = io.BytesIO()
    picture(0, 0, (40, 40)).convert("L").save(stream, "PNG")
    file.write_bytes(stream.getvalue()[:600])


def test_damaged_body_is_found_by_the_full_check(make_folder: Make, open_folder: Open) -> None:
    folder = make_folder(SPLIT)
    _cut_short(folder / "val" / "dog" / "1.png")
    data = open_folder(folder, cache="none")  # the header is sound
    with pytest.raises(DataError, match=r"val/dog/1\.png"):
        data.dataset("val")[3]
    with pytest.raises(DataError, match=r"validation images(?s:.*)val/dog/1\.png"):
        open_folder(folder, cache="none", verify="full")
    assert open_folder(folder, verify="none").sizes["val"] == 4


def test_truncated_zip(make_folder: Make, zip_folder: Make, open_folder: Open) -> None:
    packed = zip_folder(make_folder(SPLIT))
    packed.write_bytes(packed.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"set\.zip is not a whole zip file"):
        open_folder(packed)


def test_damaged_zip_entry_is_named(make_folder: Make, zip_folder: Make, open_folder: Open) -> None:
    packed = zip_folder(make_folder(SPLIT))
    content = bytearray(packed.read_bytes())
    with zipfile.ZipFile(packed) as archive:
        info = archive.getinfo("train/cat/2.png")
    start = info.header_offset + 30 + len(info.filename) + 20
    content[start : start + 40] = bytes(40)
    packed.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.zip:train/cat/2\.png"):
        open_folder(packed)


def test_any_mode_and_size(make_folder: Make, open_folder: Open) -> None:
    folder = make_folder({"train": {"a": 1, "b": 1}, "val": {"a": 1, "b": 1}})
    shutil.rmtree(folder / "train" / "a")
    (folder / "train" / "a").mkdir()
    rng = np.random.default_rng(0)
    for mode, size in (
        ("RGBA", (5, 90)),
        ("L", (1, 1)),
        ("P", (33, 2)),
        ("1", (9, 9)),
        ("LA", (3, 7)),
    ):
        pixels = rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / "train" / "a" / f"{mode}.png")
    train = open_folder(folder, image_size=(16, 24)).dataset("train")
    assert len(train) == 6
    assert all(train[index].image.shape == (3, 16, 24) for index in range(6))


def test_subset_is_balanced_and_stated(make_folder: Make, open_folder: Open) -> None:
    folder = make_folder(SPLIT)
    data = open_folder(folder, subset=4, val_subset=2)
    assert data.dataset("train").selection.labels.tolist() == [0, 0, 1, 1]
    assert data.dataset("val").selection.labels.tolist() == [0, 1]
    assert data.sizes["test"] == 6
    assert sum("of 12 images" in note or "of 4 images" in note for note in data.notes) == 2

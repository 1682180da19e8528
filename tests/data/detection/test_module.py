"""Annotated images in a data module: checked, split by content, recorded, found again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from castling.data import (
    ClassificationEvalTransform,
    ClassificationTransformConfig,
    DataModule,
    FaultyDataError,
    FileSource,
    ReportingSource,
    data_config_from_dict,
    open_source,
    source_from,
)

Make = Callable[..., Any]


def module(
    path: Path, read: tuple[str, ...] = ("train", "val", "test"), **loader: Any
) -> DataModule:
    """A data module; its transform is not used."""
    config = data_config_from_dict({"source": str(path), "loader": {"cache": "none", **loader}})
    transform = ClassificationEvalTransform(ClassificationTransformConfig(image_size=8))
    return DataModule(open_source(config.source), config, transform, transform, read=read)


def test_the_source_is_one_of_files_and_reports(coco_folder: Make) -> None:
    source = open_source(source_from(str(coco_folder().write())))
    assert isinstance(source, FileSource)
    assert isinstance(source, ReportingSource)


def test_errors_are_raised_all_at_once(coco_folder: Make) -> None:
    folder = coco_folder()
    folder.train["annotations"][0]["category_id"] = 99
    folder.image(1).write_bytes(b"")
    with pytest.raises(FaultyDataError) as caught:
        module(folder.write())
    text = str(caught.value)
    assert "object of a class that is not listed: 1 (annotation 1000 of train0.png: " in text
    assert "image that cannot be read: 1" in text


def test_notes_are_the_modules_notes(coco_folder: Make) -> None:
    folder = coco_folder()
    folder.train["annotations"][0]["area"] = 0
    notes = module(folder.write()).notes
    assert sum(note.startswith("object without an area: 1") for note in notes) == 1


def test_images_of_splits_that_are_not_read_are_not_opened(coco_folder: Make) -> None:
    folder = coco_folder(("train", "val", "test"))
    folder.image(0).write_bytes(b"")
    root = folder.write()
    assert module(root, read=("test",)).sizes["test"] == 4
    with pytest.raises(FaultyDataError, match="image that cannot be read"):
        module(root)
    assert module(root, verify="none").sizes["train"] == 4


def test_missing_splits_are_held_out_by_content(coco_folder: Make) -> None:
    folder = coco_folder(("train",), images=40)
    data = module(folder.write())
    assert data.sizes["val"] >= 1
    assert data.sizes["test"] >= 1
    assert sum(data.sizes.values()) == 40

    def names(split: str) -> set[str]:
        return {Path(data.dataset(split).name(i)).name for i in range(data.sizes[split])}

    held = names("val")
    # One image fewer moves no other.
    gone = next(iter(names("train")))
    folder.train["images"] = [e for e in folder.train["images"] if e["file_name"] != gone]
    listed = {entry["id"] for entry in folder.train["images"]}
    folder.train["annotations"] = [
        e for e in folder.train["annotations"] if e["image_id"] in listed
    ]
    data = module(folder.write())
    assert names("val") == held


def test_a_recorded_split_is_found_again(coco_folder: Make) -> None:
    folder = coco_folder(images=6)
    root = folder.write()
    record = module(root).record()
    assert [image.path for image in record.images["train"]] == [
        f"images/train/train{index}.png" for index in range(6)
    ]
    Image.new("RGB", (64, 48), "red").save(folder.image(2))
    config = data_config_from_dict({"source": str(root), "loader": {"cache": "none"}})
    transform = ClassificationEvalTransform(ClassificationTransformConfig(image_size=8))
    again = DataModule(open_source(config.source), config, transform, transform, record=record)
    assert again.changes.changed == {"train": ["images/train/train2.png"]}


def test_digit_scenes_need_no_check() -> None:
    source = open_source(source_from("digit_scenes"))
    assert not isinstance(source, ReportingSource)
    assert source.problems() == []

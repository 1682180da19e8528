"""Annotations that change while their images stay: a run that goes on is told."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from castling.data import (
    ClassificationEvalTransform,
    ClassificationTransformConfig,
    DataConfig,
    DataModule,
    SourceConfig,
    SplitConfig,
    SplitRecord,
    open_source,
    read_split_record,
    source_from,
)
from castling.data.registry import AnnotatedSource
from castling.train.recorded_split import check_changes

Edit = Callable[[Path], object]


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 3, (10, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels if path.parent.name != "masks" else pixels[..., 0]).save(path)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    for i in range(12):
        noise(tmp_path / "set" / "images" / f"{i}.png", i)
        noise(tmp_path / "set" / "masks" / f"{i}.png", 100 + i)
    (tmp_path / "set" / "classes.txt").write_text("a\nb\nc")
    return tmp_path / "set"


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    images, objects = [], []
    for i in range(12):
        noise(tmp_path / "set" / "images" / f"{i}.png", i)
        images.append({"id": i, "file_name": f"{i}.png", "width": 14, "height": 10})
        polygon = [[1, 1, 6, 1, 6, 6, 1, 6]]
        for number in (2 * i, 2 * i + 1):
            one = {"id": number, "image_id": i, "category_id": number % 2, "bbox": [1, 1, 5, 5]}
            objects.append({**one, "area": 25, "segmentation": polygon, "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate("ab")]
    values = {"images": images, "annotations": objects, "categories": categories}
    (tmp_path / "set" / "instances_train.json").write_text(json.dumps(values))
    return tmp_path / "set"


def edit_boxes(change: Callable[[dict], object]) -> Edit:
    def edit(root: Path) -> None:
        file = root / "instances_train.json"
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return edit


def opened(root: Path, record: SplitRecord | None = None, by: str = "content") -> DataModule:
    config: SourceConfig = source_from(str(root))
    transform = ClassificationEvalTransform(ClassificationTransformConfig())
    split = SplitConfig(by=by)
    return DataModule(
        open_source(config),
        DataConfig(source=config, split=split),
        transform,
        transform,
        record=record,
    )


def trained(record: SplitRecord, count: int = 2) -> list[str]:
    return [image.path for image in record.images["train"]][:count]


def test_masks_that_were_drawn_anew(masks: Path, tmp_path: Path) -> None:
    record = opened(masks).record()
    record.write(tmp_path)
    assert read_split_record(tmp_path) == record
    assert all(len(image.annotation) == 16 for image in record.images["train"])
    assert not opened(masks, record).changes.lines()
    first, second = trained(record)
    noise(masks / "masks" / Path(first).name, 999)
    (masks / second).rename(masks / "images" / "moved.png")  # with its mask: the same annotation
    (masks / "masks" / Path(second).name).rename(masks / "masks" / "moved.png")
    held_out = record.images["val"][0].path
    noise(masks / "masks" / Path(held_out).name, 998)
    data = opened(masks, record)
    assert data.changes.annotated == {"train": [first], "val": [held_out]}
    assert data.changes.renamed == {"train": ["images/moved.png"]}
    assert f"train images whose annotations changed since training began: 1 ({first})" in (
        data.changes.lines()
    )
    with pytest.raises(ValueError, match=rf"(?s)annotations of .*changed.*{first}.*allow"):
        check_changes(data, record, "refuse")
    check_changes(data, record, "allow")
    noise(masks / "masks" / Path(first).name, 100 + int(Path(first).stem))  # put back
    data = opened(masks, record)
    assert data.changes.annotated == {"val": [held_out]}
    check_changes(data, record, "refuse")  # training is as it was


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: v["annotations"][0].update(bbox=[1, 1, 5, 4]), True),
        (lambda v: v["annotations"][0].update(category_id=1), True),
        (lambda v: v["annotations"].pop(0), True),
        (lambda v: v["annotations"][0]["segmentation"][0].__setitem__(2, 5.5), True),
        (lambda v: v["annotations"][0].update(id=500), False),
        (lambda v: v.update(info={"year": 2026}), False),
    ],
    ids=["box", "class", "object", "mask", "number", "nothing"],
)
def test_objects_that_changed(boxes: Path, change: Callable[[dict], object], told: bool) -> None:
    source = open_source(source_from(str(boxes)))
    assert isinstance(source, AnnotatedSource)
    record = opened(boxes).record()
    edit_boxes(change)(boxes)
    changes = opened(boxes, record).changes
    assert [*changes.annotated.values()] == ([["images/0.png"]] if told else [])
    assert not changes.changed


def test_records_of_earlier_versions_say_nothing(masks: Path, tmp_path: Path) -> None:
    """They have no annotations; their text, and so their digest, stays as it was."""
    record = opened(masks).record()
    old = dataclasses.replace(
        record,
        images={
            split: [dataclasses.replace(image, annotation="") for image in images]
            for split, images in record.images.items()
        },
    )
    rows = json.loads(old.to_json())["images"]["train"]
    assert all(len(row) == 3 for row in rows)
    old.write(tmp_path)
    again = read_split_record(tmp_path)
    assert again == old
    assert again is not None
    assert again.digest == old.digest != record.digest
    noise(masks / "masks" / Path(trained(record)[0]).name, 999)
    assert not opened(masks, old).changes.lines()


def test_names_alone_read_no_annotations(masks: Path) -> None:
    record = opened(masks, by="path").record()
    assert all(image.annotation == "" for image in record.images["train"])
    noise(masks / "masks" / Path(trained(record)[0]).name, 999)
    assert not opened(masks, record, by="path").changes.lines()

"""COCO folders and zip files, compared with pycocotools."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask
from pycocotools.coco import COCO

from castling.data import CocoConfig, open_source
from castling.data.detection.masks import decode_masks

Make = Callable[..., Any]


def reference(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def encoded(polygons: list[list[float]]) -> dict[str, Any]:
    """Compressed run lengths in a 48×64 image, as JSON holds them."""
    rle = mask.merge(mask.frPyObjects(polygons, 48, 64))
    return {"size": [48, 64], "counts": rle["counts"].decode()}


def check_against_pycocotools(root: Path, file: Path, split: str, limit: int) -> int:
    """Every target of a split equals what pycocotools reads; returns how many objects there are."""
    coco, source = reference(file), open_source(CocoConfig(path=str(root)))
    names = [each["name"] for each in sorted(coco.cats.values(), key=lambda each: each["id"])]
    assert source.info.classes == names
    by_file = {each["file_name"]: each for each in coco.imgs.values()}
    assert source.info.splits[split] == len(by_file)
    objects = 0
    for index in range(min(limit, len(by_file))):
        sample = source.sample(split, index)
        image = by_file[sample.name.rpartition("/")[2]]
        theirs = coco.imgToAnns[image["id"]]
        assert sample.original_size == (image["height"], image["width"])
        target = sample.target
        assert target["ids"].tolist() == [each["id"] for each in theirs]
        boxes = np.array([each["bbox"] for each in theirs], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.allclose(target["boxes"], boxes, atol=1e-4)
        assert np.allclose(target["area"], [each["area"] for each in theirs], rtol=1e-6)
        assert target["iscrowd"].tolist() == [bool(each["iscrowd"]) for each in theirs]
        found = [source.info.classes[label] for label in target["labels"]]
        assert found == [coco.cats[each["category_id"]]["name"] for each in theirs]
        if source.info.has_masks:
            masks = decode_masks(target["segmentation"]).numpy()
            assert masks.shape == (len(theirs), *sample.original_size)
            for ours, each in zip(masks, theirs, strict=True):
                assert np.array_equal(ours, coco.annToMask(each))
        objects += len(theirs)
    return objects


def test_every_target_is_that_of_pycocotools(coco_folder: Make) -> None:
    folder = coco_folder()
    annotations = folder.train["annotations"]
    annotations[0] |= {
        "iscrowd": 1,
        "segmentation": {"size": [48, 64], "counts": [100, 60, 48 * 64 - 160]},
    }
    annotations[1]["segmentation"] = [[20, 8, 34, 8, 34, 16], [20, 18, 34, 18, 34, 27, 20, 27]]
    annotations[2]["segmentation"] = encoded([[40, 7, 53, 7, 53, 25, 45, 25]])
    del annotations[3:6]  # the second image has no objects
    annotations[3:] = reversed(annotations[3:])  # not in the order of the images
    root = folder.write()
    assert check_against_pycocotools(root, root / "instances_train.json", "train", 9) == 9
    assert check_against_pycocotools(root, root / "instances_val.json", "val", 9) == 12
    empty = open_source(CocoConfig(path=str(root))).sample("train", 1)
    assert empty.target["boxes"].shape == (0, 4)
    assert decode_masks(empty.target["segmentation"]).shape == (0, 48, 64)


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_itself(split: str, tmp_path: Path) -> None:
    pack = Path(os.environ.get("CASTLING_DATA", "data")) / "coco_mini.zip"
    if not pack.is_file():
        pytest.skip("needs coco_mini.zip in data/, or in the folder that CASTLING_DATA names")
    name = f"instances_{split}.json"
    with zipfile.ZipFile(pack) as archive:
        archive.extract(name, tmp_path)
    assert check_against_pycocotools(pack, tmp_path / name, split, 30) > 200

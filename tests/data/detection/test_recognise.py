"""Which source a path opens as, without being told."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from castling.data import (
    CocoConfig,
    FolderConfig,
    VocConfig,
    YoloConfig,
    check_source,
    open_source,
    source_from,
    split_shorthand,
)

Make = Callable[..., Any]
Save = Callable[[Path, tuple[int, int], int], None]
XML = "<annotation><object><name>cat</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax>"
XML += "<ymax>9</ymax></bndbox></object></annotation>"


def pack(folder: Path) -> Path:
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, "top/" + file.relative_to(folder).as_posix())
    return target


def test_coco(coco_folder: Make) -> None:
    root = coco_folder().write()
    for path in (root, pack(root), root / "instances_train.json"):
        assert split_shorthand(str(path)) == CocoConfig(path=str(path))
        assert check_source(source_from(str(path))).errors == ()
    assert open_source(source_from(str(pack(root)))).info.splits == {"train": 4, "val": 4}
    alone = open_source(source_from(str(root / "instances_val.json")))
    assert alone.info.splits == {"train": 4}
    assert alone.path("train", 0) == "images/val/val0.png"


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_{}2017.json", "{}2017"),  # cocodataset.org
        ("{}/_annotations.coco.json", "{}"),  # Roboflow
        ("{}.json", "{}"),
        ("deep/er/annotations/{}.json", "deep/er/images/{}"),
    ],
)
def test_places_of_coco_files(
    coco_folder: Make, tmp_path: Path, annotations: str, images: str
) -> None:
    folder = coco_folder()
    root = tmp_path / "moved"
    folder.write()
    for split, values in folder.content.items():
        # Names are the same in both splits, so that only the folder tells them apart.
        for index, entry in enumerate(values["images"]):
            target = root / images.format(split) / f"{index}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(folder.image(index, split).read_bytes())
            entry |= {"file_name": f"{index}.png"}
        file = root / annotations.format(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    source = open_source(source_from(str(root)))
    assert source.info.splits == {"train": 4, "val": 4}
    for split in ("train", "val"):
        assert source.path(split, 2) == f"{images.format(split)}/2.png"
    assert check_source(source_from(str(root))).problems == ()


@pytest.mark.parametrize("name", ["/home/someone/pictures/{}", "C:\\pictures\\{}", "./{}", "../{}"])
def test_file_names_of_another_machine(coco_folder: Make, name: str) -> None:
    folder = coco_folder()
    for entry in folder.train["images"]:
        entry["file_name"] = name.format(entry["file_name"])
    source = open_source(CocoConfig(path=str(folder.write())))
    assert source.path("train", 1) == "images/train/train1.png"


def test_named_files_and_folders(coco_folder: Make) -> None:
    folder = coco_folder()
    root = folder.write()
    (root / "instances_train.json").rename(root / "a.json")
    (root / "instances_val.json").rename(root / "b.json")
    options = {"path": str(root), "train": "a.json", "val": "b.json"}
    source = open_source(CocoConfig(**options, images="images/{split}"))
    assert source.info.splits == {"train": 4, "val": 4}
    wrong = check_source(CocoConfig(**options, images="pictures"))
    assert wrong.errors[0].kind == "image file missing"
    with pytest.raises(ValueError, match=r"data.source.val: there is no c.json"):
        open_source(CocoConfig(path=str(root), train="a.json", val="c.json"))
    with pytest.raises(ValueError, match="name those for train"):
        CocoConfig(path=str(root), val="b.json")
    (root / "instances_train_again.json").write_text("{}")
    (root / "instances_train.json").write_text("{}")
    with pytest.raises(ValueError, match=r"several files may be .* name one of them with source"):
        open_source(CocoConfig(path=str(root)))


def test_classes_of_a_split_that_are_not_those_of_training(coco_folder: Make) -> None:
    folder = coco_folder()
    # Other numbers for the same names are fine.
    folder.content["val"]["categories"] = [
        {"id": 3, "name": "dog"},
        {"id": 7, "name": "cat"},
        {"id": 8, "name": "hen"},
    ]
    source = open_source(CocoConfig(path=str(folder.write())))
    assert source.sample("train", 0).target["labels"].tolist() == [0, 1, 2]
    assert source.sample("val", 0).target["labels"].tolist() == [1, 0, 2]
    folder.content["val"]["categories"][0]["name"] = "cow"
    report = check_source(CocoConfig(path=str(folder.write())))
    assert report.errors[0].kind == "object of a class that is not listed"


def test_voc_and_yolo(tmp_path: Path, save_noise: Save) -> None:
    for index in range(2):
        save_noise(tmp_path / "voc" / "train" / f"{index}.jpg", (16, 12), index)
        (tmp_path / "voc" / "train" / f"{index}.xml").write_text(XML)
        save_noise(tmp_path / "yolo" / "images" / f"{index}.jpg", (16, 12), index)
        (tmp_path / "yolo" / "labels").mkdir(parents=True, exist_ok=True)
        (tmp_path / "yolo" / "labels" / f"{index}.txt").write_text("0 .5 .5 .25 .25\n")
    for kind, config in (("voc", VocConfig), ("yolo", YoloConfig)):
        for path in (tmp_path / kind, pack(tmp_path / kind)):
            assert split_shorthand(str(path)) == config(path=str(path))
            assert open_source(source_from(str(path))).info.splits == {"train": 2}


def test_folders_of_classes_stay_what_they_are(tmp_path: Path, save_noise: Save) -> None:
    for label in ("cat", "dog"):
        for index in range(2):
            save_noise(tmp_path / "set" / "train" / label / f"{index}.jpg", (16, 12), index)
    (tmp_path / "set" / "classes.json").write_text('{"cat": "Cat", "dog": "Dog"}')
    (tmp_path / "set" / "notes.txt").write_text("1 2 three\n")
    (tmp_path / "set" / "recipe.yaml").write_text("model: {name: x}\n")
    (tmp_path / "set" / "page.xml").write_text("<html/>")
    assert split_shorthand(str(tmp_path / "set")) == FolderConfig(path=str(tmp_path / "set"))
    assert split_shorthand(str(pack(tmp_path / "set"))).name == "folder"
    assert split_shorthand(str(tmp_path / "nowhere")).name == "folder"
    (tmp_path / "no.zip").write_text("not a zip")
    assert split_shorthand(str(tmp_path / "no.zip")).name == "folder"


def test_a_large_folder_is_not_read_whole(tmp_path: Path, save_noise: Save) -> None:
    """Only the beginning of each folder is listed: labels are told from any of them."""
    for index in range(150):
        for kind, ending, text in (("images", "png", ""), ("labels", "txt", "0 .5 .5 .2 .2")):
            file = tmp_path / "set" / kind / "train" / f"{index}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    assert split_shorthand(str(tmp_path / "set")).name == "yolo"

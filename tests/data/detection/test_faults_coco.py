"""Every kind of fault of COCO data, made in a sound set and found alone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

from castling.data import CocoConfig, DataReport, FaultyDataError, check_source, open_source

Folder = Any


@dataclass(frozen=True)
class Case:
    """A fault: its number in the documentation, how it is made, and what is to be reported."""

    number: int
    name: str
    damage: Callable[[Folder], object]
    kind: str
    severity: str
    count: int
    example: str = ""

    def __str__(self) -> str:
        return f"{self.number}-{self.name}"


def rewrite(text: str) -> Callable[[Folder], object]:
    """Replace the training annotations on disk after they were written."""

    def damage(folder: Folder) -> None:
        folder.after = lambda: (folder.root / "instances_train.json").write_text(text)

    return damage


def each(change: Callable[[dict[str, Any]], object]) -> Callable[[Folder], object]:
    """Change every training annotation."""
    return lambda folder: [change(entry) for entry in folder.train["annotations"]]


def first(**values: Any) -> Callable[[Folder], object]:
    """Set fields of the first training annotation."""
    return lambda folder: folder.train["annotations"][0].update(values)


def to_corners(entry: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    entry["bbox"] = [x, y, x + width, y + height]


def to_shares(entry: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    entry["bbox"] = [x / 64, y / 48, width / 64, height / 48]


def turned(orientation: int, swap: bool) -> Callable[[Folder], object]:
    """Store the first training image with an EXIF orientation, in the stated size or turned."""

    def damage(folder: Folder) -> None:
        path = folder.image(0)
        image = Image.open(path)
        if swap:
            image = image.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)

    return damage


def same_bytes(folder: Folder) -> None:
    shutil.copy(folder.image(1), folder.image(2, "val"))


def same_file(folder: Folder) -> None:
    folder.content["val"]["images"][0]["file_name"] = "train/train0.png"
    for entry in folder.train["images"]:
        entry["file_name"] = f"train/{entry['file_name']}"
    for entry in folder.content["val"]["images"][1:]:
        entry["file_name"] = f"val/{entry['file_name']}"


def append_image(**values: Any) -> Callable[[Folder], object]:
    return lambda folder: folder.train["images"].append(folder.train["images"][0] | values)


def crowd(folder: Folder) -> None:
    rle = {"size": [48, 64], "counts": [290, 20, 48 * 64 - 310]}
    folder.train["annotations"][0] |= {"iscrowd": 1, "segmentation": rle}
    folder.train["annotations"][0]["bbox"] = [6, 2, 1, 20]


NOTHING = {"images": [], "annotations": [], "categories": []}
CASES = [
    Case(1, "cut", rewrite('{"images": [{"id'), "annotation file that is not whole", "error", 1),
    Case(1, "list", rewrite("[1, 2]"), "annotation file that is not whole", "error", 1, "a list"),
    Case(1, "empty", rewrite(""), "annotation file that is not whole", "error", 1),
    Case(1, "deep", rewrite("[" * 10**5), "annotation file that is not whole", "error", 1),
    *(
        Case(
            2,
            section,
            lambda folder, section=section: folder.train.pop(section),
            "missing or malformed part of the annotation file",
            "error",
            1,
            section,
        )
        for section in ("images", "annotations", "categories")
    ),
    Case(
        2,
        "entry",
        lambda folder: folder.train["images"][0].pop("file_name"),
        "missing or malformed part of the annotation file",
        "error",
        1,
        "images such as",
    ),
    Case(
        3, "", append_image(file_name="train1.png"), "image id used twice", "error", 1, "5 (train1"
    ),
    Case(
        4,
        "",
        lambda folder: folder.train["annotations"][5].update(id=1000),
        "annotation id used twice",
        "note",
        1,
        "annotation 1000 of train1.png",
    ),
    Case(
        5,
        "id",
        lambda folder: folder.train["categories"].append({"id": 7, "name": "cow"}),
        "category id or name used twice",
        "error",
        1,
        "cow (7)",
    ),
    Case(
        5,
        "name",
        lambda folder: folder.train["categories"].append({"id": 9, "name": "dog"}),
        "category id or name used twice",
        "error",
        1,
        "dog (9)",
    ),
    Case(
        6, "", first(image_id=77), "annotation of an image that is not listed", "error", 1, "1000"
    ),
    Case(7, "", first(category_id=77), "object of a class that is not listed", "error", 1, "77"),
    Case(
        8,
        "",
        lambda folder: folder.image(2).unlink(),
        "image file missing",
        "error",
        1,
        "train2.png",
    ),
    Case(9, "", append_image(id=99), "image file listed twice", "error", 1, "train0.png in train"),
    Case(
        10,
        "other",
        lambda folder: Image.new("RGB", (32, 24)).save(folder.image(1)),
        "image whose file has another size than stated",
        "error",
        1,
        "stated 64×48, is 32×24",
    ),
    Case(
        10,
        "none",
        lambda folder: folder.train["images"][0].pop("width"),
        "image without width and height",
        "note",
        1,
        "train0.png",
    ),
    *(
        Case(
            10,
            f"huge-{len(str(side))}",
            lambda folder, side=side: folder.train["images"][0].update(height=side),
            "image without width and height",
            "note",
            1,
            "train0.png",
        )
        for side in (10**30, 10**400)
    ),
    Case(11, "as-stored", turned(6, False), "image that its EXIF rotates or mirrors", "note", 1),
    Case(11, "upright", turned(6, True), "image that its EXIF rotates or mirrors", "note", 1),
    Case(11, "mirrored", turned(2, False), "image that its EXIF rotates or mirrors", "note", 1),
    Case(
        12,
        "empty",
        lambda folder: folder.image(0).write_bytes(b""),
        "image that cannot be read",
        "error",
        1,
        "is empty (0 bytes)",
    ),
    Case(
        12,
        "text",
        lambda folder: folder.image(0).write_bytes(b"no image"),
        "image that cannot be read",
        "error",
        1,
        "not an image",
    ),
    *(
        Case(
            13, str(box), first(bbox=box), "box that is not 4 finite numbers", "error", 1, "1000 of"
        )
        for box in ([1, 2, 3], [1, 2, 3, math.nan], [1, 2, math.inf, 3], ["1", 2, 3, 4], None, [])
    ),
    *(
        Case(14, str(box), first(bbox=box), "box with width or height 0 or below", "error", 1)
        for box in ([4, 6, 0, 20], [4, 6, 12, -3])
    ),
    Case(
        15,
        "partly",
        first(bbox=[-5, 6, 21, 20], segmentation=[[0, 6, 16, 6, 16, 26, 0, 26]]),
        "box that reaches out of its image",
        "note",
        1,
        "annotation 1000 of train0.png",
    ),
    Case(
        15,
        "wholly",
        first(bbox=[70, 6, 12, 20]),
        "box wholly outside its image",
        "error",
        1,
        "annotation 1000 of train0.png",
    ),
    Case(16, "", each(to_corners), "box that seems to be x1, y1, x2, y2", "error", 12),
    Case(17, "", each(to_shares), "box that seems to be a share of the image's sides", "error", 12),
    *(
        Case(
            18,
            name,
            first(segmentation=value),
            "polygon of fewer than 6 or an odd number of numbers",
            "error",
            1,
        )
        for name, value in (
            ("four", [[4, 6, 16, 26]]),
            ("odd", [[4, 6, 16, 6, 16, 26, 4]]),
            ("text", [["4", "a", 4, 4, 4, 4]]),
            ("one-of-two", [[4, 6, 16, 6, 16, 26, 4, 26], [1, 2]]),
            ("no-list", "polygon"),
        )
    ),
    *(
        Case(
            19,
            name,
            first(segmentation=value),
            "run-length mask that does not fit its image",
            "error",
            1,
        )
        for name, value in (
            ("size", {"size": [64, 48], "counts": [100, 60, 48 * 64 - 160]}),
            ("sum", {"size": [48, 64], "counts": [100, 60]}),
            ("negative", {"size": [48, 64], "counts": [-10, 60, 48 * 64 - 50]}),
            ("letters", {"size": [48, 64], "counts": "no run lengths"}),
            ("nothing", {"size": [48, 64]}),
        )
    ),
    Case(
        20,
        "empty",
        first(segmentation=[[4.1, 6.1, 4.2, 6.1, 4.2, 6.2]]),
        "mask without a pixel",
        "note",
        1,
    ),
    Case(
        20,
        "empty-rle",
        first(segmentation={"size": [48, 64], "counts": [48 * 64]}),
        "mask without a pixel",
        "note",
        1,
    ),
    Case(
        20,
        "elsewhere",
        first(segmentation=[[40, 6, 52, 6, 52, 26, 40, 26]]),
        "mask that disagrees with its box",
        "note",
        1,
    ),
    Case(
        20,
        "all",
        each(lambda entry: entry.update(segmentation=[[0, 0, 3, 0, 3, 3]])),
        "mask that disagrees with its box",
        "error",
        12,
    ),
    Case(
        20,
        "missing",
        first(segmentation=[]),
        "object without a mask among others with masks",
        "note",
        1,
    ),
    *(
        Case(21, str(area), first(area=area), "object without an area", "note", 1)
        for area in (None, 0, -3, "12", math.nan)
    ),
    Case(22, "crowd", crowd, "crowd among the training objects", "note", 1, "annotation 1000"),
    Case(
        23, "bytes", same_bytes, "image of one split that is also in another", "note", 1, "train1"
    ),
    Case(23, "file", same_file, "image of one split that is also in another", "note", 1, "train0"),
    Case(
        24,
        "class",
        lambda folder: [
            values["categories"].append({"id": 9, "name": "cow"})
            for values in folder.content.values()
        ],
        "class without objects",
        "note",
        2,
        "cow in train",
    ),
    Case(
        24,
        "none",
        lambda folder: folder.train["annotations"].clear(),
        "split without a single object",
        "error",
        1,
        "train",
    ),
    Case(
        24,
        "none-held-out",
        lambda folder: folder.content["val"]["annotations"].clear(),
        "split without a single object",
        "note",
        1,
        "val",
    ),
]


def check(folder: Folder, **options: Any) -> DataReport:
    folder.after = lambda: None
    root = folder.write()
    return check_source(CocoConfig(path=str(root), **options))


@pytest.mark.parametrize("images", [1, 4])
def test_a_sound_set_has_no_problems(coco_folder: Callable[..., Folder], images: int) -> None:
    report = check(coco_folder(images=images))
    assert report.problems == ()
    assert report.objects == {"train": 3 * images, "val": 3 * images}
    head, read_as = str(report).splitlines()
    assert head.endswith("3 classes, no problems")
    assert read_as == "  read as: coco: objects in COCO's format"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_fault_is_found_alone(coco_folder: Callable[..., Folder], case: Case) -> None:
    folder = coco_folder()
    case.damage(folder)
    after = getattr(folder, "after", lambda: None)
    root = folder.write()
    after()
    report = check_source(CocoConfig(path=str(root), leave_out=0))
    (problem,) = report.problems
    assert (problem.kind, problem.severity, problem.count) == (case.kind, case.severity, case.count)
    assert 1 <= len(problem.examples) <= 5
    assert case.example in problem.examples[0]
    assert problem.advice
    assert str(problem) in str(report)


def test_the_documented_numbers_of_coco_are_all_tried() -> None:
    assert {case.number for case in CASES} == set(range(1, 25))


def test_a_crowd_of_polygons_is_noted(coco_folder: Callable[..., Folder]) -> None:
    folder = coco_folder()
    folder.train["annotations"][0]["iscrowd"] = 1
    kinds = {problem.kind: problem.severity for problem in check(folder).problems}
    assert kinds == {
        "crowd among the training objects": "note",
        "crowd without a run-length mask": "note",
    }


def test_few_faulty_objects_are_left_out(coco_folder: Callable[..., Folder]) -> None:
    folder = coco_folder()
    folder.train["annotations"][0]["bbox"] = [4, 6, 0, 20]
    folder.image(3).unlink()
    refused = check(folder)
    assert [problem.severity for problem in refused.problems] == ["error", "error"]
    assert "source.leave_out 0.14" in str(refused)  # 1 of 8 images
    assert check(folder, leave_out=0.05).errors[0].kind == "image file missing"
    report = check(folder, leave_out=0.14)
    assert [problem.severity for problem in report.problems] == ["note", "note"]
    assert all(problem.advice.startswith("left out") for problem in report.problems)
    source = open_source(CocoConfig(path=str(folder.root), leave_out=0.14))
    assert source.info.splits == {"train": 3, "val": 4}
    assert source.sample("train", 0).target["ids"].tolist() == [1001, 1002]


def test_several_faults_make_one_report(coco_folder: Callable[..., Folder]) -> None:
    folder = coco_folder()
    for entry in folder.train["annotations"][:7]:
        entry["category_id"] = 99
    folder.train["annotations"][8]["area"] = 0
    folder.image(1).write_bytes(b"")
    report = check(folder)
    assert [(each.severity, each.count) for each in report.problems] == [
        ("error", 7),
        ("error", 1),
        ("note", 1),
    ]
    lines = str(report).splitlines()
    assert lines[0].endswith("3 classes, 2 errors, 1 note")
    assert lines[2].startswith("  error: object of a class that is not listed: 7 (annotation 1000")
    assert lines[2].count("annotation") == 5
    assert ", …)" in lines[2]
    plain = report.to_dict()
    assert (plain["errors"], plain["notes"]) == (2, 1)
    assert plain["problems"][0]["kind"] == "object of a class that is not listed"
    with pytest.raises(FaultyDataError, match="2 errors, 1 note"):
        report.raise_errors()


def test_depth_decides_what_is_read(coco_folder: Callable[..., Folder]) -> None:
    folder = coco_folder()
    data = folder.image(0).read_bytes()
    folder.image(0).write_bytes(data[: len(data) // 2])  # the header is whole
    config = CocoConfig(path=str(folder.write()))
    assert check_source(config, "headers").problems == ()
    (problem,) = check_source(config, "full").problems
    assert (problem.kind, problem.severity) == ("image that cannot be read", "error")
    folder.image(0).write_bytes(b"")
    assert check_source(config, "none").problems == ()


@pytest.mark.parametrize("swap", [False, True])
def test_boxes_frame_their_pixels_whatever_the_exif_says(
    coco_folder: Callable[..., Folder], swap: bool
) -> None:
    folder = coco_folder()
    x, y, width, height = map(int, folder.train["annotations"][0]["bbox"])
    image = Image.new("RGB", (64, 48))
    image.paste("red", (x, y, x + width, y + height))
    image.save(folder.image(0))
    turned(6, swap)(folder)  # ROTATE_90 before, and 270° by the EXIF
    sample = open_source(CocoConfig(path=str(folder.write()))).sample("train", 0)
    assert sample.image.shape == (3, 48, 64)
    red = sample.image[0] > 128
    x1, y1, x2, y2 = map(int, sample.target["boxes"][0])
    assert red[y1:y2, x1:x2].all()
    assert red.sum() == (y2 - y1) * (x2 - x1)


def test_boxes_are_clipped(coco_folder: Callable[..., Folder]) -> None:
    folder = coco_folder()
    folder.train["annotations"][0] |= {"bbox": [-5, -3, 100, 20], "segmentation": []}
    folder.train["annotations"][1] |= {"bbox": [40.5, 6, 24, 20], "segmentation": []}
    boxes = open_source(CocoConfig(path=str(folder.write()))).sample("train", 0).target["boxes"]
    assert boxes[0].tolist() == [0, 0, 64, 17]
    assert boxes[1].tolist() == [40.5, 6, 64.5, 26]  # rounding, as in COCO itself, is kept


def test_an_area_that_is_missing_is_that_of_the_mask(coco_folder: Callable[..., Folder]) -> None:
    folder = coco_folder()
    folder.train["annotations"][0] |= {"area": 0, "segmentation": [[4, 6, 16, 6, 4, 26]]}
    source = open_source(CocoConfig(path=str(folder.write())))
    area = source.sample("train", 0).target["area"]
    assert 100 < area[0] < 140  # half of the box
    assert area[1] == 13 * 20


def test_masks_are_dropped_where_some_are_missing(coco_folder: Callable[..., Folder]) -> None:
    folder = coco_folder()
    folder.content["val"]["annotations"][4]["segmentation"] = None
    source = open_source(CocoConfig(path=str(folder.write())))
    assert not source.info.has_masks
    assert "segmentation" not in source.sample("train", 0).target


def test_a_source_without_training_images_says_all_that_is_wrong(
    coco_folder: Callable[..., Folder],
) -> None:
    folder = coco_folder()
    root = folder.write()
    (root / "instances_train.json").write_text("{")
    with pytest.raises(FaultyDataError, match="annotation file that is not whole: 1") as caught:
        open_source(CocoConfig(path=str(root)))
    assert caught.value.report.errors


def test_incomplete_annotations_excuse_no_others(coco_folder: Callable[..., Folder]) -> None:
    """Their ids, whatever they are, are not those of images or classes."""
    folder = coco_folder()
    entries = folder.train["annotations"]
    entries[0]["id"] = []
    del entries[1]["category_id"]
    entries[1]["id"] = 9999
    entries[2]["image_id"] = 9999
    report = check_source(CocoConfig(path=str(folder.write())))
    found = {problem.kind: problem for problem in report.problems}
    assert found["annotation of an image that is not listed"].count == 1

"""Pascal VOC folders: what is read, and every kind of fault."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from castling.data import DataError, Problem, VocConfig, check_source, open_source

Box = tuple[object, object, object, object]


def xml(
    name: str,
    objects: Sequence[tuple[str, Box]] = (("cat", (5, 7, 16, 26)), ("dog", (30, 7, 48, 40))),
    *,
    size: tuple[int, int] | None = (64, 48),
    extra: str = "",
    head: str = "",
) -> str:
    """One annotation file; boxes are xmin, ymin, xmax, ymax."""
    parts = [head, "<annotation>", f"<filename>{name}</filename>"]
    if size is not None:
        parts.append(f"<size><width>{size[0]}</width><height>{size[1]}</height></size>")
    for label, box in objects:
        sides = "".join(
            f"<{side}>{value}</{side}>"
            for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        parts.append(f"<object><name>{label}</name>{extra}<bndbox>{sides}</bndbox></object>")
    return "".join([*parts, "</annotation>"])


Make = Callable[..., Path]
Save = Callable[[Path, tuple[int, int], int], None]


@pytest.fixture
def voc_folder(tmp_path: Path, save_noise: Save) -> Make:
    """Four images with a cat and a dog each; lists of splits where asked for."""

    def make(lists: dict[str, str] | None = None, **texts: str) -> Path:
        root = tmp_path / "VOC"
        (root / "Annotations").mkdir(parents=True)
        for index in range(4):
            save_noise(root / "JPEGImages" / f"{index}.png", (64, 48), index)
            text = texts.get(f"a{index}", xml(f"{index}.png"))
            (root / "Annotations" / f"{index}.xml").write_text(text)
        for split, names in (lists or {}).items():
            file = root / "ImageSets" / "Main" / f"{split}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(names.split()) + "\n")
        return root

    return make


def problems(root: Path, **options: object) -> tuple[Problem, ...]:
    return check_source(VocConfig(path=str(root), **options)).problems


def test_splits_by_lists_and_pixels_from_one(voc_folder: Make) -> None:
    root = voc_folder({"train": "0 2 3", "val": "1"})
    (root / "SegmentationObject").mkdir()  # masks of the same names, as VOC has them
    shutil.copy(root / "JPEGImages" / "0.png", root / "SegmentationObject" / "2.png")
    source = open_source(VocConfig(path=str(root)))
    assert source.info.classes == ["cat", "dog"]
    assert source.info.splits == {"train": 3, "val": 1}
    assert (source.info.kind, source.info.has_masks) == ("detection", False)
    sample = source.sample("train", 1)
    assert sample.name.endswith("JPEGImages/2.png")
    # Pixel 1 is the first, and xmax is in the box: 12 columns, 5 to 16.
    assert sample.target["boxes"].tolist() == [[4, 6, 16, 26], [29, 6, 48, 40]]
    assert sample.target["labels"].tolist() == [0, 1]
    assert sample.target["ids"].tolist() == [3, 4]
    assert sample.target["area"].tolist() == [240, 646]
    assert problems(root) == ()


def test_without_lists_folders_of_splits_count(
    voc_folder: Make, tmp_path: Path, save_noise: Save
) -> None:
    assert open_source(VocConfig(path=str(voc_folder()))).info.splits == {"train": 4}
    for split, count in (("train", 3), ("valid", 1), ("test", 2)):
        for index in range(count):
            save_noise(tmp_path / "flat" / split / f"{index}.jpg", (64, 48), index)
            (tmp_path / "flat" / split / f"{index}.xml").write_text(xml(f"{index}.jpg"))
    source = open_source(VocConfig(path=str(tmp_path / "flat")))
    assert source.info.splits == {"train": 3, "val": 1, "test": 2}
    # Images of one name in three folders: each annotation finds that of its own.
    assert source.path("test", 1) == "test/1.jpg"


def test_trainval_trains_without_the_images_of_val(voc_folder: Make) -> None:
    root = voc_folder({"trainval": "0 1 2 3", "val": "1 2"})
    source = open_source(VocConfig(path=str(root)))
    assert [source.path("train", index) for index in range(2)] == [
        "JPEGImages/0.png",
        "JPEGImages/3.png",
    ]


def test_several_years_are_one_set(voc_folder: Make, tmp_path: Path) -> None:
    root = voc_folder({"train": "0 1", "val": "2 3"})
    for year in ("VOC2007", "VOC2012"):
        shutil.copytree(root, tmp_path / "kit" / year)
    source = open_source(VocConfig(path=str(tmp_path / "kit")))
    assert source.info.splits == {"train": 4, "val": 4}
    paths = {source.path("train", index) for index in range(4)}
    assert {path.split("/")[0] for path in paths} == {"VOC2007", "VOC2012"}


def test_difficult_objects_are_excused_or_used(voc_folder: Make) -> None:
    root = voc_folder(a1=xml("1.png", extra="<difficult>1</difficult>"))
    (note,) = problems(root)
    assert (note.kind, note.severity, note.count) == ("object marked difficult", "note", 2)
    ignored = open_source(VocConfig(path=str(root))).sample("train", 1)
    assert ignored.target["iscrowd"].tolist() == [True, True]
    used = open_source(VocConfig(path=str(root), difficult="train")).sample("train", 1)
    assert used.target["iscrowd"].tolist() == [False, False]


def test_the_number_of_the_first_pixel(voc_folder: Make) -> None:
    root = voc_folder(a3=xml("3.png", [("cat", (0, 7, 16, 26))]))
    (note,) = problems(root)
    assert (note.kind, note.count, note.examples) == (
        "files with a coordinate 0",
        1,
        ("Annotations/3.xml",),
    )
    boxes = open_source(VocConfig(path=str(root))).sample("train", 0).target["boxes"]
    assert boxes[0].tolist() == [5, 7, 16, 26]
    assert problems(root, first_pixel=0) == ()
    one = open_source(VocConfig(path=str(root), first_pixel=1)).sample("train", 0)
    assert one.target["boxes"][0].tolist() == [4, 6, 16, 26]


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>'
OBJECT = "object 1 of Annotations/1.xml"
NUMBERS = "box that is not 4 finite numbers"
PARTLY = "box that reaches out of its image"
OUTSIDE = "box wholly outside its image"
NO_SIZE = "image without width and height"
SIZE = "image whose file has another size than stated"
SWAPPED = "box whose max is below its min"
FAULTS = [
    ("cut", xml("1.png")[:-20], "annotation file that is not whole", "error", "Annotations/1.xml"),
    ("other", "<html></html>", "annotation file that is not whole", "error", "begins with <html>"),
    ("bomb", xml("1.png", head=BOMB), "annotation file that declares entities or a document type",
     "error", "Annotations/1.xml"),
    ("no-name", xml("1.png", [("", (5, 7, 16, 26)), ("dog", (5, 7, 16, 26))]),
     "missing or malformed part of the annotation file", "error", OBJECT),
    ("swapped", xml("1.png", [("cat", (16, 7, 5, 26))]), SWAPPED, "error",
     OBJECT),
    ("text", xml("1.png", [("cat", ("left", 7, 5, 26))]), NUMBERS, "error",
     OBJECT),
    ("nan", xml("1.png", [("cat", (math.nan, 7, 5, 26))]), NUMBERS,
     "error", OBJECT),
    ("missing", xml("1.png", [("cat", ("", 7, 5, 26))]), NUMBERS, "error",
     OBJECT),
    ("outside", xml("1.png", [("cat", (70, 7, 90, 26))]), OUTSIDE, "error", OBJECT),
    ("partly", xml("1.png", [("cat", (50, 7, 90, 26))]), PARTLY, "note",
     OBJECT),
    ("fractions", xml("1.png", [("cat", (5.5, 7.25, 16.0, 26.5))]), "box in fractions of pixels",
     "note", OBJECT),
    ("other-name", xml("9.png"), "annotation that names another image file", "note",
     "Annotations/1.xml: 9.png"),
    ("no-size", xml("1.png", size=None), NO_SIZE, "note",
     "Annotations/1.xml"),
    ("size", xml("1.png", size=(640, 480)), SIZE, "error",
     "stated 640×480, is 64×48"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kind", "severity", "example"),
    [case[1:] for case in FAULTS],
    ids=[case[0] for case in FAULTS],
)
def test_each_fault_is_found_alone(
    voc_folder: Make, text: str, kind: str, severity: str, example: str
) -> None:
    root = voc_folder(a1=text)
    (problem,) = problems(root, leave_out=0)
    assert (problem.kind, problem.severity, problem.count) == (kind, severity, 1)
    assert example in problem.examples[0]


def test_normalised_boxes(voc_folder: Make) -> None:
    shares = {f"a{i}": xml(f"{i}.png", [("cat", (0.1, 0.1, 0.5, 0.75))]) for i in range(4)}
    kinds = {each.kind: each.severity for each in problems(voc_folder(**shares))}
    assert kinds["box that seems to be a share of the image's sides"] == "error"


def test_images_and_annotations_without_one_another(voc_folder: Make, save_noise: Save) -> None:
    root = voc_folder()
    (root / "JPEGImages" / "2.png").unlink()
    save_noise(root / "JPEGImages" / "spare.png", (64, 48), 9)
    found = {each.kind: (each.severity, each.count) for each in problems(root, leave_out=0)}
    assert found == {
        "image file missing": ("error", 1),
        "image without an annotation file": ("note", 1),
    }


def test_lists_and_annotations_without_one_another(voc_folder: Make) -> None:
    root = voc_folder({"train": "0 1 lost", "val": "2"})
    found = {each.kind: each.examples for each in problems(root, leave_out=0)}
    assert found == {
        "image without an annotation file": ("lost of ImageSets/Main/train.txt",),
        "annotation file that no list of a split names": ("Annotations/3.xml",),
    }


def test_an_image_without_objects(voc_folder: Make) -> None:
    target = (
        open_source(VocConfig(path=str(voc_folder(a0=xml("0.png", []))))).sample("train", 0).target
    )
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].dtype == torch.int64


def test_an_image_named_by_its_annotation_alone(voc_folder: Make) -> None:
    root = voc_folder(a1=xml("photo.png"))
    (root / "JPEGImages" / "1.png").rename(root / "JPEGImages" / "photo.png")
    assert problems(root) == ()
    assert open_source(VocConfig(path=str(root))).path("train", 1) == "JPEGImages/photo.png"


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no Pascal VOC annotation files .* put them into"):
        open_source(VocConfig(path=str(tmp_path)))

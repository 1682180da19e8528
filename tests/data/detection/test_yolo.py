"""YOLO folders: what is read, and every kind of fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as reference

from castling.data import DataError, Problem, YoloConfig, check_source, open_source
from castling.data.detection.masks import decode_masks

Make = Callable[..., Path]
Save = Callable[[Path, tuple[int, int], int], None]
ROWS = "0 0.25 0.5 0.125 0.25\n2 0.75 0.5 0.25 0.5\n1 0.5 0.25 0.1 0.1\n"
NAMES = "names: [cat, dog, hen]\ntrain: images/train\nval: images/val\n"


@pytest.fixture
def yolo_folder(tmp_path: Path, save_noise: Save) -> Make:
    """Three training images and one for validation, 64×48, of cats, dogs and hens."""

    def make(settings: str | None = NAMES, inside: bool = False, **texts: str | None) -> Path:
        root = tmp_path / "yolo"
        for split, count in (("train", 3), ("val", 1)):
            kinds = [
                f"{split}/{kind}" if inside else f"{kind}/{split}" for kind in ("images", "labels")
            ]
            for index in range(count):
                save_noise(root / kinds[0] / f"{split}{index}.png", (64, 48), index + 10 * count)
                text = texts.get(f"{split}{index}", ROWS)
                if text is not None:
                    (root / kinds[1]).mkdir(parents=True, exist_ok=True)
                    (root / kinds[1] / f"{split}{index}.txt").write_text(text)
        if settings is not None:
            (root / "data.yaml").write_text(settings)
        return root

    return make


def problems(root: Path, **options: object) -> tuple[Problem, ...]:
    return check_source(YoloConfig(path=str(root), **options)).problems


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        NAMES,
        "names: {0: cat, 1: dog, 2: hen}\npath: /else\ntrain: images/train\nval: images/val",
        "names: [cat, dog, hen]\ntrain: ../train/images\nval: ../val/images\nnc: 3",
        "names: [cat, dog, hen]",
    ],
)
def test_boxes_in_pixels(yolo_folder: Make, inside: bool, settings: str) -> None:
    root = yolo_folder(settings, inside)
    source = open_source(YoloConfig(path=str(root)))
    assert source.info.classes == ["cat", "dog", "hen"]
    assert source.info.splits == {"train": 3, "val": 1}
    sample = source.sample("train", 1)
    assert sample.name.endswith("train1.png")
    assert sample.target["boxes"][:2].tolist() == [[12, 18, 20, 30], [40, 12, 56, 36]]
    assert sample.target["labels"].tolist() == [0, 2, 1]
    assert sample.target["area"][:2].tolist() == [96, 384]
    assert source.size("train", 1) == (48, 64)
    assert problems(root) == ()
    by_file = open_source(YoloConfig(path=str(root / "data.yaml")))
    assert by_file.info.splits == source.info.splits


def test_polygons_are_masks(yolo_folder: Make) -> None:
    text = "1 0.25 0.25 0.75 0.25 0.75 0.75\n"
    root = yolo_folder(**dict.fromkeys(("train0", "train1", "train2", "val0"), text))
    source = open_source(YoloConfig(path=str(root)))
    assert source.info.has_masks
    target = source.sample("val", 0).target
    assert target["boxes"].tolist() == [[16, 12, 48, 36]]
    theirs = reference.frPyObjects([[16, 12, 48, 12, 48, 36]], 48, 64)
    assert np.array_equal(decode_masks(target["segmentation"])[0], reference.decode(theirs)[..., 0])
    assert target["area"].tolist() == [float(reference.area(theirs)[0])]


def test_classes_without_a_list_are_called_by_number(yolo_folder: Make) -> None:
    source = open_source(YoloConfig(path=str(yolo_folder(settings=None))))
    assert source.info.classes == ["0", "1", "2"]
    assert any("called by number" in note for note in source.info.notes)


def test_classes_txt(yolo_folder: Make) -> None:
    root = yolo_folder(settings=None)
    (root / "labels" / "classes.txt").write_text("cat\ndog\nhen\n")
    assert open_source(YoloConfig(path=str(root))).info.classes == ["cat", "dog", "hen"]
    assert problems(root) == ()


def test_lists_of_images(yolo_folder: Make) -> None:
    root = yolo_folder("names: [cat, dog, hen]\ntrain: train.txt\nval: val.txt\n")
    (root / "train.txt").write_text("./images/train/train0.png\nimages/train/train2.png\n")
    (root / "val.txt").write_text("/data/images/train/train1.png\nlost.png\n")
    source = open_source(YoloConfig(path=str(root), leave_out=1))
    assert [source.path("train", index) for index in range(2)] == [
        "images/train/train0.png",
        "images/train/train2.png",
    ]


def test_an_image_without_a_label_file_is_background(yolo_folder: Make) -> None:
    root = yolo_folder(train1=None, train2="")
    (note,) = problems(root)
    assert (note.kind, note.severity, note.count) == ("image without a label file", "note", 1)
    source = open_source(YoloConfig(path=str(root)))
    assert [len(source.sample("train", index).target["labels"]) for index in range(3)] == [3, 0, 0]


LINE = "line 1 of labels/train/train1.txt"
FAULTS = [
    ("text", "cat 0.5 0.5 0.1 0.1\n", "box that is not 4 finite numbers", "error"),
    ("four", "0 0.5 0.5 0.1\n", "box that is not 4 finite numbers", "error"),
    ("six", "0 0.5 0.5 0.1 0.1 0.9\n", "box that is not 4 finite numbers", "error"),
    ("nan", "0 0.5 nan 0.1 0.1\n", "box that is not 4 finite numbers", "error"),
    ("class", "3 0.5 0.5 0.1 0.1\n", "object of a class that is not listed", "error"),
    ("fraction", "0.5 0.5 0.5 0.1 0.1\n", "object of a class that is not listed", "error"),
    ("negative", "-1 0.5 0.5 0.1 0.1\n", "object of a class that is not listed", "error"),
    ("flat", "0 0.5 0.5 0 0.1\n", "box with width or height 0 or below", "error"),
    ("outside", "0 1.4 0.5 0.1 0.1\n", "box wholly outside its image", "error"),
    ("partly", "0 0.95 0.5 0.2 0.1\n", "box that reaches out of its image", "note"),
    ("polygon", "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4\n", "polygon of fewer than 6 or an odd number of "
     "numbers", "error"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kind", "severity"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS]
)
def test_each_fault_is_found_alone(yolo_folder: Make, text: str, kind: str, severity: str) -> None:
    (problem,) = problems(yolo_folder(train1=text + ROWS), leave_out=0)
    assert (problem.kind, problem.severity, problem.count) == (kind, severity, 1)
    assert problem.examples[0].startswith(LINE)


def test_a_line_twice_is_left_out(yolo_folder: Make) -> None:
    root = yolo_folder(train1=ROWS + ROWS.splitlines()[0])
    (note,) = problems(root)
    assert (note.kind, note.severity, note.count) == ("object listed twice", "note", 1)
    assert len(open_source(YoloConfig(path=str(root))).sample("train", 1).target["labels"]) == 3


def test_pixels_in_place_of_shares(yolo_folder: Make) -> None:
    text = "0 30 20 10 12\n1 20 20 9 9\n2 8 8 5 6\n"
    root = yolo_folder(**dict.fromkeys(("train0", "train1", "train2"), text))
    (problem,) = problems(root)
    assert (problem.kind, problem.severity) == ("box that seems to be in pixels", "error")


def test_a_label_file_without_an_image(yolo_folder: Make) -> None:
    root = yolo_folder()
    (root / "labels" / "train" / "lost.txt").write_text(ROWS)
    (problem,) = problems(root, leave_out=0)
    assert problem.kind == "annotation of an image that is not listed"
    assert problem.examples == ("labels/train/lost.txt",)


@pytest.mark.parametrize(
    "settings", ["names: 7\ntrain: a", "names: {1: a}\ntrain: a", "names: [a\n"]
)
def test_names_that_cannot_be_read(yolo_folder: Make, settings: str) -> None:
    (problem,) = problems(yolo_folder(settings))
    assert (problem.kind, problem.severity) == ("class names that cannot be read", "error")


def test_names_twice(yolo_folder: Make) -> None:
    (problem,) = problems(
        yolo_folder("names: [cat, cat, hen]\ntrain: images/train\nval: images/val")
    )
    assert (problem.kind, problem.severity) == ("category id or name used twice", "error")


def test_a_huge_class_number_takes_no_memory(yolo_folder: Make) -> None:
    root = yolo_folder(settings=None, train1="1000000000000 0.5 0.5 0.1 0.1\n")
    kinds = [each.kind for each in problems(root)]
    assert "object of a class that is not listed" in kinds


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no YOLO labels in"):
        open_source(YoloConfig(path=str(tmp_path)))


def test_classes_that_nobody_names_are_told(yolo_folder: Make) -> None:
    (remark,) = problems(yolo_folder(None))
    assert remark.severity == "note"
    assert "no data.yaml or classes.txt names the classes" in str(remark)

"""What was written in each layout comes back, from a folder and from a zip file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.segmentation.made import (
    CLASSES,
    COLOURS,
    SIZE,
    labels,
    noise,
    pack,
    save_colours,
    save_numbers,
    save_palette,
)
from torchvision import tv_tensors

from castling.data import (
    DataError,
    FileSource,
    MasksConfig,
    Source,
    SourceConfig,
    check_source,
    open_source,
    source_from,
    split_shorthand,
)
from castling.data.segmentation.counts import pixel_counts
from castling.data.segmentation.read_ade20k import ADE20K_CLASSES
from castling.data.segmentation.read_cityscapes import CITYSCAPES_CLASSES
from castling.data.segmentation.read_voc_masks import VOC_CLASSES, voc_colour

Make = Callable[..., Path]


def both(root: Path, name: str) -> list[Source]:
    """The source of a folder, and of a zip file with its files; both are known without being told.

    Neither has faults.
    """
    found = []
    for path in (root, pack(root)):
        config = split_shorthand(str(path))
        assert config.name == name
        report = check_source(config)
        assert report.problems == (), str(report)
        assert report.read_as.startswith(f"{name}: ")
        found.append(open_source(config))
    return found


def expect(source: Source, counts: dict[str, int], seeds: tuple[int, int] = (0, 100)) -> None:
    """Whether masks of all splits are those that were written."""
    assert source.info.kind == "segmentation"
    assert source.info.splits == counts
    assert isinstance(source, FileSource)
    total = np.zeros(256, dtype=np.int64)
    for (split, count), first in zip(counts.items(), seeds, strict=False):
        assert source.labels(split) is None
        for index in range(count):
            sample = source.sample(split, index)
            mask = sample.target["mask"]
            assert isinstance(mask, tv_tensors.Mask)
            assert mask.dtype == torch.uint8
            assert mask.numpy().tolist() == labels(first + index).tolist()
            assert sample.original_size == source.size(split, index) == SIZE[::-1]
            assert sample.image.shape == (3, *SIZE[::-1])
            if split == "train":
                total += np.bincount(labels(first + index).flatten(), minlength=256)
    classes = len(source.info.classes)
    assert pixel_counts(source, "train").tolist() == total[:classes].tolist()
    one = np.bincount(labels(seeds[0] + 1).flatten(), minlength=256)[:classes]
    assert pixel_counts(source, "train", [1]).tolist() == one.tolist()


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{split}/{i}.jpg", "masks/{split}/{i}.png"),
        ("{split}/images/{i}.jpg", "{split}/masks/{i}.png"),
        ("deep/images/{split}/a/{i}.png", "deep/annotations/{split}/a/{i}_mask.png"),
        ("{split}/{i}.png", "{split}_labels/{i}_L.png"),
        ("{split}/{i}.jpg", "{split}annot/{i}.png"),
        ("{split}/{i}.jpg", "{split}/{i}_mask.png"),
        ("img/{split}/{i}_leftImg8bit.png", "gt/{split}/{i}_gtFine_labelIds.png"),
        ("{split}2017/images/{i}.jpg", "{split}2017/labels/{i}.bmp"),
    ],
)
def test_folders_of_masks(masked: Make, images: str, masks: str) -> None:
    for source in both(masked(images, masks), "masks"):
        expect(source, {"train": 3, "val": 2})
        assert source.info.classes == list(CLASSES)


def test_names_that_nearly_agree(masked: Make, tmp_path: Path) -> None:
    """Images beside a folder of masks; an image of the mask's own name comes before a like one."""
    root = masked("{split}{i}.png", "masks/{split}{i}.png", counts=(3, 0))
    noise(root / "train1_img.png", 7)
    save_numbers(root / "masks" / "train1_img_mask.png", labels(3))
    for path in (root, pack(root)):
        source = open_source(split_shorthand(str(path)))
        names = [Path(source.name("train", index)).name for index in range(4)]
        assert names == ["train0.png", "train1.png", "train1_img.png", "train2.png"]
        for index, seed in enumerate((0, 1, 3, 2)):
            found = source.sample("train", index).target["mask"]
            assert found.tolist() == labels(seed).tolist()
    assert check_source(split_shorthand(str(root))).problems == ()


def test_a_photograph_in_place_of_a_mask(masked: Make) -> None:
    root = masked(save=save_colours)
    noise(root / "images" / "train" / "train0.png", 0, (100, 90))
    noise(root / "masks" / "train" / "train0.png", 8, (100, 90))
    table = {",".join(map(str, colour)): name for name, colour in zip("abc", COLOURS, strict=True)}
    report = check_source(MasksConfig(path=str(root), colours={**table, "9,9,9": "void"}))
    assert [each.count for each in report.problems] == [1]
    assert report.errors[0].kind.startswith("mask with a colour that is not in")


def test_named_folders(masked: Make) -> None:
    root = masked("photos {split}/{i}.jpg", "painted/{split}/{i}.png")
    options = {"path": str(root), "images": "photos {split}", "masks": "painted/{split}"}
    expect(open_source(MasksConfig(**options)), {"train": 3, "val": 2})
    with pytest.raises(DataError, match=r"data.source.masks: there are no images in .*nothing"):
        open_source(MasksConfig(**{**options, "masks": "nothing"}))
    with pytest.raises(ValueError, match="name both"):
        MasksConfig(path=str(root), images="x")
    with pytest.raises(DataError, match=r"no images with masks in .* 10 images and 0 masks"):
        open_source(MasksConfig(path=str(root)))


def test_classes_are_numbered_where_nothing_names_them(masked: Make) -> None:
    root = masked(named=False)
    for source in both(root, "masks"):
        assert source.info.classes == ["class 0", "class 1", "class 2"]
        expect(source, {"train": 3, "val": 2})
    reduced = open_source(MasksConfig(path=str(root), reduce_zero_label=True))
    assert reduced.info.classes == ["class 1", "class 2"]
    for index in range(3):
        wanted = labels(index).astype(np.int64) - 1
        wanted[(wanted == -1) | (wanted == 254)] = 255
        assert reduced.sample("train", index).target["mask"].tolist() == wanted.tolist()
    ignoring = open_source(MasksConfig(path=str(root), classes=("a", "b"), ignore=(2,)))
    wanted = np.where(labels(0) == 2, 255, labels(0))
    assert ignoring.sample("train", 0).target["mask"].tolist() == wanted.tolist()
    assert check_source(MasksConfig(path=str(root), classes=("a", "b"), ignore=(2,))).problems == ()


def test_palettes_give_colours(masked: Make) -> None:
    for source in both(masked(save=save_palette), "masks"):
        expect(source, {"train": 3, "val": 2})
        assert source.info.colours == COLOURS


@pytest.mark.parametrize("save", [save_colours, save_palette, save_numbers])
def test_colours_by_a_table(masked: Make, save: Callable[..., None]) -> None:
    """The same labels, whichever way masks are stored."""
    root = masked(save=save, named=False)
    rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in zip(CLASSES, COLOURS, strict=True)]
    text = "\n".join(["name,r,g,b", *rows] + (["Void,9,9,9"] if save is save_colours else []))
    (root / "class_dict.csv").write_text(text)
    for source in both(root, "masks"):
        expect(source, {"train": 3, "val": 2})
        assert source.info.classes == list(CLASSES)
        assert source.info.colours == COLOURS


def test_colours_by_an_option_count_before_numbers(masked: Make) -> None:
    root = masked(save=save_palette, named=False)
    table = {"255,0,0": "car", "#0000ff": "sky", "7,7,7": "void", "128, 64, 128": "road"}
    source = open_source(MasksConfig(path=str(root), colours=table))
    assert source.info.classes == ["car", "sky", "road"]
    moved = np.full(256, 255)
    moved[:3] = 1, 2, 0  # sky, road and car in the file
    assert source.sample("train", 0).target["mask"].tolist() == moved[labels(0)].tolist()
    assert source.info.colours == ((255, 0, 0), (0, 0, 255), (128, 64, 128))
    named = open_source(MasksConfig(path=str(root), colours=table, classes=CLASSES))
    expect(named, {"train": 3, "val": 2})
    for bad, message in (
        ({"1,2": "a"}, "'1,2' is no colour"),
        ({"1,2,300": "a"}, "is no colour"),
        ({"0,0,0": "a", "#000000": "b"}, "has the colour #000000 twice"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(MasksConfig(path=str(root), colours=bad))
    with pytest.raises(ValueError, match="names boat, which is not among"):
        open_source(MasksConfig(path=str(root), colours={"0,0,0": "boat"}, classes=("a",)))
    with pytest.raises(ValueError, match="call a colour of no class void"):
        MasksConfig(path=str(root), colours=table, ignore=(3,))
    with pytest.raises(ValueError, match="quotes around the colour"):
        MasksConfig(path=str(root), colours={"1,2,3": 4})


def test_black_and_white_masks_by_their_greys(masked: Make) -> None:
    """Tools write 255 for the object; 255 is a label of no class."""

    def save(path: Path, mask: np.ndarray) -> None:
        save_numbers(path, np.where(mask == 1, 255, 0).astype(np.uint8))

    root = masked(save=save, named=False)
    table = {"0,0,0": "background", "255,255,255": "object"}
    config = MasksConfig(path=str(root), colours=table)
    assert check_source(config).problems == ()
    found = open_source(config).sample("train", 1).target["mask"].tolist()
    assert found == (labels(1) == 1).astype(int).tolist()
    (problem,) = check_source(MasksConfig(path=str(root))).errors
    assert problem.kind == "masks that hold 0 and 255 alone"
    (root / "class_dict.csv").write_text("name,r,g,b\nground,0,0,0\nobject,255,255,255\n")
    assert check_source(MasksConfig(path=str(root))).problems == ()
    assert open_source(MasksConfig(path=str(root))).sample("val", 0).target["mask"].max() == 1


def test_splits_without_masks_and_lone_splits(masked: Make) -> None:
    root = masked()
    noise(root / "images" / "test" / "1.png", 5)
    report = check_source(source_from(str(root)))
    assert report.errors == ()
    assert report.images == {"train": 3, "val": 2}
    assert "the 1 test images have no masks" in str(report)
    for kind in ("images", "masks"):
        for file in (root / kind / "train").iterdir():
            file.unlink()
    source = open_source(MasksConfig(path=str(root)))
    expect(source, {"train": 2}, (100, 0))
    assert "there is a val split only" in source.info.notes[-1]


def test_ade20k(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for number, (split, word) in enumerate((("training", "train"), ("validation", "val"))):
        for i in range(2):
            name = f"ADE_{word}_{i:08d}"
            noise(root / "images" / split / f"{name}.jpg", number * 100 + i)
            mask = labels(number * 100 + i)
            mask[1:, 5] = np.arange(11) * 14  # up to class 140
            stored = np.where(mask == 255, 0, mask + 1).astype(np.uint8)
            save_numbers(root / "annotations" / split / f"{name}.png", stored)
    assert split_shorthand(str(root)).name == split_shorthand(str(pack(root))).name == "ade20k"
    source = open_source(split_shorthand(str(root)))
    assert source.info.classes == list(ADE20K_CLASSES)
    assert len(ADE20K_CLASSES) == len({*ADE20K_CLASSES}) == 150
    assert [ADE20K_CLASSES[i] for i in (0, 12, 20, 149)] == ["wall", "person", "car", "flag"]
    wanted = labels(1)
    wanted[1:, 5] = np.arange(11) * 14
    assert source.sample("train", 1).target["mask"].tolist() == wanted.tolist()
    report = check_source(split_shorthand(str(root)))
    assert [each.kind for each in report.problems] == ["class without a pixel in training"]
    rows = [f"{i + 1}\t0.1\t10\t1\t0\tclass {i // 2}, other {i}" for i in range(150)]
    (root / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n" + "\n".join(rows)
    )
    assert open_source(split_shorthand(str(root))).info.classes[7] == "class 3, other 7"
    (root / "objectInfo150.txt").write_text("2\t0.1\t10\t1\t0\ta")
    assert (
        check_source(split_shorthand(str(root))).errors[0].kind.startswith("annotation file that")
    )


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "city"
    ids = np.full(256, 3, dtype=np.uint8)  # out of the region of interest
    ids[:19] = range(19) if kind == "labelTrainIds" else [own for _, own, _ in CITYSCAPES_CLASSES]
    if kind == "labelTrainIds":
        ids[255] = 255
    every = np.arange(19 * 12, dtype=np.uint8).reshape(12, 19) % 19
    every[0, 3:5] = 255
    for number, split in enumerate(("train", "val", "test")):
        for i in range(2):
            stem = f"{split}/berlin/berlin_{i:06d}_000019"
            noise(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", 10 * number + i, (19, 12))
            save_numbers(root / "gtFine" / f"{stem}_gtFine_{kind}.png", ids[every])
            save_colours(root / "gtFine" / f"{stem}_gtFine_color.png", every % 3)
    for path in (root, pack(root)):
        config = split_shorthand(str(path))
        assert config.name == "cityscapes"
        report = check_source(config)
        assert report.errors == ()
        assert [each.kind for each in report.notes] == ["remark"]  # the test images
        source = open_source(config)
        assert source.info.splits == {"train": 2, "val": 2}
        assert source.info.classes[13] == "car"
        assert source.info.colours[13] == (0, 0, 142)
        assert source.sample("val", 1).target["mask"].tolist() == every.tolist()


def panoptic(root: Path, images: int = 2) -> dict[str, dict]:
    """Masks whose segments have ids of all three bytes; class ids have gaps."""
    random = np.random.default_rng(0)
    content = {}
    for number, split in enumerate(("train2017", "val2017")):
        listed, annotations = [], []
        for i in range(images):
            name = f"{number}{i:011d}"
            noise(root / split / f"{name}.jpg", 100 * number + i)
            mask = labels(100 * number + i)
            ids = random.integers(1, 1 << 24, 3) if number else np.array([7, 1 << 9, 1 << 20])
            table = np.zeros(256, dtype=np.int64)
            table[:3] = ids
            codes = table[mask]
            rgb = np.stack([codes & 255, codes >> 8 & 255, codes >> 16], -1).astype(np.uint8)
            path = root / "annotations" / f"panoptic_{split}" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(path)
            listed.append({"id": i, "file_name": f"{name}.jpg", "width": 20, "height": 12})
            segments = [
                {"id": int(one), "category_id": own, "iscrowd": 0}
                for one, own in zip(ids, (5, 90, 92), strict=True)
            ]
            annotations.append(
                {"image_id": i, "file_name": f"{name}.png", "segments_info": segments}
            )
        content[split] = {
            "images": listed,
            "annotations": annotations,
            "categories": [
                {"id": own, "name": name, "isthing": 0, "color": list(colour)}
                for own, name, colour in zip((5, 90, 92), CLASSES, COLOURS, strict=True)
            ],
        }
        (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content[split]))
    return content


def test_panoptic(tmp_path: Path) -> None:
    panoptic(tmp_path / "coco")
    for source in both(tmp_path / "coco", "panoptic"):
        expect(source, {"train": 2, "val": 2})
        assert source.info.classes == list(CLASSES)
        assert source.info.colours == COLOURS


def test_panoptic_faults(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    file = root / "annotations" / "panoptic_train2017.json"

    def kinds(change: Callable[[dict], object]) -> list[str]:
        values = panoptic(root)["train2017"]
        change(values)
        file.write_text(json.dumps(values))
        return [each.kind for each in check_source(split_shorthand(str(root))).problems]

    assert kinds(lambda values: None) == []
    segments = lambda values: values["annotations"][0]["segments_info"]  # noqa: E731
    assert kinds(lambda v: segments(v).pop()) == [
        "mask with a segment that its annotation does not list"
    ]
    assert kinds(lambda v: segments(v)[0].update(id="x"))[0].startswith("missing or malformed part")
    assert kinds(lambda v: segments(v)[0].update(category_id=4))[0] == (
        "segment of a class that is not listed"
    )
    assert kinds(lambda v: v["annotations"].pop()) == ["image without a mask"]
    assert kinds(lambda v: v["images"][0].update(file_name="x.jpg")) == ["mask without an image"]
    assert kinds(lambda v: v["categories"].append(v["categories"][0])) == [
        "category id or name used twice"
    ]
    assert kinds(lambda v: v.pop("categories"))[0].startswith("missing or malformed part")
    file.write_text("{")
    report = check_source(split_shorthand(str(root)))
    assert report.errors[0].kind == "annotation file that is not whole"


@pytest.mark.parametrize("lists", [True, False])
def test_voc_masks(tmp_path: Path, lists: bool) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    palette = tuple(map(voc_colour, range(256)))
    assert palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert palette[15] == (192, 128, 128)
    assert palette[255] == (224, 224, 192)
    for number, split in enumerate(("train", "val")):
        names = []
        for i in range(3):
            names.append(f"{split}_{i:06d}")
            noise(root / "JPEGImages" / f"{names[-1]}.jpg", 100 * number + i)
            mask = labels(100 * number + i)
            mask[1, :18] = np.arange(18) + 3  # every class is there
            save_palette(root / "SegmentationClass" / f"{names[-1]}.png", mask, palette)
        if lists:
            file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(names) + "\n")
    for source in both(tmp_path / "VOCdevkit", "voc_masks"):
        assert source.info.classes == list(VOC_CLASSES)
        assert source.info.colours == palette[:21]
        assert source.info.splits == ({"train": 3, "val": 3} if lists else {"train": 6})
        wanted = labels(1)
        wanted[1, :18] = np.arange(18) + 3
        assert source.sample("train", 1).target["mask"].tolist() == wanted.tolist()
    if lists:
        (root / "SegmentationClass" / "val_000001.png").unlink()
        report = check_source(split_shorthand(str(tmp_path / "VOCdevkit")))
        assert [each.kind for each in report.problems] == ["name in a list without a mask"]
        (root / "SegmentationClass" / "val_000000.png").rename(
            root / "SegmentationClass" / "val_000001.png"
        )
        (root / "ImageSets" / "Segmentation" / "val.txt").write_text("val_000001\nval_000002\n")
        (root / "ImageSets" / "Segmentation" / "test.txt").write_text("a\nb\n")
        report = check_source(split_shorthand(str(tmp_path / "VOCdevkit")))
        assert [each.kind for each in report.problems] == [
            "list of a split of which nothing is annotated"
        ]


def test_masks_of_cvat(tmp_path: Path) -> None:
    """VOC's layout with masks of colours and a table of its own."""
    root = tmp_path / "export"
    for i in range(3):
        noise(root / "JPEGImages" / f"{i}.jpg", i)
        save_colours(root / "SegmentationClass" / f"{i}.png", labels(i))
    rows = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(CLASSES, COLOURS, strict=True)]
    text = "\n".join(["# label:color_rgb:parts:actions", "void:9,9,9::", *rows])
    (root / "labelmap.txt").write_text(text)
    for source in both(root, "voc_masks"):
        expect(source, {"train": 3})
        assert source.info.colours == COLOURS


def test_other_layouts_stay_what_they_are(tmp_path: Path) -> None:
    """Folders of classes that are called like masks, and unlabelled images beside nothing."""
    for label in ("mask", "no_mask"):
        for i in range(2):
            noise(tmp_path / "faces" / "train" / label / f"{i}.jpg", i)
            noise(tmp_path / "faces" / "val" / label / f"{i}.jpg", 9 + i)
    config: SourceConfig = split_shorthand(str(tmp_path / "faces"))
    assert config.name == "folder"
    assert open_source(config).info.classes == ["mask", "no_mask"]
    for label in ("with", "without"):
        for i in range(3):
            noise(tmp_path / "people" / label / f"{i}{'_mask' * (label == 'with')}.jpg", i)
    assert split_shorthand(str(tmp_path / "people")).name == "folder"
    report = check_source(config)
    assert str(report).splitlines()[1] == "  read as: folder: a folder of images for each class"
    assert report.to_dict()["read_as"] == "folder: a folder of images for each class"


def test_a_large_folder_is_not_read_whole(tmp_path: Path) -> None:
    """Of images and masks in one folder, those that are looked at need not be pairs."""
    for i in range(400):
        for name in (f"{i}.jpg", f"{i}_mask.png"):
            (tmp_path / "set" / "train").mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / "train" / name).write_text("")
    assert split_shorthand(str(tmp_path / "set")).name == "masks"

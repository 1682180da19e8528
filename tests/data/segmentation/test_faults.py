"""Each fault of masks, made alone in a sound folder, is found alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.segmentation.made import (
    COLOURS,
    labels,
    noise,
    save_colours,
    save_numbers,
    save_palette,
)

from castling.data import (
    DataConfig,
    DataModule,
    FaultyDataError,
    MasksConfig,
    check_source,
    open_source,
)
from castling.data.sources.masks import MasksSource
from castling.data.transforms.classification import (
    ClassificationEvalTransform,
    ClassificationTransformConfig,
)

Make = Callable[..., Path]
Damage = Callable[[Path, Path], object]


def _resave(mask: Path, mode: str) -> None:
    with Image.open(mask) as image:
        image.convert(mode).save(mask)


def _jpeg(image: Path, mask: Path) -> None:
    with Image.open(mask) as shown:
        shown.save(mask.with_suffix(".jpg"))
    mask.unlink()


def _wide(image: Path, mask: Path) -> None:
    numbers = labels(1).astype(np.uint16)
    numbers[3, 3] = 26001
    Image.fromarray(numbers).save(mask)


def _value(image: Path, mask: Path) -> None:
    numbers = labels(1)
    numbers[3, 3:5] = 77
    save_numbers(mask, numbers)


def _ignored(image: Path, mask: Path) -> None:
    save_numbers(mask, np.full((12, 20), 255, dtype=np.uint8))


def _alpha(image: Path, mask: Path) -> None:
    numbers = Image.fromarray(labels(1))
    opacity = Image.new("L", numbers.size, 255)
    opacity.putpixel((4, 4), 0)
    Image.merge("LA", (numbers, opacity)).save(mask)


def _rotated(image: Path, mask: Path) -> None:
    with Image.open(image) as shown:
        exif = shown.getexif()
        exif[0x0112] = 6
        shown.save(image, exif=exif)


def _overlap(image: Path, mask: Path) -> None:
    shutil.copy(image, image.parents[1] / "val" / "val0.png")


def _resized(image: Path, mask: Path) -> None:
    noise(image, 50, (21, 12))


FAULTS: list[tuple[str, str, Damage, str]] = [
    ("other_size", "mask of another size than its image", _resized, "20×12 for an image of 21×12"),
    ("lossy", "mask in a format that changes pixels (JPEG)", _jpeg, "train1.jpg"),
    (
        "rgb",
        "mask of colours without a table",
        lambda i, m: _resave(m, "RGB"),
        "train1.png: 0,0,0 (",
    ),
    (
        "rgba",
        "mask of colours without a table",
        lambda i, m: _resave(m, "RGBA"),
        "train1.png: 0,0,0 (",
    ),
    ("alpha", "mask with transparent pixels", _alpha, "train1.png"),
    ("wide", "mask of 16 bits with numbers above 255", _wide, "train1.png: 26001 (1 pixels)"),
    ("value", "mask with a number that is no class", _value, "train1.png: 77 (2 pixels)"),
    ("no_mask", "image without a mask", lambda i, m: m.unlink(), "images/train/train1.png"),
    ("no_image", "mask without an image", lambda i, m: i.unlink(), "masks/train/train1.png"),
    ("empty", "mask that cannot be read", lambda i, m: m.write_bytes(b""), "is empty (0 bytes)"),
    ("bad mask", "mask that cannot be read", lambda i, m: m.write_text("x"), "not an image"),
    ("bad image", "image that cannot be read", lambda i, m: i.write_bytes(b""), "0 bytes"),
    ("ignored", "mask without a pixel of any class", _ignored, "train1.png"),
    (
        "two images",
        "two images that one mask would belong to",
        lambda i, m: noise(i.with_suffix(".jpg"), 8),
        "train1.jpg",
    ),
]
NOTES: list[tuple[str, str, Damage, str]] = [
    ("rotated", "image that its EXIF rotates or mirrors", _rotated, "images/train/train1.png"),
    ("overlap", "image of one split that is also in another", _overlap, "train1.png of train"),
    ("opaque", "mask with an alpha channel", lambda i, m: _resave(m, "LA"), "train1.png"),
    (
        "second",
        "further mask of an image that has one",
        lambda i, m: shutil.copy(m, m.with_name("train1_mask.png")),
        "train1_mask.png",
    ),
    (
        "absent",
        "class without a pixel in training",
        lambda i, m: (m.parents[2] / "classes.txt").write_text("sky\nroad\ncar\nboat"),
        "boat",
    ),
]


@pytest.mark.parametrize(
    ("kind", "damage", "place"), [e[1:] for e in FAULTS], ids=[e[0] for e in FAULTS]
)
def test_errors(masked: Make, kind: str, damage: Damage, place: str) -> None:
    root = masked()
    assert check_source(MasksConfig(path=str(root))).problems == ()
    damage(root / "images" / "train" / "train1.png", root / "masks" / "train" / "train1.png")
    report = check_source(MasksConfig(path=str(root)))
    (problem,) = report.problems
    assert problem.kind.startswith(kind)
    assert (problem.severity, problem.count) == ("error", 1)
    assert place in problem.examples[0]
    assert problem.advice
    source = open_source(MasksConfig(path=str(root)))
    transform = ClassificationEvalTransform(ClassificationTransformConfig())
    config = DataConfig(source=MasksConfig(path=str(root)))
    with pytest.raises(FaultyDataError, match=kind[:20].replace("(", "")):
        DataModule(source, config, transform, transform, seed=0)


@pytest.mark.parametrize(
    ("kind", "damage", "place"), [e[1:] for e in NOTES], ids=[e[0] for e in NOTES]
)
def test_notes(masked: Make, kind: str, damage: Damage, place: str) -> None:
    root = masked()
    damage(root / "images" / "train" / "train1.png", root / "masks" / "train" / "train1.png")
    (problem,) = check_source(MasksConfig(path=str(root))).problems
    assert problem.kind.startswith(kind)
    assert (problem.severity, problem.count) == ("note", 1)
    assert any(place in each for each in problem.examples)
    source = open_source(MasksConfig(path=str(root)))
    for index in range(source.info.splits["train"]):
        found = source.sample("train", index)
        assert found.target["mask"].tolist() == labels(index).tolist()
        assert found.image.shape[1:] == found.target["mask"].shape


def test_rotated_images_take_the_side_of_their_mask(masked: Make) -> None:
    """The pixels of an image that EXIF turns are those under its mask, stored or upright."""
    root = masked()
    image, mask = (root / kind / "train" / "train1.png" for kind in ("images", "masks"))
    _rotated(image, mask)
    with Image.open(image) as shown:
        stored = np.asarray(shown.convert("RGB"))
    source = open_source(MasksConfig(path=str(root)))
    sample = source.sample("train", 1)
    assert sample.image.permute(1, 2, 0).tolist() == stored.tolist()
    assert source.size("train", 1) == sample.original_size == (12, 20)
    save_numbers(mask, np.rot90(labels(1), -1))  # orientation 6: turn it clockwise to see it
    source = open_source(MasksConfig(path=str(root)))
    sample = source.sample("train", 1)
    assert sample.image.permute(1, 2, 0).tolist() == np.rot90(stored, -1).tolist()
    assert source.size("train", 1) == sample.original_size == (20, 12)
    assert [each.kind for each in check_source(MasksConfig(path=str(root))).problems] == [
        "image that its EXIF rotates or mirrors"
    ]


def test_colours_that_are_not_in_the_table(masked: Make) -> None:
    root = masked(save=save_colours)
    table = {",".join(map(str, c)): n for n, c in zip("abc", COLOURS, strict=True)}
    config = MasksConfig(path=str(root), colours={**table, "9,9,9": "void"})
    assert check_source(config).problems == ()
    pixels = np.array(Image.open(root / "masks" / "val" / "val0.png"))
    pixels[5, 5:8] = 1, 2, 3
    Image.fromarray(pixels).save(root / "masks" / "val" / "val0.png")
    (problem,) = check_source(config).problems
    assert problem.kind == "mask with a colour that is not in the table of colours"
    assert problem.examples == ("masks/val/val0.png: 1,2,3 (3 pixels)",)
    source = open_source(config)
    with pytest.raises(ValueError, match=r"val0.png holds colours that are no class"):
        source.sample("val", 0)


def test_palettes_that_disagree(masked: Make) -> None:
    root = masked(save=save_palette)
    file = root / "masks" / "train" / "train2.png"
    save_palette(file, labels(2), ((1, 1, 1), *COLOURS[1:]))
    (problem,) = check_source(MasksConfig(path=str(root))).problems
    assert problem.kind == "mask whose palette shows a class in another colour"
    assert (problem.severity, problem.examples) == ("note", ("masks/train/train2.png: 0",))
    save_palette(file, labels(2), (COLOURS[1], COLOURS[0], COLOURS[2]))  # numbered anew
    (problem,) = check_source(MasksConfig(path=str(root))).problems
    assert problem.severity == "error"
    assert problem.examples == ("masks/train/train2.png: 128,64,128 is 0, and 1 before",)
    # Unused entries of a palette mean nothing, and colours of a table say it first.
    save_palette(file, labels(2), (*COLOURS, COLOURS[0], COLOURS[1]))
    assert check_source(MasksConfig(path=str(root))).problems == ()
    (root / "class_dict.csv").write_text("name,r,g,b\nroad,128,64,128\nsky,0,0,255\ncar,255,0,0")
    (problem,) = check_source(MasksConfig(path=str(root))).errors
    assert problem.count == 5


def test_some_images_may_be_left_out(masked: Make) -> None:
    root = masked(counts=(9, 2))
    (root / "masks" / "train" / "train1.png").unlink()
    assert "source.leave_out 0.10" in str(check_source(MasksConfig(path=str(root))))
    report = check_source(MasksConfig(path=str(root), leave_out=0.1))
    (problem,) = report.problems
    assert (problem.kind, problem.severity) == ("image without a mask", "note")
    assert report.images == {"train": 8, "val": 2}
    _ignored(Path(), root / "masks" / "train" / "train8.png")
    (_, problem) = check_source(MasksConfig(path=str(root), leave_out=0.1)).problems
    assert (problem.kind, problem.severity) == ("mask without a pixel of any class", "note")


def test_nothing_to_train_on(masked: Make, tmp_path: Path) -> None:
    root = masked(save=save_colours, named=False)
    with pytest.raises(FaultyDataError, match="mask of colours without a table of colours: 5"):
        open_source(MasksConfig(path=str(root)))
    for file in (root / "masks").rglob("*.png"):
        file.rename(file.with_name("x" + file.name))
    with pytest.raises(FaultyDataError, match="image without a mask: 5"):
        open_source(MasksConfig(path=str(root)))
    (problem,) = check_source(MasksConfig(path=str(tmp_path / "set" / "images"))).problems
    assert problem.kind == "source that cannot be opened"


def test_masks_are_decoded_once_and_only_where_asked(
    masked: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = masked()
    _value(Path(), root / "masks" / "train" / "train1.png")
    config = MasksConfig(path=str(root))
    assert check_source(config, "none").problems == ()
    source = open_source(config)
    assert isinstance(source, MasksSource)
    assert source.report(["val"], "headers").problems == ()
    assert len(source.report(["train"], "headers").errors) == 1
    for file in (root / "masks").rglob("*.png"):
        file.unlink()
    counts = source.pixel_counts("train")
    expected = sum(np.bincount(labels(i).flatten(), minlength=256)[:3] for i in range(3))
    assert (expected - counts).sum() == 2  # the two pixels that are no class
    with pytest.raises(ValueError, match="cannot be opened"):
        source.sample("train", 0)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_masks_of_few_bits_hold_numbers(masked: Make, bits: int) -> None:
    """As PNG defines samples; decoders scale them to 0 … 255."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    root = masked(named=False)
    numbers = np.random.default_rng(0).integers(0, 2**bits, (12, 20))
    rows = b""
    for row in numbers.tolist():
        text = "".join(format(number, f"0{bits}b") for number in row)
        text = text.ljust(-(-len(text) // 8) * 8, "0")
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    head = struct.pack(">IIBBBBB", 20, 12, bits, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
    (root / "masks" / "train" / "train0.png").write_bytes(png + chunk(b"IEND", b""))
    found = open_source(MasksConfig(path=str(root))).sample("train", 0).target["mask"]
    assert torch.equal(found.long(), torch.from_numpy(numbers))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_wide_masks_with_numbers_of_classes_are_fine(masked: Make, dtype: type) -> None:
    root = masked()
    file = root / "masks" / "train" / "train0.png"
    Image.fromarray(labels(0).astype(dtype)).save(file.with_suffix(".tiff"))
    file.unlink()
    assert check_source(MasksConfig(path=str(root))).problems == ()
    found = open_source(MasksConfig(path=str(root))).sample("train", 0).target["mask"]
    assert found.tolist() == labels(0).tolist()

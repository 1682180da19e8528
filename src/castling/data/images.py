"""Opening a source: splits, checks, memory."""

from __future__ import annotations

from dataclasses import dataclass

from castling.data.config import DataConfig, image_size_pair
from castling.data.dataset import ImageSet
from castling.data.sources import (
    Labelled,
    Source,
    Triple,
    digits_source,
    files_source,
    for_all,
)
from castling.data.splits import balanced_subset, hold_out
from castling.data.torchvision_source import torchvision_source
from castling.data.transforms import eval_transform, train_transform

_VAL_FRACTION = 0.1


@dataclass(frozen=True)
class ImageData:
    """A classification set, ready to be read.

    Attributes:
        train: training images; augmented.
        val: validation images.
        test: test images; the very object `val` where the source has one of the two only.
        classes: readable names in the order of the labels.
        mean: of the normalisation, per channel, of pixels in [0, 1].
        std: as `mean`.
        image_size: (height, width) in pixels.
        notes: what a person should know about how the splits came about.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet
    classes: list[str]
    mean: Triple
    std: Triple
    image_size: tuple[int, int]
    notes: tuple[str, ...]


def open_images(config: DataConfig) -> ImageData:
    """Open the source of a configuration, make missing splits, and check the images.

    Raises:
        FileNotFoundError: the source does not exist.
        PermissionError: it may not be read.
        ValueError: an option does not fit; as DataError, when the images are at fault.
    """
    source = _open_source(config)
    splits, notes = _complete(source, config)
    if config.subset is not None:
        labels = splits["train"].labels
        chosen = balanced_subset(labels, config.subset, seed=config.split_seed, what="subset")
        notes.append(f"training on {len(chosen)} of {len(labels)} images, spread over the classes")
        splits["train"] = splits["train"].part(chosen)
    if config.val_subset is not None:
        labels = splits["val"].labels
        chosen = balanced_subset(
            labels, config.val_subset, seed=config.split_seed, what="val_subset"
        )
        notes.append(f"validating on {len(chosen)} of {len(labels)} images")
        splits["val"] = splits["val"].part(chosen)

    mean, std = config.mean or source.mean, config.std or source.std
    training = train_transform(config, mean=mean, std=std, mirrored=source.mirrored)
    evaluation = eval_transform(config, mean=mean, std=std)
    train = ImageSet(splits["train"], training, seed=config.seed)
    val = ImageSet(splits["val"], evaluation, seed=config.seed)
    same = splits["test"] is splits["val"]
    test = val if same else ImageSet(splits["test"], evaluation, seed=config.seed)
    named = {"training": train, "validation": val} | ({} if same else {"test": test})
    budget = config.cache_limit_megabytes * 10**6
    for what, images in named.items():
        budget -= _check_and_remember(what, images, config, budget)
    return ImageData(
        train,
        val,
        test,
        source.classes,
        mean,
        std,
        image_size_pair(config.image_size),
        tuple(notes),
    )


def _open_source(config: DataConfig) -> Source:
    if config.source == "digits":
        return digits_source()
    if config.source.startswith("torchvision:"):
        name = config.source.removeprefix("torchvision:")
        return torchvision_source(name, config.root, download=config.download)
    return files_source(config.source)


def _complete(source: Source, config: DataConfig) -> tuple[dict[str, Labelled], list[str]]:
    """Make the splits that the source lacks, and say how."""
    splits, notes = dict(source.splits), list(source.notes)
    val_fraction = config.val_fraction or _VAL_FRACTION
    test_fraction = config.test_fraction or source.test_fraction
    missing = [
        (split, share)
        for split, share, asked, other in (
            ("val", val_fraction, config.val_fraction, "test"),
            ("test", test_fraction, config.test_fraction, "val"),
        )
        if split not in splits and (asked is not None or other not in splits)
    ]
    if missing:
        parts = hold_out(
            splits["train"].labels,
            [share for _, share in missing],
            source.classes,
            seed=config.split_seed,
            shuffle=source.shuffle,
        )
        everything = splits["train"]
        splits["train"] = everything.part(parts[0])
        for (split, share), part in zip(missing, parts[1:], strict=True):
            splits[split] = everything.part(part)
            notes.append(f"{len(part)} images ({share:.0%}) of training are held out for {split}")
    if "val" not in splits:
        splits["val"] = splits["test"]
        notes.append(
            "there is no validation split: the test images serve for validation, so a checkpoint "
            "chosen by validation has seen them; set val_fraction to hold out training images"
        )
    elif "test" not in splits:
        splits["test"] = splits["val"]
        notes.append(
            "there is no test split: test figures are those of the validation images; set "
            "test_fraction to hold out training images"
        )
    return splits, notes


def _check_and_remember(what: str, images: ImageSet, config: DataConfig, budget: int) -> int:
    """Verify the files of one split, and decode and keep its images if they may be kept.

    Args:
        what: which images, for errors.
        images: the split.
        config: what to verify and to keep.
        budget: bytes that may be used.

    Returns:
        Bytes that are used.

    Raises:
        DataError: images are damaged; the first are named.
    """
    selection, size = images.selection, images.transform.prepared_size
    may_check = config.verify != "none" and not selection.images.trusted
    need = None if size is None else 3 * len(images) * size[0] * size[1]
    measured = need is None and config.cache == "auto" and may_check
    if measured:
        need = 3 * _area(images, what)
    fits = need is not None and need <= budget
    if config.cache == "memory" or (config.cache == "auto" and fits):
        images.remember = True
        if config.verify != "none":
            images.fill(what)
        return need or 0
    if config.verify == "full":
        for_all(len(images), selection.read, what)
    elif may_check and not measured:
        _area(images, what)
    return 0


def _area(images: ImageSet, what: str) -> int:
    """Pixels of all images together, from the headers of the files."""
    areas = [0] * len(images)

    def measure(index: int) -> None:
        width, height = images.selection.size(index)
        areas[index] = width * height

    for_all(len(images), measure, what)
    return sum(areas)

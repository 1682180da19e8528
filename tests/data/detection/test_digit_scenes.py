"""Scenes of digits: exact boxes and masks, the same every time, held-out hands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from castling.data import DigitScenesConfig, Sample, open_source, source_from
from castling.data.detection.masks import decode_masks
from castling.data.segmentation.counts import pixel_counts
from castling.data.sources.digit_scenes import DigitScenesSource


@pytest.fixture(scope="module")
def source() -> DigitScenesSource:
    return DigitScenesSource(DigitScenesConfig())


def test_what_the_source_says(source: DigitScenesSource) -> None:
    info = source.info
    assert info.classes == [str(digit) for digit in range(10)]
    assert info.splits == {"train": 1000, "val": 200, "test": 200}
    assert (info.kind, info.has_masks, info.mirrored) == ("detection", True, False)
    assert source.labels("train") is None
    assert isinstance(source_from("digit_scenes"), DigitScenesConfig)
    assert isinstance(open_source(DigitScenesConfig()), DigitScenesSource)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_boxes_and_masks_frame_the_ink(source: DigitScenesSource, split: str) -> None:
    for index in range(25):
        sample = source.sample(split, index)
        target = sample.target
        assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
        assert target["boxes"].canvas_size == sample.original_size == (128, 128)
        masks = decode_masks(target["segmentation"])
        count = len(target["labels"])
        assert 1 <= count <= 6
        assert masks.shape == (count, 128, 128)
        assert masks.sum(0).max() <= 1  # a pixel belongs to one digit
        assert torch.equal(target["area"], masks.sum((1, 2)).float())
        assert len(set(target["ids"].tolist())) == count
        assert not target["iscrowd"].any()
        assert set(target["labels"].tolist()) <= set(range(10))
        grey = sample.image.as_subclass(torch.Tensor).float().mean(0)
        for mask, box in zip(masks.bool(), target["boxes"].as_subclass(torch.Tensor), strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [int(edge) for edge in edges]
            x1, y1, x2, y2 = map(int, box)
            ground = ~mask[y1:y2, x1:x2]
            inside = grey[y1:y2, x1:x2]
            assert (inside[~ground].mean() - inside[ground].mean()).abs() > 10  # ink is visible


def test_a_scene_is_the_same_whenever_it_is_drawn(source: DigitScenesSource) -> None:
    def bytes_of(sample: Sample) -> list[bytes]:
        return [
            sample.image.as_subclass(torch.Tensor).numpy().tobytes(),
            *(each.as_subclass(torch.Tensor).numpy().tobytes() for each in sample.target.values()),
        ]

    torch.manual_seed(1)
    first = bytes_of(source.sample("train", 7))
    state = torch.get_rng_state()
    source.sample("train", 3)
    assert bytes_of(DigitScenesSource(DigitScenesConfig()).sample("train", 7)) == first
    assert torch.equal(torch.get_rng_state(), state)  # no global generator advances
    assert bytes_of(source.sample("val", 7)) != first
    assert bytes_of(DigitScenesSource(DigitScenesConfig(images=9)).sample("train", 7)) == first


def test_splits_show_different_digits(source: DigitScenesSource) -> None:
    pools = source.pools
    assert sum(map(len, pools.values())) == len(np.unique(np.concatenate(list(pools.values()))))
    assert {split: len(pool) for split, pool in pools.items()} == {
        "train": 1259,
        "val": 179,
        "test": 359,
    }


def test_size_and_number_of_digits() -> None:
    source = DigitScenesSource(DigitScenesConfig(canvas=64, images=10, digits=(0, 2)))
    assert source.info.splits == {"train": 10, "val": 2, "test": 2}
    counts = {len(source.sample("train", index).target["labels"]) for index in range(10)}
    assert counts <= {0, 1, 2}
    assert 0 in counts
    assert source.sample("train", 0).image.shape == (3, 64, 64)
    empty = next(
        sample
        for sample in map(source.sample, ["train"] * 10, range(10))
        if not len(sample.target["labels"])
    )
    assert empty.target["boxes"].shape == (0, 4)
    assert decode_masks(empty.target["segmentation"]).shape == (0, 64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canvas": 10}, "digits need 24 pixels"),
        ({"digits": [3, 1]}, "give the fewest and the most"),
        ({"digits": [0, 0]}, "give the fewest and the most"),
        ({"images": 0}, "data.source.images is 0"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source_from({"name": "digit_scenes", **options})


def test_masks_in_place_of_objects(source: DigitScenesSource) -> None:
    """The same pictures; where an object's mask is, its class stands, and 0 elsewhere."""
    semantic = open_source(DigitScenesConfig(images=30, target="mask"))
    assert semantic.info.kind == "segmentation"
    assert semantic.info.classes == ["background", *map(str, range(10))]
    assert not semantic.info.has_masks
    total = np.zeros(11, dtype=np.int64)
    for index in range(30):
        expected, found = source.sample("train", index), semantic.sample("train", index)
        assert torch.equal(expected.image, found.image)
        assert set(found.target) == {"mask"}
        mask = found.target["mask"]
        assert isinstance(mask, tv_tensors.Mask)
        assert mask.dtype == torch.uint8
        wanted = torch.zeros(128, 128, dtype=torch.long)
        objects = decode_masks(expected.target["segmentation"]).bool()
        for each, label in zip(objects, expected.target["labels"], strict=True):
            wanted[each] = 1 + label
        assert torch.equal(mask.as_subclass(torch.Tensor).long(), wanted)
        total += np.bincount(wanted.flatten().numpy(), minlength=11)
    assert pixel_counts(semantic, "train").tolist() == total.tolist()
    some = pixel_counts(semantic, "train", [3, 4]) + pixel_counts(semantic, "train", range(3))
    assert (some + pixel_counts(semantic, "train", range(5, 30))).tolist() == total.tolist()
    empty = DigitScenesConfig(images=40, digits=(0, 1), target="mask")
    assert 0 in {int(open_source(empty).sample("train", i).target["mask"].max()) for i in range(9)}

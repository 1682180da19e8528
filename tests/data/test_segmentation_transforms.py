"""Masks go where their pixels go, under every transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.labelled import CLASSES, TABLE, Labelled, blocks, colours_of
from torch import Tensor
from torch.nn import functional as F

from castling.data import (
    Batch,
    BatchKey,
    DataError,
    ImageSet,
    PaddedEvalTransform,
    SegmentationTrainTransform,
    SegmentationTransformConfig,
)
from castling.data.splits import Selection
from castling.data.transforms.scene import FILL
from castling.utils.labels import IGNORED


def training(source: Labelled, seed: int = 0, **options: object) -> ImageSet:
    config = SegmentationTransformConfig(**{"photometric": 0.0, "image_size": 64, **options})
    transform = SegmentationTrainTransform(config, source.info)
    return ImageSet(_all(source), transform, seed=seed)


def evaluated(source: Labelled, **options: object) -> ImageSet:
    config = SegmentationTransformConfig(**{"image_size": 64, **options})
    return ImageSet(_all(source), PaddedEvalTransform(config), seed=0)


def _all(source: Labelled) -> Selection:
    return Selection(source, "train", np.arange(len(source.masks["train"])))


def masks_of(batch: Batch) -> Tensor:
    masks = batch.targets["mask"]
    assert isinstance(masks, Tensor)
    assert type(masks) is Tensor
    assert masks.dtype == torch.uint8
    return masks


sides = st.integers(5, 150)
sources = st.builds(
    lambda sizes, seed, block: Labelled([blocks(size, seed, block) for size in sizes]),
    st.lists(st.tuples(sides, sides), min_size=2, max_size=3),
    st.integers(0, 1000),
    st.integers(3, 40),
)
options = st.fixed_dictionaries(
    {
        "image_size": st.sampled_from([32, (48, 80), 100]),
        "resize": st.sampled_from(["keep", "stretch", "none"]),
        "scale": st.sampled_from([(0.5, 2.0), (1.0, 1.0), (0.1, 0.3), (3.0, 3.0)]),
        "cat_max_ratio": st.sampled_from([0.4, 0.75, 1.0]),
        "horizontal_flip": st.sampled_from([None, 0.0, 1.0]),
        "multiple": st.sampled_from([1, 32, 48]),
    }
)


@settings(max_examples=80, deadline=None)
@given(sources, options, st.integers(0, 10**6))
def test_pixels_have_the_colours_of_their_labels(source, chosen, epoch) -> None:
    images = training(source, interpolation="nearest", **chosen)
    batch = images[BatchKey((0, 1), epoch)]
    masks = masks_of(batch)
    height, width = images.transform.config.size
    multiple = chosen["multiple"]
    assert masks.shape[1:] == batch.images.shape[2:]
    assert batch.images.shape[2:] == tuple(
        -(-side // multiple) * multiple for side in (height, width)
    )
    for image, mask in zip(batch.images, masks, strict=True):
        assert torch.equal(image, colours_of(mask))
    assert (masks[:, height:] == IGNORED).all()
    assert (masks[:, :, width:] == IGNORED).all()


@pytest.mark.parametrize("resize", ["keep", "stretch", "none"])
@pytest.mark.parametrize("scale", [(0.5, 0.6), (1.0, 1.0), (1.3, 2.0)])
def test_masks_are_not_shifted_against_smooth_images(resize, scale) -> None:
    """Far from the borders of segments a filter of pixels shows the pure colour."""
    source = Labelled([blocks((70, 110), 0, 20), blocks((129, 61), 1, 30)])
    images = training(source, interpolation="bilinear", resize=resize, scale=scale)
    for epoch in range(6):
        batch = images[BatchKey((0, 1), epoch)]
        for image, mask in zip(batch.images, masks_of(batch), strict=True):
            labels = F.pad(mask.float()[None], (2, 2, 2, 2), value=254)
            inner = F.max_pool2d(labels, 5, 1) == -F.max_pool2d(-labels, 5, 1)
            known = inner[0] & (mask != IGNORED)
            apart = (image.int() - colours_of(mask).int()).abs().amax(0)
            assert known.any()
            assert (apart[known] <= 2).all()


def test_a_mirror_image_is_the_same_part() -> None:
    source = Labelled([blocks((90, 120), 3)])
    plain, mirrored = (
        training(source, horizontal_flip=flip, interpolation="nearest")[BatchKey((0,), 5)]
        for flip in (0.0, 1.0)
    )
    assert torch.equal(masks_of(plain).flip(2), masks_of(mirrored))
    assert torch.equal(plain.images.flip(3), mirrored.images)


def test_a_sample_follows_from_its_key_alone() -> None:
    source = Labelled([blocks((70 + 9 * i, 90), i) for i in range(4)])
    images = training(source, photometric=1.0)
    one, other = images[BatchKey((2, 0), 1)], images[BatchKey((0, 1, 2), 1)]
    assert torch.equal(one.images[0], other.images[2])
    assert torch.equal(masks_of(one)[0], masks_of(other)[2])
    images.fill()  # kept in memory
    again = images[BatchKey((2, 0), 1)]
    assert torch.equal(one.images, again.images)
    later = images[BatchKey((2, 0), 2)]
    assert not torch.equal(masks_of(one), masks_of(later))


def test_scales_are_drawn_uniformly_from_the_range() -> None:
    source = Labelled([blocks((40, 40), 0)])
    images = training(source, image_size=200, resize="none", scale=(0.5, 2.0), horizontal_flip=0.0)
    seen = []
    for epoch in range(300):
        mask = masks_of(images[BatchKey((0,), epoch)])[0]
        seen.append(int((mask != IGNORED).any(0).nonzero().max()) + 1)
    assert min(seen) >= 12
    assert max(seen) <= 80
    shares = np.histogram(seen, bins=3, range=(20, 80))[0] / len(seen)
    assert shares.min() > 0.25


@pytest.mark.parametrize(("most", "dominated"), [(1.0, 0.4), (0.75, 0.1)])
def test_parts_of_one_class_are_drawn_again(most: float, dominated: float) -> None:
    mask = torch.zeros((64, 400), dtype=torch.uint8)
    mask[:, 300:] = blocks((64, 100), 1, block=16)
    images = training(Labelled([mask]), resize="none", scale=(1.0, 1.0), cat_max_ratio=most)
    masks = torch.cat([masks_of(images[BatchKey((0,), epoch)]) for epoch in range(60)])
    share = float(((masks == 0).float().mean((1, 2)) >= 0.75).float().mean())
    assert share > dominated if most == 1 else share < dominated


def test_colours_change_and_masks_do_not() -> None:
    source = Labelled([blocks((64, 64), 2)])
    options = {"resize": "none", "scale": (1.0, 1.0), "horizontal_flip": 0.0}
    batch = training(source, photometric=1.0, **options)[BatchKey((0,), 3)]
    assert torch.equal(masks_of(batch)[0], source.masks["train"][0])
    assert not torch.equal(batch.images[0], colours_of(masks_of(batch)[0]))


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, (64, 96)),  # shorter side 64: 100 × 150 becomes 64 × 96
        ({"max_size": 80}, (53, 80)),
        ({"resize": "stretch", "image_size": (40, 72)}, (40, 72)),
        ({"resize": "none"}, (100, 150)),
    ],
)
def test_evaluation_pads_images_and_leaves_masks(options, shown) -> None:
    source = Labelled([blocks((100, 150), 0), blocks((150, 100), 1)])
    batch = evaluated(source, multiple=16, **options)[BatchKey((0, 1))]
    assert tuple(batch.valid[0].tolist()) == shown
    assert all(side % 16 == 0 for side in batch.images.shape[2:])
    assert (batch.images[0, :, shown[0] :] == FILL).all()
    masks = batch.targets["mask"]
    assert isinstance(masks, list)
    for mask, expected in zip(masks, source.masks["train"], strict=True):
        assert type(mask) is Tensor
        assert torch.equal(mask, expected)


def test_a_long_image_is_bounded() -> None:
    config = SegmentationTransformConfig(image_size=512)
    assert config.fitted((100, 10_000)) == (20, 2048)
    assert config.fitted((1024, 2048)) == (512, 1024)
    assert config.at_size(64).longest == 256
    bounded = SegmentationTransformConfig(image_size=512, max_size=1024).at_size(64)
    assert bounded.longest == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (2.0, 0.5)}, "give the smaller factor first"),
        ({"max_size": 100, "resize": "none"}, "set data.transform.resize to keep"),
        ({"max_size": 100}, "less than the shorter side"),
        ({"cat_max_ratio": 0.0}, "cat_max_ratio"),
    ],
)
def test_options_that_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationTransformConfig(**options)


def test_mirroring_is_refused_for_figures_and_letters() -> None:
    source = Labelled([blocks((64, 64))], mirrored=False)
    with pytest.raises(DataError, match="mirror image of a figure or letter"):
        training(source, horizontal_flip=0.5)
    assert training(source).transform._flip == 0


def test_the_table_tells_labels_apart() -> None:
    assert len(TABLE[:CLASSES].unique(dim=0)) == CLASSES

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.painted import COLOURS, Painted, frame, seen
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from castling.data import (
    Batch,
    BatchKey,
    DataError,
    DetectionTrainTransform,
    DetectionTransformConfig,
    ImageSet,
    PaddedEvalTransform,
    image_tensor,
    pillow_image,
    sample_keys,
)
from castling.data.splits import Selection
from castling.utils.randomness import global_generators_kept, seed_global_generators

PLAIN = {"horizontal_flip": 0.0, "crop": 0.0, "photometric": 0.0}


def images_of(source: Painted, *, masks: bool = True, seed: int = 0, **options: object) -> ImageSet:
    """The training set of a source, augmented as the options say."""
    config = DetectionTransformConfig(**{"photometric": 0.0, "image_size": 96, **options})
    transform = DetectionTrainTransform(config, source.info, masks=masks)
    return ImageSet(Selection(source, "train", np.arange(len(source.sizes))), transform, seed=seed)


def check_in_step(batch: Batch, row: int, *, slack: float, mask_slack: float) -> int:
    """Every object's box and mask frame its colour; returns the number of objects."""
    image = batch.images[row]
    height, width = batch.valid[row].tolist()
    boxes, labels = batch.targets["boxes"][row], batch.targets["labels"][row]
    masks = batch.targets["masks"][row] if "masks" in batch.targets else None
    assert boxes.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert type(boxes) is Tensor
    assert len(boxes) == len(labels)
    assert len(labels.unique()) == len(labels)  # colours are unique, so no object comes twice
    for place, (box, label) in enumerate(zip(boxes, labels.tolist(), strict=True)):
        x1, y1, x2, y2 = box.tolist()
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert min(x2 - x1, y2 - y1) >= 1
        shown = seen(image, label)
        if not shown.any():
            assert min(x2 - x1, y2 - y1) < 3  # too thin to have its pure colour anywhere
            continue
        assert np.abs(np.subtract(frame(shown), box.tolist())).max() <= slack
        if masks is not None:
            mask = masks[place].bool()
            assert mask.shape == image.shape[1:]
            assert np.abs(np.subtract(frame(mask), box.tolist())).max() <= mask_slack
            border = 2 * (x2 - x1 + y2 - y1)
            assert int((mask != shown).sum()) <= mask_slack * border
    return len(boxes)


def enlarged(source: Painted, batch: Batch, row: int) -> float:
    """Pixels of a batch per pixel of its image at most, crops considered; at least 1.

    The corners of enlarged masks are rounded by a fraction of this.
    """
    sides = zip(batch.valid[row].tolist(), source.sizes[row], strict=True)
    return max(1.0, *(new / (0.3 * old) for new, old in sides))


def scenes(smallest: int, colours: int = len(COLOURS)) -> st.SearchStrategy[Painted]:
    """Sources of four images with sides from ``smallest`` to 150 pixels."""
    side = st.integers(smallest, 150)
    return st.builds(
        Painted,
        st.lists(st.tuples(side, side), min_size=4, max_size=4),
        st.lists(st.integers(0, 6), min_size=4, max_size=4),
        seed=st.integers(0, 1000),
        ellipses=st.booleans(),
        crowds=st.booleans(),
        colours=st.just(colours),
    )


options = st.fixed_dictionaries(
    {
        "horizontal_flip": st.sampled_from([0.0, 0.5, 1.0]),
        "crop": st.sampled_from([0.0, 1.0]),
        "zoom_out": st.sampled_from([0.0, 0.5]),
        "resize": st.sampled_from(["stretch", "keep"]),
        "image_size": st.sampled_from([64, (96, 128), 200]),
    }
)


@settings(max_examples=60, deadline=None)
@given(scenes(8), options, st.integers(0, 10**6))
def test_boxes_and_masks_frame_their_objects(source: Painted, chosen: dict, epoch: int) -> None:
    images = images_of(source, interpolation="nearest", **chosen)
    batch = images[BatchKey((0, 1, 2, 3), epoch)]
    assert batch.images.shape[2] % 64 == batch.images.shape[3] % 64 == 0
    counts = [
        check_in_step(batch, row, slack=2.0, mask_slack=2.0 + enlarged(source, batch, row) / 2)
        for row in range(4)
    ]
    if not chosen["crop"] and not chosen["zoom_out"]:
        for row, count in enumerate(counts):
            target = source.sample("train", row).target
            height, width = source.sizes[row]
            scale = torch.tensor(
                [batch.valid[row, 1] / width, batch.valid[row, 0] / height], dtype=torch.float32
            )
            sides = (target["boxes"][:, 2:] - target["boxes"][:, :2]).as_subclass(Tensor) * scale
            learnt = ~target["iscrowd"]
            assert count <= learnt.sum()
            assert count >= (learnt & (sides.min(1).values >= 2)).sum()


@settings(max_examples=25, deadline=None)
@given(scenes(48, 6), options, st.integers(0, 10**6))
def test_smooth_filters_keep_in_step_too(source: Painted, chosen: dict, epoch: int) -> None:
    images = images_of(source, **chosen)
    batch = images[BatchKey((0, 1, 2, 3), epoch)]
    for row in range(4):
        slack = 1.0 + enlarged(source, batch, row)  # edges are as soft as an image pixel is large
        check_in_step(batch, row, slack=slack, mask_slack=slack)


def test_scaling_equals_pillow_and_torchvision() -> None:
    source = Painted([(60, 90)], [3])
    sample = source.sample("train", 0)
    image = pillow_image(sample.image)
    transform = PaddedEvalTransform(DetectionTransformConfig(image_size=(48, 64)))
    batch = transform.collate([transform.resize(sample)], np.zeros(1, np.uint64), None)
    expected = image_tensor(image.resize((64, 48), 2))
    assert torch.equal(batch.images[0, :, :48, :64], expected)
    trained = images_of(source, **PLAIN, image_size=(48, 64))[BatchKey((0,))]
    assert torch.equal(trained.images[0, :, :48, :64], expected)
    assert (trained.images[0, :, 48:] == 114).all()
    boxes = functional.resize(sample.target["boxes"], [48, 64])
    assert torch.allclose(trained.targets["boxes"][0], boxes.as_subclass(Tensor))


def test_a_crop_and_a_mirror_equal_torchvision() -> None:
    """The whole chain of torchvision's own transforms, with the same random numbers."""
    source = Painted([(90, 120)], [5], ellipses=False)
    options = {"crop": 1.0, "horizontal_flip": 0.5, "image_size": 64, "interpolation": "nearest"}
    images = images_of(source, masks=False, **options)
    sample = source.sample("train", 0)
    cropped = 0
    for epoch in range(30):
        batch = images[BatchKey((0,), epoch)]
        with global_generators_kept():
            seed_global_generators(int(sample_keys(0, epoch, [0])[0]))
            torch.rand(3)  # neither mosaic nor zoom-out happens, crop does
            crop = v2.RandomIoUCrop()
            target = {name: sample.target[name] for name in ("boxes", "labels")}
            image, target = crop(sample.image, target)
            cropped += image.shape != sample.image.shape
            if torch.rand(()) < 0.5:
                image = functional.horizontal_flip(image)
                target["boxes"] = functional.horizontal_flip(target["boxes"])
            image = tv_tensors.Image(image_tensor(pillow_image(image).resize((64, 64), 0)))
            target["boxes"] = functional.resize(target["boxes"], [64, 64])
            target = v2.SanitizeBoundingBoxes()(target)
        assert torch.equal(batch.images[0], image.as_subclass(Tensor))
        assert torch.allclose(
            batch.targets["boxes"][0], target["boxes"].as_subclass(Tensor), atol=1e-3
        )
        assert torch.equal(batch.targets["labels"][0], target["labels"])
    assert cropped > 15


def test_evaluation_keeps_targets_complete_in_original_pixels() -> None:
    source = Painted([(60, 90), (120, 40)], [4, 3], crowds=True)
    config = DetectionTransformConfig(image_size=64, resize="keep")
    images = ImageSet(Selection(source, "train", np.arange(2)), PaddedEvalTransform(config), seed=0)
    batch = images[BatchKey((0, 1))]
    assert batch.valid.tolist() == [[43, 64], [64, 21]]
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.original_sizes == ((60, 90), (120, 40))
    for row in range(2):
        target = source.sample("train", row).target
        assert set(batch.targets) == set(target)
        for name, value in target.items():
            assert torch.equal(batch.targets[name][row], value.as_subclass(Tensor))
            assert type(batch.targets[name][row]) is Tensor


@pytest.mark.parametrize(
    ("options", "original", "fitted"),
    [
        ({"image_size": 64}, (10, 200), (64, 64)),
        ({"image_size": (32, 64)}, (10, 200), (32, 64)),
        ({"image_size": 800, "resize": "keep", "max_size": 1333}, (480, 640), (800, 1067)),
        ({"image_size": 800, "resize": "keep", "max_size": 1333}, (640, 427), (1199, 800)),
        ({"image_size": 800, "resize": "keep", "max_size": 1333}, (200, 1000), (267, 1333)),
        ({"image_size": 640, "resize": "keep"}, (480, 640), (480, 640)),
        ({"image_size": 64, "resize": "keep"}, (1, 40_000), (1, 64)),
    ],
)
def test_sizes_that_images_are_scaled_to(
    options: dict, original: tuple[int, int], fitted: tuple[int, int]
) -> None:
    config = DetectionTransformConfig(**options)
    assert config.fitted(original) == fitted
    half = config.at_size(32)
    assert half.size == (32, 32)
    assert min(half.fitted(original)) <= 32


def test_kept_aspect_ratios_are_those_of_torchvision_to_a_pixel() -> None:
    """GeneralizedRCNNTransform rounds down, we to the nearest pixel."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    reference = GeneralizedRCNNTransform(80, 133, [0.0] * 3, [1.0] * 3)
    config = DetectionTransformConfig(image_size=80, max_size=133, resize="keep")
    for size in ((48, 64), (64, 48), (20, 100), (100, 33), (300, 301)):
        images, _ = reference([torch.rand(3, *size)])
        expected = images.image_sizes[0]
        assert np.abs(np.subtract(config.fitted(size), expected)).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size": 100}, "set data.transform.resize to keep"),
        ({"resize": "keep", "max_size": 100}, "less than the shorter side"),
        ({"resize": "keep", "max_size": 400, "multi_scale": (320, 416)}, "416"),
        ({"image_size": (64, 96), "multi_scale": (64,)}, "multi_scale draws square"),
        ({"image_size": 640, "multi_scale": (320, 416)}, "is 640, but multi_scale .* 320 to 416"),
        ({"crop": 1.5}, "crop is 1.5"),
        ({"multiple": 0}, "multiple is 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionTransformConfig(**options)


def test_figures_are_not_mirrored() -> None:
    source = Painted([(60, 60)], [3], mirrored=False)
    with pytest.raises(DataError, match=r"horizontal_flip is 0\.5"):
        images_of(source, horizontal_flip=0.5)
    images = images_of(source, crop=0.0)
    first = images[BatchKey((0,))].images
    assert all(torch.equal(images[BatchKey((0,), epoch)].images, first) for epoch in range(8))


def test_photometric_changes_pixels_alone() -> None:
    source = Painted([(60, 80)] * 4, [3] * 4)
    plain, distorted = (
        images_of(source, photometric=value, crop=1.0)[BatchKey((0, 1, 2, 3))]
        for value in (0.0, 1.0)
    )
    assert not torch.equal(plain.images, distorted.images)
    for name in ("boxes", "labels", "masks"):
        for one, two in zip(plain.targets[name], distorted.targets[name], strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        ({"image_size": 60}, (64, 64)),
        ({"image_size": 60, "max_size": 100}, (128, 128)),
        ({"image_size": 60, "max_size": 100, "multi_scale": (40, 80)}, (128, 128)),
        ({"image_size": 60, "multi_scale": (40, 80)}, (96, 96)),
        ({"image_size": 60, "multi_scale": (40, 80), "resize": "stretch"}, (96, 96)),
        ({"image_size": (40, 90)}, (96, 96)),
        ({"image_size": (40, 90), "resize": "stretch"}, (64, 96)),
    ],
)
def test_trials_at_the_largest_size_are_as_large_as_any_batch(
    options: dict, largest: tuple[int, int]
) -> None:
    source = Painted([(150, 60), (60, 150)], [2, 2])
    options = {"resize": "keep", **options}
    config = DetectionTransformConfig(multiple=32, photometric=0.0, crop=0.0, **options)

    def batches(config: DetectionTransformConfig) -> list[tuple[int, int]]:
        transform = DetectionTrainTransform(config, source.info, masks=True)
        images = ImageSet(Selection(source, "train", np.arange(2)), transform, seed=0)
        found = []
        for side in transform.sides or (None,):
            for indices in ((0,), (1,), (0, 1)):
                batch = images[BatchKey(indices, size=None if side is None else (side, side))]
                assert all(
                    mask.shape[1:] == batch.images.shape[2:] for mask in batch.targets["masks"]
                )
                found.append(tuple(batch.images.shape[2:]))
        return found

    assert set(batches(config.at_largest())) == {largest}
    ordinary = batches(config)
    assert tuple(np.max(ordinary, axis=0)) == largest
    assert largest in ordinary

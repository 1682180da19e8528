"""Objects through loaders: mosaic, copy-paste, aspect ratios, workers, resuming, large images."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.painted import COLOURS, Painted, frame, seen
from tests.data.test_detection_transforms import check_in_step, images_of
from torch import Tensor
from torchvision import tv_tensors

from castling.data import (
    Batch,
    BatchKey,
    DataError,
    DataModule,
    DetectionTrainTransform,
    DetectionTransformConfig,
    EpochBatches,
    LoaderConfig,
    PaddedEvalTransform,
    Sample,
    SplitConfig,
    data_config_from_dict,
)
from castling.data.detection.mask_window import decode_window, run_lengths
from castling.data.detection.masks import counts_to_rle, encode_masks
from castling.data.detection.target import detection_target
from castling.data.transforms.copy_paste import paste
from castling.data.transforms.mosaic import mosaic
from castling.data.transforms.scene import Objects

ALL = {
    "crop": 0.8,
    "zoom_out": 0.3,
    "photometric": 0.5,
    "mosaic": 0.4,
    "copy_paste": 0.5,
    "multi_scale": (64, 96, 128),
}


def _open(source: Painted, *, seed: int = 0, masks: bool = True, **options: object) -> DataModule:
    values: dict = {"transform": {"image_size": 96}, "loader": {"batch_size": 4}, "split": {}}
    for name, value in options.items():
        section = "loader" if name in LoaderConfig.__dataclass_fields__ else "transform"
        section = "split" if name in SplitConfig.__dataclass_fields__ else section
        values[section][name] = value
    config = data_config_from_dict(values, DetectionTransformConfig)
    return DataModule(
        source,
        config,
        DetectionTrainTransform(config.transform, source.info, masks=masks),
        PaddedEvalTransform(config.transform),
        seed=seed,
    )


def _same(first: list[Batch], second: list[Batch]) -> bool:
    """Whether two runs saw the same, bit for bit."""
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.valid, b.valid)
        and a.names == b.names
        and list(a.targets) == list(b.targets)
        and all(
            torch.equal(one, two)
            for name in a.targets
            for one, two in zip(a.targets[name], b.targets[name], strict=True)
        )
        for a, b in zip(first, second, strict=True)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(20, 150), st.integers(20, 150)), min_size=8, max_size=8),
    st.lists(st.integers(0, 5), min_size=8, max_size=8),
    st.booleans(),
    st.sampled_from(["stretch", "keep"]),
    st.integers(0, 10**6),
)
def test_mosaics_keep_everything_in_step(
    sizes: list, objects: list, masks: bool, resize: str, epoch: int
) -> None:
    source = Painted(sizes, objects, ellipses=masks)
    config = DetectionTransformConfig(
        mosaic=1.0, photometric=0.0, resize=resize, image_size=128, interpolation="nearest"
    )
    transform = DetectionTrainTransform(config, source.info, masks=masks)
    torch.manual_seed(epoch)
    for first in range(0, 8, 4):
        deck = Deck([source.sample("train", first + place) for place in range(1, 4)])
        one = transform.augment(source.sample("train", first), None, deck)
        batch = transform.collate([one], np.zeros(1, np.uint64), None)
        check_in_step(batch, 0, slack=2.0, mask_slack=2.0 + 128 / 20 / 2)


class Deck:
    """Samples handed out one after another, whichever is asked for, so that none comes twice."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples.pop()


@pytest.mark.parametrize("size", [(64, 64), (50, 90)])
def test_the_images_of_a_mosaic_touch_its_corner(size: tuple[int, int]) -> None:
    source = Painted([(31, 47), (80, 20), (64, 64), (9, 100)], [0] * 4)
    for seed in range(50):
        torch.manual_seed(seed)
        scene = mosaic([source.sample("train", index) for index in range(4)], size)
        windows = [piece.placement.window for piece in scene.pieces]  # top, left, bottom, right
        (row,), (column,) = (
            {round(value, 6) for value in values}
            for values in (
                [windows[0][2], windows[1][2], windows[2][0], windows[3][0]],
                [windows[0][3], windows[2][3], windows[1][1], windows[3][1]],
            )
        )
        assert 0 <= row <= scene.size[0]
        assert 0 <= column <= scene.size[1]
        for piece, (height, width) in zip(scene.pieces, source.sizes, strict=True):
            assert piece.placement.scale == (min(size[0] / height, size[1] / width),) * 2
        assert size <= scene.size <= (2 * size[0], 2 * size[1])


def test_mosaics_show_four_images_around_a_corner() -> None:
    source = Painted([(64, 64)] * 12, [0] * 12)
    for index, (image, *_) in enumerate(source.content):
        image[:] = COLOURS[index][:, None, None].to(torch.uint8)
    images = images_of(source, mosaic=1.0, masks=False, interpolation="nearest")
    shown = []
    for epoch in range(40):
        picture = images[BatchKey((5,), epoch)].images[0, :, :96, :96]
        colours = [label for label in range(12) if seen(picture, label, 0).any()]
        shown.append(len(colours))
    # Fewer where an image was drawn twice, or the corner lies at the border of what is shown.
    assert np.mean(shown) > 3
    assert max(shown) == 4


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(20, 150), st.integers(20, 150)), min_size=8, max_size=8),
    st.lists(st.integers(0, 5), min_size=8, max_size=8),
    st.sampled_from(["stretch", "keep"]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_pasted_objects_keep_everything_in_step(
    sizes: list, objects: list, resize: str, crop: bool, epoch: int
) -> None:
    source = Painted(sizes, objects)
    images = images_of(
        source, copy_paste=1.0, crop=float(crop), resize=resize, interpolation="nearest"
    )
    batch = images[BatchKey(tuple(range(8)), epoch)]
    for row in range(8):
        labels = batch.targets["labels"][row]
        masks = batch.targets["masks"][row]
        assert int(masks.sum(0).max() if len(masks) else 0) <= 1  # whoever lies above hides
        for mask, label in zip(masks.bool(), labels.tolist(), strict=True):
            shown = seen(batch.images[row], label)
            # Masks are made by another filter than these pixels: they differ along borders alone.
            x1, y1, x2, y2 = frame(mask)
            assert int((mask & ~shown).sum()) <= 4.0 * 2 * (x2 - x1 + y2 - y1)
        if len(labels.unique()) == len(labels) and not crop:
            for mask, box in zip(masks.bool(), batch.targets["boxes"][row], strict=True):
                assert np.abs(np.subtract(frame(mask), box.tolist())).max() <= 4


def test_pasting_hides_what_lies_below() -> None:
    ground, above = torch.zeros(3, 20, 20), torch.ones(3, 20, 20)
    masks = torch.zeros(3, 20, 20, dtype=torch.uint8)
    masks[0, 2:8, 2:12] = 1  # its right half gets hidden
    masks[1, 3:5, 8:10] = 1  # wholly hidden
    masks[2, 15:18, 1:4] = 1  # not touched
    boxes = torch.tensor([[2.0, 2, 12, 8], [8, 3, 10, 5], [1.2, 15.1, 3.9, 17.9]])
    below = Objects(ground, boxes, torch.tensor([0, 1, 2]), masks)
    pasted = torch.zeros(1, 20, 20, dtype=torch.uint8)
    pasted[0, :10, 7:14] = 1
    over = Objects(above, torch.tensor([[7.0, 0, 14, 10]]), torch.tensor([5]), pasted)
    found = paste(below, over)
    assert found.labels.tolist() == [0, 2, 5]
    assert torch.allclose(
        found.boxes, torch.tensor([[2.0, 2, 7, 8], [1.2, 15.1, 3.9, 17.9], [7, 0, 14, 10]])
    )
    assert torch.equal(found.image[0].bool(), pasted[0].bool())
    assert found.masks is not None
    assert torch.equal(found.masks.sum((1, 2)), torch.tensor([30, 9, 70]))
    nothing = Objects(above, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), pasted[:0])
    assert paste(below, nothing) is below


def test_masks_are_asked_for_where_there_are_none() -> None:
    source = Painted([(40, 40)] * 4, [2] * 4, masks=False)
    with pytest.raises(DataError, match=r"copy_paste is 0\.5.*set it to 0"):
        images_of(source, masks=False, copy_paste=0.5)
    with pytest.raises(DataError, match="choose a model without masks"):
        images_of(source)
    batch = images_of(source, masks=False)[BatchKey((0, 1))]
    assert set(batch.targets) == {"boxes", "labels"}


def _mixed(count: int = 24) -> Painted:
    random = np.random.default_rng(3)
    sizes = [(int(h), int(w)) for h, w in random.integers(30, 120, (count, 2))]
    return Painted(sizes, [int(n) for n in random.integers(0, 5, count)], crowds=True)


@pytest.mark.parametrize("options", [{}, ALL, {**ALL, "resize": "keep", "group_by_aspect": True}])
def test_batches_repeat_and_ignore_workers_cache_and_history(options: dict) -> None:
    def epochs(which: range, **more: object) -> list[list[Batch]]:
        loader = _open(_mixed(), **{**options, **more}).loader("train", training=True)
        found = []
        for epoch in which:
            loader.sampler.set_epoch(epoch)
            found.append(list(loader))
        return found

    through = epochs(range(2), cache="memory")
    torch.manual_seed(99)
    assert _same(through[1], epochs(range(1, 2), cache="none")[0])
    assert not _same(through[0], through[1])
    assert _same(through[1], epochs(range(1, 2), workers=2, cache="none")[0])
    resumed = _open(_mixed(), **options).loader("train", training=True, start=(1, 3))
    resumed.sampler.set_epoch(1)
    assert _same(list(resumed), through[1][3:])
    first, second = (pickle.loads(pickle.dumps(through[0])) for _ in range(2))
    assert _same(first, second)
    assert _same(first, through[0])


@pytest.mark.parametrize("options", [{}, ALL])
def test_the_company_of_a_batch_does_not_matter(options: dict) -> None:
    images = _open(_mixed(), **{**options, "multi_scale": ()}).dataset("train", training=True)
    together = images[BatchKey((3, 5, 7), 2)]
    alone = images[BatchKey((5,), 2)]
    assert _same([together.select([1])], [alone])


def test_loading_leaves_the_global_generators_alone() -> None:
    data = _open(_mixed(), **ALL)
    before = torch.get_rng_state()
    list(data.loader("train", training=True))
    assert torch.equal(before, torch.get_rng_state())


def test_multi_scale_batches_have_the_drawn_sizes() -> None:
    data = _open(_mixed(), **ALL)
    loader, seen_sides = data.loader("train", training=True), set()
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        for key, batch in zip(list(loader.sampler), loader, strict=True):
            assert batch.valid.tolist() == [list(key.size)] * len(batch)
            assert batch.images.shape[2] == -(-key.size[0] // 64) * 64
            seen_sides.add(key.size[0])
    assert seen_sides == {64, 96, 128}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("length", [7, 64, 101])
def test_grouped_batches_hold_one_group_and_every_image(length: int, world_size: int) -> None:
    groups = np.random.default_rng(0).integers(-2, 3, length)

    def parts(grouped: bool, epoch: int) -> list[list[BatchKey]]:
        found = []
        for rank in range(world_size):
            sampler = EpochBatches(
                length,
                4,
                train=True,
                rank=rank,
                world_size=world_size,
                groups=groups if grouped else None,
            )
            sampler.seek(epoch)
            found.append(list(sampler))
        return found

    for epoch in range(3):
        grouped = parts(True, epoch)
        images = sorted(index for part in grouped for key in part for index in key.indices)
        plain = [index for part in parts(False, epoch) for key in part for index in key.indices]
        assert images == sorted(plain)  # grouping moves images among batches and loses none
        together = [sum((part[i].indices for part in grouped), ()) for i in range(len(grouped[0]))]
        mixed = [batch for batch in together if len({groups[index] for index in batch}) > 1]
        assert len(mixed) <= 4  # one where each of five groups ends
    if length == 101:
        starts = [groups[parts(True, epoch)[0][0].indices[0]] for epoch in range(20)]
        assert len(set(starts)) > 1  # batches come in random order


def test_grouping_by_aspect_saves_padding() -> None:
    sizes = [(64, 128), (128, 64)] * 16
    padding = {}
    for grouped in (False, True):
        data = _open(
            Painted(sizes, [1] * 32),
            resize="keep",
            image_size=128,
            crop=0.0,
            group_by_aspect=grouped,
        )
        batches = list(data.loader("train", training=True))
        area = sum(batch.images.shape[0] * batch.images[0, 0].numel() for batch in batches)
        padding[grouped] = 1 - sum(int(batch.valid.prod(1).sum()) for batch in batches) / area
    assert padding[True] == 0
    assert padding[False] > 0.2


def test_damaged_headers_are_named_before_grouping() -> None:
    class Damaged(Painted):
        def size(self, split: str, index: int) -> tuple[int, int]:
            if index == 2:
                raise DataError("image 2 is empty (0 bytes)")
            return super().size(split, index)

    source = Damaged([(20, 30)] * 10, [1] * 10)
    data = _open(source, group_by_aspect=True)
    assert 2 in data.dataset("train", training=True).selection.positions
    list(data.loader("val"))
    with pytest.raises(DataError, match=r"1 of 8 training images are damaged:\nimage 2 is empty"):
        data.loader("train", training=True)


def test_large_images_are_kept_small_and_counted_so() -> None:
    source = Painted([(600, 600)] * 10, [2] * 10)
    source.info = replace(source.info, trusted=False)
    kept = _open(source, image_size=32, cache_limit_megabytes=1)  # as read: 11 megabytes
    images = kept.dataset("train", training=True)
    assert images.remember
    assert images[0].image.shape == (3, 128, 128)
    assert images[0].original_size == (600, 600)
    loose = _open(source, image_size=32, cache="none").dataset("train", training=True)
    key = BatchKey((0, 1, 2))
    assert _same([images[key]], [loose[key]])
    large = _open(source, image_size=320, cache_limit_megabytes=1)
    assert not large.dataset("train", training=True).remember


def _sample(image: Tensor, boxes: list, masks: Tensor | None = None, **options: object) -> Sample:
    size = (image.shape[1], image.shape[2])
    rles = None if masks is None else encode_masks(masks)
    labels = [number % 3 for number in range(len(boxes))]
    target = detection_target(boxes, labels, size, rles=rles, **options)
    return Sample(tv_tensors.Image(image), target, 0, "image", size)


def _trained(sample: Sample, *, masks: bool = False, **options: object) -> Batch:
    config = DetectionTransformConfig(**{"image_size": 128, **options})
    transform = DetectionTrainTransform(config, Painted([], []).info, masks=masks)
    images = [transform.resize(sample)] * 2
    augmented = [transform.augment(each, None, images) for each in images]
    return transform.collate(augmented, np.zeros(2, np.uint64), None)


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["stretch", "keep"])
def test_ten_thousand_pixels_with_three_thousand_masks(resize: str) -> None:
    check_large(10_000, 3000, resize)


def test_a_large_image_with_three_thousand_masks() -> None:
    check_large(2_000, 3000, "keep")


def check_large(side: int, count: int, resize: str) -> None:
    """A large image takes no more memory than a few copies of its pixels, whatever its masks."""
    resource = pytest.importorskip("resource")
    unit = side // 50
    image = torch.zeros((3, side, side), dtype=torch.uint8)
    image[1, 4 * unit : 6 * unit, 2 * unit : 3 * unit] = 255
    lengths = [2 * unit * side + 4 * unit, *[2 * unit, 8 * unit] * unit]
    lengths[-1] = side * side - sum(lengths[:-1])
    rle = counts_to_rle(lengths, (side, side))
    boxes = [[2 * unit, 4 * unit, 3 * unit, 6 * unit]] * count
    target = detection_target(boxes, [0] * count, (side, side), rles=[rle] * count)
    sample = Sample(tv_tensors.Image(image), target, 0, "image", (side, side))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = {"crop": 0.0, "horizontal_flip": 0.0, "photometric": 0.0, "resize": resize}
    batch = _trained(sample, masks=True, image_size=100, **options)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert used * 1024 < 12 * side * side + 8 * count * 128 * 128
    assert torch.allclose(batch.targets["boxes"][0], torch.tensor([4.0, 8, 6, 12]))
    assert (batch.targets["masks"][0].sum((1, 2)) == 8).all()
    assert (batch.images[0, 1] > 127).sum() == 8


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 10**6), st.data())
def test_a_window_of_a_mask_is_that_of_the_whole(
    height: int, width: int, share: float, seed: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    mask = (random.random((height, width)) < share).repeat(3, 0).repeat(5, 1)
    (rle,) = encode_masks(torch.from_numpy(mask)[None])
    lengths = run_lengths(rle["counts"])
    assert counts_to_rle(lengths.tolist(), mask.shape)["counts"] == rle["counts"]
    top, bottom = sorted(data.draw(st.tuples(*[st.integers(0, mask.shape[0])] * 2)))
    left, right = sorted(data.draw(st.tuples(*[st.integers(0, mask.shape[1])] * 2)))
    part = decode_window(rle, top, left, bottom, right)
    assert np.array_equal(part, mask[top:bottom, left:right])


def test_three_thousand_boxes_none_and_one_of_a_pixel() -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 480, (3000, 2))
    boxes = np.hstack([corners, corners + random.uniform(8, 40, (3000, 2))]).clip(0, 512)
    image = torch.zeros((3, 512, 512), dtype=torch.uint8)
    for options in ({"crop": 0.0}, {"crop": 1.0}, {"mosaic": 1.0}, {"zoom_out": 1.0}):
        batch = _trained(_sample(image, boxes.tolist()), **options)
        assert len(batch.targets["boxes"][0]) > 20
        assert len(batch.targets["boxes"][0]) == len(batch.targets["labels"][0])
    for options in ({"crop": 1.0}, {"mosaic": 1.0}, {"copy_paste": 1.0}):
        nothing = _sample(image, [], torch.zeros((0, 512, 512)))
        batch = _trained(nothing, masks=True, **options)
        assert [each.shape for each in batch.targets["boxes"]] == [(0, 4)] * 2
        assert [each.shape for each in batch.targets["masks"]] == [(0, 128, 128)] * 2
    plain = {"crop": 0.0, "horizontal_flip": 0.0}
    pixel = _sample(image, [[5, 5, 6, 6], [5, 5, 5, 9], [9, 9, 400, 400]])
    assert len(_trained(pixel, image_size=512, **plain).targets["boxes"][0]) == 2
    assert len(_trained(pixel, image_size=128, **plain).targets["boxes"][0]) == 1
    crowds = _sample(image, boxes[:5].tolist(), iscrowd=[1] * 5)
    assert len(_trained(crowds).targets["boxes"][0]) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (3, 3)])
def test_tiny_and_very_long_images(size: tuple[int, int]) -> None:
    image = torch.zeros((3, *size), dtype=torch.uint8)
    sample = _sample(image, [[0, 0, size[1], size[0]]], torch.ones((1, *size)))
    for resize in ("stretch", "keep"):
        options = {**ALL, "multi_scale": (), "resize": resize}
        for seed in range(20):
            torch.manual_seed(seed)
            batch = _trained(sample, masks=True, **options)
            assert batch.images.shape[2] % 64 == 0


def test_a_kept_sample_is_not_changed() -> None:
    sample = _sample(torch.randint(0, 255, (3, 60, 60), dtype=torch.uint8), [[5, 5, 30, 30]])
    copy = replace(
        sample,
        image=sample.image.clone(),
        target={name: value.clone() for name, value in sample.target.items()},
    )
    for options in ({"image_size": 60}, {"crop": 1.0}, {"mosaic": 1.0}):
        _trained(sample, **options)
    assert torch.equal(sample.image, copy.image)
    assert all(torch.equal(value, copy.target[name]) for name, value in sample.target.items())

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from castling.data import (
    Batch,
    ClassificationEvalTransform,
    ClassificationTrainTransform,
    ClassificationTransformConfig,
    DataInfo,
    Sample,
    Transform,
    image_tensor,
    pillow_image,
    stack_samples,
)
from castling.data.transforms.batches import shift_and_mirror
from castling.data.transforms.steps import Fit, RandomResizedCrop, apply_steps
from castling.utils.randomness import global_generators_kept, keys, seed_global_generators

INFO = DataInfo(classes=["a", "b"], splits={"train": 1})


def _noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def _sample(image: Image.Image, **target: Tensor) -> Sample:
    return Sample(
        image=image_tensor(image),
        target={"label": torch.tensor(1), **target},
        index=0,
        name="image",
        original_size=(image.height, image.width),
    )


def _train(**options: object) -> ClassificationTrainTransform:
    return ClassificationTrainTransform(ClassificationTransformConfig(**options), INFO)


def _evaluated(image: Image.Image, size: int | tuple[int, int]) -> Tensor:
    transform = ClassificationEvalTransform(ClassificationTransformConfig(image_size=size))
    return transform.resize(_sample(image)).image


def _run(transform: Transform, image: Image.Image, key: int = 0) -> Tensor:
    """All stages for one image."""
    with global_generators_kept():
        seed_global_generators(key)
        sample = transform.augment(transform.resize(_sample(image)), None)
    return transform.collate([sample], np.array([key], dtype=np.uint64), None).images[0]


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (90, 517)])
def test_evaluation_equals_torchvision(size: tuple[int, int]) -> None:
    image = _noise(*size)
    reference = v2.Compose(
        [
            v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(224),
            v2.PILToTensor(),
        ]
    )
    assert torch.equal(_evaluated(image, 224), reference(image))


def test_evaluation_warps_from_384_and_keeps_small_images_whole() -> None:
    gradient = Image.fromarray(np.tile(np.linspace(0, 255, 800).astype(np.uint8), (400, 1)))
    large = _evaluated(gradient.convert("RGB"), 384)
    assert large[0, 0, 0] < 3  # both ends of the gradient are still there
    assert large[0, 0, -1] > 252
    assert _evaluated(gradient.convert("RGB"), 224)[0, 0, 0] > 51
    small = _noise(32, 32)
    assert torch.equal(_evaluated(small, 32), image_tensor(small))


def test_non_square_sizes() -> None:
    for picture in (_noise(50, 400), _noise(400, 50), _noise(160, 96)):
        assert _evaluated(picture, (96, 160)).shape == (3, 96, 160)
        assert _run(_train(image_size=(96, 160)), picture, 5).shape == (3, 96, 160)


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1), (2, 60_000)])
def test_very_long_images_take_no_more_memory_than_others(size: tuple[int, int]) -> None:
    resource = pytest.importorskip("resource")
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    # What the centre crop keeps is white: a square of the shorter side, and the filter's border.
    middle = tuple(slice(max(0, side // 2 - 9), side // 2 + 9) for side in pixels.shape[:2])
    pixels[middle] = 255
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = _evaluated(Image.fromarray(pixels), 224)
    assert found.shape == (3, 224, 224)
    assert (found == 255).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_the_middle_of_a_long_image_is_that_of_a_shorter_one() -> None:
    image = _noise(30, 50_000)  # too long to be scaled whole
    shorter = image.crop((0, 25_000 - 450, 30, 25_000 + 450))
    difference = _evaluated(image, 224).float() - _evaluated(shorter, 224).float()
    assert difference.abs().mean() < 1  # lengths are rounded to pixels, and the filter's border


def test_pillow_and_tensors_convert_without_loss() -> None:
    image = _noise(7, 5)
    tensor = image_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((3, 5, 7), torch.uint8)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(image))
    for layout in (tensor, tensor.contiguous()):
        assert np.array_equal(np.asarray(pillow_image(layout)), np.asarray(image))


def test_shift_and_mirror_cut_a_window_of_the_bordered_image() -> None:
    pixels = torch.randint(1, 256, (64, 3, 8, 8), dtype=torch.uint8)
    sample_keys = keys(0, np.arange(64))
    moved = shift_and_mirror(pixels, sample_keys, padding=2, flip=0.5)
    bordered = torch.nn.functional.pad(pixels, (2,) * 4)
    seen = set()
    for index in range(64):
        windows = {
            (top, left, flip): window.flip(2) if flip else window
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            for window in [bordered[index, :, top : top + 8, left : left + 8]]
        }
        found = [place for place, window in windows.items() if torch.equal(window, moved[index])]
        assert len(found) == 1
        seen.update(found)
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert {flip for _, _, flip in seen} == {False, True}
    again = shift_and_mirror(pixels[10:20], sample_keys[10:20], padding=2, flip=0.5)
    assert torch.equal(again, moved[10:20])  # the company of a batch does not matter


def test_the_key_decides_everything() -> None:
    transform = _train(
        image_size=32, crop="resized", auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.3
    )
    picture = _noise(60, 40)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, again, other = (_run(transform, picture, key) for key in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize(
    "policy", ["rand-m10-n4-inc1", "rand-m9-mstd0.5-inc1", "rand-n1-m3", "original", "augmix-m3-w3"]
)
def test_timm_policies_run_at_every_strength(policy: str) -> None:
    transform = _train(image_size=16, crop="none", auto_augment=policy)
    results = [_run(transform, _noise(16, 16), key) for key in range(60)]
    assert len({result.numpy().tobytes() for result in results}) > 10


def test_an_unknown_policy_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="auto_augment is 'rnd-m9'"):
        _train(auto_augment="rnd-m9")


def test_colour_jitter_changes_colours_alone() -> None:
    transform = _train(image_size=16, crop="none", color_jitter=0.5, horizontal_flip=0.0)
    grey = Image.new("RGB", (16, 16), (100, 100, 100))
    values = {int(_run(transform, grey, key).unique().item()) for key in range(20)}
    assert len(values) > 5


def _with_boxes(image: Image.Image) -> Sample:
    """An image whose red area is both a mask and a box."""
    pixels = np.zeros((image.height, image.width, 3), dtype=np.uint8)
    pixels[10:30, 20:60, 0] = 255
    mask = torch.from_numpy(pixels[..., 0] > 0)
    return _sample(
        Image.fromarray(pixels),
        boxes=tv_tensors.BoundingBoxes(
            torch.tensor([[20.0, 10.0, 60.0, 30.0]]), format="XYXY", canvas_size=mask.shape
        ),
        mask=tv_tensors.Mask(mask.to(torch.uint8)),
    )


@pytest.mark.parametrize(
    "step",
    [
        Fit((48, 48), warp=True, fraction=1, interpolation="nearest"),
        Fit((48, 64), warp=False, fraction=0.875, interpolation="bicubic"),
        Fit((160, 90), warp=False, fraction=1, interpolation="bilinear"),
        RandomResizedCrop((64, 64), scale=(0.5, 1.0), ratio=(0.8, 1.2), interpolation="bicubic"),
    ],
)
def test_boxes_and_masks_stay_in_step_with_the_image(step: v2.Transform) -> None:
    random.seed(3)
    changed = apply_steps(_with_boxes(Image.new("RGB", (80, 50))), step)
    size = tuple(step.size)
    assert tuple(changed.image.shape[1:]) == tuple(changed.target["mask"].shape) == size
    assert changed.target["boxes"].canvas_size == size
    red = changed.image[0] > 127
    mask = changed.target["mask"] > 0
    assert red.any()
    assert (red != mask).float().mean() < 0.03  # the filters differ at the border
    left, top, right, bottom = changed.target["boxes"][0].round().long().tolist()
    rows, columns = red.any(1).nonzero()[:, 0], red.any(0).nonzero()[:, 0]
    assert abs(rows.min() - max(top, 0)) <= 1
    assert abs(rows.max() + 1 - min(bottom, size[0])) <= 1
    assert abs(columns.min() - max(left, 0)) <= 1
    assert abs(columns.max() + 1 - min(right, size[1])) <= 1
    assert changed.target["label"] == 1


def test_policies_refuse_boxes_and_masks() -> None:
    transform = _train(image_size=16, crop="none", auto_augment="original")
    with pytest.raises(ValueError, match=r"auto_augment.*boxes or masks"):
        transform.augment(_with_boxes(Image.new("RGB", (80, 50))), None)


def test_stacking_pads_images_and_keeps_uneven_targets_as_lists() -> None:
    first = _sample(_noise(4, 6), boxes=torch.rand(2, 4))
    second = _sample(_noise(5, 3), boxes=torch.rand(1, 4))
    batch = stack_samples([first, second])
    assert isinstance(batch, Batch)
    assert batch.images.shape == (2, 3, 6, 5)
    assert batch.valid.tolist() == [[6, 4], [3, 5]]
    assert torch.equal(batch.images[0, :, :, :4], first.image)
    assert torch.equal(batch.images[1, :, :3], second.image)
    assert batch.images[0, :, :, 4:].sum() == batch.images[1, :, 3:].sum() == 0
    assert batch.targets["label"].tolist() == [1, 1]
    assert [len(boxes) for boxes in batch.targets["boxes"]] == [2, 1]
    assert batch.original_sizes == ((6, 4), (3, 5))

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from castling.data.pixels import shift_and_mirror
from PIL import Image
from torchvision.transforms import v2

from castling.data import AugmentConfig, DataConfig, EvalTransform, eval_transform, train_transform
from castling.utils.randomness import keys

HALF = (0.5, 0.5, 0.5)


def _noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (90, 517)])
def test_evaluation_equals_torchvision(size: tuple[int, int]) -> None:
    image = _noise(*size)
    reference = v2.Compose(
        [
            v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(HALF, (0.25,) * 3),
        ]
    )
    ours = EvalTransform(224, HALF, (0.25,) * 3)(image)
    assert torch.allclose(ours, reference(image), atol=1e-5)


def test_evaluation_warps_from_384_and_keeps_small_images_whole() -> None:
    gradient = Image.fromarray(np.tile(np.linspace(0, 255, 800).astype(np.uint8), (400, 1)))
    large = EvalTransform(384, HALF, HALF)(gradient.convert("RGB"))
    assert large[0, 0, 0] < -0.98  # both ends of the gradient are still there
    assert large[0, 0, -1] > 0.98
    cropped = EvalTransform(224, HALF, HALF)(gradient.convert("RGB"))
    assert cropped[0, 0, 0] > -0.6
    small = _noise(32, 32)
    expected = (torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255 - 0.5) / 0.5
    assert torch.allclose(EvalTransform(32, HALF, HALF)(small), expected, atol=1e-6)


def test_non_square_sizes() -> None:
    config = DataConfig(image_size=(96, 160))
    for picture in (_noise(50, 400), _noise(400, 50), _noise(160, 96)):
        assert eval_transform(config)(picture).shape == (3, 96, 160)
        assert train_transform(config)(picture, 5).shape == (3, 96, 160)


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


HEAVY = AugmentConfig(
    crop="resized",
    auto_augment="rand-m9-mstd0.5-inc1",
    color_jitter=0.3,
    erase_probability=0.5,
)


def test_the_key_decides_everything_and_global_generators_stay() -> None:
    transform = train_transform(DataConfig(image_size=32, augment=HEAVY))
    picture = _noise(60, 40)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, again, other = transform(picture, 7), transform(picture, 7), transform(picture, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize(
    "policy", ["rand-m10-n4-inc1", "rand-m9-mstd0.5-inc1", "rand-n1-m3", "original", "augmix-m3-w3"]
)
def test_timm_policies_run_at_every_strength(policy: str) -> None:
    augment = AugmentConfig(crop="none", auto_augment=policy)
    transform = train_transform(DataConfig(image_size=16, augment=augment))
    results = [transform(_noise(16, 16), key) for key in range(60)]
    assert len({result.numpy().tobytes() for result in results}) > 10


def test_an_unknown_policy_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="auto_augment is 'rnd-m9'"):
        train_transform(DataConfig(augment=AugmentConfig(auto_augment="rnd-m9")))


def test_erasing_changes_a_rectangle() -> None:
    augment = AugmentConfig(crop="none", horizontal_flip=0.0, erase_probability=1.0)
    plain = AugmentConfig(crop="none", horizontal_flip=0.0)
    picture = _noise(32, 32)
    erased, whole = (
        train_transform(DataConfig(augment=choice))(picture, 3) for choice in (augment, plain)
    )
    share = (erased != whole).any(0).float().mean()
    assert 0.02 < share < 0.4

from __future__ import annotations

import numpy as np
import pytest
import torch

from castling.data import MixConfig, erase_batch, mixes, mixup_batch, sample_keys

IMAGES = torch.rand(6, 3, 8, 8)
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])
RUN = {"classes": 4, "seed": 0, "epoch": 0}


@pytest.mark.parametrize(
    "config",
    [MixConfig(mixup=0.8), MixConfig(cutmix=1.0), MixConfig(mixup=0.8, cutmix=1.0)],
)
def test_images_and_targets_are_mixed_alike(config: MixConfig) -> None:
    kept = IMAGES.clone()
    images, targets = mixup_batch(IMAGES, TARGETS, config, batch_index=1, **RUN)
    assert torch.equal(IMAGES, kept)
    assert torch.allclose(targets.sum(1), torch.ones(6))
    share = targets[0, 0]  # the first image is of class 0, its partner of class 1
    assert torch.allclose(targets[0, 1], 1 - share)
    if config.mixup and not config.cutmix:
        assert torch.allclose(images, share * IMAGES + (1 - share) * IMAGES.flip(0), atol=1e-5)
    elif not config.mixup:
        pasted = (images[0] == IMAGES[5]).all(0).float().mean()
        assert torch.allclose(pasted, 1 - share, atol=1e-5)


def test_seed_epoch_batch_and_rank_decide() -> None:
    config = MixConfig(mixup=1.0)

    def share(**change: int) -> float:
        place = {**RUN, "batch_index": 0, **change}
        return float(mixup_batch(IMAGES, TARGETS, config, **place)[1][0, 0])

    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert share() == share()
    changed = [share(seed=1), share(epoch=1), share(batch_index=1), share(rank=1)]
    assert len({share(), *changed}) == 5
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_odd_batch_keeps_its_last_image() -> None:
    images, targets = mixup_batch(
        IMAGES[:5], TARGETS[:5], MixConfig(mixup=1.0), batch_index=0, **RUN
    )
    assert torch.equal(images[4], IMAGES[4])
    assert targets[4].tolist() == [1, 0, 0, 0]
    assert not torch.equal(images[0], IMAGES[0])


def test_without_mixing_only_the_form_of_targets_changes() -> None:
    config = MixConfig()
    assert not mixes(config)
    assert not mixes(MixConfig(mixup=1.0, probability=0.0))
    images, targets = mixup_batch(IMAGES, TARGETS, config, batch_index=0, **RUN)
    assert torch.equal(images, IMAGES)
    assert targets[1].tolist() == [0, 1, 0, 0]


def test_erasing_changes_a_rectangle_of_each_image_by_its_key() -> None:
    images = torch.rand(8, 3, 32, 32)
    kept = images.clone()
    keys = sample_keys(0, 1, range(8))
    state = torch.get_rng_state()
    erased = erase_batch(images, keys, 1.0)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(images, kept)
    for before, after in zip(images, erased, strict=True):
        changed = (before != after).any(0)
        assert 0.02 < changed.float().mean() < 0.4
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert area == changed.sum()
    # The company of a batch does not matter, nor its memory layout.
    part = images[3:5].contiguous(memory_format=torch.channels_last)
    assert torch.equal(erase_batch(part, keys[3:5], 1.0), erased[3:5])
    assert not torch.equal(erase_batch(images, sample_keys(0, 2, range(8)), 1.0), erased)


def test_erasing_modes_and_probability() -> None:
    images = torch.rand(64, 3, 16, 16)
    keys = sample_keys(3, 0, range(64))
    assert erase_batch(images, keys, 0.0) is images
    share = (erase_batch(images, keys, 0.5) != images).any((1, 2, 3)).float().mean()
    assert 0.3 < share < 0.7
    for mode, values in (("const", 1), ("rand", 1), ("pixel", None)):
        erased = erase_batch(images, keys, 1.0, mode)
        red = erased[0, 0][erased[0, 0] != images[0, 0]]
        assert len(red.unique()) == (values or len(red))
        assert (mode == "const") == bool((red == 0).all())

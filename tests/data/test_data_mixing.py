from __future__ import annotations

import numpy as np
import pytest
import torch

from castling.data import AugmentConfig, mixes, mixup_batch

IMAGES = torch.rand(6, 3, 8, 8)
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])
RUN = {"classes": 4, "seed": 0, "epoch": 0}


@pytest.mark.parametrize(
    "config",
    [AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0), AugmentConfig(mixup=0.8, cutmix=1.0)],
)
def test_images_and_targets_are_mixed_alike(config: AugmentConfig) -> None:
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
    config = AugmentConfig(mixup=1.0)

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
        IMAGES[:5], TARGETS[:5], AugmentConfig(mixup=1.0), batch_index=0, **RUN
    )
    assert torch.equal(images[4], IMAGES[4])
    assert targets[4].tolist() == [1, 0, 0, 0]
    assert not torch.equal(images[0], IMAGES[0])


def test_without_mixing_targets_are_smoothed_alone() -> None:
    config = AugmentConfig()
    assert not mixes(config)
    images, targets = mixup_batch(IMAGES, TARGETS, config, batch_index=0, smoothing=0.1, **RUN)
    assert torch.equal(images, IMAGES)
    assert torch.allclose(targets[1], torch.tensor([0.025, 0.925, 0.025, 0.025]))

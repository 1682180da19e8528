"""Loaders whose batches depend on (seed, epoch) and on nothing else."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from castling.data.config import DataConfig
from castling.data.dataset import ImageSet
from castling.data.images import ImageData
from castling.data.sampler import EpochBatches

Loader = DataLoader[tuple[Tensor, Tensor]]


class Loaders(NamedTuple):
    """One loader per split; each gives ((B, 3, H, W) of float32, (B,) of int64)."""

    train: Loader
    val: Loader
    test: Loader


def loaders(
    config: DataConfig,
    data: ImageData,
    *,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Loaders:
    """Loaders of one process.

    Before every training epoch call `loaders.train.sampler.set_epoch(epoch)` (Lightning does so by
    itself); the samplers split the images over the processes, so nothing else may.

    Args:
        config: batch sizes, workers, seed, resolutions.
        data: from `open_images(config)`.
        rank: number of this process.
        world_size: number of processes.
        pin_memory: place batches in page-locked memory, for transfer to an accelerator.

    Raises:
        ValueError: there are fewer images than processes.
    """

    def loader(images: ImageSet, *, train: bool) -> Loader:
        sampler = EpochBatches(
            len(images),
            config.batch_size if train else config.eval_batch_size or config.batch_size,
            train=train,
            seed=config.seed,
            rank=rank,
            world_size=world_size,
            sides=config.augment.multi_scale if train else (),
        )
        if config.workers and images.remember:
            images.fill()  # once here, rather than in every worker
        return DataLoader(
            images,  # type: ignore[arg-type]
            sampler=sampler,
            batch_size=None,  # the sampler's keys already stand for whole batches
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            pin_memory=pin_memory,
            # Without its own generator every iteration would advance PyTorch's global one.
            generator=torch.Generator().manual_seed(config.seed),
        )

    return Loaders(
        loader(data.train, train=True),
        loader(data.val, train=False),
        loader(data.test, train=False),
    )

"""Loaders that can begin in the middle of an epoch, and generators that follow from the step.

Nothing random depends on history: order, augmentation and mixing follow from (seed, epoch, batch),
everything else from (seed, step). So a run resumed anywhere computes what the uninterrupted run
would have computed, and no generator state has to be saved.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from castling.data import BatchKey, DataConfig, DataError, EpochBatches, ImageData, loaders
from castling.data.loading import Loader
from castling.train.recipe import Recipe
from castling.utils.randomness import keys


def seed_everything(*numbers: int) -> None:
    """Seed Python, NumPy and PyTorch, on all devices, from a mixture of ``numbers``."""
    seed = int(keys(*numbers)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 libraries draw from the global state
    torch.manual_seed(seed >> 1)


def data_config(recipe: Recipe) -> DataConfig:
    """The recipe's data with what the rest of the recipe says about it: seed and workers."""
    workers = recipe.hardware.workers
    return dataclasses.replace(
        recipe.data,
        seed=recipe.data.seed + recipe.seed,
        workers=recipe.data.workers if workers is None else workers,
    )


@contextmanager
def plain_data_errors() -> Iterator[None]:
    """Reduce a DataError out of a loader's worker process to its message.

    PyTorch puts the worker's traceback before it.
    """
    try:
        yield
    except DataError as error:
        _, within_worker, message = str(error).rpartition(
            f"{DataError.__module__}.{DataError.__qualname__}: "
        )
        if not within_worker:
            raise
        raise DataError(message.strip()) from error


class ResumableBatches(Sampler[BatchKey]):
    """The batches of a training epoch, from a chosen one on.

    Args:
        batches: the whole epoch.
    """

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches
        self.first = 0

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration begin at ``batch`` of ``epoch``."""
        self.batches.set_epoch(epoch)
        self.first = batch

    def set_epoch(self, epoch: int) -> None:
        """What Lightning calls before each epoch: does not disturb the epoch that is resumed."""
        if epoch != self.batches.epoch:
            self.seek(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[BatchKey]:
        return itertools.islice(iter(self.batches), self.first, None)


class TrainLoader(DataLoader):
    """A loader that Lightning sees as resumable; :class:`ResumableBatches` does the work."""

    def state_dict(self) -> dict[str, int]:
        """Nothing: the position follows from the step."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to take over."""


def train_loader(
    config: DataConfig, data: ImageData, start: tuple[int, int], rank: int = 0, world: int = 1
) -> TrainLoader:
    """Training batches of one process from ``start`` = (epoch, batch) on."""
    whole = loaders(
        config, data, rank=rank, world_size=world, pin_memory=torch.cuda.is_available()
    ).train
    assert isinstance(whole.sampler, EpochBatches)
    batches = ResumableBatches(whole.sampler)
    batches.seek(*start)
    return TrainLoader(
        whole.dataset,
        sampler=batches,
        batch_size=None,
        num_workers=whole.num_workers,
        persistent_workers=whole.persistent_workers,
        pin_memory=whole.pin_memory,
        generator=whole.generator,
    )


def evaluation_loaders(
    config: DataConfig, data: ImageData, rank: int = 0, world: int = 1
) -> dict[str, Loader]:
    """Loaders of one process's share of "val" and "test"; only "val" where the two are one."""
    made = loaders(config, data, rank=rank, world_size=world, pin_memory=torch.cuda.is_available())
    if data.test is data.val:
        return {"val": made.val}
    return {"val": made.val, "test": made.test}


def batches_per_epoch(config: DataConfig, images: int, world: int) -> int:
    """Training batches that each of ``world`` processes sees in an epoch."""
    return len(EpochBatches(images, config.batch_size, train=True, world_size=world))

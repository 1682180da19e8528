"""A source made ready: splits, checks, memory, and the loaders of all splits."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from castling.data.config import DataConfig, LoaderConfig
from castling.data.dataset import ImageSet
from castling.data.registry import Source
from castling.data.sample import Batch
from castling.data.sampler import EpochBatches
from castling.data.splits import Indices, choose_images
from castling.data.transforms.base import Transform
from castling.data.verify import total_pixels, visit_all
from castling.data.workers import outlive_signals

_SPLITS = {"train": "training", "val": "validation", "test": "test"}


class BatchLoader(DataLoader[Batch]):
    """Batches of one process.

    Lightning resumes within an epoch only where a loader has a state; here the position follows
    from the step, and :meth:`EpochBatches.seek` goes there.
    """

    sampler: EpochBatches

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


class DataModule:
    """The images of a source, ready to be read.

    Opening makes the splits that the source lacks, checks the images, and keeps them in memory
    where they fit.

    Args:
        source: from :func:`castling.data.open_source`.
        config: splits and loaders; its source and transform are not looked at.
        train_transform: of training batches.
        eval_transform: of all others.
        seed: of order, resolutions and augmentation.

    Attributes:
        info: what the source says about itself.
        notes: what a person should know about the data and how its splits came about.

    Raises:
        DataError: images are damaged, or too few for the splits.
    """

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        train_transform: Transform,
        eval_transform: Transform,
        *,
        seed: int = 0,
    ) -> None:
        self.info = source.info
        self.config = config
        self.seed = seed
        self._selections, notes = choose_images(source, config.split)
        self.notes = tuple(notes)
        self._eval_transform = eval_transform
        self._sets: dict[tuple[str, bool], ImageSet] = {}
        budget = config.loader.cache_limit_megabytes * 10**6
        for split in self.sizes:
            training = split == "train"
            images = ImageSet(
                self._selections[split],
                train_transform if training else eval_transform,
                seed=seed,
            )
            budget -= _verify_and_keep(images, config.loader, budget, _SPLITS[split])
            self._sets[split, training] = images

    @property
    def classes(self) -> list[str]:
        """Readable names in the order of the labels."""
        return self.info.classes

    @property
    def has_test(self) -> bool:
        """Whether the test images are others than those of validation."""
        return self._selections["test"] is not self._selections["val"]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of each split; without ``test`` where those are the images of val."""
        return {
            split: len(self._selections[split])
            for split in _SPLITS
            if split != "test" or self.has_test
        }

    def dataset(self, split: str, *, training: bool = False) -> ImageSet:
        """The images of ``train``, ``val`` or ``test``.

        Args:
            split: ``test`` gives the images of ``val`` where the source has no others.
            training: with random augmentation; for ``train`` alone.

        Raises:
            ValueError: there is no such split, or it is not for training.
        """
        if split not in _SPLITS:
            raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
        if training and split != "train":
            raise ValueError(f"only the train split is for training, got {split!r}")
        if split == "test" and not self.has_test:
            split = "val"
        if (split, training) not in self._sets:  # training images without augmentation
            self._sets[split, training] = ImageSet(
                self._selections[split], self._eval_transform, seed=self.seed
            )
        return self._sets[split, training]

    def loader(
        self,
        split: str,
        *,
        training: bool = False,
        start: tuple[int, int] = (0, 0),
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> BatchLoader:
        """One process's batches of a split.

        Before every training epoch call ``loader.sampler.set_epoch(epoch)`` (Lightning does so by
        itself); the sampler splits the images over the processes, so nothing else may.

        Args:
            split: as for :meth:`dataset`.
            training: shuffled, augmented, in whole batches; otherwise every image once, in order.
            start: (epoch, batch) of the first batch, for a run that is resumed.
            rank: number of this process.
            world_size: number of processes.
            pin_memory: place batches in page-locked memory, for transfer to an accelerator.

        Raises:
            ValueError: there is no such split, or there are fewer images than processes.
        """
        images, options = self.dataset(split, training=training), self.config.loader
        sampler = EpochBatches(
            len(images),
            options.batch_size if training else options.eval_batch_size or options.batch_size,
            train=training,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            sides=images.transform.sides if training else (),
            labels=self._balanced_labels() if training else None,
        )
        sampler.seek(*start)
        if options.workers and images.remember:
            images.fill()  # once here, rather than in every worker
        return BatchLoader(
            images,  # type: ignore[arg-type]
            sampler=sampler,
            batch_size=None,  # the sampler's keys already stand for whole batches
            num_workers=options.workers,
            persistent_workers=options.workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=outlive_signals,
            # Without its own generator every iteration would advance PyTorch's global one.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _balanced_labels(self) -> Indices | None:
        """Classes of the training images where these are to be drawn equally often; else None."""
        if self.config.loader.sampler == "shuffle":
            return None
        labels = self._selections["train"].labels
        if labels is None:
            raise ValueError("data.loader.sampler is balanced, but the images have no classes")
        return labels

    def batches_per_epoch(self, world_size: int = 1) -> int:
        """Training batches that each of ``world_size`` processes sees in an epoch."""
        batch_size = self.config.loader.batch_size
        return len(EpochBatches(self.sizes["train"], batch_size, train=True, world_size=world_size))


def _verify_and_keep(images: ImageSet, config: LoaderConfig, budget: int, what: str) -> int:
    """Verify the files of one split, and decode and keep its images if they may be kept.

    Args:
        images: the split.
        config: what to verify and to keep.
        budget: bytes that may be used.
        what: which images, for errors.

    Returns:
        Bytes that are used.

    Raises:
        DataError: images are damaged; the first are named.
    """
    selection, size = images.selection, images.transform.fixed_size
    may_check = config.verify != "none" and not selection.source.info.trusted
    need = None if size is None else 3 * len(images) * size[0] * size[1]
    measured = need is None and config.cache == "auto" and may_check
    if measured:
        need = 3 * total_pixels(selection, what)
    fits = need is not None and need <= budget
    if config.cache == "memory" or (config.cache == "auto" and fits):
        images.remember = True
        if config.verify != "none":
            images.fill(what)
        return need or 0
    if config.verify == "full":
        visit_all(len(images), selection.sample, what)
    elif may_check and not measured:
        total_pixels(selection, what)
    return 0

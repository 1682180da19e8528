"""A source made ready: splits, checks, memory, and the loaders of all splits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from castling.data.aspects import aspect_groups
from castling.data.config import DataConfig
from castling.data.dataset import ImageSet
from castling.data.hold_out import Indices
from castling.data.keep import verify_and_keep
from castling.data.keys import ImageKeys
from castling.data.problems import ReportingSource
from castling.data.recorded import Changes, add_new, find_recorded
from castling.data.registry import FileSource, Source
from castling.data.sample import Batch
from castling.data.sampler import EpochBatches
from castling.data.split_record import SplitRecord, record_split
from castling.data.splits import Selection, choose_images, share_missing
from castling.data.transforms.base import Transform
from castling.data.verify import Damage
from castling.data.workers import outliving_signals

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
        config: splits and loaders; its transform is not looked at.
        train_transform: of training batches.
        eval_transform: of all others.
        seed: of order, resolutions and augmentation.
        record: the split of a run, which is taken in place of a new one.
        take_in: let files that are not in the record join its splits.
        whole: take all images of a source without splits for every split, and hold none out.
        read: the splits that will be read: they are checked and kept in memory.

    Attributes:
        source: as given.
        info: what the source says about itself.
        notes: what a person should know about the data and how its splits came about.
        changes: how the source differs from the record.

    Raises:
        DataError: the source reports errors; images are damaged, or too few for the splits; or the
            record's classes or images are gone.
    """

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        train_transform: Transform,
        eval_transform: Transform,
        *,
        seed: int = 0,
        record: SplitRecord | None = None,
        take_in: bool = False,
        whole: bool = False,
        read: Collection[str] = tuple(_SPLITS),
    ) -> None:
        self.info = source.info
        self.config = config
        self.seed = seed
        self.source = source
        remarks = _check(source, config, read)
        self._before = record
        self.changes = Changes()
        self._keys: ImageKeys | None = None
        if isinstance(source, FileSource) and config.split.by != "position":
            self._keys = ImageKeys(source, config.split.by)
        if record is not None and record.images and isinstance(source, FileSource):
            if "test" in read and "test" not in record.images:
                read = {*read, "val"}
            self._selections, self.changes = find_recorded(source, record, self._keys, read)
            if take_in:
                add_new(self._selections, source, self.changes.added, config.split, self._keys)
            notes = [*source.info.notes, *share_missing(self._selections)]
        elif whole:
            everything = Selection(source, "train", np.arange(source.info.splits["train"]))
            self._selections = dict.fromkeys(_SPLITS, everything)
            notes = list(source.info.notes)
        else:
            self._selections, notes = choose_images(source, config.split, self._keys)
        self._eval_transform = eval_transform
        self._groups: Indices | None = None
        self._sets: dict[tuple[str, bool], ImageSet] = {}
        budget = config.loader.cache_limit_megabytes * 10**6
        damage = Damage()
        for split in self.sizes:
            if split not in read and not (split == "val" and "test" in read and not self.has_test):
                continue
            training = split == "train" and train_transform is not eval_transform
            images = ImageSet(
                self._selections[split],
                train_transform if training else eval_transform,
                seed=seed,
            )
            budget -= verify_and_keep(images, config.loader, budget, _SPLITS[split], damage)
            self._sets[split, training] = images
        damage.report()
        if isinstance(source, FileSource) and source.noticed:
            notes.append(
                f"images read with a fault: {len(source.noticed)}, such as "
                + next(iter(source.noticed.values()))
            )
        self.notes: tuple[str, ...] = (*notes, *remarks)

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

    def record(self) -> SplitRecord:
        """The images of every split, for the run's folder; by content, every file is read once."""
        name = str(self.config.source)
        return record_split(self.source, name, self._selections, self._keys, self._before)

    def contents(self, split: str) -> list[str]:
        """Digest of every image of a split; empty where images are not known by their content."""
        if self._keys is None or self._keys.by != "content":
            return []
        chosen = self.dataset(split).selection
        return self._keys.of(chosen.split, chosen.positions.tolist())

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
            last_batch=options.last_batch,
            groups=self._aspects() if training and options.group_by_aspect else None,
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
            worker_init_fn=outliving_signals(),
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

    def _aspects(self) -> Indices:
        """Group of every training image by aspect ratio."""
        if self._groups is None:
            self._groups = aspect_groups(self._selections["train"], _SPLITS["train"])
        return self._groups

    def batches_per_epoch(self, world_size: int = 1) -> int:
        """Training batches that each of ``world_size`` processes sees in an epoch."""
        return len(self._epoch(world_size))

    def dropped_per_epoch(self, world_size: int = 1) -> int:
        """Training images that an epoch leaves out, because they do not fill a batch."""
        return self._epoch(world_size).dropped

    def _epoch(self, world_size: int) -> EpochBatches:
        return EpochBatches(
            self.sizes["train"],
            self.config.loader.batch_size,
            train=True,
            world_size=world_size,
            last_batch=self.config.loader.last_batch,
        )


def _check(source: Source, config: DataConfig, read: Collection[str]) -> list[str]:
    """The notes of a source that reports on itself.

    Raises:
        FaultyDataError: it reports errors.
    """
    if not isinstance(source, ReportingSource):
        return []
    # Splits that the source lacks are made of others.
    splits = read if all(split in source.info.splits for split in read) else source.info.splits
    report = source.report(splits, config.loader.verify)
    report.raise_errors()
    return [str(problem) for problem in report.notes]

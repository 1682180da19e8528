"""Which images make which batch: a function of (seed, epoch) alone.

Nothing random depends on history, so a run that is resumed anywhere sees the batches that the
uninterrupted run would have seen, and no generator state has to be saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from castling.utils.randomness import Keys, keys

LastBatch = Literal["auto", "drop", "fill"]

MOST_DROPPED = 0.1
"""Share of the training images that an epoch may leave out, others in every epoch."""

_ORDER, _RESOLUTION, _BALANCE, _EXTRA, _TURN = 1, 2, 3, 4, 5  # streams of random numbers


class BatchKey(NamedTuple):
    """All that a worker needs to make a batch.

    Attributes:
        indices: positions in the data set.
        epoch: decides the augmentations, with the seed and the index.
        size: (height, width) of this batch; None is the configured size.
    """

    indices: tuple[int, ...]
    epoch: int = 0
    size: tuple[int, int] | None = None


def sample_keys(seed: int, epoch: int, index: ArrayLike) -> Keys:
    """The key of every (seed, epoch, index), from which all random choices for a sample follow.

    Args:
        seed: of the data module.
        epoch: from 0.
        index: (B,) positions in the split; of a batch: ``batch.index.cpu()``.
    """
    return keys(seed, epoch, np.asarray(index, dtype=np.int64))


class EpochBatches(Sampler[BatchKey]):
    """Batches of one process, for one epoch at a time.

    A permutation of the whole set is drawn from (seed, epoch) and cut into global batches; each
    process takes its part of every global batch. So two processes with batch size 16 see together
    what one sees with 32, and an epoch looks the same whether or not the run was resumed before it.

    In training all batches are whole, because the last, incomplete global batch is left out or
    filled with images of the epoch's beginning (a smaller set makes one smaller batch). In
    evaluation every image is seen exactly once, and the last global batch is shared out.

    ``set_epoch`` is called by Lightning before every epoch; other loops call it themselves.
    ``len`` is that of a whole epoch, also where the next iteration begins in its middle.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        sides: Sequence[int] = (),
        labels: NDArray[np.int64] | None = None,
        last_batch: LastBatch = "auto",
        groups: NDArray[np.int64] | None = None,
    ) -> None:
        """Describe the batches.

        Args:
            length: images in the set.
            batch_size: images per batch and process.
            train: shuffle, keep batches whole and draw resolutions; otherwise go in order.
            seed: of order and resolutions.
            rank: number of this process.
            world_size: number of processes.
            sides: sides in pixels, one of which every batch draws (all processes the same); empty
                for the configured size.
            labels: (length,) classes, which are then drawn equally often: an epoch has as many
                images as before, those of large classes left out and those of small ones repeated.
            last_batch: ``drop`` or ``fill`` an incomplete one; ``auto`` fills where dropping would
                leave out more than ``MOST_DROPPED`` of the images. In training alone.
            groups: (length,) numbers, such as aspect ratios: images of one number, or of
                neighbouring ones where a group ends, come together in training batches.

        Raises:
            ValueError: the rank does not exist, or there are fewer images than processes.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it must lie in [0, {world_size})")
        if length < world_size:
            raise ValueError(f"{length} images cannot feed {world_size} processes")
        self.length = length
        self.train = train
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.sides = tuple(sides)
        self.labels = labels
        self.groups = groups
        self.batch_size = min(batch_size, math.ceil(length / world_size)) if train else batch_size
        rest = length % (self.batch_size * world_size)
        much = rest > MOST_DROPPED * length
        self.fill = train and rest > 0 and (last_batch == "fill" or (last_batch == "auto" and much))
        self.epoch = 0
        self.first = 0

    @property
    def dropped(self) -> int:
        """Training images that an epoch leaves out."""
        return max(0, self.length - len(self) * self.batch_size * self.world_size)

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration begin at ``batch`` of ``epoch``; both count from 0."""
        self.epoch, self.first = epoch, batch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of ``epoch``; the epoch that :meth:`seek` chose is left as it is."""
        if epoch != self.epoch:
            self.seek(epoch)

    def __len__(self) -> int:
        whole = self.batch_size * self.world_size
        batches = self.length // whole
        if self.train:
            return max(1, batches + self.fill)
        start, stop = self._part(batches)
        return batches + (1 if stop > start else 0)

    def __iter__(self) -> Iterator[BatchKey]:
        order = places = np.arange(self.length)
        if self.train:
            if self.labels is not None:
                order = self._balanced(self.labels)
            order = order[np.argsort(keys(self.seed, _ORDER, self.epoch, places), kind="stable")]
            if self.groups is not None:
                order = self._grouped(order, self.groups)
        for batch in range(self.first, len(self)):
            # A filled last batch wraps around, and a set that is smaller than one global batch.
            chosen = order.take(range(*self._part(batch)), mode="wrap")
            yield BatchKey(tuple(chosen.tolist()), self.epoch, self._size(batch))

    def _grouped(self, order: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images of an order's batches, sorted into batches by group; batches in random order.

        Which images are left out or come twice was decided by the order, so no group is preferred.
        """
        whole = self.batch_size * self.world_size
        order = order.take(range(len(self) * whole), mode="wrap")
        batches = order[np.argsort(groups[order], kind="stable")].reshape(-1, whole)
        turns = keys(self.seed, _TURN, self.epoch, np.arange(len(batches)))
        return batches[np.argsort(turns, kind="stable")].reshape(-1)

    def _balanced(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """(length,) images of this epoch, equally many of every class that has any."""
        classes = np.unique(labels)
        share, rest = divmod(self.length, len(classes))
        # Which classes get one more than the others changes from epoch to epoch.
        more = np.argsort(keys(self.seed, _EXTRA, self.epoch, classes), kind="stable")[:rest]
        wanted = np.full(len(classes), share)
        wanted[more] += 1
        chosen = []
        for label, count in zip(classes, wanted, strict=True):
            members = np.flatnonzero(labels == label)
            order = np.argsort(keys(self.seed, _BALANCE, self.epoch, members), kind="stable")
            chosen.append(np.resize(members[order], count))  # from the beginning again, if short
        return np.concatenate(chosen)

    def _part(self, batch: int) -> tuple[int, int]:
        """Where this process's part of a global batch begins and ends in the order."""
        whole = self.batch_size * self.world_size
        held = whole if self.train else min(whole, self.length - batch * whole)
        start = batch * whole + held * self.rank // self.world_size
        return start, batch * whole + held * (self.rank + 1) // self.world_size

    def _size(self, batch: int) -> tuple[int, int] | None:
        if not self.sides:
            return None
        key = int(keys(self.seed, _RESOLUTION, self.epoch, batch)[0])
        side = self.sides[key % len(self.sides)]
        return side, side

"""The images of one split as a torch data set, with a memory for what does not change."""

from __future__ import annotations

from dataclasses import replace
from typing import overload

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from castling.data.sample import Batch, Sample, stack_samples
from castling.data.sampler import BatchKey, sample_keys
from castling.data.splits import Selection
from castling.data.transforms.base import Transform
from castling.data.verify import Damage
from castling.utils.randomness import global_generators_kept, seed_global_generators


class ImageSet(Dataset[Sample]):
    """Images of one split.

    ``images[i]`` is a sample after the fixed stage of its transform. ``images[BatchKey(...)]`` is
    a whole batch after all stages: this is what our loaders ask for.

    Args:
        selection: the images with their targets.
        transform: from samples to batches.
        seed: of the augmentation.
    """

    def __init__(self, selection: Selection, transform: Transform, *, seed: int) -> None:
        self.selection = selection
        self.transform = transform
        self.seed = seed
        #: Whether samples are kept in memory after the fixed stage.
        self.remember = False
        self._stack: Batch | None = None
        self._list: list[Sample] = []

    def __len__(self) -> int:
        return len(self.selection)

    def name(self, index: int) -> str:
        """How a person finds the image."""
        return self.selection.name(index)

    @torch.inference_mode(False)  # kept tensors outlive the evaluation that may ask for them first
    def fill(self, what: str = "", damage: Damage | None = None) -> None:
        """Decode every image once and keep it.

        Args:
            what: which images, for the error.
            damage: takes the damaged images, if there are any, and nothing is kept then.

        Raises:
            DataError: without ``damage``: images are damaged; the first are named.
        """
        if self._stack is not None or self._list:
            return
        if damage is None:
            damage = Damage()
            self.fill(what, damage)
            damage.report()
            return
        found: dict[int, Sample] = {}
        size = self.transform.fixed_size
        if size is None:

            def keep(index: int) -> None:
                found[index] = self._read(index)

            damage.visit(len(self), keep, what)
            if len(found) == len(self):
                self._list = [found[index] for index in range(len(self))]
            return
        if self.transform.random:  # one by one to Pillow, which wants channels last
            images = torch.empty((len(self), *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        else:
            images = torch.empty((len(self), 3, *size), dtype=torch.uint8)

        def keep_stacked(index: int) -> None:
            sample = self._read(index)
            images[index] = sample.image.as_subclass(Tensor)
            found[index] = replace(sample, image=tv_tensors.Image(images[index]))

        damage.visit(len(self), keep_stacked, what)
        if len(found) == len(self):
            self._stack = stack_samples([found[index] for index in range(len(self))], images)

    @overload
    def __getitem__(self, key: int) -> Sample: ...

    @overload
    def __getitem__(self, key: BatchKey) -> Batch: ...

    def __getitem__(self, key: int | BatchKey) -> Sample | Batch:
        """One sample, or a batch of them; see the class.

        Raises:
            DataError: an image is damaged; the file is named.
            IndexError: there is no such image.
        """
        if isinstance(key, BatchKey):
            return self._batch(key)
        if not -len(self) <= key < len(self):
            raise IndexError(f"image {key} of {len(self)}")
        return self._resized(key % len(self))

    def _batch(self, key: BatchKey) -> Batch:
        if self.remember:
            self.fill()
        keys = sample_keys(self.seed, key.epoch, key.indices)
        transform = self.transform
        if self._stack is not None and not transform.random:
            return transform.collate(self._stack.select(key.indices), keys, key.size)
        samples = [self._resized(index) for index in key.indices]
        if transform.random:
            with global_generators_kept():
                for row, (sample, sample_key) in enumerate(zip(samples, keys, strict=True)):
                    seed_global_generators(int(sample_key))
                    samples[row] = transform.augment(sample, key.size, self)
        return transform.collate(samples, keys, key.size)

    def _resized(self, index: int) -> Sample:
        """One sample after the fixed stage."""
        stack = self._stack
        if stack is None:
            return self._list[index] if self._list else self._read(index)
        return Sample(
            image=tv_tensors.Image(stack.images[index]),
            target={name: values[index] for name, values in stack.targets.items()},
            index=index,
            name=stack.names[index],
            original_size=stack.original_sizes[index],
        )

    def _read(self, index: int) -> Sample:
        return self.transform.resize(self.selection.sample(index))

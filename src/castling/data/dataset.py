"""Labelled images as a torch data set, with a memory for what does not change."""

from __future__ import annotations

from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from castling.data.pixels import to_pixels
from castling.data.sampler import BatchKey
from castling.data.sources import Labelled, for_all
from castling.data.transforms import Transform, sample_keys_of
from castling.utils.randomness import global_generators_kept


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Images of one split.

    `images[i]` is a normalised (3, H, W) float tensor and its class. `images[BatchKey(...)]` is a
    whole batch, (B, 3, H, W) and (B,) of int64: this is what our loaders ask for.
    """

    def __init__(self, selection: Labelled, transform: Transform, *, seed: int) -> None:
        """Describe the set; nothing is read yet.

        Args:
            selection: the images and their classes.
            transform: from image to tensor.
            seed: of the augmentation.
        """
        self.selection = selection
        self.transform = transform
        self.seed = seed
        self.labels = torch.from_numpy(selection.labels)
        self.remember = False
        self._stack: Tensor | None = None
        self._list: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.selection)

    def name(self, index: int) -> str:
        """Where a person finds the image."""
        return self.selection.name(index)

    def pixels(self, index: int) -> Tensor:
        """The prepared image without random changes, (3, h, w) of uint8."""
        if self._stack is not None:
            return self._stack[index]
        if self._list:
            return self._list[index]
        return to_pixels(self.transform.prepare(self.selection.read(index)))

    def fill(self, what: str = "") -> None:
        """Decode every image once and remember it.

        Args:
            what: which images, for the error.

        Raises:
            DataError: images are damaged; the first are named.
        """
        if self._stack is not None or self._list:
            return
        size = self.transform.prepared_size
        if size is not None:
            stack = torch.empty((len(self), 3, *size), dtype=torch.uint8)

            def keep(index: int) -> None:
                stack[index] = self.pixels(index)

            for_all(len(self), keep, what)
            self._stack = stack
        else:
            found: dict[int, Tensor] = {}

            def collect(index: int) -> None:
                found[index] = self.pixels(index)

            for_all(len(self), collect, what)
            self._list = [found[index] for index in range(len(self))]

    @overload
    def __getitem__(self, key: int) -> tuple[Tensor, int]: ...

    @overload
    def __getitem__(self, key: BatchKey) -> tuple[Tensor, Tensor]: ...

    def __getitem__(self, key: int | BatchKey) -> tuple[Tensor, int] | tuple[Tensor, Tensor]:
        """One image and its class, or a batch of them; see the class.

        Raises:
            DataError: an image is damaged; the file is named.
            IndexError: there is no such image.
        """
        if isinstance(key, BatchKey):
            return self._batch(key)
        if not -len(self) <= key < len(self):
            raise IndexError(f"image {key} of {len(self)}")
        images, labels = self._batch(BatchKey((key % len(self),)))
        return images[0], int(labels[0])

    def _batch(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        if self.remember:
            self.fill()
        chosen = torch.tensor(key.indices)
        sample_keys = sample_keys_of(self.seed, key.epoch, key.indices)
        transform = self.transform
        with global_generators_kept():
            if self._stack is not None and not transform.varies:
                pixels = self._stack[chosen]
            elif not transform.varies:
                pixels = torch.stack([self.pixels(index) for index in key.indices])
            else:
                pixels = torch.stack(
                    [
                        to_pixels(transform.vary(self._image(index), int(sample_key), key.size))
                        for index, sample_key in zip(key.indices, sample_keys, strict=True)
                    ]
                )
            return transform.finish(pixels, sample_keys, key.size), self.labels[chosen]

    def _image(self, index: int) -> Image.Image:
        """The prepared image, as the augmentations want it."""
        if self._stack is None and not self._list:
            return self.transform.prepare(self.selection.read(index))
        return Image.fromarray(np.ascontiguousarray(self.pixels(index).permute(1, 2, 0).numpy()))

"""What travels from a source to a task: samples, and batches of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors

#: A target of one shape in every sample is stacked; others, such as boxes, stay a list.
Targets = dict[str, Tensor | list[Tensor]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with what is known about it.

    Attributes:
        image: (3, H, W) of uint8, upright RGB.
        target: by name. Classification: ``label`` (). Detection: ``boxes`` (n, 4), ``labels``
            (n,), ``masks`` (n, H, W), ``iscrowd`` (n,). Segmentation: ``mask`` (H, W).
            Boxes and masks are tv_tensors, so that torchvision's transforms keep them in step.
        index: position in its split.
        name: how a person finds the image.
        original_size: (height, width) in pixels before any transform.
    """

    image: tv_tensors.Image
    target: dict[str, Tensor]
    index: int
    name: str
    original_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one size with their targets.

    Attributes:
        images: (B, 3, H, W) of uint8; padded at the bottom and right where sizes differ.
        valid: (B, 2) of int64: (height, width) of each image without padding.
        targets: by name; see ``Targets``.
        index: (B,) of int64, positions in the split.
        names: how a person finds each image.
        original_sizes: (height, width) of each image before any transform.
    """

    images: Tensor
    valid: Tensor
    targets: Targets
    index: Tensor
    names: tuple[str, ...]
    original_sizes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on ``device``."""

        def move(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
            if isinstance(value, list):
                return [each.to(device, non_blocking=non_blocking) for each in value]
            return value.to(device, non_blocking=non_blocking)

        return dataclasses.replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            valid=self.valid.to(device, non_blocking=non_blocking),
            targets={name: move(value) for name, value in self.targets.items()},
            index=self.index.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by PyTorch's loader."""

        def pin(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
            if isinstance(value, list):
                return [each.pin_memory() for each in value]
            return value.pin_memory()

        return dataclasses.replace(
            self,
            images=self.images.pin_memory(),
            valid=self.valid.pin_memory(),
            targets={name: pin(value) for name, value in self.targets.items()},
            index=self.index.pin_memory(),
        )

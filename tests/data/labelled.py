"""Images whose every pixel has the colour of its label, so that image and mask can be compared."""

from __future__ import annotations

import numpy as np
import torch
from tests.data.painted import COLOURS
from torch import Tensor
from torchvision import tv_tensors

from castling.data import DataInfo, Sample
from castling.data.transforms.scene import FILL
from castling.utils.labels import IGNORED

CLASSES = 6
#: By label, the colour; of pixels without a class that of the padding.
TABLE = torch.full((256, 3), FILL, dtype=torch.uint8)
TABLE[:CLASSES] = COLOURS[:CLASSES].to(torch.uint8)


def colours_of(mask: Tensor) -> Tensor:
    """(3, H, W) image of a mask (H, W)."""
    return TABLE[mask.long()].permute(2, 0, 1)


def blocks(size: tuple[int, int], seed: int = 0, block: int = 8, classes: int = CLASSES) -> Tensor:
    """(H, W) mask of blocks of random classes, some without a class."""
    random = np.random.default_rng(seed)
    cells = random.integers(0, classes + 1, (-(-size[0] // block), -(-size[1] // block)))
    cells[cells == classes] = IGNORED
    mask = cells.astype(np.uint8).repeat(block, 0).repeat(block, 1)[: size[0], : size[1]]
    return torch.from_numpy(mask.copy())


class Labelled:
    """A source of masks (H, W) as images of their colours.

    Args:
        masks: of each split, or of training alone.
        mirrored: whether mirror images keep their classes.
        classes: how many there are.
    """

    def __init__(self, masks, *, mirrored: bool = True, classes: int = CLASSES) -> None:
        self.masks = masks if isinstance(masks, dict) else {"train": masks}
        self.info = DataInfo(
            classes=[f"class {label}" for label in range(classes)],
            splits={split: len(own) for split, own in self.masks.items()},
            kind="segmentation",
            mirrored=mirrored,
            colours=tuple(tuple(colour) for colour in TABLE[:classes].tolist()),
            trusted=True,
        )

    def sample(self, split: str, index: int) -> Sample:
        mask = self.masks[split][index]
        return Sample(
            image=tv_tensors.Image(colours_of(mask)),
            target={"mask": tv_tensors.Mask(mask)},
            index=index,
            name=self.name(split, index),
            original_size=self.size(split, index),
        )

    def size(self, split: str, index: int) -> tuple[int, int]:
        height, width = self.masks[split][index].shape
        return height, width

    def name(self, split: str, index: int) -> str:
        return f"labelled {split} {index}"

    def labels(self, split: str) -> None:
        return None

    def problems(self) -> list[str]:
        return []

"""Images whose every object has a colour of its own, so that pixels tell where it went."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from castling.data import DataInfo, Sample
from castling.data.detection.masks import encode_masks
from castling.data.detection.target import detection_target

GROUND = 20
#: Labels are positions in this list; colours are far from one another, from the ground and greys.
#: The first six are no mixtures of one another with the ground, as soft edges have them.
COLOURS = torch.tensor(
    sorted(
        (
            colour
            for colour in itertools.product((0, 85, 170, 255), repeat=3)
            if max(colour) - min(colour) >= 85
        ),
        key=lambda colour: not set(colour) <= {0, 255},
    )
)


class Painted:
    """A source of images with solid ellipses or rectangles; image i has colours of its own.

    Args:
        sizes: (height, width) of each image.
        objects: of each image.
        ellipses: whether masks differ from boxes.
        crowds: whether the last object of each image is a crowd.
        masks: whether targets have masks.
        mirrored: whether mirror images keep their class.
        colours: how many colours to use, by turns.
    """

    def __init__(
        self,
        sizes: list[tuple[int, int]],
        objects: list[int],
        *,
        seed: int = 0,
        ellipses: bool = True,
        crowds: bool = False,
        masks: bool = True,
        mirrored: bool = True,
        colours: int = len(COLOURS),
    ) -> None:
        self.info = DataInfo(
            classes=[str(number) for number in range(len(COLOURS))],
            splits={"train": len(sizes)},
            kind="detection",
            has_masks=masks,
            mirrored=mirrored,
            trusted=True,
        )
        self.sizes, self.ellipses, self.crowds, self.masks = sizes, ellipses, crowds, masks
        random = np.random.default_rng(seed)
        labels = iter(itertools.cycle(range(colours)))
        self.content = [
            _scene(size, [next(labels) for _ in range(count)], ellipses, random)
            for size, count in zip(sizes, objects, strict=True)
        ]

    def sample(self, split: str, index: int) -> Sample:
        image, masks, boxes, labels = self.content[index]
        crowd = np.zeros(len(labels), dtype=bool)
        if self.crowds:
            crowd[-1:] = True
        return Sample(
            image=tv_tensors.Image(image),
            target=detection_target(
                boxes,
                labels,
                self.sizes[index],
                iscrowd=crowd,
                ids=100 * index + np.arange(len(labels)),
                rles=encode_masks(masks) if self.masks else None,
            ),
            index=index,
            name=f"painted {index}",
            original_size=self.sizes[index],
        )

    def size(self, split: str, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def name(self, split: str, index: int) -> str:
        return f"painted {index}"

    def labels(self, split: str) -> None:
        return None

    def problems(self) -> list[str]:
        return []


def _scene(
    size: tuple[int, int], labels: list[int], ellipses: bool, random: np.random.Generator
) -> tuple[Tensor, Tensor, np.ndarray, list[int]]:
    """Pixels, masks, boxes and labels; objects do not touch."""
    height, width = size
    image = torch.full((3, height, width), GROUND, dtype=torch.uint8)
    free = np.ones(size, dtype=bool)
    masks, boxes, placed = [], [], []
    for label in labels:
        for _ in range(30):
            h = int(random.integers(max(1, height // 8), max(2, height // 3)))
            w = int(random.integers(max(1, width // 8), max(2, width // 3)))
            top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
            around = slice(max(0, top - 2), top + h + 2), slice(max(0, left - 2), left + w + 2)
            if free[around].all():
                break
        else:
            continue
        free[top : top + h, left : left + w] = False
        y, x = np.mgrid[:h, :w]
        oval = ((y + 0.5) / h * 2 - 1) ** 2 + ((x + 0.5) / w * 2 - 1) ** 2 <= 1
        shape = torch.from_numpy(oval if ellipses and min(h, w) >= 6 else np.ones((h, w), bool))
        mask = torch.zeros(size, dtype=torch.uint8)
        mask[top : top + h, left : left + w] = shape.to(torch.uint8)
        image[:, mask.bool()] = COLOURS[label].to(torch.uint8)[:, None]
        masks.append(mask)
        boxes.append([left, top, left + w, top + h])
        placed.append(label)
    stacked = torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.uint8)
    return image, stacked, np.array(boxes, dtype=np.float32).reshape(-1, 4), placed


def seen(image: Tensor, label: int, tolerance: int = 40) -> Tensor:
    """(H, W) bool: where an image shows the colour of a label."""
    distance = (image.long() - COLOURS[label][:, None, None]).abs().amax(0)
    return distance <= tolerance


def frame(mask: Tensor) -> list[int]:
    """x1, y1, x2, y2 around what is True."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]

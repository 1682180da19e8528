"""Scenes of several handwritten digits, with exact boxes and masks; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from castling.data.detection.masks import encode_masks, mask_boxes
from castling.data.detection.target import detection_target
from castling.data.hold_out import hold_out
from castling.data.registry import DataInfo, SourceConfig, register_source
from castling.data.sample import Sample
from castling.utils.checks import check_fields
from castling.utils.randomness import keys

_WRITERS = (0.1, 0.2)  # shares of each class, at the end of the file, for val and test
_TRIES = 20  # positions that are tried for a digit before the scene goes without it
_HIDDEN = 0.1  # of an object, the share that a later one may cover
_CONTRAST = 90  # grey levels between the ink and the ground below it, at least
_SEED = 20221117


@dataclass(frozen=True, kw_only=True)
class DigitScenesConfig(SourceConfig):
    """Several of scikit-learn's digits on a canvas, with boxes and masks.

    Attributes:
        canvas: side of a scene in pixels.
        images: training scenes; a fifth as many validate and test.
        digits: fewest and most digits in a scene; (0, …) gives scenes without any, too.
        target: ``objects``: a box and a mask of each digit; ``mask``: a class for every pixel,
            background or a digit.
    """

    name: ClassVar[str] = "digit_scenes"
    reads: ClassVar[str] = "scenes of digits, made as they are needed"
    canvas: PositiveInt = 128
    images: PositiveInt = 1000
    digits: tuple[int, int] = (1, 6)
    target: Literal["objects", "mask"] = "objects"

    def __post_init__(self) -> None:
        check_fields(self, "data.source")
        if self.canvas < 24:
            raise ValueError(f"data.source.canvas is {self.canvas}; digits need 24 pixels or more")
        if not 0 <= self.digits[0] <= self.digits[1] or not self.digits[1]:
            raise ValueError(
                f"data.source.digits is {list(self.digits)}; give the fewest and the most, such as "
                "[1, 6]"
            )


@register_source(DigitScenesConfig)
class DigitScenesSource:
    """Scenes drawn from (split, index) alone: always the same, and made when they are asked for.

    Digits are real scans, enlarged to between an eighth and nine twentieths of the canvas, on
    grounds of varied colour and texture. The digits of validation and test come mostly from hands
    that training has not seen (see :mod:`castling.data.sources.digits`). A pixel belongs to a digit
    where ink covers half of it or more; a later digit may cover a tenth of an earlier one, whose
    mask and box are then those of what is left to see.
    """

    def __init__(self, config: DigitScenesConfig) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        self._config = config
        self._grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        self._labels = bunch.target.astype(np.int64)
        classes = [str(name) for name in bunch.target_names]
        pools = hold_out(self._labels, _WRITERS, classes, seed=0, shuffle=False)
        #: The digits, by position in scikit-learn's file, of which each split's scenes are made.
        self.pools = dict(zip(("train", "val", "test"), pools, strict=True))
        held = max(1, config.images // 5)
        objects = config.target == "objects"
        self.info = DataInfo(
            classes=classes if objects else ["background", *classes],
            splits={"train": config.images, "val": held, "test": held},
            kind="detection" if objects else "segmentation",
            has_masks=objects,
            mirrored=False,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            trusted=True,
        )

    def sample(self, split: str, index: int) -> Sample:
        """One scene.

        Its target is that of :func:`castling.data.detection.target.detection_target`, or ``mask``
        (H, W) with 0 for the background and 1 + digit.
        """
        pixels, masks, labels = self._draw(split, index)
        objects = self._config.target == "objects"
        return Sample(
            image=tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)),
            target=self._objects(masks, labels, index) if objects else _semantic(masks, labels),
            index=index,
            name=self.name(split, index),
            original_size=self.size(split, index),
        )

    def _objects(
        self, masks: NDArray[np.uint8], labels: NDArray[np.int64], index: int
    ) -> dict[str, Tensor]:
        rles = encode_masks(torch.from_numpy(masks))
        return detection_target(
            mask_boxes(rles),
            labels,
            (self._config.canvas, self._config.canvas),
            area=masks.sum((1, 2)),
            ids=100 * index + np.arange(1, len(labels) + 1),
            rles=rles,
        )

    def _draw(
        self, split: str, index: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
        """Pixels (H, W, 3), masks (n, H, W) and labels (n,) of a scene."""
        side = self._config.canvas
        key = keys(_SEED, list(self.info.splits).index(split), index)[0]
        random = np.random.default_rng(int(key))
        canvas = _ground(random, side)
        masks: list[NDArray[np.bool_]] = []
        labels: list[int] = []
        fewest, most = self._config.digits
        for _ in range(int(random.integers(fewest, most + 1))):
            digit = int(random.choice(self.pools[split]))
            ink = _enlarged(random, self._grey[digit], side)
            height, width = ink.shape
            for _ in range(_TRIES):
                top = int(random.integers(side - height + 1))
                left = int(random.integers(side - width + 1))
                place = (slice(top, top + height), slice(left, left + width))
                mask = np.zeros((side, side), dtype=bool)
                mask[place] = ink >= 0.5
                if all((mask & other).sum() <= _HIDDEN * other.sum() for other in masks):
                    break
            else:
                continue
            colour = _ink_colour(random, canvas[mask].mean(axis=0))
            canvas[place] += ink[..., None] * (colour - canvas[place])
            masks = [other & ~mask for other in masks] + [mask]
            labels.append(int(self._labels[digit]))
        stacked = np.stack(masks) if masks else np.zeros((0, side, side), dtype=bool)
        pixels = np.rint(canvas.clip(0, 255)).astype(np.uint8)
        return pixels, stacked.astype(np.uint8), np.array(labels, dtype=np.int64)

    def size(self, split: str, index: int) -> tuple[int, int]:
        """The side of the canvas, twice."""
        return self._config.canvas, self._config.canvas

    def name(self, split: str, index: int) -> str:
        """The split and the position in it."""
        return f"digit scene {split} {index}"

    def labels(self, split: str) -> None:
        """A scene is of no single class."""

    def problems(self) -> list[str]:
        """None."""
        return []


def _semantic(masks: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, Tensor]:
    """The class of every pixel; masks (n, H, W) do not overlap."""
    mask = np.tensordot(1 + labels, masks.astype(np.int64), axes=1).astype(np.uint8)
    return {"mask": tv_tensors.Mask(torch.from_numpy(mask))}


def _ground(random: np.random.Generator, side: int) -> NDArray[np.float64]:
    """A smooth field of neighbouring colours with fine noise, (side, side, 3)."""
    base = random.uniform(0, 255, 3)
    cells = int(random.integers(2, 7))
    coarse = (base + random.normal(0, 25, (cells, cells, 3))).clip(0, 255).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    noise = random.normal(0, random.uniform(0, 12), (side, side, 1))
    return np.asarray(smooth).astype(np.float64) + noise


def _enlarged(
    random: np.random.Generator, grey: NDArray[np.uint8], side: int
) -> NDArray[np.float64]:
    """How much ink covers each pixel, in [0, 1]: the scan at a random size, cut to its ink."""
    low, high = np.log(max(12, side / 8)), np.log(max(14, side * 0.45))
    height = float(np.exp(random.uniform(low, high)))
    width = height * random.uniform(0.8, 1.25)
    wanted = (min(side, round(width)), min(side, round(height)))
    ink = np.asarray(Image.fromarray(grey).resize(wanted, Image.Resampling.BICUBIC)) / 255
    rows, columns = (np.flatnonzero((ink > 0).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _ink_colour(random: np.random.Generator, ground: NDArray[np.float64]) -> NDArray[np.float64]:
    """A colour whose every channel is far from the ground on the side where there is more room."""
    light = ground.mean() < 127.5
    low, high = (
        (min(255, ground.mean() + _CONTRAST), 255)
        if light
        else (
            0,
            max(0, ground.mean() - _CONTRAST),
        )
    )
    return random.uniform(low, high, 3)

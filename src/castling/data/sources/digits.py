"""Scikit-learn's bundled handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from castling.data.registry import DataInfo, SourceConfig, register_source
from castling.data.sample import Sample


@dataclass(frozen=True, kw_only=True)
class DigitsConfig(SourceConfig):
    """1797 real scans of 8×8 pixels in 10 classes; nothing is downloaded."""

    name: ClassVar[str] = "digits"
    reads: ClassVar[str] = "scikit-learn's digits"


@register_source(DigitsConfig)
class DigitsSource:
    """Handwritten digits, grey, as RGB.

    The file goes through its 13 writers one after another, so the last images of every class are
    held out rather than random ones: the test figures come mostly from hands that training has not
    seen. (Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998.)
    """

    def __init__(self, config: DigitsConfig) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        self._pixels = torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1)
        self._labels = bunch.target.astype(np.int64)
        self.info = DataInfo(
            classes=[str(name) for name in bunch.target_names],
            splits={"train": len(self._labels)},
            mirrored=False,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            test_fraction=0.2,
            shuffle=False,
            trusted=True,
            notes=(
                "validation and test digits were mostly written by other hands than training ones",
            ),
        )

    def sample(self, split: str, index: int) -> Sample:
        """One digit; ``target["label"]`` is its class."""
        return Sample(
            image=tv_tensors.Image(self._pixels[index]),
            target={"label": torch.tensor(self._labels[index])},
            index=index,
            name=self.name(split, index),
            original_size=self.size(split, index),
        )

    def size(self, split: str, index: int) -> tuple[int, int]:
        """(8, 8)."""
        return 8, 8

    def name(self, split: str, index: int) -> str:
        """The position in scikit-learn's file."""
        return f"digit {index}"

    def labels(self, split: str) -> NDArray[np.int64]:
        """(1797,) class of every image."""
        return self._labels

    def problems(self) -> list[str]:
        """None."""
        return []

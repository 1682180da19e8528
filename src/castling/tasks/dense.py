"""What tasks with heads on backbones check and compute alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from castling.data.transforms.base import Size
from castling.models.dense import list_heads


class PaddedTransform(Protocol):
    """Options of transforms that scale images and pad batches."""

    @property
    def size(self) -> Size:
        """(height, width) asked for."""

    @property
    def multiple(self) -> int:
        """Sides of batches are multiples of this."""

    def fitted(self, original: Size) -> Size:
        """(height, width) that an image is scaled to."""


def require_head(name: str, task: str, example: str) -> None:
    """Raise ValueError unless a model's name is ``HEAD/BACKBONE`` with a head of the task."""
    heads = list_heads(task)
    if name.split("/")[0] not in heads:
        raise ValueError(
            f"model.name is {name}; {task} needs HEAD/BACKBONE, such as {example}. Heads: "
            f"{', '.join(heads)}"
        )


def require_multiple(padded: int, needed: int) -> None:
    """Raise ValueError unless batches are padded to what the model needs."""
    if padded % needed:
        raise ValueError(
            f"data.transform.multiple is {padded}, but the model needs image sides that are "
            f"multiples of {needed}: set it to {needed}"
        )


def require_classes(known: int, classes: Sequence[str]) -> None:
    """Raise ValueError unless a model knows as many classes as the data have."""
    if known != len(classes):
        raise ValueError(
            f"the model knows {known} classes, the data {len(classes)}: its card or the data are "
            "those of another model"
        )


def padded_size(options: PaddedTransform) -> Size:
    """(height, width) of batches; that of a square image where images keep their aspect ratio."""
    height, width = (
        -(-side // options.multiple) * options.multiple for side in options.fitted(options.size)
    )
    return height, width

"""What a person should know about the images before training on them."""

from __future__ import annotations

import numpy as np

from castling.data.errors import DataError
from castling.data.module import DataModule

_SAMPLES = 100  # headers that are read; the median of so many is known well enough
_SMALL = 64  # pixels; larger sizes are chosen on purpose
_FAR_BELOW = 4  # photographs are reduced by this factor or more


def training_notes(data: DataModule, world_size: int = 1) -> list[str]:
    """Notes on images that an epoch leaves out, and on photographs reduced to tiny images.

    Args:
        data: the images.
        world_size: processes that train.
    """
    notes = []
    count, dropped = data.sizes["train"], data.dropped_per_epoch(world_size)
    if dropped > count / 100:
        notes.append(
            f"every epoch leaves out {dropped} of {count} training images, others each time, "
            "because they do not fill a batch; data.loader.last_batch fill keeps them"
        )
    return notes + _small_image_size(data)


def _small_image_size(data: DataModule) -> list[str]:
    """A note where images lose most of their detail."""
    images = data.dataset("train", training=True)
    side = min(data.config.transform.size)
    if side > _SMALL or data.info.trusted:
        return []
    sides = []
    for index in np.linspace(0, len(images) - 1, min(_SAMPLES, len(images))).astype(int):
        try:
            sides.append(min(images.selection.size(int(index))))
        except DataError:  # reported elsewhere, with its name
            continue
    typical = int(np.median(sides)) if sides else 0
    if typical < _FAR_BELOW * side:
        return []
    return [
        f"the images, typically {typical} pixels on their shorter side, are reduced to {side}, "
        "which loses most of their detail: recipes/photos.yaml (from scratch) and "
        "recipes/finetune.yaml are made for photographs, or set data.transform.image_size"
    ]

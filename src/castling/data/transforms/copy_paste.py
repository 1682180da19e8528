"""Copy-paste: objects of one image, cut out by their masks, over another (Ghiasi et al., 2021)."""

from __future__ import annotations

import torch

from castling.data.transforms.base import Size
from castling.data.transforms.scene import LEAST_VISIBLE, Objects, Scene, tightened

_SCALE = 0.5, 1.5
_PASTED = 0.5  # probability of each object


def placed_anywhere(scene: Scene, fitted: Size, size: Size) -> Scene:
    """A scene at a random scale and place of a canvas.

    Args:
        scene: of the image to copy from.
        fitted: (height, width) that it would be scaled to by itself.
        size: (height, width) of the canvas.
    """
    low, high = _SCALE
    scale = low + (high - low) * float(torch.rand(()))
    scaled = max(1, round(fitted[0] * scale)), max(1, round(fitted[1] * scale))
    draws = torch.rand(2).tolist()
    top, left = (
        int((old - new) * draw) for old, new, draw in zip(scaled, size, draws, strict=True)
    )
    return scene.resized(scaled).window(top, left, *size)


def paste(ground: Objects, source: Objects) -> Objects:
    """Some objects of ``source`` over ``ground``; both of one size, with masks.

    Each is pasted with a probability of a half, and one at least. Objects below lose what is
    covered: their boxes then frame what is left, and those of which less than a tenth is left are
    removed.
    """
    assert ground.masks is not None
    assert source.masks is not None
    count = len(source.labels)
    if not count:
        return ground
    chosen = torch.rand(count) < _PASTED
    chosen[int(torch.randint(count, ()))] = True
    cover = source.masks[chosen].bool().any(0)
    masks = ground.masks * ~cover
    before, after = ground.masks.sum((1, 2)), masks.sum((1, 2))
    hidden, left = after < before, after >= LEAST_VISIBLE * before
    boxes, changed = ground.boxes.clone(), hidden & left
    boxes[changed] = tightened(boxes[changed], masks[changed])
    return Objects(
        image=torch.where(cover, source.image, ground.image),
        boxes=torch.cat([boxes[left], source.boxes[chosen]]),
        labels=torch.cat([ground.labels[left], source.labels[chosen]]),
        masks=torch.cat([masks[left], source.masks[chosen]]),
    )

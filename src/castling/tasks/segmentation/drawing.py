"""Masks over images, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from castling.tasks.drawing import enlargement, font_file, letter_size
from castling.utils.labels import IGNORED

#: How much of a class's colour covers the inside of a segment; borders are covered whole.
_ALPHA = 0.5
#: Classes that a legend names; the largest.
_NAMED = 16
_GAP = 4

Mask = NDArray[np.uint8]


def draw_masks(
    image: Image.Image,
    masks: Sequence[tuple[str, Mask]],
    classes: Sequence[str],
    table: NDArray[np.uint8],
) -> Image.Image:
    """A copy of an image with masks over it, side by side, above a legend of the classes.

    Inside a segment the image shines through; its border has the full colour, so that it is seen on
    dark and light grounds. Pixels of no class stay as they are. A small image is enlarged.

    Args:
        image: RGB.
        masks: a title and (H, W) labels of each.
        classes: names in the order of the labels.
        table: (256, 3) colour of each label.
    """
    pixels = np.asarray(image)
    times = enlargement(torch.empty(0, image.height, image.width))
    size = letter_size(image.height * times, image.width * times)
    font = ImageFont.truetype(font_file(), size)
    head = size + size // 2 if len(masks) > 1 else 0
    width, height = image.width * times, image.height * times
    canvas = Image.new("RGB", (len(masks) * (width + _GAP) - _GAP, head + height), "white")
    write = ImageDraw.Draw(canvas)
    for place, (title, mask) in enumerate(masks):
        left = place * (width + _GAP)
        panel = _overlaid(pixels, mask, table).repeat(times, 0).repeat(times, 1)
        canvas.paste(Image.fromarray(panel), (left, head))
        if head:
            write.text((left + size // 4, 0), title, "black", font=font)
    counts = sum(np.bincount(mask.ravel(), minlength=256) for _, mask in masks)
    assert isinstance(counts, np.ndarray)
    labels = [int(x) for x in np.argsort(-counts[: len(classes)], kind="stable") if counts[x]]
    return _with_legend(canvas, labels, classes, table, font)


def _overlaid(pixels: Mask, mask: Mask, table: NDArray[np.uint8]) -> Mask:
    """(H, W, 3) pixels with the colours of their labels."""
    share = np.where(_borders(mask), 1.0, _ALPHA)[..., None]
    share[mask == IGNORED] = 0
    mixed = pixels * (1 - share) + table[mask] * share
    return np.rint(mixed).astype(np.uint8)


def _borders(mask: Mask) -> NDArray[np.bool_]:
    """(H, W): pixels whose neighbour above, below, left or right has another label."""
    border = np.zeros(mask.shape, dtype=bool)
    down, across = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= across
    border[:, :-1] |= across
    return border


def _with_legend(
    image: Image.Image,
    labels: Sequence[int],
    classes: Sequence[str],
    table: NDArray[np.uint8],
    font: ImageFont.FreeTypeFont,
) -> Image.Image:
    """A copy of an image above a white strip with the colours and names of classes."""
    size = int(font.size)
    step, swatch = size + size // 2, size
    entries = [(classes[label], label) for label in labels[:_NAMED]]
    if len(labels) > _NAMED:
        entries.append((f"and {len(labels) - _NAMED} more", -1))
    placed: list[tuple[int, int, str, int]] = []
    x, y = size // 2, 0
    for text, label in entries:
        needed = int(font.getlength(text)) + (2 * swatch if label >= 0 else swatch)
        if placed and x + needed > image.width:
            x, y = size // 2, y + step
        placed.append((x, y, text, label))
        x += needed
    strip = y + step + size // 2 if placed else 0
    right = max((x + int(font.getlength(t)) + 2 * swatch for x, _, t, _ in placed), default=0)
    canvas = Image.new("RGB", (max(image.width, right), image.height + strip), "white")
    canvas.paste(image, (0, 0))
    write = ImageDraw.Draw(canvas)
    for x, y, text, label in placed:
        top = image.height + size // 2 + y
        if label >= 0:
            colour = tuple(table[label].tolist())
            write.rectangle((x, top, x + swatch - 1, top + swatch - 1), colour, "gray")
            x += swatch + swatch // 3
        write.text((x, top - size // 8), text, "black", font=font)
    return canvas

"""Boxes of a whole split as they were written: checked, and turned into corners in pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from castling.data.faults import Faults

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
#: ``corners``: x1, y1, x2, y2 in pixels (VOC); ``sides``: x, y, width, height in pixels (COCO);
#: ``shares``: centre, width and height as shares of the image's sides (YOLO).
BoxStyle = Literal["corners", "sides", "shares"]

_ROUNDING = 1.0  # pixels that a box may reach out without a word; as it is in COCO itself
_ROUNDING_SHARE = 0.005  # the same where boxes are shares
_SMALL = 16  # pixels; in smaller images, boxes within [0, 1] may be in pixels
_MOST, _SOME = 0.95, 0.05  # of a split's boxes, to tell one convention from another


def read_boxes(
    raw: Floats,
    sizes: NDArray[np.int64],
    style: BoxStyle,
    place: Callable[[int], str],
    faults: Faults,
) -> tuple[Floats, Flags, bool]:
    """Check boxes and turn them into corners.

    Where most boxes of the split are written in another convention, that alone is reported.

    Args:
        raw: (n, 4) as written; not finite where they are not numbers.
        sizes: (n, 2) height and width of each box's image; 0 where they are not known.
        style: what the numbers mean.
        place: names a box.
        faults: takes what is found.

    Returns:
        (n, 4) x1, y1, x2, y2 in pixels, or as shares for ``shares``, clipped where a box reaches
        out; (n,) which boxes can be used; and whether they are written in the expected convention.
    """

    def report(name: str, found: Flags) -> None:
        faults.add_all(name, map(place, np.flatnonzero(found).tolist()))

    usable: Flags = np.asarray(np.isfinite(raw).all(axis=1))
    report("not_numbers", ~usable)
    known: Flags = np.asarray((sizes > 0).all(axis=1))
    limits = np.where(known[:, None], sizes[:, ::-1], np.inf)
    if style == "shares":
        limits = np.ones_like(limits)
    convention = _other_convention(raw, limits, usable, style)
    if convention:
        report(convention, usable)
        return _corners(raw, style), usable, False
    boxes = _corners(raw, style)
    with np.errstate(invalid="ignore"):  # infinities are not usable in any case
        extent = boxes[:, 2:] - boxes[:, :2]
    swapped = usable & (extent < 0).any(axis=1) & (style == "corners")
    report("swapped", swapped)
    usable &= ~swapped
    flat = usable & (extent <= 0).any(axis=1)
    report("no_extent", flat)
    usable &= ~flat
    clipped = boxes.clip(0, np.concatenate([limits, limits], axis=1))
    outside = usable & (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    report("outside", outside)
    usable &= ~outside
    rounding = _ROUNDING_SHARE if style == "shares" else _ROUNDING
    partly = usable & (np.abs(np.where(np.isfinite(boxes), boxes - clipped, 0)) > rounding).any(
        axis=1
    )
    report("partly_outside", partly)
    boxes[partly] = clipped[partly]
    return boxes, usable, True


def _corners(raw: Floats, style: BoxStyle) -> Floats:
    first, second = raw[:, :2], raw[:, 2:]
    if style == "corners":
        return raw.copy()
    with np.errstate(invalid="ignore", over="ignore"):
        if style == "sides":
            return np.concatenate([first, first + second], axis=1)
        return np.concatenate([first - second / 2, first + second / 2], axis=1)


def _other_convention(raw: Floats, limits: Floats, usable: Flags, style: BoxStyle) -> str:
    """The fault of a split whose boxes are written in another convention; empty for none."""
    given, limits = raw[usable], limits[usable]
    if not len(given):
        return ""
    if style == "shares":
        return "pixels" if (given > 1.5).any(axis=1).mean() >= 0.5 else ""
    large = (limits >= _SMALL).all(axis=1)
    within = (np.abs(given) <= 1).all(axis=1) & large
    if within.mean() >= _MOST and (given[within] % 1 != 0).any():
        return "normalised"
    if style == "sides":
        as_corners = (given[:, 2:] > given[:, :2]).all(axis=1)
        as_corners &= (given[:, 2:] <= limits + _ROUNDING).all(axis=1)
        leaves = (given[:, :2] + given[:, 2:] > limits + _ROUNDING).any(axis=1)
        if as_corners.mean() >= _MOST and leaves.mean() >= _SOME:
            return "corners"
    return ""

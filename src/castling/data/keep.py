"""The images of a split checked before they are used, and kept in memory where they fit."""

from __future__ import annotations

from castling.data.config import LoaderConfig
from castling.data.dataset import ImageSet
from castling.data.verify import Damage


def verify_and_keep(
    images: ImageSet, config: LoaderConfig, budget: int, what: str, damage: Damage
) -> int:
    """Verify the files of one split, and decode and keep its images if they may be kept.

    Args:
        images: the split.
        config: what to verify and to keep.
        budget: bytes that may be used.
        what: which images, for errors.
        damage: takes damaged images.

    Returns:
        Bytes that are used.
    """
    selection, size = images.selection, images.transform.fixed_size
    may_check = config.verify != "none" and not selection.source.info.trusted
    need = None if size is None else 3 * len(images) * size[0] * size[1]
    measured = need is None and config.cache == "auto" and may_check
    if measured:
        sound, area = _total_pixels(images, what, damage)
        if not sound:
            return 0
        need = 3 * area
    fits = need is not None and need <= budget
    if config.cache == "memory" or (config.cache == "auto" and fits):
        images.remember = True
        if config.verify != "none":
            images.fill(what, damage)
        return need or 0
    if config.verify == "full":
        damage.visit(len(images), selection.sample, what)
    elif may_check and not measured:
        _total_pixels(images, what, damage)
    return 0


def _total_pixels(images: ImageSet, what: str, damage: Damage) -> tuple[bool, int]:
    """Whether all headers are sound, and the pixels of all images together, as they are kept.

    Args:
        images: of one split.
        what: which images, for the report.
        damage: takes those whose headers are damaged.
    """
    areas: dict[int, int] = {}

    def measure(index: int) -> None:
        height, width = images.transform.kept_size(images.selection.size(index))
        areas[index] = height * width

    damage.visit(len(images), measure, what)
    return len(areas) == len(images), sum(areas.values())

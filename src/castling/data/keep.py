"""The images of a split checked before they are used, and kept in memory where they fit."""

from __future__ import annotations

from torch import Tensor

from castling.data.config import LoaderConfig
from castling.data.dataset import ImageSet
from castling.data.errors import DataError
from castling.data.verify import Damage

#: Images that are read, at most, to see how many bytes they and their targets take.
_LOOKED_AT = 8


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
    pixels = None if size is None else len(images) * size[0] * size[1]
    measured = pixels is None and config.cache == "auto" and may_check
    if measured:
        sound, pixels = _total_pixels(images, what, damage)
        if not sound:
            return 0
    keeps = config.cache == "memory"
    need = 0
    if pixels is not None and (keeps or (config.cache == "auto" and 3 * pixels <= budget)):
        need = round(pixels * _bytes_per_pixel(images))
        keeps = keeps or need <= budget
    if keeps:
        images.remember = True
        if config.verify != "none":
            images.fill(what, damage)
        return need
    if config.verify == "full":
        damage.visit(len(images), selection.sample, what)
    elif may_check and not measured:
        _total_pixels(images, what, damage)
    return 0


def _bytes_per_pixel(images: ImageSet) -> float:
    """Of images together with their targets, such as masks, from a few of them."""
    total = pixels = 0
    for index in range(0, len(images), -(-len(images) // _LOOKED_AT) or 1):
        try:
            sample = images[index]
        except DataError:  # it is reported where all images are read
            continue
        tensors = [sample.image, *sample.target.values()]
        total += sum(each.nbytes for each in tensors if isinstance(each, Tensor))
        pixels += sample.image.shape[-2] * sample.image.shape[-1]
    return total / pixels if pixels else 3.0


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

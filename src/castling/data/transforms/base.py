"""What every transform offers, and the options that all tasks share.

A transform has three stages, so that whatever does not change between epochs can be remembered and
whatever is cheap is done for a whole batch at once. All work on uint8: normalisation happens on the
device.

1. ``resize``: fixed (scale and centre crop, or nothing); its result may be kept in memory;
2. ``augment``: random, one sample at a time (random resized crop, policies, colour);
3. ``collate``: a whole batch (padded crop, mirror, resolution, padding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

from jsonargparse.typing import PositiveFloat, PositiveInt

from castling.data.sample import Batch, Sample
from castling.utils.checks import check_fields
from castling.utils.randomness import Keys

Size = tuple[int, int]


def fitted_size(original: Size, shortest: int, longest: int) -> Size:
    """(height, width) of an image scaled so that it keeps its aspect ratio.

    Args:
        original: (height, width) of the image in pixels.
        shortest: of its shorter side, at most.
        longest: of its longer side, at most.
    """
    scale = min(shortest / min(original), longest / max(original))
    return max(1, int(original[0] * scale + 0.5)), max(1, int(original[1] * scale + 0.5))


class Samples(Protocol):
    """The images of a split after the fixed stage; an :class:`~castling.data.ImageSet`, say."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Base of the transform options of all tasks.

    Attributes:
        image_size: side, or (height, width), in pixels.
        mean: per channel, of pixels in [0, 1]; None takes that of the weights that the model starts
            from, where there are any and it is known, else the source's default.
        std: as ``mean``.
    """

    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224
    mean: tuple[float, float, float] | None = None
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "data.transform")

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        size: int | Size = self.image_size
        return (size, size) if isinstance(size, int) else size

    def at_size(self, side: int) -> Self:
        """The same options for square images of another size, for trials."""
        return replace(self, image_size=side)

    def at_largest(self) -> Self:
        """The same options, but every training batch has the largest size of any, for trials."""
        return self


class Transform(Protocol):
    """The three stages; see the module."""

    @property
    def fixed_size(self) -> Size | None:
        """(height, width) that ``resize`` always gives, or None when it leaves sizes alone."""
        ...

    @property
    def random(self) -> bool:
        """Whether ``augment`` does anything."""
        ...

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides from which every training batch draws its resolution; empty for one size."""
        ...

    def kept_size(self, original: Size) -> Size:
        """(height, width) that ``resize`` gives an image; asked where there is no fixed size."""
        ...

    def resize(self, sample: Sample) -> Sample:
        """The fixed stage."""
        ...

    def augment(self, sample: Sample, size: Size | None, others: Samples) -> Sample:
        """The random stage for one sample.

        Draws from the global CPU generators, which the caller has seeded by the sample's key.

        Args:
            sample: after the fixed stage.
            size: (height, width) drawn for the batch; None is the configured one.
            others: the images of the split, some of which may be combined with the sample.
        """
        ...

    def collate(self, samples: Sequence[Sample] | Batch, keys: Keys, size: Size | None) -> Batch:
        """One batch; every random choice follows from the samples' keys.

        Args:
            samples: of one batch; as a ``Batch`` where they were kept in memory stacked.
            keys: one per sample.
            size: (height, width) drawn for this batch; None is the configured one.
        """
        ...

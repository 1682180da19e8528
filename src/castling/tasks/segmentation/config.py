"""Options of semantic segmentation; those of the head, its losses among them, are the model's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from castling.tasks.interface import TaskConfig
from castling.utils.checks import check_fields


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Test-time augmentation: probabilities averaged over changed copies of an image.

    Attributes:
        scales: factors of the image's sides, such as (0.75, 1.0, 1.25); sides are rounded to
            multiples of ``data.transform.multiple``.
        flip: also the mirror image of each.
    """

    scales: tuple[PositiveFloat, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "task.augment")
        if not self.scales:
            raise ValueError("task.augment.scales is empty: give [1.0] for the image as it is")

    @property
    def active(self) -> bool:
        """Whether there is more than the image itself."""
        return self.flip or self.scales != (1.0,)


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(TaskConfig):
    """A class for every pixel.

    Attributes:
        class_weights: how much a pixel teaches by its class. ``none``: the same for all; ``auto``:
            1/ln(1.02 + p) for a class of a share p of the training pixels, scaled to a mean of 1,
            so that rare classes count up to 35 times as much (ENet; Paszke et al., 2016, section
            5.2); or a list of a weight per class, in the order of the labels.
        inference: ``whole`` computes an image at once, ``slide`` by windows, whose scores are
            averaged where they overlap: for images larger than those of training.
        window: side, or (height, width), of the windows in pixels, rounded up to multiples of
            ``data.transform.multiple``; None is ``data.transform.image_size``.
        stride: from window to window in pixels, rounded down to such multiples; None is two thirds
            of the window. The last window is flush with the edge.
        augment: test-time augmentation.
    """

    name: ClassVar[str] = "segmentation"

    class_weights: Literal["none", "auto"] | tuple[NonNegativeFloat, ...] = "none"
    inference: Literal["whole", "slide"] = "whole"
    window: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    stride: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        check_fields(self, "task")
        weights = self.class_weights
        if not isinstance(weights, str) and not any(weights):
            raise ValueError("task.class_weights has no weight above 0: nothing would be learnt")
        for name in ("window", "stride"):
            if getattr(self, name) is not None and self.inference == "whole":
                raise ValueError(
                    f"task.{name} is for windows: set task.inference to slide, or leave it out"
                )
        if self.window is not None and self.stride is not None:
            window, stride = pair(self.window), pair(self.stride)
            if stride[0] > window[0] or stride[1] > window[1]:
                raise ValueError(
                    f"task.stride is {self.stride}, more than the window ({self.window}): pixels "
                    "between windows would get no class; lower it"
                )


def pair(side: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a side or of itself."""
    return (side, side) if isinstance(side, int) else side

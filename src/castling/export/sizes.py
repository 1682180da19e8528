"""Image sizes that a model accepts, found by running it on random images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from castling.export.outputs import NamedOutputs
from castling.export.target import Dynamic
from castling.utils.text import first_line

#: (height, width) in pixels.
Size = tuple[int, int]
#: (batch, channels, height, width).
Shape = tuple[int, int, int, int]

#: Largest stride that is searched for; common models reduce images by at most this.
_LARGEST_MULTIPLE = 64
#: Sides at which detectors are traced, in pixels, at least.
_LEAST_TRACED = 512
#: What models raise for image sizes that they do not accept.
_REFUSALS = (ValueError, RuntimeError, AssertionError)


class OneSizeError(ValueError):
    """The model accepts one image size only, and a file for several was asked for."""


def random_images(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Standard-normal images (B, 3, H, W), float32 on the CPU, seeded by shape and ``seed``."""
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def images_of(shape: Shape, images: Tensor | None = None) -> Tensor:
    """Images of a shape: given ones (N, 3, H, W) in turn, scaled to it; without, random ones."""
    if images is None:
        return random_images(shape)
    chosen = images[torch.arange(shape[0]) % len(images)]
    return interpolate(chosen, shape[2:], mode="bilinear", antialias=True)


def run_once(model: NamedOutputs, images: Tensor) -> dict[str, Tensor]:
    """Outputs for images (B, 3, H, W), on the CPU."""
    outputs = model(images.to(model.device))
    return {name: value.cpu() for name, value in outputs.items()}


def require_runs(model: NamedOutputs, size: Size) -> None:
    """Raise ValueError unless the model accepts images of (height, width) pixels."""
    try:
        run_once(model, random_images((1, 3, *size)))
    except _REFUSALS as error:
        raise ValueError(
            f"the model does not run at {size[0]}×{size[1]} pixels: {first_line(error)}"
        ) from error


def smallest_multiple(model: NamedOutputs, size: Size) -> int:
    """The smallest stride by which height and width can grow, each on its own.

    Args:
        model: runs on images of ``size``.
        size: (height, width) in pixels; the stride divides both. A detector says its own.

    Raises:
        ValueError: the model does not run at ``size``.
        OneSizeError: no stride up to 64 works.
    """
    require_runs(model, size)
    own = getattr(model.model, "multiple", None)
    if own is not None:
        if size[0] % own or size[1] % own:
            raise ValueError(
                f"the model takes images whose sides are multiples of {own}, not "
                f"{size[0]}×{size[1]}"
            )
        return int(own)
    refusal: Exception | None = None
    shared = math.gcd(*size)
    for multiple in range(1, min(shared, _LARGEST_MULTIPLE) + 1):
        if shared % multiple:
            continue
        try:
            run_once(model, random_images((1, 3, size[0] + multiple, size[1])))
            run_once(model, random_images((1, 3, size[0], size[1] + multiple)))
            return multiple
        except _REFUSALS as error:
            refusal = error
    raise OneSizeError(
        f"the model runs at {size[0]}×{size[1]} pixels only ({first_line(refusal).rstrip('.')}). "
        "For a file of any size, build a ViT with dynamic_img_size=True "
        "(in a recipe among model.kwargs)"
    )


def sizes_to_verify(size: Size, multiple: int, chosen: Sequence[Size] | None) -> list[Size]:
    """``size`` and the chosen sizes; without a choice, two larger ones that are not traced."""
    if chosen is not None:
        return [size, *((int(height), int(width)) for height, width in chosen)]
    # An odd number of strides, so that wrong rounding inside the model shows.
    step = multiple * (min(size) // (4 * multiple) | 1)
    height, width = size
    return [size, (height + step, width + 3 * step), (height + 2 * step, width)]


@dataclass(frozen=True)
class SizePlan:
    """Sizes to trace and to verify at.

    Attributes:
        dynamic: input dimensions that may change in the file.
        multiple: of height and width, in pixels.
        traced: shape of the images that the exporter traces.
        checked: shapes to verify at; not traced, unless nothing may change.
        notes: restrictions for the user of the file.
    """

    dynamic: Dynamic
    multiple: int
    traced: Shape
    checked: tuple[Shape, ...]
    notes: tuple[str, ...] = ()


def plan_sizes(
    model: NamedOutputs,
    size: Size,
    dynamic: Dynamic | Literal["auto"],
    verify_sizes: Sequence[Size] | None,
) -> SizePlan:
    """Run the model to see which sizes a file of it can take.

    Args:
        model: in evaluation mode.
        size: (height, width) in pixels that the file is meant for.
        dynamic: as in ``castling.export``.
        verify_sizes: further (height, width) to verify at; None picks two.

    Raises:
        ValueError: the model does not run at a size asked for.
        OneSizeError: it runs at ``size`` only, and more were asked for.
    """
    if dynamic in ("batch", "none"):
        require_runs(model, size)
        if dynamic == "batch":
            return one_size(size)
        return SizePlan("none", 1, (1, 3, *size), ((1, 3, *size),))
    try:
        multiple = smallest_multiple(model, size)
    except OneSizeError as error:
        if dynamic == "all" or verify_sizes:
            raise OneSizeError(
                f"{error}; dynamic='batch' (--dynamic batch) exports for this size alone"
            ) from error
        return one_size(size, f"only the batch is dynamic: {error}")
    notes: tuple[str, ...] = ()
    if multiple > 1:
        notes = (
            f"height and width must be multiples of {multiple}; the file may compute other "
            "sizes without complaint, which PyTorch refuses (castling predict refuses too)",
        )
    sizes = sizes_to_verify(size, multiple, verify_sizes)
    # At least two images, and not square: equal or unit sides would be traced as constants. Those
    # of a detector's coarsest map, of up to 128 pixels a place, are of size 1 in small images.
    least = _LEAST_TRACED if hasattr(model.model, "multiple") else 0
    height, width = (max(side, -(-least // multiple) * multiple) for side in size)
    traced = (2, 3, height, width + multiple)
    for each in {*sizes, traced[2:]}:
        require_runs(model, each)
    return SizePlan("all", multiple, traced, _shapes(sizes), notes)


def one_size(size: Size, *notes: str) -> SizePlan:
    """A plan for a file in which only the batch may change."""
    return SizePlan("batch", 1, (4, 3, *size), _shapes([size] * 3), notes)


def _shapes(sizes: Sequence[Size]) -> tuple[Shape, ...]:
    """Batches of two, one and three images in turn."""
    return tuple(((2, 1, 3)[index % 3], 3, *size) for index, size in enumerate(sizes))

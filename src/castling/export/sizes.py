"""Which image sizes a model takes, found by running it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from castling.utils.text import first_line

#: Sides of any model of the field are multiples of at most this.
_LARGEST_MULTIPLE = 64
#: What models raise when they cannot take an image of some size.
_REFUSALS = (ValueError, RuntimeError, AssertionError)


class OneSizeError(ValueError):
    """The model runs at one image size only, and more were asked for."""


def random_images(shape: Sequence[int]) -> Tensor:
    """Normal values of a shape, the same each time."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(sum(shape)))


def run_once(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """The model's answer to :func:`random_images`, on the CPU; TypeError unless one tensor."""
    parameter = next(model.parameters(), None)
    images = random_images(shape)
    output = model(images if parameter is None else images.to(parameter.device))
    if not isinstance(output, Tensor):
        raise TypeError(
            "export wants a model that returns one tensor, this one returns "
            f"{type(output).__name__}"
        )
    return output.cpu()


def require_runs(model: nn.Module, size: tuple[int, int]) -> None:
    """Raise ValueError unless the model runs on images of (height, width)."""
    try:
        run_once(model, (1, 3, *size))
    except _REFUSALS as error:
        raise ValueError(
            f"the model does not run at {size[0]}×{size[1]} pixels: {first_line(error)}"
        ) from error


def smallest_multiple(model: nn.Module, size: tuple[int, int]) -> int:
    """The smallest stride by which both sides of the model's images may grow.

    Raises:
        OneSizeError: no other size was found that the model takes.
    """
    require_runs(model, size)
    refusal: Exception | None = None
    shared = math.gcd(*size)
    for multiple in range(1, min(shared, _LARGEST_MULTIPLE) + 1):
        if shared % multiple:
            continue
        try:
            run_once(model, (1, 3, size[0] + multiple, size[1]))
            run_once(model, (1, 3, size[0], size[1] + multiple))
            return multiple
        except _REFUSALS as error:
            refusal = error
    raise OneSizeError(
        f"the model runs at {size[0]}×{size[1]} pixels only ({first_line(refusal).rstrip('.')}). "
        "For a file of any size, build a ViT with dynamic_img_size=True "
        "(in a recipe among model.kwargs)"
    )


def sizes_to_verify(
    size: tuple[int, int], multiple: int, chosen: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """``size`` and those chosen, or two more of which the exporter has seen neither."""
    if chosen is not None:
        return [size, *((int(height), int(width)) for height, width in chosen)]
    # An odd number of strides, so that rounding inside the model shows.
    step = multiple * (min(size) // (4 * multiple) | 1)
    height, width = size
    return [size, (height + step, width + 3 * step), (height + 2 * step, width)]

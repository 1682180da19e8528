"""Image sizes that a model accepts, found by running it on random images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from castling.export.outputs import NamedOutputs
from castling.utils.text import first_line

#: Largest stride that is searched for; common models reduce images by at most this.
_LARGEST_MULTIPLE = 64
#: What models raise for image sizes that they do not accept.
_REFUSALS = (ValueError, RuntimeError, AssertionError)


class OneSizeError(ValueError):
    """The model accepts one image size only, and a file for several was asked for."""


def random_images(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Standard-normal images (B, 3, H, W), float32 on the CPU, seeded by shape and ``seed``."""
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(tuple(shape), generator=generator)


def run_once(model: NamedOutputs, shape: Sequence[int]) -> dict[str, Tensor]:
    """Outputs for :func:`random_images` of a shape, on the CPU."""
    outputs = model(random_images(shape).to(model.device))
    return {name: value.cpu() for name, value in outputs.items()}


def require_runs(model: NamedOutputs, size: tuple[int, int]) -> None:
    """Raise ValueError unless the model accepts images of (height, width) pixels."""
    try:
        run_once(model, (1, 3, *size))
    except _REFUSALS as error:
        raise ValueError(
            f"the model does not run at {size[0]}×{size[1]} pixels: {first_line(error)}"
        ) from error


def smallest_multiple(model: NamedOutputs, size: tuple[int, int]) -> int:
    """The smallest stride by which height and width can grow, each on its own.

    Args:
        model: runs on images of ``size``.
        size: (height, width) in pixels; the stride divides both.

    Raises:
        ValueError: the model does not run at ``size``.
        OneSizeError: no stride up to 64 works.
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
    """``size`` and the chosen sizes; without a choice, two larger ones that are not traced."""
    if chosen is not None:
        return [size, *((int(height), int(width)) for height, width in chosen)]
    # An odd number of strides, so that wrong rounding inside the model shows.
    step = multiple * (min(size) // (4 * multiple) | 1)
    height, width = size
    return [size, (height + step, width + 3 * step), (height + 2 * step, width)]

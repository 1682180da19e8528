"""Bicubic scaling as two matrix products, which every runtime computes alike.

Tables of positions are scaled to the size of an image inside the exported file. Runtimes differ in
bicubic scaling: OpenVINO 2026 is 3e-3 away from PyTorch at sizes that a file was not traced at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

#: Of Keys' kernel, as PyTorch takes it where ``antialias`` is set; elsewhere it is -0.75.
_SHARPNESS = -0.5


def bicubic(x: Tensor, size: Sequence[int]) -> Tensor:
    """``F.interpolate(x, size, mode="bicubic", antialias=True)`` by two products.

    Args:
        x: (B, C, H, W) of a floating-point type.
        size: (height, width) of the result.
    """
    rows = _weights(x.shape[-2], size[0], x)
    columns = _weights(x.shape[-1], size[1], x)
    return rows @ (x @ columns.transpose(0, 1))


def _weights(length: int, wanted: int, like: Tensor) -> Tensor:
    """(wanted, length): how much each old place gives to each new one; rows add up to 1."""
    scale = length / wanted
    support = torch.sym_max(scale, 1.0)
    dtype = torch.promote_types(like.dtype, torch.float32)
    new = torch.arange(wanted, device=like.device, dtype=dtype)
    old = torch.arange(length, device=like.device, dtype=dtype)
    offset = (old + 0.5) - ((new + 0.5) * scale).unsqueeze(1)
    distance: Tensor = offset.abs() / support  # type: ignore[assignment]
    a = _SHARPNESS
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    zero = torch.zeros_like(distance)
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, zero))
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)


class BicubicAsProducts(TorchFunctionMode):
    """While it is entered, PyTorch's bicubic scaling with ``antialias`` is :func:`bicubic`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace calls of ``F.interpolate`` to a size; leave all others as they are."""
        kwargs = dict(kwargs or {})
        size = kwargs.get("size", args[1] if len(args) > 1 else None)
        if (
            func is F.interpolate
            and kwargs.get("mode") == "bicubic"
            and kwargs.get("antialias")
            and not kwargs.get("align_corners")
            and isinstance(size, Sequence)
        ):
            return bicubic(args[0] if args else kwargs["input"], size)
        return func(*args, **kwargs)

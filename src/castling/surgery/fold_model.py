"""Checks before folding, and the snapshot that undoes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Snapshot:
    """References to a model's modules, parameters and attributes, to restore them later."""

    def __init__(self, model: nn.Module) -> None:
        self.states = [(module, self._tables(module)) for module in model.modules()]

    @staticmethod
    def _tables(module: nn.Module) -> dict[str, Any]:
        tables = ("_parameters", "_buffers", "_modules")
        return {
            name: value.copy() if name in tables else value
            for name, value in module.__dict__.items()
        }

    def restore(self) -> None:
        """Put everything back."""
        for module, tables in self.states:
            module.__dict__.clear()
            module.__dict__.update(tables)


def check_foldable(model: nn.Module) -> None:
    """Raise ValueError for a model in training mode or in half precision."""
    # A new classifier may be in training mode, which makes no difference to a linear layer.
    mode_matters = [m for m in model.modules() if isinstance(m, _BatchNorm) or "Drop" in _name(m)]
    if model.training or any(module.training for module in mode_matters):
        raise ValueError(
            "folding is for inference and needs fixed BatchNorm statistics: call model.eval() first"
        )
    half = {p.dtype for p in model.parameters() if p.is_floating_point() and p.itemsize < 4}
    if half:
        raise ValueError(
            f"folding in {', '.join(map(str, half))} would round twice: fold the float32 model, "
            "then convert it"
        )


def _name(module: nn.Module) -> str:
    return type(module).__name__


def example_for(model: nn.Module) -> Tensor:
    """Two random images of the model's own size."""
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    height, width = size or (height, width)
    multiple = getattr(model, "multiple", 1)  # of a detector, whose sizes are multiples of it
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = channels if first is None else first.in_channels
    like = next(model.parameters())
    images = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    return images.to(like.device, like.dtype)


def count_parts(model: nn.Module) -> tuple[int, int]:
    """Parameters and BatchNorms."""
    norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    return sum(parameter.numel() for parameter in model.parameters()), norms

"""The network of QT-ViT: timm's EfficientViT with its attention modules replaced.

Xu et al., "QT-ViT: Improving Linear Attention in ViT with Quadratic Taylor Expansion" (NeurIPS
2024). Every stride rounds up, so images of any height and width work; the position tables, made for
``img_size``, are resized to other grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from timm.models._input import update_model_input_size
from timm.models.efficientvit_mit import (
    EfficientVit,
    EfficientVitBlock,
    EfficientVitLarge,
    ResidualBlock,
)
from torch import Tensor, nn

from castling.attention import AttentionConfig
from castling.attention.multi_scale import MultiScaleAttention


class DroppedResidual(ResidualBlock):
    """timm's residual block with stochastic depth on its main branch.

    Args:
        host: the block to replace; its children are moved here.
        drop_path: probability of leaving out the main branch for a sample in training.
    """

    def __init__(self, host: ResidualBlock, drop_path: float) -> None:
        super().__init__(host.main, host.shortcut, host.pre_norm)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.drop_path(self.main(self.pre_norm(x))) + self.shortcut(x)


class _QTViTMixin(nn.Module):
    """Quadratic Taylor attention for both of timm's EfficientViT classes.

    Args:
        img_size: pixels, one number or (H, W), for which the position tables are made.
        attention: a configuration, a registered name, or a dictionary with ``name``; None means the
            released quadratic Taylor form.
        shortcut: add GELU(BN(v)) in every attention.
        position: add a learned table to the keys of every attention.
        strides: of the stem and of each stage; 2 as published, 1 keeps a sensible grid on small
            images.
        drop_path_rate: stochastic depth of the last residual; grows linearly from 0.
        **network: arguments of timm's class.

    Raises:
        ValueError: an option has no meaning.
    """

    stem: nn.Module
    stages: nn.Sequential
    feature_info: list[dict[str, Any]]

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        attention: str | AttentionConfig | dict[str, Any] | None = None,
        shortcut: bool = True,
        position: bool = True,
        strides: Sequence[int] = (2, 2, 2, 2, 2),
        drop_path_rate: float = 0.0,
        **network: Any,
    ) -> None:
        super().__init__(**network)
        self._set_strides(strides)
        for block, grid in self._attention_blocks(img_size):
            block.context_module.main = MultiScaleAttention(
                block.context_module.main,
                attention,
                grid=grid,
                shortcut=shortcut,
                position=position,
            )
        if drop_path_rate:
            self._set_drop_path(drop_path_rate)

    def _set_strides(self, strides: Sequence[int]) -> None:
        if len(strides) != 1 + len(self.stages) or not set(strides) <= {1, 2}:
            raise ValueError(
                f"strides must be {1 + len(self.stages)} numbers, each 1 or 2, got {strides}"
            )
        reduction = 1
        for index, (part, stride) in enumerate(
            zip((self.stem, *self.stages), strides, strict=True)
        ):
            reduction *= stride
            for module in part.modules():
                if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                    module.stride = (stride, stride)
            if index:
                self.feature_info[index - 1]["reduction"] = reduction

    def _attention_blocks(
        self, img_size: int | tuple[int, int]
    ) -> list[tuple[EfficientVitBlock, tuple[int, int]]]:
        """Every block with attention, and its grid (h, w) on images of ``img_size`` pixels."""
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, width) < 1:
            raise ValueError(f"img_size must be positive, got {img_size}")
        return [
            (block, (-(-height // info["reduction"]), -(-width // info["reduction"])))
            for stage, info in zip(self.stages, self.feature_info, strict=False)
            for block in stage.modules()
            if isinstance(block, EfficientVitBlock)
        ]

    def _set_drop_path(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path_rate must lie in [0, 1), got {rate}")
        places = [
            (parent, name, child)
            for parent in self.modules()
            for name, child in parent.named_children()
            if isinstance(child, ResidualBlock) and child.shortcut is not None
        ]
        for index, (parent, name, child) in enumerate(places):
            share = rate * index / max(len(places) - 1, 1)
            setattr(parent, name, DroppedResidual(child, share))

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise all weights, and the buffers too, as at construction.

        Args:
            needs_reset: False leaves all as it is: every layer initialises itself when it is made.
        """
        for module in self.modules():
            if needs_reset and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize every position table to the grid of ``img_size`` pixels, for good."""
        for block, grid in self._attention_blocks(img_size):
            block.context_module.main.set_grid(grid)
        update_model_input_size(self, img_size)  # so that timm's savers build it again like this

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The attentions' scalars, BN and position tables (the official code decays them)."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, MultiScaleAttention)
            for name in module.no_weight_decay()
        }


class QTViT(_QTViTMixin, EfficientVit):
    """QT-ViT 1–3 on timm's EfficientViT B; arguments of :class:`_QTViTMixin`."""


class QTViTLarge(_QTViTMixin, EfficientVitLarge):
    """QT-ViT 4–6 on timm's EfficientViT L; arguments of :class:`_QTViTMixin`.

    ``norm_eps`` is the ε of every norm, 1e-7 as the authors set it; timm leaves the norm behind the
    head's convolution at 1e-5.
    """

    head: Any
    norm_eps: float

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.head.in_conv.norm.eps = self.norm_eps

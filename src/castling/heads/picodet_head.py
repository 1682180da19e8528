"""The head of PicoDet: classes and distances to the four sides of a box, at every point.

Yu et al., "PP-PicoDet" (arXiv 2111.00902); distances as distributions: Li et al., "Generalized
Focal Loss" (arXiv 2006.04388), §3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from castling.models.convolutions import depthwise_separable

#: Probability of every class before training.
_PRIOR = 0.01


class PicoDetHead(nn.Module):
    """Depthwise separable convolutions and a 1×1 one; every level has weights of its own.

    Args:
        channels: of all maps.
        num_classes: K.
        blocks: depthwise separable convolutions per level.
        strides: of the levels, in pixels.
        reg_max: distances are expected values over 0 … reg_max, in strides.
    """

    def __init__(
        self, channels: int, num_classes: int, blocks: int, strides: Sequence[int], reg_max: int
    ) -> None:
        super().__init__()
        self.num_classes, self.strides, self.reg_max = num_classes, tuple(strides), reg_max
        outputs = num_classes + 4 * (reg_max + 1)
        self.towers = nn.ModuleList(
            nn.Sequential(*(depthwise_separable(channels, channels) for _ in range(blocks)))
            for _ in strides
        )
        self.outputs = nn.ModuleList(nn.Conv2d(channels, outputs, 1) for _ in strides)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
        for name, bias in self.outputs.named_parameters():
            # Harmless to the distances: a softmax ignores what all bins share.
            if name.endswith("bias"):
                nn.init.constant_(bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Maps (B, C, h_i, w_i) → per stride s the raw outputs ``logits_s`` and ``bins_s``.

        They are (B, K, h_i, w_i) and (B, 4·(reg_max + 1), h_i, w_i): left, top, right, bottom.
        """
        raw = {}
        for stride, each, tower, layer in zip(
            self.strides, maps, self.towers, self.outputs, strict=True
        ):
            out = layer(tower(each))
            raw[f"logits_{stride}"] = out[:, : self.num_classes]
            raw[f"bins_{stride}"] = out[:, self.num_classes :]
        return raw


def points_of(grid: Tensor, stride: int) -> Tensor:
    """(h·w, 2) float32 x, y in pixels of the centres of the cells of a map (…, h, w), by rows."""
    height, width = grid.shape[-2:]
    y = torch.arange(height, device=grid.device, dtype=torch.float32) + 0.5
    x = torch.arange(width, device=grid.device, dtype=torch.float32) + 0.5
    rows, columns = torch.meshgrid(y * stride, x * stride, indexing="ij")
    return torch.stack((columns, rows), dim=-1).flatten(0, 1)


def by_point(level: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h·w, C) float32."""
    return level.flatten(2).transpose(1, 2).float()


def distances(bins: Tensor, reg_max: int) -> Tensor:
    """Logits (…, 4·(reg_max + 1)) of distances → their expected values (…, 4), in strides."""
    probabilities = bins.unflatten(-1, (4, reg_max + 1)).softmax(-1)
    places = torch.arange(reg_max + 1, device=bins.device, dtype=bins.dtype)
    # Not a matrix product with a vector, times a number: OpenVINO 2026.4 cannot open that.
    return (probabilities * places).sum(-1)


def boxes_around(points: Tensor, sides: Tensor) -> Tensor:
    """Points (…, 2) and distances (…, 4) left, top, right, bottom → boxes (…, 4), same units."""
    return torch.cat((points - sides[..., :2], points + sides[..., 2:]), dim=-1)

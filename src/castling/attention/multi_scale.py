"""The token mixer of QT-ViT: EfficientViT's multi-scale attention with any registered kernel.

x ─► 1×1 to q, k, v ─┬──────────────────────► heads ─┐
                     └─► depthwise 5×5, grouped 1×1 ─► heads ─┴─► k += position ─► attend
                                                                                   │
      1×1, BN  ◄── (+) ◄────────────────────────────────────────────────────────────┘
                    ▲
        GELU(BN(v)) ┘

Xu et al., QT-ViT, NeurIPS 2024; Cai et al., EfficientViT, ICCV 2023. State names are timm's and
the official checkpoints' (``qkv``, ``aggreg``, ``proj``, ``bn``, ``positional_encoding``); the
scalar s is ``kernel.ones_scale1`` here and ``ones_scale1`` there, and loading takes either.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.efficientvit_mit import LiteMLA
from torch import Tensor, nn
from torch.nn import functional as F

from castling.attention.base import AttentionCore
from castling.attention.config import AttentionConfig
from castling.attention.quadratic_taylor import QuadraticTaylor
from castling.attention.registry import attention_config
from castling.utils.plain import is_plain


def resize_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, C, h, w) -> (1, C, *grid): bicubic (a = −0.75), corners not aligned, float32 inside."""
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    return F.interpolate(wide, size=grid, mode="bicubic", align_corners=False).to(table.dtype)


def _aggregated(x: Tensor, branch: nn.Module) -> Tensor:
    """(B, C, h, w) through the convolutions of one scale.

    A grouped 1×1 convolution is a batch of small products; convolution libraries compute it group
    by group, up to ten times slower.
    """
    if not is_plain(branch, nn.Sequential):
        return branch(x)
    batch, _, height, width = x.shape
    for layer in branch.children():
        if not (isinstance(layer, nn.Conv2d) and _is_grouped_product(layer)):
            x = layer(x)
            continue
        weight = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))
        groups = x.reshape(batch, layer.groups, weight.shape[2], height * width)
        out = torch.matmul(weight, groups).reshape(batch, layer.out_channels, height, width)
        x = out if layer.bias is None else out + layer.bias[:, None, None]
    return x


def _is_grouped_product(layer: nn.Conv2d) -> bool:
    """Whether the layer may be computed from its weights as products of matrices."""
    return (
        is_plain(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.groups > 1
        and layer.stride == (1, 1)
        and layer.padding in ((0, 0), "valid", "same")
    )


class MultiScaleAttention(AttentionCore):
    """Multi-scale attention on (B, C, h, w); heads of all scales lie side by side.

    Args:
        host: timm's module, whose projections are moved here, weights and names kept.
        attention: a configuration, a registered name, or a dictionary with ``name``; None means the
            released quadratic Taylor form.
        grid: (h, w) for which the position table is made; other grids use it resized.
        shortcut: add GELU(BN(v)), one BN of d channels shared by all heads and scales.
        position: add a learned table, zero at first, to the keys (of the auxiliary branch too).

    Raises:
        ValueError: the attention's name is unknown.
    """

    added_names = (*AttentionCore.added_names, "bn.", "positional_encoding")

    def __init__(
        self,
        host: LiteMLA,
        attention: str | AttentionConfig | dict[str, Any] | None = None,
        *,
        grid: tuple[int, int],
        shortcut: bool = True,
        position: bool = True,
    ) -> None:
        config = QuadraticTaylor() if attention is None else attention_config(attention)
        channels = host.proj.conv.in_channels
        like = host.proj.conv.weight
        super().__init__(config, channels // host.dim, host.dim)
        self.qkv = host.qkv
        self.aggreg = host.aggreg
        self.proj = host.proj
        # The official L networks set 1e-7 for every norm, this one included.
        self.bn = nn.BatchNorm2d(host.dim, eps=host.proj.norm.eps) if shortcut else None
        self.positional_encoding = (
            nn.Parameter(torch.zeros(1, channels, *grid)) if position else None
        )
        self.to(like.device, like.dtype)
        self._resized: tuple[Tensor, Tensor] | None = None

    def reset_parameters(self) -> None:
        """The position table starts at zero."""
        if self.positional_encoding is not None:
            nn.init.zeros_(self.positional_encoding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        batch, _, height, width = x.shape
        qkv = self.qkv(x)
        scales = torch.cat([qkv, *(_aggregated(qkv, branch) for branch in self.aggreg)], dim=1)
        heads = scales.reshape(batch, self.num_heads, 3 * self.head_dim, height * width)
        query, key, value = heads.permute(0, 3, 1, 2).chunk(3, dim=-1)
        if self.positional_encoding is not None:
            key = key + self.position((height, width)).to(key.dtype)
        out = self.attend(query, key, value, grid=(height, width))
        if self.bn is not None:
            # BN wants its channels second: (B, d, H, N).
            out = out + F.gelu(self.bn(value.permute(0, 3, 2, 1))).permute(0, 3, 2, 1)
        channels = self.num_heads * self.value_dim
        return self.proj(out.permute(0, 2, 3, 1).reshape(batch, channels, height, width))

    def position(self, grid: tuple[int, int]) -> Tensor:
        """What is added to the keys of a grid: (1, h·w, H, d)."""
        table = self._table(grid)
        table = table.reshape(1, self.num_heads, self.head_dim, grid[0] * grid[1])
        return table.permute(0, 3, 1, 2)

    def _table(self, grid: tuple[int, int]) -> Tensor:
        table = self.positional_encoding
        assert table is not None
        # ``torch.jit.trace`` hands out sizes as tensors.
        symbolic = any(isinstance(side, torch.SymInt | Tensor) for side in grid)
        if not symbolic and grid == tuple(table.shape[-2:]):
            return table
        # On a CPU, resizing costs as much as the attention itself: the last result is cached with
        # its table, and used while that is unchanged. On an accelerator it is one launch.
        if (
            symbolic
            or torch.compiler.is_compiling()
            or torch.is_grad_enabled()
            or self.training
            or table.device.type != "cpu"
        ):
            return resize_table(table, grid)
        if self._resized is not None:
            source, resized = self._resized
            same = resized.shape[-2:] == grid and resized.dtype == table.dtype
            if same and torch.equal(source, table):
                return resized
        self._resized = (table.detach().clone(), resize_table(table.detach(), grid))
        return self._resized[1]

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Resize the position table to ``grid`` for good: images of that size need no resizing."""
        if self.positional_encoding is not None:
            with torch.no_grad():
                table = resize_table(self.positional_encoding, grid)
            self.positional_encoding = nn.Parameter(
                table, requires_grad=self.positional_encoding.requires_grad
            )

    def train(self, mode: bool = True) -> MultiScaleAttention:
        """As in every module; also forgets the resized position table."""
        self._resized = None
        return super().train(mode)

    def no_weight_decay(self) -> set[str]:
        """Names, from this module, of parameters that are not to be pulled towards zero."""
        names = {
            f"kernel.{name}"
            for name, parameter in self.kernel.named_parameters()
            if parameter.dim() <= 1
        }
        if self.positional_encoding is not None:
            names.add("positional_encoding")
        if self.bn is not None:
            names |= {"bn.weight", "bn.bias"}
        return names

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take the scalar by its official name, and a table of another grid resized."""
        scalar = state_dict.pop(f"{prefix}ones_scale1", None)
        if scalar is not None:
            state_dict[f"{prefix}kernel.ones_scale1"] = scalar
        name = f"{prefix}positional_encoding"
        table, own = state_dict.get(name), self.positional_encoding
        if table is not None and own is not None and table.dim() == 4:
            grid = (own.shape[-2], own.shape[-1])
            if table.shape[:2] == own.shape[:2] and tuple(table.shape[-2:]) != grid:
                state_dict[name] = resize_table(table, grid)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

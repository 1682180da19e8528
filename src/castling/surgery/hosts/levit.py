"""Adapters for timm's LeViT: d_v ≠ d_k, learned attention biases, downsampling attentions.

LeViT's biases depend on |Δy|, |Δx| only. A linear kernel cannot use them: the auxiliary branch
does, and they are removed with it. On a grid other than the table's, the table is resized
bilinearly.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from timm.models.levit import Attention as TimmAttention
from timm.models.levit import AttentionDownsample as TimmAttentionDownsample
from timm.models.levit import Downsample as TimmDownsample
from timm.models.levit import Levit
from torch import Tensor, nn
from torch.nn import functional as F

from castling.attention import AttentionConfig
from castling.surgery.geometry import Geometry, Grid, GridUnknownError
from castling.surgery.hosts.base import (
    HostAttention,
    Place,
    join,
    named_hosts,
    shared_geometry,
    symbolic,
    tokens_to_grid,
    watch_tokens,
)
from castling.surgery.hosts.registry import register_host


class _LevitAttention(HostAttention):
    """Common to both attentions: biases by distance, tokens from sequences or from maps."""

    bias_names = ("attention_biases",)

    use_conv: bool
    key_dim: int
    val_dim: int
    val_attn_dim: int
    resolution: tuple[int, int]
    attention_biases: Tensor
    proj: nn.Module

    def __init__(self, host: Any, config: AttentionConfig, place: Place) -> None:
        super().__init__(
            config,
            place,
            num_heads=host.num_heads,
            head_dim=host.key_dim,
            value_dim=host.val_dim,
            scale=host.scale,
        )
        self.take(host, "use_conv", "key_dim", "val_dim", "val_attn_dim", "resolution")
        self.take(host, "attention_biases", "proj")

    def reset_parameters(self) -> None:
        """The biases start at zero, as the host's."""
        if hasattr(self, "attention_biases"):
            nn.init.zeros_(self.attention_biases)

    @classmethod
    def places(cls, model: nn.Module) -> dict[str, Place]:
        """See :class:`HostAttention`; the level counts the downsamplings already passed."""
        places = {}
        for prefix, levit in named_hosts(model, Levit):
            geometry = shared_geometry(levit, levit.stem, Geometry.watch_stem)
            level, inside = 0, {}
            for name, module in levit.named_modules():
                if isinstance(module, TimmAttention | TimmAttentionDownsample | _LevitAttention):
                    inside[name] = Place(geometry, level=level)
                level += isinstance(module, TimmAttentionDownsample | LevitAttentionDownsample)
            watch_tokens(levit, geometry, inside)
            places.update({join(prefix, name): place for name, place in inside.items()})
        return places

    @classmethod
    def call_grid(
        cls, module: Any, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Grid:
        """See :class:`HostAttention`: from the map, the geometry, or the host's construction."""
        x = args[0] if args else kwargs["x"]
        if module.use_conv:
            return x.shape[-2], x.shape[-1]
        height, width = module.resolution
        try:
            return place.grid_of(x) or (height, width)
        except GridUnknownError as error:
            # A layer called alone is bound to the grid it was made for, as the host's is.
            if error.never_embedded and x.shape[1] == height * width:
                return height, width
            raise

    @property
    def uses_grid(self) -> bool:
        """See :class:`HostAttention`; score biases and maps depend on the grid too."""
        return super().uses_grid or self.use_conv or self.wants_bias

    def known_grid(self, tokens: Tensor) -> Grid | None:
        """See :class:`HostAttention`."""
        return self.require_grid(tokens) if self.uses_grid else None

    def require_grid(self, tokens: Tensor) -> Grid:
        """(h, w) of the keys; raises GridUnknownError as :meth:`Place.grid_of`."""
        return self.call_grid(self, self.place, (tokens,), {})

    def tokens(self, projected: Tensor) -> Tensor:
        """(B, N, H·c) rows or (B, H·c, h, w) maps -> (B, N, H, c)."""
        if self.use_conv:
            projected = projected.flatten(2).transpose(1, 2)
        batch, count, channels = projected.shape
        return projected.reshape(batch, count, self.num_heads, channels // self.num_heads)

    def score_bias(
        self, query_grid: tuple[int, int], key_grid: tuple[int, int], stride: int
    ) -> Tensor | None:
        """The learned bias by distance, (1, H, N_q, N_k), if anything reads it."""
        if not self.wants_bias:
            return None
        table = self.attention_biases.unflatten(1, tuple(self.resolution))
        # A graph traced for any size always resizes; to the same size, that changes nothing.
        if symbolic(*key_grid) or tuple(self.resolution) != tuple(key_grid):
            table = F.interpolate(table[None], size=key_grid, mode="bilinear")[0]
        steps = [
            (
                torch.arange(queries, device=table.device)[:, None] * stride
                - torch.arange(keys, device=table.device)[None]
            ).abs()
            for queries, keys in zip(query_grid, key_grid, strict=True)
        ]
        rows, columns = steps
        bias = table[:, rows[:, None, :, None], columns[None, :, None, :]]
        return bias.flatten(3).flatten(1, 2)[None]

    def project(self, out: Tensor, grid: Grid | None) -> Tensor:
        """Heads joined and projected, in the layout that the host expects."""
        batch, count = out.shape[:2]
        out = out.reshape(batch, count, self.val_attn_dim)
        if self.use_conv and grid is not None:
            out = out.transpose(1, 2).reshape(batch, self.val_attn_dim, *grid)
        return self.proj(out)


@register_host(TimmAttention)
class LevitAttention(_LevitAttention):
    """LeViT's attention with its softmax replaced."""

    qkv: nn.Module

    def __init__(self, host: Any, config: AttentionConfig, place: Place) -> None:
        super().__init__(host, config, place)
        self.take(host, "qkv")

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C), or (B, C, h, w) maps in the convolutional variants."""
        grid = self.known_grid(x)
        query, key, value = self.tokens(self.qkv(x)).split(
            [self.key_dim, self.key_dim, self.val_dim], dim=-1
        )
        bias = None if grid is None else self.score_bias(grid, grid, stride=1)
        return self.project(self.attend(query, key, value, grid=grid, bias=bias), grid)


class GridDownsample(nn.Module):
    """LeViT's ``q.down`` on any grid; the host's own is bound to the one it was made for.

    Args:
        host: the module to replace.
    """

    def __init__(self, host: TimmDownsample) -> None:
        super().__init__()
        self.stride, self.pool = host.stride, host.pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, ⌈h/2⌉·⌈w/2⌉, C)."""
        if self.pool is None:
            return x[:, :: self.stride, :: self.stride].flatten(1, 2)
        return self.pool(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


@register_host(TimmAttentionDownsample)
class LevitAttentionDownsample(_LevitAttention):
    """LeViT's downsampling attention: queries at every second row and column of the keys."""

    stride: int
    kv: nn.Module
    q: Any

    def __init__(self, host: Any, config: AttentionConfig, place: Place) -> None:
        super().__init__(host, config, place)
        self.take(host, "stride", "kv", "q")
        if type(self.q.down) is TimmDownsample:  # the host keeps its own, until all is built
            down = GridDownsample(self.q.down)
            self.q = nn.Sequential(OrderedDict(down=down, ln=self.q.ln))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, ⌈h/2⌉·⌈w/2⌉, C'), or maps in the convolutional variants."""
        grid = self.require_grid(x)
        query_grid = ((grid[0] - 1) // self.stride + 1, (grid[1] - 1) // self.stride + 1)
        key, value = self.tokens(self.kv(x)).split([self.key_dim, self.val_dim], dim=-1)

        def to_queries(tokens: Tensor) -> Tensor:
            return tokens_to_grid(tokens, grid)[:, :: self.stride, :: self.stride].flatten(1, 2)

        query = self.tokens(self.q(x if self.use_conv else tokens_to_grid(x, grid)))
        bias = self.score_bias(query_grid, grid, self.stride)
        out = self.attend(query, key, value, grid=grid, bias=bias, to_queries=to_queries)
        return self.project(out, query_grid)

"""Adapter for timm's MViTv2: convolution-pooled q, k and v, residual pooling, relative positions.

The decomposed relative positions are a score bias computed from q. A linear kernel cannot use it:
the auxiliary branch does, and the tables are removed with it. On a grid other than the tables',
they are resized linearly, as MViTv2's authors do.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import trunc_normal_tf_
from timm.models.mvitv2 import MultiScaleAttention as TimmAttention
from timm.models.mvitv2 import reshape_post_pool, reshape_pre_pool
from torch import Tensor, nn
from torch.nn import functional as F

from castling.attention import AttentionConfig
from castling.surgery.geometry import Grid
from castling.surgery.hosts.base import HostAttention, Place, symbolic
from castling.surgery.hosts.registry import register_host


@register_host(TimmAttention)
class MultiScaleAttention(HostAttention):
    """MViTv2's pooling attention with its softmax replaced."""

    bias_names = ("rel_pos_h", "rel_pos_w")

    dim_out: int
    has_cls_token: bool
    rel_pos_type: str
    residual_pooling: bool
    qkv: nn.Module
    proj: nn.Module
    pool_q: nn.Module | None
    pool_k: nn.Module | None
    pool_v: nn.Module | None
    norm_q: nn.Module | None
    norm_k: nn.Module | None
    norm_v: nn.Module | None
    rel_pos_h: Tensor
    rel_pos_w: Tensor

    def __init__(self, host: Any, config: AttentionConfig, place: Place) -> None:
        super().__init__(
            config, place, num_heads=host.num_heads, head_dim=host.head_dim, scale=host.scale
        )
        self.take(host, "dim_out", "has_cls_token", "rel_pos_type", "residual_pooling", "mode")
        self.take(host, "qkv", "proj", "pool_q", "pool_k", "pool_v", "norm_q", "norm_k", "norm_v")
        self.take(host, "rel_pos_h", "rel_pos_w", "unshared")

    def reset_parameters(self) -> None:
        """The tables as the host starts them."""
        for name in self.bias_names:
            if isinstance(getattr(self, name, None), Tensor):
                trunc_normal_tf_(getattr(self, name), std=0.02)

    @classmethod
    def places(cls, model: nn.Module) -> dict[str, Place]:
        """See :class:`HostAttention`; this host passes its grid with every call."""
        return {
            name: Place(num_prefix_tokens=int(module.has_cls_token))
            for name, module in model.named_modules()
            if isinstance(module, TimmAttention | cls)
        }

    @classmethod
    def call_grid(
        cls, module: nn.Module, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Grid | None:
        """See :class:`HostAttention`: ``feat_size``, the grid of the tokens before pooling."""
        height, width = kwargs["feat_size"] if "feat_size" in kwargs else args[1]
        return height, width

    def check_bias(self) -> None:
        """As in :class:`HostAttention`, where the host has relative positions at all."""
        if self.rel_pos_type == "spatial":
            super().check_bias()

    def pooled(
        self, tokens: Tensor, grid: list[int], pool: nn.Module | None, norm: nn.Module | None
    ) -> tuple[Tensor, list[int]]:
        """(B, H, N, d) pooled on its grid and normalised, and the new grid."""
        if pool is not None:
            tokens, prefix = reshape_pre_pool(tokens, grid, self.has_cls_token)
            tokens, grid = reshape_post_pool(pool(tokens), self.num_heads, prefix)
        return (tokens if norm is None else norm(tokens)), grid

    def score_bias(
        self, query: Tensor, query_grid: list[int], key_grid: list[int]
    ) -> Tensor | None:
        """⟨q, R_Δy⟩ + ⟨q, R_Δx⟩, (B, H, N_q, N_k), if anything reads it."""
        if self.rel_pos_type != "spatial" or not self.wants_bias:
            return None
        prefix = int(self.has_cls_token)
        batch, heads, _, channels = query.shape
        maps = query[:, :, prefix:].reshape(batch, heads, *query_grid, channels)
        by_row = torch.einsum(
            "bhyxc,ykc->bhyxk", maps, _distances(self.rel_pos_h, query_grid[0], key_grid[0])
        )
        by_column = torch.einsum(
            "bhyxc,xkc->bhyxk", maps, _distances(self.rel_pos_w, query_grid[1], key_grid[1])
        )
        bias = (by_row.unsqueeze(-1) + by_column.unsqueeze(-2)).flatten(4).flatten(2, 3)
        return F.pad(bias, (prefix, 0, prefix, 0)) if prefix else bias

    def forward(self, x: Tensor, feat_size: list[int]) -> tuple[Tensor, list[int]]:
        """(B, N, C) on ``feat_size`` -> (B, N', C') and its grid."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        query, query_grid = self.pooled(query, feat_size, self.pool_q, self.norm_q)
        key, key_grid = self.pooled(key, feat_size, self.pool_k, self.norm_k)
        value, _ = self.pooled(value, feat_size, self.pool_v, self.norm_v)
        bias = self.score_bias(query, query_grid, key_grid)
        prefix = self.place.num_prefix_tokens

        def to_queries(keyed: Tensor) -> Tensor:
            channels = keyed.shape[2] * keyed.shape[3]
            image = keyed[:, prefix:].reshape(batch, *key_grid, channels).permute(0, 3, 1, 2)
            image = F.interpolate(image, size=tuple(query_grid), mode="nearest")
            count = query_grid[0] * query_grid[1]
            image = image.permute(0, 2, 3, 1).reshape(batch, count, *keyed.shape[2:])
            return torch.cat([keyed[:, :prefix], image], dim=1) if prefix else image

        out = self.attend(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            grid=(key_grid[0], key_grid[1]),
            num_prefix_tokens=prefix,
            bias=bias,
            to_queries=None if list(query_grid) == list(key_grid) else to_queries,
        )
        if self.residual_pooling:
            out = out + query.transpose(1, 2)
        return self.proj(out.reshape(batch, -1, self.dim_out)), query_grid


def _distances(table: Tensor, queries: int, keys: int) -> Tensor:
    """Rows of a (2·size − 1, d) table by the distance of query and key on the finer grid."""
    size = max(queries, keys)
    # A graph traced for any size always resizes; to the same size, that changes nothing.
    if symbolic(size) or table.shape[0] != 2 * size - 1:
        table = F.interpolate(table.t()[None], size=2 * size - 1, mode="linear")[0].t()
    at_query = torch.arange(queries, device=table.device)[:, None] * max(keys / queries, 1.0)
    at_key = torch.arange(keys, device=table.device)[None] * max(queries / keys, 1.0)
    distance = at_query - at_key + (keys - 1) * max(queries / keys, 1.0)
    return table[distance.long()]

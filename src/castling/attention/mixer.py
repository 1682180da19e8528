"""The token mixer: projection to q, k, v, attention of any kind, output projection."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from castling.attention.base import AttentionCore
from castling.attention.config import AttentionConfig
from castling.attention.registry import attention_config


class Attention(AttentionCore):
    """Multi-head attention of any registered kind on (B, N, C) tokens.

    State names are those of timm's ViT and of the Castling-ViT reference block: ``qkv``, ``proj``,
    ``dconv``.

    Args:
        dim: C.
        num_heads: H; must divide C.
        attention: a configuration, a registered name, or a dictionary with ``name``.
        qkv_bias: add a bias to q, k and v.
        proj_bias: add a bias to the output projection.
        proj_drop: dropout probability after the output projection.

    Raises:
        ValueError: ``dim`` is not divisible by ``num_heads``; the attention's name is unknown.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        attention: str | AttentionConfig | dict[str, Any] = "linear_angular",
        *,
        qkv_bias: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        super().__init__(attention_config(attention), num_heads, dim // num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        grid: tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Mix tokens.

        Args:
            x: (B, N, C).
            grid: (h, w) of the tokens behind the prefix; needed by ``local="grid2d"``.
            num_prefix_tokens: class, distillation and register tokens in front of the grid.
            key_mask: (B, N) boolean, True where a token takes part.
            positions: (B, V) int64, the places on the grid of the tokens that are there, where
                others are hidden; see :meth:`attend`.

        Returns:
            (B, N, C).
        """
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.unbind(2)
        out = self.attend(
            query,
            key,
            value,
            grid=grid,
            num_prefix_tokens=num_prefix_tokens,
            key_mask=key_mask,
            positions=positions,
        )
        return self.proj_drop(self.proj(out.reshape(batch, tokens, dim)))

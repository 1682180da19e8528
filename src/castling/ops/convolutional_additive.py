"""Tensor pieces of convolutional additive attention (CAS-ViT): gates, and tokens as an image.

out = proj(Γ(Φ(q) + Φ(k)) ⊙ v), Φ = channel gate ∘ spatial gate; O(N), no heads, no softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gate(x: Tensor, scores: Tensor) -> Tensor:
    """Apply a logistic gate: x ⊙ σ(scores).

    Args:
        x: (B, C, h, w).
        scores: (B, 1, h, w) for one gate per position, (B, C, 1, 1) for one per channel.
    """
    return x * torch.sigmoid(scores)


def tokens_to_image(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h·w, H, d) -> (B, H·d, h, w), a view in channels-last memory where tokens are contiguous.

    Raises:
        ValueError: the grid has another number of tokens.
    """
    height, width = grid
    batch, count = tokens.shape[:2]
    if height * width != count:
        raise ValueError(f"grid {height}×{width} does not make {count} tokens")
    return tokens.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def image_to_tokens(image: Tensor, num_heads: int) -> Tensor:
    """(B, H·d, h, w) -> (B, h·w, H, d), the inverse of :func:`tokens_to_image`."""
    batch, channels, height, width = image.shape
    tokens = image.permute(0, 2, 3, 1)
    return tokens.reshape(batch, height * width, num_heads, channels // num_heads)

"""Softmax attention by PyTorch's fused kernel: the baseline, and the hosts' own attention."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from castling.ops.common import check_qkv


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scale·q kᵀ + bias) v, by ``scaled_dot_product_attention``.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        scale: None means 1/√d.
        bias: broadcastable to (B, H, N_q, N_k).
        key_mask: (B, N_k) boolean, True where a key takes part.
        dropout: probability of dropping an attention weight.

    Returns:
        (B, N_q, H, d_v).
    """
    check_qkv(query, key, value, key_mask)
    mask = bias
    if key_mask is not None:
        keep = key_mask[:, None, None, :]
        mask = keep if bias is None else bias.masked_fill(~keep, float("-inf"))
    if mask is not None and mask.is_floating_point():
        mask = mask.to(query.dtype)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
        dropout_p=dropout,
    )
    return out.transpose(1, 2)

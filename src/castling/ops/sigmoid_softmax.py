"""Sigmoid-softmax attention: σ(q) against keys normalised over the tokens (QT-ViT, Table 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from castling.ops.common import autocast_off, check_qkv, upcast
from castling.ops.linear_attention import linear_attention
from castling.ops.linear_inputs import LinearOptions, LinearTensors


def sigmoid_softmax(
    query: Tensor, key: Tensor, value: Tensor, *, key_mask: Tensor | None = None
) -> Tensor:
    """σ(q_i)ᵀ (softmax_j(k_j) v_jᵀ): the softmax runs over tokens, channel by channel.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        key_mask: (B, N_k) boolean, True where a key takes part.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``.
    """
    check_qkv(query, key, value, key_mask)
    with autocast_off(value):
        q, k, v = upcast(query, key, value)
        if key_mask is not None:
            k = k.masked_fill(~key_mask[:, :, None, None], torch.finfo(k.dtype).min)
        # The weights already sum to one.
        out = linear_attention(
            LinearTensors(q.sigmoid(), k.softmax(dim=1), v, key_mask=key_mask),
            LinearOptions("identity", "none", kv_scale=1.0),
        )
        return out.to(value.dtype)

"""Separable self-attention: one weighted sum of the keys gates every value (MobileViTv2)."""

from __future__ import annotations

from torch import Tensor

from castling.ops.common import autocast_off, check_qkv, mask_tokens, upcast


def separable(
    scores: Tensor, key: Tensor, value: Tensor, *, key_mask: Tensor | None = None
) -> Tensor:
    """relu(v_i) ⊙ Σ_j softmax_j(s)_j k_j; O(N·d) (Mehta & Rastegari, arXiv 2206.02680, Eq. 3).

    Args:
        scores: s, (B, N, H, 1), one for each token.
        key: (B, N, H, d).
        value: (B, N, H, d).
        key_mask: (B, N) boolean, True where a token takes part; all False gives zeros.

    Returns:
        (B, N, H, d) in the dtype of ``value``; softmax and sum are float32 or better.

    Raises:
        ValueError: shapes disagree, or values are not as wide as keys.
    """
    check_qkv(key, key, value, key_mask)
    if value.shape != key.shape or scores.shape != (*key.shape[:3], 1):
        raise ValueError(
            "separable attention needs a score and a value as wide as the key at every token; got "
            f"scores {tuple(scores.shape)}, keys {tuple(key.shape)}, values {tuple(value.shape)}"
        )
    with autocast_off(value):
        s, k, v = upcast(scores, key, value)
        if key_mask is not None:
            s = s.masked_fill(~key_mask[:, :, None, None], -1e30)
            k, v = mask_tokens(k, key_mask), mask_tokens(v, key_mask)
        # Σ_j weight_j·k_j as a matrix product, which ``castling.macs`` counts.
        context = s.softmax(dim=1).permute(0, 2, 3, 1) @ k.transpose(1, 2)  # (B, H, 1, d)
        return (v.relu() * context.transpose(1, 2)).to(value.dtype)

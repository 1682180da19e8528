"""Masked softmax attention, Castling-ViT's auxiliary branch, in memory that does not grow as N².

M_ij = p_ij where p_ij > ε, else 0, with p = softmax(q kᵀ/√d) over un-normalised q and k; the rows
are not renormalised (You et al. 2023, §3.3).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from castling.ops.common import autocast_off, check_qkv, scores_of, upcast, weighted_values


def softmax_scores(
    query: Tensor, key: Tensor, scale: float, bias: Tensor | None, key_mask: Tensor | None
) -> Tensor:
    """softmax(scale·q kᵀ + bias): (B, H, N_q, N_k) in accumulation precision.

    A sample whose mask excludes every key gets zero rows.
    """
    q, k = upcast(query, key)
    scores = scores_of(q * scale, k)
    if bias is not None:
        scores = scores + bias
    if key_mask is None:
        return scores.softmax(dim=-1)
    excluded = ~key_mask[:, None, None, :]
    weights = scores.masked_fill(excluded, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(excluded, 0)


def _attend_chunk(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    threshold: Tensor,
    scale: float,
    bias: Tensor | None,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (B, n, H, d_v) and three sums over the chunk: hinge, kept entries, kept mass."""
    weights = softmax_scores(query, key, scale, bias, key_mask)
    kept = weights > threshold
    masked = weights * kept
    out = weighted_values(masked, value)
    hinge = (weights - threshold).relu().sum()
    return out, hinge, kept.sum(), masked.detach().sum()


def masked_softmax(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    threshold: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    memory_limit_mb: float = 256.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masked softmax attention and its statistics.

    If the (B, H, N_q, N_k) scores exceed ``memory_limit_mb``, queries are processed in chunks below
    it, and the backward pass recomputes each chunk's scores: peak memory is a few times the limit
    plus O(N), for the price of one more forward computation.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        threshold: ε, 0-dim, or (B, 1, 1, 1) for one per sample.
        scale: multiplies the scores, 1/√d in the paper.
        bias: broadcastable to (B, H, N_q, N_k).
        key_mask: (B, N_k) boolean, True where a key takes part.
        memory_limit_mb: maximum size of a chunk's scores, MiB.

    Returns:
        Output (B, N_q, H, d_v) in the dtype of ``value``; mean over rows of Σ_j max(p_ij − ε, 0);
        fraction of entries kept; mean over rows of the kept mass Σ_j M_ij. The last two carry no
        gradient.
    """
    check_qkv(query, key, value, key_mask)
    batch, queries, heads, _ = query.shape
    keys = key.shape[1]
    with autocast_off(value):
        (v,) = upcast(value)
        row_bytes = batch * heads * keys * v.element_size()
        chunk = max(1, int(memory_limit_mb * 2**20) // max(1, row_bytes))
        if chunk >= queries:
            parts = [_attend_chunk(query, key, v, threshold, scale, bias, key_mask)]
        else:
            parts = []
            for start in range(0, queries, chunk):
                rows = slice(start, start + chunk)
                part_bias = bias
                if bias is not None and bias.shape[-2] != 1:
                    part_bias = bias[..., rows, :]
                parts.append(
                    checkpoint(
                        _attend_chunk,
                        *(query[:, rows], key, v, threshold, scale, part_bias, key_mask),
                        use_reentrant=False,
                    )
                )
        outs, hinges, counts, masses = zip(*parts, strict=True)
        rows_total = max(1, batch * heads * queries)
        return (
            torch.cat(outs, dim=1).to(value.dtype) if len(outs) > 1 else outs[0].to(value.dtype),
            torch.stack(hinges).sum() / rows_total,
            torch.stack(counts).sum() / (rows_total * keys),
            torch.stack(masses).sum() / rows_total,
        )

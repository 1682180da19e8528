"""Masks of softmax attention that exclude keys, in the form that linear attention can use."""

from __future__ import annotations

import torch
from torch import Tensor


def as_key_mask(mask: Tensor, batch: int, tokens: int) -> Tensor:
    """The keys that take part, where a mask says nothing more than that.

    Linear attention sums over the keys once for all queries, so every query must see the same keys.
    A query that sees none is one of a padding token, as in timm's NaFlexVit: what it becomes is
    read by nobody.

    Args:
        mask: True, or 0 in a mask to be added to the scores, where a token takes part; False, −∞ or
            the smallest number of the precision where it does not. (B, N) boolean, or (B, 1, 1, N)
            or (B, 1, N, N) of either kind, where B may be 1.
        batch: B.
        tokens: N.

    Returns:
        (B, N) boolean. In compiled, exported and traced graphs values are not checked.

    Raises:
        ValueError: another shape, other numbers, or queries that see different keys.
    """
    four = mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[2] in (1, tokens)
    two = mask.dim() == 2 and mask.dtype == torch.bool
    known = mask.dtype == torch.bool or mask.is_floating_point()
    if (
        not known
        or not (two or four)
        or mask.shape[-1] != tokens
        or mask.shape[0] not in (1, batch)
    ):
        raise ValueError(
            "a converted attention takes key masks only: boolean of shape (batch, tokens), or "
            "boolean or additive of shape (batch, 1, 1, tokens) or (batch, 1, tokens, tokens); got "
            f"{mask.dtype} of shape {tuple(mask.shape)} for {batch}×{tokens} tokens"
        )
    check = not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined]
    allowed = mask
    if mask.is_floating_point():
        allowed = mask == 0
        smallest = torch.finfo(mask.dtype).min
        if check and not bool((allowed | (mask <= smallest)).all()):
            raise ValueError(
                "a converted attention cannot add a bias to the scores: an additive mask holds 0 "
                f"where a key takes part, -inf or {smallest:g} where it does not, nothing else"
            )
    if two:
        return allowed.expand(batch, tokens)
    rows = allowed[:, 0]
    keys = rows.any(dim=1)
    if check and rows.shape[1] > 1:
        seeing = rows.any(dim=2, keepdim=True)
        if not torch.equal(rows, seeing & keys[:, None]):
            raise ValueError(
                "a converted attention takes key masks only, and here queries see different keys "
                "(a causal or windowed mask): leave this layer out with where="
            )
    return keys.expand(batch, tokens)

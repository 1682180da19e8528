"""Masks of softmax attention that exclude keys, in the form that linear attention can use."""

from __future__ import annotations

import torch
from torch import Tensor

from castling.surgery.grid_watch import in_graph


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
    check = not in_graph()
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


#: Swin hides the tokens of other windows by adding −100; others add −10⁴ or −10⁹.
_HIDES = -100.0


def key_mask_or_bias(
    mask: Tensor, batch: int, keys: int, bias: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """A mask as ``scaled_dot_product_attention`` takes it: as a mask of keys, or as a bias.

    Args:
        mask: (…, N_q, N_k), boolean or to be added to the scores.
        batch: B.
        keys: N_k.
        bias: whether a floating-point mask is known to hide nothing.

    Returns:
        Key mask (B, N_k), and bias; one of them is None.

    Raises:
        ValueError: queries see different keys; or a floating-point mask that may be either, while
            a program is being compiled or exported and its numbers cannot be looked at.
    """
    mask = mask[(None,) * max(4 - mask.dim(), 0)]
    if not mask.is_floating_point():
        return as_key_mask(mask, batch, keys), None
    if bias and in_graph():
        return None, mask
    if in_graph():
        raise ValueError(
            "while a model is compiled or exported nobody can tell whether a floating-point mask "
            "excludes keys or is a bias: pass a boolean mask"
        )
    values = mask.detach()
    hidden = values <= _HIDES
    if not bool(hidden.any()):
        return None, mask
    if bool((values[~hidden] != 0).any()):
        raise ValueError(
            "a mask adds a bias and hides keys as well (shifted windows): queries may see "
            "different keys, which linear attention cannot have. Leave this layer out with where="
        )
    shown = ~hidden
    if shown.shape[1] > 1 and bool((shown == shown[:, :1]).all()):
        shown = shown[:, :1]
    return as_key_mask(shown, batch, keys), None

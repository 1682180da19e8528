"""Varifocal loss (Zhang et al., "VarifocalNet", arXiv 2008.13367, eq. 2).

loss(p, q) = q·BCE(p, q)          where the target q > 0 (the overlap with the object)
α·p^γ·BCE(p, 0)      elsewhere
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ALPHA, GAMMA = 0.75, 2.0


def varifocal_negative(logits: Tensor) -> Tensor:
    """The loss of each logit where the target is 0."""
    return ALPHA * logits.sigmoid() ** GAMMA * F.softplus(logits)


def varifocal_positive(logits: Tensor, target: Tensor) -> Tensor:
    """The loss of each logit where the target is above 0."""
    return target * (F.softplus(logits) - target * logits)


def varifocal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The loss of each logit, in the shape of both arguments; no gradient to ``target``."""
    target = target.detach()
    return torch.where(target > 0, varifocal_positive(logits, target), varifocal_negative(logits))

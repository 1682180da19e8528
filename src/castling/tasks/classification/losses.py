"""Losses of classification: on labels, on a teacher, on the moving average."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from castling.tasks.classification.config import LossConfig
from castling.tasks.teacher import DistillConfig


def label_loss(
    logits: Tensor, labels: Tensor, config: LossConfig, weights: Tensor | None = None
) -> Tensor:
    """Distance of logits (B, K) to labels (B,) or soft labels (B, K), 0-dimensional.

    Args:
        logits: of the model.
        labels: classes, or shares of them.
        config: kind and smoothing.
        weights: (K,) how much an image counts by its class, a mixed one by its shares; the mean is
            that of the weighted images, Σ wᵢ·ℓᵢ / Σ wᵢ. None: all alike.
    """
    smoothing = config.smoothing
    logits = logits.float()
    classes = logits.shape[1]
    if config.kind == "cross_entropy":
        if weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        return _weighted_mean(losses, labels, weights)
    soft = F.one_hot(labels, classes) if labels.ndim == 1 else labels
    soft = soft.to(logits.dtype) * (1 - smoothing) + smoothing / classes
    if weights is None:
        return F.binary_cross_entropy_with_logits(logits, soft)
    losses = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").mean(dim=1)
    return _weighted_mean(losses, labels, weights)


def _weighted_mean(losses: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean of the losses (B,), each weighted by the weights (K,) of its image's classes."""
    each = weights[labels] if labels.ndim == 1 else labels.to(weights.dtype) @ weights
    return (losses * each).sum() / each.sum()


def balanced_weights(counts: Tensor) -> Tensor:
    """n/(K·n_k) of every class, (K,), from the numbers of images n_k; 0 for an empty class."""
    counts = counts.double()
    weights = counts.sum() / (len(counts) * counts)
    return weights.masked_fill(counts == 0, 0.0).float()


def distillation_loss(student: Tensor, teacher: Tensor, config: DistillConfig) -> Tensor:
    """Distance of student logits (B, K) to teacher logits (B, K), 0-dimensional.

    Soft: τ²·KL(softmax(t/τ) ‖ softmax(s/τ)), mean over the batch. Hard: −log softmax(s)[argmax t].
    (DeiT, arXiv 2012.12877 §4.)
    """
    if config.kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1))
    tau = config.temperature
    return tau**2 * F.kl_div(
        F.log_softmax(student.float() / tau, dim=1),
        F.log_softmax(teacher.float() / tau, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def self_distillation_loss(logits: Tensor, averaged: Tensor) -> Tensor:
    """Binary cross entropy of logits (B, K) towards the averaged model's sigmoids (B, K)."""
    return F.binary_cross_entropy_with_logits(logits.float(), averaged.float().sigmoid())


def mean_of_heads(output: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Logits (B, K); two heads are averaged where the model has not done so itself."""
    if isinstance(output, (tuple, list)):
        return torch.stack(list(output)).mean(dim=0)
    return output

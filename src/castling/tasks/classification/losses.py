"""Losses of classification: on labels, on a teacher, on the moving average."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from castling.tasks.classification.config import LossConfig
from castling.tasks.teacher import DistillConfig


def label_loss(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Distance of logits (B, K) to labels (B,) or soft labels (B, K), 0-dimensional."""
    smoothing = config.smoothing
    logits = logits.float()
    if config.kind == "cross_entropy":
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    classes = logits.shape[1]
    if labels.ndim == 1:
        labels = F.one_hot(labels, classes)
    soft = labels.to(logits.dtype) * (1 - smoothing) + smoothing / classes
    return F.binary_cross_entropy_with_logits(logits, soft)


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

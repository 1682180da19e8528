"""What teacher and student are compared by: logits or features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castling.conversion.config import ConversionConfig
from castling.surgery.transformers_save import is_of_transformers

#: Calls a model on images and returns what counts: a tensor, or several, channels last.
OutputOf = Callable[[nn.Module, Tensor], Tensor | Sequence[Tensor]]


def tensors_of(output: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """What :data:`OutputOf` returns, as a list."""
    return [output] if isinstance(output, Tensor) else list(output)


def model_output(model: nn.Module, images: Tensor) -> Tensor:
    """The tensor that a model gives: its own, or logits or last tokens of transformers'.

    Raises:
        TypeError: it gives something else; say what to compare with ``compared=``.
    """
    output: Any = model(images)
    for name in ("logits", "last_hidden_state"):
        if isinstance(found := getattr(output, name, None), Tensor):
            return found
    if isinstance(output, Tensor):
        return output
    raise TypeError(
        f"{type(model).__name__} returns {type(output).__name__}: say which tensor the stages "
        "compare with compared=lambda model, images: …"
    )


def has_classes(model: nn.Module, output: Tensor | Sequence[Tensor]) -> bool:
    """Whether an output (B, K) is scores of classes rather than a feature vector."""
    if not isinstance(output, Tensor) or output.dim() != 2:
        return False
    if is_of_transformers(model):
        return "Classification" in type(model).__name__
    return bool(getattr(model, "num_classes", 0))


def output_loss(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    logits: bool,
    config: ConversionConfig,
) -> Tensor:
    """τ²·KL(teacher ‖ student) of logits; 1 − cosine + 0.1 smooth L1 of features.

    Of several tensors the mean.
    """
    pairs = zip(tensors_of(student), tensors_of(teacher), strict=True)
    return torch.stack([_loss(a.float(), b.float(), logits, config) for a, b in pairs]).mean()


def _loss(student: Tensor, teacher: Tensor, logits: bool, config: ConversionConfig) -> Tensor:
    if logits:
        t = config.temperature
        return (
            t
            * t
            * F.kl_div(
                F.log_softmax(student / t, dim=-1),
                F.log_softmax(teacher / t, dim=-1),
                log_target=True,
                reduction="batchmean",
            )
        )
    cosine = F.cosine_similarity(student, teacher, dim=-1).mean()
    return 1 - cosine + 0.1 * F.smooth_l1_loss(student, teacher)


def compare_outputs(
    student: nn.Module, teacher: nn.Module, batches: list[Tensor], compared: OutputOf, logits: bool
) -> tuple[float, float | None, float]:
    """Output error, agreement and cosine, as :class:`castling.conversion.StageFigures` has them.

    Errors and cosines of several tensors are averaged.
    """
    errors, same, cosines, count = 0.0, 0.0, 0.0, 0
    with torch.no_grad():
        for images in batches:
            both = [tensors_of(compared(m, images)) for m in (student, teacher)]
            count += len(images)
            for own, wanted in zip(*both, strict=True):
                own, wanted = own.float(), wanted.float()
                part = 1 / len(both[0])
                difference = (own - wanted).flatten(1).norm(dim=1)
                errors += part * float((difference / wanted.flatten(1).norm(dim=1)).sum())
                cosine = F.cosine_similarity(own, wanted, dim=-1).reshape(len(images), -1)
                cosines += part * float(cosine.mean(dim=1).sum())
                if logits:
                    same += part * float((own.argmax(dim=-1) == wanted.argmax(dim=-1)).sum())
    return errors / count, same / count if logits else None, cosines / count

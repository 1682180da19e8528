"""What every model of semantic segmentation offers; the task, exports and benchmarks use it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castling.heads.processes import mean_over_processes
from castling.utils.labels import IGNORED as IGNORED

#: What losses are divided by at least: weights may be small.
_LEAST = 1e-12


class Segmenter(nn.Module):
    """Gives every pixel a class: backbone → neck → head.

    Attributes:
        num_classes: K; labels are 0 … K-1, and ``IGNORED``.
        multiple: sides of images must be multiples of this; a batch is padded to them.
    """

    num_classes: int
    multiple: int = 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Dense outputs of normalised images (B, 3, H, W), before anything is chosen among them.

        Their shapes follow from that of ``images`` alone, and they are continuous functions of it.
        Heads that classify pixels give ``logits`` (B, K, h, w).
        """
        raise NotImplementedError

    def scores(self, raw: dict[str, Tensor]) -> Tensor:
        """(B, K, h, w) scores from what :meth:`forward` gave; the largest is the class.

        They may be resized. Here they are the logits; see :meth:`probabilities`.
        """
        return raw["logits"]

    def probabilities(self, scores: Tensor) -> Tensor:
        """(B, K, h, w) class probabilities, which sum to 1, from (resized) :meth:`scores`."""
        return scores.softmax(1)

    def losses(
        self, images: Tensor, masks: Tensor, class_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Named parts of the loss, 0-dimensional, weighted: their sum is what is minimised.

        Args:
            images: (B, 3, H, W), normalised.
            masks: (B, H, W) labels, int64; ``IGNORED`` pixels add nothing.
            class_weights: (K,) weight of each class; None for equal ones.
        """
        logits = self.scores(self(images))
        return {"class": pixel_loss(logits, masks, class_weights)}

    def inference(self, images: Tensor) -> dict[str, Tensor]:
        """All that is computed for images (B, 3, H, W): dense outputs and the label of every pixel.

        What benchmarks time and :func:`castling.macs` counts.
        """
        raw: dict[str, Tensor] = self(images)
        height, width = images.shape[-2:]
        return {**raw, "mask": labels_of(self.scores(raw), (height, width))}


def pixel_loss(logits: Tensor, masks: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross entropy, averaged over the pixels that are not ignored; 0 where all are.

    In float32, and over the images of all processes.

    Args:
        logits: (B, K, h, w), resized bilinearly to the masks.
        masks: (B, H, W) int64.
        class_weights: (K,); the average is then a weighted one.

    Raises:
        ValueError: masks or weights do not fit the logits.
    """
    check_masks(masks, len(logits), logits.shape[1], class_weights)
    resized = resize_scores(logits.float(), (masks.shape[1], masks.shape[2]))
    weights = resized.new_ones(resized.shape[1])
    if class_weights is not None:
        weights = class_weights.to(resized)
    losses = F.cross_entropy(resized, masks, weights, ignore_index=IGNORED, reduction="sum")
    total = weights[masks[masks != IGNORED]].sum()
    return losses / mean_over_processes(total, least=_LEAST)


def check_masks(
    masks: Tensor, images: int, num_classes: int, class_weights: Tensor | None = None
) -> None:
    """Raise ValueError unless masks are (B, H, W) int64 labels below K, or ``IGNORED``.

    Args:
        masks: of a batch.
        images: B.
        num_classes: K.
        class_weights: (K,), if there are any.
    """
    if masks.dim() != 3 or len(masks) != images or masks.dtype != torch.int64:
        raise ValueError(
            f"masks are {tuple(masks.shape)} {masks.dtype}; expected ({images}, H, W) int64"
        )
    wrong = masks[((masks < 0) | (masks >= num_classes)) & (masks != IGNORED)]
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} pixels have a label that is no class, the first {int(wrong[0])}; the "
            f"head has {num_classes} classes, with labels 0 to {num_classes - 1}, and {IGNORED} "
            "for no class"
        )
    if class_weights is not None and class_weights.shape != (num_classes,):
        raise ValueError(
            f"class_weights have shape {tuple(class_weights.shape)} for {num_classes} classes"
        )


def resize_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, K, h, w) → (B, K, H, W), bilinear, half-pixel centres."""
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def labels_of(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) int64 label of every pixel, from scores (B, K, h, w) of any size."""
    return resize_scores(scores, size).argmax(1)

"""What every model of semantic segmentation offers; the task, exports and benchmarks use it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from castling.utils.labels import IGNORED as IGNORED


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

    Args:
        logits: (B, K, h, w), resized bilinearly to the masks.
        masks: (B, H, W) int64.
        class_weights: (K,); the average is then a weighted one.
    """
    resized = resize_scores(logits, (masks.shape[1], masks.shape[2])).float()
    losses = F.cross_entropy(
        resized, masks, weight=class_weights, ignore_index=IGNORED, reduction="sum"
    )
    known = masks != IGNORED
    total = known.sum() if class_weights is None else class_weights[masks[known]].sum()
    return losses / total.clamp(min=1e-12)


def resize_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, K, h, w) → (B, K, H, W), bilinear, half-pixel centres."""
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def labels_of(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) int64 label of every pixel, from scores (B, K, h, w) of any size."""
    return resize_scores(scores, size).argmax(1)

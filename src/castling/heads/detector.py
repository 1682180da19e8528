"""What every detector offers; the task of detection, exports and benchmarks know nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

#: Of one image: ``boxes`` (n, 4) x1, y1, x2, y2 in pixels of the batch's images, float32;
#: ``labels`` (n,) int64 in [0, K); with masks ``masks`` (n, H, W) uint8. No crowds among them.
DetectionTarget = dict[str, Tensor]


class Detector(nn.Module):
    """Finds objects: backbone → neck → head.

    Attributes:
        num_classes: K; labels are 0 … K-1, whatever a head counts inside.
        multiple: sides of images must be multiples of this; a batch is padded to them.
        has_masks: whether it also gives masks.
        detections: n: how many :meth:`decode` gives per image.
    """

    num_classes: int
    multiple: int = 32
    has_masks: bool = False
    detections: int = 100

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Dense outputs of normalised images (B, 3, H, W), before anything is chosen among them.

        Their shapes follow from that of ``images`` alone, and they are continuous functions of it:
        the switch, folding and benchmarks compare them. They are all that :meth:`decode` needs.
        """
        raise NotImplementedError

    def inference(self, images: Tensor) -> dict[str, Tensor]:
        """All that is computed for images (B, 3, H, W): dense outputs and detections of the input.

        What benchmarks time and :func:`castling.macs` counts.
        """
        raw: dict[str, Tensor] = self(images)
        height, width = images.shape[-2:]
        return {**raw, **self.decode(raw, (height, width))}

    def losses(self, images: Tensor, targets: Sequence[DetectionTarget]) -> dict[str, Tensor]:
        """Named parts of the loss, 0-dimensional, weighted: their sum is what is minimised.

        An image without objects is an image like any other. Random choices use PyTorch's global
        generators, which are seeded at every step.
        """
        raise NotImplementedError

    def decode(
        self, raw: dict[str, Tensor], size: tuple[int, int], valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Detections from what :meth:`forward` gave, best first, padded to ``detections``.

        Args:
            raw: outputs of :meth:`forward`.
            size: (height, width) of the images that it was given.
            valid: (B, 2) height and width of each image without padding, to which boxes are
                clipped; None: all of it.

        Returns:
            ``boxes`` (B, n, 4) x1, y1, x2, y2 in pixels of the input; ``scores`` (B, n), 0 where
            there is no detection; ``labels`` (B, n) int64; with masks ``masks`` (B, n, M, M), the
            probability of the object in its box.
        """
        raise NotImplementedError
